"""The grids of two rasters: where they overlap, and whether their pixels coincide."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.gdal import gdal_errors, geo, reason

EDGE = 32  # points projected along each side of a raster to find where it lies on another grid
SAME = 0.01  # grids that differ by less than this, in pixels, coincide

Values = NDArray[np.float64]


class Bounds(NamedTuple):
    """A rectangle of whole pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.right <= self.left or self.bottom <= self.top


def find_overlap(first: Any, second: Any, *, before: Path, after: Path) -> Bounds:
    """Find the part of `first` that `second` covers.

    Args:
        first: dataset; its grid is the common one.
        second: dataset with a coordinate reference system.
        before: path of `first`, for the error.
        after: path of `second`, for the error.

    Raises:
        UserError: if the two do not overlap, or if `second` cannot be projected to the system of `first`.
    """
    columns, rows = edge_points(second)
    x, y = apply_affine(second.transform, columns, rows)
    try:
        x, y, valid = project(second.crs, first.crs, x, y)
    except gdal_errors() as error:
        raise UserError(
            f"{after} in {second.crs} cannot be projected to {first.crs}, the system of {before} ({reason(error)}): "
            "assign the right one, or add --assume_aligned if the pixels of both rasters coincide"
        ) from error
    columns, rows = apply_affine(~first.transform, x[valid], y[valid])
    bounds = Bounds(0, 0, 0, 0)
    if valid.any():
        bounds = Bounds(
            left=max(0, int(np.floor(np.min(columns) + SAME))),
            top=max(0, int(np.floor(np.min(rows) + SAME))),
            right=min(first.width, int(np.ceil(np.max(columns) - SAME))),
            bottom=min(first.height, int(np.ceil(np.max(rows) - SAME))),
        )
    bounds = widen(bounds, first, second)
    if bounds.is_empty:
        places = [
            f"{path} covers {', '.join(f'{bound:.8g}' for bound in dataset.bounds)} in {dataset.crs}"
            for path, dataset in ((before, first), (after, second))
        ]
        raise UserError(f"the rasters do not overlap: {'; '.join(places)} (left, bottom, right, top)")
    return bounds


def edge_points(dataset: Any) -> tuple[Values, Values]:
    """Return columns and rows of points along the four sides of a raster."""
    along = np.linspace(0, 1, EDGE)
    zero, one = np.zeros(EDGE), np.ones(EDGE)
    columns = np.concatenate((along, along, zero, one)) * dataset.width
    rows = np.concatenate((zero, one, along, along)) * dataset.height
    return columns, rows


def widen(bounds: Bounds, first: Any, second: Any) -> Bounds:
    """Widen an overlap that was found from the edges of `second`, if that raster covers more of `first`.

    The edges do not show the whole overlap if `second` holds a pole or crosses the date line. So points of `first` on a
    coarse grid are projected to `second`. The result also covers those that lie in `second`, with a margin of one step
    around them.
    """
    across_step, down_step = max(1, first.width / EDGE), max(1, first.height / EDGE)
    grid = np.meshgrid(np.arange(0.5, first.width, across_step), np.arange(0.5, first.height, down_step))
    columns, rows = grid[0].ravel(), grid[1].ravel()
    x, y = apply_affine(first.transform, columns, rows)
    try:
        x, y, valid = project(first.crs, second.crs, x, y)
    except gdal_errors():
        return bounds
    columns, rows = columns[valid], rows[valid]
    across, down = apply_affine(~second.transform, x[valid], y[valid])
    covered = (across > 0) & (across < second.width) & (down > 0) & (down < second.height)
    outside = (columns < bounds.left) | (columns > bounds.right) | (rows < bounds.top) | (rows > bounds.bottom)
    found = covered & outside
    if not found.any():
        return bounds
    columns, rows = columns[found], rows[found]
    more = Bounds(
        left=int(max(0, columns.min() - across_step)),
        top=int(max(0, rows.min() - down_step)),
        right=int(min(first.width, columns.max() + across_step + 1)),
        bottom=int(min(first.height, rows.max() + down_step + 1)),
    )
    if bounds.is_empty:
        return more
    return Bounds(
        left=min(bounds.left, more.left),
        top=min(bounds.top, more.top),
        right=max(bounds.right, more.right),
        bottom=max(bounds.bottom, more.bottom),
    )


def find_shift(first: Any, second: Any) -> tuple[int, int] | None:
    """Find the shift between two grids whose pixels coincide.

    Returns:
        Columns and rows to add to a position in `first` to get the same place in `second`. None if the pixels do not
        coincide: then `second` must be warped.
    """
    if first.crs != second.crs:
        return None
    corners = np.array([(0, 0), (first.width, first.height), (first.width, 0)], np.float64).T
    x, y = apply_affine(first.transform, corners[0], corners[1])
    shifts = np.stack(apply_affine(~second.transform, x, y)) - corners
    columns, rows = round(shifts[0, 0]), round(shifts[1, 0])
    off = np.abs(shifts - np.array([[columns], [rows]]))
    return (columns, rows) if off.max() <= SAME else None


def project(source: Any, target: Any, x: Values, y: Values) -> tuple[Values, Values, NDArray[np.bool_]]:
    """Project points to another coordinate reference system; return x, y, and which of them are finite."""
    found = geo("rasterio.warp").transform(source, target, x.tolist(), y.tolist())
    xs, ys = np.asarray(found[0]), np.asarray(found[1])
    return xs, ys, np.isfinite(xs) & np.isfinite(ys)


def apply_affine(transform: Any, x: Values, y: Values) -> tuple[Values, Values]:
    """Apply an affine transform to points."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * x + b * y + c, d * x + e * y + f
