"""Comparison of two systems on the same images: `python -m change compare RUN_A RUN_B`.

A run is a folder that test.py wrote: metrics.json, and images.csv with the counts of every image. Separate several runs
of one system, trained from different seeds, by commas. Join the folds of a cross-validation, which share no image, by
plus signs.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import OneLineParser, UserError, list_names
from change.common.files import write_whole
from change.evaluation.bootstrap import TOO_FEW, Difference, or_none, paired_difference, pool

COUNTS = ("tp", "fp", "fn", "tn")
COMPARED = ("f1", "iou", "precision", "recall")


@dataclass(frozen=True)
class Run:
    """The results that test.py wrote into a folder.

    Attributes:
        folder: the folder.
        metrics: content of metrics.json.
        images: names of the images, sorted.
        groups: group of each image, "" if it has none.
        counts: TP, FP, FN, TN of each image, (N, 4).
    """

    folder: Path
    metrics: dict[str, Any]
    images: list[str]
    groups: list[str]
    counts: NDArray[np.int64]


def read_run(folder: Path) -> Run:
    """Read a run. Raises UserError if a file is missing or damaged, or if the run had no labels."""
    metrics_path, images_path = folder / "metrics.json", folder / "images.csv"
    for path in (metrics_path, images_path):
        if not path.is_file():
            raise UserError(f"no file {path}: give a folder that test.py wrote, its --save_path")
    try:
        metrics = json.loads(metrics_path.read_bytes())
        if not all(isinstance(part, dict) for part in (metrics, metrics["protocol"], metrics["data"])):
            raise TypeError("protocol or data is not an object")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{metrics_path} is not what test.py writes ({error!r}): run test.py again") from error
    try:
        with images_path.open(newline="", encoding="utf-8") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["image"])
        if rows and COUNTS[0] not in rows[0]:
            raise UserError(f"{images_path} has no counts: {folder} was tested without labels, which compare needs")
        images, groups, counts = parse_rows(rows)
    except (csv.Error, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{images_path} is not what test.py writes ({error!r}): run test.py again") from error
    return Run(folder=folder, metrics=metrics, images=images, groups=groups, counts=counts)


def parse_rows(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Parse the rows of images.csv.

    Returns:
        The name of each image, its group, "" if it has none, and its counts (N, 4).

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if a value is missing or wrong, or an image is there twice.
    """
    images = [row["image"] for row in rows]
    if not 0 < len(images) == len(set(images)):
        raise ValueError("no image, or one image twice")
    counts = np.array([[int(row[kind]) for kind in COUNTS] for row in rows], np.int64)
    return images, [row.get("group") or "" for row in rows], counts


def read_folds(text: str) -> Run:
    """Read a run, or merge several runs into one.

    Args:
        text: a folder, or several joined by plus signs if there is no folder of that name.

    Raises:
        UserError: if a run cannot be read, if two of them share an image, or if they were tested differently.
    """
    folders = [text] if Path(text).is_dir() else text.split("+")
    runs = [read_run(Path(folder)) for folder in folders]
    for other in runs[1:]:
        if differences := protocol_differences(runs[0], other):
            raise UserError(f"{runs[0].folder} and {other.folder} were tested differently: {', '.join(differences)}")
    rows = sorted(
        (row for run in runs for row in zip(run.images, run.groups, run.counts, strict=True)), key=lambda row: row[0]
    )
    images = [row[0] for row in rows]
    if twice := sorted({image for image, after in pairwise(images) if image == after}):
        raise UserError(f"{text}: folds must not share images, but these share {list_names(twice)}")
    fingerprints = sorted(str(run.metrics["data"].get("fingerprint")) for run in runs)
    metrics = {
        **runs[0].metrics,
        "trained_on": [image for run in runs for image in run.metrics.get("trained_on") or []],
        "data": {
            "fingerprint": None if "None" in fingerprints else "+".join(fingerprints),
            "bands": runs[0].metrics["data"].get("bands"),
        },
    }
    return Run(
        folder=Path(text),
        metrics=metrics,
        images=images,
        groups=[row[1] for row in rows],
        counts=np.stack([row[2] for row in rows]),
    )


def check_same_images(run: Run, other: Run) -> None:
    """Raise UserError if two runs were not tested on the same images and labels.

    Pixels are only compared between runs that read the same bands.
    """
    both = f"{run.folder} and {other.folder}"
    unshared = sorted(set(run.images) ^ set(other.images))
    if unshared:
        raise UserError(
            f"{both} have different images: only one has {list_names(unshared)}; test both on the same folder"
        )
    truths = [np.stack((r.counts[:, 0] + r.counts[:, 2], r.counts.sum(1)), axis=1) for r in (run, other)]
    differ = [run.images[i] for i in np.flatnonzero((truths[0] != truths[1]).any(axis=1))]
    if differ:
        raise UserError(
            f"{both} differ in the changed pixels or the size of {list_names(differ)}; test both on the same labels, "
            "at the same size"
        )
    fingerprints, bands = ([r.metrics["data"].get(key) for r in (run, other)] for key in ("fingerprint", "bands"))
    if None not in fingerprints and bands[0] == bands[1] and fingerprints[0] != fingerprints[1]:
        raise UserError(
            f"{both} have different data, although names and counts agree (data.fingerprint differs); test both on "
            "the same folder"
        )


def protocol_differences(run: Run, other: Run) -> list[str]:
    """List the settings, except the device, that differ between two runs."""
    ours, theirs = run.metrics["protocol"], other.metrics["protocol"]
    return [
        f"{key} ({ours.get(key)} and {theirs.get(key)})"
        for key in dict.fromkeys((*ours, *theirs))
        if key != "device" and ours.get(key) != theirs.get(key)
    ]


def find_units(runs: Sequence[Run]) -> tuple[Run, list[str]]:
    """Return the run that provides the groups, and the unit of resampling of each image.

    Raises UserError if two runs were not tested on the same images and labels.
    """
    for other in runs[1:]:
        check_same_images(runs[0], other)
    grouped = next((run for run in runs if any(run.groups)), runs[0])
    # An image without a group is a unit of its own; the prefix keeps names of images and groups apart.
    named = zip(grouped.groups, grouped.images, strict=True)
    return grouped, [f"group {group}" if group else f"image {image}" for group, image in named]


def find_warnings(runs: Sequence[Run], grouped: Run) -> list[str]:
    """Return one line for each fact that limits the comparison of `runs`; `grouped` provides the groups."""
    warnings = []
    for run in runs:
        if trained := run.metrics.get("trained_on"):
            warnings.append(f"NOT A TEST SCORE: {run.folder} has images that were trained on: {list_names(trained)}")
    for other in runs[1:]:
        if differences := protocol_differences(runs[0], other):
            warnings.append(f"{runs[0].folder} and {other.folder} were tested differently: {', '.join(differences)}")
    for other in runs:
        if any(other.groups) and other.groups != grouped.groups:
            warnings.append(
                f"{other.folder} has other groups than {grouped.folder}; those of {grouped.folder} are used"
            )
    return warnings


def compare(a: Sequence[Run], b: Sequence[Run]) -> dict[str, Any]:
    """Compare the runs of two systems.

    Args:
        a: runs of one system.
        b: runs of the other system.

    Returns:
        The content of the file for --json.

    Raises:
        UserError: if the runs were not tested on the same images and labels.
    """
    runs = [*a, *b]
    grouped, units = find_units(runs)
    pooled_a, pooled_b = (np.stack([pool(run.counts, units) for run in side]) for side in (a, b))
    result = paired_difference(pooled_a, pooled_b)
    warnings = find_warnings(runs, grouped)
    if not any(grouped.groups):
        warnings.append("no run names groups: if images are parts of the same scene, the intervals are too narrow")
    if result.too_few:
        warnings.append(
            f"{result.units} are too few units to tell whether a difference is real: with fewer than {TOO_FEW}, an "
            "interval is only a rough guide"
        )
    if min(len(a), len(b)) == 1:
        warnings.append("single run on a side: the intervals do not cover the effect of another training seed")
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
    """Return one score of both sides and their difference; undefined values are None.

    "significant" is None if there are too few units to tell.
    """
    values = {"a": result.a, "b": result.b, "difference": result.difference, "low": result.low, "high": result.high}
    return {
        **{key: or_none(value[name]) for key, value in values.items()},
        "significant": None if result.too_few else result.significant(name),
    }


def format_comparison(result: dict[str, Any]) -> str:
    """Format the result of `compare` for the terminal, with scores in percent."""
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
        verdict = {None: "", True: ", significant", False: ", not significant"}[score["significant"]]
        lines.append(f"{name:<10}{a:>8.2f}{b:>8.2f}{difference:>+8.2f}   {low:+.2f} to {high:+.2f}{verdict}")
    return "\n".join(lines + [f"warning: {warning}" for warning in result["warnings"]]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change compare`; return the exit code."""
    parser = OneLineParser(prog="python -m change compare", description="Compare two systems on the same images.")
    for side in ("A", "B"):
        text = f"folder that test.py wrote for {side}; separate several seeds by commas, join folds by +"
        parser.add_argument(side.lower(), metavar=f"RUN_{side}", help=text)
    parser.add_argument("--json", metavar="PATH", type=Path, help="also write the result to this file")
    given = parser.parse_args(arguments)
    a, b = ([read_folds(run) for run in side.split(",")] for side in (given.a, given.b))
    result = compare(a, b)
    sys.stdout.write(format_comparison(result))
    if given.json:
        write_whole(given.json, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return 0
