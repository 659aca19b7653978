"""Check a data set: `python -m change check ROOT`.

Every file is decoded once, and every image is compared with every other. A finding has one of four ranks:

    error    training would stop or misread the data
    leak     two splits show the same place: they share an image, or tiles of one continue tiles of the other
    warning  worth a look: dates that are shifted, masks of more than two values, an image that occurs twice
    note     good to know: empty masks, tiles that continue each other within a split

The results are contact sheets of the findings, and check.json. This file holds the findings, a summary of each split
and, for each pair, its hashes, its group of connected tiles and the pairs it meets. test.py computes its intervals from
these groups. The exit code is 1 if there are errors or leaks.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from change.common.classes import find_classes
from change.common.errors import OneLineParser, UserError, list_names
from change.common.files import make_folder, write_whole
from change.common.logs import start_logging
from change.common.union_find import connected_components
from change.data.contact_sheets import Row, write_sheets
from change.data.findings import (
    CONFIDENT,
    Copies,
    border_findings,
    compare,
    copy_findings,
    mask_findings,
    shift_findings,
)
from change.data.groups import results_folder
from change.data.similarity import Link
from change.data.survey import Files, Finding, PairFacts, find_files, inspect_pairs, measure_files

RANKS = ("error", "leak", "warning", "note")
SHOWN = 3  # findings of a kind that are printed


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change check`; return the exit code."""
    parser = OneLineParser(
        prog="python -m change check",
        description="Check a data set: files, masks, leaks, borders. The exit code is 1 if there are errors or leaks.",
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of train, val, test, or of A, B, label")
    parser.add_argument(
        "--list", metavar="FOLDER", type=Path, help="folder of train.txt, val.txt, test.txt (default: ROOT/list)"
    )
    parser.add_argument(
        "--save_path", metavar="FOLDER", type=Path, help="folder for the results (default: results/check/NAME)"
    )
    parser.add_argument("--bands", default="", help="bands to read, as in train.py (default: 8-bit RGB)")
    parser.add_argument("--rgb_bands", default="", help="bands that are red, green and blue, as in train.py")
    given = parser.parse_args(arguments)
    if given.rgb_bands and not given.bands:
        raise UserError("--rgb_bands has no effect without --bands: add it, or leave it out")
    start_logging()
    root: Path = given.root
    found, complete = find_files(root, given.list)
    folder = make_folder(given.save_path or results_folder(root))
    channels = measure_files(complete, given.bands, given.rgb_bands) if given.bands else None
    classes = find_classes(root)
    facts, refused = inspect_pairs(complete, channels, indexed=classes is not None)
    copies, borders = compare(facts)
    found += refused + mask_findings(facts, classes) + shift_findings(facts)
    found += copy_findings(facts, copies) + border_findings(facts, borders)
    found.sort(key=lambda finding: (RANKS.index(finding.rank), finding.kind, finding.pairs))
    sheets = write_sheets(folder, rows_for_sheets(facts, found, borders), channels)
    neighbours, groups = connect(facts, copies, borders)
    result = {
        "root": str(root.resolve()),
        "splits": summarise_splits(complete, facts, neighbours, groups),
        "findings": [asdict(finding) for finding in found],
        "pairs": describe_pairs(facts, neighbours, groups),
    }
    write_whole(folder / "check.json", (json.dumps(result, indent=1) + "\n").encode())
    report(result, found, [folder / "check.json", *sheets])
    return 1 if any(finding.rank in ("error", "leak") for finding in found) else 0


def connect(
    facts: Sequence[PairFacts], copies: Sequence[Copies], borders: Sequence[Link]
) -> tuple[list[set[int]], list[int]]:
    """Connect pairs that share an image or continue each other.

    Returns:
        For each pair, the numbers of the pairs it meets, and the smallest number of its group of connected pairs.
    """
    meets = [(link.first, link.second) for link in borders]
    for copy in copies:
        meets += [(first, second) for first in copy.members for second in copy.members if first != second]
    neighbours: list[set[int]] = [set() for _ in facts]
    for first, second in meets:
        neighbours[first].add(second)
        neighbours[second].add(first)
    return neighbours, connected_components(len(facts), meets)


def summarise_splits(
    complete: Sequence[Files], facts: Sequence[PairFacts], neighbours: Sequence[set[int]], groups: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Summarise each split for check.json: pairs, sizes, groups, pairs that meet another split, and shift."""
    splits = {}
    for name in dict.fromkeys(split for split, _, _ in complete):
        members = [number for number, pair in enumerate(facts) if pair.split == name]
        sizes = [facts[number].pair.size for number in members]
        shifts = [facts[number].shift for number in members if facts[number].shift.confidence > CONFIDENT]
        splits[name] = {
            "pairs": sum(split == name for split, _, _ in complete),
            "decoded": len(members),
            "sizes": dict(Counter(f"{width}x{height}" for width, height in sizes)),
            "groups": len({groups[number] for number in members}),
            "meeting_another_split": sum(
                any(facts[other].split != name for other in neighbours[number]) for number in members
            ),
            "median_shift": float(np.median([np.hypot(shift.x, shift.y) for shift in shifts])) if shifts else None,
        }
    return splits


def describe_pairs(
    facts: Sequence[PairFacts], neighbours: Sequence[set[int]], groups: Sequence[int]
) -> list[dict[str, Any]]:
    """Describe each pair for check.json."""
    return [
        {
            "pair": pair.key,
            "hashes": list(pair.hashes),
            "group": facts[groups[number]].key,
            "meets": sorted(facts[other].key for other in neighbours[number]),
            "shift": [round(value, 2) for value in pair.shift],
        }
        for number, pair in enumerate(facts)
    ]


def rows_for_sheets(
    facts: Sequence[PairFacts], found: Sequence[Finding], borders: Sequence[Link]
) -> dict[str, list[Row]]:
    """Return the findings that can be shown, by kind, as rows of contact sheets."""
    pairs = {pair.key: pair.pair for pair in facts}
    sides = {(facts[link.first].key, facts[link.second].key): link for link in borders}
    rows: dict[str, list[Row]] = {}
    for finding in found:
        shown = [pairs[key] for key in finding.pairs if key in pairs][:2]
        if shown:
            link = sides.get((finding.pairs[0], finding.pairs[1])) if len(finding.pairs) == 2 else None
            join = link.side if link and link.side != link.other else ""
            row = Row(finding.text, shown, join, checkered=finding.kind == "dates shifted")
            rows.setdefault(finding.kind, []).append(row)
    return rows


def report(result: dict[str, Any], found: Sequence[Finding], written: Sequence[Path]) -> None:
    """Print the table of splits, the findings by kind, and what was written."""
    lines = [f"{'split':<8}{'pairs':>7}{'groups':>8}{'meeting another split':>23}{'median shift':>14}  sizes"]
    for name, split in result["splits"].items():
        apart = "-" if split["median_shift"] is None else f"{split['median_shift']:.1f} px"
        sizes = list_names((f"{size} ({count})" for size, count in split["sizes"].items()), SHOWN)
        lines.append(
            f"{name:<8}{split['pairs']:>7}{split['groups']:>8}{split['meeting_another_split']:>23}{apart:>14}  {sizes}"
        )
    for (rank, kind), number in Counter((finding.rank, finding.kind) for finding in found).items():
        lines.append(f"{rank}: {kind}: {number}")
        texts = [finding.text for finding in found if (finding.rank, finding.kind) == (rank, kind)]
        lines += [f"    {text}" for text in texts[:SHOWN]]
        if len(texts) > SHOWN:
            lines.append(f"    and {len(texts) - SHOWN} more")
    if not found:
        lines.append("nothing found")
    lines.append(f"written: {', '.join(str(path) for path in written)}")
    sys.stdout.write("\n".join(lines) + "\n")
