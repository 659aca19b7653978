"""The check.json of the right data set is found, even if others of the same name were checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

import change.data.groups
from change.data.check import main as check
from change.data.groups import Place, find_check, read_places, results_folder
from tests.conftest import write_pairs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Redirect results to a home folder apart from the data."""
    monkeypatch.setattr(change.data.groups, "home_folder", lambda: tmp_path / "home")
    return tmp_path / "home"


def write_check(home: Path, name: str, root: Path | None, pairs: Sequence[str] = ()) -> Path:
    """Write a check.json for NAME that records `root`; without one, a root of another machine."""
    entries = [{"pair": pair, "group": pair, "hashes": [pair, pair], "meets": []} for pair in pairs]
    path = home / "results" / "check" / name / "check.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"root": str(root or "/elsewhere"), "pairs": entries}))
    return path


def test_as_check_writes_it(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_pairs(root / "train", 1)
    write_pairs(root / "val", 2, seed=1)
    assert find_check(root / "val") is None
    assert check([str(root)]) == 0
    assert find_check(root / "val") == results_folder(root) / "check.json" == home / "results/check/set/check.json"
    assert check([str(root / "val")]) == 0
    assert find_check(root / "val") == results_folder(root) / "check.json"  # it knows train


def test_its_own_is_not_hidden_by_the_parents(home: Path, tmp_path: Path) -> None:
    """The parent of a data set has the name of another data set, which was checked too."""
    root = write_pairs(tmp_path / "data" / "mine", 2)
    other = write_check(home, "data", tmp_path / "other" / "data", ["train/0", "val/0"])
    assert find_check(root) is None
    own = write_check(home, "mine", root, ["mine/0", "mine/1"])
    assert find_check(root) == own
    other.write_text(json.dumps({"root": str(tmp_path / "other" / "data"), "pairs": []}))
    assert find_check(root) == own


def test_the_recorded_root_comes_before_names(home: Path, tmp_path: Path) -> None:
    """Another data set has the name of the parent, and pairs of the same names."""
    root = write_pairs(tmp_path / "data" / "val", 2)
    other = write_check(home, "data", tmp_path / "other" / "data", ["val/0", "val/1"])
    own = write_check(home, "val", root, ["val/0", "val/1"])
    assert find_check(root) == own
    mine = write_check(home, "data", root.parent, ["val/0", "val/1"])
    assert find_check(root) == mine == other


@pytest.mark.parametrize("link", [False, True])
def test_moved_data(home: Path, tmp_path: Path, link: bool) -> None:
    """Data that was moved since check is recognised by the names of its pairs."""
    root = write_pairs(tmp_path / "data" / "val", 2)
    if link:
        (tmp_path / "link").symlink_to(root)
        root = tmp_path / "link"
    parents = write_check(home, "data", None, ["train/7", "val/1"])
    assert find_check(root) == parents
    own = write_check(home, "val", None, ["train/1", "test/0"])  # one folder with lists
    assert find_check(root) == parents
    write_check(home, "data", None, ["train/0", "val/7"])
    assert find_check(root) == own
    write_check(home, "val", None, ["val/7"])
    assert find_check(root) is None


def test_a_broken_file_hides_nothing(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_pairs(tmp_path / "data" / "val", 1)
    write_check(home, "data", root.parent).write_text("{}")
    own = write_check(home, "val", root)
    with caplog.at_level(logging.WARNING):
        assert find_check(root) == own
    assert "data/check.json was not written by python -m change check" in caplog.text


def test_places(tmp_path: Path) -> None:
    """Pairs with the same images share a place."""
    pairs = [
        {"pair": "val/a", "group": "val/a", "hashes": ["1", "2"], "meets": ["val/b"]},
        {"pair": "val/b", "group": "val/b", "hashes": ["1", "2"], "meets": ["train/c"]},
        {"pair": "val/d", "group": "val/a", "hashes": ["3", "4"], "meets": ["val/b"]},
    ]
    (tmp_path / "check.json").write_text(json.dumps({"pairs": pairs}))
    assert read_places(tmp_path / "check.json") == {
        ("1", "2"): Place("val/a", True),
        ("3", "4"): Place("val/a", False),
    }
