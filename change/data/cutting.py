"""Cut the images and the mask of a pair into tiles, for `python -m change prepare --tile`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from change.change_dataloader import BEFORE, LABEL
from change.common.errors import UserError
from change.common.files import write_whole
from change.common.images import (
    IMAGE_MODES,
    PIXEL_LIMIT,
    UNREADABLE,
    bits,
    image_hash,
    open_image,
    stored_as,
    upright,
)
from change.data.archives import Content
from change.data.mask_levels import FEW_BITS, has_levels_in_colour, refuse_no_data


@dataclass(frozen=True)
class Tile:
    """A part of an image, to be stored as PNG.

    `source` is the `image_hash` of the whole image, or of its strip; "" for a mask.
    """

    name: str
    image: PIL.Image.Image
    source: str

    def same(self, target: Path) -> bool:
        """Tell whether the file `target` has these pixels. Its bytes may differ if another Pillow wrote it."""
        try:
            with open_image(target) as there:
                return np.array_equal(np.asarray(there), np.asarray(self.image))
        except UNREADABLE:
            return False

    def put(self, target: Path) -> str:
        """Write the file `target`; return "cut"."""
        data = io.BytesIO()
        self.image.save(data, "PNG")
        write_whole(target, data.getvalue())
        return "cut"


@dataclass(frozen=True)
class Strip:
    """The columns of a scene that are used in train or in val, if the two divide one scene.

    Attributes:
        share: The share of the columns of tiles that val gets, above 0 and below 1.
        is_val: Whether the columns of val are meant. They are the last ones; the column before them is in neither.
    """

    share: float
    is_val: bool

    def find_columns(self, width: int, tile: int) -> tuple[int, int]:
        """Return the first column of pixels and the one after the last. Raises UserError if a part has no tile."""
        held = max(1, round(self.share * (width // tile)))
        start = width - held * tile
        if start < 2 * tile:
            raise UserError(
                f"--val {self.share:g} --tile {tile}: the scene is {width} pixels wide, so no tile is left for train: "
                "choose smaller values"
            )
        return (start, width) if self.is_val else (0, start - tile)


@dataclass(frozen=True)
class Cutting:
    """How images are cut into tiles.

    Attributes:
        tile: The side of the tiles in pixels; 0 to keep images whole.
        overlap: The pixels that neighbouring tiles share.
        strip: The columns that are cut; None for all.
    """

    tile: int
    overlap: int = 0
    strip: Strip | None = None


def cut(name: str, files: Mapping[str, Content], cutting: Cutting) -> Iterator[tuple[str, dict[str, Tile]]]:
    """Yield the stem and the tiles of a pair, row by row.

    The last tiles of a row and of a column end at the border of the image, or of its strip. Raises UserError if images
    differ in size or are smaller than a tile, or for the same reasons as `decode` and `Strip.find_columns`.
    """
    tile = cutting.tile
    images = {kind: decode(file, kind == LABEL) for kind, file in files.items()}
    sizes = {f"{files[kind]} {image.width}x{image.height}": image.size for kind, image in images.items()}
    width, height = images[BEFORE].size
    if len(set(sizes.values())) > 1:
        raise UserError(f"sizes differ: {', '.join(sizes)}")
    if min(width, height) < tile:
        raise UserError(f"{files[BEFORE]} is {width}x{height}: choose a smaller --tile than {tile}")
    first = 0
    if cutting.strip:
        first, end = cutting.strip.find_columns(width, tile)
        with PIXEL_LIMIT.lifted():
            images = {kind: image.crop((first, 0, end, height)) for kind, image in images.items()}
        width = end - first
    sources = {kind: "" if kind == LABEL else image_hash(np.asarray(images[kind].convert("RGB"))) for kind in images}
    tops, lefts = ([*range(0, side - tile, tile - cutting.overlap), side - tile] for side in (height, width))
    for top, left in itertools.product(tops, lefts):
        stem, box = f"{name}_{top}_{first + left}", (left, top, left + tile, top + tile)
        with PIXEL_LIMIT.lifted():
            tiles = {kind: Tile(f"{stem}.png", image.crop(box), sources[kind]) for kind, image in images.items()}
        yield stem, tiles


def decode(file: Content, is_mask: bool) -> PIL.Image.Image:
    """Decode an image of at most 8 bits per channel, or a grey mask of up to 16 bits, which PNG stores without loss.

    An orientation tag is applied.

    Raises UserError for other images, for a mask with pixels that are declared as no data, and for a file that does not
    decode.
    """
    data = file.read()
    try:
        with open_image(io.BytesIO(data)) as opened:
            depth, stored = bits(opened), stored_as(opened)  # before Pillow loads the pixels and forgets them
            levels_only = is_mask and has_levels_in_colour(opened)
            image = upright(opened).copy()
            if is_mask:  # the tiles would not declare their nodata
                refuse_no_data(file, opened, np.asarray(image))
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be decoded ({error}): replace the file") from error
    if is_mask and any(name in stored for name in FEW_BITS):
        raise UserError(f"{file} is a grey mask of 2 or 4 bits: save one channel of 8 bits to cut it into tiles")
    if levels_only:
        return PIL.Image.fromarray(np.asarray(image))  # without its colour table
    if image.mode in IMAGE_MODES and depth == 8:
        return image
    levels = np.asarray(image)
    if is_mask and image.mode.startswith("I") and levels.min() >= 0 and levels.max() <= 65535:
        return PIL.Image.fromarray(levels.astype(np.uint16))
    raise UserError(f"{file} is of mode {image.mode}, {depth} bit: convert it to 8 bits, with a stretch of your choice")
