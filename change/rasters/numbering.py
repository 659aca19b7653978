"""Number the connected changes of a scene, a few rows at a time, and store the numbers in a raster.

Pixels that touch at a corner are connected if they have the same class. Masks are uint8 (H, W), 1 where changed, or
with K classes 1 to K. Levels are the probabilities as they are stored, also uint8 (H, W).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.classes import Classes
from change.common.gdal import check_whole, geo
from change.common.union_find import connected_components

ROWS = 512  # number of rows that are labelled at once
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Changes:
    """Measures of connected changes, (N,) each; index 0 stands for the unchanged pixels.

    Attributes:
        pixels: number of pixels.
        total: sum of the levels.
        highest: highest level.
        rows: sum of the row numbers.
        columns: sum of the column numbers.
        top, left, bottom, right: the rectangle around it; bottom and right are exclusive.
    """

    pixels: Numbers
    total: Numbers
    highest: Numbers
    rows: Numbers
    columns: Numbers
    top: Numbers
    left: Numbers
    bottom: Numbers
    right: Numbers

    def merge(self, numbers: Numbers) -> Changes:
        """Give the changes new numbers (N,); those that get the same number become one."""
        size = int(np.max(numbers)) + 1

        def add_up(values: Numbers) -> Numbers:
            sums = np.zeros(size, np.int64)
            np.add.at(sums, numbers, values)
            return sums

        def largest(values: Numbers) -> Numbers:
            found = np.full(size, np.iinfo(np.int64).min)
            np.maximum.at(found, numbers, values)
            return found

        return Changes(
            pixels=add_up(self.pixels),
            total=add_up(self.total),
            highest=largest(self.highest),
            rows=add_up(self.rows),
            columns=add_up(self.columns),
            top=-largest(-self.top),
            left=-largest(-self.left),
            bottom=largest(self.bottom),
            right=largest(self.right),
        )


class Numbering:
    """Numbers the connected changes of a mask in an int32 raster (H, W).

    The mask is added from the top down. Each strip of rows is labelled separately, with numbers above those of the
    strips before it. `finish` then joins the changes that touch across strips. The final numbers count from 1, in the
    order of the first pixel of each change, row by row from the top left. They do not depend on the strips.
    """

    def __init__(self, path: Path, place: dict[str, Any], classes: Classes | None = None) -> None:
        """Create the raster at `path`; `place` holds its height, width, crs and transform."""
        profile = {"driver": "GTiff", "dtype": "int32", "count": 1, "BIGTIFF": "IF_SAFER"}
        self.path = path
        self.raster = geo("rasterio").open(path, "w+", **profile, **place)
        self.row = 0  # number of rows added so far
        self.known = 0  # the highest number given so far
        self.last = np.zeros(self.raster.width, np.int32)  # the numbers of the last row
        self.parts = [np.zeros((9, 1), np.int64)]  # measures by strip; the first column stands for number 0
        self.touching: list[NDArray[np.int32]] = []
        self.classes = len(classes.names) if classes else 1
        self.values = np.zeros(1, np.int64)  # the class of each number; index 0 stands for the unchanged pixels

    def add(self, mask: NDArray[np.uint8], levels: NDArray[np.uint8]) -> None:
        """Add the next rows (h, W) of the mask and of the levels."""
        for row in range(0, len(mask), ROWS):
            part = mask[row : row + ROWS]
            found, components, boxes = label_classes(part, self.classes)
            count = found - 1  # cv2 counts the background as a component
            order = order_of_first_pixels(components, count)
            own = np.zeros(found, np.int32)
            own[order] = np.arange(self.known + 1, self.known + found)
            own = own[components]
            window = geo("rasterio.windows").Window(
                col_off=0, row_off=self.row, width=self.raster.width, height=len(own)
            )
            self.raster.write(own, 1, window=window)
            self.values = np.concatenate((self.values, self.classes_of(own, part, count)))
            measures = measure(own, levels[row : row + ROWS], first_row=self.row, known=self.known, count=count)
            self.parts.append(np.concatenate((measures, rectangles(boxes[order], first_row=self.row))))
            for above, below in (
                (self.last, own[0]),
                (self.last[1:], own[0, :-1]),
                (self.last[:-1], own[0, 1:]),
            ):
                self.touching.append(touching_pairs(above, below))
            self.row += len(own)
            self.known += count
            self.last = own[-1].copy()

    def classes_of(self, numbers: NDArray[np.int32], mask: NDArray[np.uint8], count: int) -> Numbers:
        """Return the class of each of the `count` changes of a strip; `numbers` and `mask` are (h, W)."""
        if self.classes == 1:
            return np.ones(count, np.int64)
        # All pixels of a change have one value, so the highest is that of its class.
        classes: Numbers = measure(numbers, mask, first_row=self.row, known=self.known, count=count)[2]
        return classes

    def finish(self) -> Changes:
        """Write the final numbers into the raster, close it, and return the measures of the changes.

        Raises OSError if the disk is full.
        """
        touching = np.concatenate(self.touching)
        alike = self.values[touching[:, 0]] == self.values[touching[:, 1]]
        final = join_touching(self.known + 1, touching[alike])
        of_part, self.values = self.values, np.zeros(int(final.max()) + 1, np.int64)
        self.values[final] = of_part
        if (final != np.arange(self.known + 1)).any():
            for _, window in strips(self.raster):
                self.raster.write(np.take(final, self.raster.read(1, window=window)), 1, window=window)
        self.close()
        check_whole(self.path, 4 * self.row * len(self.last))
        return Changes(*np.concatenate(self.parts, axis=1)).merge(final.astype(np.int64))

    def close(self) -> None:
        """Close the raster."""
        self.raster.close()


def strips(dataset: Any) -> Iterator[tuple[int, Any]]:
    """Split a raster into strips of rows; yield the first row of each and its rasterio Window."""
    windows = geo("rasterio.windows")
    for row in range(0, dataset.height, ROWS):
        height = min(ROWS, dataset.height - row)
        yield row, windows.Window(col_off=0, row_off=row, width=dataset.width, height=height)


def order_of_first_pixels(components: NDArray[np.int32], count: int) -> Numbers:
    """Sort the components of a strip, 1 to `count`, by their first pixel in `components` (h, W), row by row."""
    labels = components.ravel()
    at = np.flatnonzero(labels)[::-1]
    first = np.empty(count + 1, np.int64)
    first[labels[at]] = at  # the last assignment to an element counts, which is that of its first pixel
    return np.argsort(first[1:]) + 1


def measure(
    numbers: NDArray[np.int32], levels: NDArray[np.uint8], *, first_row: int, known: int, count: int
) -> Numbers:
    """Measure the changes of a strip.

    Args:
        numbers: (h, W), from `known` + 1 to `known` + `count`; 0 is unchanged.
        levels: (h, W).
        first_row: the row of the scene at which the strip begins.
        known: the highest number in the strips above.
        count: number of changes in the strip.

    Returns:
        The first five fields of `Changes` in their order, (5, count).
    """
    at = np.flatnonzero(numbers > 0)
    own = numbers.ravel()[at].astype(np.int64) - known - 1
    own_levels = levels.ravel()[at].astype(np.int64)
    width = numbers.shape[1]

    def sums(weights: Numbers | None) -> Numbers:
        return np.bincount(own, weights=weights, minlength=count).astype(np.int64)

    highest = np.zeros(count, np.int64)
    np.maximum.at(highest, own, own_levels)
    return np.stack((sums(None), sums(own_levels), highest, sums(at // width + first_row), sums(at % width)))


def rectangles(boxes: NDArray[np.int32], *, first_row: int) -> Numbers:
    """Turn the statistics of OpenCV, (count, 5), into top, left, bottom and right, (4, count).

    `first_row` is the row of the scene at which the strip begins.
    """
    left, top, width, height = boxes[:, :4].astype(np.int64).T
    top = top + first_row
    return np.stack((top, left, top + height, left + width))


def label_classes(mask: NDArray[np.uint8], classes: int) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """Label the connected pixels of each class in a strip, (h, W).

    Returns:
        What OpenCV returns for a mask without classes: the number of labels with that of the background, the labels,
        and the statistics of each.
    """
    found, labels, boxes, _ = cv2.connectedComponentsWithStats((mask == 1).view(np.uint8), connectivity=8)
    for value in range(2, 1 + classes):
        changed = (mask == value).view(np.uint8)
        if changed.any():
            count, own, more, _ = cv2.connectedComponentsWithStats(changed, connectivity=8)
            labels = np.where(own > 0, own + (found - 1), labels)
            boxes = np.concatenate((boxes, more[1:]))
            found += count - 1
    return found, np.asarray(labels, np.int32), np.asarray(boxes, np.int32)


def touching_pairs(above: NDArray[np.int32], below: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the pairs of numbers, (N, 2), that two rows have in the same column."""
    both = (above > 0) & (below > 0)
    return np.asarray(np.unique(np.stack((above[both], below[both]), axis=1), axis=0), np.int32)


def join_touching(count: int, touching: NDArray[np.int32]) -> NDArray[np.int32]:
    """Replace the numbers 0 to `count` - 1 by final numbers without gaps.

    Args:
        count: number of numbers.
        touching: pairs (N, 2) of numbers that belong to one change.

    Returns:
        The new number of each, (count,).
    """
    smallest = connected_components(count, touching.tolist())
    return np.asarray(np.unique(smallest, return_inverse=True)[1].reshape(-1), np.int32)
