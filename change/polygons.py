"""Connected changes as polygons, with area and probability, from a mask and a probability raster.

Pixels that touch by a corner are connected. Areas are geodesic, on the WGS 84 ellipsoid, in square metres, whatever the
raster's coordinate reference system.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.raster import geo

ROWS = 1024  # looked at together


def change_polygons(
    changed: NDArray[np.uint8],
    probability: NDArray[np.uint8],
    highest: int,
    transform: Any,
    crs: Any,
    min_area: float,
    simplify: float,
) -> Any:
    """`changed` uint8 (H, W), 1 where changed; `probability` uint8 (H, W), `highest` for 1 -> a GeoDataFrame of
    area_m2, mean_probability, max_probability, largest first.

    `min_area`: in square metres; `simplify`: by how many pixels an outline may move.
    """
    geopandas, features, shapely = geo("geopandas"), geo("rasterio.features"), geo("shapely")
    found, labels = cv2.connectedComponents(changed, connectivity=8)
    count, total, peak = (np.zeros(found, np.int64) for _ in range(3))
    for row in range(0, len(labels), ROWS):
        inside = changed[row : row + ROWS] > 0
        own = labels[row : row + ROWS][inside].astype(np.int64)
        values = probability[row : row + ROWS][inside].astype(np.int64)
        count += np.bincount(own, minlength=found)
        total += np.bincount(own, weights=values, minlength=found).astype(np.int64)
        np.maximum.at(peak, own, values)
    shapes = features.shapes(labels, mask=changed > 0, connectivity=8, transform=transform)
    outlines, numbers = [], []
    for outline, label in shapes:
        outlines.append(shapely.geometry.shape(outline))
        numbers.append(int(label))
    frame = geopandas.GeoDataFrame(geometry=outlines, crs=crs)
    frame["area_m2"] = areas(frame)
    own = np.array(numbers, dtype=np.int64)
    frame["mean_probability"] = total[own] / np.maximum(count[own], 1) / highest
    frame["max_probability"] = peak[own] / highest
    frame = frame[frame["area_m2"] >= min_area].sort_values("area_m2", ascending=False, ignore_index=True)
    if simplify:
        side = np.sqrt(abs(transform.determinant))
        frame["geometry"] = frame.geometry.simplify(simplify * side, preserve_topology=True)
    return frame


def areas(frame: Any) -> NDArray[np.float64]:
    """Of a GeoDataFrame's polygons, geodesic, in square metres."""
    geod = geo("pyproj").Geod(ellps="WGS84")
    return np.array([abs(geod.geometry_area_perimeter(outline)[0]) for outline in frame.geometry.to_crs(4326)])
