"""The options of train.py: typed dataclasses in groups, checked as a whole. The command line is generated from them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from change.common.choices import TRAINING_AMP_CHOICES
from change.common.command_line import (
    File,
    Folder,
    Name,
    Numbers,
    option,
    read_numbers,
    read_range,
    require_at_least,
    require_share,
)
from change.common.errors import UserError
from change.options.compute import ComputeOptions
from models.config import ENCODERS, MODELS, MULTIPLE, ONE_MAP, PATCHES, NetworkConfig, choose_width, encoder_name


def read_encoder(text: str) -> str:
    """Read an encoder's name, or the depth of a ResNet."""
    try:
        return encoder_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True)
class RunOptions:
    """Run."""

    save_path: Folder = option("", "folder of the run")
    best_name: Name = option("", "name of the best weights, NAME.pth; default 1, 2 or best, depending on the pass")
    continue_run: Folder = option("", "continue the interrupted run in this folder, exactly")
    recipe: str = option(
        "published",
        "defaults of the options: those of the published training, or others for random weights and little data",
        choices=("published", "scratch"),
    )
    epoch: int = option(800, "number of epochs")
    seed: int = option(0, "random seed")
    save_freq: int = option(100, "keep a snapshot every n epochs; 0: none", alias="save_feq")
    save_minutes: float = option(10.0, "save the state of the run every n minutes within an epoch")

    def __post_init__(self) -> None:
        require_at_least(self, 1, "epoch")
        require_at_least(self, 0, "seed", "save_freq", "save_minutes")
        if "/" in self.best_name or "\\" in self.best_name:
            raise UserError(
                f"--best_name {self.best_name}: give a file name without a folder; --save_path is the folder"
            )


@dataclass(frozen=True)
class DataOptions:
    """Data."""

    root: Folder = option("", "data folder: train and val, each with A, B and label; or A, B, label and lists")
    list: Folder = option("", "folder of the lists train.txt and val.txt; default ROOT/list if there is no ROOT/train")
    trainsize: int = option(0, "resize val images to this square if they differ from it; 0: keep their size")
    cropsize: int = option(512, "side of the random training crop, a multiple of 32")
    resolution: Numbers = option("", 'metres per pixel of images, "0.5" or "0.5 2"; default: that of --checkpoint_path')
    bands: Name = option("", 'bands to read: all, or as in "green=1 red=2 nir=3" (docs/bands.md); default: 8-bit RGB')
    rgb_bands: Name = option("", "bands that are red, green and blue; default: those of these names", needs="bands")
    classes: Name = option(
        "", 'classes of the masks, as in "new<->vanished", or any: all are read as changed; default: ROOT/classes.txt'
    )
    cache: str = option("off", "decode every pair once, into files or memory", choices=("off", "disk", "device"))
    cache_path: Folder = option("", "folder of the cached files; default ROOT/.cache", needs="cache=disk")

    def __post_init__(self) -> None:
        require_at_least(self, 0, "trainsize")
        read_range("resolution", self.resolution, "0.5 2")
        if self.cropsize < MULTIPLE or self.cropsize % MULTIPLE:
            raise UserError(f"--cropsize {self.cropsize}: choose a multiple of {MULTIPLE}")


@dataclass(frozen=True)
class AugmentationOptions:
    """Augmentation."""

    color_setting: Numbers = option(
        "0.2 0.2 0.1 0.1",
        "jitter of brightness, contrast, saturation and hue, or, with --bands, of gain and offset; 0 turns one off",
    )
    scale: Numbers = option("1 1", "range of the random factor by which a crop is enlarged")
    symmetries: bool = option(False, "quarter turns in addition to flips")
    swap: bool = option(False, "exchange the dates of half of the crops")
    shift: int = option(0, "shift one date of half of the crops by up to n pixels, as if the dates were misregistered")
    unchanged: float = option(
        0.0, "probability that both dates of a crop show one image, with colours and shifts drawn as usual"
    )
    degrade: float = option(
        0.0, "probability of each degradation of each date: colour cast, haze, grey, blur or sharpening, JPEG"
    )

    def __post_init__(self) -> None:
        self.jitter()
        self.scales()
        require_at_least(self, 0, "shift")
        require_share(self, "degrade")
        require_share(self, "unchanged")

    def jitter(self) -> tuple[float, float, float, float]:
        """Return the ranges of brightness, contrast, saturation and hue. Raises UserError for bad values."""
        brightness, contrast, saturation, hue = read_numbers("color_setting", self.color_setting, 4, "0.2 0.2 0.1 0.1")
        if not (all(0 <= value < 100 for value in (brightness, contrast, saturation)) and 0 <= hue <= 0.5):
            raise UserError(f'--color_setting "{self.color_setting}": choose 0 or more, and at most 0.5 for the last')
        return brightness, contrast, saturation, hue

    def scales(self) -> tuple[float, float]:
        """Return the smallest and the largest factor. Raises UserError for bad values."""
        smallest, largest = read_numbers("scale", self.scale, 2, "0.5 2")
        if not 0.1 <= smallest <= largest <= 10:
            raise UserError(f'--scale "{self.scale}": choose from 0.1 to 10, the smaller number first')
        return smallest, largest


@dataclass(frozen=True)
class NetworkOptions:
    """Network."""

    model: str = option(
        "prx", "our network, or one with the same encoder to compare with, see docs/networks.md", choices=MODELS
    )
    backbone: Name = option(
        "resnet18", f"encoder: {', '.join(ENCODERS)}, or timm:NAME; 18 is short for resnet18", read=read_encoder
    )
    width: int = option(0, "channels of the decoder at stride 4, a multiple of 32; 0: the encoder's default")
    refine: bool = option(False, "add progressive refinement (pass 2)")
    cross: bool = option(False, "add cross-attention between the dates (pass 3)")
    within: bool = option(False, "attend within each date instead, to compare with", needs="cross")
    patch: int = option(
        4, "side of the attention's patches at stride 4; 4 as published, 8 is faster", choices=PATCHES, needs="cross"
    )

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "backbone", encoder_name(self.backbone))  # earlier versions saved the depth, 18
            choose_width(self.backbone, self.width)
        except ValueError as error:
            raise UserError(f"--{error}") from error
        if self.model != "prx" and self.cross:
            raise UserError(f"--model {self.model} has no cross-attention: leave out --cross")
        if self.model in ONE_MAP and self.refine:
            raise UserError(f"--model {self.model} has no maps of several strides to refine: leave out --refine")
        if self.within and not self.cross:
            raise UserError("--within is a form of cross-attention: add --cross")

    def config(self) -> NetworkConfig:
        """Return the configuration of the network that these options describe."""
        return NetworkConfig(self.backbone, self.cross, self.refine, self.model, self.within, self.width, self.patch)


@dataclass(frozen=True)
class StartOptions:
    """Start."""

    pretrained: File = option("imagenet", "weights of the encoder: imagenet, none, or the path of a file")
    resume: bool = option(False, "start a new run from the weights in --checkpoint_path, not from --pretrained")
    checkpoint_path: File = option("", "weights to start from", needs="resume")
    prior: bool = option(False, "set the bias of the output so that training starts from the rate of change in train")

    def __post_init__(self) -> None:
        if self.resume and not self.checkpoint_path:
            raise UserError("--resume needs --checkpoint_path, the weights to start from")


@dataclass(frozen=True)
class LossOptions:
    """Loss."""

    dice: float = option(0.0, "weight of the Dice loss, which is added to the cross-entropy of the mask")
    l1: float = option(5.0, "refinement: weight of the loss of the mask", needs="refine")
    l2: float = option(1.0, "refinement: weight of the loss of the points", needs="refine")
    k: int = option(2, "refinement: candidates per point", needs="refine")
    beta: float = option(0.75, "refinement: share of the points that are the hardest candidates", needs="refine")

    def __post_init__(self) -> None:
        require_at_least(self, 0, "dice", "l1", "l2")
        require_at_least(self, 1, "k")
        require_share(self, "beta")


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer."""

    lr: float = option(6e-4, "learning rate at the start")
    encoder_lr: float = option(1.0, "factor of --lr in the encoder, except in its new 1x1 convolutions")
    schedule: str = option(
        "poly", "learning rate: lr * (1 - epoch / epochs) ** power, or half a cosine", choices=("poly", "cosine")
    )
    power: float = option(1.0, "exponent of the schedule", needs="schedule=poly")
    warmup: int = option(0, "epochs in which the learning rate rises to that of the schedule; fewer than --epoch")
    decay_epoch: int = option(1, "update the learning rate every n epochs")
    weight_decay: float = option(2e-3, "weight decay of AdamW")
    decay_norms: bool = option(True, "apply weight decay to norms and biases too")
    eps: float = option(1e-3, "eps of AdamW: damps small gradients; the default of torch is 1e-8")
    ema: float = option(0.0, "decay of a moving average of the weights (0.999), which is validated and kept; 0: none")
    train_batchsize: int = option(8, "global batch size, over all processes")
    grad_accum: int = option(1, "split each step into n micro-batches, to save memory")

    def __post_init__(self) -> None:
        require_at_least(self, 0, "lr", "encoder_lr", "power", "warmup", "weight_decay", "eps")
        require_at_least(self, 1, "decay_epoch", "train_batchsize", "grad_accum")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema {self.ema}: choose 0 (none) to below 1, such as 0.999")


@dataclass(frozen=True)
class ValidationOptions:
    """Validation."""

    val_epoch: int = option(10, "validate every n epochs, and after the last")
    val_batchsize: int = option(4, "batch size of validation")
    keep: str = option("best", "which weights to keep: those of the best F1 on val, or the last", ("best", "last"))

    def __post_init__(self) -> None:
        require_at_least(self, 1, "val_epoch", "val_batchsize")


@dataclass(frozen=True)
class TrainComputeOptions(ComputeOptions):
    """Computation."""

    amp: str = option("auto", "number format of training and validation", choices=TRAINING_AMP_CHOICES)
    mixed_precision_training: bool = option(True, "False means --amp off")
    kept_activations: float = option(
        1.0, "share of the activations to keep in memory; the others are computed again", needs="compile=on"
    )
    cuda_graphs: bool = option(
        True, "on one GPU, replay each step as a CUDA graph; has no effect with --compile or --grad_accum"
    )
    deterministic: bool = option(False, "use only algorithms that give the same bits again on the same device")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "kept_activations")

    def number_format(self) -> str:
        """Return the number format that --amp and --mixed_precision_training give together."""
        return self.amp if self.mixed_precision_training else "off"


@dataclass(frozen=True)
class TrainOptions:
    """The options of train.py, in groups.

    Their defaults are those of the published training, except that val images keep their size.
    """

    run: RunOptions
    data: DataOptions
    augmentation: AugmentationOptions
    network: NetworkOptions
    start: StartOptions
    loss: LossOptions
    optimizer: OptimizerOptions
    validation: ValidationOptions
    compute: TrainComputeOptions

    def __post_init__(self) -> None:
        if not self.data.root:
            raise UserError("--root is missing: the data folder")
        if not self.run.save_path:
            raise UserError("--save_path is missing: the folder of the run")

    def run_name(self) -> str:
        """Return the name of the run: --best_name, or 1 (base), 2 (refine) or best (with cross)."""
        if self.run.best_name:
            return self.run.best_name
        if self.network.cross:
            return "best"
        return "2" if self.network.refine else "1"
