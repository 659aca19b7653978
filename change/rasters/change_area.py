"""The area of change with its uncertainty: `python -m change area OUT`.

OUT is a finished scene, a folder that `python -m change predict` wrote. Without --reference, a stratified random sample
of its pixels is written to OUT/area for interpretation (`change.rasters.area_sample`). With --reference, the filled-in
sample gives accuracies and areas with 95% intervals (`change.rasters.area_result`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from change.common.command_line import refuse_idle
from change.common.errors import OneLineParser, UserError
from change.common.gdal import quiet_gdal
from change.evaluation.area_estimate import LEAST
from change.rasters.area_result import describe_result, estimate_area
from change.rasters.area_sample import DESIGN, FOLDER, POINTS, Plan, write_sample

BUFFER, ERROR, MINIMUM, CHIP = 2, 0.01, 50, 64
EXPECTED = (0.98, 0.7, 0.8)  # no change, change, buffer
MOST = {"buffer": 64, "samples": 100_000, "minimum": 10_000, "seed": 2**63 - 1, "chip": 4096}
FEWEST = {"buffer": 0, "samples": 1, "minimum": LEAST, "seed": 0, "chip": 0}
SAMPLING = ("buffer", "samples", "expected", "target_error", "minimum", "seed", "chip")


def main(arguments: Sequence[str]) -> int:
    """Draw a sample, or estimate from one; return the exit code."""
    given = parse_arguments(arguments)
    if not given.folder.is_dir():
        raise UserError(f"no folder {given.folder}: give a folder that python -m change predict wrote")

    with quiet_gdal():
        if "reference" in given:
            sys.stdout.write(describe_result(estimate_area(given.folder, given.reference)))
            return 0
        design = write_sample(given.folder, make_plan(given))
    sizes = ", ".join(f"{part['points']} of {part['pixels']:,} {part['name']}" for part in design["strata"])
    path = given.folder / FOLDER / POINTS
    sys.stdout.write(
        f"sampled pixels: {sizes}\nwritten to {path}; fill in its field reference with change or no change, then run\n"
        f"python -m change area {given.folder} --reference {path}\n"
    )
    return 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; options that are not given are absent. Raises UserError for a value out of range."""
    given = make_parser().parse_args(arguments)
    if "reference" in given:
        refuse_idle(vars(given), SAMPLING, "--reference")
    for name, most in MOST.items():
        value = getattr(given, name, most)
        if not FEWEST[name] <= value <= most:
            raise UserError(f"--{name} {value}: choose {FEWEST[name]} to {most}")
    if not 0 < getattr(given, "target_error", ERROR) < 1:
        raise UserError(f"--target_error {given.target_error:g}: choose a share between 0 and 1, such as {ERROR}")
    return given


def make_plan(given: argparse.Namespace) -> Plan:
    """Collect the options of the sample; those not given have their defaults."""
    return Plan(
        buffer=getattr(given, "buffer", BUFFER),
        expected=getattr(given, "expected", EXPECTED),
        error=getattr(given, "target_error", ERROR),
        samples=getattr(given, "samples", None),
        minimum=getattr(given, "minimum", MINIMUM),
        seed=getattr(given, "seed", 0),
        chip=getattr(given, "chip", CHIP),
    )


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        prog="python -m change area",
        description="Estimate the area of change in a finished scene from a sample of interpreted points.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder that python -m change predict wrote")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="LAYER",
        help=f"the filled-in {POINTS}: estimate from it; without this option, a sample is drawn",
    )
    drawing = parser.add_argument_group(f"drawing a sample, recorded in {DESIGN}")
    drawing.add_argument(
        "--buffer",
        type=int,
        help=f"width of the stratum around change in pixels; 0 leaves it out (default: {BUFFER})",
    )
    drawing.add_argument("--samples", type=int, help="number of points (default: as many as --target_error needs)")
    drawing.add_argument(
        "--target_error", type=float, help=f"target standard error of the overall accuracy (default: {ERROR})"
    )
    drawing.add_argument(
        "--expected",
        type=shares,
        help="shares of no change, change and buffer that are expected to be mapped correctly (default: "
        f"{','.join(map(str, EXPECTED))})",
    )
    drawing.add_argument("--minimum", type=int, help=f"least number of points in a stratum (default: {MINIMUM})")
    drawing.add_argument("--seed", type=int, help="random seed (default: 0)")
    drawing.add_argument(
        "--chip", type=int, help=f"side in pixels of the square that a chip shows; 0 writes no chips (default: {CHIP})"
    )
    return parser


def shares(text: str) -> tuple[float, ...]:
    """Read three shares, such as "0.98,0.7,0.8". Raises argparse's error for anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(0 <= value <= 1 and math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers from 0 to 1, such as 0.98,0.7,0.8")
    return values
