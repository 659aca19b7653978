"""The options of train.py and test.py: typed dataclasses in groups, checked as a whole.

The command lines are generated from them, and so is docs/options.md: `python -m change.options > docs/options.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from change.common.command_line import (
    from_flat,
    option,
    option_tables,
    read_numbers,
    read_range,
    refuse_without_effect,
    require_at_least,
    require_share,
    to_flat,
)
from change.common.devices import AMP_CHOICES, TRAINING_AMP_CHOICES
from change.common.errors import UserError
from change.prediction.compiling import CHOICES as COMPILE_CHOICES
from change.prediction.threshold import check_threshold
from change.prediction.tiles import Protocol
from models.encoders import ENCODERS, choose_width, encoder_name
from models.network import MODELS, PATCHES, NetworkConfig
from models.padding import MULTIPLE

# Side and overlap of the tiles of each protocol. (0, 0): whole images; None: the values of --tile and --overlap.
PROTOCOLS: dict[str, tuple[int, int] | None] = {"full": (0, 0), "slide": None, "tile256": (256, 0)}


def read_encoder(text: str) -> str:
    """Read the name of an encoder, or the depth of a ResNet."""
    try:
        return encoder_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunOptions:
    """Run."""

    save_path: str = option("", "folder of the run")
    best_name: str = option("", "name of the best weights, NAME.pth; default 1, 2 or best, depending on the pass")
    continue_run: str = option("", "continue the interrupted run in this folder, exactly")
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

    root: str = option("", "data folder: train and val, each with A, B and label; or A, B, label and lists")
    list: str = option("", "folder of the lists train.txt and val.txt; default ROOT/list if there is no ROOT/train")
    trainsize: int = option(0, "resize val images to this square if they differ from it; 0: keep their size")
    cropsize: int = option(512, "side of the random training crop, a multiple of 32")
    resolution: str = option("", 'metres per pixel of the images, "0.5" or "0.5 2"; default: as in --checkpoint_path')
    cache: str = option("off", "decode every pair once, into files or memory", choices=("off", "disk", "device"))
    cache_path: str = option("", "folder of these files; default ROOT/.cache", needs="cache=disk")

    def __post_init__(self) -> None:
        require_at_least(self, 0, "trainsize")
        read_range("resolution", self.resolution, "0.5 2")
        if self.cropsize < MULTIPLE or self.cropsize % MULTIPLE:
            raise UserError(f"--cropsize {self.cropsize}: choose a multiple of {MULTIPLE}")


@dataclass(frozen=True)
class AugmentationOptions:
    """Augmentation."""

    color_setting: str = option(
        "0.2 0.2 0.1 0.1", "jitter of brightness, contrast, saturation and hue; 0 turns one off"
    )
    scale: str = option("1 1", "range of the random factor by which a crop is enlarged")
    symmetries: bool = option(False, "quarter turns in addition to flips")
    swap: bool = option(False, "exchange the dates of half of the crops")

    def __post_init__(self) -> None:
        self.jitter()
        self.scales()

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

    model: str = option("prx", "our network, or a plain U-Net with the same encoder to compare with", choices=MODELS)
    backbone: str = option(
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
        if self.model == "unet" and self.cross:
            raise UserError("--model unet has no cross-attention: leave out --cross")
        if self.within and not self.cross:
            raise UserError("--within is a form of cross-attention: add --cross")

    def config(self) -> NetworkConfig:
        """Return the configuration of the network that these options describe."""
        return NetworkConfig(self.backbone, self.cross, self.refine, self.model, self.within, self.width, self.patch)


@dataclass(frozen=True)
class StartOptions:
    """Start."""

    pretrained: str = option("imagenet", "weights of the encoder: imagenet, none, or the path of a file")
    resume: bool = option(False, "start a new run from the weights in --checkpoint_path, not from --pretrained")
    checkpoint_path: str = option("", "weights to start from", needs="resume")
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
        require_at_least(self, 0, "lr", "power", "warmup", "weight_decay", "eps")
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
class ComputeOptions:
    """Computation."""

    device: str = option("auto", "auto, cpu, cuda, mps, or the number of a GPU")
    workers: int = option(-1, "loader processes; -1: one per core, at most 8")
    compile: str = option("auto", "use torch.compile; auto: if it should save time", choices=COMPILE_CHOICES)

    def __post_init__(self) -> None:
        require_at_least(self, -1, "workers")


@dataclass(frozen=True)
class TrainComputeOptions(ComputeOptions):
    """Computation."""

    amp: str = option("auto", "number format of training and validation", choices=TRAINING_AMP_CHOICES)
    mixed_precision_training: bool = option(True, "False means --amp off")
    kept_activations: float = option(
        1.0, "share of the activations to keep in memory; the others are computed again", needs="compile=on"
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


# --- testing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestInputOptions:
    """Data and weights."""

    __test__ = False  # pytest would collect a class whose name starts with Test

    test_root: str = option("", "folder of A, B and, for scores, label")
    list: str = option("", "text file that names the pairs to use, one per line; default: all")
    checkpoint_path: str = option("", "weights: ours or published", alias="test_checkpoint_path")
    check: str = option("", "check.json of `python -m change check`; default results/check/NAME of the data set")

    def __post_init__(self) -> None:
        if not self.test_root:
            raise UserError("--test_root is missing: a folder of A, B and, for scores, label")
        if not self.checkpoint_path:
            raise UserError("--checkpoint_path is missing: the weights to test")


@dataclass(frozen=True)
class ProtocolOptions:
    """Protocol."""

    protocol: str = option(
        "full", "whole images, overlapping tiles, or tiles of 256 without overlap", choices=tuple(PROTOCOLS)
    )
    tile: int = option(512, "side of the tiles in pixels", alias="window", needs="protocol=slide")
    overlap: int = option(128, "overlap of neighbouring tiles in pixels; it is blended", needs="protocol=slide")
    tta: bool = option(False, "average over the eight flips and quarter turns")
    threshold: str = option("", "a number, or val: the one chosen on val; default: the threshold of the checkpoint")
    testsize: int = option(0, "resize images to this square (bilinear; masks nearest); 0: keep their size")
    test_batchsize: int = option(1, "batch size; only images of one size share a batch")

    def __post_init__(self) -> None:
        require_at_least(self, 0, "testsize", "overlap")
        require_at_least(self, 1, "test_batchsize", "tile")
        check_threshold(self.threshold)
        if self.protocol == "slide" and self.overlap >= self.tile:
            raise UserError(f"--overlap {self.overlap}: choose less than --tile {self.tile}")

    def prediction(self) -> Protocol:
        """Return the protocol that these options describe."""
        tile, overlap = PROTOCOLS[self.protocol] or (self.tile, self.overlap)
        return Protocol(self.protocol, tile, overlap, self.tta)


@dataclass(frozen=True)
class OutputOptions:
    """Output."""

    save_path: str = option("", "folder of metrics.json and images.csv; default: results/PARENT-NAME, from test_root")
    save_result: bool = option(False, "write masks as PNG, 0 and 255")
    save_result_path: str = option("", "folder of the masks; default SAVE_PATH/pred", needs="save_result")
    save_iou_map: bool = option(False, "write error maps: TP green, FN red, FP blue")
    save_iou_map_path: str = option("", "folder of the error maps; default SAVE_PATH/iou_map", needs="save_iou_map")
    save_panels: bool = option(False, "write panels: before, after, mask, errors")
    save_panels_path: str = option("", "folder of the panels; default SAVE_PATH/panels", needs="save_panels")
    report: bool = option(False, "write SAVE_PATH/report.html: scores, curves, best and worst images")


@dataclass(frozen=True)
class TestComputeOptions(ComputeOptions):
    """Computation."""

    __test__ = False

    amp: str = option("off", "number format; off: float32", choices=AMP_CHOICES)


@dataclass(frozen=True)
class TestOptions:
    """The options of test.py, in groups. The network is that of the checkpoint."""

    __test__ = False

    input: TestInputOptions
    protocol: ProtocolOptions
    output: OutputOptions
    compute: TestComputeOptions


def build_test_options(given: Mapping[str, Any]) -> TestOptions:
    """Build the options of test.py. Raises UserError for bad values and for options that do nothing in this mode."""
    options = from_flat(TestOptions, given)
    refuse_without_effect(TestOptions, given, to_flat(options))
    return options


# --- docs/options.md -----------------------------------------------------------------------------------------------


def options_page() -> str:
    """Return the text of docs/options.md."""
    return f"""# Options

Every option of `train.py` and `test.py`. This page is generated from `change/options.py`
(`python -m change.options > docs/options.md`) and checked by a test.

Booleans can be written `--cross`, `--no-cross`, `--cross=True` or `--cross=False`. An option that does nothing in the
chosen mode is an error. The commands of `python -m change VERB` list their options with `--help`.

## train.py

{option_tables(TrainOptions)}
## test.py

{option_tables(TestOptions).rstrip()}
"""


if __name__ == "__main__":
    sys.stdout.write(options_page())
