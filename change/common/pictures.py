"""Pictures of results: masks, error maps and panels, as arrays and as PNG files."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from change.common.files import write_whole

Image = NDArray[np.uint8]
GREEN, RED, BLUE = (0, 255, 0), (255, 0, 0), (0, 0, 255)
YELLOW = (255, 210, 0)  # predicted change if the truth is not known
GAP = 4  # pixels between the pictures of a panel
# Colours of the first classes, which people with colour blindness can tell apart (Okabe and Ito, without black).
CLASS_COLOURS = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)
GOLDEN = 0.618034  # turns of the hue from one further class to the next


def mask_picture(changed: NDArray[np.bool_]) -> Image:
    """Convert a mask, bool (H, W), to uint8 (H, W), 255 for changed."""
    return np.asarray(np.where(changed, 255, 0), np.uint8)


def class_colours(number: int) -> list[tuple[int, int, int]]:
    """Return a colour, RGB, for each of `number` classes. Those of the first classes do not depend on the number."""
    colours = list(CLASS_COLOURS[:number])
    for value in range(len(colours), number):
        red, green, blue = colorsys.hsv_to_rgb(value * GOLDEN % 1, 0.55 + 0.15 * (value % 3), 0.95 - 0.2 * (value % 2))
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def save_classes(values: Image, path: Path) -> None:
    """Write class values (H, W) as a PNG file with a palette, in which 0 is black. Raises UserError if that fails."""
    picture = PIL.Image.fromarray(values, "P")
    picture.putpalette([0, 0, 0, *(level for colour in class_colours(255) for level in colour)])
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_whole(path, data.getvalue())


def error_map(changed: NDArray[np.bool_], mask: NDArray[np.bool_]) -> Image:
    """Draw prediction and truth, bool (H, W) each, as RGB (H, W, 3): TP green, FN red, FP blue, TN black."""
    picture = np.zeros((*mask.shape, 3), np.uint8)
    picture[changed & mask] = GREEN
    picture[~changed & mask] = RED
    picture[changed & ~mask] = BLUE
    return picture


def panel(before: Image, after: Image, changed: NDArray[np.bool_], mask: NDArray[np.bool_] | None) -> Image:
    """Draw before, after, the predicted mask and, if the truth is known, the error map side by side.

    Args:
        before: RGB (H, W, 3).
        after: RGB (H, W, 3).
        changed: Predicted change, bool (H, W).
        mask: True change, bool (H, W), or None if it is unknown.

    Returns:
        RGB (H, W', 3), with white gaps between the pictures.
    """
    parts = [before, after, np.repeat(mask_picture(changed)[..., None], 3, axis=2)]
    if mask is not None:
        parts.append(error_map(changed, mask))
    return side_by_side(parts)


def outlined_panel(before: Image, after: Image, changed: NDArray[np.bool_]) -> Image:
    """Draw before and after side by side, RGB (H, W, 3) each, with the outlines of the change, bool (H, W), in both."""
    width = 1 + max(changed.shape) // 700  # so that they can be seen in a large picture
    return side_by_side([outline(picture, changed, YELLOW, width) for picture in (before, after)])


def outline(picture: Image, changed: NDArray[np.bool_], color: tuple[int, int, int], width: int = 1) -> Image:
    """Draw lines of `width` pixels around the change, bool (H, W), in a copy of a picture, RGB (H, W, 3).

    The lines lie outside the change, so they hide no changed pixel.
    """
    grown = cv2.dilate(changed.view(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8)) > 0
    drawn = np.array(picture, np.uint8)
    drawn[grown & ~changed] = color
    return drawn


def side_by_side(parts: Sequence[Image]) -> Image:
    """Place pictures of the same height side by side, with white gaps."""
    gap = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
    return np.asarray(np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1), np.uint8)


def save_png(picture: Image, path: Path) -> None:
    """Write grey (H, W) or RGB (H, W, 3) as a PNG file, completely or not at all. Raises UserError if that fails."""
    array = picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])
    _, data = cv2.imencode(".png", array)
    write_whole(path, data.tobytes())
