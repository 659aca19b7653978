"""The data set's doctor: `python -m change check ROOT`.

Every file is decoded once, every image is compared with every other. What is found has one of four ranks:

    error    training stops on it, or would read it wrongly
    leak     val or test shows what train shows: one image in two splits, tiles that continue each other across splits
    warning  worth a look: dates that are shifted, masks of more than two values, one image twice
    note     to be known: empty masks, tiles that continue each other within a split

Written are check.json (findings, and for every pair its hashes, its group of connected tiles and whom it borders;
test.py reads it for its intervals) and sheets with pictures of what was found. Exit code 1 with errors or leaks.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from change.change_dataloader import AFTER, BEFORE, LABEL, SPLITS, Pair, check_headers, files_by_stem, read_list
from change.common.errors import OneLineParser, UserError, listed
from change.common.files import make_folder, write_whole
from change.common.images import Image, image_hash, read_image, read_levels
from change.common.logs import start_logging
from change.common.union_find import connected_components
from change.data.contact_sheets import Row, write_sheets
from change.data.groups import results_folder
from change.data.similarity import Link, Shift, alike, edges, links, shift, thumbnail

RANKS = ("error", "leak", "warning", "note")
SHIFTED, CONFIDENT = 5.0, 0.05  # pixels between the dates, and the confidence below which a shift is chance
SHOWN = 3  # findings of a kind named on the console

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `pairs`: "split/name" of those it concerns, the first ones of which are pictured."""

    rank: str
    kind: str
    text: str
    pairs: tuple[str, ...] = ()


@dataclass
class Looked:
    """What is kept of a decoded pair. `levels`: of the mask, by grey level; `maximum`: of the mask's type."""

    split: str
    pair: Pair
    hashes: tuple[str, str]
    thumbs: tuple[Image, Image]
    edges: tuple[list[Image], list[Image]]
    shift: Shift
    levels: dict[int, int] = field(default_factory=dict)
    maximum: int = 1

    @property
    def key(self) -> str:
        """What findings call it."""
        return f"{self.split}/{self.pair.name}"

    def changed(self, binary: bool) -> float:
        """The share of changed pixels, under the split's rule."""
        above = 0 if binary or self.maximum == 1 else self.maximum / 2
        return sum(n for level, n in self.levels.items() if level > above) / max(1, sum(self.levels.values()))


def main(arguments: Sequence[str]) -> int:
    """Parse, look, report; return the exit code."""
    parser = OneLineParser(prog="python -m change check", description="Check a data set: files, masks, leaks, borders.")
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of train, val, test, or of A, B, label")
    parser.add_argument("--list", metavar="FOLDER", type=Path, help="train.txt, val.txt, test.txt; default ROOT/list")
    parser.add_argument("--save_path", metavar="FOLDER", type=Path, help="for results; default results/check/NAME")
    given = parser.parse_args(arguments)
    start_logging()
    root: Path = given.root
    found, triples = survey(root, given.list)
    folder = make_folder(given.save_path or results_folder(root))
    looked, more = look_at_all(triples)
    found += more + mask_findings(looked) + shift_findings(looked)
    copies, borders = compare(looked)
    found += copy_findings(looked, copies) + border_findings(looked, borders)
    found.sort(key=lambda finding: (RANKS.index(finding.rank), finding.kind, finding.pairs))
    sheets = write_sheets(folder, pictured(looked, found, borders))
    result = summary(root, triples, looked, found, copies, borders)
    write_whole(folder / "check.json", (json.dumps(result, indent=1) + "\n").encode())
    report(result, found, [folder / "check.json", *sheets])
    return 1 if any(finding.rank in ("error", "leak") for finding in found) else 0


# --- files ---------------------------------------------------------------------------------------------------------

Triple = tuple[str, str, dict[str, Path]]  # split, stem, and the files by folder


def survey(root: Path, lists: Path | None) -> tuple[list[Finding], list[Triple]]:
    """The files of all splits by stem, whole or not, and what is missing. Raises UserError where no split is found."""
    if not root.is_dir():
        raise UserError(f"no folder {root}: check the path of the data set")
    folders = {split: root / split for split in SPLITS if (root / split / BEFORE).is_dir()}
    names: dict[str, list[str]] = {}
    if not folders and (root / BEFORE).is_dir():
        lists = lists or root / "list"
        names = {split: read_list(lists / f"{split}.txt") for split in SPLITS if (lists / f"{split}.txt").is_file()}
        folders = dict.fromkeys(names, root) or {root.resolve().name: root}
    if not folders:
        raise UserError(f"{root} holds neither train, val or test, nor {BEFORE}, {AFTER} and {LABEL}: check the path")
    found: list[Finding] = []
    triples: list[Triple] = []
    for split, folder in folders.items():
        files = {sub: files_by_stem(folder / sub) for sub in (BEFORE, AFTER, LABEL) if (folder / sub).is_dir()}
        if LABEL not in files:
            found.append(Finding("warning", "no labels", f"{folder} has no folder {LABEL}"))
        for stem in names.get(split) or sorted(set().union(*files.values())):
            lacking = [sub for sub in files if stem not in files[sub]]
            if lacking or AFTER not in files:
                text = f"{folder}: {stem} has no file in {listed(lacking or [AFTER])}"
                found.append(Finding("error", "missing partner", text, (f"{split}/{stem}",)))
            else:
                triples.append((split, stem, {sub: files[sub][stem] for sub in files}))
        if names.get(split) is not None:
            unlisted = set().union(*files.values()).difference(*names.values())
            if unlisted and split == next(iter(folders)):
                found.append(Finding("note", "in no list", f"{folder}: {listed(sorted(unlisted))}"))
    return found, triples


def look_at_all(triples: Sequence[Triple]) -> tuple[list[Looked], list[Finding]]:
    """Decode every file once, in threads; what does not decode, or what training refuses, is a finding."""
    looked: list[Looked] = []
    found: list[Finding] = []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pool has a thread a core
    with ThreadPoolExecutor() as pool, tqdm(total=len(triples), desc="decode", unit="pair", leave=False) as bar:
        for (split, stem, _), result in zip(triples, pool.map(look, triples), strict=True):
            if isinstance(result, str):
                found.append(Finding("error", "refused", result, (f"{split}/{stem}",)))
            else:
                looked.append(result)
            bar.update()
    cv2.setNumThreads(threads)
    return looked, found


def look(triple: Triple) -> Looked | str:
    """Decode one pair and keep what comparisons need, or say why it cannot be used."""
    split, stem, files = triple
    pair = check_headers(stem, files[BEFORE], files[AFTER], files.get(LABEL))
    if isinstance(pair, str):
        return pair
    try:
        before, after = read_image(pair.before), read_image(pair.after)
        looked = Looked(
            split,
            pair,
            (image_hash(before), image_hash(after)),
            (thumbnail(before), thumbnail(after)),
            (edges(before), edges(after)),
            shift(before, after),
        )
        if pair.mask:
            levels, looked.maximum = read_levels(pair.mask)
            counts = histogram(levels)
            looked.levels = {int(level): int(counts[level]) for level in np.flatnonzero(counts)}
    except UserError as error:
        return str(error)
    return looked


def histogram(levels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """How often each grey level occurs: (H, W) of 0 or more -> (levels,)."""
    if levels.dtype == np.uint8 and levels.size < 1 << 24:  # OpenCV's is faster, and counts in float32
        found = cv2.calcHist([np.ascontiguousarray(levels)], [0], None, [256], [0, 256])
        return np.asarray(found.ravel(), np.int64)
    return np.bincount(levels.ravel())


# --- findings ------------------------------------------------------------------------------------------------------


def mask_findings(looked: Sequence[Looked]) -> list[Finding]:
    """Empty, full, of more than two values, or marked otherwise than the split's other masks."""
    found: list[Finding] = []
    for split in dict.fromkeys(p.split for p in looked):
        masks = [p for p in looked if p.split == split and p.pair.mask]
        binary = all(max(p.levels) <= 1 for p in masks if p.maximum > 1)  # as change_dataloader.masks_are_binary
        for p in masks:
            path, changed = p.pair.mask, p.changed(binary)
            if len(p.levels) > 2 or (len(p.levels) == 2 and min(p.levels) > 0):
                text = f"{path} has {len(p.levels)} values, {listed(p.levels, 5)}: changed is above {p.maximum // 2}"
                found.append(Finding("warning", "mask not of two values", text, (p.key,)))
            if not changed and max(p.levels):
                text = (
                    f"{path} goes up to {max(p.levels)} where others go up to {p.maximum}: it would be read as "
                    f"unchanged; save changed as {p.maximum}"
                )
                found.append(Finding("error", "mask marks with other values", text, (p.key,)))
            elif p.maximum > 1 and binary and max(p.levels) == 1:
                found.append(
                    Finding("note", "mask of 0 and 1", f"{path} marks change with 1, and is read so", (p.key,))
                )
            if changed in (0, 1):
                state = "full" if changed else "empty"
                rank = "warning" if changed else "note"
                found.append(
                    Finding(rank, f"mask {state}", f"{path} marks {'all' if changed else 'nothing'}", (p.key,))
                )
            elif p.hashes[0] == p.hashes[1]:
                text = f"{p.pair.before} and {p.pair.after} are the same image, and {path} marks change"
                found.append(Finding("error", "before is after", text, (p.key,)))
    return found


def shift_findings(looked: Sequence[Looked]) -> list[Finding]:
    """Pairs whose dates lie apart."""
    return [
        Finding(
            "warning",
            "dates shifted",
            f"{p.key}: after lies {p.shift.x:+.0f}, {p.shift.y:+.0f} pixels from before (confidence "
            f"{p.shift.confidence:.2f})",
            (p.key,),
        )
        for p in looked
        if p.shift.confidence > CONFIDENT and np.hypot(p.shift.x, p.shift.y) > SHIFTED
    ]


@dataclass(frozen=True)
class Copies:
    """Pairs that show one image, by their numbers; `how`: how one is laid on the other."""

    members: list[int]
    how: str


def compare(looked: Sequence[Looked]) -> tuple[list[Copies], list[Link]]:
    """All with all: the pairs that share an image, and those that continue each other."""
    if not looked:
        return [], []
    thumbs = np.stack([thumb for p in looked for thumb in p.thumbs])  # before and after of each pair, in turn
    how: dict[tuple[int, int], str] = {}
    first_with: dict[str, int] = {}
    for index, digest in enumerate(digest for p in looked for digest in p.hashes):
        first = first_with.setdefault(digest, index)
        if first != index and thumbs[index].std() > 0:  # of blank images every two are one
            how[first, index] = "the same pixels"
    for first, second, laid in alike(thumbs):
        how.setdefault((first, second), "nearly the same pixels" if laid == "as it is" else laid)
    by_pair = {(a // 2, b // 2): text for (a, b), text in how.items() if a // 2 != b // 2}
    roots = connected_components(len(looked), by_pair)
    copies = [
        Copies(
            [number for number, root in enumerate(roots) if root == group],
            ", ".join(sorted({text for (first, _), text in by_pair.items() if roots[first] == group})),
        )
        for group in sorted({roots[first] for first, _ in by_pair})
    ]
    found = links([p.edges[0] for p in looked], [p.edges[1] for p in looked])
    return copies, [link for link in found if roots[link.first] != roots[link.second]]


def copy_findings(looked: Sequence[Looked], copies: Sequence[Copies]) -> list[Finding]:
    """One image in several pairs: a leak where they are of several splits."""
    found = []
    for copy in copies:
        members = [looked[number] for number in copy.members]
        leaks = len({p.split for p in members}) > 1
        keys = tuple(p.key for p in members)
        text = f"{listed(keys, 10)} show one image ({copy.how})"
        found.append(Finding("leak" if leaks else "warning", f"one image {place(leaks)}", text, keys))
    return found


def border_findings(looked: Sequence[Looked], borders: Sequence[Link]) -> list[Finding]:
    """Tiles that continue each other, or of which one was cut from the other: a leak across splits."""
    found = []
    for link in borders:
        first, second = looked[link.first], looked[link.second]
        leaks = first.split != second.split
        if link.side == link.other:
            kind, text = "shared edge", f"{first.key} shares its {link.side} edge with {second.key}"
        else:
            kind, text = "continued", f"{first.key} is continued at its {link.side} by {second.key}"
        text += f" (correlation {link.score:.2f})"
        rank = "leak" if leaks else "note"
        found.append(Finding(rank, f"{kind} {place(leaks)}", text, (first.key, second.key)))
    return found


def place(leaks: bool) -> str:
    """The end of a kind's name."""
    return "across splits" if leaks else "within a split"


# --- results -------------------------------------------------------------------------------------------------------


def summary(
    root: Path,
    triples: Sequence[Triple],
    looked: Sequence[Looked],
    found: Sequence[Finding],
    copies: Sequence[Copies],
    borders: Sequence[Link],
) -> dict[str, Any]:
    """What check.json holds."""
    meets = [link[:2] for link in borders]
    meets += [(copy.members[0], number) for copy in copies for number in copy.members[1:]]
    roots = connected_components(len(looked), meets)
    neighbours: dict[int, set[int]] = {number: set() for number in range(len(looked))}
    for copy in copies:
        meets += [(a, b) for a in copy.members for b in copy.members]
    for first, second in meets:
        neighbours[first].add(second)
        neighbours[second].add(first)
    splits = {}
    for split in dict.fromkeys(split for split, _, _ in triples):
        members = [number for number, p in enumerate(looked) if p.split == split]
        sure = [looked[n].shift for n in members if looked[n].shift.confidence > CONFIDENT]
        splits[split] = {
            "pairs": sum(t[0] == split for t in triples),
            "decoded": len(members),
            "sizes": dict(Counter("{}x{}".format(*looked[n].pair.size) for n in members)),
            "groups": len({roots[n] for n in members}),
            "meeting_another_split": sum(
                any(looked[other].split != split for other in neighbours[number]) for number in members
            ),
            "median_shift": float(np.median([np.hypot(s.x, s.y) for s in sure])) if sure else None,
        }
    return {
        "root": str(root.resolve()),
        "splits": splits,
        "findings": [asdict(finding) for finding in found],
        "pairs": [
            {
                "pair": p.key,
                "hashes": list(p.hashes),
                "group": looked[root_].key,
                "meets": sorted(looked[other].key for other in neighbours[number] if other != number),
                "shift": [round(value, 2) for value in p.shift],
            }
            for number, (p, root_) in enumerate(zip(looked, roots, strict=True))
        ],
    }


def pictured(looked: Sequence[Looked], found: Sequence[Finding], borders: Sequence[Link]) -> dict[str, list[Row]]:
    """The findings that can be shown, by kind."""
    pairs = {p.key: p.pair for p in looked}
    sides = {(looked[link.first].key, looked[link.second].key): link for link in borders}
    rows: dict[str, list[Row]] = {}
    for finding in found:
        shown = [pairs[key] for key in finding.pairs if key in pairs][:2]
        if shown:
            link = sides.get(finding.pairs) if len(finding.pairs) == 2 else None
            join = link.side if link and link.side != link.other else ""
            rows.setdefault(finding.kind, []).append(Row(finding.text, shown, join, finding.kind == "dates shifted"))
    return rows


def report(result: dict[str, Any], found: Sequence[Finding], written: Sequence[Path]) -> None:
    """Print the table of splits, the findings by kind, and what was written."""
    lines = [f"{'split':<8}{'pairs':>7}{'groups':>8}{'meeting another split':>23}{'median shift':>14}  sizes"]
    for name, split in result["splits"].items():
        apart = "-" if split["median_shift"] is None else f"{split['median_shift']:.1f} px"
        sizes = listed((f"{size} ({n})" for size, n in split["sizes"].items()), SHOWN)
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
    lines.append(f"written: {listed(written, len(written))}")
    sys.stdout.write("\n".join(lines) + "\n")
