"""New and vanished objects: how they are counted, and that checkpoints/buildings_direction.pth tells them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from change.common.classes import NEW, VANISHED
from change.prediction.detector import ChangeDetector
from tests.benchmark_direction import count_objects, measure, mixed_pair
from tests.conftest import REPOSITORY


def test_objects_are_counted() -> None:
    found, classes = np.zeros((2, 40, 40), np.uint8)
    classes[2:9, 2:9], found[3:9, 2:8] = NEW, NEW
    classes[2:9, 12:19], found[2:9, 12:19], found[2:9, 12:15] = NEW, VANISHED, NEW  # mostly wrong
    classes[20:29, 2:9], found[20:29, 2:12] = VANISHED, VANISHED
    classes[20:29, 20:24], classes[20:29, 24:28], found[20:29, 20:28] = NEW, VANISHED, NEW  # both: left out
    found[34:38, 34:38] = NEW  # overlaps no object
    assert count_objects(found, classes).tolist() == [[2, 1], [1, 1]]


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


def test_the_shipped_checkpoint(real_data: Path, tmp_path: Path) -> None:
    """In a pair that is held out: in both orders, and where new and vanished buildings stand side by side."""
    for part in ("A", "B", "label"):
        (tmp_path / part).mkdir()
        (source,) = (real_data / "levir_subset" / "val" / part).glob("test_20.*")
        (tmp_path / part / source.name).symlink_to(source)
    found = measure(ChangeDetector(REPOSITORY / "checkpoints" / "buildings_direction.pth"), tmp_path)
    for counts in found.values():
        every, right = counts.sum(axis=0)
        assert every >= 50 and right >= 0.95 * every
