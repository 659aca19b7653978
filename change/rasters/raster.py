"""Pairs of georeferenced rasters as 8-bit RGB on one grid, read in blocks.

The grid is that of the first raster, cut to what both cover. The second raster is warped to it while it is read, unless
its pixels already lie on that grid. Each block comes with a mask of the pixels that hold data: those that are not
nodata, masked, transparent or outside of the raster. In integer rasters, a pixel is nodata if all chosen bands are; in
float rasters, if any of them is nodata or NaN.

With `align`, the local shift of the second raster against the first is measured and undone while it is read, see
`change.rasters.alignment`.

The network may read other bands than 8-bit RGB. Then it gets their levels as they are in the files; pictures and the
measurement of shifts still see RGB.

Shapes: C is the number of bands that are read, 3 for RGB. Images are uint8 RGB (3, h, W), levels of any type (C, h, W),
inputs of the network (1, C, h, W), data bool (h, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.common.bands import Bands, blank, has_data
from change.common.errors import UserError
from change.common.gdal import gdal_errors, geo, read_levels, reason
from change.common.images import as_input
from change.rasters.alignment import Alignment, align_dates
from change.rasters.area import area_bounds, inside_area, read_area
from change.rasters.bands import Source, open_source
from change.rasters.common_grid import (
    check_reference_systems,
    check_sizes,
    overlap_window,
    part_of_window,
    shift_window,
    warp_onto,
    whole_window,
)
from change.rasters.grids import find_shift
from change.rasters.places import find_fault
from change.rasters.shift_grid import ReadBlock, ShiftGrid
from change.rasters.stretch import check_8_bit_levels, choose_stretch

SAMPLE = 128  # side in pixels of the squares from which the stretch is chosen
SQUARES = 8  # maximum number of these squares along each side of a raster
ROWS = 256  # number of rows that are read at once

Convert = Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[Any]]  # levels and where data is -> image


class Block(NamedTuple):
    """A rectangle of the common grid, in pixels."""

    top: int
    left: int
    height: int
    width: int


class AlignedRaster:
    """One raster of a pair, on the common grid."""

    def __init__(
        self, source: Source, *, window: Any, stretch: str, warped: Any = None, reads: Bands | None = None
    ) -> None:
        """Choose the stretch.

        Args:
            source: the raster with its bands.
            window: rasterio Window of the common grid, in the raster, or in `warped` if given.
            stretch: as in `choose_stretch`, or "auto": "none" for 8 bits, else "2,98".
            warped: the raster as a WarpedVRT on the grid of the first raster, if it has to be warped.
            reads: the bands that the network reads, which are those of the source; None for 8-bit RGB.

        Raises:
            UserError: if the stretch does not fit the raster, or if it holds no data.
        """
        self.source = source
        self.dataset = source.dataset if warped is None else warped
        self.path = source.path
        self.window = window
        self.shifts: ShiftGrid | None = None  # undone by `read`, if it is set
        self.is_warped = warped is not None
        self.palette = source.palette
        self.bands = list(source.bands)
        self.reads = reads
        self.shown = [0, 1, 2] if reads is None else list(reads.shown())
        has_8_bits = self.palette is not None or source.kind == "uint8"
        if stretch == "auto":
            stretch = "none" if has_8_bits else "2,98"
        levels, valid = self.sample(1 if stretch == "none" and has_8_bits else SAMPLE**2)
        if stretch == "none" and not has_8_bits:
            check_8_bit_levels(levels[valid], self.path, source.kind)
        self.stretch = choose_stretch(stretch, levels[self.shown], valid[self.shown])

    def sample(self, least: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read the levels of at least `least` pixels with data, or of all such pixels if there are fewer.

        Evenly spread squares are read first: reading a reduced copy of a warped raster would take as long as reading
        all of it. If they do not hold enough data, rows follow, from the top down.

        Returns:
            Levels and validity, (C, 1, N) each, as `read_levels` returns them.

        Raises:
            UserError: if the raster holds no data at all.
        """
        levels_of, valid_of = [], []
        count = 0
        for blocks in self.sample_blocks(together=least > 1):
            for block in blocks:
                levels, valid = self.read_levels(block)
                data = has_data(levels, valid)
                levels_of.append(levels[:, None, data])
                valid_of.append(valid[:, None, data])
                count += int(data.sum())
            if count >= least:
                break
        if not count:
            raise UserError(
                f"{self.path} holds no data in the area that both rasters cover: all of it is nodata or masked"
            )
        return np.concatenate(levels_of, axis=2), np.concatenate(valid_of, axis=2)

    def sample_blocks(self, together: bool) -> Iterator[list[Block]]:
        """Yield the blocks for `sample`: the squares, `together` or one by one, then blocks of whole rows."""
        height, width = int(self.window.height), int(self.window.width)
        tall, wide = min(SAMPLE, height), min(SAMPLE, width)
        tops = np.linspace(0, height - tall, min(SQUARES, -(-height // tall))).astype(int).tolist()
        lefts = np.linspace(0, width - wide, min(SQUARES, -(-width // wide))).astype(int).tolist()
        squares = [Block(top=top, left=left, height=tall, width=wide) for top in tops for left in lefts]
        if together:
            yield squares
        else:
            yield from ([square] for square in squares)
        for top in range(0, height, SAMPLE):
            yield [Block(top=top, left=0, height=min(SAMPLE, height - top), width=width)]

    def read_levels(self, block: Block) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a block without stretching it, but with a colour table applied.

        Returns:
            Levels (C, height, width) of the raster's type, and which of them are valid: not masked, transparent,
            outside, nodata or NaN.

        Raises:
            UserError: if the file cannot be read.
        """
        windows = geo("rasterio.windows")
        left, top = block.left + self.window.col_off, block.top + self.window.row_off
        # More rows at once would be slower: GDAL would warp them once per band, or decode blocks again that its cache
        # has dropped.
        rows = self.dataset.block_shapes[0][0]
        if not self.is_warped:
            rows = max(rows, ROWS // rows * rows)
        levels_of, valid_of = [], []
        try:
            for row in range(0, block.height, rows):
                window = windows.Window(
                    col_off=left, row_off=top + row, width=block.width, height=min(rows, block.height - row)
                )
                levels, valid = read_levels(self.dataset, self.bands, window)
                levels_of.append(levels)
                valid_of.append(valid)
        except gdal_errors() as error:
            raise UserError(
                f"{self.path} cannot be read ({reason(error)}): the file is damaged or incomplete; replace it"
            ) from error
        levels, valid = np.concatenate(levels_of, axis=1), np.concatenate(valid_of, axis=1)
        if self.palette is not None:
            colours = self.palette[levels[0]].transpose(2, 0, 1)
            levels, valid = colours[:3], np.repeat(valid & (colours[3:] > 0), 3, axis=0)
        return levels, valid

    def picture(self, levels: NDArray[Any], data: NDArray[np.bool_]) -> NDArray[Any]:
        """Turn levels (C, h, w) into uint8 RGB (3, h, w), black where there is no data."""
        return self.stretch.apply(levels[self.shown] if self.reads else levels) * data

    def read(self, block: Block) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a block as a picture, with `shifts` undone if they are set.

        Returns:
            uint8 RGB (3, height, width), black where there is no data, and bool (height, width), True where there is.
        """
        return self.read_as(block, self.picture, self.read_beyond)

    def read_input(self, block: Block) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a block as the network sees it: as `read` does or, of other bands, levels (C, height, width)."""
        if self.reads is None:
            return self.read(block)
        return self.read_as(block, blank, self.read_levels_beyond)

    def read_as(self, block: Block, convert: Convert, read_beyond: ReadBlock) -> tuple[Any, NDArray[np.bool_]]:
        """Read a block and convert its levels, or read it with `read_beyond` and undo the shifts."""
        if self.shifts is not None:
            return self.shifts.warp(read_beyond, *block)
        levels, valid = self.read_levels(block)
        data = has_data(levels, valid)
        return convert(levels, data), data

    def read_beyond(self, top: int, left: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a block as a picture as it is in the file. It may reach beyond the common grid and the file.

        Returns as `read` does; there is no data beyond the file.
        """
        empty = np.zeros((3, height, width), np.uint8)
        return self.fill(empty, Block(top, left, height, width), self.picture)

    def read_levels_beyond(self, top: int, left: int, height: int, width: int) -> tuple[Any, NDArray[np.bool_]]:
        """Read the levels of a block as `read_beyond` does."""
        empty = np.zeros((len(self.bands), height, width), self.source.kind)
        return self.fill(empty, Block(top, left, height, width), blank)

    def fill(self, image: NDArray[Any], block: Block, convert: Convert) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Fill the part of a black image (N, height, width) of a block that lies in the file; return where data is."""
        first_row, first_column = int(self.window.row_off), int(self.window.col_off)
        low, high = max(block.top, -first_row), min(block.top + block.height, self.dataset.height - first_row)
        begin, end = max(block.left, -first_column), min(block.left + block.width, self.dataset.width - first_column)
        data = np.zeros(image.shape[1:], np.bool_)
        if high > low and end > begin:
            levels, valid = self.read_levels(Block(top=low, left=begin, height=high - low, width=end - begin))
            found = has_data(levels, valid)
            rows, columns = slice(low - block.top, high - block.top), slice(begin - block.left, end - block.left)
            image[:, rows, columns], data[rows, columns] = convert(levels, found), found
        return image, data


class RasterPair:
    """Two rasters on the grid of the first, cut to what both cover.

    Attributes:
        before, after: `AlignedRaster`.
        height, width: size of the grid in pixels.
        channels, kind: number and type of the bands that the network reads.
        crs, transform: coordinate reference system (or None) and affine transform of the grid, as in rasterio.
        place: height, width, crs and transform as keyword arguments of `rasterio.open`.
        assumes_aligned: whether rows and columns are compared, whatever the files say about their places.
        area: the area of interest as a multipolygon in `crs`, or None.
        fault: with `assumes_aligned`, what is wrong with the place of the first raster, which is then left out.
        alignment: with `align`, the shifts that were measured and are undone; None without it.
    """

    def __init__(
        self,
        before: Path,
        after: Path,
        *,
        bands: Sequence[int] | None = None,
        stretch: str = "auto",
        assume_aligned: bool = False,
        alpha: str = "auto",
        aoi: Path | None = None,
        align: bool = False,
        reads: Bands | None = None,
    ) -> None:
        """Open two rasters.

        Args:
            before: file that rasterio can read.
            after: the same for the later date.
            bands: the numbers of red, green and blue, or of the bands in `reads`, from 1; None takes those that are
                declared as such, else 1,2,3, or those that `Bands.find` finds.
            stretch: "none", percentiles such as "2,98", or "auto": "none" for 8 bits, else "2,98".
            assume_aligned: take pixels at the same row and column as the same place, whatever the files say.
            alpha: whether a band declared as alpha is transparency: yes, no, or auto, which looks at its levels.
            aoi: vector file of the area of interest, to which the grid is cut.
            align: whether to measure the local shifts of the second raster, and to undo them.
            reads: the bands that the network reads; None for 8-bit RGB.

        Raises:
            UserError: if a file cannot be read, has no place on earth or no data, or if they do not overlap.
        """
        self.assumes_aligned = assume_aligned
        self.fault = ""
        with ExitStack() as stack:
            sources = [
                open_source(path, bands=bands, alpha=alpha, stack=stack, reads=reads) for path in (before, after)
            ]
            self.channels, self.kind = len(sources[0].bands) if reads else 3, reads.kind if reads else "uint8"
            first = sources[0].dataset
            self.crs, transform = first.crs, first.transform
            if assume_aligned:
                self.fault = find_fault(first) if first.crs else ""
                if self.fault:
                    self.crs, transform = None, geo("rasterio.transform").Affine.identity()
            other, warped = self.choose_grid(sources, stack)
            self.before = AlignedRaster(sources[0], window=self.window, stretch=stretch, reads=reads)
            self.after = AlignedRaster(sources[1], window=other, stretch=stretch, warped=warped, reads=reads)
            self.area = None if aoi is None else read_area(aoi, first, self.fault)
            if aoi is not None:
                self.cut_to_area(aoi, transform)
            self.height, self.width = int(self.window.height), int(self.window.width)
            self.transform = geo("rasterio.windows").transform(self.window, transform)
            self.place = {"height": self.height, "width": self.width, "crs": self.crs, "transform": self.transform}
            self.alignment: Alignment | None = align_dates(self) if align else None
            self.stack = stack.pop_all()

    def choose_grid(self, sources: Sequence[Source], stack: ExitStack) -> tuple[Any, Any]:
        """Set the window of the common grid in the first raster.

        Returns:
            The window in the second raster, or in a warped raster, and that raster or None; `stack` closes it.

        Raises:
            UserError: as `RasterPair` does.
        """
        first, second = (source.dataset for source in sources)
        before, after = (source.path for source in sources)
        if self.assumes_aligned:
            check_sizes(first, second, before=before, after=after)
            self.window = whole_window(first)
            return self.window, None
        check_reference_systems(first, second, before=before, after=after)
        self.window = overlap_window(first, second, before=before, after=after)
        shift = find_shift(first, second)
        if shift is not None:
            return shift_window(self.window, shift), None
        warped = warp_onto(second, first)
        stack.callback(warped.close)
        return self.window, warped

    def cut_to_area(self, aoi: Path, transform: Any) -> None:
        """Cut the windows of both rasters to the area, with a margin. The stretch remains that of the whole rasters.

        Args:
            aoi: its file, for the error.
            transform: affine transform of the first raster.

        Raises:
            UserError: if no pixel lies in the area.
        """
        windows = geo("rasterio.windows")
        placed = windows.transform(self.window, transform)
        height, width = int(self.window.height), int(self.window.width)
        bounds = area_bounds(self.area, placed, height=height, width=width)
        rows = range(bounds.top, 0 if bounds.is_empty else bounds.bottom, ROWS)
        ends = [min(row + ROWS, bounds.bottom) for row in rows]
        if not any(
            inside_area(self.area, placed, first=row, last=end, width=width).any()
            for row, end in zip(rows, ends, strict=True)
        ):
            raise UserError(f"--aoi {aoi} holds no pixel that both rasters cover: give another area, or leave it out")
        for raster in (self.before, self.after):
            raster.window = part_of_window(raster.window, bounds)
        self.window = self.before.window

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
        """Read the rows from `first` to before `last`.

        Returns:
            Before and after, inputs (1, C, last - first, W), 0 where either holds no data, uint8 or, of levels of
            other types, float32; and bool (last - first, W), True where both hold data and, if there is an area of
            interest, inside it.
        """
        block = Block(top=first, left=0, height=last - first, width=self.width)
        before, before_data = self.before.read_input(block)
        after, after_data = self.after.read_input(block)
        data = before_data & after_data
        before, after = before * data, after * data
        if self.area is not None:
            data = data & inside_area(self.area, self.transform, first=first, last=last, width=self.width)
        inputs = [torch.from_numpy(as_input(levels))[None] for levels in (before, after)]
        return inputs[0], inputs[1], data

    def close(self) -> None:
        """Close the files."""
        self.stack.close()
