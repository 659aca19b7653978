"""Folds of grouped cross-validation: no pair is lost, groups stay together, the lists can be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from change.change_dataloader import find_split
from change.common.errors import UserError
from change.common.files import write_whole
from change.data.check import main as check
from change.data.folds import main, make_folds, write_folds
from tests.conftest import write_pairs


def test_groups_stay_whole_and_folds_even() -> None:
    groups = {f"g{size}{i}": [f"{size}{i}{n}" for n in range(size)] for size in (1, 2, 5) for i in range(6)}
    folds = make_folds(groups, 3)
    assert sorted(name for fold in folds for name in fold) == sorted(n for names in groups.values() for n in names)
    assert all(sum(bool(set(names) & set(fold)) for fold in folds) == 1 for names in groups.values())
    assert {len(fold) for fold in folds} == {16}
    assert folds == make_folds(dict(reversed(groups.items())), 3)


def write_check(path: Path, pairs: dict[str, str]) -> Path:
    """Write a check.json with pairs and their groups."""
    entries = [{"pair": p, "group": g, "hashes": [p, g], "meets": [], "shift": [0, 0, 0]} for p, g in pairs.items()]
    path.write_text(json.dumps({"pairs": entries}))
    return path


def test_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    write_pairs(root / "train", 5)
    groups = {"train/0": "a", "train/3": "a", "train/1": "b", "train/2": "c", "train/4": "d", "val/9": "a"}
    options = [
        str(root),
        f"--check={write_check(tmp_path / 'check.json', groups)}",
        f"--list_path={tmp_path / 'lists'}",
    ]
    assert main([*options, "--folds=2"]) == 0
    assert "4 groups in 2 folds of 3, 2 pairs" in capsys.readouterr().out
    found = [
        [find_split(root / "train", part, tmp_path / f"lists/{k}/{part}.txt") for part in ("train", "val")]
        for k in "01"
    ]
    names = [[{pair.name for pair in split.pairs} for split in fold] for fold in found]
    assert all(train | val == set("01234") and not train & val for train, val in names)
    assert names[0][0] == names[1][1] and all({"0", "3"} <= train or {"0", "3"} <= val for train, val in names)
    with pytest.raises(UserError, match="already exists"):
        main([*options, "--folds=2"])
    with pytest.raises(UserError, match="train has 4 groups"):
        main([*options, "--folds=5"])
    with pytest.raises(UserError, match="was not written by"):
        main([str(root), f"--check={tmp_path / 'lists/0/val.txt'}"])
    with pytest.raises(UserError, match="python -m change check"):
        main([str(root), f"--check={tmp_path / 'none.json'}"])


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that somebody creates while the lists are written stays as it is."""
    folder = tmp_path / "lists"

    def make_it_meanwhile(path: Path, data: bytes) -> None:
        write_whole(path, data)
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")

    monkeypatch.setattr("change.data.folds.write_whole", make_it_meanwhile)
    with pytest.raises(UserError, match="already exists"):
        write_folds(folder, [["a"], ["b"]])
    assert [path.name for path in tmp_path.rglob("*")] == ["lists", "mine.txt"]


@pytest.mark.parametrize("name", ["scene_{}.tif", "{}.PNG", "#{}"])
def test_lists_of_unusual_names_can_be_trained_on(tmp_path: Path, name: str) -> None:
    """Stems that end like a suffix, or begin like a comment, are found by the lists that folds and check write."""
    root = write_pairs(tmp_path / "set" / "train", 4)
    for sub in ("A", "B", "label"):
        for number in range(4):
            (root / sub / f"{number}.png").rename(root / sub / f"{name.format(number)}.png")
    check([str(root.parent), f"--save_path={tmp_path / 'check'}"])
    options = [f"--check={tmp_path / 'check' / 'check.json'}", f"--list_path={tmp_path / 'lists'}", "--folds=2"]
    assert main([str(root.parent), *options]) == 0
    found = [find_split(root, "", tmp_path / "lists" / "0" / f"{part}.txt") for part in ("train", "val")]
    assert sorted(pair.name for split in found for pair in split.pairs) == [name.format(i) for i in range(4)]
    (root / "list").mkdir()
    (root / "list" / "train.txt").write_text("".join(f"{name.format(number)}\n" for number in range(4)))
    assert check([str(root), f"--save_path={tmp_path / 'flat'}"]) == 0
