"""The mask convention: which levels of a mask mean changed, for training and for `python -m change check` alike.

One-bit masks mark change with 1. For the other masks of a split there are two cases. If no level in any of them exceeds
1, they also mark change with 1. Otherwise levels above half of their type's range mean changed (from 128 of 255, from
32768 of 65535). A mask that has levels above 0, all of which would be read as unchanged, is an error. JPEG masks are
exempt, because their black is rarely exactly 0.

Shapes: levels and masks are (H, W).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.images import Image, mode_and_bits, open_array

LOSSY = (".jpg", ".jpeg")
AHEAD = 32  # masks that are read at a time, until one shows how change is marked

log = logging.getLogger(__name__)


def read_levels(path: Path) -> tuple[NDArray[np.integer[Any]], int]:
    """Read a mask's grey levels (H, W) as stored, and the maximum of its type: 1 (one-bit files), 255 or 65535.

    Raises UserError for masks in colour, whose meaning is unknown, and for other types.
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
    elif mode in ("RGB", "RGBA", "P", "PA", "LA") and depth == 8:  # from 16-bit files, Pillow drops the low byte
        colours = open_array(path, "RGB")
        if (colours == colours[..., :1]).all():
            return colours[..., 0], 255
        raise UserError(f"{path} is a mask in colour: save one channel, 0 for unchanged and 255 for changed")
    raise UserError(
        f"{path} is a mask of mode {mode}, {depth} bit: save one channel of 8 bits, 0 for unchanged and 255 for changed"
    )


def read_mask(path: Path, binary: bool) -> Image:
    """Read a mask as uint8 (H, W) of 0 and 1. `binary`: the split's masks mark change with 1, see `marks_with_one`.

    Raises UserError for the same reasons as `read_levels`, and for a mask whose marks would be lost.
    """
    levels, maximum = read_levels(path)
    fault = lost_marks(path, int(np.max(levels)), maximum, binary)
    if fault:
        raise UserError(fault)
    return np.asarray(levels > unchanged_up_to(maximum, binary), np.uint8)


def unchanged_up_to(maximum: int, binary: bool) -> float:
    """Return the level up to which pixels are unchanged, in a mask whose type has this maximum."""
    if binary or maximum == 1:
        return 0
    return maximum / 2


def lost_marks(path: Path, highest: int, maximum: int, binary: bool) -> str:
    """Return an error message if a mask has levels above 0 but would be read as unchanged, else "".

    Args:
        path: The mask's file.
        highest: Its highest level.
        maximum: The maximum of its type.
        binary: Whether the split's masks mark change with 1.
    """
    if path.suffix.lower() in LOSSY or not 0 < highest <= unchanged_up_to(maximum, binary):
        return ""
    return (
        f"{path} goes up to {highest}, but other masks up to {maximum}: it would be read as unchanged; "
        f"save changed as {maximum}"
    )


def marks_with_one(masks: Iterable[tuple[int, int]]) -> bool:
    """Tell whether a split's masks mark change with 1, given the highest level of each and the maximum of its type."""
    return all(highest <= 1 for highest, maximum in masks if maximum > 1)


def masks_are_binary(name: str, paths: Sequence[Path]) -> bool:
    """Tell whether the masks of split `name` mark change with 1, and log the rule that was found.

    Masks are read until one has a level above half of its type's range. Raises UserError as `read_levels` does.
    """
    masks: list[tuple[int, int]] = []
    for highest, maximum in highest_levels(paths):
        masks.append((highest, maximum))
        if maximum > 1 and highest > unchanged_up_to(maximum, binary=False):
            break
    binary = marks_with_one(masks)
    if not any(highest > unchanged_up_to(maximum, binary) for highest, maximum in masks):
        log.warning("%s: %d pairs; no mask marks any change: check the label folder", name, len(paths))
    elif not binary:
        log.info("%s: %d pairs; masks: changed is above half of the type's range", name, len(paths))
    elif any(maximum > 1 and highest == 1 for highest, maximum in masks):
        log.info("%s: %d pairs; masks: changed is 1, no mask exceeds it", name, len(paths))
    else:
        log.info("%s: %d pairs; masks: one-bit files, changed is 1", name, len(paths))
    return binary


def highest_levels(paths: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Read masks in threads, a few ahead, and yield the highest level and the type's maximum of each."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), AHEAD):
            yield from pool.map(highest_level, paths[start : start + AHEAD])


def highest_level(path: Path) -> tuple[int, int]:
    """Read a mask, and return its highest level and the maximum of its type."""
    levels, maximum = read_levels(path)
    return int(np.max(levels)), maximum
