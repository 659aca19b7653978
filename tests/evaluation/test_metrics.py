"""Counts against numpy's boolean logic, torchmetrics, scikit-learn and slow loops; scores computed by hand."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import (  # type: ignore[import-untyped]
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
)
from torchmetrics.classification import BinaryAveragePrecision, BinaryF1Score, BinaryJaccardIndex, BinaryStatScores

from change.evaluation.metrics import (
    BINS,
    Counts,
    Curve,
    Matches,
    Objects,
    count_boundary,
    count_objects,
    count_pixels,
    histogram,
    image_means,
)

NAN = math.nan
Mask = NDArray[np.bool_]


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
    assert pooled.scores()["oa"] == float(Fraction(tp + tn, tp + fp + fn + tn))


def test_pooled_scores_weigh_pixels_not_images() -> None:
    sparse, dense = Counts(tp=0, fn=1, tn=99), Counts(tp=99, fn=1)
    assert (sparse + dense).scores()["recall"] == 99 / 101


def check_against_others(changed: Mask, mask: Mask) -> None:
    """Compare the counts of images (B, H, W) and their pooled scores with torchmetrics and scikit-learn."""
    tensors = torch.from_numpy(changed), torch.from_numpy(mask)
    counts = count_pixels(*tensors)
    theirs = BinaryStatScores(multidim_average="samplewise")(tensors[0].int(), tensors[1].int())
    assert counts[:, [0, 1, 3, 2]].tolist() == theirs[:, :4].tolist()
    pooled = Counts(*counts.sum(0).tolist())
    assert confusion_matrix(mask.ravel(), changed.ravel()).tolist() == [[pooled.tn, pooled.fp], [pooled.fn, pooled.tp]]
    for metric, value in ((BinaryF1Score(), pooled.f1), (BinaryJaccardIndex(), pooled.scores()["iou"])):
        assert float(metric(tensors[0].int(), tensors[1].int())) == pytest.approx(value, rel=1e-6)


def test_counts_match_other_libraries() -> None:
    rng = np.random.default_rng(2)
    check_against_others(rng.random((5, 70, 50)) < 0.2, rng.random((5, 70, 50)) < 0.1)


def test_counts_match_other_libraries_on_real_masks(real_data: Path) -> None:
    """The prediction is the mask moved by some pixels, with noise."""
    rng = np.random.default_rng(3)
    files = sorted((real_data / "clcd" / "val" / "label").iterdir())[::10]
    mask = np.stack([np.asarray(PIL.Image.open(file)) > 0 for file in files])
    changed = np.roll(mask, (3, -5), (1, 2)) ^ (rng.random(mask.shape) < 0.02)
    assert mask.any()
    check_against_others(changed, mask)
    scores = np.where(changed, 0.7, 0.2).astype(np.float32) + rng.normal(0, 0.2, mask.shape).astype(np.float32)
    check_curve(scores.clip(0, 1), mask)
    for one, other in zip(changed, mask, strict=True):  # any matches must satisfy this
        objects, boundary = count_objects(one, other).total, count_boundary(one, other)
        for matches in (objects, boundary):
            assert matches.found <= matches.true and matches.false <= matches.predicted
        assert count_objects(other, other).total.f1 == 1 or not other.any()


def test_image_means() -> None:
    images = [Counts(tp=6, fp=2, fn=4, tn=88), Counts(tn=100), Counts(fp=3, tn=97), Counts(tp=1, fn=1, tn=2)]
    means = image_means(images)
    assert means["precision"] == {"mean": pytest.approx((0.75 + 0 + 1) / 3), "images": 3}
    assert means["recall"] == {"mean": pytest.approx((0.6 + 0.5) / 2), "images": 2}
    assert means["oa"] == {"mean": pytest.approx((0.94 + 1 + 0.97 + 0.75) / 4), "images": 4}
    assert means["f1"]["mean"] != pytest.approx(sum(images, Counts()).f1, abs=0.01)
    assert image_means([Counts(tn=4)])["f1"] == {"mean": None, "images": 0}
    assert json.dumps(image_means([]), allow_nan=False)


# --- by threshold --------------------------------------------------------------------------------------------------


def test_bins_at_every_threshold_and_its_float_neighbours() -> None:
    thresholds = np.arange(BINS + 1, dtype=np.float32) / BINS
    neighbours = [np.nextafter(thresholds, np.float32(side)) for side in (-1, 2)]
    values = np.unique(np.concatenate((thresholds, *neighbours, np.array([1e-45, 1e-30, 0.3], np.float32)))).clip(0, 1)
    counts = histogram(torch.from_numpy(values)[:, None], torch.ones(len(values), 1, dtype=torch.bool))
    bins = counts[:, 1].argmax(1).numpy()
    for k in range(1, BINS):
        assert np.array_equal(bins >= k, values > k / BINS), k
    below, half, above = (np.nextafter(np.float32(0.5), np.float32(side)) for side in (0, 0.5, 1))
    assert [int(bins[values == p][0]) for p in (below, half, above)] == [511, 511, 512]


def test_histogram_counts_every_pixel_once() -> None:
    rng = np.random.default_rng(4)
    p, mask = rng.random((3, 1, 9, 11), np.float32), rng.random((3, 1, 9, 11)) < 0.4
    counts = histogram(torch.from_numpy(p), torch.from_numpy(mask))
    assert counts.shape == (3, 2, BINS) and counts.dtype == torch.int64
    expected = np.zeros((3, 2, BINS), np.int64)
    for index, value in np.ndenumerate(p):
        expected[index[0], int(mask[index]), max(0, math.ceil(Fraction(float(value)) * BINS) - 1)] += 1
    assert np.array_equal(counts.numpy(), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_histogram_refuses_what_is_not_finite(value: float) -> None:
    """A NaN would be counted as probability 0."""
    p = torch.full((2, 1, 3, 3), 0.5)
    p[1, 0, 2, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        histogram(p, torch.zeros(p.shape, dtype=torch.bool))


def check_curve(p: NDArray[np.float32], mask: Mask) -> None:
    """Compare a curve with scikit-learn and torchmetrics on quantised probabilities, and with masks at thresholds."""
    tensors = torch.from_numpy(p), torch.from_numpy(mask)
    curve = Curve(histogram(*tensors).sum(0).numpy())
    quantised = np.maximum(np.ceil(p.ravel() * BINS) - 1, 0)
    average = curve.average_precision()
    assert average == pytest.approx(average_precision_score(mask.ravel(), quantised), rel=1e-12)
    theirs = BinaryAveragePrecision()(torch.from_numpy(quantised / BINS), tensors[1].flatten().long())
    assert average == pytest.approx(float(theirs), rel=1e-4)
    precision, recall, used = precision_recall_curve(mask.ravel(), quantised)
    scores = curve.scores()
    assert scores["precision"][used.astype(int)] == pytest.approx(precision[:-1], rel=1e-12)
    assert scores["recall"][used.astype(int)] == pytest.approx(recall[:-1], rel=1e-12)
    for threshold in (1 / BINS, 0.25, 0.5, 1 - 1 / BINS):
        counts = Counts(*count_pixels(tensors[0] > threshold, tensors[1]).sum(0).tolist())
        assert curve.at(threshold) == counts
        index = int(threshold * BINS)
        expected = counts.scores()
        assert {name: values[index] for name, values in scores.items()} == pytest.approx(expected, rel=0, nan_ok=True)
    best = curve.best_threshold()
    assert best is not None
    assert curve.at(best).f1 == max(curve.at(k / BINS).f1 for k in range(1, BINS))


@pytest.mark.parametrize("spread", [0.05, 0.3, 3.0], ids=str)
def test_curve_matches_scikit_learn(spread: float) -> None:
    rng = np.random.default_rng(5)
    mask = rng.random((2, 80, 50)) < 0.15
    p = 1 / (1 + np.exp(-rng.normal(mask * 2 - 1, spread)))
    check_curve(p.astype(np.float32), mask)


def test_curve_of_next_to_nothing() -> None:
    empty = Curve(np.zeros((2, BINS), np.int64))
    assert math.isnan(empty.average_precision()) and empty.best_threshold() is None and empty.at(0.5) == Counts()
    unchanged = empty.histogram.copy()
    unchanged[0, 700] = 3
    assert math.isnan(Curve(unchanged).average_precision()) and Curve(unchanged).best_threshold() is None
    assert Curve(unchanged).at(0.5) == Counts(fp=3)
    unchanged[1, 100] = 1  # below all unchanged pixels: it is best to call everything changed
    assert Curve(unchanged).average_precision() == 0.25
    assert Curve(unchanged).best_threshold() == 100 / BINS


@pytest.mark.parametrize(
    ("unchanged", "changed", "best"),
    [(300, 900, 512), (10, 400, 400), (600, 900, 601), (511, 512, 512), (0, 0, 512)],
    ids=str,
)
def test_best_threshold_is_the_one_nearest_to_a_half(unchanged: int, changed: int, best: int) -> None:
    counts = np.zeros((2, BINS), np.int64)
    counts[0, unchanged], counts[1, changed] = 5, 5
    expected = best / BINS
    assert Curve(counts).best_threshold() == expected


# --- objects and boundaries ----------------------------------------------------------------------------------------


def slow_objects(mask: Mask) -> list[set[tuple[int, int]]]:
    """Find the 8-connected objects of a mask by flooding."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    objects = []
    while left:
        front = [left.pop()]
        found = set(front)
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            found |= near
            front += near
        objects.append(found)
    return objects


def slow_sizes(mask: Mask, other: Mask) -> list[list[int]]:
    """Count by size the objects of `mask`, and those with at least half of their pixels in `other`."""
    counts = [[0, 0] for _ in range(3)]
    for pixels in slow_objects(mask):
        size = int(len(pixels) >= 100) + int(len(pixels) >= 1000)
        counts[size][0] += 1
        counts[size][1] += sum(bool(other[pixel]) for pixel in pixels) >= len(pixels) / 2
    return counts


def blobs(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Mask:
    """Draw a random mask with speckle on the left and blocks of four by four on the right."""
    coarse = rng.random((shape[0] // 4, shape[1] // 4)) < share
    mask = np.kron(coarse, np.ones((4, 4), bool))
    mask[:, : shape[1] // 2] = rng.random((shape[0], shape[1] // 2)) < share
    return mask


@pytest.mark.parametrize("share", [0.02, 0.2, 0.38, 0.6])
def test_objects_match_flooding(share: float) -> None:
    rng = np.random.default_rng(6)
    for _ in range(3):
        mask = blobs(rng, (64, 96), share)
        changed = mask ^ (rng.random(mask.shape) < 0.1) ^ (rng.random(mask.shape) < 0.4) & mask
        objects = count_objects(changed, mask)
        expected = [
            Matches(true, found, predicted, predicted - right)
            for (true, found), (predicted, right) in zip(
                slow_sizes(mask, changed), slow_sizes(changed, mask), strict=True
            )
        ]
        assert list(objects.by_size) == expected
        assert objects.total == sum(expected, Matches())


def test_half_an_object_is_found_and_not_false() -> None:
    mask, changed = np.zeros((2, 20, 60), bool)
    mask[0, 0:4], changed[0, 2:6] = True, True  # half of each
    mask[5, 0:5], changed[5, 3:9] = True, True  # two of five, two of six
    mask[10:20, 0:10] = True  # 100 pixels, diagonal neighbour of one more
    mask[9, 10] = True
    changed[10:15, 0:10] = True  # 50 of the 101
    changed[2, 50:55] = True  # nothing there
    objects = count_objects(changed, mask)
    assert objects.by_size == (Matches(2, 1, 4, 2), Matches(1, 0, 0, 0), Matches())
    both = objects + count_objects(mask, mask)
    assert both.total == Matches(6, 4, 7, 2)
    result = json.loads(json.dumps(objects.as_dict(), allow_nan=False))
    assert result["true"] == 3 and result["recall"] == pytest.approx(1 / 3) and result["precision"] == 0.5
    assert result["f1"] == pytest.approx(0.4)
    assert result["by_size"][1] == {
        "pixels": "100-999",
        "true": 1,
        "found": 0,
        "predicted": 0,
        "false": 0,
        "precision": None,
        "recall": 0,
    }


def test_nothing_to_match() -> None:
    nothing, everything = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    assert count_objects(nothing, nothing) == Objects() and math.isnan(Matches().f1)
    assert count_objects(everything, nothing).total == Matches(predicted=1, false=1)
    assert Matches(predicted=1, false=1).f1 == 0 == Matches(true=1).f1
    assert Matches(true=4, found=3, predicted=3, false=1).f1 == pytest.approx(2 / (4 / 3 + 3 / 2))
    assert count_boundary(everything, everything) == Matches()


def slow_boundary(mask: Mask) -> list[tuple[int, int]]:
    """Find the changed pixels with an unchanged 4-neighbour in the image."""
    height, width = mask.shape
    sides = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return [
        (int(y), int(x))
        for y, x in np.argwhere(mask)
        if any(0 <= y + dy < height and 0 <= x + dx < width and not mask[y + dy, x + dx] for dy, dx in sides)
    ]


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_boundary_matches_all_distances(tolerance: int, share: float) -> None:
    rng = np.random.default_rng(7)
    mask, changed = blobs(rng, (32, 40), share), blobs(rng, (32, 40), share)
    predicted, true = slow_boundary(changed), slow_boundary(mask)

    def near(pixels: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in others) for y, x in pixels)

    expected = Matches(len(true), near(true, predicted), len(predicted), len(predicted) - near(predicted, true))
    assert expected.true and expected.predicted
    assert count_boundary(changed, mask, tolerance) == expected
