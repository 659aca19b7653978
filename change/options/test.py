"""The options of test.py: typed dataclasses in groups, checked as a whole. The command line is generated from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from change.common.choices import AMP_CHOICES
from change.common.command_line import (
    File,
    Folder,
    Name,
    check_threshold,
    from_flat,
    option,
    parse_given,
    refuse_without_effect,
    require_at_least,
    to_flat,
)
from change.common.errors import UserError
from change.common.files import require_checkpoint, require_root
from change.options.compute import ComputeOptions

if TYPE_CHECKING:
    from change.prediction.tiles import Protocol

# Side and overlap of the tiles of each protocol. (0, 0): whole images; None: the values of --tile and --overlap.
PROTOCOLS: dict[str, tuple[int, int] | None] = {"full": (0, 0), "slide": None, "tile256": (256, 0)}


@dataclass(frozen=True)
class TestInputOptions:
    """Data and weights."""

    __test__ = False  # pytest would collect a class whose name starts with Test

    test_root: Folder = option("", "folder of A, B and, for scores, label")
    list: File = option("", "text file that names the pairs to use, one per line; default: all")
    checkpoint_path: File = option("", "weights: ours or published", alias="test_checkpoint_path")
    classes: Name = option("", "classes of the masks, as in train.py; default: classes.txt, if there is one")
    check: File = option("", "check.json of `python -m change check`; default results/check/NAME of the data set")

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
    threshold: Name = option("", "a number, or val: the one chosen on val; default: the threshold of the checkpoint")
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
        from change.prediction.tiles import Protocol  # here, because importing torch takes seconds

        tile, overlap = PROTOCOLS[self.protocol] or (self.tile, self.overlap)
        return Protocol(self.protocol, tile, overlap, self.tta)


@dataclass(frozen=True)
class OutputOptions:
    """Output."""

    save_path: Folder = option(
        "", "folder of metrics.json and images.csv; default: results/PARENT-NAME, from test_root"
    )
    save_result: bool = option(False, "write masks as PNG, 0 and 255")
    save_result_path: Folder = option("", "folder of the masks; default SAVE_PATH/pred", needs="save_result")
    save_iou_map: bool = option(False, "write error maps: TP green, FN red, FP blue")
    save_iou_map_path: Folder = option("", "folder of the error maps; default SAVE_PATH/iou_map", needs="save_iou_map")
    save_panels: bool = option(False, "write panels: before, after, mask, errors")
    save_panels_path: Folder = option("", "folder of the panels; default SAVE_PATH/panels", needs="save_panels")
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


def parse_test(arguments: Sequence[str]) -> TestOptions:
    """Parse the command line of test.py. Raises UserError for bad values and for options that do nothing."""
    given = parse_given(TestOptions, arguments, "Test PRX-Change on a folder of A, B and label.")
    options = from_flat(TestOptions, given)
    refuse_without_effect(TestOptions, given, to_flat(options))
    return options


def parse_test_of_files(arguments: Sequence[str]) -> TestOptions:
    """Parse the command line of test.py. Raises UserError as `parse_test` does, and for missing data or weights."""
    options = parse_test(arguments)
    require_checkpoint(Path(options.input.checkpoint_path))
    require_root(Path(options.input.test_root))
    return options
