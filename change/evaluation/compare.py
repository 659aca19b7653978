"""Whether one system is better than another, or luckier: `python -m change compare RUN_A RUN_B`.

A run is a folder that test.py wrote: metrics.json, and images.csv with the counts of every image. Several runs of one
system, trained from different seeds, are separated by commas; those of the folds of a cross-validation, whose images
together are the run's, are joined by plus signs.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import OneLineParser, UserError, listed
from change.common.files import write_whole
from change.evaluation.bootstrap import TOO_FEW, Difference, or_none, paired_difference, pool

COUNTS = ("tp", "fp", "fn", "tn")
COMPARED = ("f1", "iou", "precision", "recall")


@dataclass(frozen=True)
class Run:
    """What test.py left in a folder: metrics.json, and from images.csv, by name, groups ("": none) and counts (N, 4)
    of TP, FP, FN, TN."""

    folder: Path
    metrics: dict[str, Any]
    images: list[str]
    groups: list[str]
    counts: NDArray[np.int64]


def read_run(folder: Path) -> Run:
    """Read a run. Raises UserError for what is missing or damaged, and for a run without labels."""
    metrics_path, images_path = folder / "metrics.json", folder / "images.csv"
    for path in (metrics_path, images_path):
        if not path.is_file():
            raise UserError(f"no file {path}: name a folder that test.py wrote, its --save_path")
    try:
        metrics = json.loads(metrics_path.read_bytes())
        if not all(isinstance(part, dict) for part in (metrics, metrics["protocol"], metrics["data"])):
            raise TypeError("protocol and data are no objects")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{metrics_path} is not what test.py writes ({error!r}): run test.py again") from error
    try:
        with images_path.open(newline="", encoding="utf-8") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["image"])
        if rows and COUNTS[0] not in rows[0]:
            raise UserError(f"{images_path} has no counts: {folder} was tested without labels, compare needs them")
        images = [row["image"] for row in rows]
        if not 0 < len(images) == len(set(images)):
            raise ValueError("no image, or one twice")
        counts = np.array([[int(row[kind]) for kind in COUNTS] for row in rows], np.int64)
    except (csv.Error, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{images_path} is not what test.py writes ({error!r}): run test.py again") from error
    return Run(folder, metrics, images, [row.get("group") or "" for row in rows], counts)


def read_folds(text: str) -> Run:
    """Read a run, or several of disjoint images, joined by + (no folder has that name), as one. Raises UserError as
    read_run, where folds share an image, and where they were tested differently."""
    runs = [read_run(Path(folder)) for folder in ([text] if Path(text).is_dir() else text.split("+"))]
    for other in runs[1:]:
        if differences := protocol_differences(runs[0], other):
            raise UserError(f"{runs[0].folder} and {other.folder} were tested differently: {', '.join(differences)}")
    rows = sorted(
        (row for run in runs for row in zip(run.images, run.groups, run.counts, strict=True)), key=lambda row: row[0]
    )
    images = [row[0] for row in rows]
    if twice := sorted({image for image, after in pairwise(images) if image == after}):
        raise UserError(f"{text}: folds share no image, these do: {listed(twice)}")
    prints = sorted(str(run.metrics["data"].get("fingerprint")) for run in runs)
    metrics = {
        **runs[0].metrics,
        "trained_on": [image for run in runs for image in run.metrics.get("trained_on") or []],
        "data": {"fingerprint": None if "None" in prints else "+".join(prints)},
    }
    return Run(Path(text), metrics, images, [row[1] for row in rows], np.stack([row[2] for row in rows]))


def check_same_images(run: Run, other: Run) -> None:
    """Raise UserError where two runs were not tested on the same images and labels."""
    both = f"{run.folder} and {other.folder}"
    if apart := sorted(set(run.images) ^ set(other.images)):
        raise UserError(f"{both} are of different images: only one has {listed(apart)}; test both on the same folder")
    truths = [np.stack((r.counts[:, 0] + r.counts[:, 2], r.counts.sum(1)), axis=1) for r in (run, other)]
    if differ := [run.images[i] for i in np.flatnonzero((truths[0] != truths[1]).any(axis=1))]:
        raise UserError(
            f"{both} differ in the changed pixels or the size of {listed(differ)}; test both on the same labels, at "
            "the same size"
        )
    prints = [r.metrics["data"].get("fingerprint") for r in (run, other)]
    if None not in prints and prints[0] != prints[1]:
        raise UserError(
            f"{both} are of other data, though names and counts agree (data.fingerprint differs); test both on the "
            "same folder"
        )


def protocol_differences(run: Run, other: Run) -> list[str]:
    """In what two runs were tested differently, the device apart."""
    ours, theirs = run.metrics["protocol"], other.metrics["protocol"]
    return [
        f"{key} ({ours.get(key)} and {theirs.get(key)})"
        for key in dict.fromkeys((*ours, *theirs))
        if key != "device" and ours.get(key) != theirs.get(key)
    ]


def find_warnings(runs: Sequence[Run], grouped: Run) -> list[str]:
    """A line for everything that makes the comparison of `runs` less than it seems."""
    warnings = []
    for run in runs:
        if trained := run.metrics.get("trained_on"):
            warnings.append(f"NOT A TEST SCORE: {run.folder} is of images that were trained on: {listed(trained)}")
    for other in runs[1:]:
        if differences := protocol_differences(runs[0], other):
            warnings.append(f"{runs[0].folder} and {other.folder} were tested differently: {', '.join(differences)}")
    for other in runs:
        if any(other.groups) and other.groups != grouped.groups:
            warnings.append(f"{other.folder} has other groups than {grouped.folder}, whose are used")
    return warnings


def compare(a: Sequence[Run], b: Sequence[Run]) -> dict[str, Any]:
    """What --json holds, of the runs of two systems. Raises UserError where they are not comparable."""
    runs = [*a, *b]
    for other in runs[1:]:
        check_same_images(runs[0], other)
    grouped = next((run for run in runs if any(run.groups)), runs[0])
    # An image without a group is a unit of its own; the words keep its name apart from those of groups.
    named = zip(grouped.groups, grouped.images, strict=True)
    units = [f"group {group}" if group else f"image {image}" for group, image in named]
    pooled_a, pooled_b = (np.stack([pool(run.counts, units) for run in side]) for side in (a, b))
    result = paired_difference(pooled_a, pooled_b)
    warnings = find_warnings(runs, grouped)
    if not any(grouped.groups):
        warnings.append("no run names groups: where images continue one another, the intervals are too narrow")
    if result.too_few:
        warnings.append(f"{result.units} are too few: under {TOO_FEW}, an interval is a rough guide")
    if min(len(a), len(b)) == 1:
        warnings.append("a single run on a side: what another seed would change is not in the intervals")
    return {
        "a": [str(run.folder) for run in a],
        "b": [str(run.folder) for run in b],
        "images": len(units),
        "units": result.units,
        "unit": "groups" if any(grouped.groups) else "images",
        "too_few": result.too_few,
        "level": result.level,
        "resamples": result.resamples,
        "seed": result.seed,
        "scores": {name: entry(result, name) for name in COMPARED},
        "warnings": warnings,
    }


def entry(result: Difference, name: str) -> dict[str, float | bool | None]:
    """One score of both sides, and their difference; None where undefined."""
    values = {"a": result.a, "b": result.b, "difference": result.difference, "low": result.low, "high": result.high}
    return {
        **{key: or_none(value[name]) for key, value in values.items()},
        "significant": result.significant(name),
    }


def table(result: dict[str, Any]) -> str:
    """What is printed: scores in percent, a line each."""
    lines = [
        f"A: {', '.join(result['a'])}",
        f"B: {', '.join(result['b'])}",
        f"{result['images']} images, {result['units']} {result['unit']} resampled {result['resamples']} times",
        f"{'':<10}{'A':>8}{'B':>8}{'B - A':>8}   {100 * result['level']:g}% interval",
    ]
    for name, score in result["scores"].items():
        a, b, difference, low, high = (
            float("nan") if score[key] is None else 100 * score[key] for key in ("a", "b", "difference", "low", "high")
        )
        verdict = "significant" if score["significant"] else "not significant"
        lines.append(f"{name:<10}{a:>8.2f}{b:>8.2f}{difference:>+8.2f}   {low:+.2f} to {high:+.2f}, {verdict}")
    return "\n".join(lines + [f"warning: {warning}" for warning in result["warnings"]]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Parse, read, compare, print; return the exit code."""
    parser = OneLineParser(prog="python -m change compare", description="Compare two systems on the same images.")
    for side in ("A", "B"):
        text = f"folder that test.py wrote for {side}; several, of one system: seeds separated by commas, folds by +"
        parser.add_argument(side.lower(), metavar=f"RUN_{side}", help=text)
    parser.add_argument("--json", metavar="PATH", type=Path, help="write the same to this file")
    given = parser.parse_args(arguments)
    a, b = ([read_folds(run) for run in side.split(",")] for side in (given.a, given.b))
    result = compare(a, b)
    sys.stdout.write(table(result))
    if given.json:
        write_whole(given.json, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return 0
