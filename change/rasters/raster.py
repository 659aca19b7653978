"""Pairs of georeferenced rasters as 8-bit RGB on one grid, read in blocks.

The grid is that of the first raster, cut to what both cover. The second raster is warped to it while it is read, unless
its pixels already lie on that grid. `change.rasters.aligned_raster` reads each of them.

With `align`, the local shift of the second raster against the first is measured and undone while it is read, see
`change.rasters.alignment`.

The network may read other bands than 8-bit RGB. Then it gets their levels as they are in the files; pictures and the
measurement of shifts still see RGB.

Shapes: C is the number of bands that are read, 3 for RGB. Images are uint8 RGB (3, h, W), levels of any type (C, h, W),
inputs of the network (1, C, h, W), data bool (h, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.common.bands import Bands
from change.common.errors import UserError
from change.common.gdal import geo
from change.common.images import as_input
from change.rasters.aligned_raster import ROWS, AlignedRaster, Block
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

OUTSIDE, INSIDE = 1, 2  # pixels with data at both dates, outside and inside of the area of interest


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
            self.channels, self.kind = (3, "uint8") if reads is None else (len(reads.names), reads.kind)
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
            Before and after as `rows_and_places` does; and bool (last - first, W), True where both hold data and, if
            there is an area of interest, inside it.
        """
        before, after, places = self.rows_and_places(first, last)
        return before, after, places == INSIDE

    def rows_and_places(self, first: int, last: int) -> tuple[Tensor, Tensor, NDArray[np.uint8]]:
        """Read the rows from `first` to before `last`.

        Returns:
            Before and after, inputs (1, C, last - first, W), 0 where either holds no data, uint8 or, of levels of
            other types, float32; and uint8 (last - first, W): 0 where either holds no data, `OUTSIDE` where both do,
            but outside of the area of interest, and `INSIDE` elsewhere.
        """
        block = Block(top=first, left=0, height=last - first, width=self.width)
        before, before_data = self.before.read_input(block)
        after, after_data = self.after.read_input(block)
        data = before_data & after_data
        inputs = [torch.from_numpy(as_input(levels * data))[None] for levels in (before, after)]
        places = np.where(data, INSIDE, 0).astype(np.uint8)
        if self.area is not None:
            inside = inside_area(self.area, self.transform, first=first, last=last, width=self.width)
            places[data & ~inside] = OUTSIDE
        return inputs[0], inputs[1], places

    def close(self) -> None:
        """Close the files."""
        self.stack.close()
