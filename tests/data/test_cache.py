"""The cache of decoded pairs: samples are identical, a stale file is made anew, killed processes do no harm."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from change.change_dataloader import Split, find_split
from change.data.cache import PAGE, DecodedCache, hold_lock
from change.data.loaders import TrainLoader, or_raise, whole_loader
from change.data.samples import TrainSamples, WholeSamples
from change.data.transforms import ColorJitter
from tests.conftest import REPOSITORY, draw_pair, last_line, run_program, train_arguments, wait_for
from tests.data.helpers import contents, save, truncate, user_error
from tests.training.test_trainer import epochs, equal, weights

# Open the cache of ROOT in FOLDER and print the first pair's hashes; decoding a pair takes SECONDS.
OPEN_SLOWLY = """
import logging, sys, time
from pathlib import Path
from change.data.cache import DecodedCache
from change.change_dataloader import Split, find_split
logging.basicConfig(level=logging.INFO)
read, seconds = Split.read, float(sys.argv[3])
Split.read = lambda *given: time.sleep(seconds) or read(*given)
print(DecodedCache(find_split(Path(sys.argv[1]), ""), Path(sys.argv[2])).read(0, True).hashes)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write five pairs of two sizes: masks of 0 and 1, images of several modes and formats, one of them a JPEG."""
    kinds = (("RGB", ".png"), ("RGBA", ".png"), ("P", ".png"), ("L", ".tif"), ("RGB", ".jpg"))
    for index, (mode, suffix) in enumerate(kinds):
        before, after, mask = draw_pair(np.random.default_rng(index), *((96, 64) if index % 2 else (70, 81)))
        save(tmp_path / "data" / "A" / f"{index}{suffix}", PIL.Image.fromarray(before).convert(mode))
        save(tmp_path / "data" / "B" / f"{index}.png", after)
        save(tmp_path / "data" / "label" / f"{index}.png", (mask > 0).astype(np.uint8))
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder for caches."""
    return tmp_path / "caches"


def everything(split: Split, cache: DecodedCache | None = None) -> list[list[tuple[object, ...]]]:
    """Read two epochs of crops, whole images and resized images, with masks and hashes."""
    train, whole, resized = TrainSamples(split, 32, ColorJitter(), seed=7), WholeSamples(split), WholeSamples(split, 48)
    if cache:
        train.read = whole.read = resized.read = cache.read
    loader = TrainLoader(train, 2, workers=0)
    batches = [loader.epoch(0), loader.epoch(1), *(or_raise(whole_loader(s, 2, workers=0)) for s in (whole, resized))]
    return [contents(part) for part in batches]


def left_in(folder: Path) -> list[str]:
    """Return the suffixes of the files in a folder."""
    return sorted(path.suffix for path in folder.iterdir())


def open_slowly(root: Path, folder: Path, seconds: float = 0.2) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN_SLOWLY, str(root), str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


# --- the same samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_same_samples_without_a_file_to_decode(root: Path, folder: Path, labelled: bool) -> None:
    if not labelled:
        shutil.rmtree(root / "label")
    split = find_split(root, "", need_labels=False)
    assert split.binary == labelled
    expected, cache = everything(split), DecodedCache(split, folder)
    shutil.rmtree(root)
    assert everything(split, cache) == expected


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_map_the_file_themselves(root: Path, folder: Path, start: str) -> None:
    split = find_split(root, "")
    samples = WholeSamples(split)
    expected = contents(or_raise(whole_loader(samples, 2, workers=0)))
    samples.read = DecodedCache(split, folder).read
    shutil.rmtree(root)
    assert len(pickle.dumps(samples)) < 10_000
    loader = whole_loader(samples, 2, workers=1)
    loader.multiprocessing_context = start
    assert contents(or_raise(loader)) == expected


def test_pairs_lie_one_after_the_other(root: Path, folder: Path) -> None:
    """The arrays are views of one file with 7 bytes per pixel, so only crops are copied."""
    split = find_split(root, "")
    cache = DecodedCache(split, folder)
    assert cache.path.stat().st_size == PAGE + 7 * (3 * 70 * 81 + 2 * 96 * 64) + 5 * 64
    assert all(not array.flags.owndata and not array.flags.writeable for array in cache.read(1, False)[:3])


# --- a stale or damaged file ------------------------------------------------------------------------------------------


def set_clock(path: Path) -> None:
    """Change the modification time, as writing the same bytes again does."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def exchange(root: Path) -> None:
    """Exchange before and after of one pair."""
    (root / "A" / "0.png").rename(root / "0.png")
    (root / "B" / "0.png").rename(root / "A" / "0.png")
    (root / "0.png").rename(root / "B" / "0.png")


def brighten(root: Path) -> None:
    """Turn masks of 0 and 1 into masks of 0 and 255."""
    for path in (root / "label").iterdir():
        with PIL.Image.open(path) as image:
            save(path, np.asarray(image) * np.uint8(255))


STALE: dict[str, Callable[[Path], object]] = {
    "another time": lambda root: set_clock(root / "B" / "1.png"),
    "another image": lambda root: save(root / "A" / "3.tif", np.zeros((64, 96, 3), np.uint8)),
    "another format": lambda root: save(root / "A" / "4.png", np.zeros((81, 70, 3), np.uint8)),
    "another mask": lambda root: save(root / "label" / "2.png", np.ones((81, 70), np.uint8)),
    "another rule of masks": brighten,
    "another size": lambda root: [
        save(path, np.zeros((40, 40) if path.parent.name == "label" else (40, 40, 3), np.uint8))
        for path in root.glob("*/0.png")
    ],
    "exchanged": exchange,
}


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_stale(root: Path, folder: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], object]) -> None:
    """The new cache has the new pixels. Processes that mapped the old one keep it; those that did not get an error."""
    split = find_split(root, "")
    old, frozen = everything(split), DecodedCache(split, folder)
    asleep = pickle.dumps(frozen)
    change(root)
    with caplog.at_level("INFO"):
        cache = DecodedCache(find_split(root, ""), folder)
    assert f"{cache.path} is stale" in caplog.text
    assert cache.path == frozen.path
    assert everything(cache.split, cache) == everything(cache.split)
    assert everything(split, frozen) == old
    assert "start the run again" in user_error(lambda: pickle.loads(asleep).read(0, True))


def test_an_unchanged_split_uses_its_file(
    root: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache is valid for any path to the images, if moved along with them, and on a read-only disk."""
    DecodedCache(find_split(root, ""), folder).path.with_suffix(".lock").unlink()
    moved = tmp_path / "moved"
    moved.mkdir()
    folder.rename(moved / "caches")
    root.rename(moved / "data")
    (tmp_path / "link").symlink_to(moved / "data")
    for where in (moved / "data", tmp_path / "link"):
        split = find_split(where, "")
        caplog.clear()
        with caplog.at_level("INFO"):
            cache = DecodedCache(split, moved / "caches")
        assert not caplog.messages
        assert everything(split, cache) == everything(split)
    assert left_in(moved / "caches") == [".u8"]


def test_splits_share_a_folder(dataset: Path, folder: Path) -> None:
    """Each split has its own file: also one with fewer pairs, and one with the same names in another folder."""
    splits = [find_split(dataset, part) for part in ("train", "val")]
    splits.append(replace(splits[0], pairs=splits[0].pairs[:3]))
    shutil.copytree(dataset, dataset.with_name("copy"))
    splits.append(find_split(dataset.with_name("copy"), "train"))
    caches = [DecodedCache(split, folder) for split in splits]
    assert len({cache.path for cache in caches}) == 4
    for split, cache in zip(splits, caches, strict=True):
        assert everything(split, DecodedCache(split, folder)) == everything(split, cache) == everything(split)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half": truncate,
    "nearly all": lambda path: truncate(path, 0.999),
    "empty": lambda path: path.write_bytes(b""),
    "head": lambda path: path.write_bytes(b"\0" * PAGE + path.read_bytes()[PAGE:]),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged(root: Path, folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]) -> None:
    split = find_split(root, "")
    path = DecodedCache(split, folder).path
    damage(path)
    path.with_name(f".{path.name}.part").write_bytes(b"left by a killed process, and longer than a cache" * 10_000)
    with caplog.at_level("INFO"):
        cache = DecodedCache(split, folder)
    assert f"{path} is damaged" in caplog.text
    assert everything(split, cache) == everything(split)
    assert left_in(folder) == [".lock", ".u8"]


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "left"), [(signal.SIGKILL, [".lock", ".part"]), (signal.SIGINT, [".lock"])])
def test_killed_while_decoding(root: Path, folder: Path, number: signal.Signals, left: list[str]) -> None:
    process = open_slowly(root, folder, seconds=2)  # longer than the signal takes on a busy machine
    wait_for(lambda: any(folder.glob(".*.part")), process)
    process.send_signal(number)
    process.communicate()
    assert left_in(folder) == left
    split = find_split(root, "")
    assert everything(split, DecodedCache(split, folder)) == everything(split)
    assert left_in(folder) == [".lock", ".u8"]


@pytest.mark.slow
def test_two_processes_decode_once(root: Path, folder: Path) -> None:
    """Two processes wait for the same lock; one decodes."""
    split = find_split(root, "")
    path = DecodedCache(split, folder).path
    path.unlink()
    with hold_lock(path.with_suffix(".lock")) as locked:
        assert locked
        processes = [open_slowly(root, folder) for _ in range(2)]
        for process in processes:
            assert process.stderr is not None
            while "waiting" not in process.stderr.readline():
                assert process.poll() is None
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted("is new: decoding 5 pairs" in errors for _, errors in outputs) == [False, True]
    assert {printed.strip() for printed, _ in outputs} == {str(split.read(0).hashes)}


def test_without_locks(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    split = find_split(root, "")
    assert everything(split, DecodedCache(split, folder)) == everything(split)
    assert left_in(folder) == [".lock", ".u8"]


# --- errors --------------------------------------------------------------------------------------------------------


def test_disk_too_small(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    message = user_error(lambda: DecodedCache(find_split(root, ""), folder))
    assert "needs 0.2 MB, 0.1 MB are free" in message
    assert "--cache_path" in message and "--cache off" in message
    assert left_in(folder) == [".lock"]


def test_a_place_that_cannot_be_written(root: Path) -> None:
    message = user_error(lambda: DecodedCache(find_split(root, ""), root / "A" / "0.png" / "caches"))
    assert str(root / "A" / "0.png" / "caches") in message
    assert "--cache_path" in message


def test_a_file_that_does_not_decode(root: Path, folder: Path) -> None:
    truncate(root / "B" / "3.png", 0.8)
    split = find_split(root, "")
    assert user_error(lambda: DecodedCache(split, folder)) == user_error(lambda: split.read(3))
    assert left_in(folder) == [".lock"]


# --- train.py ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training(dataset: Path, tmp_path: Path) -> None:
    """Training gives the same losses, scores and weights; the files are in the data folder or in --cache_path."""
    for cache in ("off", "disk"):
        arguments = train_arguments(dataset, tmp_path / cache, best_name="run", cache=cache)
        result = run_program("train.py", *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("is new: decoding") == (2 if cache == "disk" else 0)
    assert left_in(dataset / ".cache") == [".lock", ".lock", ".u8", ".u8"]
    assert epochs(tmp_path / "disk") == epochs(tmp_path / "off")
    assert equal(weights(tmp_path / "disk"), weights(tmp_path / "off"))
    (tmp_path / "file").touch()
    arguments = train_arguments(dataset, tmp_path / "run", cache="disk", cache_path=tmp_path / "file" / "caches")
    result = run_program("train.py", *arguments)
    assert result.returncode == 2
    assert str(tmp_path / "file" / "caches") in last_line(result)
    assert not (tmp_path / "run").exists()
