"""Two rasters on one grid: whether they can share it, the windows of it in each, and warping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from change.common.errors import UserError
from change.common.gdal import find_alpha_band, geo, read_palette
from change.rasters.grids import Bounds, find_overlap
from change.rasters.places import find_fault


def check_sizes(first: Any, second: Any, *, before: Path, after: Path) -> None:
    """Raise UserError if two rasters differ in size."""
    if (first.width, first.height) != (second.width, second.height):
        raise UserError(
            f"--assume_aligned: {before} has {first.width} x {first.height} pixels, {after} {second.width} x "
            f"{second.height}; cut both to one grid"
        )


def check_reference_systems(first: Any, second: Any, *, before: Path, after: Path) -> None:
    """Raise UserError if a raster has no coordinate reference system, or no possible place in it."""
    rasters = (before, first), (after, second)
    for path, dataset in rasters:
        if dataset.crs is None and (dataset.gcps[0] or dataset.rpcs):
            kind = "ground control points" if dataset.gcps[0] else "rational polynomials (RPC)"
            raise UserError(f"{path} is placed by {kind}: warp it to a grid, as gdalwarp does, or add --assume_aligned")
    missing = [str(path) for path, dataset in rasters if dataset.crs is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} {'has' if len(missing) == 1 else 'have'} no coordinate reference system: "
            "assign it, or add --assume_aligned if the pixels of both rasters coincide"
        )
    for path, dataset in rasters:
        if fault := find_fault(dataset):
            raise UserError(f"{path} {fault}, or add --assume_aligned if the pixels of both rasters coincide")


def whole_window(dataset: Any) -> Any:
    """Return the rasterio Window of a whole raster."""
    return geo("rasterio.windows").Window(col_off=0, row_off=0, width=dataset.width, height=dataset.height)


def overlap_window(first: Any, second: Any, *, before: Path, after: Path) -> Any:
    """Return the rasterio Window of `first` that `second` covers. Raises UserError as `find_overlap` does."""
    bounds = find_overlap(first, second, before=before, after=after)
    width, height = bounds.right - bounds.left, bounds.bottom - bounds.top
    return geo("rasterio.windows").Window(col_off=bounds.left, row_off=bounds.top, width=width, height=height)


def shift_window(window: Any, shift: tuple[int, int]) -> Any:
    """Shift a rasterio Window by columns and rows."""
    columns, rows = shift
    return geo("rasterio.windows").Window(
        col_off=window.col_off + columns, row_off=window.row_off + rows, width=window.width, height=window.height
    )


def part_of_window(window: Any, bounds: Bounds) -> Any:
    """Return the part of a rasterio Window that lies in `bounds`, which are relative to it."""
    return geo("rasterio.windows").Window(
        col_off=window.col_off + bounds.left,
        row_off=window.row_off + bounds.top,
        width=bounds.right - bounds.left,
        height=bounds.bottom - bounds.top,
    )


def warp_onto(second: Any, first: Any, nearest: bool = False) -> Any:
    """Warp a raster to the grid of another: bilinear, or nearest neighbour if it has a colour table or if asked."""
    resampling = geo("rasterio.enums").Resampling
    has_mask = second.nodata is not None or find_alpha_band(second) is not None
    return geo("rasterio.vrt").WarpedVRT(
        second,
        crs=first.crs,
        transform=first.transform,
        width=first.width,
        height=first.height,
        resampling=resampling.nearest if nearest or read_palette(second) is not None else resampling.bilinear,
        add_alpha=not has_mask,  # else pixels outside of the raster would count as data
    )
