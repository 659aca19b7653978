"""Image files to arrays: images as RGB, masks as 0 and 1, and what the headers say.

Shapes: images uint8 RGB (H, W, 3), masks uint8 (H, W).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from change.common.errors import UserError

Image = NDArray[np.uint8]  # RGB (H, W, 3) of 0..255, or a mask (H, W) of 0 and 1

IMAGE_MODES = ("RGB", "RGBA", "P", "L", "LA", "1")  # all of them 8 bits or fewer a channel
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError)  # what Pillow raises for damaged files
PIL.Image.MAX_IMAGE_PIXELS = None  # aerial scenes are larger than Pillow's guard against decompression bombs


def bits(image: PIL.Image.Image) -> int:
    """Bits a channel as stored: Pillow opens 16-bit RGB files as mode RGB, and would drop the low byte."""
    if image.mode.startswith(("I", "F")):
        return 16 if "16" in image.mode else 32
    stored = " ".join(str(part) for tile in getattr(image, "tile", ()) for part in tile)
    return 16 if ";16" in stored else 8


def mode_and_bits(path: Path) -> tuple[str, int]:
    """Pillow's mode of a file, and `bits`. Raises UserError where its header cannot be read."""
    try:
        with PIL.Image.open(path) as image:
            return image.mode, bits(image)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be decoded ({error}): replace the file") from error


def open_array(path: Path, convert: str | None) -> NDArray[np.integer[Any]]:
    """Decode a file, converted to a Pillow mode if given. Raises UserError naming the file where that fails."""
    try:
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert(convert) if convert else image)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be decoded ({error}): replace the file") from error


def read_image(path: Path) -> Image:
    """RGB, uint8 (H, W, 3): palettes applied, alpha dropped, grey repeated."""
    return open_array(path, "RGB").astype(np.uint8, copy=False)


def read_opaque(path: Path) -> tuple[Image, NDArray[np.bool_]]:
    """As `read_image`, and where the image is not transparent, (H, W). Raises UserError for more than 8 bits too."""
    _, depth = mode_and_bits(path)
    if depth > 8:
        raise UserError(f"{path} has {depth} bits: bring it to 8, or save it as .tif, for which --stretch does that")
    colours = open_array(path, "RGBA").astype(np.uint8, copy=False)
    return np.ascontiguousarray(colours[..., :3]), np.asarray(colours[..., 3] > 0)


def read_levels(path: Path) -> tuple[NDArray[np.integer[Any]], int]:
    """A mask's grey levels (H, W) as stored and its type's maximum: 1 (one-bit files), 255 or 65535.

    Raises UserError for masks in colour, whose meaning only their maker knows, and for other types.
    """
    mode, depth = mode_and_bits(path)
    if mode == "1":
        return open_array(path, None).astype(np.uint8), 1
    if mode == "L":
        return open_array(path, None), 255
    if mode in ("I;16", "I;16B", "I;16L", "I"):
        levels = open_array(path, None)
        if np.min(levels) >= 0 and np.max(levels) <= 65535:
            return levels, 65535
    elif mode in ("RGB", "RGBA", "P", "PA", "LA") and depth == 8:  # Pillow would drop the low byte of 16 bits
        colours = open_array(path, "RGB")
        if (colours == colours[..., :1]).all():
            return colours[..., 0], 255
        raise UserError(f"{path} is a mask in colour: save one channel, 0 for unchanged and 255 for changed")
    raise UserError(
        f"{path} is a mask of mode {mode}, {depth} bit: save one channel of 8 bits, 0 for unchanged and 255 for changed"
    )


def read_mask(path: Path, binary: bool) -> Image:
    """A mask as uint8 (H, W) of 0 and 1. `binary`: changed is above 0, else above half of the type's range.

    Raises UserError for a mask that would be read as unchanged although it marks something.
    """
    levels, maximum = read_levels(path)
    if binary or maximum == 1:
        return np.asarray(levels > 0, np.uint8)
    changed = np.asarray(levels > maximum / 2, np.uint8)
    lossy = path.suffix.lower() in (".jpg", ".jpeg")  # whose black is seldom quite 0
    if not lossy and not changed.any() and levels.any():
        raise UserError(
            f"{path} goes up to {np.max(levels)} where other masks of the split go up to {maximum}: it would be read "
            f"as unchanged; save changed as {maximum} in all of them"
        )
    return changed


def image_hash(image: Image) -> str:
    """SHA-256 of the decoded pixels and their size, 32 hexadecimal digits: the same for every lossless format."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:32]
