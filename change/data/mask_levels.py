"""Read the grey levels of a mask as its file stores them, whatever they mean: see `change.data.masks`.

Shapes: levels are (H, W).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.images import UNREADABLE, bits, count_pages, open_image, stored_as, upright
from change.common.tiff import GDAL_METADATA, OWN_METADATA

PHOTOMETRIC, COMPRESSION, NO_DATA = 262, 259, 42113  # tags of TIFF
WHITE_IS_ZERO, JPEG_COMPRESSIONS = 0, (6, 7)
FEW_BITS = {"L;2": 3, "L;4": 15}  # grey of 2 and 4 bits as Pillow unpacks it, and the maximum


class Levels(NamedTuple):
    """The grey levels of a mask (H, W) as stored, the maximum of its type, and whether JPEG has changed them."""

    pixels: NDArray[np.integer[Any]]
    maximum: int
    lossy: bool


def read_levels(path: Path, indexed: bool = False) -> Levels:
    """Read a mask's grey levels as stored. The maximum of its type is 1 (one-bit files), 3, 15, 255 or 65535.

    If `indexed`, the levels of a mask with a palette are its indices, else the grey levels of its colours. An
    orientation tag is applied. Raises UserError for a mask whose levels do not say what is marked: one in colour,
    of another type, with transparent pixels, of several pages, or with pixels that are declared as no data.
    """
    try:
        with open_image(path) as image:
            pages, has_validity = count_pages(image)
            if pages > 1:
                raise UserError(f"{path} is a mask of {pages} pages: save one page per file")
            if has_validity:
                raise UserError(f"{path} is a mask with transparency (a page of valid pixels): save one channel only")
            tags = getattr(image, "tag_v2", {})
            lossy = image.format in ("JPEG", "MPO") or tags.get(COMPRESSION) in JPEG_COMPRESSIONS
            if indexed and image.mode == "P":
                levels, maximum = np.asarray(upright(image)), 255
            else:
                levels, maximum = levels_of(path, image)
            refuse_no_data(path, image, levels)
            return Levels(levels, maximum, lossy)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be decoded ({error}): replace the file") from error


def levels_of(path: Path, image: PIL.Image.Image) -> tuple[NDArray[np.integer[Any]], int]:
    """Return the levels of an opened mask, and the maximum of its type. Raises UserError as `read_levels` does."""
    mode, depth, stored = image.mode, bits(image), stored_as(image)  # before the pixels are loaded
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO and mode != "1":
        raise UserError(
            f"{path} is a grey TIFF whose 0 is white, which programs read in two ways: save it with 0 as black"
        )
    if mode == "1":
        return np.asarray(upright(image)).astype(np.uint8), 1
    if mode == "L":
        pixels = np.asarray(upright(image))
        maximum = next((most for name, most in FEW_BITS.items() if name in stored), 255)
        return pixels // np.uint8(255 // maximum), maximum  # Pillow spreads few bits over 0 to 255
    if mode in ("I;16", "I;16B", "I;16L", "I"):
        levels = np.asarray(upright(image))
        if np.min(levels) >= 0 and np.max(levels) <= 65535:
            return levels, 65535
        raise UserError(
            f"{path} is a mask of levels from {np.min(levels)} to {np.max(levels)}: "
            "save one channel of 8 bits, 0 for unchanged and 255 for changed"
        )
    if has_levels_in_colour(image):
        return np.asarray(upright(image)), 255
    if mode in ("RGB", "RGBA", "P", "PA", "LA") and depth == 8:  # from 16-bit files, Pillow drops the low byte
        return level_of_colours(path, upright(image)), 255
    raise UserError(
        f"{path} is a mask of mode {mode}, {depth} bit: save one channel of 8 bits, 0 for unchanged and 255 for changed"
    )


def has_levels_in_colour(image: PIL.Image.Image) -> bool:
    """Return whether an opened mask was written by `predict`: its colour table only serves to show its levels."""
    return image.mode == "P" and OWN_METADATA in str(getattr(image, "tag_v2", {}).get(GDAL_METADATA, ""))


def level_of_colours(path: Path, image: PIL.Image.Image) -> NDArray[np.uint8]:
    """Return the grey level of a mask that is stored as colours. Raises UserError if a colour is not grey.

    Transparent pixels are refused too: some programs mark with colour, others with alpha.
    """
    colours = np.asarray(image.convert("RGBA"))
    if image.mode != "RGB" and (colours[..., 3] < 255).any():
        raise UserError(
            f"{path} is a mask with transparency: save one channel without alpha, 0 for unchanged and 255 for changed"
        )
    if (colours[..., 1:3] != colours[..., :1]).any():
        raise UserError(f"{path} is a mask in colour: save one channel, 0 for unchanged and 255 for changed")
    return np.asarray(colours[..., 0])


def refuse_no_data(path: object, image: PIL.Image.Image, levels: NDArray[np.integer[Any]]) -> None:
    """Raise UserError if a mask holds a level other than 0 that it declares as no data, in TIFF or PNG."""
    declared: Any = getattr(image, "tag_v2", {}).get(NO_DATA, image.info.get("transparency"))
    if isinstance(declared, tuple):  # a colour
        declared = declared[0]
    if isinstance(declared, bytes) or declared is None:  # alpha of a palette
        return
    try:
        level = float(str(declared).strip("\0 "))
    except ValueError:
        return
    if level != 0 and (levels == level).any():
        raise UserError(
            f"{path} declares {level:g} as no data and holds it, but pixels cannot be ignored: "
            "save one channel without no data, 0 for unchanged and 255 for changed"
        )
