"""Pairs set aside for validation: whole places, always the same ones, both parts with change."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import change.data.prepare
from change.change_dataloader import find_split
from change.common.errors import UserError
from change.data.splitting import choose_groups, split_off_val
from change.synthetic.render import draw_scene

PARTS = ("A", "B", "label")
SCENES, ROWS, SIDE = 4, 2, 128


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pairs without splits: each scene is cut into tiles that continue each other."""
    folder = tmp_path_factory.mktemp("flat")
    for scene in range(SCENES):
        pictures = draw_scene(SIDE * ROWS, SIDE, (scene,))
        for row in range(ROWS):
            for part, picture in zip(PARTS, pictures, strict=True):
                (folder / part).mkdir(exist_ok=True)
                tile = picture[SIDE * row : SIDE * (row + 1)] * np.uint8(255 if part == "label" else 1)
                PIL.Image.fromarray(tile).save(folder / part / f"scene{scene}_{row}.png")
    return folder


def files_of(folder: Path, names: Sequence[str]) -> list[tuple[str, str, dict[str, Path]]]:
    return [("train", name, {part: folder / part / f"{name}.png" for part in PARTS}) for name in names]


def names_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "A").iterdir())


def scenes_of(names: Sequence[str]) -> set[str]:
    return {name.partition("_")[0] for name in names}


@pytest.mark.parametrize(("share", "expected"), [(0.05, 2), (0.25, 2), (0.5, 4), (0.99, 6)])
def test_places_stay_together(flat: Path, share: float, expected: int) -> None:
    """No scene is in both parts, the share is kept as far as scenes allow, and the order of files does not matter."""
    names = names_in(flat)
    parts = split_off_val(files_of(flat, names), share)
    assert len(parts.val) == expected and sorted(parts.train + parts.val) == names
    assert not scenes_of(parts.train) & scenes_of(parts.val)
    assert split_off_val(files_of(flat, names[::-1]), share) == parts
    assert (
        f"{expected} of 8 pairs become val: {expected // ROWS} of 4 groups of connected tiles, drawn with seed"
        in parts.summary
    )


def test_the_seed_decides(flat: Path) -> None:
    found = {tuple(split_off_val(files_of(flat, names_in(flat)), 0.25, seed).val) for seed in range(8)}
    assert 1 < len(found) <= SCENES


def test_one_place(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If all pairs show one place, the last are set aside, with a warning."""
    parts = split_off_val(files_of(flat, ["scene0_0", "scene0_1"]), 0.2)
    assert (parts.train, parts.val) == (["scene0_0"], ["scene0_1"])
    assert "all 2 pairs show one place" in caplog.text


def test_both_parts_have_change() -> None:
    """If two of forty pairs mark a change, one of them is in val; if only one does, train and val still have pairs."""
    groups = [[number] for number in range(40)]
    for seed in range(20):
        chosen, used = choose_groups(groups, {3, 30}, 4, seed)
        assert len(chosen) == used == 4 and len(chosen & {3, 30}) == 1
        assert len(choose_groups(groups, {3}, 4, seed)[0]) == 4


def test_large_places() -> None:
    """A place with more pairs than val should get is better than a single pair, and train keeps a place."""
    groups = [[0], list(range(1, 34)), list(range(34, 67)), list(range(67, 100))]
    for seed in range(20):
        assert len(choose_groups(groups, set(range(100)), 20, seed)[0]) in (33, 34)
        assert len(choose_groups(groups, set(range(100)), 99, seed)[0]) in (67, 99)


def test_pairs_that_cannot_be_split(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="train and val need one pair each, but the number of pairs is 1: give two or more"
    ):
        split_off_val(files_of(flat, ["scene0_0"]), 0.2)
    shutil.copytree(flat, tmp_path / "copy")
    (tmp_path / "copy" / "B" / "scene1_0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"B/scene1_0\.png"):
        split_off_val(files_of(tmp_path / "copy", names_in(flat)), 0.2)


@pytest.mark.parametrize("form", ["folder", "zip", "train"])
def test_prepare(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    """`prepare --val` makes the same split from a folder, a zip file and a folder train.

    It keeps the split when it runs again, also beside the lists that it has written. Tiles follow their image.
    """
    monkeypatch.setattr(change.data.prepare, "start_logging", lambda: None)
    monkeypatch.setattr(change.data.prepare, "home_folder", lambda: tmp_path)
    caplog.set_level(logging.INFO)
    expected = split_off_val(files_of(flat, names_in(flat)), 0.3).val
    source = tmp_path / "download"
    shutil.copytree(flat, source / "train" if form == "train" else source)
    if form == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", source))
    arguments = ["mine", str(source), str(tmp_path / "data"), "--val=0.3"]
    arguments += ["--before=A", "--after=B", "--label=label"]
    assert change.data.prepare.main(arguments) == 0
    assert names_in(tmp_path / "data" / "val") == expected
    assert len(find_split(tmp_path / "data", "train").pairs) == SCENES * ROWS - len(expected)
    assert (tmp_path / "list" / "mine" / "val.txt").read_text().split() == expected
    caplog.clear()
    assert change.data.prepare.main(arguments) == 0
    assert "linked" not in caplog.text and "copied" not in caplog.text
    arguments[2] = str(tmp_path / "tiles")
    assert change.data.prepare.main([*arguments, "--tile=64"]) == 0
    assert scenes_of(names_in(tmp_path / "tiles" / "val")) == scenes_of(expected)


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("splits", "--val=0.3", "SOURCE has the splits train, val"),
        ("flat", "--val=1", "choose a share above 0 and below 1"),
        ("flat", "--seed=-1", "and a seed of 0 or more"),
        ("flat", "--tile=0", "--val 0.2 splits the pairs"),
    ],
)
def test_wrong_values(flat: Path, tmp_path: Path, source: str, more: str, message: str) -> None:
    place = flat
    if source == "splits":
        place = tmp_path / "splits"
        for split in ("train", "val"):
            shutil.copytree(flat, place / split)
    arguments = ["mine", str(place), str(tmp_path / "data"), f"--list_path={tmp_path / 'list'}", more]
    with pytest.raises(UserError, match=message):
        change.data.prepare.main([*arguments, "--before=A", "--after=B", "--label=label"])
    assert not (tmp_path / "data").exists()
