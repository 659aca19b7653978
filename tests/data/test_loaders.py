"""Samples and loaders: draws follow only from seed, epoch and sample; errors name files."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from change.change_dataloader import Split, find_split
from change.common.errors import UserError
from change.common.images import read_image
from change.data.loaders import TrainLoader, or_raise, whole_loader
from change.data.samples import Batch, TrainSamples, WholeSamples
from change.data.transforms import ColorJitter
from tests.conftest import REPOSITORY, draw_pair, run_program, write_pairs
from tests.data.helpers import contents, hash_file, names, save, truncate, user_error

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("file", ["A/3.png", "B/3.jpg", "label/3.png"])
def test_truncated_files_end_the_run_by_name(dataset: Path, file: str, workers: int) -> None:
    path = dataset / "train" / file
    with PIL.Image.open(path.with_suffix(".png")) as image:
        image.load()
        save(path, image)
    split = find_split(dataset, "train")
    truncate(path, 0.8)
    if "label" in file:
        assert str(path) in user_error(lambda: find_split(dataset, "train"))  # all masks are read at the start
    else:
        assert find_split(dataset, "train") == split  # the header is whole
    assert names(split) == ["0", "1", "2", "3", "4"]
    read = TrainLoader(TrainSamples(split, 32, ColorJitter(), seed=0), 2, workers).epoch(0)
    assert str(path) in user_error(lambda: list(read))
    whole = or_raise(whole_loader(WholeSamples(split), 2, workers=0))
    assert str(path) in user_error(lambda: list(whole))


def test_pairs_are_read_without_opencv(dataset: Path) -> None:
    """A thread that has used OpenCV takes one of its locks as it ends; workers that are forked just then hang in it."""
    program = (
        "import sys; from pathlib import Path; from change.change_dataloader import find_split; "
        f"split = find_split(Path({str(dataset)!r}), 'train', None); "
        "print(split.read(0).mask.ndim, split.changed > 0, 'cv2' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.stdout.split() == ["2", "True", "False"], result.stderr


def test_a_caught_error_frees_the_loader(dataset: Path) -> None:
    """Reference counting frees it. If that is left to the garbage collector, each worker takes five seconds to end."""
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


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (RuntimeError, (RuntimeError, "^during a transfer")),
        (ConnectionResetError, (UserError, "^a loader process died, .*: use fewer --workers")),
    ],
    ids=["another worker", "this worker"],
)
def test_a_worker_that_dies_during_a_transfer(
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: type[Exception],
    reported: tuple[type[Exception], str],
) -> None:
    """Main breaks the transfer off with one error. The worker, here still alive, prints no traceback and goes on."""

    def fail(*_: object) -> None:
        raise error("during a transfer")

    loader = train_loader(find_split(dataset, "train"), workers=1)
    batches = loader.epoch(0)
    next(batches)
    with monkeypatch.context() as patch, pytest.raises(reported[0], match=reported[1]):
        patch.setattr("multiprocessing.connection.answer_challenge", fail)
        next(batches)
    assert contents(loader.epoch(1)) == contents(train_loader(find_split(dataset, "train")).epoch(1))
    assert "Traceback" not in capfd.readouterr().err


def test_crop_larger_than_an_image(dataset: Path) -> None:
    split = find_split(dataset, "train")
    assert len(TrainSamples(split, 64, ColorJitter(), seed=0)) == 5
    message = user_error(lambda: TrainSamples(split, 65, ColorJitter(), seed=0))
    assert str(dataset / "train" / "A" / "0.png") in message


def train_loader(
    split: Split, workers: int = 0, batch_size: int = 2, seed: int = 7, hash_epoch: int = 0
) -> TrainLoader:
    return TrainLoader(TrainSamples(split, 32, ColorJitter(), seed, hash_epoch), batch_size, workers)


def samples(batches: Iterable[Batch]) -> dict[str, bytes]:
    """Return the pixels of every sample, by name."""
    return {
        name: b"".join(tensor[i].numpy().tobytes() for tensor in batch[:3])
        for batch in batches
        for i, name in enumerate(batch.names)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_matter(dataset: Path, workers: int) -> None:
    split = find_split(dataset, "train")
    without_workers, with_workers = train_loader(split), train_loader(split, workers)
    for epoch in range(2):
        expected = contents(without_workers.epoch(epoch))
        assert len(expected) == 3
        assert contents(with_workers.epoch(epoch)) == expected
        assert contents(with_workers.epoch(epoch, start=1)) == expected[1:]


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


def test_every_sample_once_per_epoch(dataset: Path) -> None:
    loader = train_loader(find_split(dataset, "train"))
    orders = []
    for epoch in range(6):
        batches = [batch.names for batch in loader.epoch(epoch)]
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert len(loader) == 3
        orders.append([name for batch in batches for name in batch])
        assert sorted(orders[-1]) == ["0", "1", "2", "3", "4"]
    assert len({tuple(order) for order in orders}) > 3


def test_epochs_that_are_started_together_do_not_mix(dataset: Path) -> None:
    loader = train_loader(find_split(dataset, "train"))
    expected = [contents(loader.epoch(epoch)) for epoch in (0, 1)]
    iterators = [loader.epoch(epoch) for epoch in (0, 1)]
    assert [contents(batches) for batches in iterators] == expected


def test_train_samples_are_crops_of_their_files(dataset: Path) -> None:
    """After is painted bright where the mask is 1. This also holds for crops, so both are cut in the same way."""
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


def test_images_are_hashed_in_one_epoch_only(dataset: Path) -> None:
    split = find_split(dataset, "train")
    loader = train_loader(split, hash_epoch=1)
    assert not any(batch.hashes for batch in loader.epoch(0))
    found = {name: pair for batch in loader.epoch(1) for name, pair in zip(batch.names, batch.hashes, strict=True)}
    assert found == {pair.name: (hash_file(pair.before), hash_file(pair.after)) for pair in split.pairs}


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
    """Masks are resized as Pillow's nearest, images as torch's bilinear without anti-aliasing; hashes stay."""
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


@pytest.mark.parametrize("end", ["", "raise RuntimeError('out of memory')"], ids=["done", "crash"])
@pytest.mark.slow
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
