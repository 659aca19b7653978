"""Tiles worth labelling: `python -m change propose OUT`.

OUT is a finished scene, a folder that `python -m change predict` wrote. N of its tiles are chosen: where the network is
unsure, where it is sure of change, and at random (`change.rasters.propose_tiles`). The folder OUT/propose gets
    propose.gpkg  the layer `tiles`, and the layer `changes`: the predicted polygons in these tiles, to be corrected
    propose.qml   a style for QGIS
    propose.qgs   a QGIS project with both rasters and both layers
`python -m change tiles --size S --within propose.gpkg --within_layer tiles` takes exactly these tiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from change.common.errors import OneLineParser, UserError
from change.rasters.tiles import check_size_and_seed

NUMBER, SIZE = 30, 256
MOST = 10_000  # tiles


def main(arguments: Sequence[str]) -> int:
    """Choose tiles of the scene that the command line names and write them; return the exit code."""
    given = parse_arguments(arguments)
    if not given.folder.is_dir():
        raise UserError(f"no folder {given.folder}: give a folder that python -m change predict wrote")
    from change.rasters.propose_files import propose_tiles  # here, because importing torch takes seconds

    return propose_tiles(given.folder, count=given.number, size=given.size, seed=given.seed)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises UserError for a value out of range."""
    given = make_parser().parse_args(arguments)
    if not 1 <= given.number <= MOST:
        raise UserError(f"-n {given.number}: choose 1 to {MOST}")
    check_size_and_seed(given.size, given.seed)
    return given


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        prog="python -m change propose",
        description="Choose tiles of a finished scene that are worth labelling, and write them for QGIS.",
    )
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder that python -m change predict wrote")
    parser.add_argument(
        "-n", "--number", metavar="N", type=int, default=NUMBER, help=f"number of tiles (default: {NUMBER})"
    )
    parser.add_argument(
        "--size", type=int, default=SIZE, help=f"side of the tiles in pixels, as for tiles (default: {SIZE})"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    return parser
