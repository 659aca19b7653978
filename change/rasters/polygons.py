"""The connected changes of a scene as polygons, and their files.

Areas and perimeters are geodesic, on the WGS 84 ellipsoid, in square metres and metres, whatever the raster's
coordinate reference system.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.gdal import geo
from change.rasters.numbering import Changes
from change.rasters.places import Outlines, cut_at_date_line, polygonal_parts, to_longitude_latitude
from change.rasters.squaring import square_outlines

# The formats of polygons: the suffix of the file, and how geopandas writes it.
WRITERS: dict[str, dict[str, str]] = {
    "gpkg": {"driver": "GPKG", "layer": "changes"},
    "geojson": {"driver": "GeoJSON"},
}
IN_WGS84 = ("geojson",)  # formats whose standard allows no other reference system
VECTORS = (*WRITERS, "none")
OUTLINES = ("pixels", "square")  # what outlines follow: the edges of pixels, or right angles where they fit
LEAST_PIXELS = 4  # the smallest polygons that are kept by default
STYLE = Path(__file__).with_name("changes.qml")  # for QGIS


def change_polygons(
    numbers: Path,
    mask: Path,
    changes: Changes,
    *,
    highest: int,
    min_area: float | None,
    simplify: float,
    outlines: str = "pixels",
) -> Any:
    """Turn numbered changes into polygons.

    Args:
        numbers: the raster of a finished `Numbering`.
        mask: the raster of the mask.
        changes: their measures.
        highest: the level that stands for probability 1.
        min_area: smallest area of a polygon, in square metres, or None for `LEAST_PIXELS`; smaller polygons are left
            out.
        simplify: how far an outline may move, in pixels; 0 keeps it. Not for square outlines.
        outlines: one of `OUTLINES`.

    Returns:
        A GeoDataFrame of multipolygons with the columns id (the number of the change), area_m2, perimeter_m,
        mean_probability and max_probability, the largest change first. Square outlines add the column squared, False
        for polygons that keep their outline.
    """
    geopandas, shapely = geo("geopandas"), geo("shapely")
    traced_outlines, traced, crs, transform = trace_outlines(numbers, mask)
    pixel = float(np.sqrt(abs(transform.determinant)))
    frame = geopandas.GeoDataFrame(geometry=traced_outlines, crs=crs)
    frame["id"] = traced
    frame["area_m2"] = geodesic_areas(traced_outlines, crs, pixel)
    frame["mean_probability"] = changes.total[traced] / np.maximum(changes.pixels[traced], 1) / highest
    frame["max_probability"] = changes.highest[traced] / highest
    small = changes.pixels[traced] < LEAST_PIXELS if min_area is None else frame["area_m2"] < min_area
    frame = frame[~small].sort_values("area_m2", ascending=False, ignore_index=True)
    if simplify:
        simpler = shapely.simplify(frame.geometry.to_numpy(), simplify * pixel, preserve_topology=True)
        frame["geometry"] = as_multipolygons(simpler)
    if outlines == "square":
        frame["geometry"], frame["squared"] = square_outlines(frame.geometry.to_numpy(), crs, pixel)
    frame.insert(3, "perimeter_m", geodesic_perimeters(frame.geometry.to_numpy(), crs, pixel))
    return frame


def add_texts(frame: Any, texts: Mapping[str, str]) -> None:
    """Add columns of text to a GeoDataFrame, each with one value for all rows. A frame without rows gets them too."""
    for name, text in texts.items():
        frame[name] = np.full(len(frame), text, object)


def trace_outlines(numbers: Path, mask: Path) -> tuple[Outlines, NDArray[np.int64], Any, Any]:
    """Return the outlines of numbered changes, their numbers (N,), and the raster's crs and transform.

    A change is a multipolygon. Its parts touch at corners only, so it is valid without repair.
    """
    rasterio, features, shapely = geo("rasterio"), geo("rasterio.features"), geo("shapely")
    parts, found = [], []
    with rasterio.open(numbers) as source, rasterio.open(mask) as changed:
        shapes = features.shapes(
            rasterio.band(source, 1), mask=rasterio.band(changed, 1), connectivity=4, transform=source.transform
        )
        for outline, number in shapes:
            if number:  # the mask's nodata is not a change
                parts.append(shapely.geometry.shape(outline))
                found.append(int(number))
        crs, transform = source.crs, source.transform
    of_part = np.array(found, dtype=np.int64)
    order = np.argsort(of_part, kind="stable")
    traced, index = np.unique(of_part[order], return_inverse=True)
    outlines = shapely.multipolygons(np.array(parts, object)[order], indices=index)
    return as_multipolygons(outlines), traced, crs, transform


def as_multipolygons(outlines: Outlines) -> Outlines:
    """Repair outlines (N,) that are not valid, and make every one a multipolygon."""
    shapely = geo("shapely")
    wrong = ~shapely.is_valid(outlines)
    outlines[wrong] = [polygonal_parts(outline) for outline in shapely.make_valid(outlines[wrong])]
    single = shapely.get_type_id(outlines) == shapely.GeometryType.POLYGON
    outlines[single] = [shapely.multipolygons([outline]) for outline in outlines[single]]
    return outlines


def geodesic_areas(outlines: Outlines, crs: Any, pixel: float) -> NDArray[np.float64]:
    """Compute the areas of outlines (N,) in square metres; `pixel` is the side of a pixel in the units of `crs`."""
    geod = geo("pyproj").Geod(ellps="WGS84")
    placed, _ = to_longitude_latitude(outlines, crs, pixel)
    return np.array([abs(geod.geometry_area_perimeter(outline)[0]) for outline in placed], np.float64)


def geodesic_perimeters(outlines: Outlines, crs: Any, pixel: float) -> NDArray[np.float64]:
    """Compute the perimeters of outlines (N,), holes included, in metres; `pixel` as in `geodesic_areas`."""
    shapely = geo("shapely")
    placed, _ = to_longitude_latitude(outlines, crs, pixel)
    parts, of_part = shapely.get_parts(placed, return_index=True)
    rings, of_ring = shapely.get_rings(parts, return_index=True)
    points, of_point = shapely.get_coordinates(rings, return_index=True)
    steps = np.flatnonzero(of_point[1:] == of_point[:-1])  # from a point to the next one of the same ring
    _, _, lengths = geo("pyproj").Geod(ellps="WGS84").inv(*points[steps].T, *points[steps + 1].T)
    owners = of_part[of_ring[of_point[steps]]]
    return np.bincount(owners, lengths, minlength=len(outlines)).astype(np.float64)  # integers if there are no steps


def place_in_wgs84(frame: Any, pixel: float) -> Any:
    """Project multipolygons to WGS 84 as GeoJSON wants them: cut at the date line, outer rings counter-clockwise."""
    geopandas, shapely = geo("geopandas"), geo("shapely")
    placed, special = to_longitude_latitude(frame.geometry.to_numpy(), frame.crs, pixel)
    placed[special] = [cut_at_date_line(outline) for outline in placed[special]]
    placed = shapely.orient_polygons(as_multipolygons(placed), exterior_cw=False)
    return frame.set_geometry(geopandas.GeoSeries(placed, crs=4326))


def write_vectors(frame: Any, folder: Path, kind: str, *, pixel: float) -> None:
    """Write polygons as changes.gpkg, or as changes.geojson in WGS 84, with a style for QGIS beside it.

    `pixel` is the side of a pixel in the units of the reference system.

    Raises UserError if they cannot be written.
    """
    path = folder / f"changes.{kind}"
    try:
        placed = place_in_wgs84(frame, pixel) if kind in IN_WGS84 else frame
        placed.to_file(path, **WRITERS[kind], geometry_type="MultiPolygon")
    except RuntimeError as error:  # pyogrio's errors are RuntimeErrors
        raise UserError(f"{path.name} cannot be written ({error}): is the disk full?") from error
    shutil.copy(STYLE, folder / STYLE.name)
