"""Make a training set from two rasters and polygons of changes: `python -m change tiles BEFORE AFTER POLYGONS -o DATA`.

The rasters are brought onto one grid, as `python -m change predict` does. A pixel is changed if its centre lies in a
polygon. The grid is divided into square tiles, which become
    DATA/{train,val}/{A,B,label}/STEM_Y_X.png   named after BEFORE, and the row and column of the upper left pixel
    DATA/{train,val}/sources.json               the images they were cut from, see `change.data.sources`
    DATA/metadata.json                          inputs, grid, positions of the tiles, and how much was labelled
Tiles with nodata at either date are left out, and so are those that are not fully inside --within. No tile of val
touches one of train, see `change.rasters.tile_split`. DATA appears complete or not at all, and must not exist.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from change.common.errors import OneLineParser, UserError
from change.rasters.bands import check_numbers
from change.rasters.jobs import check_layer, find_jobs
from change.rasters.predict import add_reading_options

STEP = 32  # pixels: tile sides are multiples of it, as the network's strides require
LIMIT = 4096  # pixels: tiles must not be larger
READING = ("bands", "alpha", "stretch", "assume_aligned", "align")


def main(arguments: Sequence[str]) -> int:
    """Write the training set that the command line asks for; return the exit code."""
    given = parse_arguments(arguments)
    from change.rasters.training_set import make_training_set  # here, because importing torch takes seconds

    return make_training_set(given)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Returns:
        All options with their values, except `READING`: `reading` holds those of them that are given.

    Raises:
        UserError: for a value out of range, a missing file, or if DATA exists.
    """
    given = make_parser().parse_args(arguments)
    given.reading = {name: value for name, value in vars(given).items() if name in READING}
    check_size_and_seed(given.size, given.seed)
    if not 0 < given.val < 1:
        raise UserError(f"--val {given.val:g}: choose a share above 0 and below 1, such as 0.2")
    for path in (given.before, given.after):
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a raster")
    find_jobs(given.before, given.after, given.out)
    check_layer(given.polygons, "POLYGONS")
    if given.within:
        check_layer(given.within, "--within")
    elif given.within_layer:
        raise UserError(f"--within_layer {given.within_layer} has no effect without --within: add it, or leave it out")
    if bands := vars(given).get("bands"):
        check_numbers(bands)
    if given.out.exists() or given.out.is_symlink():
        raise UserError(f"-o {given.out} exists, and nothing is overwritten: choose another folder, or remove it first")
    return given


def check_size_and_seed(size: int, seed: int) -> None:
    """Raise UserError for a side of tiles in pixels, or a random seed, that is out of range."""
    if size % STEP or not STEP <= size <= LIMIT:
        raise UserError(f"--size {size}: choose a multiple of {STEP}, from {STEP} to {LIMIT}")
    if seed < 0:
        raise UserError(f"--seed {seed}: choose 0 or more")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        prog="python -m change tiles",
        description="Make a training set from two rasters and polygons of the changes between them.",
    )
    parser.add_argument("before", metavar="BEFORE", type=Path, help="raster")
    parser.add_argument("after", metavar="AFTER", type=Path, help="raster of the later date")
    parser.add_argument(
        "polygons", metavar="POLYGONS", type=Path, help="vector file of the changes: GeoPackage, GeoJSON or Shapefile"
    )
    parser.add_argument("-o", "--out", metavar="DATA", required=True, type=Path, help="folder to create")
    parser.add_argument("--layer", default="", help="layer of POLYGONS, if it has several")
    parser.add_argument(
        "--within", type=Path, metavar="LAYER", help="vector file: use only tiles that lie fully inside its polygons"
    )
    parser.add_argument("--within_layer", default="", help="layer of --within, if it has several")
    parser.add_argument("--size", type=int, default=256, help="side of the tiles in pixels (default: 256)")
    parser.add_argument(
        "--val", metavar="SHARE", type=float, default=0.2, help="share of the tiles that become val (default: 0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of --val (default: 0)")
    add_reading_options(parser.add_argument_group("reading of the rasters", argument_default=argparse.SUPPRESS))
    return parser
