"""Count the objects whose class, new or vanished, is right: `python -m tests.benchmark_direction CHECKPOINT FOLDER`.

FOLDER holds A, B and label, and all marked changes are new. Each pair is predicted in order, recoloured and mixed, and
each of these with the dates exchanged as well. In a recoloured pair, each date takes over the mean and the standard
deviation of the colours of the other one. In a mixed pair, the dates are exchanged in about half of the marked places,
with `MARGIN` pixels around them.

An object is a connected area of predicted change that overlaps the mask. Its true class is the one in the mask that it
overlaps most. It is right if more than half of its pixels are predicted as that class. An object that overlaps both
classes is left out if the smaller overlap is more than a tenth of the larger one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.change_dataloader import Split, find_split
from change.common.classes import DIRECTIONS, NEW, VANISHED, parse_classes
from change.common.errors import OneLineParser, UserError, run_command
from change.common.images import Image
from change.prediction.detector import ChangeDetector

MARGIN = 15
BLUR = 2.0  # standard deviation of the seams in pixels

Classes = NDArray[Any]  # the class of each pixel (H, W): 0, NEW or VANISHED


def pairs_with_classes(split: Split) -> Iterator[tuple[str, Image, Image, Classes]]:
    """Yield how each pair was made, its images uint8 (H, W, 3), and the class of each pixel."""
    rng = np.random.default_rng(0)
    for number in range(len(split.pairs)):
        pair = split.read(number)
        for how, before, after, classes in (
            ("in order", pair.before, pair.after, pair.mask * NEW),
            ("recoloured", *recoloured_pair(pair.before, pair.after), pair.mask * NEW),
            ("mixed", *mixed_pair(pair.before, pair.after, pair.mask, rng)),
        ):
            yield how, before, after, classes
            yield f"{how}, exchanged", after, before, np.choose(classes, (0, VANISHED, NEW))


def recoloured_pair(before: Image, after: Image) -> tuple[Image, Image]:
    """Exchange the mean and the standard deviation of each colour between the dates."""
    dates = []
    for own, other in ((before, after), (after, before)):
        scaled = (own - own.mean((0, 1))) / own.std((0, 1)).clip(1) * other.std((0, 1)) + other.mean((0, 1))
        dates.append(np.rint(scaled).clip(0, 255).astype(np.uint8))
    return dates[0], dates[1]


def mixed_pair(before: Image, after: Image, mask: Classes, rng: np.random.Generator) -> tuple[Image, Image, Classes]:
    """Exchange the dates at about half of the places that the mask, of 0 and 1, marks as new."""
    kernel = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    count, places = cv2.connectedComponents(cv2.dilate(mask, kernel))
    exchanged = (rng.random(count) < 0.5)[places] & (places > 0)
    weight = cv2.GaussianBlur(exchanged.astype(np.float64), (0, 0), BLUR)[..., None]
    first, second = (
        np.rint(own * (1 - weight) + other * weight).astype(np.uint8)
        for own, other in ((before, after), (after, before))
    )
    return first, second, np.where(exchanged, VANISHED, NEW) * mask


def count_right(found: Classes, classes: Classes) -> NDArray[np.int64]:
    """Count the predicted objects: (2, 2), a row per true class, new first; columns are all and the right ones.

    Args:
        found: the predicted class of each pixel.
        classes: the true class of each pixel.
    """
    counts = np.zeros((2, 2), np.int64)
    number, objects = cv2.connectedComponents((found > 0).astype(np.uint8))
    for value in range(1, number):
        inside = objects == value
        true = np.bincount(classes[inside], minlength=3)[1:]
        if true.max() > 0 and true.min() <= true.max() / 10:
            own = int(true.argmax())
            counts[own] += 1, (found[inside] == own + 1).mean() > 0.5
    return counts


def measure(detector: ChangeDetector, folder: Path) -> dict[str, NDArray[np.int64]]:
    """Return the counts of `count_right` over the pairs of a folder, for each way to make pairs.

    Raises UserError if the checkpoint has other classes.
    """
    if detector.checkpoint.classes != parse_classes(DIRECTIONS):
        raise UserError(
            f"{detector.checkpoint.path} has other classes than {DIRECTIONS}: give a checkpoint that has these"
        )
    found: dict[str, NDArray[np.int64]] = {}
    for how, before, after, classes in pairs_with_classes(find_split(folder, "")):
        counts = count_right(detector.predict_classes(before, after), classes)
        found[how] = found.get(how, np.zeros_like(counts)) + counts
    return found


def main(arguments: list[str]) -> int:
    """Print for each way to make pairs how many objects have the right class."""
    parser = OneLineParser(
        prog="python -m tests.benchmark_direction",
        description="Count the objects whose class is right, new or vanished.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a network with the classes new and vanished"
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="A, B and label; all changes are new")
    given = parser.parse_args(arguments)
    for how, counts in measure(ChangeDetector(given.checkpoint), given.folder).items():
        (new, new_right), (vanished, vanished_right) = counts.tolist()
        sys.stdout.write(f"{how}: right {new_right} of {new} new, {vanished_right} of {vanished} vanished\n")
    return 0


if __name__ == "__main__":
    run_command(main)
