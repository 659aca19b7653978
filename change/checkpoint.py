"""Checkpoints: what a network is rebuilt from, its weights, and what it was trained on, in one file.

A checkpoint is a dict of plain values and tensors, read with `weights_only=True`:

    format         "prx-change/1"
    config         {"backbone": 18, "cross": False, "refine": False, "model": "prx", "within": False}
    pass           what `pass_name` calls it: "base", "refine+cross", ...
    normalisation  {"mean": [3 floats], "std": [3 floats]}, of RGB in 0..1
    threshold      a pixel is changed where its probability exceeds it
    val_threshold  the one of the highest F1 on val, used only when asked for; None where it is not known
    weights        name -> tensor, or {"levels": int8, "scale": float32 that broadcasts to it}: their product
    lineage        one record a pass, the first pass first (`PassRecord`)

Published PRX-Change checkpoints (plain state dicts) are read too, their names translated by `PUBLISHED_NAMES`, and
torchvision's ResNet files for the encoder. Every load is strict: names that are missing or left over are an error,
or are returned to the caller for being allowed and why.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from change.common.errors import UserError, listed
from change.common.files import file_hash, home_folder, write_whole
from models.encoders import ResNetEncoder
from models.network import NetworkConfig, PRXChange, build_network
from models.padding import IMAGENET_MEAN, IMAGENET_STD

FORMAT = "prx-change/1"
BASE_FOLDER = home_folder() / "checkpoints" / "base"

# Published names -> ours, applied in this order. The published `tf0.upsample` is used by nothing and left out.
PUBLISHED_NAMES = (
    (r"^module\.", ""),
    (r"^backbone\.", "encoder."),
    (r"^change_head\.PFRM\.proj\.(\d)\.", r"refinement.stages.\1.coarse."),
    (r"^change_head\.PFRM\.refine_head\.(\d)\.mlp\.", r"refinement.stages.\1."),
    (r"^change_head\.outc\.conv\.", "head.out."),
    (r"^change_head\.(upsample[12])\.", r"head.\1."),
    (r"^change_head\.tf0\.conv\.", "decoder.deepest.mix."),
    (r"^change_head\.tf0\.", "decoder.deepest."),
    (r"^change_head\.tf1\.", "decoder.stages.0."),
    (r"^change_head\.tf2\.", "decoder.stages.1."),
    (r"^change_head\.tf3\.", "decoder.stages.2."),
    (r"\.conv\.linear\.0\.", ".gate.squeeze."),
    (r"\.conv\.linear\.2\.", ".gate.excite."),
    (r"\.conv\.reduce_conv\.", ".reduce."),
    (r"^(decoder\.stages\.\d)\.conv\.conv\.", r"\1.conv."),
    (r"\.x_cross\.embed\.proj\.", ".cross.embed."),
    (r"\.x_cross\.time_token_b$", ".cross.token_before"),
    (r"\.x_cross\.time_token_a$", ".cross.token_after"),
    (r"\.x_cross\.atten\.0\.norm1\.", ".cross.norm_in."),
    (r"\.x_cross\.atten\.0\.attn\.", ".cross.attention."),
    (r"\.x_cross\.atten\.0\.norm\.", ".cross.norm_out."),
    (r"\.x_cross\.atten\.0\.mlp\.", ".cross.mlp."),
    (r"\.x_cross\.to_feature\.conv\.", ".cross.to_map."),
    (r"\.x_cross\.norm\.", ".cross.norm_map."),
)
UNUSED_PUBLISHED = ("change_head.tf0.upsample.weight", "change_head.tf0.upsample.bias")


@dataclass
class PassRecord:
    """One training pass: what it was, what it saw. `images`: the distinct `image_hash`es of its training images.

    The record "unknown" stands for whatever a published file was trained on.
    """

    name: str
    images: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    epoch: int = 0


@dataclass
class Checkpoint:
    """A network's configuration, weights and history. `sha256` and `path`: of the file, where it came from one."""

    config: NetworkConfig
    weights: dict[str, Tensor]
    lineage: list[PassRecord] = field(default_factory=list)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    threshold: float = 0.5
    val_threshold: float | None = None
    path: Path | None = None
    sha256: str = ""
    left_out: list[str] = field(default_factory=list)

    def knows_its_images(self) -> bool:
        """Whether the lineage names every image trained on."""
        return bool(self.lineage) and all(record.images for record in self.lineage)

    def trained_on(self) -> frozenset[str]:
        """The hashes of all images that any pass was trained on."""
        return frozenset(digest for record in self.lineage for digest in record.images)

    def chosen_threshold(self, text: str) -> float:
        """`threshold` for "", `val_threshold` for "val", else the number. Raises UserError where there is none."""
        if text == "val" and self.val_threshold is None:
            raise UserError(
                f"{self.path} carries no threshold chosen on val: give --threshold a number, or leave it out"
            )
        return self.threshold if not text else float(self.val_threshold or 0.0) if text == "val" else float(text)

    def save(self, path: Path, packed: bool = False) -> None:
        """Write the file, whole or not at all; `packed`: weights in 8 bits. Raises UserError where that fails."""
        weights = {name: tensor.detach().cpu() for name, tensor in self.weights.items()}
        content = {
            "format": FORMAT,
            "config": asdict(self.config),
            "pass": pass_name(self.config),
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
            "threshold": self.threshold,
            "val_threshold": self.val_threshold,
            "weights": pack_weights(weights, self.config) if packed else weights,
            "lineage": [asdict(record) for record in self.lineage],
        }
        save_tensors(content, path)


def pack_weights(weights: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor | dict[str, Tensor]]:
    """Kernels and matrices as 8-bit levels with a scale per output channel; biases, norms and tokens as they are."""
    modules = dict(build_network(config).named_modules())
    packed: dict[str, Tensor | dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        layer = modules.get(name.removesuffix(".weight"))
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            packed[name] = tensor
            continue
        output = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        others = [dim for dim in range(tensor.ndim) if dim != output]
        scale = tensor.float().abs().amax(others, keepdim=True).clamp_min(1e-30) / 127
        packed[name] = {"levels": (tensor.float() / scale).round().to(torch.int8), "scale": scale}
    return packed


def unpacked(stored: Tensor | Mapping[str, Tensor]) -> Tensor:
    """A weight as `pack_weights` stores it -> the weight, float32 where it was packed."""
    return stored if isinstance(stored, Tensor) else stored["levels"].float() * stored["scale"]


def pass_name(config: NetworkConfig) -> str:
    """The pass that trains this configuration: base, refine, cross or refine+cross; unet before them for a U-Net,
    within in place of cross for attention within each date."""
    parts = [*(["unet"] if config.model == "unet" else []), *(["refine"] if config.refine else [])]
    parts += [] if not config.cross else ["within"] if config.within else ["cross"]
    return "+".join(parts) or "base"


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write plain values and tensors with torch.save, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getvalue())


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of plain values and tensors to the CPU. Raises UserError for anything else, code in it above all."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what matters is whether it loads
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no checkpoint, or holds more than tensors, numbers and text, which could run "
            "code when loaded; save the state dict alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no checkpoint, or a damaged one; fetch or make it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint or a state dict")
    return content


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of our checkpoints or a published state dict. Raises UserError for anything else."""
    content = read_tensors(path)
    if str(content.get("format", "")).startswith("prx-change-run/"):
        raise UserError(f"{path} is the state of a run, for --continue_run; the weights lie beside it in *.pth")
    if "format" not in content:
        checkpoint = from_published(content, path)
    elif content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']!r}, this version reads {FORMAT!r}; update the code")
    else:
        try:
            checkpoint = Checkpoint(
                config=NetworkConfig(**content["config"]),
                weights={name: unpacked(stored) for name, stored in content["weights"].items()},
                lineage=[PassRecord(**record) for record in content["lineage"]],
                mean=tuple(float(value) for value in content["normalisation"]["mean"]),
                std=tuple(float(value) for value in content["normalisation"]["std"]),
                threshold=float(content["threshold"]),
                val_threshold=None if content.get("val_threshold") is None else float(content["val_threshold"]),
            )
            if not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in checkpoint.weights.items()):
                raise TypeError("weights that are no tensors")
            if not len(checkpoint.mean) == len(checkpoint.std) == 3:
                raise ValueError("normalisation of other than 3 channels")
            checkpoint.trained_on()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path} is not a whole checkpoint ({error}); fetch or make it again") from error
    checkpoint.path = path
    checkpoint.sha256 = file_hash(path)
    return checkpoint


def from_published(state: Mapping[str, Any], path: Path) -> Checkpoint:
    """Translate a published state dict; its configuration follows from its names and shapes."""
    strange = [n for n, value in state.items() if not (isinstance(n, str) and isinstance(value, Tensor))]
    if strange or not state:
        raise UserError(f"{path} is neither a checkpoint nor a state dict: {listed(strange) or 'it is empty'}")
    if "conv1.weight" in state:
        raise UserError(f"{path} holds an encoder alone: give it to train.py as --pretrained {path}")
    weights: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, tensor in state.items():
        if name.removeprefix("module.") in UNUSED_PUBLISHED:
            left_out.append(name)
            continue
        ours = name
        for pattern, replacement in PUBLISHED_NAMES:
            ours = re.sub(pattern, replacement, ours)
        if re.match(r"refinement\.stages\.\d\.fc\d\.weight", ours) and tensor.ndim == 3:
            tensor = tensor.squeeze(2)  # published as a convolution over points
        weights[ours] = tensor
    blocks = len({m.group(1) for name in weights if (m := re.match(r"encoder\.layer3\.(\d+)\.", name))})
    bottleneck = "encoder.layer1.0.conv3.weight" in weights
    depth = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}.get((blocks, bottleneck))
    if depth is None:
        raise UserError(f"{path} holds no PRX-Change network: its names begin with {listed(state)}")
    config = NetworkConfig(
        backbone=depth,
        cross=any(".cross." in name for name in weights),
        refine=any(name.startswith("refinement.") for name in weights),
    )
    return Checkpoint(config, weights, [PassRecord("unknown")], left_out=left_out)


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Load all of `weights` into all of `module`. Raises UserError with the names that do not fit."""
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    complaints = [
        f"{label} {listed(names)}"
        for label, names in (("it lacks", missing), ("it has besides", extra), ("other shapes:", shapes))
        if names
    ]
    if complaints:
        raise UserError(f"{source} does not fit this network: {'; '.join(complaints)}")
    module.load_state_dict(dict(weights))


def network_for_prediction(checkpoint: Checkpoint) -> tuple[PRXChange, list[str]]:
    """Rebuild the network without refinement heads, in eval mode; also the names of the weights left out."""
    network = build_network(replace(checkpoint.config, refine=False))
    weights = {name: t for name, t in checkpoint.weights.items() if not name.startswith("refinement.")}
    load_strict(network, weights, checkpoint.path)
    left_out = [name for name in checkpoint.weights if name not in weights]
    return network.eval(), checkpoint.left_out + left_out


def hand_over(checkpoint: Checkpoint, network: PRXChange, config: NetworkConfig) -> list[str]:
    """Start a pass from the one before: load its weights, return the names of the parameters that are new.

    What `config` adds to the checkpoint's own (refinement, X-Cross) keeps its initialisation. Raises UserError where
    the checkpoint is of another model, backbone, kind of attention, or of a later pass, or does not fit otherwise.
    """
    theirs = checkpoint.config
    if theirs.backbone != config.backbone:
        raise UserError(
            f"{checkpoint.path} holds a ResNet-{theirs.backbone}, this run is set to --backbone {config.backbone}"
        )
    if theirs.cross and config.cross and theirs.within != config.within:
        raise UserError(
            f"{checkpoint.path} and this run differ in --within: {'leave it out' if config.within else 'add it'}"
        )
    if theirs.model != config.model:
        raise UserError(f"{checkpoint.path} holds the model {theirs.model}, this run is set to --model {config.model}")
    for part in ("refine", "cross"):
        if getattr(theirs, part) and not getattr(config, part):
            raise UserError(
                f"{checkpoint.path} comes from a {pass_name(theirs)} pass, this is a {pass_name(config)} pass: "
                f"add --{part}, or start from an earlier pass"
            )
    added = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if (name.startswith("refinement.") and config.refine and not theirs.refine)
        or (".cross." in name and config.cross and not theirs.cross)
    }
    load_strict(network, {**added, **checkpoint.weights}, checkpoint.path)
    return list(added)


def load_encoder(encoder: ResNetEncoder, depth: int, pretrained: str) -> str:
    """Load ImageNet weights into the encoder; return a line that says from where and what was left out.

    `pretrained`: "imagenet" (a torchvision file in checkpoints/base, under its full or its short name, else
    torchvision's download), or the path of such a file. Raises UserError where there is none.
    """
    weights_enum = torchvision.models.get_model_weights(f"resnet{depth}")["IMAGENET1K_V1"]
    full_name = weights_enum.url.rsplit("/", 1)[1]
    if pretrained != "imagenet":
        source: object = Path(pretrained)
        state = read_tensors(Path(pretrained))
    else:
        local = [BASE_FOLDER / name for name in (full_name, f"resnet{depth}.pth") if (BASE_FOLDER / name).is_file()]
        if local:
            source = local[0]
            state = read_tensors(local[0])
        else:
            source = weights_enum.url
            try:
                state = dict(weights_enum.get_state_dict(progress=True, check_hash=True, weights_only=True))
            except (URLError, OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise UserError(
                    f"no ImageNet weights for ResNet-{depth}: fetch {weights_enum.url} into {BASE_FOLDER} "
                    f"or use --pretrained none (download failed: {error})"
                ) from error
    own = encoder.state_dict()
    added = {name: tensor for name, tensor in own.items() if name.startswith("project.")}
    left_out = [name for name in state if name in ("fc.weight", "fc.bias")]
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    load_strict(encoder, {**added, **kept}, source)
    return f"encoder from {source}; left out: {listed(left_out) or 'nothing'}; new: {listed(added) or 'nothing'}"
