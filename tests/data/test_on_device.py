"""Pairs in memory and the loaders of a device: the order, names and hashes of the other loaders, and their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from change.change_dataloader import Split, find_split
from change.data import on_device
from change.data.batch_augmentation import COLUMNS
from change.data.cache import decode_pairs
from change.data.loaders import EpochOrder, TrainLoader, or_raise, whole_batches, whole_loader
from change.data.on_device import DeviceTrainLoader, DeviceWholeLoader, PairsInMemory, decode_into_memory
from change.data.samples import Batch, TrainSamples, WholeSamples
from change.data.transforms import PLAIN, ColorJitter, Geometry
from tests.conftest import draw_pair
from tests.data.helpers import contents, save, truncate, user_error

CPU = torch.device("cpu")
OFF = ColorJitter(0, 0, 0, 0)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Write seven pairs of three sizes."""
    sizes = [(40, 60), (64, 48), (64, 48), (40, 60), (50, 50), (64, 48), (40, 60)]
    for index, size in enumerate(sizes):
        for sub, picture in zip(("A", "B", "label"), draw_pair(np.random.default_rng(index), *size), strict=True):
            save(tmp_path / "data" / sub / f"{index}.png", picture)
    return find_split(tmp_path / "data", "")


def make_samples(split: Split, jitter: ColorJitter = OFF, geometry: Geometry = PLAIN) -> TrainSamples:
    return TrainSamples(split, 32, jitter, seed=7, geometry=geometry)


def device_loader(
    samples: TrainSamples, batch_size: int = 2, workers: int = 0, parts: int = 1, process: int = 0, processes: int = 1
) -> DeviceTrainLoader:
    order = EpochOrder(len(samples), batch_size, samples.seed, parts, process, processes)
    return DeviceTrainLoader(samples, decode_into_memory(samples.split, CPU), order, workers)


def test_pairs_are_read_as_from_their_files(split: Split) -> None:
    pairs = decode_into_memory(split, CPU)
    assert pairs.images.numel() + pairs.masks.numel() == 7 * sum(w * h for w, h in (p.size for p in split.pairs))
    for index in range(len(split.pairs)):
        expected = split.read(index)
        for hashed in (True, False):
            found = pairs.read(index, hashed)
            assert all(np.array_equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))
            assert found.hashes == (expected.hashes if hashed else [])
            assert not any(array.flags.owndata or array.flags.writeable for array in found[:3])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "geometry", [PLAIN, Geometry(1, 1, turned=True, swapped=True, unchanged=0.5)], ids=["flips", "turns"]
)
def test_batches_are_those_of_the_other_loader(split: Split, geometry: Geometry, workers: int) -> None:
    """Without scale and colours: pixels, masks, names and hashes, and for any number of workers."""
    samples = make_samples(split, geometry=geometry)
    plain, device = TrainLoader(samples, 2, 0), device_loader(samples, workers=workers)
    assert len(device) == len(plain) == 4
    for epoch in (0, 1):
        expected = contents(plain.epoch(epoch))
        assert contents(device.epoch(epoch)) == expected
        assert contents(device.epoch(epoch, start=2)) == expected[2:]
    for batch in device.epoch(0):
        assert batch.before.is_contiguous(memory_format=torch.channels_last)
        assert batch.after.is_contiguous(memory_format=torch.channels_last)


def test_scale_and_colours(split: Split) -> None:
    geometry = Geometry(0.7, 1.4, turned=True, swapped=True)
    samples = make_samples(split, ColorJitter(0.3, 0.3, 0.3, 0.05), geometry)
    for found, expected in zip(device_loader(samples, 4).epoch(3), TrainLoader(samples, 4, 0).epoch(3), strict=True):
        assert found.names == expected.names and torch.equal(found.mask, expected.mask)
        for one, other in zip(found[:2], expected[:2], strict=True):
            error = (one.float() - other.float()).abs()
            assert error.mean() < 0.3 and error.max() <= 16


@pytest.mark.parametrize("scales", [(0.4, 0.65), (1.5, 3.2), (0.1, 10), (0.65, 0.65)])
def test_sides_at_their_limits(split: Split, scales: tuple[float, float]) -> None:
    """Some images are smaller than the smallest square that the scale asks for, so the square is smaller too."""
    samples = make_samples(split, geometry=Geometry(*scales))
    device, plain = device_loader(samples), TrainLoader(samples, 2, 0)
    for epoch in range(6):
        for found, expected in zip(device.epoch(epoch), plain.epoch(epoch), strict=True):
            assert torch.equal(found.mask, expected.mask)
            for one, other in zip(found[:2], expected[:2], strict=True):
                assert (one.float() - other.float()).abs().max() <= 1


def test_an_epoch_starts_at_any_batch(split: Split) -> None:
    """The bits do not depend on where an epoch starts."""
    samples = make_samples(split, ColorJitter(), Geometry(0.7, 1.4))
    loader = device_loader(samples)
    expected = contents(loader.epoch(4))
    for start in range(5):
        assert contents(device_loader(samples).epoch(4, start)) == expected[start:]


def test_epochs_that_are_started_together_do_not_mix(split: Split) -> None:
    loader = device_loader(make_samples(split))
    expected = [contents(loader.epoch(epoch)) for epoch in (0, 1)]
    found: tuple[list[Batch], list[Batch]] = ([], [])
    for batches in zip(loader.epoch(0), loader.epoch(1), strict=True):
        for one, batch in zip(found, batches, strict=True):
            one.append(batch)
    assert [contents(batches) for batches in found] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_drawn_while_the_one_before_ends(split: Split, workers: int) -> None:
    """Epochs in order are one stream of draws, which is not started again, until another epoch or batch is asked."""
    loader = device_loader(make_samples(split), workers=workers)
    expected = {epoch: contents(device_loader(make_samples(split)).epoch(epoch)) for epoch in range(4)}
    streams = set()
    for epoch in (1, 2, 3):
        assert contents(loader.epoch(epoch)) == expected[epoch]
        streams.add(id(loader.drawn))
    assert len(streams) == 1
    assert contents(loader.epoch(1)) == expected[1]
    assert contents(loader.epoch(2, 1)) == expected[2][1:]


@pytest.mark.parametrize(("processes", "parts"), [(1, 2), (2, 1), (3, 2)])
def test_shares_of_processes(split: Split, processes: int, parts: int) -> None:
    """Every process gets its share. Shares in which pairs are repeated to fill up micro-batches are the same too."""
    samples = make_samples(split)
    for process in range(processes):
        plain = TrainLoader(samples, 6, 0, parts=parts, process=process, processes=processes)
        device = device_loader(samples, 6, parts=parts, process=process, processes=processes)
        assert contents(device.epoch(0)) == contents(plain.epoch(0))
        assert [device.order.share(step) for step in range(2)] == [plain.order.share(step) for step in range(2)]


def test_all_batches_have_one_shape(split: Split) -> None:
    """So the augmentation is compiled once; the last batch of an epoch is cut to its length afterwards."""
    shapes: list[torch.Size] = []
    loader = device_loader(make_samples(split), batch_size=3)
    make = loader.make

    def noted(draws: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append(draws.shape)
        return make(draws)

    loader.make = noted  # type: ignore[assignment,method-assign]
    assert [len(batch.before) for batch in loader.epoch(0)] == [3, 3, 1]
    assert shapes == [torch.Size([3, COLUMNS])] * 3


@pytest.mark.parametrize("size", [0, 48])
@pytest.mark.parametrize("processes", [1, 2])
def test_whole_images(split: Split, size: int, processes: int) -> None:
    """Resized or not, a process keeps only what it validates."""
    samples = WholeSamples(split, size)
    for process in range(processes):
        expected = list(or_raise(whole_loader(samples, 2, 0, process=process, processes=processes)))
        batches = whole_batches(samples, 2)[process::processes]
        own = [index for batch in batches for index in batch]
        pairs = PairsInMemory([samples.shape(index) for index in own], decode_pairs(samples.pixels, own), CPU)
        loader = DeviceWholeLoader(samples, pairs, batches)
        assert len(loader) == len(expected) and len(pairs.hashes) < len(split.pairs) + (processes == 1)
        assert contents(loader) == contents(expected) == contents(loader)


def test_damaged_files_are_named(split: Split) -> None:
    path = split.pairs[3].after
    truncate(path)
    assert str(path) in user_error(lambda: decode_into_memory(split, CPU))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pairs_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """The line names the bytes that are needed, those that are free, and what to do."""
    asked: list[torch.device] = []

    def free(place: torch.device) -> int:
        asked.append(place)
        return 1_500_000_000

    monkeypatch.setattr(on_device, "free_bytes", free)
    sizes, place = [(10_000, 10_000), (5_000, 10_000)], torch.device(device)  # 1.05 GB
    on_device.require_memory(sizes, 400_000_000, place)
    message = user_error(lambda: on_device.require_memory(sizes, 500_000_000, place))
    assert message.startswith("--cache device needs 1.55 GB") and "1.50 GB" in message and "--cache disk" in message
    assert ("RAM" if device == "cpu" else "cuda") in message
    assert "2.10 GB" in user_error(lambda: on_device.require_memory(sizes, 0, place, copies=2))
    assert asked == [place] * 3
    monkeypatch.setattr(on_device, "free_bytes", lambda place: None)  # the system does not tell
    on_device.require_memory(sizes, 10**15, place)
