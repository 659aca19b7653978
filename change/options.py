"""Options of train.py and test.py: a typed dataclass each, from which the command line follows.

A field's type says how its argument is read (bool: --x, --no-x, --x=True, --x=False), its metadata what it means.
`__post_init__` checks across fields. Errors are one line and exit code 2.
"""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from change.common.devices import AMP_CHOICES, TRAINING_AMP_CHOICES
from change.common.errors import OneLineParser, UserError
from change.prediction.compiling import CHOICES as COMPILE_CHOICES
from change.prediction.tiles import Protocol
from models.encoders import ENCODERS, encoder_name
from models.network import MODELS, NetworkConfig
from models.padding import MULTIPLE

Options = TypeVar("Options")

# Window and overlap by protocol; (0, 0): whole images, None: as the options say.
PROTOCOLS: dict[str, tuple[int, int] | None] = {"full": (0, 0), "slide": None, "tile256": (256, 0)}


# What --recipe sets where an option is not given: the published training is the defaults.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "scratch": {
        "lr": 1e-3,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "decay_norms": False,
        "schedule": "cosine",
        "warmup": 2,
        "ema": 0.999,
        "keep": "last",
        "symmetries": True,
        "scale": "0.8 1.25",
        "color_setting": "0.3 0.3 0.3 0.05",
        "dice": 1.0,
        "prior": True,
    },
}


def option(
    default: Any,
    help: str,
    choices: Sequence[Any] | None = None,
    alias: str = "",
    read: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that is a command-line option; `read` converts its text, by default the field's type does."""
    return field(default=default, metadata={"help": help, "choices": choices, "alias": alias, "read": read})


def read_encoder(text: str) -> str:
    """Return the encoder's name for a name or the depth of a ResNet."""
    try:
        return encoder_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True)
class CommonOptions:
    """What training and testing share."""

    device: str = option("auto", "auto, cpu, cuda, mps, or the number of a GPU")
    workers: int = option(-1, "loader processes; -1: one a core, at most 8")
    compile: str = option("auto", "torch.compile: auto where it is expected to pay", choices=COMPILE_CHOICES)


@dataclass(frozen=True)
class TrainOptions(CommonOptions):
    """Options of train.py, as published but for the last ones."""

    seed: int = option(0, "of every random draw")
    root: str = option("", "data folder: train and val, each with A, B, label; or A, B, label and lists")
    list: str = option("", "folder of train.txt and val.txt, which name the pairs; default ROOT/list where it is used")
    trainsize: int = option(1024, "val images are resized to this square unless they have it; 0: never")
    cropsize: int = option(512, "side of the random training crop, a multiple of 32")
    recipe: str = option(
        "published",
        "of what is not given: the published one, or one for training from random weights on little data",
        tuple(RECIPES),
    )
    color_setting: str = option("0.2 0.2 0.1 0.1", "jitter of brightness, contrast, saturation, hue; all 0: none")
    scale: str = option("1 1", "enlarge each crop by a random factor between these")
    symmetries: bool = option(False, "quarter turns beside flips")
    swap: bool = option(False, "exchange the dates of half of the crops")
    epoch: int = option(800, "epochs")
    lr: float = option(6e-4, "learning rate at the start")
    weight_decay: float = option(2e-3, "of AdamW")
    decay_norms: bool = option(True, "weight decay of norms and biases too")
    eps: float = option(1e-3, "of AdamW: small gradients count for less below it; torch's own default is 1e-8")
    train_batchsize: int = option(8, "pairs a training step, of all processes together")
    grad_accum: int = option(1, "work the pairs of a step through in n parts, one after the other: less memory")
    val_batchsize: int = option(4, "pairs a validation step")
    val_epoch: int = option(10, "validate every n epochs, and after the last")
    decay_epoch: int = option(1, "set the learning rate every n epochs")
    schedule: str = option(
        "poly", "of the learning rate: lr * (1 - epoch / epochs) ** power, or half a cosine", ("poly", "cosine")
    )
    power: float = option(1.0, "exponent of poly")
    warmup: int = option(0, "epochs in which the learning rate rises first, fewer than --epoch")
    model: str = option("prx", "the network, or a plain U-Net on the same encoder to compare with", MODELS)
    backbone: str = option("resnet18", "encoder; 18 is short for resnet18", choices=ENCODERS, read=read_encoder)
    refine: bool = option(False, "add progressive refinement (pass 2)")
    cross: bool = option(False, "add cross-attention between the dates (pass 3)")
    within: bool = option(False, "with --cross: attention within each date, to compare with")
    k: int = option(2, "refinement: candidates a point")
    beta: float = option(0.75, "refinement: share of the points that are the hardest candidates")
    l1: float = option(5.0, "refinement: weight of the mask's loss")
    l2: float = option(1.0, "refinement: weight of the points' loss")
    dice: float = option(0.0, "weight of the Dice loss beside the mask's cross-entropy")
    prior: bool = option(False, "start from the rate of change in train, in the output's bias; not with --resume")
    ema: float = option(0.0, "validate and keep a moving average of the weights, of this decay (0.999); 0: none")
    keep: str = option("best", "weights to keep: those of the best F1 on val, or the last ones", ("best", "last"))
    save_path: str = option("", "folder of the run")
    best_name: str = option("", "name of the best weights, NAME.pth; default 1, 2 or best by the pass")
    save_freq: int = option(100, "keep a snapshot every n epochs; 0: none", alias="save_feq")
    save_minutes: float = option(10.0, "inside an epoch, save the run's state every n minutes")
    checkpoint_path: str = option("", "with --resume: weights to start from")
    resume: bool = option(False, "start from --checkpoint_path, not from --pretrained")
    pretrained: str = option("imagenet", "encoder at the start: imagenet, none, or the path of a torchvision file")
    mixed_precision_training: bool = option(True, "False is --amp off")
    amp: str = option("auto", "precision of training and validation", choices=TRAINING_AMP_CHOICES)
    kept_activations: float = option(1.0, "with --compile: share that stays in memory, the rest is computed again")
    deterministic: bool = option(False, "only algorithms that give the same bits again on the same device")
    cache: str = option("off", "disk: decode every pair once, into a file a split", choices=("off", "disk"))
    cache_path: str = option("", "folder of these files; default ROOT/.cache")
    continue_run: str = option("", "folder of an interrupted run to go on with, exactly")

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", encoder_name(self.backbone))  # saved runs may have the depth, 18
        at_least(self, 1, "epoch", "train_batchsize", "grad_accum", "val_batchsize", "val_epoch", "decay_epoch", "k")
        at_least(
            *(self, 0, "trainsize", "lr", "weight_decay", "eps", "l1", "l2", "dice", "warmup"),
            *("save_freq", "save_minutes", "seed", "power"),
        )
        at_least(self, -1, "workers")
        if self.cropsize < MULTIPLE or self.cropsize % MULTIPLE:
            raise UserError(f"--cropsize {self.cropsize}: choose a multiple of {MULTIPLE}")
        if not 0 <= self.kept_activations <= 1:
            raise UserError(f"--kept_activations {self.kept_activations}: choose 0 to 1")
        if not 0 <= self.beta <= 1:
            raise UserError(f"--beta {self.beta}: choose 0 to 1")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema {self.ema}: choose 0 (none) to below 1, such as 0.999")
        if self.model == "unet" and self.cross:
            raise UserError("--model unet has no cross-attention: leave out --cross")
        if self.within and not self.cross:
            raise UserError("--within is a form of cross-attention: add --cross")
        self.jitter_ranges()
        self.scale_range()
        if self.checkpoint_path and not self.resume:
            raise UserError("--checkpoint_path is given without --resume: add it to start from those weights")
        if self.resume and not self.checkpoint_path:
            raise UserError("--resume needs --checkpoint_path, the weights to start from")
        if not self.root:
            raise UserError("--root is missing: the data folder")
        if not self.save_path:
            raise UserError("--save_path is missing: the folder of the run")
        if "/" in self.best_name or "\\" in self.best_name:
            raise UserError(f"--best_name {self.best_name}: a file's name without folder; the folder is --save_path")

    def jitter_ranges(self) -> tuple[float, float, float, float]:
        """The four numbers of color_setting. Raises UserError where they are not."""
        try:
            brightness, contrast, saturation, hue = (float(part) for part in self.color_setting.split())
        except ValueError:
            raise UserError(f'--color_setting "{self.color_setting}": give four numbers, "0.2 0.2 0.1 0.1"') from None
        if not (all(0 <= value < 100 for value in (brightness, contrast, saturation)) and 0 <= hue <= 0.5):
            raise UserError(f'--color_setting "{self.color_setting}": 0 or more, the last one at most 0.5')
        return brightness, contrast, saturation, hue

    def scale_range(self) -> tuple[float, float]:
        """The two numbers of scale. Raises UserError where they are not."""
        try:
            smallest, largest = (float(part) for part in self.scale.split())
        except ValueError:
            raise UserError(f'--scale "{self.scale}": give two numbers, "0.5 2"') from None
        if not 0.1 <= smallest <= largest <= 10:
            raise UserError(f'--scale "{self.scale}": from 0.1 to 10, the smaller number first')
        return smallest, largest

    def network(self) -> NetworkConfig:
        """The network these options train."""
        return NetworkConfig(self.backbone, self.cross, self.refine, self.model, self.within)

    def run_name(self) -> str:
        """`best_name`, or by the pass: 1 (base), 2 (refine), best (with cross)."""
        return self.best_name or ("best" if self.cross else "2" if self.refine else "1")

    def precision(self) -> str:
        """What --amp and --mixed_precision_training mean together."""
        return self.amp if self.mixed_precision_training else "off"


@dataclass(frozen=True)
class TestOptions(CommonOptions):
    """Options of test.py; the network's shape comes from the checkpoint."""

    __test__ = False  # no test class, whatever pytest makes of the name

    test_root: str = option("", "folder of A, B and, for scores, label")
    list: str = option("", "text file that names the pairs to use, one a line; default: all")
    checkpoint_path: str = option("", "weights: ours or published", alias="test_checkpoint_path")
    testsize: int = option(0, "resize images to this square (bilinear; masks nearest); 0: as they are")
    test_batchsize: int = option(1, "pairs a step; images of different sizes never share one")
    protocol: str = option(
        "full", "whole images, overlapping windows, or tiles of 256 without overlap", choices=tuple(PROTOCOLS)
    )
    window: int = option(512, "of slide: side of the windows")
    overlap: int = option(128, "of slide: pixels by which they overlap; there they are blended")
    tta: bool = option(False, "mean over the eight flips and quarter turns")
    threshold: str = option("", "of the probability: a number, or val, the one chosen on val; default the checkpoint's")
    check: str = option("", "check.json of python -m change check; default results/check/NAME of the data set")
    amp: str = option("off", "precision: off is float32", choices=AMP_CHOICES)
    save_path: str = option("", "folder of metrics.json and images.csv; default results/NAME of test_root")
    save_result: bool = option(False, "write mask PNGs, 0 and 255")
    save_result_path: str = option("", "their folder; default SAVE_PATH/pred")
    save_iou_map: bool = option(False, "write error maps: TP green, FN red, FP blue")
    save_iou_map_path: str = option("", "their folder; default SAVE_PATH/iou_map")
    save_panels: bool = option(False, "write panels: before, after, mask, error")
    save_panels_path: str = option("", "their folder; default SAVE_PATH/panels")
    report: bool = option(False, "write SAVE_PATH/report.html: scores, curves, best and worst images")

    def __post_init__(self) -> None:
        at_least(self, 0, "testsize", "overlap")
        at_least(self, 1, "test_batchsize", "window")
        at_least(self, -1, "workers")
        if not self.test_root:
            raise UserError("--test_root is missing: a folder of A, B and, for scores, label")
        if not self.checkpoint_path:
            raise UserError("--checkpoint_path is missing: the weights to test")
        if self.overlap >= self.window:
            raise UserError(f"--overlap {self.overlap}: choose less than --window {self.window}")
        check_threshold(self.threshold)

    def prediction(self) -> Protocol:
        """How images are predicted."""
        window, overlap = PROTOCOLS[self.protocol] or (self.window, self.overlap)
        return Protocol(self.protocol, window, overlap, self.tta)


def check_threshold(text: str) -> None:
    """Raise UserError for a --threshold that is neither left out, nor val, nor a number from 0 to below 1."""
    if text in ("", "val"):
        return
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UserError(f"--threshold {text}: choose a number from 0 to below 1, or val")


def at_least(options: object, bound: int, *names: str) -> None:
    """Raise UserError for the first named field below `bound`, or past what a number here can be."""
    for name in names:
        value = getattr(options, name)
        if not bound <= value < (2**63 if isinstance(value, int) else math.inf):
            raise UserError(f"--{name} {value}: choose {bound} or more, and a finite number")


def read_bool(text: str) -> bool:
    """True and False in the usual spellings."""
    values = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False") from None


def parse_given(kind: type, arguments: Sequence[str], description: str) -> dict[str, Any]:
    """Parse a command line into the options of dataclass `kind` that it gives, and no defaults."""
    parser = OneLineParser(
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    types = typing.get_type_hints(kind)
    for spec in fields(kind):
        meta = spec.metadata
        flags = [f"--{name}" for name in (spec.name, meta["alias"]) if name]
        assert spec.default is not MISSING
        text = f"{meta['help']} (default: {spec.default if spec.default != '' else 'none'})".replace("%", "%%")
        if types[spec.name] is bool:
            parser.add_argument(
                *flags, dest=spec.name, nargs="?", const=True, type=read_bool, metavar="BOOL", help=text
            )
            parser.add_argument(f"--no-{spec.name}", dest=spec.name, action="store_false", help=argparse.SUPPRESS)
        else:
            parser.add_argument(
                *flags,
                dest=spec.name,
                type=meta["read"] or types[spec.name],
                choices=meta["choices"],
                help=text,
                metavar=None if meta["choices"] else types[spec.name].__name__.upper(),
            )
    return vars(parser.parse_args(arguments))


# What may differ when a run goes on: where it runs, where the same data lies, what it writes beside.
WHERE = ("root", "list", "device", "workers", "cache", "cache_path", "continue_run")
MAY_CHANGE = (*WHERE, "val_batchsize", "save_freq", "save_minutes")
# What has no meaning then: the folder is the one given, and the run has long started.
NO_MEANING = ("save_path", "best_name", "resume", "checkpoint_path", "pretrained")


def continued(saved: dict[str, Any], given: dict[str, Any]) -> TrainOptions:
    """The options of a run that goes on: as saved, but for those given now that may change.

    Raises UserError for a given option that would make it another run.
    """
    saved = dict(saved)
    if pseudo := saved.pop("pseudo", 0.0):  # an option of earlier versions
        raise UserError(
            f"the run was made with --pseudo {pseudo}, which this version no longer has: go on with the version that "
            "made it"
        )
    try:
        saved_options = TrainOptions(**saved)
    except TypeError as error:
        raise UserError(f"the run was made by another version ({error}): use that one to go on") from error
    differing = [
        f"--{name} {value!r}, was {getattr(saved_options, name)!r}"
        for name, value in given.items()
        if name not in MAY_CHANGE + NO_MEANING and value != getattr(saved_options, name)
    ]
    if differing:
        raise UserError(f"--continue_run goes on with the run as it was; not with {'; '.join(differing)}")
    changed = {name: value for name, value in given.items() if name in MAY_CHANGE}
    return TrainOptions(**{**asdict(saved_options), **changed})
