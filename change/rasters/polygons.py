"""Connected changes of a scene: numbered, measured, and as polygons; a few rows at a time, by way of a file.

Pixels that touch by a corner are connected. Areas are geodesic, on the WGS 84 ellipsoid, in square metres, whatever the
raster's coordinate reference system. Rasters are uint8 (H, W): masks, 1 where changed, and probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.union_find import connected_components
from change.rasters.raster import check_whole, geo

ROWS = 512  # looked at together
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Changes:
    """Connected changes, by their numbers from 1; 0 is none. Of each: how many pixels, the sum of their probabilities'
    levels and the highest, the sums of their rows and columns; (N,) each."""

    pixels: Numbers
    total: Numbers
    highest: Numbers
    rows: Numbers
    columns: Numbers

    def merged(self, numbers: Numbers) -> Changes:
        """Under the numbers that `numbers` (N,) gives them, those of one number together."""
        size = int(np.max(numbers)) + 1
        sums = []
        for values in (self.pixels, self.total, self.rows, self.columns):
            sums.append(np.zeros(size, np.int64))
            np.add.at(sums[-1], numbers, values)
        highest = np.zeros(size, np.int64)
        np.maximum.at(highest, numbers, self.highest)
        return Changes(sums[0], sums[1], highest, sums[2], sums[3])


def strips(dataset: Any) -> Iterator[tuple[int, Any]]:
    """The first row of each few rows of a raster, and their window."""
    windows = geo("rasterio.windows")
    for row in range(0, dataset.height, ROWS):
        yield row, windows.Window(0, row, dataset.width, min(ROWS, dataset.height - row))


class Numbering:
    """Numbers the connected changes of a mask that comes a few rows at a time, in a raster, int32 (H, W)."""

    def __init__(self, path: Path, place: dict[str, Any]) -> None:
        """`path`: of the raster; `place`: its height, width, crs and transform."""
        profile = {"driver": "GTiff", "dtype": "int32", "count": 1, "BIGTIFF": "IF_SAFER"}
        self.path, self.raster = path, geo("rasterio").open(path, "w+", **profile, **place)
        self.row = self.known = 0
        self.last = np.zeros(self.raster.width, np.int32)
        self.parts = [np.zeros((5, 1), np.int64)]
        self.touching: list[NDArray[np.int32]] = []

    def add(self, mask: NDArray[np.uint8], levels: NDArray[np.uint8]) -> None:
        """The next rows (h, W) of the mask and of the probabilities."""
        for row in range(0, len(mask), ROWS):
            found, components = cv2.connectedComponents((mask[row : row + ROWS] == 1).view(np.uint8), connectivity=8)
            own = np.asarray(components, np.int32)
            own[own > 0] += self.known
            window = geo("rasterio.windows").Window(0, self.row, self.raster.width, len(own))
            self.raster.write(own, 1, window=window)
            self.parts.append(measured(own, levels[row : row + ROWS], self.row, self.known, found - 1))
            last = self.last
            self.touching += [pairs(last, own[0]), pairs(last[1:], own[0, :-1]), pairs(last[:-1], own[0, 1:])]
            self.row, self.known, self.last = self.row + len(own), self.known + found - 1, own[-1].copy()

    def finished(self) -> Changes:
        """After the last rows: what is measured of the changes, whose numbers are in the raster now; it is closed.

        Raises OSError where the disk is full.
        """
        final = joined(self.known + 1, np.concatenate(self.touching))
        for _, window in strips(self.raster) if (final != np.arange(self.known + 1)).any() else ():
            self.raster.write(np.take(final, self.raster.read(1, window=window)), 1, window=window)
        self.close()
        check_whole(self.path, 4 * self.row * len(self.last))
        pixels, total, highest, rows, columns = np.concatenate(self.parts, axis=1)
        return Changes(pixels, total, highest, rows, columns).merged(final.astype(np.int64))

    def close(self) -> None:
        """Close the raster."""
        self.raster.close()


def measured(numbers: NDArray[np.int32], levels: NDArray[np.uint8], row: int, known: int, count: int) -> Numbers:
    """Pixels, sum and maximum of the levels, sums of rows and columns (5, count) of the numbers after `known`."""
    at = np.flatnonzero(numbers > 0)
    own, values = numbers.ravel()[at].astype(np.int64) - known - 1, levels.ravel()[at].astype(np.int64)
    weights = (None, values, at // numbers.shape[1] + row, at % numbers.shape[1])
    pixels, total, rows, columns = (np.bincount(own, weights=w, minlength=count).astype(np.int64) for w in weights)
    highest = np.zeros(count, np.int64)
    np.maximum.at(highest, own, values)
    return np.stack((pixels, total, highest, rows, columns))


def pairs(above: NDArray[np.int32], below: NDArray[np.int32]) -> NDArray[np.int32]:
    """The numbers (N, 2) that meet between two rows."""
    meet = (above > 0) & (below > 0)
    return np.unique(np.stack((above[meet], below[meet]), axis=1), axis=0)


def joined(count: int, touching: NDArray[np.int32]) -> NDArray[np.int32]:
    """New numbers (count,) for 0 to count - 1, without gaps: those that touch (N, 2), directly or not, share one."""
    smallest = connected_components(count, touching.tolist())
    return np.asarray(np.unique(smallest, return_inverse=True)[1].reshape(-1), np.int32)


def change_polygons(numbers: Path, mask: Path, changes: Changes, highest: int, min_area: float, simplify: float) -> Any:
    """The raster of a `Numbering` and the mask -> a GeoDataFrame of area_m2, mean_probability and max_probability, the
    largest change first.

    `highest`: the level that stands for 1; `min_area`: in square metres; `simplify`: by how many pixels an outline may
    move.
    """
    rasterio, geopandas, shapely = geo("rasterio"), geo("geopandas"), geo("shapely")
    features = geo("rasterio.features")
    outlines, found = [], []
    with rasterio.open(numbers) as source, rasterio.open(mask) as where:
        crs, transform = source.crs, source.transform
        bands = rasterio.band(source, 1), rasterio.band(where, 1)
        for outline, number in features.shapes(bands[0], mask=bands[1], connectivity=8, transform=transform):
            if number:  # nodata of the mask is no change
                outlines.append(shapely.geometry.shape(outline))
                found.append(int(number))
    shapes = np.array(outlines, object)
    crossing = ~shapely.is_valid(shapes)  # where pixels touch by a corner an outline touches itself
    shapes[crossing] = shapely.make_valid(shapes[crossing])
    frame = geopandas.GeoDataFrame(geometry=shapes, crs=crs)
    frame["area_m2"] = areas(frame)
    own = np.array(found, dtype=np.int64)
    frame["mean_probability"] = changes.total[own] / np.maximum(changes.pixels[own], 1) / highest
    frame["max_probability"] = changes.highest[own] / highest
    frame = frame[frame["area_m2"] >= min_area].sort_values("area_m2", ascending=False, ignore_index=True)
    if simplify:
        side = np.sqrt(abs(transform.determinant))
        frame["geometry"] = frame.geometry.simplify(simplify * side, preserve_topology=True)
    return frame


def areas(frame: Any) -> NDArray[np.float64]:
    """Of a GeoDataFrame's polygons, geodesic, in square metres."""
    geod = geo("pyproj").Geod(ellps="WGS84")
    return np.array([abs(geod.geometry_area_perimeter(outline)[0]) for outline in frame.geometry.to_crs(4326)])


def on_earth(crs: Any) -> bool:
    """Whether a coordinate reference system, or None, says where on earth its coordinates lie."""
    if crs is None:
        return False
    pyproj = geo("pyproj")
    try:
        pyproj.Transformer.from_crs(crs.to_wkt(), 4326)
    except pyproj.exceptions.ProjError:
        return False
    return True
