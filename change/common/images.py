"""Image files as arrays: opening files of any size, RGB images, and what the headers say.

Shapes: images are uint8 RGB (H, W, 3), or levels of one type (H, W, C) if bands are chosen.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.tiff import more_than_rgba

Image = NDArray[Any]  # uint8 RGB (H, W, 3) of 0..255, levels (H, W, C), or a mask, uint8 (H, W) of 0 and 1

LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in grey (ITU-R BT.601)
IMAGE_MODES = ("RGB", "RGBA", "P", "L", "LA", "1")  # modes with at most 8 bits per channel
NEW_SUBFILE_TYPE, OVERVIEW, VALIDITY = 254, 1, 4  # a tag of TIFF, and two of its bits
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError)  # what Pillow raises for damaged files


class PixelLimit:
    """Pillow's limit on the pixels of an image, which guards against decompression bombs; aerial scenes exceed it.

    The limit is a global of Pillow. It is lifted while at least one thread is inside `lifted`, and restored when the
    last one leaves, so that it holds for the rest of the program.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limit: int | None = None

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Lift the limit for the duration of a `with` block."""
        with self._lock:
            if self._users == 0:
                self._limit = PIL.Image.MAX_IMAGE_PIXELS
                PIL.Image.MAX_IMAGE_PIXELS = None
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and PIL.Image.MAX_IMAGE_PIXELS is None:  # else the host has set a new limit
                    PIL.Image.MAX_IMAGE_PIXELS = self._limit


PIXEL_LIMIT = PixelLimit()


@contextlib.contextmanager
def open_image(source: Path | BinaryIO) -> Iterator[PIL.Image.Image]:
    """Open an image of any size with Pillow, for the duration of a `with` block.

    All other modules open image files with this function. Raises one of UNREADABLE if the file is damaged or not an
    image, here or when pixels are decoded inside the block.
    """
    with PIXEL_LIMIT.lifted(), PIL.Image.open(source) as image:
        yield image


def bits(image: PIL.Image.Image) -> int:
    """Return the bits per channel in the file: 8 for up to 8. Call it before the pixels are loaded.

    The mode does not reveal them: Pillow opens 16-bit RGB files as mode RGB.
    """
    if image.mode.startswith(("I", "F")):
        return 16 if "16" in image.mode else 32
    return 16 if ";16" in stored_as(image) else 8


def stored_as(image: PIL.Image.Image) -> str:
    """Return how Pillow unpacks the pixels of a file, such as "L;2" for grey of 2 bits, before they are loaded."""
    return " ".join(str(part) for tile in getattr(image, "tile", ()) for part in tile)


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Load the pixels and turn or mirror them as the orientation tag (EXIF, TIFF or XMP) says, if there is one.

    Pillow itself only does so for TIFF.
    """
    if isinstance(image, PIL.TiffImagePlugin.TiffImageFile) and orientation(image) > 4:
        image.filename = ""  # otherwise Pillow would memory-map a rotated image with the wrong width
    image.load()
    return PIL.ImageOps.exif_transpose(image) if orientation(image) != 1 else image


def orientation(image: PIL.Image.Image) -> int:
    """Return the orientation tag of an image, 1 to 8; 1 is upright.

    In PNG files the tag is looked for in what has been read: `getexif` of Pillow would decode the pixels.
    """
    tagged = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
    if image.format == "PNG" and not any(key in image.info for key in tagged):
        return 1
    return int(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))


def upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Return the width and height of an opened image after `upright`; only images on their side are decoded."""
    return upright(image).size if orientation(image) > 4 else image.size


def count_pages(image: PIL.Image.Image) -> tuple[int, bool]:
    """Return the number of pages of a TIFF, without overviews, and whether it holds a mask of its valid pixels.

    Other formats have one page and no such mask.
    """
    if not isinstance(image, PIL.TiffImagePlugin.TiffImageFile) or image.n_frames == 1:
        return 1, False
    kinds = []
    for number in range(image.n_frames):
        image.seek(number)
        kinds.append(int(image.tag_v2.get(NEW_SUBFILE_TYPE, 0)))
    image.seek(0)
    return max(1, sum(kind & (OVERVIEW | VALIDITY) == 0 for kind in kinds)), any(kind & VALIDITY for kind in kinds)


def explain_unreadable(path: Path, error: Exception) -> str:
    """Return why a file cannot be read. Pillow cannot tell damaged TIFF files from unusual ones."""
    if isinstance(error, PIL.UnidentifiedImageError) and path.suffix.lower() in (".tif", ".tiff"):
        return (
            f"{path} has no readable image header: it is damaged, or a TIFF of a type that Pillow cannot read, such as "
            "64 bits or many bands; choose --bands, or save images as 8-bit RGB, and masks as one channel of 8 bits"
        )
    return f"{path} has no readable image header ({type(error).__name__}): replace the file"


def mode_and_bits(path: Path) -> tuple[str, int]:
    """Return Pillow's mode of a file, and its `bits`. Raises UserError if its header cannot be read."""
    try:
        with open_image(path) as image:
            return image.mode, bits(image)
    except UNREADABLE as error:
        raise undecodable(path, error) from error


def undecodable(path: Path, error: Exception) -> UserError:
    """Return the error for a file that Pillow does not decode; a sound TIFF file may have more bits or bands."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"no file at {path}: check the path")
    if more := more_than_rgba(path):
        return UserError(f"{path} has {more}: convert it to RGB of 8 bits")
    return UserError(f"{path} cannot be decoded ({error}): replace the file")


def open_array(path: Path, convert: str) -> NDArray[np.integer[Any]]:
    """Decode a file, turn it upright, and convert it to the Pillow mode `convert`.

    Raises UserError if the file does not decode.
    """
    try:
        with open_image(path) as image:
            return np.asarray(upright(image).convert(convert))
    except UNREADABLE as error:
        raise undecodable(path, error) from error


def read_image(path: Path) -> Image:
    """Decode a file to RGB, uint8 (H, W, 3): palettes are applied, alpha is dropped, grey is repeated.

    An orientation tag is applied.

    Raises UserError if the file does not decode.
    """
    return open_array(path, "RGB").astype(np.uint8, copy=False)


def read_opaque(path: Path) -> tuple[Image, NDArray[np.bool_]]:
    """Decode a file to RGB, uint8 (H, W, 3), and find its pixels that are not fully transparent, bool (H, W).

    Raises UserError if the file does not decode or has more than 8 bits per channel.
    """
    _, depth = mode_and_bits(path)
    if depth > 8:
        raise UserError(f"{path} has {depth} bits: convert it to 8, or save it as .tif and choose a --stretch")
    return split_alpha(open_array(path, "RGBA").astype(np.uint8, copy=False))


def split_alpha(colours: NDArray[np.uint8]) -> tuple[Image, NDArray[np.bool_]]:
    """Split RGBA (H, W, 4) into RGB (H, W, 3) and the pixels that are not fully transparent, bool (H, W)."""
    return np.ascontiguousarray(colours[..., :3]), np.asarray(colours[..., 3] > 0)


def blank_missing(images: Sequence[Image], data: NDArray[np.bool_]) -> list[Image]:
    """Return images (H, W, C) with 0 where `data`, bool (H, W), is False, so that hidden levels do not matter."""
    return list(images) if data.all() else [image * data[..., None] for image in images]


def fill_missing(images: Sequence[Image], data: NDArray[np.bool_]) -> list[Image]:
    """Return images (H, W, C) in which pixels without data are filled as `mirrored_data` says.

    A network also sees what surrounds a pixel. Training images have no black areas, so these would cause errors beside
    them.

    Args:
        images: the images of a pair.
        data: bool (H, W), where both hold data. If no pixel does, images are 0.
    """
    if data.all() or not data.any():
        return blank_missing(images, data)
    rows, columns = mirrored_data(data)
    filled = [image.copy() for image in images]
    for image in filled:
        image[~data] = image[rows, columns]
    return filled


def mirrored_data(data: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Find a pixel with data to show in place of each pixel without data.

    The area with data is mirrored at its border, so that a house at the border still looks like a house. If the
    mirrored position lies outside the image or has no data, the nearest pixel with data is taken.

    Args:
        data: bool (H, W), True for one pixel or more.

    Returns:
        The rows and the columns (n,) of the pixels to show, one entry per pixel without data, row by row.
    """
    places = np.stack(np.nonzero(~data)).astype(np.int32)
    nearest = np.stack(nearest_data(data))
    mirrored = 2 * nearest - places
    inside = ((mirrored >= 0) & (mirrored < np.array([data.shape]).T)).all(axis=0)
    inside[inside] = data[tuple(mirrored[:, inside])]
    rows, columns = np.where(inside, mirrored, nearest)
    return rows, columns


def nearest_data(data: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Find the nearest pixel with data of each pixel without data, or one at most a few percent further away.

    Args:
        data: bool (H, W), True for one pixel or more.

    Returns:
        The rows and the columns (n,) of the nearest pixels, one entry per pixel without data, row by row.
    """
    import cv2  # here, because most images are read without it

    missing = 1 - data.astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(missing, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    index = np.zeros(labels.max() + 1, np.int32)
    index[labels[data]] = np.flatnonzero(data)
    rows, columns = np.divmod(index[labels[~data]], data.shape[1])
    return rows, columns


def as_input(image: Image) -> Image:
    """Return an image as networks take it: uint8 as it is, other types as float32."""
    return image if image.dtype == np.uint8 else np.asarray(image, np.float32)


def image_hash(image: Image) -> str:
    """Return the SHA-256 of decoded pixels and their shape, as 32 hexadecimal digits.

    It is the same for an image in every lossless format.
    """
    digest = ImageHash(image.shape)
    digest.add(image)
    return digest.text()


class ImageHash:
    """The `image_hash` of an image that is given in parts, from the top down."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Begin with the shape of the whole image, such as (height, width, 3)."""
        self.digest = hashlib.sha256(str(shape).encode())

    def add(self, rows: Image) -> None:
        """Add the next rows of pixels."""
        self.digest.update(np.ascontiguousarray(rows).data)

    def text(self) -> str:
        """Return the hash of all that was added, as 32 hexadecimal digits."""
        return self.digest.hexdigest()[:32]
