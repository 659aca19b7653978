"""Read bands, bits and the place on earth from the header of a TIFF file, which Pillow may be unable to decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
BITS, BANDS, WIDTH, HEIGHT = 258, 277, 256, 257
PIXEL_SCALE, TIE_POINT, MATRIX, GEO_KEYS = 33550, 33922, 34264, 34735
RASTER_TYPE, GEOGRAPHIC, PROJECTED = 1025, 2048, 3072  # geo keys
SAME = 0.01  # pixels
GDAL_METADATA = 42112  # XML with the metadata that GDAL writes
OWN_METADATA = "PRX_CHANGE"  # its entry in the rasters that `predict` writes


class GeoPlace(NamedTuple):
    """The place of a GeoTIFF on earth.

    Attributes:
        corners: coordinates of its upper left, upper right and lower left corner, (3, 2).
        keys: geo keys, by number, that define the coordinate system; only those with numeric values.
        pixel: side of a pixel in units of the coordinates.
        size: width and height in pixels.
    """

    corners: Any
    keys: dict[int, int]
    pixel: float
    size: tuple[float, float]


def read_tags(path: Path) -> dict[int, Any]:
    """Read the tags of the first image of a TIFF file; empty for other files and for damaged headers."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if head[:4] not in SIGNATURES:
                return {}
            tags = ImageFileDirectory_v2(head if head[2] == 43 or head[3] == 43 else head[:8])
            file.seek(tags.next)
            tags.load(file)
            return dict(tags)
    except Exception:  # Pillow raises errors of many kinds for damaged headers; decoding reports them
        return {}


def bands_and_bits(path: Path) -> tuple[int, int] | None:
    """Return the number of bands and the bits per band of a TIFF file, as its header says; None for other files."""
    tags = read_tags(path)
    if not tags:
        return None
    bits = tags.get(BITS, 1)
    return int(tags.get(BANDS, 1)), int(max(bits) if isinstance(bits, tuple) else bits)


def more_than_rgba(path: Path) -> str:
    """Describe a TIFF file of more than 4 bands or 8 bits, as in "1 band of 16 bits"; return "" for other files."""
    bands, bits = bands_and_bits(path) or (0, 0)
    return f"{bands} band{'s' * (bands > 1)} of {bits} bits" if bits > 8 or bands > 4 else ""


def find_place(path: Path) -> GeoPlace | None:
    """Return the place of a GeoTIFF; None for other files and for files that do not state one."""
    tags = read_tags(path)
    try:
        if MATRIX in tags:
            matrix = np.array(tags[MATRIX], np.float64).reshape(4, 4)[:2, [0, 1, 3]]
        else:
            (across, down), (column, row, _, x, y) = tags[PIXEL_SCALE][:2], tags[TIE_POINT][:5]
            matrix = np.array([[across, 0, x - column * across], [0, -down, y + row * down]], np.float64)
        directory, width, height = tags[GEO_KEYS], float(tags[WIDTH]), float(tags[HEIGHT])
    except (KeyError, ValueError, TypeError):
        return None
    entries = [directory[start : start + 4] for start in range(4, len(directory) - 3, 4)]
    keys = {key: value for key, place, _, value in entries if not place and key in (RASTER_TYPE, GEOGRAPHIC, PROJECTED)}
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1)]) @ matrix.T
    return GeoPlace(corners, keys, float(np.sqrt(abs(np.linalg.det(matrix[:, :2])))), (width, height))


def have_different_grids(first: Path, second: Path) -> bool:
    """Return whether two files are GeoTIFFs whose pixels lie in different places; False if either has no place."""
    one, other = find_place(first), find_place(second)
    if one is None or other is None:
        return False
    if one.keys != other.keys or one.size != other.size:
        return True
    return float(np.abs(one.corners - other.corners).max()) > SAME * one.pixel
