"""Polygons of changes that a user has drawn: read from a vector file, and rasterised on the grid of a pair."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.gdal import geo
from change.rasters.area import place_parts, read_layer
from change.rasters.grids import apply_affine
from change.rasters.places import Outlines, polygonal_parts
from change.rasters.raster import RasterPair

log = logging.getLogger(__name__)

INSIDE = 1e-6  # pixels: polygons that reach less far into a tile only touch it


class DrawnChanges:
    """Polygons of changes on a grid, in pixels: x is a column, y a row, and (0, 0) the upper left corner.

    Attributes:
        parts: the polygons' parts near the grid, multipolygons (M,).
        index: for each part, the number of its polygon (M,).
        count: number of polygons, including those outside the grid.
        repaired: number of them whose outline was invalid.
    """

    def __init__(self, parts: Outlines, index: NDArray[np.int64], *, count: int, repaired: int) -> None:
        """Index the parts, so that those in a row of tiles are found quickly."""
        self.parts = parts
        self.index = index
        self.count = count
        self.repaired = repaired
        self.tree = geo("shapely").STRtree(parts)

    def label_rows(self, first: int, last: int, width: int) -> NDArray[np.bool_]:
        """Find the pixels of the rows `first` to before `last` whose centres lie in a polygon, bool (h, width)."""
        near = self.parts[self.tree.query(geo("shapely").box(0, first, width, last))]
        if not near.size:
            return np.zeros((last - first, width), np.bool_)
        rows = geo("rasterio.transform").Affine.translation(0, first)
        marked = geo("rasterio.features").rasterize(near, (last - first, width), transform=rows, dtype="uint8")
        return np.asarray(marked > 0, np.bool_)

    def polygons_in(self, tiles: NDArray[np.int64], size: int) -> int:
        """Count the polygons that reach into one of the tiles; `tiles`: row and column (N, 2) of their first pixel."""
        top, left = tiles.T + INSIDE
        side = size - 2 * INSIDE
        boxes = geo("shapely").box(left, top, left + side, top + side)
        _, found = self.tree.query(boxes, predicate="intersects")
        return len(np.unique(self.index[found]))


def read_changes(path: Path, pair: RasterPair, layer: str = "") -> DrawnChanges:
    """Read the polygons of changes of a vector file, in any reference system.

    Invalid outlines are repaired. Features that are not polygons are left out. Both are logged as warnings.

    Args:
        path: file that GDAL can read.
        pair: the rasters.
        layer: name of the layer; empty for a file with one layer.

    Raises:
        UserError: if the file cannot be read or placed, or holds no polygons, or none on the common grid.
    """
    shapely, name = geo("shapely"), f"POLYGONS {path}"
    frame = read_layer(path, option="POLYGONS", layer=layer)
    if not len(frame):
        raise UserError(f"{name} is empty: save the polygons of the changes in it")
    found = frame.geometry.to_numpy() if "geometry" in frame else np.full(len(frame), None)
    shapes = shapely.force_2d(found[~shapely.is_missing(found) & ~shapely.is_empty(found)])
    invalid = ~shapely.is_valid(shapes)
    outlines = np.array([polygonal_parts(shape) for shape in shapely.make_valid(shapes)], object)
    kept = ~shapely.is_empty(outlines)
    if not kept.any():
        raise UserError(f"{name} holds no polygons: give a vector file with the outlines of the changes")
    repaired, dropped = int((invalid & kept).sum()), len(frame) - int(kept.sum())
    if repaired:
        log.warning("%s: %d of %d polygons had invalid outlines and were repaired", name, repaired, int(kept.sum()))
    if dropped:
        log.warning("%s: %d of %d features have no area and are left out", name, dropped, len(frame))
    dataset = pair.before.source.dataset
    parts, index = place_parts(outlines[kept], frame.crs, dataset, pair.fault, name=name)
    parts = np.array([polygonal_parts(part) for part in parts], object)
    parts = to_pixels(parts, pair.transform)
    on_grid = shapely.intersects(parts, shapely.box(0, 0, pair.width, pair.height))
    if not on_grid.any():
        raise UserError(
            f"{name} lies outside the rasters: it covers {format_bounds(frame.total_bounds)} in {frame.crs.name}; "
            f"{pair.before.path} covers {format_bounds(dataset.bounds)} in {dataset.crs} (left, bottom, right, top): "
            "give polygons inside, or assign the right reference system"
        )
    return DrawnChanges(parts[on_grid], index[on_grid], count=int(kept.sum()), repaired=repaired)


def to_pixels(shapes: Outlines, transform: Any) -> Outlines:
    """Convert shapes (N,) in the reference system of a grid to pixels; `transform`: the grid's affine transform."""

    def convert(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(apply_affine(~transform, points[:, 0], points[:, 1]), axis=1)

    return np.asarray(geo("shapely").transform(shapes, convert), object)


def format_bounds(bounds: Any) -> str:
    """Format left, bottom, right and top."""
    return ", ".join(f"{bound:.8g}" for bound in bounds)
