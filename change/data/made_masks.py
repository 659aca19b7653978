"""Masks that `python -m change prepare` makes from several files of a pair, such as land cover at two dates."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from change.change_dataloader import AFTER, BEFORE, LABEL
from change.common.errors import UserError
from change.common.files import write_whole
from change.common.images import UNREADABLE, open_image
from change.data.archives import Content
from change.data.downloads import Pairs

Mask = NDArray[np.uint8]  # (H, W)
Counts = Counter[str]  # numbers of pixels of a mask, by what is to be reported about them

# From the files of a pair, by kind, to its mask. Raises UserError if the files contradict each other.
MakeMask = Callable[[Mapping[str, Content]], tuple[Mask, Counts]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MadeMask:
    """A mask that is stored as an 8-bit PNG.

    Attributes:
        name: The name of the file.
        files: The files of the pair, by kind.
        make: Makes the mask from them.
        counts: Where the counts of pixels go, by `name`. Threads write to it.
    """

    name: str
    files: Mapping[str, Content]
    make: MakeMask
    counts: dict[str, Counts]

    def __str__(self) -> str:
        return f"the mask made from {', '.join(str(file) for kind, file in self.files.items() if is_mask(kind))}"

    def pixels(self) -> Mask:
        """Return the mask, uint8 (H, W), and note the counts."""
        mask, self.counts[self.name] = self.make(self.files)
        return mask

    def read(self) -> bytes:
        """Return the mask as a PNG file."""
        data = io.BytesIO()
        PIL.Image.fromarray(self.pixels()).save(data, "PNG")
        return data.getvalue()

    def same(self, target: Path) -> bool:
        """Tell whether the file `target` has these pixels."""
        try:
            with open_image(target) as there:
                return np.array_equal(np.asarray(there), self.pixels())
        except UNREADABLE:
            return False

    def put(self, target: Path) -> str:
        """Write the file `target`; return "made"."""
        write_whole(target, self.read())
        return "made"


def is_mask(kind: str) -> bool:
    """Tell whether files of a kind are masks rather than images."""
    return kind not in (BEFORE, AFTER)


def make_masks(
    splits: Mapping[str, Pairs], make: MakeMask | None
) -> tuple[dict[str, Pairs], dict[str, dict[str, Counts]]]:
    """Return pairs of before, after and mask; and by split and file name, where the counts of their pixels will be.

    Args:
        splits: Pairs by split, which may have files of other kinds.
        make: Makes the masks; None to use those of the download, if there are any.
    """
    made: dict[str, Pairs] = {}
    counts: dict[str, dict[str, Counts]] = {}
    for split, pairs in splits.items():
        made[split], counts[split] = {}, {}
        for name, files in pairs.items():
            made[split][name] = {kind: file for kind, file in files.items() if kind in (BEFORE, AFTER, LABEL)}
            if make:
                made[split][name][LABEL] = MadeMask(f"{name}.png", files, make, counts[split])
    return made, counts


def report_counts(folder: Path, counts: Mapping[str, Counts]) -> None:
    """Log a warning for each kind of pixel that was counted in the masks of a split's folder."""
    total: Counts = Counter()
    for mask in counts.values():
        total += mask
    for what, pixels in sorted(total.items()):
        log.warning("%s: %d pixels %s", folder, pixels, what)


def require_one_size(files: Mapping[str, Content], masks: Mapping[str, NDArray[np.generic]]) -> None:
    """Raise UserError if decoded masks (H, W) of a pair, by kind, differ in size."""
    sizes = {f"{files[kind]} {mask.shape[1]}x{mask.shape[0]}": mask.shape[:2] for kind, mask in masks.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"sizes differ: {', '.join(sizes)}")
