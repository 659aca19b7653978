"""A smooth field of shifts, made from measured windows, and the warping of one date by it.

Shapes: images uint8 RGB (3, h, W) or levels (C, h, W), data bool (h, W). Shifts are those of
`change.rasters.registration`: pixels of after in relation to before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.rasters.registration import NEAR, SUPPORT, Floats, ShiftField

SMOOTH = 0.7  # windows: standard deviation of the weight of neighbours in the smooth field
STEADY = 0.1  # weight that pulls slopes to 0, in windows: few neighbours say nothing about slopes
PART = 1024  # side in pixels of the parts that are warped at once; OpenCV has a limit of 32767
TAPS = 2  # pixels around a point that cubic interpolation reads
FULL = 1 - 1e-4  # interpolated share of data at points that only have neighbours with data

Image = NDArray[Any]  # uint8 RGB (3, H, W), or levels (C, H, W)
Data = NDArray[np.bool_]
ReadBlock = Callable[[int, int, int, int], tuple[Image, Data]]
"""Reads first row, first column, height and width of an image; without data where the block leaves the image."""


@dataclass(frozen=True)
class ShiftGrid:
    """Shifts everywhere: bilinear between the points of a grid, and constant beyond its border.

    Attributes:
        columns, rows: the points in pixels, increasing, (w,) and (h,).
        x, y: their shifts in pixels (h, w), all finite.
    """

    columns: Floats
    rows: Floats
    x: Floats
    y: Floats

    def at(self, rows: Floats, columns: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the shift x and y (h, w) at the centres of pixels, in given rows (h,) and columns (w,)."""
        down, across = (hats(places + 0.5, points) for places, points in ((rows, self.rows), (columns, self.columns)))
        x, y = (down @ values @ across.T for values in (self.x, self.y))
        return x.astype(np.float32), y.astype(np.float32)

    def warp(self, read: ReadBlock, top: int, left: int, height: int, width: int) -> tuple[Image, Data]:
        """Read a block of after as it would lie on before.

        Args:
            read: reads after.
            top, left, height, width: the block of before.

        Returns:
            The image, cubic or, next to pixels without data, bilinear, black without data; and where all neighbours
            that a bilinear interpolation reads hold data.
        """
        up, start = (int(np.floor(values.min())) - TAPS for values in (self.y, self.x))
        down, end = (int(np.ceil(values.max())) + TAPS + 1 for values in (self.y, self.x))
        source, source_data = read(top + up, left + start, height + down - up, width + end - start)
        image = np.empty((len(source), height, width), source.dtype)
        data = np.empty((height, width), np.bool_)
        for row in range(0, height, PART):
            for column in range(0, width, PART):
                below = np.arange(min(PART, height - row), dtype=np.float64)
                across = np.arange(min(PART, width - column), dtype=np.float64)
                x, y = self.at(below + top + row, across + left + column)
                points = (across - start + x).astype(np.float32), (below[:, None] - up + y).astype(np.float32)
                needed_rows = slice(row, row + len(below) + down - up)
                needed_columns = slice(column, column + len(across) + end - start)
                part, part_data = interpolate(
                    source[:, needed_rows, needed_columns], source_data[needed_rows, needed_columns], *points
                )
                image[:, row : row + len(below), column : column + len(across)] = part
                data[row : row + len(below), column : column + len(across)] = part_data
        return image, data


def interpolate(
    image: Image, data: Data, columns: NDArray[np.float32], rows: NDArray[np.float32]
) -> tuple[Image, Data]:
    """Interpolate an image at points (h, w); see `ShiftGrid.warp`."""
    found = remap(image, columns, rows, cv2.INTER_CUBIC)
    if data.all():
        return found, np.ones(columns.shape, np.bool_)
    levels = data.astype(np.float32)
    inner = cv2.erode(levels, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    covered, deep = (cv2.remap(part, columns, rows, cv2.INTER_LINEAR) > FULL for part in (levels, inner))
    linear = remap(image, columns, rows, cv2.INTER_LINEAR)
    return np.asarray(np.where(deep, found, linear) * covered, image.dtype), covered


def remap(image: Image, columns: NDArray[np.float32], rows: NDArray[np.float32], interpolation: int) -> Image:
    """Read an image (C, H, W) at points (h, w) with OpenCV, which takes at most four channels at once."""
    parts = []
    for first in range(0, len(image), 3):
        pixels = np.ascontiguousarray(image[first : first + 3].transpose(1, 2, 0))
        found = cv2.remap(pixels, columns, rows, interpolation)
        parts.append(found.reshape(*columns.shape, -1).transpose(2, 0, 1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def hats(places: Floats, points: Floats) -> Floats:
    """Return the weights (n, p) with which points (p,) interpolate linearly at places (n,)."""
    return np.stack([np.interp(places, points, weights) for weights in np.eye(len(points))], axis=1)


def smooth_grid(measured: ShiftField) -> ShiftGrid:
    """Make a smooth field of shifts from the windows that are kept, of which there must be one or more.

    Around each window, a plane is fitted to those kept within `NEAR` windows, with more weight on nearer ones. Windows
    that have fewer than `SUPPORT` of them take the mean of the windows next to them that have a shift. The outermost
    windows are continued by half a step, in a straight line.
    """
    fitted = [extend(fill(fit_planes(values, measured.kept))) for values in (measured.x, measured.y)]
    return ShiftGrid(extend_points(measured.columns), extend_points(measured.rows), *fitted)


def fit_planes(values: Floats, kept: Data) -> Floats:
    """Fit planes to the kept values (h, w) around each place; NaN where there are too few."""
    found = np.full(values.shape, np.nan)
    for i, j in np.ndindex(*values.shape):
        top, left = max(0, i - NEAR), max(0, j - NEAR)
        near = np.s_[top : i + NEAR + 1, left : j + NEAR + 1]
        rows, columns = np.nonzero(kept[near])
        if len(rows) < SUPPORT:
            continue
        down, across = rows + top - i, columns + left - j
        weight = np.exp(-(down**2 + across**2) / (2 * SMOOTH**2))
        terms = np.stack((np.ones(len(rows)), across, down), axis=1)
        known = values[near][rows, columns]
        steady = np.diag([0.0, STEADY, STEADY])
        found[i, j] = np.linalg.solve((terms * weight[:, None]).T @ terms + steady, terms.T @ (weight * known))[0]
    return found


def fill(values: Floats) -> Floats:
    """Replace NaN in values (h, w) by the mean of the values next to it, from the known ones outwards."""
    values = values.copy()
    while np.isnan(values).any():
        padded = np.pad(values, 1, constant_values=np.nan)
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*values.shape, 9)
        known = np.isfinite(around)
        new = np.isnan(values) & known.any(-1)
        values[new] = np.where(known, around, 0).sum(-1)[new] / known.sum(-1)[new]
    return values


def extend(values: Floats) -> Floats:
    """Continue values (h, w) by half a step on each side, in a straight line; a single one by itself."""
    for _ in range(2):
        values = extend_points(values).T  # both axes, one after the other
    return values


def extend_points(points: Floats) -> Floats:
    """Continue points or values (n, ...) by half a step at both ends, in a straight line; a single one is repeated."""
    if len(points) == 1:
        return np.repeat(points, 3, axis=0) if points.ndim > 1 else points[0] + np.array([-0.5, 0.0, 0.5])
    first, last = (points[end] + (points[end] - points[beside]) / 2 for end, beside in ((0, 1), (-1, -2)))
    return np.concatenate((first[None], points, last[None]))
