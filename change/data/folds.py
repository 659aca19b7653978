"""Grouped cross-validation: `python -m change folds ROOT --folds 3`, after `python -m change check ROOT`.

Splits one split's pairs into folds that keep connected tiles together, and writes for fold K of a data set NAME
list/NAME-folds/K/train.txt and val.txt, for `train.py --root ROOT/train --list list/NAME-folds/K`. For what is to be
chosen without looking at val.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from change.common.errors import OneLineParser, UserError
from change.common.files import make_folder
from change.data.groups import read_groups, results_folder


def make_folds(groups: Mapping[str, Sequence[str]], number: int) -> list[list[str]]:
    """Spread groups of names over folds, the largest group first, each to the fold that has fewest names so far."""
    folds: list[list[str]] = [[] for _ in range(number)]
    for _, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        min(folds, key=len).extend(names)
    return [sorted(fold) for fold in folds]


def main(arguments: Sequence[str]) -> int:
    """`python -m change folds`; return the exit code."""
    parser = OneLineParser(prog="python -m change folds", description="Lists for grouped cross-validation.")
    parser.add_argument("root", metavar="ROOT", type=Path, help="a data set that check has looked at")
    parser.add_argument("--folds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--split", default="train", help="which split's pairs (default: train)")
    parser.add_argument("--check", type=Path, help="check.json; default results/check/NAME of the data set")
    parser.add_argument("--list_path", type=Path, help="folder to make; default list/NAME-folds")
    given = parser.parse_args(arguments)
    groups: dict[str, list[str]] = defaultdict(list)
    for pair, group in read_groups(given.check or results_folder(given.root) / "check.json").items():
        split, _, name = pair.rpartition("/")
        if split == given.split:
            groups[group].append(name)
    if not 2 <= given.folds <= len(groups):
        raise UserError(
            f"--folds {given.folds}: {given.split} has {len(groups)} groups of connected tiles; choose 2 to as many"
        )
    folder: Path = given.list_path or Path("list") / f"{given.root.resolve().name}-folds"
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another --list_path, or remove it")
    folds = make_folds(groups, given.folds)
    make_folder(folder.parent)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for number, fold in enumerate(folds):
            (aside / str(number)).mkdir()
            others = sorted(name for other in folds if other is not fold for name in other)
            for part, names in (("train", others), ("val", fold)):
                (aside / str(number) / f"{part}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        aside.chmod(0o755)
        aside.replace(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sizes = ", ".join(str(len(fold)) for fold in folds)
    sys.stdout.write(f"{len(groups)} groups in {given.folds} folds of {sizes} pairs: {folder}\n")
    return 0
