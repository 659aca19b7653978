"""Read bands of image files with rasterio, and their statistics.

rasterio is optional, so it is imported when it is needed. It reads TIFF files of any number of bands, PNG files of 16
bits, and what else GDAL reads.

Shapes: levels of one type (H, W, C), one channel for each band.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.bands import Bands, Channels, Header, blank, has_data
from change.common.errors import UserError
from change.common.gdal import gdal_errors, geo, limited_cache, open_raster, read_levels, reason

PART = 2**22  # levels that are read at once for statistics


@contextlib.contextmanager
def open_bands(path: Path) -> Iterator[Any]:
    """Open a file with rasterio, for the duration of a `with` block.

    Raises UserError as `open_raster` does, and if the file cannot be read inside the block.
    """
    with limited_cache(), contextlib.closing(open_raster(path)) as dataset:
        try:
            yield dataset
        except gdal_errors() as error:
            raise UserError(f"{path} cannot be read ({reason(error)}): replace the file") from error


def read_header(path: Path) -> Header:
    """Read what a file says about its bands. Raises UserError if it cannot be read."""
    with open_bands(path) as dataset:
        return header_of(dataset, path)


def header_of(dataset: Any, path: Path) -> Header:
    """Return what an open dataset says about its bands."""
    names = tuple((text or "").strip().lower() for text in dataset.descriptions)
    return Header(path, names, tuple(dataset.dtypes), (dataset.width, dataset.height))


def read_bands(path: Path, bands: Bands) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read the bands of a file.

    Returns:
        Levels (H, W, C), 0 where there is no data, and the pixels that hold data, bool (H, W), see `has_data`.

    Raises:
        UserError: the file cannot be read, or lacks a band.
    """
    with open_bands(path) as dataset:
        levels, data = read_part(dataset, bands.find(header_of(dataset, path)), None)
    return np.ascontiguousarray(levels.transpose(1, 2, 0)), data


def read_part(dataset: Any, numbers: Sequence[int], window: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a window of an open dataset: levels (C, h, w), 0 where there is no data, and the pixels with data, bool."""
    levels, valid = read_levels(dataset, numbers, window)
    data = has_data(levels, valid)
    return blank(levels, data), data


def measure(paths: Sequence[Path], bands: Bands) -> Channels:
    """Measure the mean and standard deviation of each band over all files, ignoring pixels without data.

    Files are read in parts of at most `PART` levels, or one block if that is larger, so their size does not matter.

    Raises:
        UserError: a file cannot be read, or a band has the same level everywhere.
    """
    count, mean, squares = 0.0, np.zeros(len(bands.names)), np.zeros(len(bands.names))

    def sums_of(path: Path) -> list[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
        return list(sums(path, bands))

    with ThreadPoolExecutor(2) as pool:
        for parts in pool.map(sums_of, paths):
            for other, its_mean, its_squares in parts:  # Chan et al., "Updating Formulae", 1979
                whole = count + other
                step = its_mean - mean
                squares += its_squares + step**2 * (count * other / whole)
                mean = mean + step * (other / whole)
                count = whole
    if not count:
        raise UserError(f"{paths[0]} and the other images hold no data: every pixel is nodata or masked")
    std = np.sqrt(squares / count)
    flat = [name for name, spread in zip(bands.names, std, strict=True) if not spread > 0]
    if flat:
        raise UserError(f"--bands: {flat[0]} has the same level in all train images: leave it out")
    return Channels(bands, tuple(mean.tolist()), tuple(std.tolist()))


def sums(path: Path, bands: Bands) -> Iterator[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    """Yield number, mean and sum of squared differences from the mean of the levels in each part of a file."""
    with open_bands(path) as dataset:
        numbers = bands.find(header_of(dataset, path))
        windows = geo("rasterio.windows")
        tall, wide = dataset.block_shapes[0]
        wide = min(wide, dataset.width)
        rows = max(1, PART // (wide * len(numbers) * tall)) * tall
        for top in range(0, dataset.height, rows):
            for left in range(0, dataset.width, wide):
                height, width = min(rows, dataset.height - top), min(wide, dataset.width - left)
                levels, data = read_part(dataset, numbers, windows.Window(left, top, width, height))
                if not data.any():
                    continue
                held = levels.reshape(len(numbers), -1) if data.all() else levels[:, data]
                found = held.astype(np.float64)
                mean = found.mean(1)
                yield float(found.shape[1]), mean, np.square(found - mean[:, None]).sum(1)
