"""Pairs of georeferenced rasters as 8-bit RGB on one grid, read a few rows at a time.

The grid is the first raster's, cut to what both cover; the second is warped to it on the fly, or read as it is where
its pixels already lie on that grid. Rows come with where both dates hold data: neither masked nor transparent nor
outside, and, of the chosen bands, not all nodata where levels are integers, none nodata or NaN where they are floats.
Shapes: rows h, columns W; images uint8 RGB (1, 3, h, W), data bool (h, W).
"""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.common.errors import UserError, needed

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img")
SAMPLE, SQUARES = 128, 8  # side in pixels of the squares at which levels are looked at for a stretch; how many a side
CACHE = "256"  # MB of blocks that GDAL may keep, which would be a twentieth of the machine's memory
ROWS = 256  # of a raster that are read at once
EDGE = 32  # points along each side of the second raster, for where it lies on the first one's grid
SAME = 0.01  # of a pixel: grids that lie closer are one


def geo(name: str) -> Any:
    """A module of the packages for rasters, which keep GDAL's remarks to themselves. Raises UserError without them."""
    for talkative in ("rasterio", "pyogrio"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    os.environ.setdefault("GDAL_CACHEMAX", CACHE)
    return needed(name, "pip install -r requirements-geo.txt")


@dataclass(frozen=True)
class Stretch:
    """Which levels of each band become 0 and 255: `low` and `high`, three numbers each."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def applied(self, levels: NDArray[Any]) -> NDArray[np.uint8]:
        """Levels (3, h, W) of any type -> uint8 (3, h, W)."""
        if levels.dtype == np.uint8 and self.low == (0, 0, 0) and self.high == (255, 255, 255):
            return levels
        low, high = (np.array(side, np.float32)[:, None, None] for side in (self.low, self.high))
        with np.errstate(over="ignore", invalid="ignore"):  # of nodata: the largest floats, and NaN
            scaled = (levels.astype(np.float32) - low) * (255 / np.maximum(high - low, 1e-12))
            return np.asarray(np.clip(np.nan_to_num(scaled) + 0.5, 0, 255), np.uint8)


def choose_stretch(text: str, levels: NDArray[Any], valid: NDArray[np.bool_]) -> Stretch:
    """The stretch that `text` asks for, from a sample of levels (3, h, W) and where they are any.

    none: levels stay as they are; "P,Q": the P-th and Q-th percentile of each band become 0 and 255. Raises UserError
    for another text.
    """
    if text == "none":
        return Stretch((0, 0, 0), (255, 255, 255))
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = np.nan
    if not 0 <= low < high <= 100:
        raise UserError(f"--stretch {text}: choose auto, none, or two percentiles such as 2,98")
    inside = [band[where] if where.any() else np.zeros(1) for band, where in zip(levels, valid, strict=True)]
    ends = [np.percentile(band, (low, high)).tolist() for band in inside]
    return Stretch(tuple(end[0] for end in ends), tuple(end[1] for end in ends))


class Date:
    """One raster of a pair, on the common grid: `window` of the raster itself, or of what it is `warped` to."""

    def __init__(
        self, raster: Any, path: Path, bands: Sequence[int], window: Any, stretch: str, warped: Any = None
    ) -> None:
        self.dataset, self.path, self.window, self.warped = warped or raster, path, window, warped is not None
        self.palette, self.alpha = palette(raster), alpha_band(self.dataset)
        count = raster.count
        if self.palette is None and (wrong := [band for band in bands if not 1 <= band <= count]):
            remedy = "--bands 1,1,1 reads it as grey" if count == 1 else f"choose --bands from 1 to {count}"
            raise UserError(f"{path} has {count} band{'s' * (count > 1)}, not {wrong[0]}: {remedy}")
        self.bands = [1] if self.palette is not None else list(bands)
        kinds = sorted({str(raster.dtypes[band - 1]) for band in self.bands})
        if any("complex" in kind for kind in kinds):
            raise UserError(f"{path} holds complex numbers: give an image")
        if len(kinds) > 1:
            raise UserError(f"{path} has bands of {' and '.join(kinds)}: choose --bands of one type")
        if stretch == "auto":
            stretch = "none" if self.palette is not None or kinds == ["uint8"] else "2,98"
        self.stretch = choose_stretch(stretch, *self.sample(1 if stretch == "none" else SAMPLE**2))

    def sample(self, enough: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """As `levels`, of squares spread evenly, since all of a warped raster takes as long at any scale; where these
        hit less data than `enough` by chance, of rows from the top too, as far as it takes. Raises UserError without
        any."""
        sides = int(self.window.height), int(self.window.width)
        height, width = small = tuple(min(SAMPLE, side) for side in sides)
        tops, lefts = (
            np.linspace(0, side - part, min(SQUARES, -(-side // part))).astype(int).tolist()
            for side, part in zip(sides, small, strict=True)
        )
        squares = [(top, left, height, width) for top in tops for left in lefts]
        rows = [(top, 0, min(SAMPLE, sides[0] - top), sides[1]) for top in range(0, sides[0], SAMPLE)]
        parts: list[tuple[NDArray[Any], NDArray[np.bool_]]] = []
        count = 0
        groups = [squares] if enough > 1 else [[square] for square in squares]
        for places in (*groups, *([place] for place in rows)):
            found = [self.levels(*place) for place in places]
            inside = [(levels, valid, has_data(levels, valid)) for levels, valid in found]
            parts += [(levels[:, None, where], valid[:, None, where]) for levels, valid, where in inside]
            count += sum(int(where.sum()) for _, _, where in inside)
            if count >= enough:
                break
        if not count:
            raise UserError(f"{self.path} holds no data where both rasters lie: all is nodata or masked")
        return np.concatenate([part[0] for part in parts], 2), np.concatenate([part[1] for part in parts], 2)

    def levels(self, top: int, left: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Of a part of the grid, levels (3, height, width) as stored, and which of them are any."""
        data, windows, parts = self.dataset, geo("rasterio.windows"), []
        left, top = left + self.window.col_off, top + self.window.row_off
        # Of more rows at once GDAL warps each band anew, or decodes blocks anew that did not fit into its cache.
        rows = data.block_shapes[0][0]
        rows = rows if self.warped else max(rows, ROWS // rows * rows)
        try:
            for row in range(0, height, rows):
                window = windows.Window(left, top + row, width, min(rows, height - row))
                masks = data.read_masks(self.bands, window=window) > 0
                if self.alpha:  # GDAL takes it for a mask in some numbers of bands and types alone
                    masks &= data.read(self.alpha, window=window) > 0
                parts.append((data.read(self.bands, window=window), masks))
        except gdal_errors() as error:
            raise UserError(f"{self.path} cannot be read ({error}): fetch or make it again") from error
        levels, valid = (np.concatenate(some, axis=1) for some in zip(*parts, strict=True))
        if self.palette is not None:
            colours = self.palette[levels[0]].transpose(2, 0, 1)
            levels, valid = colours[:3], np.repeat(valid & (colours[3:] > 0), 3, axis=0)
        return levels, valid & np.isfinite(levels) if levels.dtype.kind == "f" else valid

    def part(self, top: int, left: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A part of the grid in 8 bits, (3, height, width), black without data, and where data is."""
        levels, valid = self.levels(top, left, height, width)
        data = has_data(levels, valid)
        return self.stretch.applied(levels) * data, data


def has_data(levels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a pixel is one, of levels (3, h, W) and which of them are any: nodata of integers may be a level of one
    band, such as a red of 0; that of floats is no colour."""
    found = np.all if levels.dtype.kind == "f" else np.any
    return np.asarray(found(valid, 0), np.bool_)


def palette(dataset: Any) -> NDArray[np.uint8] | None:
    """The colours, red, green, blue and alpha, of every level of a raster of one band that has a colour table, else
    None. Levels that are not in the table are transparent."""
    kind = dataset.dtypes[0]
    if dataset.count != 1 or dataset.colorinterp[0].name != "palette" or kind not in ("uint8", "uint16"):
        return None
    table = dataset.colormap(1)
    colours = np.zeros((max(1 + np.iinfo(kind).max, 1 + max(table)), 4), np.uint8)
    for level, colour in table.items():
        colours[level] = colour
    return colours


def alpha_band(dataset: Any) -> int | None:
    """The number of the band that says where the others are transparent."""
    alphas = [number for number, kind in enumerate(dataset.colorinterp, start=1) if kind.name == "alpha"]
    return alphas[-1] if alphas else None


def gdal_errors() -> tuple[type[Exception], ...]:
    """What GDAL's readers and writers raise."""
    return geo("rasterio.errors").RasterioError, geo("rasterio._err").CPLE_BaseError, OSError


def check_whole(path: Path, size: int) -> None:
    """Raise OSError for a file that was closed with fewer bytes than it must have, which GDAL does not say."""
    if path.stat().st_size < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class RasterPair:
    """Two rasters on the grid of the first: `height`, `width`, `crs` and `transform`, which `place` holds together."""

    def __init__(
        self,
        before: Path,
        after: Path,
        bands: Sequence[int] = (1, 2, 3),
        stretch: str = "auto",
        assume_aligned: bool = False,
    ) -> None:
        """`bands`: which are red, green and blue; `stretch`: as in `choose_stretch`, or auto: none for 8 bits, else
        2,98; `assume_aligned`: pixels of one row and column are one place, whatever the files say. Raises UserError
        where a file cannot be read, where one has no coordinate reference system, or where the two do not overlap."""
        windows, self.stack = geo("rasterio.windows"), ExitStack()
        first, second = (self.stack.enter_context(open_raster(path)) for path in (before, after))
        self.crs, size = first.crs, (first.width, first.height)
        whole = windows.Window(0, 0, *size)
        if assume_aligned:
            if size != (second.width, second.height):
                raise UserError(
                    f"--assume_aligned: {before} has {size[0]} x {size[1]} pixels, {after} {second.width} x "
                    f"{second.height}; cut both to one grid"
                )
            self.window, onto, other = whole, None, whole
        else:
            lacking = [str(path) for path, d in ((before, first), (after, second)) if d.crs is None]
            if lacking:
                raise UserError(
                    f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no coordinate reference system: "
                    "assign it, or add --assume_aligned if pixel lies on pixel"
                )
            self.window = overlap(first, second, before, after)
            shift, onto = whole_shift(first, second), None
            if shift is not None:
                other = windows.Window(
                    self.window.col_off + shift[0],
                    self.window.row_off + shift[1],
                    self.window.width,
                    self.window.height,
                )
            else:
                onto = self.stack.enter_context(warped(second, first))
                other = self.window
        self.height, self.width = int(self.window.height), int(self.window.width)
        self.transform = windows.transform(self.window, first.transform)
        self.place = {"height": self.height, "width": self.width, "crs": self.crs, "transform": self.transform}
        self.before = Date(first, before, bands, self.window, stretch)
        self.after = Date(second, after, bands, other, stretch, onto)

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
        """Rows `first` to below `last`: both dates, and where both hold data; black elsewhere."""
        place = first, 0, last - first, self.width
        (before, in_before), (after, in_after) = self.before.part(*place), self.after.part(*place)
        data = in_before & in_after
        images = [torch.from_numpy(image * data)[None] for image in (before, after)]
        return images[0], images[1], data

    def close(self) -> None:
        """Close the files."""
        self.stack.close()


def open_raster(path: Path) -> Any:
    """Open a file with rasterio. Raises UserError where it is no raster, or several."""
    rasterio = geo("rasterio")
    for remark in (rasterio.errors.NotGeoreferencedWarning, rasterio.errors.NodataShadowWarning):
        warnings.simplefilter("ignore", remark)  # said where it matters
    try:
        dataset = rasterio.open(path)
    except gdal_errors() as error:
        raise UserError(f"{path} is no raster that can be read ({error}): check the path and the file") from error
    if not dataset.count:
        raise UserError(f"{path} holds {len(dataset.subdatasets)} rasters: save the one to use as a GeoTIFF")
    return dataset


def warped(second: Any, first: Any) -> Any:
    """A raster on another one's grid: bilinear, a palette by the nearest level."""
    vrt, enums = geo("rasterio.vrt"), geo("rasterio.enums")
    nearest = palette(second) is not None
    has_mask = second.nodata is not None or alpha_band(second) is not None
    return vrt.WarpedVRT(
        second,
        crs=first.crs,
        transform=first.transform,
        width=first.width,
        height=first.height,
        resampling=enums.Resampling.nearest if nearest else enums.Resampling.bilinear,
        add_alpha=not has_mask,  # so that the ground outside of it is known to hold no data
    )


def overlap(first: Any, second: Any, before: Path, after: Path) -> Any:
    """The window of `first` that `second` reaches into. Raises UserError where there is none."""
    warp, windows = geo("rasterio.warp"), geo("rasterio.windows")
    along = np.linspace(0, 1, EDGE)
    sides = [(along, 0 * along), (along, 0 * along + 1), (0 * along, along), (0 * along + 1, along)]
    columns, rows = (np.concatenate([side[i] for side in sides]) for i in (0, 1))
    x, y = placed(second.transform, columns * second.width, rows * second.height)
    try:
        xs, ys = (np.asarray(v) for v in warp.transform(second.crs, first.crs, x.tolist(), y.tolist()))
    except gdal_errors() as error:
        raise UserError(
            f"{after} in {second.crs} cannot be brought to {first.crs} of {before} ({error}): assign the true one, or "
            "add --assume_aligned if pixel lies on pixel"
        ) from error
    there = np.isfinite(xs) & np.isfinite(ys)
    columns, rows = placed(~first.transform, xs[there], ys[there])
    left, top = (max(0, int(np.floor(np.min(v) + SAME))) if v.size else 0 for v in (columns, rows))
    right, bottom = (
        min(side, int(np.ceil(np.max(v) - SAME))) if v.size else 0
        for side, v in ((first.width, columns), (first.height, rows))
    )
    left, top, right, bottom = widened(first, second, (left, top, right, bottom))
    if right <= left or bottom <= top:
        places = [
            f"{path} covers {', '.join(f'{bound:.8g}' for bound in dataset.bounds)} in {dataset.crs}"
            for path, dataset in ((before, first), (after, second))
        ]
        raise UserError(f"the rasters do not overlap: {'; '.join(places)} (left, bottom, right, top)")
    return windows.Window(left, top, right - left, bottom - top)


def widened(first: Any, second: Any, inside: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """A window of `first` (left, top, right, bottom), widened to ground further in that the edges of `second` do not
    tell of, where it holds a pole or reaches across the date line: to the points of a coarse grid that lie in `second`,
    and one step around them."""
    sides = first.width, first.height
    steps = [max(1, side / EDGE) for side in sides]
    grid = np.meshgrid(*(np.arange(0.5, side, step) for side, step in zip(sides, steps, strict=True)))
    columns, rows = (axis.ravel() for axis in grid)
    x, y = placed(first.transform, columns, rows)
    try:
        xs, ys = (np.asarray(v) for v in geo("rasterio.warp").transform(first.crs, second.crs, x.tolist(), y.tolist()))
    except gdal_errors():
        return inside
    there = np.isfinite(xs) & np.isfinite(ys)
    columns, rows = columns[there], rows[there]
    across, down = placed(~second.transform, xs[there], ys[there])
    held = (across > 0) & (across < second.width) & (down > 0) & (down < second.height)
    left, top, right, bottom = inside
    held &= (columns < left) | (columns > right) | (rows < top) | (rows > bottom)
    if not held.any():
        return inside
    lows = [int(max(0, v[held].min() - step)) for v, step in zip((columns, rows), steps, strict=True)]
    highs = [
        int(min(side, v[held].max() + step + 1)) for v, side, step in zip((columns, rows), sides, steps, strict=True)
    ]
    if right <= left or bottom <= top:
        return lows[0], lows[1], highs[0], highs[1]
    return min(left, lows[0]), min(top, lows[1]), max(right, highs[0]), max(bottom, highs[1])


def whole_shift(first: Any, second: Any) -> tuple[int, int] | None:
    """Columns and rows by which `second`'s pixels are those of `first`, shifted by whole pixels; None where they are
    not."""
    if first.crs != second.crs:
        return None
    corners = np.array([(0, 0), (first.width, first.height), (first.width, 0)], np.float64).T
    shifts = np.stack(placed(~second.transform, *placed(first.transform, *corners))) - corners
    shift = round(shifts[0, 0]), round(shifts[1, 0])
    return shift if np.abs(shifts - np.array(shift)[:, None]).max() <= SAME else None


def placed(transform: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Points by an affine transform."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * x + b * y + c, d * x + e * y + f
