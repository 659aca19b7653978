"""The data side: layouts, mask rules, errors that name files, draws that follow from (seed, epoch, sample) alone."""

from __future__ import annotations

import gc
import hashlib
import shutil
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

from change.change_dataloader import Split, find_split, rate_of_change, shared_images
from change.common.errors import UserError
from change.common.files import file_hash
from change.common.images import image_hash, read_image
from change.data.loaders import TrainLoader, or_raise, whole_loader
from change.data.masks import read_mask
from change.data.samples import Batch, TrainSamples, WholeSamples
from change.data.transforms import ColorJitter
from tests.conftest import REPOSITORY, draw_pair, run_program, write_pairs

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
Array = NDArray[np.uint8]
Breaker = Callable[[Path], object]


def save(path: Path, picture: NDArray[Any] | PIL.Image.Image, **options: Any) -> Path:
    """Write a picture with Pillow, in place of all others of the same stem, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f"{path.stem}.*"):
        other.unlink()
    image = picture if isinstance(picture, PIL.Image.Image) else PIL.Image.fromarray(picture)
    image.save(path, **options)
    return path


def truncate(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def user_error(action: Callable[[], object]) -> str:
    """The one line with which `action` must end."""
    try:  # pytest.raises would keep the traceback, and with it a loader's workers, until some later test
        action()
    except UserError as error:
        message = str(error)
    else:
        pytest.fail("no UserError")
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def names(split: Split) -> list[str]:
    return [pair.name for pair in split.pairs]


# --- layouts -------------------------------------------------------------------------------------------------------


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
    (root / "list" / "train.txt").write_bytes(b"\xef\xbb\xbf2\r\n\r\n 0.png \r\n")  # as Windows' editors save it
    (root / "list" / "val.txt").write_text("1\n")
    (tmp_path / "other.txt").write_text("3.tif\n1")
    assert names(find_split(root, "train")) == ["2", "0"]
    assert names(find_split(root, "val")) == ["1"]
    assert names(find_split(root, "test", tmp_path / "other.txt")) == ["3", "1"]
    assert names(find_split(root, "")) == ["0", "1", "2", "3"]


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


# --- masks and images ----------------------------------------------------------------------------------------------


def palette(mask: Array, *colours: int) -> PIL.Image.Image:
    image = PIL.Image.fromarray(mask)
    image.putpalette(colours)
    return image


MASKS: dict[str, tuple[str, Callable[[Array], NDArray[Any] | PIL.Image.Image], bool]] = {
    "8 bits of 0 and 1": (".png", lambda m: m, True),
    "8 bits of 0 and 255": (".png", lambda m: m * 255, False),
    "1 bit PNG": (".png", lambda m: PIL.Image.fromarray(m > 0), True),
    "1 bit TIFF": (".tif", lambda m: PIL.Image.fromarray(m > 0), True),
    "1 bit BMP": (".bmp", lambda m: PIL.Image.fromarray(m > 0), True),
    "16 bits of 0 and 65535": (".png", lambda m: m.astype(np.uint16) * 65535, False),
    "16 bits of 0 and 65535, TIFF": (".tif", lambda m: m.astype(np.uint16) * 65535, False),
    "16 bits of 0 and 1": (".png", lambda m: m.astype(np.uint16), True),
    "grey RGB": (".png", lambda m: np.dstack([m, m, m]) * 255, False),
    "grey RGB of 0 and 1": (".bmp", lambda m: np.dstack([m, m, m]), True),
    "grey RGBA": (".png", lambda m: np.dstack([m * 255] * 3 + [m * 0 + 255]), False),
    "grey with alpha": (".png", lambda m: np.dstack([m * 255, m * 0 + 255]), False),
    "black and white palette": (".png", lambda m: palette(m, 0, 0, 0, 255, 255, 255), False),
    "white first palette": (".png", lambda m: palette(1 - m, 255, 255, 255, 0, 0, 0), False),
}


@pytest.mark.parametrize(("suffix", "encode", "binary"), MASKS.values(), ids=MASKS)
def test_mask_rules(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    encode: Callable[[Array], NDArray[Any] | PIL.Image.Image],
    binary: bool,
) -> None:
    root = write_pairs(tmp_path, 3)
    expected: list[Array] = []
    for index in range(3):
        with PIL.Image.open(root / "label" / f"{index}.png") as image:
            expected.append((np.asarray(image) > 0).astype(np.uint8) * (index > 0))  # the first marks nothing
        save(root / "label" / f"{index}{suffix}", encode(expected[-1]))
    with caplog.at_level("INFO"):
        split = find_split(root, "")
    assert split.binary == binary
    (said,) = caplog.messages
    assert ("changed is 1" in said, "above half" in said) == (binary, not binary)
    for pair, mask in zip(split.pairs, expected, strict=True):
        assert pair.mask is not None
        np.testing.assert_array_equal(read_mask(pair.mask, split.binary), mask)


def test_one_bit_masks_go_with_any_others(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 2)
    mask = np.eye(64, dtype=np.uint8)
    path = save(root / "label" / "0.png", PIL.Image.fromarray(mask > 0))
    split = find_split(root, "")
    assert not split.binary
    np.testing.assert_array_equal(read_mask(path, split.binary), mask)


@pytest.mark.parametrize(("dtype", "half"), [(np.uint8, 127), (np.uint16, 32767)])
def test_changed_is_above_half(tmp_path: Path, dtype: type[np.unsignedinteger[Any]], half: int) -> None:
    root = write_pairs(tmp_path, 1)
    top = 2 * half + 1
    path = save(root / "label" / "0.png", np.tile(np.array([0, half, half + 1, top], dtype), (64, 16)))
    split = find_split(root, "")
    assert read_mask(path, split.binary)[5, :4].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("suffix", "level"), [(".png", 0), (".tif", 0), (".jpg", 2)], ids=["PNG", "TIFF", "JPEG of 0 and 2"]
)
def test_a_split_without_change_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, level: int
) -> None:
    root = write_pairs(tmp_path, 2)
    for index in range(2):
        mask = np.zeros((64, 64), np.uint8)
        mask[:32] = level
        save(root / "label" / f"{index}{suffix}", mask)
    assert find_split(root, "").binary == (level < 2)
    assert [(record.levelname, "no mask marks any change" in record.message) for record in caplog.records] == [
        ("WARNING", True)
    ]


def save_faint(path: Path) -> None:
    """A mask of 0 and 1 among those of 0 and 255."""
    save(path, np.eye(64, dtype=np.uint8))


def save_deep_colour(path: Path) -> None:
    """0 and 1 in 16 bits of three channels, of which Pillow keeps the high byte alone."""
    cv2.imwrite(str(path), np.dstack([np.eye(64, dtype=np.uint16)] * 3))


def save_red(path: Path) -> None:
    save(path, np.dstack([np.eye(64, dtype=np.uint8) * 255, np.zeros((64, 64, 2), np.uint8)]))


def save_red_palette(path: Path) -> None:
    save(path, palette(np.eye(64, dtype=np.uint8), 0, 0, 0, 255, 0, 0))


@pytest.mark.parametrize(
    ("write", "others", "reason"),
    [
        (save_faint, 1, "goes up to 1 "),
        (save_deep_colour, 0, "16 bit"),
        (save_deep_colour, 1, "16 bit"),
        (save_red, 0, "in colour"),
        (save_red, 1, "in colour"),
        (save_red_palette, 0, "in colour"),
        (save_red_palette, 1, "in colour"),
    ],
)
def test_masks_that_would_lose_their_change(
    tmp_path: Path, write: Callable[[Path], None], others: int, reason: str
) -> None:
    """`others`: how many masks of 0 and 255 stand beside it."""
    root = write_pairs(tmp_path, 1 + others)
    path = root / "label" / f"{others}.png"
    write(path)

    def read_all() -> None:
        for _ in or_raise(whole_loader(WholeSamples(find_split(root, "")), 1, workers=0)):
            pass

    message = user_error(read_all)
    assert str(path) in message
    assert reason in message


def test_jpeg_masks_are_noisy(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 2)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:37, 21:50] = 1
    path = save(root / "label" / "0.jpg", mask * 255, quality=60)
    dark = save(root / "label" / "1.jpg", np.full((64, 64), 3, np.uint8))
    with PIL.Image.open(path) as image:
        levels = np.asarray(image)
    assert ((levels > 0) & (levels < 128)).any()  # else this shows nothing
    split = find_split(root, "")
    assert (read_mask(path, split.binary) != mask).mean() < 0.005
    assert not read_mask(dark, split.binary).any()


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1"])
def test_images_of_any_mode_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    shape = (9, 13)
    colours = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    picture: NDArray[Any] | PIL.Image.Image
    if mode == "RGBA":
        picture = rng.integers(0, 256, (*shape, 4), dtype=np.uint8)
        expected = picture[..., :3]
    elif mode == "P":
        index = rng.integers(0, 4, shape, dtype=np.uint8)
        picture, expected = palette(index, *colours.ravel().tolist()), colours[index]
    else:
        grey = rng.integers(0, 256, shape, dtype=np.uint8)
        grey = np.where(grey > 99, 255, 0).astype(np.uint8) if mode == "1" else grey
        expected = np.dstack([grey] * 3)
        picture = {"L": grey, "LA": np.dstack([grey, grey // 2]), "1": grey > 0}[mode]
    path = save(tmp_path / "image.png", picture)
    with PIL.Image.open(path) as image:
        assert image.mode == mode
    read = read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)


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


# --- train and val -------------------------------------------------------------------------------------------------


def test_images_that_train_and_val_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By content, not by name or date; masks that are alike, and files of one size that differ, are no matter."""
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
    assert {path.relative_to(tmp_path).as_posix() for path in hashed} == {
        *("val/A/2.bmp", "train/B/0.bmp", "val/B/1.bmp", "train/B/3.bmp")
    }
    assert shared_images(val, val) == ["0", "1", "2", "3"]


# --- errors --------------------------------------------------------------------------------------------------------

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
        (b"0\n1\n0\n1.png\n", "LIST names twice: 0, 1"),
        ("é\n".encode("latin-1"), "no file for"),
        (None, "LIST, which would name the pairs of train, is missing"),
    ],
    ids=["empty", "blank", "unknown", "double", "not UTF-8", "missing"],
)
def test_broken_lists_are_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    root = write_pairs(tmp_path / "data", 2)
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    assert expected.replace("LIST", str(path)) in user_error(lambda: find_split(root, "train", path))


def test_missing_lists(dataset: Path) -> None:
    assert "no list nowhere.txt" in user_error(lambda: find_split(dataset, "train", Path("nowhere.txt")))
    flat = dataset / "val"
    assert str(flat / "list" / "val.txt") in user_error(lambda: find_split(flat, "val"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("file", ["A/3.png", "B/3.jpg", "label/3.png"])
def test_truncated_files_end_the_run_by_name(dataset: Path, file: str, workers: int) -> None:
    path = dataset / "train" / file
    with PIL.Image.open(path.with_suffix(".png")) as image:
        image.load()
        save(path, image)
    truncate(path, 0.8)
    split = find_split(dataset, "train")  # the header is whole
    assert names(split) == ["0", "1", "2", "3", "4"]
    read = TrainLoader(TrainSamples(split, 32, ColorJitter(), seed=0), 2, workers).epoch(0)
    assert str(path) in user_error(lambda: list(read))
    whole = or_raise(whole_loader(WholeSamples(split), 2, workers=0))
    assert str(path) in user_error(lambda: list(whole))


def test_a_caught_error_frees_the_loader(dataset: Path) -> None:
    """By reference counts: left to the collector, every worker would hold up the process for five seconds."""
    truncate(dataset / "train" / "A" / "3.png")
    batches = whole_loader(WholeSamples(find_split(dataset, "train")), 2, workers=1)
    alive = weakref.ref(batches)
    gc.disable()
    try:
        user_error(partial(list, or_raise(batches)))
        del batches
        assert alive() is None
    finally:
        gc.enable()


def test_crop_larger_than_an_image(dataset: Path) -> None:
    split = find_split(dataset, "train")
    assert len(TrainSamples(split, 64, ColorJitter(), seed=0)) == 5
    message = user_error(lambda: TrainSamples(split, 65, ColorJitter(), seed=0))
    assert str(dataset / "train" / "A" / "0.png") in message


# --- loaders -------------------------------------------------------------------------------------------------------


def train_loader(
    split: Split, workers: int = 0, batch_size: int = 2, seed: int = 7, hash_epoch: int = 0
) -> TrainLoader:
    return TrainLoader(TrainSamples(split, 32, ColorJitter(), seed, hash_epoch), batch_size, workers)


def contents(batches: Iterable[Batch]) -> list[tuple[object, ...]]:
    """Batches as values that compare."""
    return [
        (*(tensor.numpy().tobytes() for tensor in batch[:3]), batch.mask.shape, batch.names, batch.hashes)
        for batch in batches
    ]


def samples(batches: Iterable[Batch]) -> dict[str, bytes]:
    """Every sample's pixels by name."""
    return {
        name: b"".join(tensor[i].numpy().tobytes() for tensor in batch[:3])
        for batch in batches
        for i, name in enumerate(batch.names)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_matter(dataset: Path, workers: int) -> None:
    split = find_split(dataset, "train")
    alone, shared = train_loader(split), train_loader(split, workers)
    for epoch in range(2):
        expected = contents(alone.epoch(epoch))
        assert len(expected) == 3
        assert contents(shared.epoch(epoch)) == expected
        assert contents(shared.epoch(epoch, start=1)) == expected[1:]


def test_draws_follow_from_seed_epoch_and_sample(dataset: Path) -> None:
    split = find_split(dataset, "train")
    first = samples(train_loader(split).epoch(0))
    assert samples(train_loader(split, batch_size=5).epoch(0)) == first
    for other in (train_loader(split).epoch(1), train_loader(split, seed=8).epoch(0)):
        pixels = samples(other)
        assert pixels.keys() == first.keys()
        assert all(pixels[name] != first[name] for name in first)
    for sub in ("A", "B", "label"):
        for index in range(1, 5):
            shutil.copy(dataset / "train" / sub / "0.png", dataset / "train" / sub / f"{index}.png")
    assert len(set(samples(train_loader(split).epoch(0)).values())) == 5  # one picture, five draws


def test_global_generators_are_left_alone(dataset: Path) -> None:
    loader = train_loader(find_split(dataset, "train"))
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3).tolist(), np.random.random(3).tolist()
    torch.manual_seed(0)
    np.random.seed(0)
    first = contents(loader.epoch(0))
    assert (torch.rand(3).tolist(), np.random.random(3).tolist()) == expected
    assert contents(loader.epoch(0)) == first


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_an_epoch_starts_at_any_batch(dataset: Path, start: int) -> None:
    loader = train_loader(find_split(dataset, "train"))
    assert contents(loader.epoch(4, start)) == contents(loader.epoch(4))[start:]


def test_every_sample_once_an_epoch(dataset: Path) -> None:
    loader = train_loader(find_split(dataset, "train"))
    orders = []
    for epoch in range(6):
        batches = [batch.names for batch in loader.epoch(epoch)]
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert len(loader) == 3
        orders.append([name for batch in batches for name in batch])
        assert sorted(orders[-1]) == ["0", "1", "2", "3", "4"]
    assert len({tuple(order) for order in orders}) > 3


def test_epochs_asked_for_together_stay_apart(dataset: Path) -> None:
    loader = train_loader(find_split(dataset, "train"))
    expected = [contents(loader.epoch(epoch)) for epoch in (0, 1)]
    iterators = [loader.epoch(epoch) for epoch in (0, 1)]
    assert [contents(batches) for batches in iterators] == expected


def test_train_samples_are_windows_of_their_files(dataset: Path) -> None:
    """After is made bright where the mask is 1, and nowhere else: they are cut alike, from uint8 files, RGB first."""
    for path in (dataset / "train" / "B").iterdir():
        with PIL.Image.open(path) as after, PIL.Image.open(dataset / "train" / "label" / path.name) as mask:
            painted = np.where(np.asarray(mask)[..., None] > 0, 255, np.asarray(after) // 4)
        save(path, painted.astype(np.uint8))
    split = find_split(dataset, "train")
    plain = TrainSamples(split, 32, ColorJitter(0, 0, 0, 0), seed=0)
    for batch in TrainLoader(plain, 2, 0).epoch(0):
        assert {tensor.dtype for tensor in batch[:3]} == {torch.uint8}
        assert batch.before.shape == batch.after.shape == (len(batch.names), 3, 32, 32)
        bright = batch.after.min(1, keepdim=True).values >= 120
        assert torch.equal(bright, batch.mask == 1)
        assert batch.mask.max() <= 1


def test_images_are_hashed_in_one_epoch_alone(dataset: Path) -> None:
    split = find_split(dataset, "train")
    loader = train_loader(split, hash_epoch=1)
    assert not any(batch.hashes for batch in loader.epoch(0))
    found = {name: pair for batch in loader.epoch(1) for name, pair in zip(batch.names, batch.hashes, strict=True)}
    assert found == {pair.name: (hash_file(pair.before), hash_file(pair.after)) for pair in split.pairs}


def hash_file(path: Path) -> str:
    """What `image_hash` promises, made with Pillow and hashlib alone."""
    with PIL.Image.open(path) as image:
        shape = f"({image.height}, {image.width}, 3)"
        return hashlib.sha256(shape.encode() + image.convert("RGB").tobytes()).hexdigest()[:32]


def test_image_hash_knows_pixels_not_files(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    files = [
        save(tmp_path / "a.png", picture),
        save(tmp_path / "b.tif", picture, compression="tiff_lzw"),
        save(tmp_path / "c.bmp", picture),
    ]
    assert len({image_hash(read_image(path)) for path in files}) == 1
    assert image_hash(picture.reshape(10, 12, 3)) != image_hash(picture)
    before = image_hash(picture)
    picture[11, 9, 2] ^= 1
    assert image_hash(picture) != before


def test_whole_loader_batches_by_size(tmp_path: Path) -> None:
    sizes = [(40, 24), (24, 40), (40, 24), (40, 24), (24, 40)]
    for index, size in enumerate(sizes):
        for sub, picture in zip(("A", "B", "label"), draw_pair(np.random.default_rng(index), *size), strict=True):
            save(tmp_path / sub / f"{index}.png", picture)
    split = find_split(tmp_path, "")
    for workers in (0, 2):
        batches = list(or_raise(whole_loader(WholeSamples(split), 2, workers)))
        assert [batch.names for batch in batches] == [["0", "2"], ["1", "4"], ["3"]]
        for batch in batches:
            for i, name in enumerate(batch.names):
                pair = split.pairs[int(name)]
                assert batch.before.shape[2:] == (pair.size[1], pair.size[0])
                with PIL.Image.open(pair.before) as image:
                    np.testing.assert_array_equal(batch.before[i].permute(1, 2, 0), np.asarray(image))
                assert batch.hashes[i] == (hash_file(pair.before), hash_file(pair.after))
    resized = [batch.names for batch in or_raise(whole_loader(WholeSamples(split, 32), 2, 0))]
    assert resized == [["0", "1"], ["2", "3"], ["4"]]


@pytest.mark.parametrize("size", [40, 64, 100])
def test_resized_samples(dataset: Path, size: int) -> None:
    """Masks as Pillow's nearest, images as torch's bilinear without anti-aliasing; hashes of the files as they are."""
    split = find_split(dataset, "train" if size != 64 else "val")
    for index, pair in enumerate(split.pairs):
        batch = WholeSamples(split, size)[index]
        assert isinstance(batch, Batch)
        assert pair.mask is not None
        with PIL.Image.open(pair.mask) as image:
            mask = np.asarray(image.resize((size, size), PIL.Image.Resampling.NEAREST)) // 255
        np.testing.assert_array_equal(batch.mask[0, 0], mask)
        for tensor, path in ((batch.before, pair.before), (batch.after, pair.after)):
            pixels = torch.tensor(read_image(path)).permute(2, 0, 1)[None].float()
            expected = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
            assert (tensor.float() - expected).abs().max() <= (0 if size == 64 else 1)
        assert batch.hashes == [(hash_file(pair.before), hash_file(pair.after))]


def test_rate_of_change(tmp_path: Path) -> None:
    """Over all pixels, also of images of different sizes."""
    for name, size, changed in (("a", 8, 16), ("b", 16, 0)):
        mask = np.zeros((size, size), np.uint8)
        mask.flat[:changed] = 255
        for sub, picture in (
            ("A", np.zeros((size, size, 3), np.uint8)),
            ("B", np.ones((size, size, 3), np.uint8)),
            ("label", mask),
        ):
            save(tmp_path / sub / f"{name}.png", picture)
    assert rate_of_change(find_split(tmp_path, "")) == pytest.approx(16 / (64 + 256))


@pytest.mark.parametrize("end", ["", "raise RuntimeError('out of memory')"], ids=["done", "crash"])
def test_a_program_ends_while_its_loader_is_in_use(tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from change.change_dataloader import find_split\n"
        "from change.data.loaders import TrainLoader\n"
        "from change.data.samples import TrainSamples\n"
        "from change.data.transforms import ColorJitter\n"
        f"split = find_split(Path({str(write_pairs(tmp_path / 'data', 4))!r}), '')\n"
        "batches = TrainLoader(TrainSamples(split, 32, ColorJitter(), 0), 1, workers=2).epoch(0)\n"
        f"print(next(batches).names)\n{end}\n"
    )
    done = run_program(script, environment={"PYTHONPATH": str(REPOSITORY)}, timeout=60)
    assert done.stdout and done.returncode == bool(end), done.stderr
    assert ("Error" in done.stderr) == bool(end)
