"""Pictures of results: masks, error maps and panels, as arrays and as PNG files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.files import write_whole

Image = NDArray[np.uint8]
GREEN, RED, BLUE = (0, 255, 0), (255, 0, 0), (0, 0, 255)


def mask_picture(changed: NDArray[np.bool_]) -> Image:
    """Convert a mask, bool (H, W), to uint8 (H, W), 255 for changed."""
    return np.asarray(np.where(changed, 255, 0), np.uint8)


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
    gap = np.full((before.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)


def save_png(picture: Image, path: Path) -> None:
    """Write grey (H, W) or RGB (H, W, 3) as a PNG file, completely or not at all. Raises UserError if that fails."""
    array = picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])
    _, data = cv2.imencode(".png", array)
    write_whole(path, data.tobytes())
