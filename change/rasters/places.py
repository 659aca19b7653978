"""Where rasters lie on earth: faults of their place, the size of their pixels on the ground, shapes in WGS 84."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.gdal import gdal_errors, geo, reason
from change.rasters.grids import apply_affine, edge_points, project

SMALLEST = 1e-3  # metres: smaller pixels mean that the reference system is wrong
RADIUS = 6_371_000.0  # metres: the mean radius of the earth
ROUND = 360.0  # degrees around the earth
POLE = 90 - 1e-9  # degrees: latitudes beyond are a pole, where any longitude is right
GRID = 1e-10  # degrees: the precision of outlines that are cut
ASSIGN = "assign the right reference system"

Outlines = NDArray[np.object_]  # of shapely polygons or multipolygons


def find_fault(dataset: Any) -> str:
    """Find what is wrong with the place of a raster that has a coordinate reference system.

    Returns:
        The predicate of a sentence about the raster, with the remedy; empty if the place is possible. Systems that are
        not on earth, such as local ones, allow any place.
    """
    fault = database_fault()
    if fault:
        return fault
    transform = dataset.transform
    if transform.is_identity:
        return "has a coordinate reference system but no place in it (geotransform): assign one, as gdal_edit does"
    if not np.isfinite(tuple(transform)).all() or not transform.determinant:
        return f"has a geotransform whose pixels have no area ({list(transform)[:6]}): assign the right one"
    if not is_on_earth(dataset.crs):
        return ""
    name = dataset.crs.to_string()
    x, y = apply_affine(transform, *edge_points(dataset))
    try:
        longitude, latitude, valid = project(dataset.crs, wgs84(), x, y)
    except gdal_errors():
        valid = np.zeros(x.shape, np.bool_)
    beyond = (
        abs(transform.e) + abs(transform.d) if dataset.crs.is_geographic else 0.0
    )  # pixels may be centred on a pole
    if not valid.any():
        extent = f"x from {x.min():.8g} to {x.max():.8g} and y from {y.min():.8g} to {y.max():.8g}"
        return f"has {extent}, which are not valid coordinates in {name}: {ASSIGN}"
    if np.abs(latitude[valid]).max() > 90 + beyond:
        low, high = latitude[valid].min(), latitude[valid].max()
        return f"has latitudes from {low:.8g} to {high:.8g} in {name}: {ASSIGN}"
    if np.abs(longitude[valid]).max() > ROUND + 1:
        low, high = longitude[valid].min(), longitude[valid].max()
        return f"has longitudes from {low:.8g} to {high:.8g} in {name}: {ASSIGN}"
    size = ground_size(dataset.crs, transform, column=dataset.width / 2, row=dataset.height / 2)
    if size and min(size) < SMALLEST:
        return f"has pixels of {min(size):.2g} m in {name}, so its coordinates are in another system: {ASSIGN}"
    return ""


@functools.cache
def database_fault() -> str:
    """Return what is wrong if reference systems cannot be looked up on this machine; empty if they can."""
    try:
        wgs84()
    except (*gdal_errors(), geo("rasterio.errors").CRSError) as error:
        found = [f"{name}={os.environ[name]}" for name in ("PROJ_DATA", "PROJ_LIB") if name in os.environ]
        remedy = f"unset {' and '.join(found)}" if found else "install rasterio again"
        return f"is not placed, because PROJ's database cannot be read on this machine ({reason(error)}): {remedy}"
    return ""


def is_on_earth(crs: Any) -> bool:
    """Return whether a coordinate reference system can be converted to longitude and latitude; False for None."""
    if crs is None or not (crs.is_geographic or crs.is_projected):
        return False
    try:
        project(crs, wgs84(), np.zeros(1), np.zeros(1))
    except geo("rasterio._err").CPLE_AppDefinedError:
        return True  # it can be converted, but not at this point
    except gdal_errors():
        return False
    return True


def wgs84() -> Any:
    """Return the reference system of longitude and latitude, as rasterio's CRS."""
    return geo("rasterio.crs").CRS.from_epsg(4326)


def ground_size(crs: Any, transform: Any, *, column: float, row: float) -> tuple[float, float] | None:
    """Measure the width and height of a pixel on the ground, in metres; None if it does not lie on earth.

    The earth is treated as a sphere, so the lengths may be wrong by 0.5%.
    """
    if not is_on_earth(crs):
        return None
    columns = np.array([column, column + 1, column])
    rows = np.array([row, row, row + 1])
    x, y, valid = project(crs, wgs84(), *apply_affine(transform, columns, rows))
    if not valid.all() or np.abs(y).max() > 90:
        return None
    longitude, latitude = np.radians(x), np.radians(y)
    across = np.cos(latitude)
    points = np.stack((across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)), axis=1)
    lengths = RADIUS * np.linalg.norm(points[1:] - points[0], axis=1)
    return float(lengths[0]), float(lengths[1])


def format_length(metres: float) -> str:
    """Format a length on the ground, with one decimal or, if it is shorter than 0.95 m, with two digits."""
    return f"{metres:,.1f} m" if metres >= 0.95 else f"{metres:.2g} m"


def to_longitude_latitude(outlines: Outlines, crs: Any, pixel: float) -> tuple[Outlines, NDArray[np.bool_]]:
    """Project outlines to WGS 84.

    Args:
        outlines: polygons or multipolygons (N,), in `crs`.
        crs: a coordinate reference system on earth.
        pixel: side of a pixel, in the units of `crs`.

    Returns:
        The outlines (N,) as rings of longitude and latitude, -90 to 90, and bool (N,), True for those that reach over
        the date line or a pole, or lie beyond 180 degrees. Their rings jump from -180 to 180 degrees, so their areas
        are right but `cut_at_date_line` has to make polygons of them.
    """
    shapely = geo("shapely")
    transformer = geo("pyproj").Transformer.from_crs(crs.to_wkt(), 4326, always_xy=True)

    def project_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = transformer.transform(points[:, 0], points[:, 1])
        return np.stack((x, np.clip(y, -90, 90)), axis=1)

    placed = shapely.transform(outlines, project_points)
    left, bottom, right, top = shapely.bounds(placed).T
    special = (right - left > ROUND / 4) | (left < -ROUND / 2) | (right > ROUND / 2)
    special |= (bottom < -POLE) | (top > POLE)
    if special.any():
        finer = shapely.segmentize(outlines[special], pixel)  # straight lines on the grid are curves there
        placed[special] = shapely.transform(finer, project_points)
    return placed, special


def cut_at_date_line(outline: Any) -> Any:
    """Cut one outline of `to_longitude_latitude` at the date line, into polygons between -180 and 180 degrees."""
    shapely = geo("shapely")
    parts = []
    for polygon in shapely.get_parts(outline):
        holes = shapely.union_all([unroll(hole) for hole in polygon.interiors])
        parts.append(shapely.difference(unroll(polygon.exterior), holes))
    return polygonal_parts(shapely.set_precision(shapely.union_all(parts), GRID))  # the cuts leave slivers


def unroll(ring: Any) -> Any:
    """Turn a ring of longitudes and latitudes into the area inside it, cut at the date line and closed at a pole."""
    shapely = geo("shapely")
    points = shapely.get_coordinates(ring)
    at_pole = np.abs(points[:, 1]) > POLE
    if at_pole.any():  # begin after the pole, and end before it
        start = int(np.flatnonzero(at_pole)[0])
        points = np.concatenate((points[start:-1], points[:start]))
        points = points[np.abs(points[:, 1]) <= POLE]
    steps = np.diff(points[:, 0])
    x = points[0, 0] + np.concatenate(([0.0], np.cumsum(steps - ROUND * np.round(steps / ROUND))))
    y = points[:, 1]
    if at_pole.any() or round((x[-1] - x[0]) / ROUND):  # it touches a pole, or goes around one
        pole = np.copysign(90.0, y.mean())
        x, y = np.append(x, (x[-1], x[0])), np.append(y, (pole, pole))
    area = shapely.make_valid(shapely.polygons(np.stack((x, y), axis=1)))
    pieces = []
    for turn in range(int(np.floor(x.min() / ROUND + 0.5)), int(np.ceil(x.max() / ROUND + 0.5))):
        middle = ROUND * turn
        piece = shapely.intersection(area, shapely.box(middle - ROUND / 2, -90, middle + ROUND / 2, 90))
        pieces.append(shapely.transform(polygonal_parts(piece), lambda points, middle=middle: points - (middle, 0)))
    return shapely.union_all(pieces)


def polygonal_parts(shape: Any) -> Any:
    """Return the polygons of a shape as a multipolygon, without its lines and points."""
    shapely = geo("shapely")
    parts = shapely.get_parts(shapely.get_parts(shape))
    return shapely.multipolygons(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])
