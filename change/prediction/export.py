"""Export checkpoints for other programs: `python -m change export CHECKPOINT -o OUT`.

onnx      Inputs `before` and `after`, uint8 RGB (B, 3, H, W), or float32 levels (B, C, H, W) if the network reads other
          bands, of any batch size and image size; output `probability`, float32 (B, 1, H, W), 0 to 1. Normalisation,
          padding and sigmoid are part of the file. If the checkpoint tells K classes apart, `probability` is that of
          any change, and the output `probabilities`, float32 (B, K + 1, H, W), holds those of unchanged and of each
          class; the metadata `classes` and `threshold` hold the names and the threshold as JSON.
deepness  ONNX for the QGIS plugin Deepness: one input, float32 (B, 6, S, S), 0 to 1, with the bands of before, then
          those of after; one output (B, 1, S, S); the settings of the plugin as metadata of the file.
pth       Only the weights, float32, as a plain state dict for `models.network.build_network`.

Before an ONNX file is written, onnxruntime and PyTorch must agree on a pair of images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from change.common.command_line import refuse_idle
from change.common.errors import OneLineParser, UserError
from change.common.logs import start_logging
from models.config import MULTIPLE

FORMATS = ("onnx", "deepness", "pth")
# The options of --format deepness and their defaults.
DEEPNESS: dict[str, float] = {"tile": 512, "overlap": 15, "resolution": 50, "min_segment": 9}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(prog="python -m change export", description="Write a checkpoint for other programs.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="weights: ours or published")
    parser.add_argument("-o", "--out", required=True, type=Path, help="file to write")
    parser.add_argument("--format", default="onnx", choices=FORMATS, help="format of the file (default: onnx)")
    parser.add_argument("--half", action="store_true", help="compute in half precision: half the size, for GPUs")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--pair",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="images for the comparison with PyTorch (default: a pair of test_samples)",
    )
    group = parser.add_argument_group("deepness", "Only for --format deepness.", argument_default=argparse.SUPPRESS)
    for name, kind, text in (
        ("tile", int, "side of the tiles in pixels"),
        ("overlap", int, "overlap of the tiles in percent"),
        ("resolution", float, "size of a pixel in centimetres"),
        ("min_segment", int, "smallest segment to keep, in pixels"),
    ):
        group.add_argument(f"--{name}", type=kind, help=f"{text} (default: {DEEPNESS[name]})")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises UserError for a value out of range and for an option without effect."""
    given = make_parser().parse_args(arguments)
    if given.out.exists() and not given.overwrite:
        raise UserError(f"{given.out} already exists: choose another name, or add --overwrite")
    if given.format != "deepness":
        refuse_idle(vars(given), DEEPNESS, f"--format {given.format}")
    if given.format == "pth":
        used = [name for name in ("half", "pair") if getattr(given, name)]
        refuse_idle(vars(given), used, "--format pth, which holds only float32 weights")
    for name, value in DEEPNESS.items():
        setattr(given, name, getattr(given, name, value))
    if given.tile < MULTIPLE or given.tile % MULTIPLE:
        raise UserError(f"--tile {given.tile}: choose a multiple of {MULTIPLE}")
    if not 0 <= given.overlap < 100 or not 0 < given.resolution < 1e6 or given.min_segment < 0:
        raise UserError("choose --overlap 0 to 99, --resolution above 0, and --min_segment 0 or more")
    return given


def main(arguments: Sequence[str]) -> int:
    """Parse, load, write; return the exit code."""
    start_logging()
    given = parse(arguments)
    from change.prediction.onnx_file import write_export  # here, because importing torch takes seconds

    write_export(given)
    return 0
