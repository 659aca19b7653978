"""What `python -m change check` found out about a data set, for evaluation: groups of connected tiles, and leaks."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from change.common.errors import UserError
from change.common.files import home_folder


class Place(NamedTuple):
    """A pair's group of connected tiles, and whether a train image is the same as, or continues, one of its images."""

    group: str
    meets_train: bool


def results_folder(root: Path) -> Path:
    """Where check's results for a data set go, and where test.py looks for them."""
    return home_folder() / "results" / "check" / root.resolve().name


def find_check(test_root: Path) -> Path | None:
    """The check.json of the data set that `test_root` is, or is a split of, if there is one."""
    places = [results_folder(root) / "check.json" for root in (test_root.resolve().parent, test_root)]
    return next((path for path in places if path.is_file()), None)


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """The pairs of a check.json: "pair", "group" and "meets" are text, "hashes" two texts. Raises UserError."""
    try:
        pairs = [dict(pair) for pair in json.loads(path.read_text())["pairs"]]
        for pair in pairs:
            before, after = map(str, pair["hashes"])
            pair |= {"hashes": (before, after), "group": str(pair["group"]), "pair": str(pair["pair"])}
            pair["meets"] = [str(name) for name in pair["meets"]]
    except OSError as error:
        raise UserError(f"no {path}: python -m change check ROOT writes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by python -m change check: run it again") from error
    return pairs


def read_groups(path: Path) -> dict[str, str]:
    """The group of connected tiles of every "SPLIT/NAME". Raises UserError for a file that check did not write."""
    return {pair["pair"]: pair["group"] for pair in read_pairs(path)}


def read_places(path: Path) -> dict[tuple[str, str], Place]:
    """By the hashes of a pair's images: its place. Raises UserError for a file that check did not write."""
    entries = defaultdict(list)
    for pair in read_pairs(path):
        entries[pair["hashes"]].append((pair["group"], [pair["pair"], *pair["meets"]]))
    return {
        hashes: Place(found[0][0], any(name.startswith("train/") for _, names in found for name in names))
        for hashes, found in entries.items()
    }
