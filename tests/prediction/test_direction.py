"""New and vanished objects: how they are counted, and that checkpoints/buildings_direction.pth tells them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from change.common.classes import NEW, VANISHED
from change.prediction.detector import ChangeDetector
from tests.benchmark_direction import count_right, measure, mixed_pair, recoloured_pair
from tests.conftest import REPOSITORY


def test_objects_are_counted() -> None:
    found, classes = np.zeros((2, 40, 40), np.uint8)
    classes[2:9, 2:9] = NEW
    found[3:9, 2:8] = NEW
    classes[2:9, 12:19] = NEW
    found[2:9, 12:19] = VANISHED
    found[2:9, 12:15] = NEW  # the smaller part of an object that is wrong
    classes[20:29, 2:9] = VANISHED
    found[20:29, 2:12] = VANISHED
    classes[20:29, 20:24] = NEW
    classes[20:29, 24:28] = VANISHED
    found[20:29, 20:28] = NEW  # overlaps both: left out
    classes[20:29, 30:39] = NEW
    classes[20:24, 30] = VANISHED
    found[20:29, 30:39] = NEW  # 4 pixels of 81 have the other class: counts
    found[34:38, 34:38] = NEW  # overlaps nothing
    assert count_right(found, classes).tolist() == [[3, 2], [1, 1]]


def test_mixed_pairs() -> None:
    """Some places are exchanged, with their surroundings, and everything else stays as it is."""
    draw = np.random.default_rng(0)
    before, after = draw.integers(0, 256, (2, 300, 300, 3)).astype(np.uint8)
    mask = np.zeros((300, 300), np.uint8)
    for row in range(20, 300, 80):
        for column in range(20, 300, 80):
            mask[row : row + 10, column : column + 10] = 1
    first, second, classes = mixed_pair(before, after, mask, draw)
    assert np.array_equal(classes > 0, mask > 0)
    assert {NEW, VANISHED} <= set(np.unique(classes))
    for value, dates in ((NEW, (before, after)), (VANISHED, (after, before))):
        for new, old in zip((first, second), dates, strict=True):
            assert np.array_equal(new[classes == value], old[classes == value])
    assert np.array_equal(first[:, 65:75], before[:, 65:75])


def test_recoloured_pairs() -> None:
    draw = np.random.default_rng(0)
    before, after = (draw.integers(low, low + 60, (50, 50, 3)).astype(np.uint8) for low in (20, 150))
    first, second = recoloured_pair(before, after)
    for new, old in ((first, after), (second, before)):
        assert np.allclose(new.mean((0, 1)), old.mean((0, 1)), atol=0.5)
        assert np.allclose(new.std((0, 1)), old.std((0, 1)), atol=0.5)
    assert np.corrcoef(first.ravel(), before.ravel())[0, 1] > 0.9


@pytest.mark.slow
def test_the_shipped_checkpoint(real_data: Path, tmp_path: Path) -> None:
    """In a held-out pair: in both orders, with other colours, and with new and vanished buildings in one image."""
    for part in ("A", "B", "label"):
        (tmp_path / part).mkdir()
        (source,) = (real_data / "levir_subset" / "val" / part).glob("test_20.*")
        (tmp_path / part / source.name).symlink_to(source)
    found = measure(ChangeDetector(REPOSITORY / "checkpoints" / "buildings_direction.pth"), tmp_path)
    assert len(found) == 6 and (found["mixed"][:, 0] >= 10).all()
    for counts in found.values():
        every, right = counts.sum(axis=0)
        assert every >= 50 and right >= 0.95 * every
