"""New and vanished houses of S2Looking: masks of two classes from its label1 and label2.

The data set's description says that these "indicate the newly built and demolished building regions", in this order.
A wrong order would swap every class, so the images are checked too: the outlines of a house are sharper in the image
that shows it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from change.change_dataloader import AFTER, BEFORE, LABEL
from change.common.classes import DIRECTIONS, NEW, VANISHED, Classes, parse_classes
from change.common.errors import UserError
from change.common.images import LUMA
from change.data.archives import Content
from change.data.cutting import decode
from change.data.downloads import Pairs
from change.data.made_masks import Counts, MakeMask, Mask, require_one_size

LABEL_1, LABEL_2 = "label1", "label2"  # kinds of files
ASKED = 200  # train pairs whose outlines are measured
SHORTEST = 100  # pixels of outlines in a mask; masks with fewer do not vote
VOTES = 20  # masks that must vote for a verdict
CLEAR = 0.65  # share of the votes that makes a verdict clear

log = logging.getLogger(__name__)


def find_directions(train: Pairs) -> tuple[Classes, MakeMask]:
    """Return the classes new and vanished, and the function that makes the masks.

    Raises UserError as `read_marks` does.
    """
    new = find_new(train)
    vanished = LABEL_2 if new == LABEL_1 else LABEL_1

    def make(files: Mapping[str, Content]) -> tuple[Mask, Counts]:
        marks = {kind: read_marks(files[kind]) for kind in (new, vanished, LABEL)}
        require_one_size(files, marks)
        both, either = marks[new] & marks[vanished], marks[new] | marks[vanished]
        counts = Counter(
            {
                "are both new and vanished, and are marked as new": int(both.sum()),
                "are changed in label, but neither new nor vanished, and are marked as unchanged": int(
                    (marks[LABEL] & ~either).sum()
                ),
                "are new or vanished, but unchanged in label, and are marked": int((either & ~marks[LABEL]).sum()),
            }
        )
        return np.where(marks[new], NEW, np.where(marks[vanished], VANISHED, 0)).astype(np.uint8), +counts

    return parse_classes(DIRECTIONS), make


def read_marks(file: Content) -> NDArray[np.bool_]:
    """Read which pixels a mask marks, in any colour on black, as bool (H, W).

    Raises UserError if no pixel is bright, and as `decode` does.
    """
    levels = np.asarray(decode(file, is_mask=False).convert("RGB")).max(axis=2)
    if 0 < levels.max() < 128:
        raise UserError(f"{file} goes up to {levels.max()} of 255: marked pixels must be brighter than 127")
    return np.asarray(levels > 127)


# --- which label holds the new houses ------------------------------------------------------------------------------


def find_new(train: Pairs) -> str:
    """Return the kind of label that marks the new houses: label1, unless the images clearly say label2."""
    pairs = list(train.values())
    some = pairs[:: math.ceil(len(pairs) / ASKED)]
    with ThreadPoolExecutor() as pool:
        votes = [vote for voted in pool.map(ask_pair, some) for vote in voted]
    share = sum(votes) / max(1, len(votes))
    evidence = f"{sum(votes)} of {len(votes)} masks fit: outlines are sharper in the image that shows the houses"
    if len(votes) >= VOTES and share >= CLEAR:
        log.info("label1 holds the new houses, and label2 those that vanished (%s)", evidence)
    elif len(votes) >= VOTES and share <= 1 - CLEAR:
        log.warning("label1 holds the houses that vanished, and label2 the new ones, unlike published (%s)", evidence)
        return LABEL_2
    else:
        log.warning(
            "label1 is taken for the new houses, and label2 for those that vanished, but the images do not show it "
            "(%s): look at some pairs, and swap the names of the two folders if this is wrong",
            evidence,
        )
    return LABEL_1


def ask_pair(files: Mapping[str, Content]) -> list[bool]:
    """Return one vote per mask of a pair: whether label1 fits the image after, and label2 the image before."""
    outlines = {kind: find_outlines(read_marks(files[kind])) for kind in (LABEL_1, LABEL_2)}
    if not any(outline.sum() >= SHORTEST for outline in outlines.values()):
        return []
    sharpness = {kind: measure_sharpness(files[kind]) for kind in (BEFORE, AFTER)}
    require_one_size(files, {**outlines, **sharpness})
    votes = []
    for kind, shown in ((LABEL_1, AFTER), (LABEL_2, BEFORE)):
        outline = outlines[kind]
        if outline.sum() >= SHORTEST:
            other = BEFORE if shown == AFTER else AFTER
            votes.append(bool(sharpness[shown][outline].mean() > sharpness[other][outline].mean()))
    return votes


def find_outlines(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of bool (H, W) that differ from the neighbour above, below, left or right."""
    outline = np.zeros_like(marks)
    rows, columns = marks[1:] != marks[:-1], marks[:, 1:] != marks[:, :-1]
    outline[1:] |= rows
    outline[:-1] |= rows
    outline[:, 1:] |= columns
    outline[:, :-1] |= columns
    return outline


def measure_sharpness(file: Content) -> NDArray[np.float32]:
    """Return the gradient of an image's brightness, (H, W), divided by its mean."""
    grey = np.asarray(decode(file, is_mask=False).convert("RGB")).astype(np.float32) @ LUMA.astype(np.float32)
    gradient = np.hypot(*np.gradient(grey))
    return np.asarray(gradient / max(float(gradient.mean()), 1e-6), np.float32)
