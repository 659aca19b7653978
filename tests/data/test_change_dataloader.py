"""Splits: layouts, lists, images shared by two splits, and errors that name files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from change.change_dataloader import find_split, shared_images
from change.common.files import file_hash
from change.data.loaders import or_raise, whole_loader
from change.data.samples import WholeSamples
from tests.conftest import draw_pair, write_pairs
from tests.data.helpers import names, save, truncate, user_error

Breaker = Callable[[Path], object]


def test_split_folders(dataset: Path) -> None:
    train, val = find_split(dataset, "train"), find_split(dataset, "val")
    assert (names(train), names(val)) == (["0", "1", "2", "3", "4"], ["0", "1"])
    assert {pair.size for pair in train.pairs} == {(96, 64)}
    pair = val.pairs[1]
    folder = dataset / "val"
    assert (pair.before, pair.after, pair.mask) == tuple(folder / sub / "1.png" for sub in ("A", "B", "label"))


def test_one_folder_with_and_without_labels(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 2)
    assert find_split(root, "").labelled
    shutil.rmtree(root / "label")
    split = find_split(root, "", need_labels=False)
    assert not split.labelled
    assert names(split) == ["0", "1"]
    (batch,) = or_raise(whole_loader(WholeSamples(split), 2, workers=0))
    assert batch.mask.shape == (2, 1, 64, 64)
    assert not batch.mask.any()
    assert str(root / "label") in user_error(lambda: find_split(root, ""))


def test_flat_folder_with_lists(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "data", 4)
    (root / "list").mkdir()
    (root / "list" / "train.txt").write_bytes(b"\xef\xbb\xbf2\r\n\r\n 0.png \r\n")  # as editors on Windows save it
    (root / "list" / "val.txt").write_text("1\n")
    (tmp_path / "other.txt").write_text("3.tif\n1")
    assert names(find_split(root, "train")) == ["2", "0"]
    assert names(find_split(root, "val")) == ["1"]
    assert names(find_split(root, "test", tmp_path / "other.txt")) == ["3", "1"]
    assert names(find_split(root, "")) == ["0", "1", "2", "3"]


def test_lists_as_people_write_them(tmp_path: Path) -> None:
    """Comments are skipped, and UTF-16 is read by its mark; a name that is a stem is taken as it is."""
    root = write_pairs(tmp_path / "data", 3)
    for sub in ("A", "B", "label"):
        (root / sub / "1.png").rename(root / sub / "1.tif.png")
        (root / sub / "2.png").rename(root / sub / "#2.png")
    (tmp_path / "list.txt").write_bytes("# May\n1.tif\n#2\n0.tif\n".encode("utf-16"))
    assert names(find_split(root, "", tmp_path / "list.txt")) == ["1.tif", "#2", "0"]
    (tmp_path / "list.txt").write_text("1.tif.png\n")
    assert names(find_split(root, "", tmp_path / "list.txt")) == ["1.tif"]


def test_list_within_split_folders(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("4\n2\n")
    assert names(find_split(dataset, "train", tmp_path / "few.txt")) == ["4", "2"]


def test_pairs_by_stem_across_suffixes_and_sizes(tmp_path: Path) -> None:
    files = {
        "a.b": (("A", ".PNG"), ("B", ".jpeg"), ("label", ".bmp")),
        "x": (("A", ".jpg"), ("B", ".TIF"), ("label", ".tiff")),
    }
    sizes = {"a.b": (40, 24), "x": (17, 33)}
    for seed, (stem, parts) in enumerate(files.items()):
        pictures = draw_pair(np.random.default_rng(seed), *sizes[stem])
        for (sub, suffix), picture in zip(parts, pictures, strict=True):
            save(tmp_path / sub / f"{stem}{suffix}", picture)
    for ignored in ("A/.a.png", "A/._x.jpg", "B/Thumbs.db", "label/notes.txt", "A/x.jpg.aux.xml"):
        (tmp_path / ignored).write_bytes(b"no image")
    split = find_split(tmp_path, "")
    assert {p.name: p.size for p in split.pairs} == sizes
    for pair in split.pairs:
        assert pair.mask is not None
        expected = [f"{sub}/{pair.name}{suffix}" for sub, suffix in files[pair.name]]
        assert [str(path.relative_to(tmp_path)) for path in (pair.before, pair.after, pair.mask)] == expected


@pytest.mark.parametrize("sub", ["A", "B"])
@pytest.mark.parametrize(
    ("suffix", "channels", "dtype"),
    [
        (".png", 1, np.uint16),
        (".png", 3, np.uint16),
        (".png", 4, np.uint16),
        (".tif", 1, np.uint16),
        (".tif", 3, np.uint16),
        (".tif", 1, np.float32),
    ],
)
def test_images_of_more_than_8_bits_are_refused(
    tmp_path: Path, sub: str, suffix: str, channels: int, dtype: type[np.generic]
) -> None:
    root = write_pairs(tmp_path, 2)
    (root / sub / "1.png").unlink()
    path = root / sub / f"1{suffix}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 65536, (64, 64, channels)).astype(dtype))
    message = user_error(lambda: find_split(root, ""))
    assert str(path) in message
    assert "8-bit RGB" in message


def test_images_that_train_and_val_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are compared by content, whatever their names and dates; equal masks do not count."""
    black = np.zeros((64, 64), np.uint8)
    for seed in range(8):
        before, after, _ = draw_pair(np.random.default_rng(seed), 64, 64)
        for sub, picture in (("A", before), ("B", after), ("label", black)):
            save(tmp_path / ("train", "val")[seed // 4] / sub / f"{seed % 4}.bmp", picture)
    train, val = find_split(tmp_path, "train"), find_split(tmp_path, "val")
    hashed: list[Path] = []

    def hashing(path: Path) -> str:
        hashed.append(path)
        return file_hash(path)

    monkeypatch.setattr("change.change_dataloader.file_hash", hashing)
    assert shared_images(train, val) == []
    assert not hashed
    shutil.copy(tmp_path / "val" / "A" / "2.bmp", tmp_path / "train" / "B" / "0.bmp")
    shutil.copy(tmp_path / "val" / "B" / "1.bmp", tmp_path / "train" / "B" / "3.bmp")
    truncate(tmp_path / "train" / "A" / "1.bmp")  # nothing is decoded
    assert shared_images(train, val) == ["1", "2"]
    compared = ["train/B/0.bmp", "train/B/3.bmp", "val/A/2.bmp", "val/B/1.bmp"]
    assert sorted({path.relative_to(tmp_path).as_posix() for path in hashed}) == compared
    assert shared_images(val, val) == ["0", "1", "2", "3"]


BROKEN: dict[str, tuple[Breaker, str]] = {
    "no root": (shutil.rmtree, "no folder ROOT:"),
    "no folder": (lambda root: shutil.rmtree(root / "B"), "no folder ROOT/B"),
    "no before": (lambda root: (root / "A" / "1.png").unlink(), "1 in A"),
    "no after": (lambda root: (root / "B" / "1.png").unlink(), "1 in B"),
    "no mask": (lambda root: (root / "label" / "1.png").unlink(), "1 in label"),
    "no bytes": (lambda root: (root / "B" / "2.png").write_bytes(b""), "ROOT/B/2.png has no readable image header"),
    "no image": (lambda root: (root / "label" / "0.png").write_text("text"), "ROOT/label/0.png has no readable"),
    "another size of after": (
        lambda root: save(root / "B" / "1.png", np.zeros((64, 63, 3), np.uint8)),
        "ROOT/A/1.png 64x64, ROOT/B/1.png 63x64, ROOT/label/1.png 64x64",
    ),
    "another size of mask": (
        lambda root: save(root / "label" / "0.png", np.zeros((32, 64), np.uint8)),
        "ROOT/label/0.png 64x32",
    ),
    "one stem twice": (
        lambda root: shutil.copy(root / "A" / "1.png", root / "A" / "1.tif"),
        "1.png and 1.tif share a stem",
    ),
    "no pairs": (
        lambda root: [shutil.move(path, root / path.parent.name / "notes.txt") for path in root.glob("*/*.png")],
        "ROOT holds no pairs",
    ),
}


@pytest.mark.parametrize(("spoil", "expected"), BROKEN.values(), ids=BROKEN)
def test_broken_splits_are_named_at_the_start(tmp_path: Path, spoil: Breaker, expected: str) -> None:
    root = write_pairs(tmp_path / "data", 3)
    spoil(root)
    assert expected.replace("ROOT", str(root)) in user_error(lambda: find_split(root, ""))


def test_many_faults_are_counted(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 6)
    for path in (root / "B").iterdir():
        path.unlink()
    assert "0 in B, 1 in B, 2 in B and 3 more" in user_error(lambda: find_split(root, ""))


def test_the_likely_folder_is_suggested(dataset: Path) -> None:
    assert f"did you mean {dataset / 'train'}?" in user_error(lambda: find_split(dataset, ""))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "LIST is empty"),
        (b" \n\n", "LIST is empty"),
        (b"0\n7\n", "no file for 7 in A, 7 in B, 7 in label"),
        (b"0\n1\n0\n1.png\n", "LIST has duplicate names: 0, 1;"),
        ("é\n".encode("latin-1"), "LIST is not text in UTF-8: save it with that encoding"),
        ("0\n1\n".encode("utf-16-le"), "LIST is not text in UTF-8: save it with that encoding"),
        (None, "LIST is missing: ROOT holds A and B of all splits, so a list must name the pairs of train"),
    ],
    ids=["empty", "blank", "unknown", "double", "not UTF-8", "UTF-16 without mark", "missing"],
)
def test_broken_lists_are_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    root = write_pairs(tmp_path / "data", 2)
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    message = user_error(lambda: find_split(root, "train", path))
    assert expected.replace("LIST", str(path)).replace("ROOT", str(root)) in message


def test_missing_lists(dataset: Path) -> None:
    assert "no list nowhere.txt" in user_error(lambda: find_split(dataset, "train", Path("nowhere.txt")))
    flat = dataset / "val"
    assert str(flat / "list" / "val.txt") in user_error(lambda: find_split(flat, "val"))


def test_rate_of_change(tmp_path: Path) -> None:
    """The rate is that of all pixels, also if images differ in size."""
    for name, size, changed in (("a", 8, 16), ("b", 16, 0)):
        mask = np.zeros((size, size), np.uint8)
        mask.flat[:changed] = 255
        for sub, picture in (
            ("A", np.zeros((size, size, 3), np.uint8)),
            ("B", np.ones((size, size, 3), np.uint8)),
            ("label", mask),
        ):
            save(tmp_path / sub / f"{name}.png", picture)
    assert find_split(tmp_path, "").changed == pytest.approx(16 / (64 + 256))
