"""Change masks from land cover at two dates: any change, or one class per pair of land covers, "water -> tree".

Land cover is given as one mask per date: in colours (SECOND), where one colour marks unchanged pixels, or as numbers
(HRSCD), where another mask marks the changed pixels.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from change.change_dataloader import LABEL
from change.common.classes import BECOMES, Classes, parse_classes
from change.common.errors import UserError
from change.data.archives import Content
from change.data.cutting import decode
from change.data.downloads import Pairs
from change.data.made_masks import Counts, MakeMask, Mask, require_one_size

BEFORE_COVER, AFTER_COVER = "land cover before", "land cover after"  # kinds of files
NONE = 255  # the code of pixels without land cover
CHANGED = np.uint8(255)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LandCover:
    """How land cover is stored.

    Attributes:
        names: Names of the land covers. The first has code 0, and so on.
        colours: Their colours, as 0xRRGGBB; () if the masks hold the codes.
        unchanged: The colour of unchanged pixels. Without colours, the label of a pair marks the changed ones.
    """

    names: tuple[str, ...]
    colours: tuple[int, ...] = ()
    unchanged: int = 0xFFFFFF

    def codes(self, file: Content) -> Mask:
        """Read the codes of a mask, uint8 (H, W); NONE for unchanged pixels.

        Raises UserError for other colours or levels, and as `decode` does.
        """
        if not self.colours:
            levels = np.asarray(decode(file, is_mask=True))
            if levels.ndim > 2 or levels.max() >= len(self.names):
                raise UserError(f"{file} holds no land cover: levels go from 0 to {len(self.names) - 1}")
            return levels.astype(np.uint8)
        channels = np.asarray(decode(file, is_mask=False).convert("RGB")).astype(np.int32)
        pixels = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
        order = np.argsort([*self.colours, self.unchanged])
        known = np.array([*self.colours, self.unchanged])[order]
        places = np.searchsorted(known, pixels).clip(max=len(known) - 1)
        strange = known[places] != pixels
        if strange.any():
            raise UserError(
                f"{file} has {np.count_nonzero(strange)} pixels in other colours than those of land cover, such as "
                f"#{pixels[strange][0]:06X}: use the PNG files of the download"
            )
        codes = np.array([*range(len(self.names)), NONE], np.uint8)[order]
        return np.asarray(codes[places])

    def transitions(self, files: Mapping[str, Content]) -> tuple[Mask, Counts]:
        """Return for each pixel of a pair how its land cover changed, uint8 (H, W), and counts of contradictions.

        0 is unchanged; 1 + BEFORE * N + AFTER is a change from one of the N codes to another or to the same.
        """
        codes = {kind: self.codes(files[kind]) for kind in (BEFORE_COVER, AFTER_COVER)}
        require_one_size(files, codes)
        before, after = codes[BEFORE_COVER], codes[AFTER_COVER]
        counts: Counts = Counter()
        if self.colours:
            changed = (before != NONE) & (after != NONE)
            counts["have a land cover at one date only, and are marked as unchanged"] = int(
                np.count_nonzero((before != NONE) != (after != NONE))
            )
        else:
            changed = self.label(files[LABEL])
            require_one_size(files, {**codes, LABEL: changed})
        numbers = 1 + before * np.uint8(len(self.names)) + after  # meaningless for NONE
        return np.where(changed, numbers, 0).astype(np.uint8), +counts

    def label(self, file: Content) -> NDArray[np.bool_]:
        """Read which pixels a mask marks as changed, bool (H, W)."""
        levels = np.asarray(decode(file, is_mask=True))
        if levels.ndim > 2:
            raise UserError(f"{file} is a mask in colour: save one channel, 0 for unchanged and 1 for changed")
        return levels > 0

    def mark_change(self, files: Mapping[str, Content]) -> tuple[Mask, Counts]:
        """Make a mask of any change, uint8 (H, W) of 0 and 255, as a `MakeMask`."""
        if not self.colours:
            return self.label(files[LABEL]) * CHANGED, Counter()
        transitions, counts = self.transitions(files)
        return (transitions > 0) * CHANGED, counts

    # --- from-to classes -----------------------------------------------------------------------------------------

    def class_name(self, before: int, after: int) -> str:
        """Return the name of a class, such as "water -> tree"."""
        return f"{self.names[before]} {BECOMES} {self.names[after]}"

    def count(self, pairs: Iterable[Mapping[str, Content]], workers: int | None) -> NDArray[np.int64]:
        """Count the pixels of all pairs by land cover before and after, (N, N)."""

        def count_one(files: Mapping[str, Content]) -> NDArray[np.int64]:
            return self.count_pairs(self.transitions(files)[0])

        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(count_one, pairs), np.zeros((len(self.names), len(self.names)), np.int64))

    def count_pairs(self, transitions: Mask) -> NDArray[np.int64]:
        """Count the pixels of `transitions` by land cover before and after, (N, N)."""
        number = len(self.names)
        counts = np.array(PIL.Image.fromarray(transitions).histogram())  # needs less memory than np.bincount
        return counts[1 : 1 + number**2].reshape(number, number)

    def from_to(self, train: Pairs, workers: int | None) -> tuple[Classes, MakeMask]:
        """Find the classes that occur in train, and return them with the function that makes the masks.

        A pair of land covers is a class if it occurs in train in either order, because training also shows pairs with
        swapped dates. For pairs of other splits that are no class, see `substitute`.

        Args:
            train: The train pairs.
            workers: The number of threads; None for as many as there are cores.

        Raises:
            UserError: If nothing changes in train, or for the same reasons as `codes`.
        """
        counts = self.count(train.values(), workers)
        either = counts + counts.T - np.diag(np.diag(counts))
        listed = [(int(before), int(after)) for before, after in np.argwhere(either)]
        if not listed:
            raise UserError("no pixel of train changes, so there are no classes: is the download complete?")
        values = {pair: value for value, pair in enumerate(listed, start=1)}
        table = np.zeros(256, np.uint8)
        for before, after in product(range(len(self.names)), repeat=2):
            pair = values.get((before, after)) or values.get(substitute((before, after), either), 0)
            table[1 + before * len(self.names) + after] = pair

        def make(files: Mapping[str, Content]) -> tuple[Mask, Counts]:
            transitions, notes = self.transitions(files)
            there = self.count_pairs(transitions)
            for before, after in np.argwhere(there):
                if (before, after) in values:
                    continue
                name, value = self.class_name(before, after), int(table[1 + before * len(self.names) + after])
                if not value:
                    raise UserError(f"{files[AFTER_COVER]}: {name} has no counterpart in train: leave this pair out")
                used = self.class_name(*listed[value - 1])
                notes[f"are {name}, which train lacks, and are marked as {used}"] = int(there[before, after])
            return table[transitions], notes

        log.info("train has %d from-to classes, of %d possible ones", len(listed), either.size)
        return parse_classes(self.class_name(*pair) for pair in listed), make


def substitute(pair: tuple[int, int], counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return which class marks a pair of land covers that train lacks: the most frequent one with the same outcome.

    Without such a class, it is the most frequent one with the same land cover before. `counts`: pixels of train by land
    cover before and after, in either order, (N, N). If both land covers are missing in train, the pair is returned.
    """
    before, after = pair
    if counts[:, after].any():
        return int(counts[:, after].argmax()), after
    if counts[before].any():
        return before, int(counts[before].argmax())
    return pair
