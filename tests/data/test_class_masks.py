"""Masks with classes: read exactly, refused otherwise, merged, swapped with the dates, and kept by caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from change.change_dataloader import Split, find_split
from change.common.classes import MaskClasses, parse_classes
from change.common.errors import UserError
from change.common.pictures import class_colours, save_classes
from change.data.cache import DecodedCache
from change.data.loaders import EpochOrder
from change.data.masks import read_class_mask
from change.data.on_device import DeviceTrainLoader, decode_into_memory
from change.data.samples import Batch, TrainSamples
from change.data.transforms import ColorJitter, Geometry
from tests.class_pairs import CLASSES_OF_PAIRS, write_class_pairs
from tests.data.helpers import Array, save

STILL = ColorJitter(0, 0, 0, 0)
HOLDS = MaskClasses(CLASSES_OF_PAIRS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_pairs(tmp_path_factory.mktemp("classes"), 3)


def stored(split: Split, index: int) -> Array:
    """Return a mask as its file stores it."""
    path = split.pairs[index].mask
    assert path is not None
    return np.asarray(PIL.Image.open(path))


def test_values_are_read_exactly(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = find_split(root, "", holds=HOLDS)
    masks = [stored(split, index) for index in range(3)]
    assert split.classes == CLASSES_OF_PAIRS
    assert all(np.array_equal(split.read(index).mask, masks[index]) for index in range(3))
    expected = np.bincount(np.concatenate(masks).ravel(), minlength=4) / np.concatenate(masks).size
    assert split.shares == pytest.approx(tuple(expected)) and split.changed == pytest.approx(1 - expected[0])


def test_merged_classes_are_changed(root: Path) -> None:
    split = find_split(root, "", holds=MaskClasses(CLASSES_OF_PAIRS, merged=True))
    assert split.classes is None
    assert all(np.array_equal(split.read(index).mask, stored(split, index) > 0) for index in range(3))


def test_ways_to_store_values(tmp_path: Path) -> None:
    """Grey, with a palette, with few bits, and as TIFF."""
    values = np.random.default_rng(0).integers(0, 4, (9, 11)).astype(np.uint8)
    save_classes(values, tmp_path / "p.png")
    with PIL.Image.open(tmp_path / "p.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), values)
        assert image.convert("RGB").getpixel((0, 0)) == [(0, 0, 0), *class_colours(3)][values[0, 0]]
    save(tmp_path / "g.png", values)
    save(tmp_path / "t.tif", values)
    few = PIL.Image.fromarray(values, "P")
    few.putpalette([0, 0, 0, 9, 9, 9, 1, 2, 3, 4, 5, 6])
    save(tmp_path / "f.png", few, bits=2)
    for name in ("p.png", "g.png", "t.tif", "f.png"):
        assert np.array_equal(read_class_mask(tmp_path / name, CLASSES_OF_PAIRS), values), name
    assert len(set(class_colours(255))) > 200


def test_other_values_are_refused(root: Path, tmp_path: Path) -> None:
    """One line that names the file, the value, the number of pixels and the remedy."""
    folder = write_class_pairs(tmp_path / "bad", 2)
    mask = np.array(PIL.Image.open(folder / "label" / "1.png"))
    mask[0, :5] = 7
    save(folder / "label" / "1.png", mask)
    message = (
        r"1\.png has 5 pixels of value 7, and there are 3 classes \(new, vanished, recoloured\) with the values 1 to "
        "3: correct the mask, or list all classes"
    )
    with pytest.raises(UserError, match=message):
        find_split(folder, "", holds=HOLDS)
    mask[1, :2] = 255
    save(folder / "label" / "1.png", mask)
    with pytest.raises(UserError, match="of value 7 and 1 more values, and"):
        find_split(folder, "", holds=HOLDS)
    save(folder / "label" / "1.jpg", mask % 2, quality=95)
    (folder / "label" / "1.png").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"1\.jpg is a JPEG file, which does not keep the values of classes"):
        find_split(folder, "", holds=HOLDS)


def test_swapped_dates_swap_classes(root: Path) -> None:
    """In crops with exchanged dates, new and vanished are exchanged, on a device as on the CPU."""
    split = find_split(root, "", holds=HOLDS)
    geometry = Geometry(swapped=True, opposites=CLASSES_OF_PAIRS.opposites)
    samples = TrainSamples(split, 64, STILL, 0, geometry=geometry)
    swapped = 0
    for index in range(12):
        batch = samples[index, index % 3]
        assert isinstance(batch, Batch)
        before, _, mask, _ = split.read(index % 3, hashed=False)
        counts = np.bincount(mask.ravel(), minlength=4)
        is_swapped = sorted(np.ravel(before)) != sorted(np.ravel(batch.before.numpy()))
        swapped += is_swapped
        expected = counts[[0, 2, 1, 3]] if is_swapped else counts
        assert np.bincount(batch.mask.numpy().ravel(), minlength=4).tolist() == expected.tolist()
    assert 0 < swapped < 12
    order = EpochOrder(3, 2, 0)
    loader = DeviceTrainLoader(samples, decode_into_memory(split, torch.device("cpu")), order, 0)
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            for place, name in enumerate(batch.names):
                same = samples[epoch, [pair.name for pair in split.pairs].index(name)]
                assert isinstance(same, Batch) and torch.equal(batch.mask[place], same.mask[0])


def test_caches_keep_values(root: Path, tmp_path: Path) -> None:
    """A file for each way to read the masks."""
    ways = (HOLDS, MaskClasses(CLASSES_OF_PAIRS, merged=True))
    splits = [find_split(root, "", holds=holds) for holds in ways]
    caches = [DecodedCache(split, tmp_path) for split in splits]
    assert len(list(tmp_path.glob("*.u8"))) == 2
    for split, cache in zip(splits, caches, strict=True):
        assert all(np.array_equal(cache.read(index, False).mask, split.read(index).mask) for index in range(3))


def test_a_class_that_no_mask_holds(root: Path) -> None:
    split = find_split(root, "", holds=MaskClasses(parse_classes(["a", "b", "c", "d"])))
    assert len(split.shares) == 5 and split.shares[4] == 0
