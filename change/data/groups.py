"""Find and read the results of `python -m change check`: groups of connected tiles, and pairs that meet train."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from change.change_dataloader import BEFORE, SUFFIXES
from change.common.errors import UserError
from change.common.files import home_folder
from change.common.names import files_by_stem

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A pair's group of connected tiles, and whether one of its images is, or continues, a train image."""

    group: str
    meets_train: bool


def results_folder(root: Path) -> Path:
    """Return the folder in which check saves its results on a data set by default, and test.py looks for them."""
    return home_folder() / "results" / "check" / root.resolve().name


def find_check(test_root: Path) -> Path | None:
    """Find the check.json of a data set, given its folder or that of one of its splits; None if there is none.

    Results are saved under the name of the data set, which another data set may share. There are two candidates: the
    results for the name of the parent folder, and those for the name of `test_root` itself. The first candidate that
    records that very folder as its root is returned. If none does, the data may have been moved, and the first
    candidate that lists a pair of `test_root` is returned.
    """
    own = test_root.resolve()
    found: list[tuple[Path, Path, dict[str, Any]]] = []
    for root in (own.parent, own):
        path = results_folder(root) / "check.json"
        if path.is_file():
            try:
                found.append((root, path, read_check(path)))
            except UserError as error:
                log.warning("%s", error)
    for root, path, result in found:
        if result.get("root") == str(root):
            return path
    stems = set(files_by_stem(own / BEFORE, SUFFIXES)) if (own / BEFORE).is_dir() else set()
    for root, path, result in found:
        for pair in result["pairs"]:
            split, _, stem = pair["pair"].rpartition("/")
            if stem in stems and (root == own or split == own.name):
                return path
    return None


def read_check(path: Path) -> dict[str, Any]:
    """Read a check.json. Each of its "pairs" has strings "pair" and "group", two "hashes", and a list of names "meets".

    Raises UserError if the file cannot be read, or was not written by check.
    """
    try:
        result = dict(json.loads(path.read_text(encoding="utf-8")))
        result["pairs"] = [dict(pair) for pair in result["pairs"]]
        for pair in result["pairs"]:
            before, after = map(str, pair["hashes"])
            pair |= {"hashes": (before, after), "group": str(pair["group"]), "pair": str(pair["pair"])}
            pair["meets"] = [str(name) for name in pair["meets"]]
    except OSError as error:
        raise UserError(f"no {path}: python -m change check ROOT writes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by python -m change check: run it again") from error
    return result


def read_groups(path: Path) -> dict[str, str]:
    """Return the group of connected tiles of every "SPLIT/NAME". Raises UserError as `read_check` does."""
    return {pair["pair"]: pair["group"] for pair in read_check(path)["pairs"]}


def read_places(path: Path) -> dict[tuple[str, str], Place]:
    """Return the place of every pair, by the hashes of its images. Raises UserError as `read_check` does.

    Pairs with the same images share a place: the group of the first, and `meets_train` if any of them meets train.
    """
    by_images: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for pair in read_check(path)["pairs"]:
        by_images[pair["hashes"]].append(pair)
    places = {}
    for hashes, pairs in by_images.items():
        names = [name for pair in pairs for name in (pair["pair"], *pair["meets"])]
        places[hashes] = Place(pairs[0]["group"], any(name.startswith("train/") for name in names))
    return places
