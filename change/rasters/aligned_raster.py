"""One raster of a pair on the common grid: 8-bit RGB or levels of bands, read in blocks.

Each block comes with a mask of the pixels that hold data: those that are not nodata, masked, transparent or outside of
the raster. In integer rasters, a pixel is nodata if all chosen bands are; in float rasters, if any of them is nodata or
NaN.

Shapes: C is the number of bands that are read, 3 for RGB. Images are uint8 RGB (3, h, W), levels of any type (C, h, W),
data bool (h, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from change.common.bands import Bands, blank, has_data
from change.common.errors import UserError
from change.common.gdal import gdal_errors, geo, read_levels, reason
from change.rasters.bands import Source
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

    def to_picture(self, levels: NDArray[Any], data: NDArray[np.bool_]) -> NDArray[Any]:
        """Turn levels (C, h, w) into uint8 RGB (3, h, w), black where there is no data."""
        return self.stretch.apply(levels[self.shown] if self.reads else levels) * data

    def read(self, block: Block) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a block as a picture, with `shifts` undone if they are set.

        Returns:
            uint8 RGB (3, height, width), black where there is no data, and bool (height, width), True where there is.
        """
        return self.read_and_convert(block, self.to_picture, self.read_beyond)

    def read_input(self, block: Block) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a block as the network sees it: as `read` does or, of other bands, levels (C, height, width)."""
        if self.reads is None:
            return self.read(block)
        return self.read_and_convert(block, blank, self.read_levels_beyond)

    def read_and_convert(self, block: Block, convert: Convert, read_beyond: ReadBlock) -> tuple[Any, NDArray[np.bool_]]:
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
        return self.fill(empty, Block(top, left, height, width), self.to_picture)

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
