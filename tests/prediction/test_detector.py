"""The Python interface: files, pictures and arrays, large images in tiles, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from change.checkpoint import load_checkpoint, network_for_prediction
from change.common.errors import UserError
from change.prediction.detector import ChangeDetector
from models.padding import any_size, normalise
from tests.conftest import draw_pair
from tests.test_quick_start import CHECKPOINT


@pytest.fixture(scope="module")
def detector() -> ChangeDetector:
    return ChangeDetector(CHECKPOINT, device="cpu", tile=128, overlap=32)


def test_arrays_pictures_and_files_are_the_same(detector: ChangeDetector, tmp_path: Path) -> None:
    """And what the network gives, called by hand."""
    before, after, _ = draw_pair(np.random.default_rng(0), 100, 70)
    found = detector.predict(before, after)
    assert found.shape == (70, 100) and found.dtype == np.float32
    pictures = [PIL.Image.fromarray(image) for image in (before, after)]
    paths = [tmp_path / "before.png", tmp_path / "after.png"]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    assert np.array_equal(found, detector.predict(*pictures))
    assert np.array_equal(found, detector.predict(str(paths[0]), paths[1]))
    network, _ = network_for_prediction(load_checkpoint(CHECKPOINT))
    tensors = [normalise(torch.from_numpy(image).permute(2, 0, 1)[None]) for image in (before, after)]
    with torch.no_grad():
        expected = torch.sigmoid(any_size(network, *tensors))[0, 0].numpy()
    assert np.abs(found - expected).max() <= 1e-5


def test_large_images_are_tiled(detector: ChangeDetector) -> None:
    before, after, _ = draw_pair(np.random.default_rng(1), 300, 140)
    found = detector.predict(before, after)
    whole = ChangeDetector(CHECKPOINT, device="cpu").predict(before, after)
    assert found.shape == whole.shape == (140, 300)
    assert not np.array_equal(found, whole)
    corner = ChangeDetector(CHECKPOINT, device="cpu").predict(before[:128, :128], after[:128, :128])
    assert np.abs(found[:12, :96] - corner[:12, :96]).max() <= 1e-5  # before the next tiles begin


GOOD = np.zeros((32, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (GOOD[:31], "before has 48 x 31 pixels, after 48 x 32"),
        (GOOD[..., 0], r"before is uint8 \(32, 48\)"),
        (GOOD.astype(np.float32), "before is float32"),
        (GOOD[:0], "before is uint8"),
        ("nowhere.png", "nowhere.png cannot be decoded"),
    ],
)
def test_what_is_refused(detector: ChangeDetector, before: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        detector.predict(before, GOOD)


def test_overlap_of_a_whole_tile() -> None:
    with pytest.raises(UserError, match="overlap 128"):
        ChangeDetector(CHECKPOINT, tile=128, overlap=128)
