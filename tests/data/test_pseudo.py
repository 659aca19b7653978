"""Pseudo-change: what is marked has changed, what is not marked has not; when it is drawn, and how much."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from change.change_dataloader import Batch, TrainSamples, find_split
from change.common.images import Image
from change.data import pseudo
from change.data.pseudo import PseudoShare, displaced, pseudo_pair
from change.data.transforms import ColorJitter
from tests.conftest import write_pairs

SIDE = 96
SEEDS = range(150)
Three = tuple[Image, Image, Image]


def draw(seed: int, image: int = 100) -> Three:
    """A pair from a plain image and a donor with texture."""
    donor = np.random.default_rng(99).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return pseudo_pair(np.full((SIDE, SIDE, 3), image, np.uint8), donor, np.random.default_rng(seed))


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No haze, no shift."""
    monkeypatch.setattr(pseudo, "hazy", lambda image, rng: image)
    monkeypatch.setattr(pseudo, "SHIFT", 0.0)


@pytest.mark.usefixtures("calm")
def test_marked_is_changed() -> None:
    """Well inside the mask the dates differ nearly everywhere; far from mask, shadows and blur they are equal."""
    marked = unmarked = differing = equal = changed = 0
    for seed in SEEDS:
        before, after, mask = draw(seed)
        assert before.shape == after.shape == (SIDE, SIDE, 3) and mask.shape == (SIDE, SIDE)
        assert {before.dtype, after.dtype, mask.dtype} == {np.dtype(np.uint8)} and np.max(mask) <= 1
        changed += int(mask.sum())
        difference = np.abs(before.astype(int) - after).max(2)
        inside = cv2.erode(mask, np.ones((5, 5))) > 0
        outside = cv2.dilate(mask, np.ones((21, 21))) == 0
        marked, differing = marked + int(inside.sum()), differing + int((difference[inside] > 4).sum())
        unmarked, equal = unmarked + int(outside.sum()), equal + int((difference[outside] <= 40).sum())
    assert differing / marked > 0.97
    assert equal / unmarked > 0.97
    assert 0.02 < changed / (len(SEEDS) * SIDE**2) < 0.2


@pytest.mark.usefixtures("calm")
def test_pasted_alike_is_no_change() -> None:
    """Some pairs show regions and have none marked: a border alone gives nothing away."""
    decoys = 0
    for seed in SEEDS:
        before, after, mask = draw(seed)
        if np.max(mask) == 0 and (before != 100).any() and (after != 100).any():
            decoys += 1
    assert decoys > len(SEEDS) / 30


def test_a_seed_decides_everything() -> None:
    first, again, other = (b"".join(array.tobytes() for array in draw(seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_shift_is_small() -> None:
    ramp = np.repeat(np.arange(SIDE, dtype=np.float32)[None], SIDE, 0)[..., None].repeat(3, 2) * 2
    shifts = [float(np.median(displaced(ramp, np.random.default_rng(s)) - ramp)) / 2 for s in range(60)]
    assert -2 <= min(shifts) < -1.5 and 1.5 < max(shifts) <= 2


def test_share_falls_to_nothing() -> None:
    share = PseudoShare(0.6, 4)
    assert [share.at(epoch) for epoch in range(6)] == pytest.approx([0.6, 0.45, 0.3, 0.15, 0, 0])


def test_samples(tmp_path: Path) -> None:
    """All pseudo at first: masks are not the labels'; none in the end: the same samples as without."""
    split = find_split(write_pairs(tmp_path / "data", 4), "")
    with_pseudo = TrainSamples(split, 48, ColorJitter(), 0, pseudo=PseudoShare(1.0, 3))
    plain = TrainSamples(split, 48, ColorJitter(), 0)

    def same(epoch: int) -> list[bool]:
        alike = []
        for index in range(4):
            one, other = with_pseudo[epoch, index], plain[epoch, index]
            assert isinstance(one, Batch) and isinstance(other, Batch)
            alike.append(all(torch.equal(x, y) for x, y in zip(one[:3], other[:3], strict=True)))
        return alike

    assert same(0) == [False] * 4
    assert same(3) == [True] * 4
