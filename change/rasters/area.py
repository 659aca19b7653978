"""The area of interest: polygons of a vector file, on the grid of a pair of rasters."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError, list_names
from change.common.gdal import geo
from change.rasters.grids import EDGE, Bounds, apply_affine
from change.rasters.places import ROUND, Outlines, polygonal_parts

MARGIN = 128  # pixels around the area that the grid keeps, so that the network sees the surroundings
PIECES = 256  # straight edges are split into at least this number of pieces per extent before they are projected
LAYERS = {"POLYGONS": "--layer", "--within": "--within_layer"}  # options that choose a layer


def read_area(path: Path, dataset: Any, fault: str = "", *, option: str = "--aoi", layer: str = "") -> Any:
    """Read the polygons of a vector file near a raster, as one multipolygon in the raster's reference system.

    Args:
        path: file that GDAL can read.
        dataset: the raster.
        fault: what is wrong with its place, as `find_fault` returns it.
        option: what names the file on the command line, for the errors.
        layer: name of the layer; empty for a file with one layer.

    Raises:
        UserError: if the file cannot be read, has several layers, no polygons or no reference system, or if the raster
            has no reference system or a wrong place in it.
    """
    shapely = geo("shapely")
    frame = read_layer(path, option=option, layer=layer)
    shapes = frame.geometry.to_numpy() if "geometry" in frame else np.array([], object)
    shapes = [polygonal_parts(shape) for shape in shapely.make_valid(shapely.force_2d(shapes)) if shape is not None]
    area = shapely.union_all(shapes)
    if area.is_empty:
        raise UserError(f"{option} {path} holds no polygons: give a vector file with the area of interest")
    parts, _ = place_parts(np.array([area], object), frame.crs, dataset, fault, name=f"{option} {path}")
    return polygonal_parts(shapely.union_all(parts))


def place_parts(shapes: Outlines, crs: Any, dataset: Any, fault: str, *, name: str) -> tuple[Outlines, Any]:
    """Project polygons to the reference system of a raster.

    Args:
        shapes: valid polygons or multipolygons (N,).
        crs: their reference system, as pyproj's CRS, or None.
        dataset: the raster.
        fault: what is wrong with its place, as `find_fault` returns it.
        name: option and path of the polygons' file, for the errors.

    Returns:
        The parts of the polygons near the raster, valid, and for each part the index (int) of its polygon in `shapes`.

    Raises:
        UserError: if one of the reference systems is missing, if the raster has a wrong place in it, or if the polygons
            cannot be projected.
    """
    geopandas, shapely = geo("geopandas"), geo("shapely")
    if crs is None:
        raise UserError(f"{name} has no coordinate reference system: assign it, as ogr2ogr -a_srs does")
    if fault or dataset.crs is None:
        why = fault or "has no coordinate reference system: assign it"
        raise UserError(f"{name.split()[0]} needs to know where the pixels lie, but {dataset.name} {why}")
    system = dataset.crs.to_wkt()
    try:
        shapes = cut_to_surroundings(shapes, crs, dataset)
        left, bottom, right, top = shapely.bounds(shapes).T
        pieces = np.fmax(np.fmax(right - left, top - bottom) / PIECES, np.finfo(np.float64).tiny)  # NaN for empty ones
        parts, index = shapely.get_parts(shapes, return_index=True)
        filled = ~shapely.is_empty(parts)
        parts, index = parts[filled], index[filled]
        parts = split_edges(parts, pieces[index])  # straight edges become curves
        placed = geopandas.GeoSeries(parts, crs=crs).to_crs(system).to_numpy()
    except RuntimeError as error:  # pyproj's errors
        raise UserError(
            f"{name} cannot be projected to {dataset.crs}, the system of {dataset.name} ({error})"
        ) from error
    finite = np.isfinite(shapely.bounds(placed)).all(1)  # the others are outside the domain of the raster's system
    return shapely.make_valid(placed[finite]), index[finite]


def split_edges(polygons: Outlines, longest: NDArray[np.float64]) -> Outlines:
    """Split the edges of polygons (N,), none of them empty, into pieces that are at most `longest` (N,) long.

    The result may be invalid, because points are rounded. `shapely.segmentize` repairs such polygons, and may then keep
    a hair-thin spike and drop the rest. Therefore, rings are split one by one here.
    """
    shapely = geo("shapely")
    rings, index = shapely.get_rings(polygons, return_index=True)
    split = shapely.segmentize(rings, longest[index])
    first = np.searchsorted(index, np.arange(len(polygons) + 1))  # the first ring of each polygon, and the end
    made = [shapely.Polygon(split[start], split[start + 1 : end]) for start, end in itertools.pairwise(first)]
    return np.array(made, object)


def cut_to_surroundings(shapes: Outlines, crs: Any, dataset: Any) -> Outlines:
    """Cut polygons to the surroundings of a raster.

    Many reference systems cannot represent a whole continent.

    Args:
        shapes: polygons or multipolygons (N,) in `crs`.
        crs: their reference system, as pyproj's CRS.
        dataset: the raster.

    Returns:
        The parts (N,) in a rectangle around the raster, which may be empty. Nothing is cut if the raster has no such
        rectangle in `crs`, as at the date line.
    """
    shapely = geo("shapely")
    columns, rows = np.meshgrid(np.linspace(0, dataset.width, EDGE), np.linspace(0, dataset.height, EDGE))
    transformer = geo("pyproj").Transformer.from_crs(dataset.crs.to_wkt(), crs, always_xy=True)
    x, y = transformer.transform(*apply_affine(dataset.transform, columns.ravel(), rows.ravel()))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return shapes
    margin = max(np.ptp(x), np.ptp(y)) / 4
    near = shapely.box(x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin)
    longitudes = *shapely.total_bounds(shapes)[::2], *shapely.bounds(near)[::2]
    if crs.is_geographic and max(map(abs, longitudes)) > ROUND / 2:
        return shapes
    cut = [polygonal_parts(shape) for shape in shapely.intersection(shapes, near)]
    return np.array(cut, object)


def read_layer(path: Path, *, option: str = "--aoi", layer: str = "") -> Any:
    """Read a layer of a vector file as a GeoDataFrame, or as a DataFrame if it has no geometry.

    Args:
        path: file that GDAL can read.
        option: what names the file on the command line, for the errors.
        layer: name of the layer; empty for a file with one layer.

    Raises:
        UserError: if the file cannot be read, has several layers and `layer` is empty, or has no such layer.
    """
    pyogrio = geo("pyogrio")
    try:
        names = [name for name, _ in pyogrio.list_layers(path)]
        if layer and layer not in names:
            raise UserError(f"{option} {path} has no layer {layer}: choose one of {list_names(names)}")
        if len(names) > 1 and not layer:
            remedy = "save the one to use as a file" if option == "--aoi" else f"choose one with {LAYERS[option]}"
            raise UserError(f"{option} {path} has {len(names)} layers, {', '.join(names)}: {remedy}")
        return geo("geopandas").read_file(path, layer=layer or None)
    except (RuntimeError, ValueError) as error:  # pyogrio's errors
        raise UserError(f"{option} {path} cannot be read as a vector file ({error}): check the file") from error


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
