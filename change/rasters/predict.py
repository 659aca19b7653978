"""Change between two dates: `python -m change predict BEFORE AFTER -o OUT`.

BEFORE and AFTER are two rasters (see `change.rasters.scene`), two image files (see `change.rasters.picture_pair`), or
two folders whose files belong together by stem. Without AFTER, BEFORE is a text file with one pair per line: BEFORE TAB
AFTER [TAB NAME].

The files of one pair are written to OUT, those of several pairs to OUT/NAME each. Pairs that already have a result are
skipped. Processes started by torchrun share the pairs. A folder appears complete or not at all, and it replaces nothing
but an earlier result of this program.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from change.common.choices import AMP_CHOICES, COMPILE_CHOICES, OVERLAP, TILE
from change.common.command_line import check_threshold, refuse_idle
from change.common.errors import OneLineParser, UserError
from change.common.files import DEFAULT_CHECKPOINT, require_checkpoint, shipped_file
from change.rasters.bands import ALPHA_CHOICES, check_numbers
from change.rasters.jobs import check_layer, find_jobs
from change.rasters.polygons import LEAST_PIXELS, OUTLINES, VECTORS

LEAST = {"tile": 32, "overlap": 0, "batch": 1, "min_area": 0, "simplify": 0}
LIMIT = 2**31  # the values above must be less than this
POLYGON_OPTIONS = ("min_area", "simplify", "outlines")
RASTER_OPTIONS = ("bands", "alpha", "stretch", "assume_aligned", "align", "vectors", "aoi", *POLYGON_OPTIONS)


def main(arguments: Sequence[str]) -> int:
    """Predict every pair that the command line names; return the exit code."""
    given = parse_arguments(arguments)
    find_jobs(given.before, given.after, given.out)  # like the next line, reports a missing file at once
    require_checkpoint(given.checkpoint_path)
    from change.rasters.predict_pairs import predict_all  # here, because importing torch takes seconds

    return predict_all(given)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Returns:
        All options with their values, except `RASTER_OPTIONS`: `rasters` holds those of them that are given.

    Raises:
        UserError: for a value out of range, for an option that has no effect with another one, or if the default
            checkpoint is missing.
    """
    given = make_parser().parse_args(arguments)
    given.rasters = {name: value for name, value in vars(given).items() if name in RASTER_OPTIONS}
    if given.checkpoint_path is None:
        if bands := given.rasters.get("bands"):
            check_numbers(bands)
        given.checkpoint_path = shipped_file(DEFAULT_CHECKPOINT)
    for name, least in LEAST.items():
        value = getattr(given, name, least)
        if not least <= value < LIMIT:
            raise UserError(f"--{name} {value}: choose {least} or more, and less than {LIMIT}")
    check_threshold(given.threshold)
    if aoi := given.rasters.get("aoi"):
        check_layer(aoi, "--aoi")
    if given.rasters.get("vectors") == "none":
        refuse_idle(given.rasters, POLYGON_OPTIONS, "--vectors none")
    if given.rasters.get("outlines") == "square":
        refuse_idle(given.rasters, ("simplify",), "--outlines square")
    return given


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        prog="python -m change predict",
        description="Find change between two rasters or images, or between many pairs of them.",
    )
    parser.add_argument("before", metavar="BEFORE", type=Path, help="raster, image or folder; or a text file of pairs")
    parser.add_argument(
        "after", metavar="AFTER", type=Path, nargs="?", help="the same for the later date; none with a text file"
    )
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument("--checkpoint_path", type=Path, help=f"weights to use (default: {DEFAULT_CHECKPOINT})")
    parser.add_argument("--threshold", default="", help="a number, or val (default: that of the checkpoint)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or the number of a GPU (default: auto)")
    parser.add_argument(
        "--amp", default="auto", choices=AMP_CHOICES, help="number format; off means float32 (default: auto)"
    )
    parser.add_argument("--tile", type=int, default=TILE, help=f"side of the tiles in pixels (default: {TILE})")
    parser.add_argument(
        "--overlap", type=int, default=OVERLAP, help=f"overlap of the tiles in pixels (default: {OVERLAP})"
    )
    parser.add_argument("--batch", type=int, default=1, help="number of tiles predicted at once (default: 1)")
    parser.add_argument("--compile", default="auto", choices=COMPILE_CHOICES, help="use torch.compile (default: auto)")
    parser.add_argument("--tta", action="store_true", help="average over the eight flips and quarter turns")
    rasters = parser.add_argument_group(
        "rasters", "Not for PNG, JPEG and BMP images.", argument_default=argparse.SUPPRESS
    )
    add_reading_options(rasters)
    rasters.add_argument("--aoi", type=Path, metavar="LAYER", help="vector file: predict only inside its polygons")
    rasters.add_argument("--vectors", choices=VECTORS, help="format of the polygons (default: gpkg)")
    rasters.add_argument(
        "--min_area",
        type=float,
        help=f"smallest polygon to keep, in square metres; 0 keeps all (default: {LEAST_PIXELS} pixels)",
    )
    rasters.add_argument("--simplify", type=float, help="how far outlines may move, in pixels (default: 0)")
    rasters.add_argument(
        "--outlines",
        choices=OUTLINES,
        help="pixels: along pixel edges; square: with right angles, like buildings, if they fit (default: pixels)",
    )
    return parser


def add_reading_options(rasters: argparse._ArgumentGroup) -> None:
    """Add the options that say how a pair of rasters is read, as in `change.rasters.raster.RasterPair`."""
    rasters.add_argument(
        "--bands",
        type=band_numbers,
        help="bands for red,green,blue, or for the bands that the network reads (default: those that the file declares "
        "as such, else 1,2,3)",
    )
    rasters.add_argument(
        "--alpha",
        choices=ALPHA_CHOICES,
        help="whether a band declared as alpha is transparency; auto looks at its levels (default: auto)",
    )
    rasters.add_argument(
        "--stretch",
        help="how to get 8 bits: none, two percentiles such as 2,98, or auto, which is none for 8-bit rasters and 2,98 "
        "for others (default: auto)",
    )
    rasters.add_argument(
        "--assume_aligned",
        action="store_true",
        default=argparse.SUPPRESS,
        help="take pixels at the same row and column as the same place, whatever the files say",
    )
    rasters.add_argument(
        "--align",
        action="store_true",
        default=argparse.SUPPRESS,
        help="measure the local shifts between the dates, and undo them while AFTER is read",
    )


def band_numbers(text: str) -> tuple[int, ...]:
    """Read band numbers, such as "3,2,1". Raises argparse's error for anything else."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers from 1, such as 3,2,1")
    return numbers
