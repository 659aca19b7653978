"""The connected changes of a scene as polygons, and their files.

Areas are geodesic, on the WGS 84 ellipsoid, in square metres, whatever the raster's coordinate reference system.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.rasters.gdal import geo
from change.rasters.numbering import Changes

# The formats of polygons: the suffix of the file, and how geopandas writes it.
WRITERS: dict[str, dict[str, str]] = {
    "gpkg": {"driver": "GPKG", "layer": "changes"},
    "geojson": {"driver": "GeoJSON"},
}
IN_WGS84 = ("geojson",)  # formats whose standard allows no other reference system
VECTORS = (*WRITERS, "none")
STYLE = Path(__file__).with_name("changes.qml")  # for QGIS


def change_polygons(
    numbers: Path, mask: Path, changes: Changes, *, highest: int, min_area: float, simplify: float
) -> Any:
    """Turn numbered changes into polygons.

    Args:
        numbers: the raster of a finished `Numbering`.
        mask: the raster of the mask.
        changes: their measures.
        highest: the level that stands for probability 1.
        min_area: smallest area of a polygon, in square metres; smaller polygons are left out.
        simplify: how far an outline may move, in pixels; 0 keeps it.

    Returns:
        A GeoDataFrame with the columns area_m2, mean_probability and max_probability, the largest change first.
    """
    geopandas, shapely = geo("geopandas"), geo("shapely")
    outlines, traced, crs, transform = trace_outlines(numbers, mask)
    shapes = np.array(outlines, object)
    crossing = ~shapely.is_valid(shapes)  # an outline touches itself if pixels touch at a corner
    shapes[crossing] = shapely.make_valid(shapes[crossing])
    frame = geopandas.GeoDataFrame(geometry=shapes, crs=crs)
    frame["area_m2"] = geodesic_areas(frame)
    frame["mean_probability"] = changes.total[traced] / np.maximum(changes.pixels[traced], 1) / highest
    frame["max_probability"] = changes.highest[traced] / highest
    frame = frame[frame["area_m2"] >= min_area].sort_values("area_m2", ascending=False, ignore_index=True)
    if simplify:
        pixel = np.sqrt(abs(transform.determinant))
        frame["geometry"] = frame.geometry.simplify(simplify * pixel, preserve_topology=True)
    return frame


def trace_outlines(numbers: Path, mask: Path) -> tuple[list[Any], NDArray[np.int64], Any, Any]:
    """Return the outlines of numbered changes, their numbers (N,), and the raster's crs and transform."""
    rasterio, features, shapely = geo("rasterio"), geo("rasterio.features"), geo("shapely")
    outlines, found = [], []
    with rasterio.open(numbers) as source, rasterio.open(mask) as changed:
        shapes = features.shapes(
            rasterio.band(source, 1), mask=rasterio.band(changed, 1), connectivity=8, transform=source.transform
        )
        for outline, number in shapes:
            if number:  # the mask's nodata is not a change
                outlines.append(shapely.geometry.shape(outline))
                found.append(int(number))
        return outlines, np.array(found, dtype=np.int64), source.crs, source.transform


def geodesic_areas(frame: Any) -> NDArray[np.float64]:
    """Compute the areas of a GeoDataFrame's polygons, in square metres."""
    geod = geo("pyproj").Geod(ellps="WGS84")
    return np.array([abs(geod.geometry_area_perimeter(outline)[0]) for outline in frame.geometry.to_crs(4326)])


def is_on_earth(crs: Any) -> bool:
    """Return whether a coordinate reference system can be converted to longitude and latitude; False for None."""
    if crs is None:
        return False
    pyproj = geo("pyproj")
    try:
        pyproj.Transformer.from_crs(crs.to_wkt(), 4326)
    except pyproj.exceptions.ProjError:
        return False
    return True


def write_vectors(frame: Any, folder: Path, kind: str) -> None:
    """Write polygons as changes.gpkg, or as changes.geojson in WGS 84, with a style for QGIS beside it.

    Raises UserError if they cannot be written.
    """
    path = folder / f"changes.{kind}"
    try:
        placed = frame.to_crs(4326) if kind in IN_WGS84 else frame
        placed.to_file(path, **WRITERS[kind])
    except RuntimeError as error:  # pyogrio's errors are RuntimeErrors
        raise UserError(f"{path.name} cannot be written ({error}): is the disk full?") from error
    shutil.copy(STYLE, folder / STYLE.name)
