"""The areas of pixels on the WGS 84 ellipsoid, in square metres, whatever the reference system of the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.rasters.grids import Values, apply_affine, project
from change.rasters.places import ROUND, wgs84

AXIS, FLATTENING = 6_378_137.0, 1 / 298.257223563  # of WGS 84; the axis in metres
NODES = 33  # points per side of a block at which areas are computed; those of other pixels are interpolated
STEP = 0.5  # pixels from the centre at which the slope of the projection is measured


def pixel_areas(crs: Any, transform: Any, rows: Values, columns: Values) -> Values:
    """Compute the areas of pixels.

    The area is that of the parallelogram that the projection makes of the pixel at its centre.

    Args:
        crs: reference system on earth, as rasterio's CRS.
        transform: affine transform of the grid.
        rows, columns: positions of the centres, (N,); the first pixel is centred at 0.5, 0.5.

    Returns:
        Areas (N,); NaN where the grid is not on earth.
    """
    count = len(rows)
    columns_of = np.concatenate((columns - STEP, columns + STEP, columns, columns, columns))
    rows_of = np.concatenate((rows, rows, rows - STEP, rows + STEP, rows))
    longitude, latitude, _ = project(crs, wgs84(), *apply_affine(transform, columns_of, rows_of))
    west, east, above, below, _ = longitude.reshape(5, count)
    west_latitude, east_latitude, above_latitude, below_latitude, middle = np.radians(latitude.reshape(5, count))
    across, down = turn(east - west), turn(below - above)
    determinant = across * (below_latitude - above_latitude) - down * (east_latitude - west_latitude)
    squared = FLATTENING * (2 - FLATTENING)  # the eccentricity, squared
    size = AXIS**2 * (1 - squared) * np.cos(middle) / (1 - squared * np.sin(middle) ** 2) ** 2
    return np.where(np.isfinite(determinant), np.abs(determinant) * size, np.nan)


def turn(degrees: Values) -> Values:
    """Turn differences of longitude in degrees to radians from -pi to pi."""
    return np.asarray(np.radians((degrees + ROUND / 2) % ROUND - ROUND / 2))


def sum_areas(crs: Any, transform: Any, *, first: int, masks: list[NDArray[np.bool_]]) -> list[float]:
    """Sum the areas of the pixels in masks (h, W) of the rows from `first` on, in square metres.

    Areas are interpolated between `NODES` x `NODES` points of the block.
    """
    height, width = masks[0].shape
    rows, down = interpolation(height)
    columns, across = interpolation(width)
    grid = np.meshgrid(rows + first, columns, indexing="ij")
    areas = pixel_areas(crs, transform, grid[0].ravel(), grid[1].ravel()).reshape(grid[0].shape)
    areas = np.nan_to_num(areas)
    return [float((areas * (down.T @ (mask.astype(np.float32) @ across))).sum()) for mask in masks]


def interpolation(size: int) -> tuple[Values, NDArray[np.float32]]:
    """Return nodes along `size` pixels, (K,), and the weights of each node for every pixel, (size, K)."""
    centres = np.arange(size) + 0.5
    nodes = np.linspace(0.5, size - 0.5, min(NODES, size))
    if len(nodes) == 1:
        return nodes, np.ones((size, 1), np.float32)
    weights = 1 - np.abs(centres[:, None] - nodes) / (nodes[1] - nodes[0])
    return nodes, np.maximum(weights, 0).astype(np.float32)
