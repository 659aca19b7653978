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

from change.rasters.registration import Floats, ShiftField

STIFF = 1.0  # weight of the bending of the smooth field, with the step between windows as unit
STEADY = 0.1  # weight that pulls its mean slopes to 0, as few windows say nothing about slopes
BEYOND = 1.0  # pixels by which the field may exceed the range of the shifts that were measured
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

    The field is a thin plate spline: it minimises the sum of squared residuals plus `STIFF` times its bending. Where no
    window is kept, it continues the shifts around, but goes beyond the range of shifts by no more than `BEYOND`. It is
    evaluated at the windows and at the borders of the scene.

    Source: Wahba, "Spline Models for Observational Data", 1990, chapter 2.4.
    """
    known = centres(measured.columns, measured.rows)[measured.kept]
    shifts = np.stack((measured.x, measured.y), axis=-1)[measured.kept]
    columns, rows = to_borders(measured.columns), to_borders(measured.rows)
    points = centres(columns, rows)
    steps = np.concatenate((np.diff(measured.columns), np.diff(measured.rows)))
    step = steps.mean() if len(steps) else 1.0
    found = fit_spline(known / step, shifts, points.reshape(-1, 2) / step)
    found = np.clip(found, shifts.min(axis=0) - BEYOND, shifts.max(axis=0) + BEYOND)
    x, y = found.T.reshape(2, *points.shape[:2])
    return ShiftGrid(columns, rows, x, y)


def centres(columns: Floats, rows: Floats) -> Floats:
    """Return the points (h, w, 2) of a grid, given its columns (w,) and rows (h,)."""
    return np.stack(np.meshgrid(columns, rows), axis=-1)


def fit_spline(known: Floats, values: Floats, points: Floats) -> Floats:
    """Fit a thin plate spline to values (n, k) at known points (n, 2), and evaluate it at points (m, 2).

    The unit of points is the step between windows. `STEADY` keeps the spline defined for one known point and for
    several in a line.
    """
    centre = known.mean(axis=0)
    known, points = known - centre, points - centre
    planes = np.c_[np.ones(len(known)), known]
    bending = bend(known, known) + STIFF * np.eye(len(known))
    system = np.block([[bending, planes], [planes.T, np.diag([0, -STEADY, -STEADY])]])
    weights = np.linalg.solve(system, np.concatenate((values, np.zeros((3, values.shape[1])))))
    return np.asarray(np.c_[bend(points, known), np.ones(len(points)), points] @ weights)


def bend(first: Floats, second: Floats) -> Floats:
    """Return the thin plate spline's kernel r ** 2 * log(r) of points (n, 2) and (m, 2) with distance r, as (n, m)."""
    squared = ((first[:, None] - second) ** 2).sum(axis=2)
    return np.asarray(squared * np.log(np.maximum(squared, 1e-12)) / 2)


def to_borders(middles: Floats) -> Floats:
    """Add the borders of the scene to the middles of windows (n,). A single window counts as the whole scene."""
    return np.concatenate(([0.0], middles, [middles[-1] + middles[0]]))
