"""Counts against numpy's boolean logic, scores against figures made by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from change.metrics import Counts, count_pixels

NAN = math.nan


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 17, 23), (2, 64), (4, 1, 32, 8)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_counts_match_numpy(shape: tuple[int, ...], share: float) -> None:
    rng = np.random.default_rng(0)
    changed, mask = rng.random(shape) < share, rng.random(shape) < 0.4
    counts = count_pixels(torch.from_numpy(changed), torch.from_numpy(mask))
    assert counts.dtype == torch.int64
    expected = [
        [np.count_nonzero(pixels) for pixels in (p & m, p & ~m, ~p & m, ~p & ~m)]
        for p, m in zip(changed, mask, strict=True)
    ]
    assert counts.tolist() == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(tp=6, fp=2, fn=4, tn=88), (0.75, 0.6, 2 / 3, 0.5, 0.94)),
        (Counts(tp=5), (1, 1, 1, 1, 1)),
        (Counts(tn=5), (NAN, NAN, NAN, NAN, 1)),  # nothing changed, nothing claimed
        (Counts(fp=3, tn=1), (0, NAN, 0, 0, 0.25)),
        (Counts(fn=3, tn=1), (NAN, 0, 0, 0, 0.25)),
        (Counts(fp=1, fn=1), (0, 0, 0, 0, 0)),
        (Counts(), (NAN,) * 5),
    ],
    ids=str,
)
def test_scores(counts: Counts, expected: tuple[float, ...]) -> None:
    names = ("precision", "recall", "f1", "iou", "oa")
    assert counts.scores() == pytest.approx(dict(zip(names, expected, strict=True)), rel=1e-15, nan_ok=True)


def test_pooling_adds_up_beyond_32_bits() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(2**30, 2**31, (6, 4)).tolist()
    pooled = sum((Counts(*image) for image in images), Counts())
    tp, fp, fn, tn = (sum(image[kind] for image in images) for kind in range(4))
    assert min(tp, fp, fn, tn) > 2**32
    assert pooled == Counts(tp, fp, fn, tn)
    assert pooled.f1 == float(Fraction(2 * tp, 2 * tp + fp + fn))
    assert pooled.oa == float(Fraction(tp + tn, tp + fp + fn + tn))


def test_pooled_scores_weigh_pixels_not_images() -> None:
    sparse, dense = Counts(tp=0, fn=1, tn=99), Counts(tp=99, fn=1)
    assert (sparse + dense).recall == 99 / 101
