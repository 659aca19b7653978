"""Grouped cross-validation: `python -m change folds ROOT --folds 3`, after `python -m change check ROOT`.

Splits the pairs of one split into folds that keep connected tiles together. For fold K of data set NAME it writes
list/NAME-folds/K/train.txt and val.txt, for `train.py --root ROOT/train --list list/NAME-folds/K`. Use it to choose
settings without looking at val.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from change.common.errors import OneLineParser, UserError
from change.common.files import write_folder, write_whole
from change.data.groups import read_groups, results_folder


def make_folds(groups: Mapping[str, Sequence[str]], number: int) -> list[list[str]]:
    """Distribute groups of names over folds: the largest group first, each to the fold with the fewest names so far."""
    folds: list[list[str]] = [[] for _ in range(number)]
    for _, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        min(folds, key=len).extend(names)
    return [sorted(fold) for fold in folds]


def write_folds(folder: Path, folds: Sequence[Sequence[str]]) -> None:
    """Write the lists train.txt and val.txt of every fold to a new folder, completely or not at all.

    Raises UserError if the folder exists or cannot be written.
    """

    def write(aside: Path) -> None:
        for number, fold in enumerate(folds):
            others = sorted(name for other in folds if other is not fold for name in other)
            for part, names in (("train", others), ("val", fold)):
                write_whole(aside / str(number) / f"{part}.txt", ("\n".join(names) + "\n").encode())
        refuse_existing(folder)

    refuse_existing(folder)
    write_folder(folder, write)


def refuse_existing(folder: Path) -> None:
    """Raise UserError if a folder exists."""
    if folder.exists():
        raise UserError(f"{folder} already exists: choose another --list_path, or remove it")


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change folds`; return the exit code."""
    parser = OneLineParser(prog="python -m change folds", description="Write lists for grouped cross-validation.")
    parser.add_argument("root", metavar="ROOT", type=Path, help="a data set on which check was run")
    parser.add_argument("--folds", type=int, default=3, help="number of folds (default: 3)")
    parser.add_argument("--split", default="train", help="split whose pairs are used (default: train)")
    parser.add_argument("--check", type=Path, help="check.json; default: results/check/NAME of the data set")
    parser.add_argument("--list_path", type=Path, help="folder to create; default: list/NAME-folds")
    given = parser.parse_args(arguments)
    groups: dict[str, list[str]] = defaultdict(list)
    for pair, group in read_groups(given.check or results_folder(given.root) / "check.json").items():
        split, _, name = pair.rpartition("/")
        if split == given.split:
            groups[group].append(name)
    if not 2 <= given.folds <= len(groups):
        raise UserError(
            f"--folds {given.folds}: {given.split} has {len(groups)} groups of connected tiles; "
            "choose at least 2 folds, and at most as many as groups"
        )
    folder: Path = given.list_path or Path("list") / f"{given.root.resolve().name}-folds"
    folds = make_folds(groups, given.folds)
    write_folds(folder, folds)
    sizes = ", ".join(str(len(fold)) for fold in folds)
    sys.stdout.write(f"{len(groups)} groups in {given.folds} folds of {sizes} pairs: {folder}\n")
    return 0
