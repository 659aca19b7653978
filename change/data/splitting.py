"""Set pairs aside for validation, so that no place lies in both parts.

Pairs that share an image, or whose images continue each other across a border, form a group, as in
`python -m change check`. Groups are never divided, unless there is only one.
"""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from change.common.errors import UserError, list_names
from change.common.files import make_folder
from change.common.names import natural_order
from change.data.archives import Content, File
from change.data.check import connect
from change.data.downloads import Pairs
from change.data.findings import compare
from change.data.masks import marks_with_one
from change.data.survey import Files, PairFacts, inspect_pairs

log = logging.getLogger(__name__)

ATTEMPTS = 100  # draws after which a val part without any change is accepted


@dataclass(frozen=True)
class Parts:
    """Names of the pairs of train and val in natural order, and what was done, in words."""

    train: list[str]
    val: list[str]
    summary: str


def split_off_val(complete: Sequence[Files], share: float, seed: int = 0) -> Parts:
    """Choose pairs for validation. The same pairs, share and seed always give the same choice.

    Args:
        complete: The files of all pairs, whose stems are unique.
        share: The share of pairs that val should get, above 0 and below 1.
        seed: Random seed.

    Raises:
        UserError: If there are fewer than two pairs, or if training would refuse one of them.
    """
    if len(complete) < 2:
        raise UserError(
            f"train and val need one pair each, but the number of pairs is {len(complete)}: give two or more"
        )
    facts, refused = inspect_pairs(complete)
    if refused:
        raise UserError(list_names(finding.text for finding in refused))
    facts.sort(key=lambda fact: natural_order(fact.pair.name))
    return choose_parts(facts, share, seed)


def choose_parts(facts: Sequence[PairFacts], share: float, seed: int) -> Parts:
    """Divide decoded pairs, in natural order, into train and val."""
    members: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(connect(facts, *compare(facts))[1]):
        members[group].append(number)
    groups = list(members.values())
    aim = min(max(1, round(share * len(facts))), len(facts) - 1)
    if len(groups) == 1:  # the last pairs in natural order: for tiles named by row, these touch the fewest others
        chosen = set(range(len(facts) - aim, len(facts)))
        log.warning(
            "all %d pairs show one place: train and val touch each other, so scores on val will be too high; "
            "add pairs from another place",
            len(facts),
        )
        how = f"the last of {len(facts)} pairs that show one place"
    else:
        chosen, used = choose_groups(groups, with_change(facts), aim, seed)
        how = f"{used} of {len(groups)} groups of connected tiles, drawn with seed {seed}"
    val = [fact.pair.name for number, fact in enumerate(facts) if number in chosen]
    train = [fact.pair.name for number, fact in enumerate(facts) if number not in chosen]
    return Parts(train, val, f"{len(val)} of {len(facts)} pairs become val: {how}")


def with_change(facts: Sequence[PairFacts]) -> set[int]:
    """Return the numbers of the pairs whose mask marks a change."""
    binary = marks_with_one([fact.mask for fact in facts if fact.mask])
    return {number for number, fact in enumerate(facts) if fact.mask and fact.mask.changed(binary)}


def choose_groups(groups: Sequence[Sequence[int]], marked: set[int], aim: int, seed: int) -> tuple[set[int], int]:
    """Choose groups for val at random, each of which brings the number of pairs nearer to `aim`.

    Draws are repeated until both parts hold a pair with change, if that is possible.

    Args:
        groups: At least two groups of numbers of pairs.
        marked: The numbers of the pairs with change.
        aim: The number of pairs that val should get.
        seed: Random seed.

    Returns:
        The numbers of the chosen pairs, and how many groups they form.
    """
    count = sum(map(len, groups))
    chosen: list[Sequence[int]] = []
    for attempt in range(ATTEMPTS):
        order = np.random.default_rng((seed, attempt)).permutation(len(groups))
        chosen, held = [], 0
        for group in (groups[number] for number in order):
            more = held + len(group)
            if abs(more - aim) < abs(held - aim) and more < count:
                chosen.append(group)
                held = more
        if not chosen:  # every group has at least twice as many pairs as val should get
            chosen = [min(groups, key=len)]
        pairs = {number for group in chosen for number in group}
        if marked & pairs and marked - pairs:
            break
    return {number for group in chosen for number in group}, len(chosen)


# --- pairs of a download ---------------------------------------------------------------------------------------


def set_val_aside(splits: dict[str, Pairs], share: float, seed: int) -> dict[str, Pairs]:
    """Return the splits of a download with a share of train as val.

    Raises UserError if there is a val split already or no train split, or as `split_off_val` does.
    """
    if "val" in splits or "train" not in splits:
        raise UserError(
            f"--val {share:g} divides a train split without val, but SOURCE has the splits {', '.join(splits)}: "
            "leave it out"
        )
    pairs = splits["train"]
    with tempfile.TemporaryDirectory() as folder:
        parts = split_off_val([("train", name, on_disk(pairs[name], Path(folder))) for name in pairs], share, seed)
    log.info("%s", parts.summary)
    train, val = ({name: pairs[name] for name in names} for names in (parts.train, parts.val))
    return {**splits, "train": train, "val": val}


def on_disk(files: Mapping[str, Content], folder: Path) -> dict[str, Path]:
    """Return the paths of a pair's files, which are written to `folder` if they are not on disk yet."""
    paths = {}
    for kind, file in files.items():
        if isinstance(file, File) and not file.entry:
            paths[kind] = file.path
        else:
            paths[kind] = make_folder(folder / kind) / file.name
            paths[kind].write_bytes(file.read())
    return paths
