"""False alarms on ground that has not changed: `python -m change alarms FOLDER`.

Each pair consists of a real image and a copy of it, so every pixel that is called changed is a false alarm. The copy is
shifted by 0, 1, 2, ... pixels. Each pair is predicted twice: with the same colours, and with a copy that is degraded at
random as in training (`change.data.degradation`). No labels are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from change.change_dataloader import SUFFIXES
from change.common.command_line import check_threshold
from change.common.errors import OneLineParser, UserError
from change.common.files import DEFAULT_CHECKPOINT, shipped_file, write_whole
from change.common.images import Image, read_image
from change.data.degradation import Degradations, degrade

if TYPE_CHECKING:
    from change.prediction.detector import ChangeDetector

MOST_SHIFT = 64
DEGRADED = Degradations(0.3)


def find_images(folder: Path) -> list[Path]:
    """Find the images in a folder and its subfolders, except in those named label.

    Raises UserError if there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in files if "label" not in path.relative_to(folder).parts]
    if not files:
        raise UserError(f"no images in {folder}: give a folder that holds some, such as A and B of a data set")
    return files


def unchanged_pair(
    image: Image, shift: int, most: int, recolour: bool, rng: np.random.Generator
) -> tuple[Image, Image]:
    """Make a pair of an image (H, W, 3) and its copy, both without a border of `most` pixels.

    Args:
        image: The image, larger than 2 * `most` on both sides.
        shift: The copy is shifted by this many pixels along one axis, and by at most as many along the other.
        most: Width of the border, at least `shift`.
        recolour: Whether to degrade the copy.
        rng: Source of the direction and of the degradation.
    """
    height, width = image.shape[0] - 2 * most, image.shape[1] - 2 * most
    offsets = [int(rng.choice([-shift, shift])), int(rng.integers(-shift, shift + 1))]
    top, left = (most + offset for offset in rng.permutation(offsets).tolist())
    copy = np.ascontiguousarray(image[top : top + height, left : left + width])
    if recolour:
        copy = degrade(copy, DEGRADED.draw(rng))
    return np.ascontiguousarray(image[most : most + height, most : most + width]), copy


def measure(detector: ChangeDetector, files: Sequence[Path], most: int, threshold: float, seed: int) -> dict[str, Any]:
    """Measure the share of pixels that are called changed.

    Args:
        detector: The checkpoint.
        files: The images.
        most: Largest shift in pixels.
        threshold: A pixel is called changed if its probability exceeds it.
        seed: Random seed of the directions and degradations.

    Returns:
        Share of pixels, 0 to 1, for every shift: "same_colours" and "other_colours", each a list of `most` + 1; and the
        image with the most false alarms.

    Raises:
        UserError: If an image does not decode or is too small.
    """
    alarms, pixels = np.zeros((2, most + 1), np.int64), 0
    worst, worst_share = "", 0.0
    for number, path in enumerate(files):
        image = read_image(path)
        if min(image.shape[:2]) < 2 * most + 32:
            raise UserError(f"{path} is {image.shape[1]}x{image.shape[0]}: too small for a shift of {most} pixels")
        found = np.zeros_like(alarms)
        for recolour in range(2):
            for shift in range(most + 1):
                rng = np.random.default_rng((seed, number, recolour, shift))
                pair = unchanged_pair(image, shift, most, bool(recolour), rng)
                found[recolour, shift] = np.count_nonzero(detector.predict(*pair, name=str(path)) > threshold)
        area = pair[0].shape[0] * pair[0].shape[1]
        alarms, pixels = alarms + found, pixels + area
        if (share := found.max() / area) > worst_share:
            worst, worst_share = str(path), share
    same, other = (alarms / pixels).tolist()
    return {
        "images": len(files),
        "pixels": pixels,
        "threshold": threshold,
        "seed": seed,
        "same_colours": same,
        "other_colours": other,
        "worst": {"image": worst, "share": worst_share},
    }


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        prog="python -m change alarms", description="Measure false alarms on images of ground that has not changed."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of images; its subfolders are searched too")
    parser.add_argument(
        "--checkpoint_path", type=Path, help=f"weights: ours or published (default: {DEFAULT_CHECKPOINT})"
    )
    parser.add_argument("--shift", type=int, default=3, help="largest shift of the copy in pixels (default: 3)")
    parser.add_argument("--threshold", default="", help="a number, or val (default: that of the checkpoint)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the copies (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or the number of a GPU (default: auto)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change alarms`; return the exit code."""
    given = make_parser().parse_args(arguments)
    check_threshold(given.threshold)
    if not 0 <= given.shift <= MOST_SHIFT:
        raise UserError(f"--shift {given.shift}: choose 0 to {MOST_SHIFT}")
    if given.seed < 0:
        raise UserError(f"--seed {given.seed}: choose 0 or more")
    if not given.folder.is_dir():
        raise UserError(f"no folder {given.folder}: check the path")
    files = find_images(given.folder)
    checkpoint = given.checkpoint_path or shipped_file(DEFAULT_CHECKPOINT)
    from change.prediction.detector import ChangeDetector  # here, because importing torch takes seconds

    detector = ChangeDetector(checkpoint, device=given.device)
    threshold = detector.checkpoint.choose_threshold(given.threshold)
    result = {**measure(detector, files, given.shift, threshold, given.seed), **detector.describe()}
    if given.json:
        write_whole(given.json, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    sys.stdout.write(format_result(result))
    return 0


def format_result(result: dict[str, Any]) -> str:
    """Return the table for the terminal."""
    lines = [
        f"pixels called changed in {result['images']} images and their copies, threshold {result['threshold']:g}",
        f"{'shift of the copy':<20}{'same colours':>14}{'other colours':>15}",
    ]
    for shift, (same, other) in enumerate(zip(result["same_colours"], result["other_colours"], strict=True)):
        lines.append(f"{f'{shift} px':<20}{100 * same:>13.3f}%{100 * other:>14.3f}%")
    if result["worst"]["image"]:
        lines.append(f"most in one pair: {100 * result['worst']['share']:.2f}%, {result['worst']['image']}")
    return "\n".join([*lines, ""])
