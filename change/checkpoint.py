"""Checkpoint files: a network's configuration, its weights, and what it was trained on.

A checkpoint is a dict of plain values and tensors, read with `weights_only=True`:

    format         "prx-change/1"
    config         {"backbone": "resnet18", "cross": False, "refine": False, "model": "prx", "within": False,
                   "width": 64, "patch": 4, "in_channels": 3, "classes": 1}; files of earlier versions have the depth
                   of the ResNet as "backbone", and some lack the last four, which are then those of the published
                   network
    pass           the name of the pass, see `pass_name`: "base", "refine+cross", ...
    normalisation  {"mean": [floats], "std": [floats]}, one per channel, for RGB in 0..1 or for levels of `bands`
    threshold      a pixel is changed if its probability exceeds this
    val_threshold  the threshold with the highest F1 on val, used only on request; None if it is not known
    resolution     [finest, coarsest] ground resolution of the training images, in metres per pixel; None if it is not
                   known, and missing from files of earlier versions
    bands          the fields of `Bands`; None for 8-bit RGB, and missing from files of earlier versions
    classes        the fields of `Classes`; None if the network only tells changed from unchanged, and missing from
                   files of earlier versions
    weights        name -> tensor; a packed one is {"levels": int8, "scale": float32}, which are multiplied
    lineage        one record per training pass, the first pass first, see `PassRecord`

State dicts of the published PRX-Change are read too. Every load is strict: missing or surplus names are an error,
except for those that are left out on purpose, which are returned to the caller.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from change.common.bands import Bands, Channels, restore_bands
from change.common.classes import Classes, restore_classes
from change.common.errors import UserError, list_names
from change.common.files import file_hash, require_checkpoint, write_whole
from change.published import translate
from models.config import RGB, NetworkConfig
from models.encoders import IMAGENET_MEAN, IMAGENET_STD
from models.network import PRXChange, build_network
from models.padding import LEVELS, normalise

FORMAT = "prx-change/1"


@dataclass
class PassRecord:
    """The record of one training pass.

    Attributes:
        name: the name of the pass, see `pass_name`; "unknown" for a published file.
        images: hashes of the distinct training images, see `image_hash`.
        options: the options of train.py.
        versions: versions of Python and packages, and the device and number format of the run.
        scores: scores on val.
        epoch: the epoch of the weights.
        sources: hashes of the images that tiles among them were cut from, as far as `prepare --tile` recorded them;
            files of earlier versions have none.
    """

    name: str
    images: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    epoch: int = 0
    sources: list[str] = field(default_factory=list)


@dataclass
class Checkpoint:
    """A network's configuration, weights and history. The module's docstring describes the entries of the file.

    Attributes:
        config: the values from which the network is built.
        weights: the network's state dict.
        lineage: one record per training pass, the first pass first.
        mean: means of the channels, with which the input is normalised; of RGB, for values in 0..1.
        std: standard deviations of the channels, likewise.
        bands: the bands that the channels are; None for 8-bit RGB. Their mean and std have the units of the files.
        classes: the classes of change; None if the network only tells changed from unchanged.
        threshold: a pixel is changed if its probability exceeds this.
        val_threshold: the threshold with the highest F1 on val; None if it is not known.
        resolution: the finest and the coarsest ground resolution trained on, in metres per pixel; None if it is not
            known.
        path: the file that the checkpoint was read from; None if it was not read.
        sha256: the hash of that file.
        left_out: names in that file that the network does not use.
    """

    config: NetworkConfig
    weights: dict[str, Tensor]
    lineage: list[PassRecord] = field(default_factory=list)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    threshold: float = 0.5
    val_threshold: float | None = None
    resolution: tuple[float, float] | None = None
    bands: Bands | None = None
    classes: Classes | None = None
    path: Path | None = None
    sha256: str = ""
    left_out: list[str] = field(default_factory=list)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images (B, I, H, W), uint8 RGB or levels of `bands`, for the network."""
        return normalise(images, self.mean, self.std, LEVELS if self.bands is None else 1.0)

    def picture(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Return an image (H, W, C) as RGB (H, W, 3): levels are stretched around the mean of their band."""
        if self.bands is None:
            return image
        return Channels(self.bands, self.mean, self.std).picture(image)

    def knows_its_images(self) -> bool:
        """Return whether the lineage records the training images of every pass."""
        return bool(self.lineage) and all(record.images for record in self.lineage)

    def trained_on(self) -> frozenset[str]:
        """Return the hashes of all training images, and of the images they were cut from, of all passes."""
        return frozenset(digest for record in self.lineage for digest in (*record.images, *record.sources))

    def choose_threshold(self, text: str) -> float:
        """Return the threshold that a user asks for.

        Args:
            text: "" for `threshold`, "val" for `val_threshold`, or a number.

        Raises:
            UserError: the checkpoint has no `val_threshold`.
        """
        if text == "":
            return self.threshold
        if text != "val":
            return float(text)
        if self.val_threshold is None:
            raise UserError(f"{self.path} has no threshold chosen on val: give --threshold a number, or leave it out")
        return self.val_threshold

    def save(self, path: Path, packed: bool = False) -> None:
        """Write the file, completely or not at all.

        Args:
            path: the file.
            packed: store the weights in 8 bits, see `pack_weights`.

        Raises:
            UserError: the file cannot be written.
        """
        weights = {name: tensor.detach().cpu() for name, tensor in self.weights.items()}
        content = {
            "format": FORMAT,
            "config": asdict(self.config),
            "pass": pass_name(self.config),
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
            "threshold": self.threshold,
            "val_threshold": self.val_threshold,
            "resolution": None if self.resolution is None else list(self.resolution),
            "bands": None if self.bands is None else asdict(self.bands),
            "classes": None if self.classes is None else self.classes.as_dict(),
            "weights": pack_weights(weights, self.config) if packed else weights,
            "lineage": [asdict(record) for record in self.lineage],
        }
        save_tensors(content, path)


def pass_name(config: NetworkConfig) -> str:
    """Return the name of the pass that trains this configuration, such as "base" or "refine+cross".

    The name joins the model if it is not "prx", "refine" for refinement heads, and "cross" for X-Cross ("within" if it
    attends within each date). It is "base" if there is none of these.
    """
    parts: list[str] = []
    if config.model != "prx":
        parts.append(config.model)
    if config.refine:
        parts.append("refine")
    if config.cross:
        parts.append("within" if config.within else "cross")
    return "+".join(parts) or "base"


def build_apart(config: NetworkConfig) -> PRXChange:
    """Build a network whose random weights are not used, without drawing from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        return build_network(config)


def pack_weights(weights: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor | dict[str, Tensor]]:
    """Store weights in a quarter of the size.

    Weights of convolutions and linear layers become 8-bit levels with one scale per output channel. Biases, norms and
    tokens are not packed.
    """
    modules = dict(build_apart(config).named_modules())
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


def unpack_weight(stored: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Restore a weight that `pack_weights` stored: float32 if it was packed, else unchanged."""
    return stored if isinstance(stored, Tensor) else stored["levels"].float() * stored["scale"]


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write plain values and tensors with torch.save. Raises UserError if the file cannot be written whole."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getvalue())


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of plain values and tensors to the CPU. Code in the file is never run.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    require_checkpoint(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; a file that cannot be read raises an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no checkpoint, or holds objects besides tensors, numbers and text, which could "
            "run code when loaded; save only the state dict"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no checkpoint, or a damaged one; download or train it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint or a state dict")
    return content


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of our checkpoints or a published state dict.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    content = read_tensors(path)
    checkpoint = from_content(content, path) if "format" in content else from_published(content, path)
    checkpoint.path = path
    checkpoint.sha256 = file_hash(path)
    return checkpoint


def from_content(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """Make a checkpoint from the content of one of our files. Raises UserError if something in it is missing."""
    if str(content["format"]).startswith("prx-change-run/"):
        weights = path.with_name(path.name.removesuffix(".state.pth") + ".pth")
        remedy = f"use {weights}" if weights.is_file() else f"it has no weights yet: validation writes {weights.name}"
        raise UserError(f"{path} is the state of a run, for --continue_run; {remedy}")
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']!r}, this version reads {FORMAT!r}; update the code")
    try:
        checkpoint = Checkpoint(
            config=NetworkConfig(**content["config"]),
            weights={name: unpack_weight(stored) for name, stored in content["weights"].items()},
            lineage=[PassRecord(**record) for record in content["lineage"]],
            mean=tuple(float(value) for value in content["normalisation"]["mean"]),
            std=tuple(float(value) for value in content["normalisation"]["std"]),
            threshold=float(content["threshold"]),
            val_threshold=None if content.get("val_threshold") is None else float(content["val_threshold"]),
            resolution=read_resolution(content.get("resolution")),
            bands=restore_bands(content.get("bands")),
            classes=restore_classes(content.get("classes")),
        )
        if not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in checkpoint.weights.items()):
            raise TypeError("some weights are no tensors")
        channels = checkpoint.config.in_channels
        bands = checkpoint.bands
        if not len(checkpoint.mean) == len(checkpoint.std) == channels == (len(bands.names) if bands else RGB):
            raise ValueError(f"the normalisation or the bands are not for {channels} channels")
        if checkpoint.config.classes != (len(checkpoint.classes.names) if checkpoint.classes else 1):
            raise ValueError(f"the names of the classes are not those of {checkpoint.config.classes} classes")
        checkpoint.trained_on()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole checkpoint ({error}); download or train it again") from error
    return checkpoint


def read_resolution(stored: Any) -> tuple[float, float] | None:
    """Read the resolutions of a checkpoint's file. Raises ValueError for anything but two lengths in order, or None."""
    if stored is None:
        return None
    finest, coarsest = (float(length) for length in stored)
    if not 0 < finest <= coarsest < math.inf:
        raise ValueError(f"the resolution {stored} is not a range of lengths")
    return finest, coarsest


def from_published(state: Mapping[str, Any], path: Path) -> Checkpoint:
    """Make a checkpoint from a published state dict. Raises UserError if `state` is not one."""
    config, weights, left_out = translate(state, path)
    return Checkpoint(config, weights, [PassRecord("unknown")], left_out=left_out)


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Load all of `weights` into all of `module`.

    Args:
        module: the module.
        weights: its state dict.
        source: the origin of the weights, for the error message.

    Raises:
        UserError: names or shapes differ. The message names them.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    complaints = [
        f"{label} {list_names(names)}"
        for label, names in (("missing", missing), ("unexpected", extra), ("other shapes:", shapes))
        if names
    ]
    if complaints:
        raise UserError(f"{source} does not fit this network: {'; '.join(complaints)}")
    module.load_state_dict(dict(weights))


def network_for_prediction(checkpoint: Checkpoint) -> tuple[PRXChange, list[str]]:
    """Build the checkpoint's network without refinement heads, which prediction does not use.

    Returns:
        The network in eval mode, and the names of the weights that are left out.

    Raises:
        UserError: the weights do not fit the configuration.
    """
    network = build_apart(replace(checkpoint.config, refine=False))
    weights = {name: tensor for name, tensor in checkpoint.weights.items() if not name.startswith("refinement.")}
    load_strict(network, weights, checkpoint.path)
    left_out = [name for name in checkpoint.weights if name not in weights]
    return network.eval(), checkpoint.left_out + left_out
