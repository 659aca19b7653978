"""Raster files through GDAL: optional packages, errors, opening, colour tables and alpha bands.

rasterio, geopandas, shapely and pyproj are optional, so they are imported by `geo` when they are needed.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError, import_optional

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img")
CACHE = 256 * 2**20  # bytes of decoded blocks that GDAL may keep; its default is 5% of the machine's memory
DATES = (("IMAGERY", "ACQUISITIONDATETIME"), (None, "TIFFTAG_DATETIME"))  # domain and name of metadata
DATE = re.compile(r"(\d{4})[-:](\d{1,2})[-:](\d{1,2})(?:[ T](\d{1,2}):(\d{2}):(\d{2}))?")
TALKATIVE = ("rasterio", "pyogrio")  # loggers whose messages only repeat what our own errors say


def geo(name: str) -> Any:
    """Import a module of an optional package. Raises UserError with the command that installs it if it is missing."""
    return import_optional(name, "pip install -r requirements-geo.txt")


class CacheLimit:
    """A limit of GDAL's cache for all threads: the first one to need it sets it, the last restores the old value."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the limit inside this context."""
        env = geo("rasterio.env")
        with self.lock:
            if not self.users:
                self.before = env.get_gdal_config("GDAL_CACHEMAX")
                env.set_gdal_config("GDAL_CACHEMAX", CACHE)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    env.set_gdal_config("GDAL_CACHEMAX", self.before)


LIMIT = CacheLimit()


@contextlib.contextmanager
def limited_cache() -> Iterator[None]:
    """Limit GDAL's cache inside this context, unless the user or the calling program has configured GDAL."""
    rasterio = geo("rasterio")
    if "GDAL_CACHEMAX" in os.environ or rasterio.env.hasenv():
        yield
        return
    with LIMIT.held(), rasterio.Env.from_defaults():
        yield


@contextlib.contextmanager
def quiet_gdal() -> Iterator[None]:
    """Silence rasterio and pyogrio inside this context, for example their warning that a raster has no georeferencing.

    Library code must not use it, because filters and log levels apply to the whole process. They are restored at the
    end.
    """
    errors = geo("rasterio.errors")
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category in (errors.NotGeoreferencedWarning, errors.NodataShadowWarning):
            warnings.simplefilter("ignore", category)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def gdal_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that GDAL's readers and writers raise."""
    return geo("rasterio.errors").RasterioError, geo("rasterio._err").CPLE_BaseError, OSError


def reason(error: BaseException) -> str:
    """Return the message of the error that caused `error`; rasterio's own may only say "see previous exception"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def open_raster(path: Path) -> Any:
    """Open a raster for reading, as a rasterio dataset.

    Raises UserError if the file is missing, is not a raster, or holds several rasters.
    """
    rasterio = geo("rasterio")
    try:
        dataset = rasterio.open(path)
    except gdal_errors() as error:
        raise UserError(f"{path} cannot be read as a raster ({reason(error)}): check the path and the file") from error
    if not dataset.count:
        raise UserError(f"{path} holds {len(dataset.subdatasets)} rasters: save the one to use as a GeoTIFF")
    return dataset


def check_whole(path: Path, size: int) -> None:
    """Raise OSError if a closed file has fewer than `size` bytes, because GDAL does not report a full disk."""
    if path.stat().st_size < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_palette(dataset: Any) -> NDArray[np.uint8] | None:
    """Read the colour table of a raster that has one.

    Returns:
        uint8 (N, 4): red, green, blue and alpha of every level that the band's type can hold; levels that are not in
        the table are transparent. None if the raster has several bands or no colour table.
    """
    kind = dataset.dtypes[0]
    if dataset.count != 1 or dataset.colorinterp[0].name != "palette" or kind not in ("uint8", "uint16"):
        return None
    table = dataset.colormap(1)
    colours = np.zeros((max(1 + np.iinfo(kind).max, 1 + max(table)), 4), np.uint8)
    for level, colour in table.items():
        colours[level] = colour
    return colours


def read_date(dataset: Any) -> str:
    """Read the date of a raster, in ISO 8601 such as "2020-07-15" or "2020-07-15T10:30:00"; "" if there is none.

    The time of acquisition, which GDAL collects for many satellites, takes precedence over the date of the TIFF file.
    """
    for namespace, name in DATES:
        found = DATE.match(dataset.tags(ns=namespace).get(name, "").strip())
        if not found:
            continue
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        with contextlib.suppress(ValueError):  # some programs write zeros
            moment = datetime.datetime(year, month, day, hour, minute, second)
            return moment.isoformat() if found[4] else moment.date().isoformat()
    return ""


def find_alpha_band(dataset: Any) -> int | None:
    """Return the number of the band that holds the transparency of the others, or None."""
    alphas = [number for number, kind in enumerate(dataset.colorinterp, start=1) if kind.name == "alpha"]
    return alphas[-1] if alphas else None


def read_levels(dataset: Any, bands: Sequence[int], window: Any = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read bands of an open raster, by their numbers from 1, in a rasterio Window or as a whole.

    Returns:
        Levels (C, h, w) of the raster's type, and bool (C, h, w), which of them are valid: not nodata, masked,
        transparent or NaN.
    """
    levels, alpha = dataset.read(list(bands), window=window), find_alpha_band(dataset)
    if alpha in bands:  # GDAL takes the fourth 8-bit band for alpha and would mask the others with it
        valid = np.asarray(levels != dataset.nodata)
    else:
        valid = np.asarray(dataset.read_masks(list(bands), window=window) > 0)
        if alpha:  # GDAL treats it as a mask only for some numbers of bands and some types
            valid &= dataset.read(alpha, window=window) > 0
    if levels.dtype.kind == "f":
        valid &= np.isfinite(levels)
    return levels, valid
