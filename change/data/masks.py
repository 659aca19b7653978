"""The mask convention: which levels of a mask mean changed, for training and for `python -m change check` alike.

One-bit masks mark change with 1. For the other masks of a split there are two cases. If no level in any of them exceeds
1, they also mark change with 1. Otherwise levels above half of their type's range mean changed (from 128 of 255, from
32768 of 65535). Two kinds of masks are refused, because their meaning would be lost: those that have levels above 0,
all of which would be read as unchanged, and those that hold class numbers, such as 1, next to the highest level, which
then means "to be ignored". JPEG masks are exempt, because their black is rarely exactly 0.

Masks with classes hold the values 0 to K, see `change.common.classes`. They are read exactly: any other value is
refused, and so is JPEG. If they have a palette, its indices are the values.

Shapes: levels and masks are (H, W).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from change.common.classes import Classes
from change.common.errors import UserError, list_names
from change.common.images import Image
from change.data.mask_levels import Levels, read_levels

CLASSES = 31  # the highest level that is regarded as a class number
STRAY = 0.01  # share of the marked pixels that may have other levels than the highest
MOSTLY = 0.5  # share of marked pixels in a split above which a warning is due

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LevelCounts:
    """The number of pixels of a mask at each grey level that occurs, the maximum of its type, and `Levels.lossy`."""

    path: Path
    counts: dict[int, int]
    maximum: int
    lossy: bool

    @property
    def highest(self) -> int:
        """The highest level."""
        return max(self.counts)

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return sum(self.counts.values())

    def changed(self, binary: bool) -> int:
        """Return the number of changed pixels. `binary`: the split's masks mark change with 1."""
        above = unchanged_up_to(self.maximum, binary)
        return sum(count for level, count in self.counts.items() if level > above)


# --- one mask ------------------------------------------------------------------------------------------------------


def read_mask(path: Path, binary: bool) -> Image:
    """Read a mask as uint8 (H, W) of 0 and 1. `binary`: the split's masks mark change with 1, see `marks_with_one`.

    Raises UserError for the same reasons as `read_levels`, and for a mask whose meaning would be lost.
    """
    levels = read_levels(path)
    if fault := fault_of_mask(count_levels(path, levels), binary):
        raise UserError(fault)
    return np.asarray(levels.pixels > unchanged_up_to(levels.maximum, binary), np.uint8)


def read_class_mask(path: Path, classes: Classes) -> Image:
    """Read a mask with classes as uint8 (H, W) of values from 0 to K.

    Raises UserError for the same reasons as `read_levels`, for another value, and for JPEG.
    """
    levels = read_levels(path, indexed=True)
    if fault := fault_of_classes(count_levels(path, levels), classes):
        raise UserError(fault)
    return np.asarray(levels.pixels, np.uint8)


def count_levels(path: Path, levels: Levels) -> LevelCounts:
    """Count how often each grey level of a mask occurs.

    Masks are counted in threads, and processes are forked soon after, so OpenCV must not be used here: a thread that
    has used it takes one of its locks as it ends, and in a process that is forked just then, the lock stays taken.
    """
    pixels = levels.pixels
    if pixels.dtype == np.uint8:  # Pillow is faster
        counts = np.array(PIL.Image.fromarray(pixels).histogram())
    else:
        counts = np.bincount(pixels.ravel())
    found = {int(level): int(counts[level]) for level in np.flatnonzero(counts)}
    return LevelCounts(path, found, levels.maximum, levels.lossy)


def unchanged_up_to(maximum: int, binary: bool) -> float:
    """Return the level up to which pixels are unchanged, in a mask whose type has this maximum."""
    if binary or maximum == 1:
        return 0
    return maximum / 2


def fault_of_mask(mask: LevelCounts, binary: bool) -> str:
    """Return an error message if the meaning of a mask would be lost, else "".

    `binary`: the split's masks mark change with 1. The file must have been read without error.
    """
    limit = unchanged_up_to(mask.maximum, binary)
    if mask.lossy or limit == 0:
        return ""
    if 0 < mask.highest <= limit:
        why = "but other masks exceed 1" if mask.highest == 1 else f"but changed is above half of {mask.maximum}"
        return f"{mask.path} goes up to {mask.highest}, {why}: it would be read as unchanged; save changed as 255"
    classes = [level for level in mask.counts if 0 < level <= min(CLASSES, limit)]
    between = any(CLASSES < level < mask.maximum for level in mask.counts)
    marked = mask.pixels - mask.counts.get(0, 0)
    if classes and not between and sum(mask.counts[level] for level in classes) > STRAY * marked:
        return (
            f"{mask.path} marks with {list_names(classes, 5)} and with {mask.highest}: pixels cannot be ignored, "
            f"{mask.highest} would be read as changed and {classes[0]} as unchanged; save 0 for unchanged and 255 for "
            "changed"
        )
    return ""


def fault_of_classes(mask: LevelCounts, classes: Classes) -> str:
    """Return an error message if a mask holds a value that is no class, or is a JPEG file, else ""."""
    if mask.lossy:
        return f"{mask.path} is a JPEG file, which does not keep the values of classes: save masks as PNG"
    others = [level for level in mask.counts if level > len(classes.names)]
    if not others:
        return ""
    more = f" and {len(others) - 1} more values" if len(others) > 1 else ""
    return (
        f"{mask.path} has {mask.counts[others[0]]} pixels of value {others[0]}{more}, and there are "
        f"{classes.described()} with the values 1 to {len(classes.names)}: correct the mask, or list all classes"
    )


# --- the masks of a split ------------------------------------------------------------------------------------------


class MaskRule(NamedTuple):
    """How the masks of a split are read.

    Attributes:
        binary: whether they mark change with 1.
        changed: the share of pixels that they mark.
        shares: the shares of unchanged and of each class in all pixels; empty for masks without classes.
    """

    binary: bool
    changed: float
    shares: tuple[float, ...] = ()


def marks_with_one(masks: Iterable[LevelCounts]) -> bool:
    """Tell whether a split's masks mark change with 1."""
    return all(mask.highest <= 1 for mask in masks if mask.maximum > 1)


def share_of_change(masks: Sequence[LevelCounts], binary: bool) -> float:
    """Return the share of changed pixels of all masks together."""
    return sum(mask.changed(binary) for mask in masks) / max(1, sum(mask.pixels for mask in masks))


def mostly_marked(name: str, changed: float) -> str:
    """Return a warning if more than half of the pixels of split `name` are marked as changed, else ""."""
    if changed <= MOSTLY:
        return ""
    return f"{name}: {changed:.0%} of the pixels are marked as changed: check that the masks are not inverted"


def find_rule(name: str, paths: Sequence[Path]) -> MaskRule:
    """Read all masks of split `name`, in threads. Log the rule that was found, and what is odd.

    Raises UserError as `read_mask` does.
    """
    masks, faults = count_masks(paths)
    binary = marks_with_one(masks)
    refuse_faults(faults + [fault for mask in masks if (fault := fault_of_mask(mask, binary))])
    changed = share_of_change(masks, binary)
    log_rule(name, masks, binary, changed)
    return MaskRule(binary, changed)


def find_class_rule(name: str, paths: Sequence[Path], classes: Classes) -> MaskRule:
    """Read all masks of split `name`, in threads, and log the shares of the classes.

    Raises UserError as `read_class_mask` does.
    """
    masks, faults = count_masks(paths, indexed=True)
    refuse_faults(faults + [fault for mask in masks if (fault := fault_of_classes(mask, classes))])
    pixels = [sum(mask.counts.get(value, 0) for mask in masks) for value in range(1 + len(classes.names))]
    shares = [count / sum(pixels) for count in pixels]
    found = [f"{shown} {share:.2%}" for shown, share in zip(classes.names, shares[1:], strict=True) if share]
    log.info("%s: %d pairs; classes in percent of the pixels: %s", name, len(masks), list_names(found, 8) or "none")
    if warning := mostly_marked(name, 1 - shares[0]):
        log.warning("%s", warning)
    return MaskRule(True, sum(shares[1:]), tuple(shares))


def count_masks(paths: Sequence[Path], indexed: bool = False) -> tuple[list[LevelCounts], list[str]]:
    """Count the levels of masks, in threads; return them, and errors for those that cannot be read."""

    def count(path: Path) -> LevelCounts | str:
        try:
            return count_levels(path, read_levels(path, indexed))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(count, paths))
    masks = [result for result in results if isinstance(result, LevelCounts)]
    return masks, [result for result in results if isinstance(result, str)]


def refuse_faults(faults: Sequence[str]) -> None:
    """Raise the first of the errors of masks, if there are any."""
    if faults:
        more = f" ({len(faults) - 1} more masks have faults: python -m change check lists them)"
        raise UserError(faults[0] + (more if len(faults) > 1 else ""))


def log_rule(name: str, masks: Sequence[LevelCounts], binary: bool, changed: float) -> None:
    """Log how the masks of split `name` are read, and warn of what is odd."""
    if changed == 0:
        log.warning("%s: %d pairs; no mask marks any change: check the label folder", name, len(masks))
    elif not binary:
        log.info("%s: %d pairs; masks: levels above half of the type's range are read as changed", name, len(masks))
    elif any(mask.maximum > 1 and mask.highest == 1 for mask in masks):
        log.info("%s: %d pairs; masks: 1 is read as changed, no mask has a higher level", name, len(masks))
    else:
        log.info("%s: %d pairs; masks: one-bit files, 1 is read as changed", name, len(masks))
    if warning := mostly_marked(name, changed):
        log.warning("%s", warning)
    several = [mask for mask in masks if not mask.lossy and len(mask.counts) > 2]
    if several:
        log.warning(
            "%s: %d masks have more than two values, such as %s with %s: changed is above %d",
            name,
            len(several),
            several[0].path,
            list_names(several[0].counts, 5),
            several[0].maximum // 2,
        )
