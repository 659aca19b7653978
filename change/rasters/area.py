"""The area of interest: polygons of a vector file, on the grid of a pair of rasters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.rasters.gdal import geo
from change.rasters.grids import EDGE, Bounds, apply_affine
from change.rasters.places import ROUND, polygonal_parts

MARGIN = 128  # pixels around the area that the grid keeps, so that the network sees the surroundings
PIECES = 256  # straight edges are split into at least this number of pieces per extent before they are projected


def read_area(path: Path, dataset: Any, fault: str = "") -> Any:
    """Read the polygons of a vector file near a raster, as one multipolygon in the raster's reference system.

    Args:
        path: file that GDAL can read, with one layer.
        dataset: the raster.
        fault: what is wrong with its place, as `find_fault` returns it.

    Raises:
        UserError: if the file cannot be read, has several layers, no polygons or no reference system, or if the raster
            has no reference system or a wrong place in it.
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
    if fault or dataset.crs is None:
        why = fault or "has no coordinate reference system: assign it"
        raise UserError(f"--aoi needs to know where the pixels lie, but {dataset.name} {why}")
    try:
        area = cut_to_surroundings(area, frame.crs, dataset)
        left, bottom, right, top = shapely.bounds(area)
        if not area.is_empty:
            area = shapely.segmentize(area, max(right - left, top - bottom) / PIECES)  # straight edges become curves
        placed = geopandas.GeoSeries(shapely.get_parts(area), crs=frame.crs).to_crs(dataset.crs.to_wkt()).to_numpy()
    except RuntimeError as error:  # pyproj's errors
        system = f"{dataset.crs}, the system of {dataset.name}"
        raise UserError(f"--aoi {path} cannot be projected to {system} ({error})") from error
    finite = np.isfinite(shapely.bounds(placed)).all(1)  # the others are outside the domain of the raster's system
    return polygonal_parts(shapely.union_all(shapely.make_valid(placed[finite])))


def cut_to_surroundings(area: Any, crs: Any, dataset: Any) -> Any:
    """Cut an area to the surroundings of a raster.

    Many reference systems cannot represent a whole continent.

    Args:
        area: multipolygon in `crs`.
        crs: its reference system, as pyproj's CRS.
        dataset: the raster.

    Returns:
        The area in a rectangle around the raster. It is not cut if the raster has no such rectangle in `crs`, as at the
        date line.
    """
    shapely = geo("shapely")
    columns, rows = np.meshgrid(np.linspace(0, dataset.width, EDGE), np.linspace(0, dataset.height, EDGE))
    transformer = geo("pyproj").Transformer.from_crs(dataset.crs.to_wkt(), crs, always_xy=True)
    x, y = transformer.transform(*apply_affine(dataset.transform, columns.ravel(), rows.ravel()))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return area
    margin = max(np.ptp(x), np.ptp(y)) / 4
    near = shapely.box(x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin)
    longitudes = *shapely.bounds(area)[::2], *shapely.bounds(near)[::2]
    if crs.is_geographic and max(map(abs, longitudes)) > ROUND / 2:
        return area
    return polygonal_parts(shapely.intersection(area, near))


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
