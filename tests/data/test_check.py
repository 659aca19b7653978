"""`python -m change check` finds planted faults and names them, in synthetic and in real pairs."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from change.change_dataloader import SUFFIXES, find_split
from change.common.errors import UserError
from change.common.names import files_by_stem
from change.data.check import main
from change.data.masks import read_mask
from change.synthetic.render import draw_scene
from tests.conftest import run_verb, write_pairs

PARTS = ("A", "B", "label")


def check(root: Path, save_path: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Run check; return the exit code, check.json, and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([str(root), f"--save_path={save_path}", *more])
    return code, json.loads((save_path / "check.json").read_text()), printed.getvalue()


def findings(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [finding for finding in result["findings"] if finding["kind"] == kind]


def write_synthetic(root: Path) -> None:
    """Write eight train tiles in two rows of one scene and two val tiles of another: PNG, 256 x 256."""
    for split, seed, rows, columns in (("train", 4, 2, 4), ("val", 2, 1, 2)):
        scene = draw_scene(256 * rows, 320 * columns, (seed,))
        for row in range(rows):
            for column in range(columns):
                area = np.s_[256 * row : 256 * row + 256, 320 * column : 320 * column + 256]
                for part, picture in zip(PARTS, scene, strict=True):
                    scale = 255 if part == "label" else 1
                    save(picture[area] * np.uint8(scale), root / split / part / f"{row}_{column}.png")


def write_real(root: Path, source: Path) -> None:
    """Write a few CLCD pairs as PNG that do not touch, and whose dates are not shifted."""
    for split, names in (
        ("train", ("00007", "00011", "00023", "00031", "00033", "00042")),
        ("val", ("00368", "00436")),
    ):
        for part in PARTS:
            for name in names:
                path = files_by_stem(source / split / part, SUFFIXES)[name]
                picture = np.asarray(PIL.Image.open(path)).astype(np.uint8)
                save(picture * np.uint8(255) if part == "label" else picture, root / split / part / f"{name}.png")


def save(picture: np.ndarray[Any, Any], path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(picture).save(path, **options)


@pytest.fixture(params=["synthetic", "real"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Write a small data set of PNG files with masks of 0 and 255."""
    folder = tmp_path / "set"
    if request.param == "real":
        write_real(folder, request.getfixturevalue("real_data") / "clcd")
    else:
        write_synthetic(folder)
    return folder


def edit(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], source: Path, target: Path) -> None:
    """Apply `change` to the three files of pair `source`, and write them as pair `target`."""
    for part in PARTS:
        picture = change(np.asarray(PIL.Image.open(source.parent / part / source.name)))
        save(np.ascontiguousarray(picture), target.parent / part / target.name)


@pytest.mark.slow
def test_planted_faults(root: Path, tmp_path: Path) -> None:
    """Every planted fault is found under its name, and nothing else is."""
    code, clean, _ = check(root, tmp_path / "clean")
    assert code == 0, clean["findings"]
    assert {f["rank"] for f in clean["findings"]} <= {"note"}

    train, val = root / "train", root / "val"
    names = sorted(path.name for path in (train / "A").iterdir())
    vals = sorted(path.name for path in (val / "A").iterdir())
    edit(lambda a: a[:, ::-1], val / vals[0], train / "flipped.png")
    edit(lambda a: np.rot90(a), train / names[0], val / "turned.png")
    for part in PARTS:
        path = val / part / "reencoded.png"
        if part == "label":
            shutil.copy(train / part / names[1], path)
        else:
            PIL.Image.open(train / part / names[1]).save(path.with_suffix(".jpg"), quality=60)
    size = PIL.Image.open(train / "A" / names[2]).size[0]
    edit(lambda a: a[40 : 40 + size // 2, size // 2 :], train / names[2], val / "cut.png")
    whole = {part: np.asarray(PIL.Image.open(train / part / names[3])) for part in PARTS}
    for part in PARTS:
        save(whole[part][:, : -size // 4], train / part / names[3])
        save(whole[part][:, -size // 4 :], val / part / "rest.png")
    after = np.asarray(PIL.Image.open(train / "B" / names[4]))
    save(np.roll(after, 24, axis=1), train / "B" / names[4])
    found = check(root, tmp_path / "leaks")
    assert found[0] == 1
    assert min(PIL.Image.open(next((tmp_path / "leaks").glob("one_image*.jpg"))).size) > 200

    def named(kind: str) -> list[set[str]]:
        return [set(f["pairs"]) for f in findings(found[1], kind)]

    stem = [name.removesuffix(".png") for name in names]
    copies = findings(found[1], "one image across splits")
    assert named("one image across splits") == [
        {f"train/{stem[0]}", "val/turned"},
        {f"train/{stem[1]}", "val/reencoded"},
        {"train/flipped", f"val/{vals[0].removesuffix('.png')}"},
    ]
    for copy, difference in zip(copies, ("turned", "nearly", "flipped"), strict=True):
        assert difference in copy["text"]
    assert named("shared edge across splits") == [{f"train/{stem[2]}", "val/cut"}]
    assert {f"train/{stem[3]}", "val/rest"} in named("continued across splits")
    touching = {"train/1_1", "val/reencoded"}  # the synthetic tiles of a column touch
    assert all(pairs in ({f"train/{stem[3]}", "val/rest"}, touching) for pairs in named("continued across splits"))
    assert named("dates shifted") == [{f"train/{stem[4]}"}]
    x, y, _ = next(pair["shift"] for pair in found[1]["pairs"] if pair["pair"] == f"train/{stem[4]}")
    assert abs(x - 24) < 3 and abs(y) < 3
    assert len({f["kind"] for f in found[1]["findings"] if f["rank"] != "note"}) == 4
    meets = {pair["pair"]: pair["meets"] for pair in found[1]["pairs"]}
    assert meets["val/rest"] == [f"train/{stem[3]}"] and "val/turned" in meets[f"train/{stem[0]}"]
    groups = {pair["pair"]: pair["group"] for pair in found[1]["pairs"]}
    assert groups["val/rest"] == groups[f"train/{stem[3]}"]
    assert found[1]["splits"]["val"]["meeting_another_split"] == 5


@pytest.mark.slow
def test_broken_files(root: Path, tmp_path: Path) -> None:
    train = root / "train"
    stem = sorted(path.stem for path in (train / "A").iterdir())
    path = train / "B" / f"{stem[0]}.png"
    path.write_bytes(path.read_bytes()[:4000])  # truncated
    path = train / "label" / f"{stem[1]}.png"
    mask = np.asarray(PIL.Image.open(path))
    save(np.stack((mask, mask, mask // 2), axis=-1), path)  # in colour
    (train / "A" / f"{stem[2]}.png").unlink()  # a missing partner
    save(np.zeros((40, 40, 3), np.uint8), train / "A" / f"{stem[3]}.png")  # of another size
    mask = np.asarray(PIL.Image.open(train / "label" / f"{stem[4]}.png"))
    assert mask.any()
    save(mask // np.uint8(255), train / "label" / f"{stem[4]}.png")  # 0 and 1 where the others are 0 and 255
    for part, value in (("A", 9), ("B", 9), ("label", 255)):  # full, and three values
        save(np.full((64, 64) if part == "label" else (64, 64, 3), value, np.uint8), root / "val" / part / "full.png")
    odd = np.zeros((64, 64), np.uint8)
    odd[:20], odd[20:30] = 255, 130
    for part in PARTS:
        save(odd if part == "label" else np.full((64, 64, 3), 7, np.uint8), root / "val" / part / "odd.png")
    code, result, printed = check(root, tmp_path / "out")
    process = run_verb("check", root, f"--save_path={tmp_path / 'process'}")
    assert code == process.returncode == 1, process.stderr
    assert json.loads((tmp_path / "process" / "check.json").read_text()) == result
    refused = {pair: f["text"] for f in findings(result, "refused") for pair in f["pairs"]}
    assert refused.keys() == {f"train/{stem[i]}" for i in (0, 1, 3)}
    assert "cannot be decoded" in refused[f"train/{stem[0]}"] and f"{stem[0]}.png" in refused[f"train/{stem[0]}"]
    assert "in colour" in refused[f"train/{stem[1]}"]
    assert "sizes differ" in refused[f"train/{stem[3]}"]
    kinds = {kind: [f["pairs"] for f in findings(result, kind)] for kind in {f["kind"] for f in result["findings"]}}
    assert kinds["missing partner"] == [[f"train/{stem[2]}"]]
    assert kinds["mask marks with other values"] == [[f"train/{stem[4]}"]]
    assert kinds["mask full"] == [["val/full"]]
    assert kinds["mask not of two values"] == [["val/odd"]]
    assert kinds["before is after"] == [["val/odd"]]
    assert all(name in printed for name in ("missing partner", "refused", f"{stem[2]}", "mask full"))


def test_masks_of_0_and_1_are_read_right(root: Path, tmp_path: Path) -> None:
    train = root / "train"
    for path in (train / "label").iterdir():
        save(np.asarray(PIL.Image.open(path)) // np.uint8(255), path)
    code, result, _ = check(root, tmp_path / "out")
    assert code == 0
    marked = {path.stem for path in (train / "label").iterdir() if np.asarray(PIL.Image.open(path)).any()}
    assert {pair for f in findings(result, "mask of 0 and 1") for pair in f["pairs"]} == {f"train/{n}" for n in marked}
    split = find_split(root, "train")
    for pair in split.pairs:
        assert pair.mask is not None
        assert (read_mask(pair.mask, split.binary) == np.asarray(PIL.Image.open(pair.mask))).all()


MASKS = {
    "marks with 1": (np.eye(64, dtype=np.uint8), ".png", True),
    "marks with 100": (np.eye(64, dtype=np.uint8) * np.uint8(100), ".tif", True),
    "empty": (np.zeros((64, 64), np.uint8), ".png", False),
    "16 bits of 0 and 255": (np.eye(64, dtype=np.uint16) * np.uint16(255), ".png", True),
    "one bit": (np.eye(64) > 0, ".png", False),
    "dark JPEG": (np.full((64, 64), 3, np.uint8), ".jpg", False),
    "dark JPEG, other suffix": (np.full((64, 64), 40, np.uint8), ".JPEG", False),
    "JPEG": (np.eye(64, dtype=np.uint8) * np.uint8(255), ".jpg", False),
}


@pytest.mark.parametrize(("levels", "suffix", "refused"), MASKS.values(), ids=MASKS)
def test_masks_that_training_refuses_are_errors(
    tmp_path: Path, levels: np.ndarray[Any, Any], suffix: str, refused: bool
) -> None:
    """Among masks of 0 and 255, check reports exactly those masks as errors that training refuses."""
    root = write_pairs(tmp_path / "set" / "train", 2)
    (root / "label" / "1.png").unlink()
    save(levels, root / "label" / f"1{suffix}")
    if refused:
        with pytest.raises(UserError, match="it would be read as unchanged"):
            find_split(root.parent, "train")
    else:
        find_split(root.parent, "train").read(1)
    code, result, _ = check(root.parent, tmp_path / "out")
    errors = [finding for finding in result["findings"] if finding["rank"] == "error"]
    assert (code, len(errors)) == (int(refused), int(refused))
    named = [finding["pairs"] for finding in findings(result, "mask marks with other values")]
    assert named == ([["train/1"]] if refused else [])


def test_opencv_gets_its_threads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's number of threads is restored after an error too."""

    def fail(_: object, channels: object, indexed: bool) -> None:
        assert cv2.getNumThreads() == 1
        raise RuntimeError("out of memory")

    write_pairs(tmp_path / "set" / "train", 1)
    threads = cv2.getNumThreads()
    monkeypatch.setattr("change.data.survey.inspect_pair", fail)
    cv2.setNumThreads(3)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            check(tmp_path / "set", tmp_path / "out")
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(threads)


def test_layouts(tmp_path: Path) -> None:
    """Check one folder with lists, and a single split; blank images do not count as copies."""
    write_synthetic(tmp_path / "set")
    flat = tmp_path / "flat"
    shutil.move(tmp_path / "set" / "train", flat)
    for part, value in (("A", 0), ("B", 0), ("label", 0)):
        for name in ("blank1", "blank2"):
            save(np.full((64, 64) if part == "label" else (64, 64, 3), value, np.uint8), flat / part / f"{name}.png")
    code, result, _ = check(flat, tmp_path / "one")
    assert code == 0 and list(result["splits"]) == ["flat"] and not findings(result, "one image within a split")
    (flat / "list").mkdir()
    (flat / "list" / "train.txt").write_text("0_0\n0_1\n1_2.png\n")
    (flat / "list" / "test.txt").write_text("1_0\nlost\n")
    code, result, _ = check(flat, tmp_path / "lists")
    assert code == 1
    assert {name: split["pairs"] for name, split in result["splits"].items()} == {"train": 3, "test": 1}
    assert [f["pairs"] for f in findings(result, "missing partner")] == [["test/lost"]]
    assert "0_2" in findings(result, "in no list")[0]["text"]


def test_lists_without_effect(tmp_path: Path) -> None:
    """--list is refused if folders assign pairs to splits, or if it has no lists."""
    write_pairs(tmp_path / "set" / "train", 1)
    flat = write_pairs(tmp_path / "flat", 1)
    with pytest.raises(UserError, match=r"--list lists: .*set has folders for its splits \(train\): leave it out"):
        check(tmp_path / "set", tmp_path / "out", "--list=lists")
    with pytest.raises(UserError, match=r"--list lists has no train\.txt, val\.txt or test\.txt: choose another"):
        check(flat, tmp_path / "out", "--list=lists")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_wrong_roots(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "set"
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("x")
    result = run_verb("check", folder, f"--save_path={tmp_path / 'out'}")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and str(folder) in result.stderr
    assert not (tmp_path / "out").exists()


def test_borders_of_real_tiles(real_data: Path, tmp_path: Path) -> None:
    """47 of CLCD's 120 val tiles continue a train tile; MS-HS-BCD's names say which tiles are neighbours."""
    _, result, _ = check(real_data / "clcd", tmp_path / "clcd")
    assert result["splits"]["val"]["meeting_another_split"] == 47
    _, result, _ = check(real_data / "ms_bcd", tmp_path / "ms_bcd")
    where = {p["pair"]: tuple(map(int, p["pair"].split("/")[1].split("_"))) for p in result["pairs"]}
    right = {(a, b) for a, (r, c) in where.items() for b, (s, d) in where.items() if (s, d) in ((r, c + 1), (r + 1, c))}
    got = {
        tuple(f["pairs"]) for kind in ("within a split", "across splits") for f in findings(result, f"continued {kind}")
    }
    assert len(got - right) == 0
    assert len(got & right) >= 0.98 * len(right)
