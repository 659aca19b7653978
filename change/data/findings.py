"""The findings of `python -m change check` about decoded pairs: masks, shifts, copies of images, shared borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from change.common.classes import Classes
from change.common.errors import list_names
from change.common.union_find import connected_components
from change.data.masks import (
    LevelCounts,
    fault_of_classes,
    fault_of_mask,
    marks_with_one,
    mostly_marked,
    share_of_change,
)
from change.data.similarity import Link, find_copies, find_links
from change.data.survey import Finding, PairFacts

SHIFTED = 5.0  # pixels: larger shifts between the dates are reported
CONFIDENT = 0.05  # shifts of lower confidence are regarded as chance


def mask_findings(facts: Sequence[PairFacts], classes: Classes | None = None) -> list[Finding]:
    """Report what training refuses about masks and splits of masks, and what is odd.

    `classes`: those of the masks; None for masks without.
    """
    found: list[Finding] = []
    for split in dict.fromkeys(pair.split for pair in facts):
        masks = {pair.key: (pair, pair.mask) for pair in facts if pair.split == split and pair.mask}
        counts = [mask for _, mask in masks.values()]
        if not counts:
            continue
        binary = classes is not None or marks_with_one(counts)
        for pair, mask in masks.values():
            found += findings_of_mask(pair, mask, binary, classes)
        changed = share_of_change(counts, binary)
        if changed == 0 and not any(fault_of_mask(mask, binary) for mask in counts):
            text = f"{split}: no mask marks any change: check the label folder"
            found.append(Finding("error" if split == "train" else "warning", "split without change", text))
        elif warning := mostly_marked(split, changed):
            found.append(Finding("warning", "split mostly marked", warning))
    return found


def findings_of_mask(
    facts: PairFacts, mask: LevelCounts, binary: bool, classes: Classes | None = None
) -> list[Finding]:
    """Report what is odd about one mask. `binary`: the split's masks mark change with 1, or hold `classes`."""
    path, changed = mask.path, mask.changed(binary)
    found: list[tuple[str, str, str]] = []
    if classes is not None:
        if fault := fault_of_classes(mask, classes):
            found.append(("error", "mask value that is no class", fault))
    else:
        found += findings_of_levels(mask, binary)
    if changed == 0:
        found.append(("note", "mask empty", f"{path} marks no pixel as changed"))
    elif changed == mask.pixels:
        found.append(("warning", "mask full", f"{path} marks every pixel as changed"))
    elif facts.hashes[0] == facts.hashes[1]:
        text = f"{facts.pair.before} and {facts.pair.after} are the same image, and {path} marks change"
        found.append(("error", "before is after", text))
    return [Finding(rank, kind, text, (facts.key,)) for rank, kind, text in found]


def findings_of_levels(mask: LevelCounts, binary: bool) -> list[tuple[str, str, str]]:
    """Return the rank, kind and text of what is odd about the levels of a mask without classes."""
    path, levels = mask.path, mask.counts
    found: list[tuple[str, str, str]] = []
    if len(levels) > 2 or (len(levels) == 2 and min(levels) > 0):
        text = f"{path} has {len(levels)} values, {list_names(levels, 5)}: changed is above {mask.maximum // 2}"
        found.append(("warning", "mask not of two values", text))
    if fault := fault_of_mask(mask, binary):
        found.append(("error", "mask marks with other values", fault))
    elif mask.maximum > 1 and binary and max(levels) == 1:
        found.append(("note", "mask of 0 and 1", f"{path} marks change with 1, and is read accordingly"))
    return found


def shift_findings(facts: Sequence[PairFacts]) -> list[Finding]:
    """Report pairs whose dates are shifted against each other."""
    found = []
    for pair in facts:
        x, y, confidence = pair.shift
        if confidence > CONFIDENT and np.hypot(x, y) > SHIFTED:
            text = f"{pair.key}: after lies {x:+.0f}, {y:+.0f} pixels from before (confidence {confidence:.2f})"
            found.append(Finding("warning", "dates shifted", text, (pair.key,)))
    return found


@dataclass(frozen=True)
class Copies:
    """Pairs that show the same image: their numbers, and how the copies differ, such as "turned 90 degrees"."""

    members: list[int]
    how: str


def compare(facts: Sequence[PairFacts]) -> tuple[list[Copies], list[Link]]:
    """Compare every pair with every other; return those that share an image, and those that continue each other."""
    if not facts:
        return [], []
    shared = find_shared_images(facts)
    roots = connected_components(len(facts), shared)
    copies = []
    for group in sorted({roots[first] for first, _ in shared}):
        members = [number for number, root in enumerate(roots) if root == group]
        how = sorted({text for (first, _), text in shared.items() if roots[first] == group})
        copies.append(Copies(members, ", ".join(how)))
    found = find_links([pair.edges[0] for pair in facts], [pair.edges[1] for pair in facts])
    return copies, [link for link in found if roots[link.first] != roots[link.second]]


def find_shared_images(facts: Sequence[PairFacts]) -> dict[tuple[int, int], str]:
    """Return, for every two pairs that share an image, their numbers and how the copies differ."""
    thumbs = np.stack([thumb for pair in facts for thumb in pair.thumbs])  # before and after of each pair, in turn
    how: dict[tuple[int, int], str] = {}
    first_with: dict[str, int] = {}
    for index, digest in enumerate(digest for pair in facts for digest in pair.hashes):
        first = first_with.setdefault(digest, index)
        if first != index and thumbs[index].std() > 0:  # blank images are alike, but not copies
            how[first, index] = "the same pixels"
    for first, second, symmetry in find_copies(thumbs):
        how.setdefault((first, second), "nearly the same pixels" if symmetry == "as it is" else symmetry)
    return {(first // 2, second // 2): text for (first, second), text in how.items() if first // 2 != second // 2}


def copy_findings(facts: Sequence[PairFacts], copies: Sequence[Copies]) -> list[Finding]:
    """Report images that occur in several pairs. If the pairs are in several splits, this is a leak."""
    found = []
    for copy in copies:
        members = [facts[number] for number in copy.members]
        leaks = len({pair.split for pair in members}) > 1
        keys = tuple(pair.key for pair in members)
        text = f"{list_names(keys, 10)} show one image ({copy.how})"
        found.append(Finding("leak" if leaks else "warning", f"one image {scope(leaks)}", text, keys))
    return found


def border_findings(facts: Sequence[PairFacts], borders: Sequence[Link]) -> list[Finding]:
    """Report tiles that continue each other, or one of which was cut from the other. Across splits, this is a leak."""
    found = []
    for link in borders:
        first, second = facts[link.first], facts[link.second]
        leaks = first.split != second.split
        if link.side == link.other:
            kind, text = "shared edge", f"{first.key} shares its {link.side} edge with {second.key}"
        else:
            kind, text = "continued", f"{first.key} is continued at its {link.side} by {second.key}"
        text += f" (correlation {link.score:.2f})"
        rank = "leak" if leaks else "note"
        found.append(Finding(rank, f"{kind} {scope(leaks)}", text, (first.key, second.key)))
    return found


def scope(leaks: bool) -> str:
    """Return the last words of a kind of finding."""
    return "across splits" if leaks else "within a split"
