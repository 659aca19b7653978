"""Downloads in their real layouts become splits that `find_split` reads; nothing is lost, changed or overwritten."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import change.data.prepare
from change.change_dataloader import SUFFIXES, find_split
from change.common.errors import UserError
from change.common.names import read_list
from change.data.known_sets import DATA_SETS
from tests.conftest import REPOSITORY
from tests.data.downloads import (
    FOLDERS,
    FORMS,
    LISTED,
    SPLITS,
    Form,
    as_folder,
    as_zip,
    as_zips,
    download,
    identity,
    stems,
    tree,
)

pytestmark = pytest.mark.usefixtures("prepare_logs")


class Workshop:
    """The folders of a test: downloads, ROOT and the lists, all outside the repository."""

    def __init__(self, folder: Path) -> None:
        self.source, self.root, self.lists = folder / "downloads", folder / "data", folder / "list"

    def prepare(self, name: str, source: Path, *options: object) -> None:
        assert change.data.prepare.main(self.arguments(name, source, *options)) == 0

    def arguments(self, name: str, source: Path, *options: object) -> list[str]:
        return [str(part) for part in (name, source, self.root, "--list_path", self.lists, *options)]

    def refused(self, name: str, source: Path, *options: object, match: str) -> None:
        """Check that a download is refused in one line, and that nothing is written."""
        before = tree(self.root), tree(self.lists)
        with pytest.raises(UserError, match=match) as refusal:
            self.prepare(name, source, *options)
        assert "\n" not in str(refusal.value)
        assert (tree(self.root), tree(self.lists)) == before


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def command(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "change", "prepare", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, check=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FOLDERS)
def test_layouts(shop: Workshop, name: str, form: Form, caplog: pytest.LogCaptureFixture) -> None:
    """Every pair arrives with its bytes, `find_split` reads it, the source stays, and a second run writes nothing."""
    top = download(shop.source, name)
    content = tree(top)
    source = form(top)
    untouched = tree(shop.source)
    shop.prepare(name.lower(), source)
    expected: dict[str, str] = {}
    for split in SPLITS:
        place = "" if name in LISTED else f"{split}/"
        for sub, kind in zip(FOLDERS[name], ("A", "B", "label"), strict=True):
            for path, digest in content.items():
                if path.startswith(f"{place}{sub}/") and Path(path).stem in stems(name, split):
                    expected[f"{split}/{kind}/{Path(path).name}"] = digest
        found = find_split(shop.root, split, shop.lists / name / f"{split}.txt")
        assert [pair.name for pair in found.pairs] == stems(name, split)
        assert found.binary == (name == "CLCD")
    assert tree(shop.root) == expected
    assert tree(shop.source) == untouched
    assert ("are also in train" in caplog.text) == (name == "DSIFN-CD-256")
    assert ("label1 and label2" in caplog.text) == (name == "S2Looking")
    assert "train: 4 pairs" in caplog.text and " were published" in caplog.text
    written = identity(shop.root), identity(shop.lists)
    caplog.clear()
    shop.prepare(name, source)
    assert (identity(shop.root), identity(shop.lists)) == written
    assert "files: 12 kept" in caplog.text and "is kept" not in caplog.text


def test_shipped_lists() -> None:
    published = {"LEVIR-CD": (445, 64, 128), "S2Looking": (3500, 500, 1000)}
    for name, counts in published.items():
        names = [read_list(REPOSITORY / "list" / name / f"{split}.txt", SUFFIXES) for split in SPLITS]
        assert tuple(map(len, names)) == counts == DATA_SETS[name].pairs
        assert len(set().union(*names)) == sum(counts)
    assert (names[0][9], names[1][0], names[2][-1]) == ("10", "3501", "5000")


def test_shipped_lists_split_one_folder(shop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    """S2Looking in one folder: a list that exists stays, and what ROOT lacks of it is logged."""
    top = download(shop.source, "S2Looking")
    for split in SPLITS:
        shutil.copytree(top / split, top / "all", dirs_exist_ok=True)
        shutil.rmtree(top / split)
    shutil.copytree(REPOSITORY / "list" / "S2Looking", shop.lists / "S2Looking")
    shipped = tree(shop.lists)
    shop.prepare("S2Looking", as_zip(top))
    assert [len([*(shop.root / split / "B").iterdir()]) for split in SPLITS] == [4, 3, 3]
    assert tree(shop.lists) == shipped
    assert "4990 listed names have no pair" in caplog.text
    assert f"{shop.root / 'train'} lacks 3496 of its pairs" in caplog.text
    assert "4 pairs, but 3500 were published" in caplog.text


def test_links_else_copies(shop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    top = download(shop.source, "CLCD")
    linked, original = shop.root / "train" / "A" / "8.png", top / "train" / "time1" / "8.png"
    shop.prepare("CLCD", top)
    assert linked.samefile(original) and "12 linked" in caplog.text
    shutil.rmtree(shop.root)

    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    shop.prepare("CLCD", top)
    assert not linked.samefile(original) and linked.read_bytes() == original.read_bytes() and "12 copied" in caplog.text
    copied = identity(shop.root)
    shop.prepare("CLCD", top)
    assert identity(shop.root) == copied


KILLED = """
import os, signal, sys
real, calls = os.fsync, []
def fsync(number):
    calls.append(number)
    if len(calls) > 9:
        os.kill(os.getpid(), signal.SIGKILL)
    real(number)
os.fsync = fsync
from change.data.prepare import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_and_completed(shop: Workshop) -> None:
    """A process that is killed while it writes leaves complete files; the next one adds the others."""
    top = download(shop.source, "LEVIR-CD")
    content = {digest for path, digest in tree(top).items() if path.endswith(".png")}
    arguments = shop.arguments("LEVIR-CD", as_zips(top))
    result = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert result.returncode == -signal.SIGKILL
    assert [*shop.root.rglob(".*.part")] and not shop.lists.exists()
    left = {path: key for path, key in identity(shop.root).items() if path.endswith(".png")}
    assert 0 < len(left) < 30
    shop.prepare("LEVIR-CD", top)
    assert set(tree(shop.root).values()) == content and not [*shop.root.rglob(".*.part")]
    assert {path: key for path, key in identity(shop.root).items() if path in left} == left
    assert len([*shop.lists.rglob("*.txt")]) == 3


def test_nothing_is_overwritten(shop: Workshop) -> None:
    top = download(shop.source, "CLCD")
    shop.prepare("CLCD", top)
    target = shop.root / "val" / "label" / "9.png"
    for data in (b"x", target.read_bytes()[:-1] + b"x"):  # another size; the same size
        target.unlink()
        target.write_bytes(data)
        shop.refused("CLCD", top, match=r"val/label/9\.png differs from .*CLCD/val/label/9\.png")
    shutil.rmtree(shop.root)
    shop.prepare("CLCD", archive := as_zip(top))
    target.write_bytes(target.read_bytes()[:-1] + b"x")
    shop.refused("CLCD", archive, match=r"val/label/9\.png differs from .*CLCD\.zip: CLCD/val/label/9\.png")
    target.rename(target.with_name("stranger.png"))
    shop.refused("CLCD", archive, match=r"label/stranger\.png: not from SOURCE")


def test_unpacked_beside_its_zip(shop: Workshop) -> None:
    """Files on disk come first; what is missing comes from the zip; a truncated file is an error."""
    top = download(shop.source, "LEVIR-CD")
    shutil.copytree(top, shop.source / "copy")
    as_zip(top)
    (shop.source / "copy").rename(top)
    (top / "train" / "A" / "train_9.png").unlink()
    shop.prepare("LEVIR-CD", shop.source)
    assert (shop.root / "train" / "A" / "train_8.png").samefile(top / "train" / "A" / "train_8.png")
    assert find_split(shop.root, "train").pairs[-1].name == "train_9"
    (top / "train" / "A" / "train_8.png").unlink()
    (top / "train" / "A" / "train_8.png").write_bytes(b"stump")
    shop.refused("LEVIR-CD", shop.source, match=r"train_8\.png and .*LEVIR-CD\.zip: .*train_8\.png share a stem")


# --- other data sets, tiles ------------------------------------------------------------------------------------------


def test_any_data_set(shop: Workshop) -> None:
    """Name the folders, without masks; take lists from beside the images and from disk."""
    top = download(shop.source, "DSIFN-CD-256")
    (top / "list").rename(top / "mine")
    for sub, path in {"A": "year/2010", "B": "year/2020"}.items():
        (top / path).parent.mkdir(exist_ok=True)
        (top / sub).rename(top / path)
    folders = ("--before", "year/2010", "--after", "year/2020")
    shop.refused("mine", top, match="mine: name a folder with each of --before, --after .*, --label; only LEVIR")
    no_splits = "has no splits: it needs folders train, val, test, or lists train.txt, val.txt, test.txt"
    shop.refused("mine", top, *folders, match=no_splits)
    shop.refused("mine", top, *folders, "--list", "other", match=no_splits)
    shutil.copytree(top / "mine", shop.source / "on_disk")
    (top / "mine" / "test.txt").unlink()
    shop.prepare("mine", archive := as_zip(top), *folders, "--list", "mine")
    assert sorted(path.name for path in shop.root.iterdir()) == ["train", "val"]
    assert sorted(path.name for path in (shop.root / "train").iterdir()) == ["A", "B"]
    assert read_list(shop.lists / "mine" / "val.txt", SUFFIXES) == stems("DSIFN-CD-256", "val")
    assert not find_split(shop.root, "val", need_labels=False).labelled
    shop.prepare("mine2", archive, *folders, "--list", shop.source / "on_disk")
    assert len(find_split(shop.root, "test", need_labels=False).pairs) == 3


@pytest.mark.parametrize("form", [as_folder, as_zips])
def test_tiles(shop: Workshop, form: Form) -> None:
    """Tiles cover the image, the last one ends at its border; palettes, 16 bits and one bit keep their values."""
    top = download(shop.source, "CLCD", size=40)
    label = top / "train" / "label"
    levels = np.random.default_rng(0).integers(0, 2, (40, 40), np.uint8)
    masks = {
        "8": PIL.Image.fromarray(levels.astype(np.uint16) * 65535),
        "9": PIL.Image.fromarray(levels).convert("1"),
        "10": PIL.Image.fromarray(levels, "L").convert("P"),
    }
    for stem, image in masks.items():
        image.save(label / f"{stem}.png")
    originals = {path: np.asarray(PIL.Image.open(path)) for path in top.rglob("*.png")}
    source = form(top)
    shop.prepare("CLCD", source, "--tile", 16, "--overlap", 4)
    seen = 0
    for path, whole in originals.items():
        split, sub, stem = path.parts[-3], path.parts[-2], path.stem
        kind = {"time1": "A", "time2": "B", "label": "label"}[sub]
        tiles = [*(shop.root / split / kind).glob(f"{stem}_*.png")]
        assert len(tiles) == 9
        joined = np.zeros_like(whole)
        covered = np.zeros(whole.shape[:2], int)
        for tile in tiles:
            top_row, left = map(int, tile.stem.split("_")[1:])
            part = np.asarray(PIL.Image.open(tile))
            assert part.shape[:2] == (16, 16) and {top_row, left} <= {0, 12, 24}
            joined[top_row : top_row + 16, left : left + 16] = part
            covered[top_row : top_row + 16, left : left + 16] += 1
        assert covered.min() == 1 and np.array_equal(joined, whole)
        seen += 1
    assert seen == 30
    names = read_list(shop.lists / "CLCD-tile16-overlap4" / "train.txt", SUFFIXES)
    assert names[:4] == ["8_0_0", "8_0_12", "8_0_24", "8_12_0"] and len(names) == 36
    assert len(find_split(shop.root, "val", shop.lists / "CLCD-tile16-overlap4" / "val.txt").pairs) == 27
    written = identity(shop.root)
    (shop.root / "train" / "A" / "8_12_0.png").unlink()
    shop.prepare("CLCD", source, "--tile", 16, "--overlap", 4)
    assert {path for path, key in identity(shop.root).items() if written[path] != key} == {"train/A/8_12_0.png"}
    shop.refused("CLCD", source, match="not from SOURCE")
    shop.refused("CLCD", source, "--tile", 32, match="_0_0.png differs from")


def test_flush_border(shop: Workshop) -> None:
    top = download(shop.source, "CLCD", size=40)
    shop.prepare("CLCD", top, "--tile", 32)
    assert read_list(shop.lists / "CLCD-tile32" / "test.txt", SUFFIXES)[:4] == ["8_0_0", "8_0_8", "8_8_0", "8_8_8"]


def test_images_that_no_tile_can_hold(shop: Workshop) -> None:
    top = download(shop.source, "CLCD")
    only = top / "train"
    for split in ("val", "test"):
        shutil.rmtree(top / split)
    shop.refused("CLCD", top, "--tile", 17, match=r"time1/8\.png is 16x16: choose a smaller --tile than 17")
    for stem in ("9", "10", "11"):
        for sub in FOLDERS["CLCD"]:
            (only / sub / f"{stem}.png").unlink()
    deep = only / "time2" / "8.png"
    PIL.Image.fromarray(np.full((16, 16), 4000, np.uint16)).save(deep)
    shop.refused("CLCD", top, "--tile", 8, match=r"time2/8\.png is of mode I;?\d*, \d+ bit: convert it to 8 bits")
    PIL.Image.new("RGB", (16, 24)).save(deep)
    shop.refused("CLCD", top, "--tile", 8, match=r"sizes differ: .*time2/8\.png 16x24")
    deep.write_bytes((only / "time1" / "8.png").read_bytes()[:300])
    shop.refused("CLCD", top, "--tile", 8, match=r"time2/8\.png cannot be decoded")


# --- what is refused -------------------------------------------------------------------------------------------------


def add_entry(archive: Path, name: str, mode: int = 0o100644) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(info, b"/etc/passwd")


@pytest.mark.parametrize("entry", ["../x.png", "A/../../x.png", "/abs/x.png", "C:/x.png", "..\\x.png", "link.png"])
def test_entries_that_lead_out_of_the_zip(shop: Workshop, entry: str) -> None:
    archive = as_zip(download(shop.source, "CLCD"))
    add_entry(archive, entry, 0o120777 if entry == "link.png" else 0o100644)
    shop.refused("CLCD", archive, match=r"CLCD\.zip: its entry '.*(x|link)\.png' leads out of it")


def test_damaged_zips(shop: Workshop) -> None:
    archive = as_zip(download(shop.source, "CLCD"))
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("CLCD/train/time1/8.png")
    archive.write_bytes(whole[: len(whole) // 2])
    shop.refused("CLCD", archive, match=r"CLCD\.zip is not a complete zip file")
    start = info.header_offset + 30 + len(info.filename)
    archive.write_bytes(whole[: start + 9] + bytes(40) + whole[start + 49 :])
    with pytest.raises(UserError, match=r"CLCD\.zip: CLCD/train/time1/8\.png cannot be read"):
        shop.prepare("CLCD", archive)
    assert not (shop.root / "train" / "A" / "8.png").exists() and not shop.lists.exists()
    shutil.rmtree(shop.root)
    directory = whole.rindex(b"CLCD/train/time1/8.png") - 46 + 8  # flags of the entry in the central directory
    archive.write_bytes(whole[:directory] + b"\x01" + whole[directory + 1 :])
    shop.refused("CLCD", archive, match=r"CLCD\.zip: its entry 'CLCD/train/time1/8\.png' is encrypted")


def test_missing_partners(shop: Workshop) -> None:
    top = download(shop.source, "DSIFN-CD")
    (top / "val" / "mask" / "9.tif").unlink()
    (top / "train" / "t2" / "11.jpg").unlink()
    shop.refused("DSIFN-CD", top, match=r"no file for 11 in t2 \(train\), 9 in mask \(val\)")
    shutil.rmtree(top / "train" / "t2")
    shop.refused("DSIFN-CD", as_zip(top), match=r"no file for 8 in t2 \(train\), 9 in t2 \(train\), .* and 2 more")


def test_sources_that_are_not_clear(shop: Workshop) -> None:
    levir = download(shop.source, "LEVIR-CD")
    shop.refused("DSIFN-CD", shop.source / "none", match="none does not exist: SOURCE is the download")
    shop.refused("DSIFN-CD", REPOSITORY / "README.md", match=r"README\.md is not a complete zip file")
    shop.refused("CLCD", REPOSITORY / "models", match="has no images in folders time1, time2, label: name its")
    s2looking = download(shop.source / "s2", "S2Looking")
    shop.refused("LEVIR-CD", s2looking, match="has no images in folders A, B: name its folders with --before")
    shutil.rmtree(shop.source / "s2")
    shop.refused("LEVIR-CD", levir, "--list", shop.lists, match="has folders for its splits .*: leave it out")
    shutil.copytree(levir, shop.source / "other")
    shop.refused("LEVIR-CD", shop.source, match="holds two data sets, or one twice .*: give the folder of one")
    shutil.copy(levir / "val" / "B" / "val_9.png", levir / "val" / "B" / "val_9.tif")
    shop.refused("LEVIR-CD", levir, match=r"val_9\.(png|tif) and .*val_9\.(png|tif) share a stem and differ")
    shop.root = levir
    with pytest.raises(UserError, match="is in SOURCE, where nothing is written"):
        shop.prepare("LEVIR-CD", levir)


def test_lists_with_duplicate_names(shop: Workshop) -> None:
    top = download(shop.source, "LEVIR-CD-256")
    (top / "list" / "val.txt").write_text("val_2_1.png\nval_2_1.png\n")
    shop.refused("LEVIR-CD-256", top, match=r"val\.txt has duplicate names: val_2_1;")


@pytest.mark.parametrize("options", [("--tile", -1), ("--overlap", 4), ("--tile", 8, "--overlap", 8)])
def test_tile_values(shop: Workshop, options: tuple[object, ...]) -> None:
    shop.refused("CLCD", download(shop.source, "CLCD"), *options, match="--tile .* --overlap .*: choose")


@pytest.mark.slow
def test_command(shop: Workshop) -> None:
    """Run the verb as a process: it logs what it wrote, and refuses in one line with exit code 2."""
    archive = as_zip(download(shop.source, "CLCD"))
    result = command(shop.arguments("clcd", archive))
    assert result.returncode == 0, result.stderr
    assert f"{shop.root / 'test'}: 3 pairs; files: 9 from zip" in result.stderr
    add_entry(archive, "../evil.png")
    result = command(shop.arguments("CLCD", archive))
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and "'../evil.png'" in result.stderr


def test_folder_that_cannot_be_written(shop: Workshop) -> None:
    top = download(shop.source, "CLCD")
    shop.root.write_text("a file")
    with pytest.raises(UserError, match="cannot make the folder"):
        shop.prepare("CLCD", top)
