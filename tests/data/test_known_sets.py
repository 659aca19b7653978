"""WHU-CD, SECOND, HRSCD and S2Looking with directions become splits: which pairs, and what their masks say."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import change.data.prepare
from change.change_dataloader import find_split
from change.common.classes import read_classes
from change.common.errors import UserError
from change.data.known_sets import name_place
from change.data.sources import read_sources
from tests.data.class_downloads import (
    HRSCD_NAMES,
    SECOND_ROWS,
    SIZE,
    draw_hrscd,
    draw_s2looking,
    draw_second,
    draw_whu,
    hrscd_masks,
    put,
    square,
    whu_mask,
)
from tests.data.downloads import SPLITS, download, identity, tree, zipped
from tests.data.helpers import Array

pytestmark = pytest.mark.usefixtures("prepare_logs")


def prepare(name: str, source: Path, root: Path, *options: object) -> None:
    arguments = [name, source, root, "--list_path", root.parent / "list", *options]
    assert change.data.prepare.main([str(argument) for argument in arguments]) == 0


def refused(name: str, source: Path, root: Path, *options: object) -> str:
    """Return the one-line error, after which nothing may have been written."""
    before = tree(root)
    with pytest.raises(UserError) as refusal:
        prepare(name, source, root, *options)
    assert "\n" not in str(refusal.value) and tree(root) == before
    return str(refusal.value)


def pixels(path: Path) -> Array:
    with PIL.Image.open(path) as image:
        assert image.mode in ("L", "RGB")
        return np.asarray(image)


def stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


# --- SECOND ----------------------------------------------------------------------------------------------------------


def rows_of(mask: Array) -> list[int]:
    """Return the value of each of the first four rows of a mask, which must be the same along the row."""
    assert (mask == mask[:, :1]).all()
    return [int(value) for value in mask[:4, 0]]


@pytest.mark.parametrize("form", ["folder", "one zip", "published zips"])
def test_second(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """The masks mark what has a land cover at both dates; the images arrive with their bytes."""
    top = source = draw_second(tmp_path)
    image = (top / "train" / "im2" / "00010.png").read_bytes()
    if form == "one zip":
        source = zipped(top, tmp_path / "SECOND.zip", tmp_path)
    elif form == "published zips":
        for split in ("train", "test"):
            zipped(top / split, top / f"SECOND_{split}_set.zip", top / split)
    prepare("second", source, root := tmp_path / "data")
    assert [pair.name for pair in find_split(root, "train").pairs] == ["00003", "00010", "00021"]
    assert (root / "train" / "B" / "00010.png").read_bytes() == image
    found = {name: rows_of(pixels(root / name.replace("/", "/label/")).astype(int)) for name in masks_of(root)}
    assert found == {
        "train/00003.png": [255, 255, 0, 0],
        "train/00010.png": [255, 255, 0, 0],
        "train/00021.png": [0, 0, 0, 0],
        "test/00002.png": [255, 255, 0, 0],
    }
    assert not (root / "classes.txt").exists()
    assert "train: 3 pairs, but 2968 were published" in caplog.text and "1 pairs, but 1694" in caplog.text
    assert f"test: {SIZE} pixels have a land cover at one date only" in caplog.text
    written = identity(root)
    prepare("SECOND", source, root)
    assert identity(root) == written


def masks_of(root: Path) -> list[str]:
    return sorted(f"{path.parts[-3]}/{path.name}" for path in root.glob("*/label/*.png"))


def test_second_from_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Classes are what occurs in train in either order; what only test has gets the class with the same outcome."""
    top = draw_second(tmp_path)
    prepare("SECOND", top, root := tmp_path / "data", "--from_to")
    lines = ["water -> tree", "low vegetation -> building", "tree -> water", "building -> low vegetation"]
    lines.append("building -> building")
    assert (root / "classes.txt").read_text().splitlines() == lines
    classes = read_classes(root)
    assert classes and classes.opposites == (0, 3, 4, 1, 2, 5)
    found = {name: rows_of(pixels(root / name.replace("/", "/label/"))) for name in masks_of(root)}
    assert found == {
        "train/00003.png": [1, 3, 0, 0],
        "train/00010.png": [5, 2, 0, 0],
        "train/00021.png": [0, 0, 0, 0],
        "test/00002.png": [2, 3, 0, 0],
    }
    said = f"test: {SIZE} pixels are water -> building, which train lacks, and are marked as low vegetation -> building"
    assert said in caplog.text and "train has 5 from-to classes, of 36 possible ones" in caplog.text
    written = identity(root)
    prepare("SECOND", top, root, "--from_to")
    assert identity(root) == written
    assert "classes.txt belongs to masks with classes" in refused("SECOND", top, root)
    prepare("SECOND", top, other := tmp_path / "other")
    assert "other has masks without classes" in refused("SECOND", top, other, "--from_to")


def test_second_from_to_in_tiles_with_val(tmp_path: Path) -> None:
    """--val does not change the classes, and tiles are cut from the same masks."""
    top = draw_second(tmp_path)
    prepare("SECOND", top, whole := tmp_path / "whole", "--from_to")
    prepare("SECOND", top, root := tmp_path / "data", "--from_to", "--val", 0.4, "--tile", 8)
    assert (root / "classes.txt").read_text() == (whole / "classes.txt").read_text()
    parts = {split: {stem.split("_")[0] for stem in stems(root / split / "label")} for split in ("train", "val")}
    assert len(parts["train"]) == 2 and len(parts["val"]) == 1
    for split, names in parts.items():
        for name in names:
            mask = pixels(whole / "train" / "label" / f"{name}.png")
            for row in (0, 8):
                tile = pixels(root / split / "label" / f"{name}_{row}_8.png")
                assert np.array_equal(tile, mask[row : row + 8, 8:16])


def test_second_refused(tmp_path: Path) -> None:
    top, root = draw_second(tmp_path), tmp_path / "data"
    mask = top / "train" / "label1" / "00010.png"
    right = mask.read_bytes()
    put(mask, np.full((SIZE, SIZE, 3), 7, np.uint8))
    for options in ((), ("--from_to",)):
        with pytest.raises(UserError, match=r"label1/00010\.png has 256 pixels in other colours .* such as #070707"):
            prepare("SECOND", top, root, *options)
        shutil.rmtree(root, ignore_errors=True)
    put(mask, np.full((SIZE, SIZE + 1, 3), 255, np.uint8))
    assert "sizes differ" in refused("SECOND", top, root, "--from_to")
    mask.write_bytes(right)
    assert "made from label1, label2; leave it out" in refused("SECOND", top, root, "--label", "label1")
    mask.unlink()
    assert "no file for 00010 in label1 (train)" in refused("SECOND", top, root)
    mask.write_bytes(right)
    shutil.rmtree(top / "train" / "label2")
    shutil.rmtree(top / "test")
    assert "has no images in folders label2" in refused("SECOND", top, root)
    shutil.rmtree(tmp_path / "SECOND")
    only_test = {name: rows for name, rows in SECOND_ROWS.items() if name.startswith("test")}
    assert "has no train split, which determines the classes" in refused(
        "SECOND", draw_second(tmp_path, only_test), root, "--from_to"
    )
    unchanged = {"train/1": (["unchanged"], ["unchanged"])}
    error = refused("SECOND", draw_second(tmp_path / "same", unchanged), root, "--from_to")
    assert "no pixel of train changes" in error


def test_land_covers_that_train_lacks(tmp_path: Path) -> None:
    """Without a class of the same outcome, the same land cover before counts; without both, the pair is refused."""
    rows = dict(SECOND_ROWS) | {"test/00002": (["tree", "unchanged"], ["playground", "unchanged"])}
    prepare("SECOND", draw_second(tmp_path, rows), root := tmp_path / "data", "--from_to")
    classes = read_classes(root)
    assert classes and rows_of(pixels(root / "test" / "label" / "00002.png"))[0] == 1 + classes.names.index(
        "tree -> water"
    )
    rows["test/00002"] = (["playground", "unchanged"], ["non-vegetated ground", "unchanged"])
    source = draw_second(tmp_path / "strange", rows)
    with pytest.raises(UserError, match=r"00002\.png: playground -> non-vegetated ground has no counterpart in train"):
        prepare("SECOND", source, tmp_path / "other", "--from_to")


@pytest.mark.parametrize(
    ("name", "option", "able"),
    [("CLCD", "--from_to", "SECOND, HRSCD"), ("mine", "--direction", "S2Looking"), ("HRSCD", "--direction", "S2Look")],
)
def test_options_of_some_data_sets(tmp_path: Path, name: str, option: str, able: str) -> None:
    folders = ("--before", "A", "--after", "B")
    error = refused(name, draw_second(tmp_path), tmp_path / "data", option, *folders)
    assert error.startswith(f"{name} {option}: only {able}")


# --- HRSCD -----------------------------------------------------------------------------------------------------------


def test_hrscd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pairs are found by place; departments are the splits, unless lists are given; masks follow labels_change."""
    top = draw_hrscd(tmp_path)
    prepare("HRSCD", top, root := tmp_path / "data", "--tile", 8)
    assert "train: 2 pairs, but 146 were published" in caplog.text and "train is department D35" in caplog.text
    assert {stem.rsplit("_", 2)[0] for stem in stems(root / "train" / "A")} == {"35-0300-6785", "35-0305-6785"}
    assert {stem.rsplit("_", 2)[0] for stem in stems(root / "test" / "B")} == {"14-0415-6890"}
    for split in ("train", "test"):
        for path in (root / split / "label").iterdir():
            name, row, column = path.stem.split("_")
            expected = hrscd_masks(name)[2][int(row) :, int(column) :][:8, :8] * np.uint8(255)
            assert np.array_equal(pixels(path), expected)
            before = HRSCD_NAMES[name][0]
            image = pixels(next(top.glob(f"images_2006/*/{before}.tif")))
            tile = pixels(root / split / "A" / path.name)
            assert np.array_equal(tile, image[int(row) :, int(column) :][:8, :8])
    lists = tmp_path / "authors"
    lists.mkdir()
    (lists / "train.txt").write_text("14-2012-0415-6890-LA93-0M50-E080.tif\n")
    (lists / "test.txt").write_text("35-0300-6785\n35-0305-6785\n")
    caplog.clear()
    prepare("HRSCD", top, other := tmp_path / "other", "--tile", 0, "--list", lists, "--list_path", tmp_path / "l")
    assert stems(other / "train" / "A") == stems(other / "train" / "label") == ["14-0415-6890"]
    assert stems(other / "test" / "B") == ["35-0300-6785", "35-0305-6785"]
    assert "train is department D35" not in caplog.text


def test_hrscd_from_to(tmp_path: Path) -> None:
    """From-to classes are the land covers of changed pixels, also if both are the same or unknown."""
    names = ("no information", "artificial surfaces", "agricultural areas")
    prepare("HRSCD", draw_hrscd(tmp_path), root := tmp_path / "data", "--tile", 0, "--from_to")
    classes = read_classes(root)
    assert classes and set(classes.names) == {f"{before} -> {after}" for before in names for after in names}
    for name in HRSCD_NAMES:
        mask = pixels(next(root.glob(f"*/label/{name}.png")))
        before, after, changed = hrscd_masks(name)
        for value, pair in enumerate(classes.names, start=1):
            first, second = (names.index(part) for part in pair.split(" -> "))
            assert np.array_equal(mask == value, (before == first) & (after == second) & (changed == 1))


def test_hrscd_zips_and_refusals(tmp_path: Path) -> None:
    top, root = draw_hrscd(tmp_path), tmp_path / "data"
    strange = top / "images_2012" / "D14" / "readme.png"
    put(strange, np.zeros((4, 4, 3), np.uint8))
    assert "readme is no name of HRSCD, such as 14-2012-0415" in refused("HRSCD", top, root)
    strange.unlink()
    path = next((top / "labels_land_cover_2012" / "D35").glob("*0300*"))
    put(path, np.full((SIZE, SIZE), 6, np.uint8))
    assert "holds no land cover: levels go from 0 to 5" in refused("HRSCD", top, root, "--tile", 8, "--from_to")
    for folder in [*top.iterdir()]:
        zipped(folder, top / f"{folder.name}.zip", folder)
    assert "is 16x16: choose a smaller --tile than 1000" in str(prepare_fails("HRSCD", top, root))
    shutil.rmtree(root)
    prepare("HRSCD", top, root, "--tile", 16)
    assert len(stems(root / "train" / "label")) == 2 and len(stems(root / "test" / "label")) == 1


def prepare_fails(name: str, source: Path, root: Path, *options: object) -> UserError:
    with pytest.raises(UserError) as refusal:
        prepare(name, source, root, *options)
    return refusal.value


def test_names_of_hrscd() -> None:
    for name, files in HRSCD_NAMES.items():
        assert {name_place(stem) for stem in (*files, name)} == {name}


# --- WHU-CD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_whu(tmp_path: Path, packed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Each area is one pair, cut into tiles; the masks of buildings and the ready-made tiles are not used."""
    top = source = draw_whu(tmp_path)
    areas = {split: pixels(next(top.glob(f"*/2016/whole_image/{split}/image/*.tif"))) for split in ("train", "test")}
    if packed:
        source = zipped(top, tmp_path / "whu.zip", tmp_path)
    prepare("WHU-CD", source, root := tmp_path / "data", "--tile", 32)
    assert "were published" not in caplog.text
    counts = {}
    for split, area in areas.items():
        mask = whu_mask(area.shape[1])
        for path in (root / split / "label").iterdir():
            row, column = map(int, path.stem.removeprefix("christchurch_").split("_"))
            assert np.array_equal(pixels(path), mask[row : row + 32, column : column + 32])
            assert np.array_equal(pixels(root / split / "B" / path.name), area[row:, column:][:32, :32])
        counts[split] = len(find_split(root, split).pairs)
    assert counts == {"train": 2 * 3, "test": 2 * 2}
    assert (tmp_path / "list" / "WHU-CD-tile32" / "test.txt").read_text().startswith("christchurch_0_0\n")


def test_val_of_whu(tmp_path: Path) -> None:
    """Val gets the last columns of tiles, with a gap to train of one tile; both have their own sources."""
    top, root = draw_whu(tmp_path), tmp_path / "data"
    prepare("WHU-CD", top, root, "--tile", 16, "--val", 0.3)
    columns = {split: {int(stem.rsplit("_", 1)[1]) for stem in stems(root / split / "A")} for split in SPLITS}
    assert columns == {"train": {0, 16, 22}, "val": {54}, "test": {0, 16, 24}}  # 70 pixels; 38 to 53 are the gap
    mask = whu_mask(70)
    for split in ("train", "val"):
        for path in (root / split / "label").iterdir():
            row, column = map(int, path.stem.split("_")[1:])
            assert np.array_equal(pixels(path), mask[row : row + 16, column : column + 16])
    sources = {split: {pair[0] for pair in read_sources(root / split).values()} for split in SPLITS}
    assert [len(hashes) for hashes in sources.values()] == [1, 1, 1] and len(set().union(*sources.values())) == 3
    written = identity(root)
    prepare("WHU-CD", top, root, "--tile", 16, "--val", 0.3)
    assert identity(root) == written
    assert "data/val was cut from the scene of train by --val" in refused("WHU-CD", top, root, "--tile", 16)
    assert "from a run with another --val" in str(prepare_fails("WHU-CD", top, root, "--tile", 16, "--val", 0.6))
    other = tmp_path / "other"
    assert "no tile is left for train" in str(prepare_fails("WHU-CD", top, other, "--tile", 32, "--val", 0.3))
    assert "choose a --tile, or leave --val out" in refused("WHU-CD", top, other, "--tile", 0, "--val", 0.3)


def test_random_split_of_whu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare("whu-cd-256", download(tmp_path, "WHU-CD-256"), tmp_path / "data")
    assert "WHU-CD-256: this split was drawn at random" in caplog.text and "but 6096 were published" in caplog.text


def test_whu_refused(tmp_path: Path) -> None:
    top, root = draw_whu(tmp_path), tmp_path / "data"
    assert "choose a smaller --tile than 256" in str(prepare_fails("WHU-CD", top, root))
    shutil.rmtree(root)
    label = top / "1. The two-period image data" / "change_label"
    label.rename(label.with_name("changes"))
    prepare("WHU-CD", top, tmp_path / "renamed", "--tile", 40, "--label", "changes/{split}")
    shutil.rmtree(label.with_name("changes"))
    assert "has no images in folders change_label/{split}" in refused("WHU-CD", top, root)


# --- S2Looking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("turned", "seen"), [(False, True), (True, True), (False, False)])
def test_direction(tmp_path: Path, turned: bool, seen: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The images say which label holds the new houses; if they do not, the published order counts."""
    top = draw_s2looking(tmp_path, turned, seen)
    prepare("S2Looking", top, root := tmp_path / "data", "--direction")
    assert (root / "classes.txt").read_text() == "new <-> vanished\n"
    new, vanished = square(8, 10, 30), square(30, 50, 36)
    assert np.array_equal(pixels(root / "val" / "label" / "0.png"), np.where(vanished, 2, 0) * (1 - new) + new)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("label1 is taken for the new houses" in text for text in warnings) == (not seen)
    assert any("unlike published (0 of 24 masks fit" in text for text in warnings) == turned
    assert ("24 of 24 masks fit" in caplog.text) == (seen and not turned)
    assert "label1 and label2 (houses" not in caplog.text
    assert "val: 1 pairs" in caplog.text
    overlap = 19  # rows 30 to 48 of column 39, in the last train pair
    assert f"train: {overlap} pixels are both new and vanished, and are marked as new" in caplog.text
    assert "val: 19" not in caplog.text and "in label" not in caplog.text
    last = pixels(root / "train" / "label" / "11.png")
    assert (last[30:49, 39] == 1).all() and (last[49:66, 39] == 2).all()


def test_labels_that_contradict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What only label marks has no direction; what label lacks keeps its class. Both are counted."""
    top = draw_s2looking(tmp_path, pairs=1)
    put(top / "val" / "label" / "0.png", (square(8, 10, 20) | square(70, 0, 5)) * np.uint8(255))
    prepare("S2Looking", top, root := tmp_path / "data", "--direction", "--tile", 32)
    assert "25 pixels are changed in label, but neither new nor vanished, and are marked as unchanged" in caplog.text
    lost = 30 * 30 - 20 * 20 + 36 * 36
    assert f"val: {lost} pixels are new or vanished, but unchanged in label, and are marked" in caplog.text
    assert "marked in label" not in caplog.text and "the images do not show it (2 of 2 masks" in caplog.text
    whole = np.zeros((96, 96), np.uint8)
    for path in (root / "val" / "label").iterdir():
        row, column = map(int, path.stem.split("_")[1:])
        whole[row : row + 32, column : column + 32] = pixels(path)
    assert np.array_equal(whole, square(8, 10, 30) + 2 * square(30, 50, 36))


def test_direction_refused(tmp_path: Path) -> None:
    top, root = draw_s2looking(tmp_path, pairs=2), tmp_path / "data"
    prepare("S2Looking", top, other := tmp_path / "other")
    assert "other has masks without classes" in refused("S2Looking", top, other, "--direction")
    put(top / "train" / "label2" / "1.png", np.ones((96, 96), np.uint8))
    assert "label2/1.png goes up to 1 of 255" in refused("S2Looking", top, root, "--direction")
    (top / "train" / "label2" / "1.png").unlink()
    assert "no file for 1 in label2 (train)" in refused("S2Looking", top, root, "--direction")
    prepare("S2Looking", top, root)  # without the option, these files do not matter
