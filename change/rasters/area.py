"""The area of interest: polygons of a vector file, on the grid of a pair of rasters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.rasters.gdal import geo
from change.rasters.grids import Bounds, apply_affine
from change.rasters.places import polygonal_parts

MARGIN = 128  # pixels around the area that the grid keeps, so that the network sees the surroundings
PIECES = 256  # straight edges are split into at least this number of pieces per extent before they are projected


def read_area(path: Path, crs: Any, raster: Path) -> Any:
    """Read the polygons of a vector file, as one multipolygon in the reference system of a raster.

    Args:
        path: file that GDAL can read, with one layer.
        crs: reference system of the raster, or None.
        raster: its path, for the error.

    Raises:
        UserError: if the file cannot be read, has several layers, no polygons or no reference system, or if the raster
            has none.
    """
    geopandas, shapely = geo("geopandas"), geo("shapely")
    frame = read_layer(path)
    shapes = frame.geometry.to_numpy() if "geometry" in frame else np.array([], object)
    shapes = [polygonal_parts(shape) for shape in shapely.make_valid(shapely.force_2d(shapes)) if shape is not None]
    area = shapely.union_all(shapes)
    if area.is_empty:
        raise UserError(f"--aoi {path} holds no polygons: give a vector file with the area of interest")
    if frame.crs is None:
        raise UserError(f"--aoi {path} has no coordinate reference system: assign it, as ogr2ogr -a_srs does")
    if crs is None:
        raise UserError(f"--aoi needs to know where the pixels lie: {raster} has no coordinate reference system")
    left, bottom, right, top = shapely.bounds(area)
    finer = shapely.segmentize(area, max(right - left, top - bottom) / PIECES)  # straight edges may become curves
    parts = geopandas.GeoSeries(shapely.get_parts(finer), crs=frame.crs)
    try:
        placed = parts.to_crs(crs.to_wkt()).to_numpy()
    except RuntimeError as error:  # pyproj's errors
        raise UserError(f"--aoi {path} cannot be projected to {crs}, the system of {raster} ({error})") from error
    finite = np.isfinite(shapely.bounds(placed)).all(1)  # the others lie where the raster's system has no place
    return polygonal_parts(shapely.union_all(shapely.make_valid(placed[finite])))


def read_layer(path: Path) -> Any:
    """Read the only layer of a vector file as a GeoDataFrame, or as a DataFrame if it has no geometry.

    Raises UserError if the file cannot be read or has several layers.
    """
    pyogrio = geo("pyogrio")
    try:
        names = [name for name, _ in pyogrio.list_layers(path)]
        if len(names) > 1:
            raise UserError(f"--aoi {path} has {len(names)} layers, {', '.join(names)}: save the one to use as a file")
        return geo("geopandas").read_file(path)
    except (RuntimeError, ValueError) as error:  # pyogrio's errors
        raise UserError(f"--aoi {path} cannot be read as a vector file ({error}): check the file") from error


def area_bounds(area: Any, transform: Any, *, height: int, width: int) -> Bounds:
    """Return the part of a grid that an area covers, with a margin; empty if they do not overlap.

    Args:
        area: multipolygon in the reference system of the grid.
        transform: affine transform of the grid.
        height, width: its size in pixels.
    """
    if area.is_empty:
        return Bounds(0, 0, 0, 0)
    points = geo("shapely").get_coordinates(area)
    columns, rows = apply_affine(~transform, points[:, 0], points[:, 1])
    inner = Bounds(
        left=max(0, int(np.floor(columns.min()))),
        top=max(0, int(np.floor(rows.min()))),
        right=min(width, int(np.ceil(columns.max()))),
        bottom=min(height, int(np.ceil(rows.max()))),
    )
    if inner.is_empty:
        return inner
    return Bounds(
        left=max(0, inner.left - MARGIN),
        top=max(0, inner.top - MARGIN),
        right=min(width, inner.right + MARGIN),
        bottom=min(height, inner.bottom + MARGIN),
    )


def inside_area(area: Any, transform: Any, *, first: int, last: int, width: int) -> NDArray[np.bool_]:
    """Find the pixels of the rows `first` to before `last` of a grid whose centres lie in an area, bool (h, width)."""
    window = geo("rasterio.windows").Window(col_off=0, row_off=first, width=width, height=last - first)
    return np.asarray(
        geo("rasterio.features").geometry_mask(
            [area],
            out_shape=(last - first, width),
            transform=geo("rasterio.windows").transform(window, transform),
            invert=True,
        ),
        np.bool_,
    )
