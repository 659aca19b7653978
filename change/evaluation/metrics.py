"""Scores of change masks from exact counts that add up over images.

Pixels are counted at one threshold or at all of them (`Counts`, `Curve`), and objects and boundaries are matched
(`Objects`, `Matches`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.evaluation.bootstrap import SCORES as SCORES
from change.evaluation.bootstrap import or_none, scores

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BINS = 1024  # a power of two: p * BINS is exact in float32
OBJECT_SIZES = ("1-99", "100-999", "1000 and more")  # pixels
LARGER_FROM = (100, 1000)  # smallest objects of the second and third size class, in pixels
TOLERANCE = 2  # pixels by which a boundary may be off


@dataclass(frozen=True)
class Counts:
    """Pixel counts by prediction and truth; `+` pools them. The scores are those of `change.evaluation.bootstrap`."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    def scores(self) -> dict[str, float]:
        """Return the five scores by name, each 0 to 1, or NaN if it is undefined."""
        counts = np.array((self.tp, self.fp, self.fn, self.tn), np.int64)
        return {name: float(value) for name, value in scores(counts).items()}

    def scores_or_none(self) -> dict[str, float | None]:
        """Return the five scores with None for NaN, which JSON cannot hold."""
        return {name: or_none(value) for name, value in self.scores().items()}

    @property
    def f1(self) -> float:
        """F1, the score by which models are chosen."""
        return self.scores()["f1"]


def ratio(part: int, whole: int) -> float:
    """Return part / whole, or NaN if `whole` is 0."""
    return part / whole if whole else math.nan


def count_pixels(changed: Tensor, mask: Tensor) -> Tensor:
    """Count the pixels of each image by prediction and truth.

    Args:
        changed: predicted change, bool (B, ...).
        mask: true change, bool of the same shape.

    Returns:
        int64 (B, 4) of TP, FP, FN, TN, on the same device.
    """
    changed, mask = changed.flatten(1), mask.flatten(1)
    tp = (changed & mask).sum(1)
    predicted, true = changed.sum(1), mask.sum(1)
    return torch.stack((tp, predicted - tp, true - tp, mask.shape[1] - predicted - true + tp), dim=1)


def image_means(images: Sequence[Counts]) -> dict[str, dict[str, float | int | None]]:
    """Average each score over the images on which it is defined, and count these images.

    Every image has the same weight here, however few of its pixels are changed. Do not compare these means with pooled
    scores.

    Returns:
        "mean" (None if the score is defined on no image) and "images" for each score.
    """
    means: dict[str, dict[str, float | int | None]] = {}
    scored = [image.scores() for image in images]
    for name in SCORES:
        defined = [image[name] for image in scored if not math.isnan(image[name])]
        means[name] = {"mean": math.fsum(defined) / len(defined) if defined else None, "images": len(defined)}
    return means


# --- by threshold --------------------------------------------------------------------------------------------------


def histogram(probability: Tensor, mask: Tensor) -> Tensor:
    """Count the pixels of each image by truth and probability.

    A probability p falls into bin ceil(p * BINS) - 1 (0 into bin 0), so that p > k / BINS is exactly bin >= k for every
    k above 0.

    Args:
        probability: float32 (B, ...), 0 to 1.
        mask: true change, bool of the same shape.

    Returns:
        int64 (B, 2, BINS) on the same device: [:, 0] counts unchanged pixels, [:, 1] changed ones.

    Raises:
        ValueError: if a probability is NaN or infinite; `change.prediction.threshold.changed_pixels` names the image.
    """
    if not bool(probability.isfinite().all()):
        raise ValueError("probabilities that are NaN or infinite cannot be counted")
    bins = (probability.flatten(1) * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    image = torch.arange(len(bins), device=bins.device)[:, None]
    place = (2 * image + mask.flatten(1)) * BINS + bins
    return torch.bincount(place.flatten(), minlength=len(bins) * 2 * BINS).view(-1, 2, BINS)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores at every threshold k / BINS, k from 0 to BINS - 1.

    A pixel is changed if its probability exceeds the threshold. At k = 0 every pixel counts as changed, even one of
    probability 0.

    Attributes:
        histogram: the result of `histogram` summed over images, int64 (2, BINS).
    """

    histogram: Ints

    @property
    def counts(self) -> Ints:
        """TP, FP, FN, TN for each k, int64 (BINS, 4)."""
        fp, tp = self.histogram[:, ::-1].cumsum(1)[:, ::-1]
        return np.stack((tp, fp, tp[0] - tp, fp[0] - fp), axis=1)

    def at(self, threshold: float) -> Counts:
        """Return the counts at a threshold, which must be a multiple of 1 / BINS."""
        k = int(threshold * BINS)
        assert k == threshold * BINS and 0 <= k < BINS, threshold
        return Counts(*self.counts[k].tolist())

    def scores(self) -> dict[str, Floats]:
        """Return the five scores for each k, float64 (BINS,), NaN if undefined."""
        return scores(self.counts)

    def average_precision(self) -> float:
        """Return the average precision, or NaN if no pixel is changed.

        It is the sum over k of (recall(k) - recall(k + 1)) * precision(k), as in scikit-learn, for probabilities
        rounded up to multiples of 1 / BINS.
        """
        changed = self.histogram[1]
        defined = np.nan_to_num(self.scores()["precision"])  # NaN only above all probabilities, where the weight is 0
        return float(changed @ defined / changed.sum()) if changed.any() else math.nan

    def best_threshold(self) -> float | None:
        """Return the threshold with the highest F1 (in a tie, nearest to 0.5); None if no pixel is truly changed."""
        if not self.histogram[1].any():
            return None
        f1 = self.scores()["f1"][1:]  # without k = 0, at which every pixel counts as changed
        best = 1 + np.flatnonzero(f1 == np.max(f1))
        return float(best[np.argmin(np.abs(best - BINS // 2))]) / BINS


# --- objects and boundaries ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """Counts of items, objects or boundary pixels; `+` pools them. A ratio with a denominator of 0 is undefined: NaN.

    Attributes:
        true: number of true items.
        found: number of true items that were found.
        predicted: number of predicted items.
        false: number of predicted items that are false.
    """

    true: int = 0
    found: int = 0
    predicted: int = 0
    false: int = 0

    def __add__(self, other: Matches) -> Matches:
        return Matches(
            self.true + other.true,
            self.found + other.found,
            self.predicted + other.predicted,
            self.false + other.false,
        )

    @property
    def precision(self) -> float:
        """Share of the predicted items that are not false."""
        return ratio(self.predicted - self.false, self.predicted)

    @property
    def recall(self) -> float:
        """Share of the true items that were found."""
        return ratio(self.found, self.true)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if one of them is 0 or undefined, NaN if both are undefined."""
        right = self.predicted - self.false
        whole = self.found * self.predicted + right * self.true
        return 2 * self.found * right / whole if whole else ratio(0, self.true + self.predicted)

    def as_dict(self) -> dict[str, float | int | None]:
        """Return counts and scores for JSON, None for NaN."""
        ratios = {name: or_none(getattr(self, name)) for name in ("precision", "recall", "f1")}
        return {**asdict(self), **ratios}


@dataclass(frozen=True)
class Objects:
    """Matches of objects, one entry for each of `OBJECT_SIZES`; `+` pools them.

    Each object, true or predicted, is counted under its own size.
    """

    by_size: tuple[Matches, ...] = (Matches(),) * len(OBJECT_SIZES)

    def __add__(self, other: Objects) -> Objects:
        return Objects(tuple(mine + theirs for mine, theirs in zip(self.by_size, other.by_size, strict=True)))

    @property
    def total(self) -> Matches:
        """Matches of objects of all sizes."""
        return sum(self.by_size, Matches())

    def as_dict(self) -> dict[str, Any]:
        """Return counts and scores for JSON, in total and by size.

        There is no F1 by size, because the true and the predicted objects of one size are different objects.
        """
        sizes = []
        for pixels, matches in zip(OBJECT_SIZES, self.by_size, strict=True):
            sizes.append({"pixels": pixels, **matches.as_dict()})
            del sizes[-1]["f1"]
        return {**self.total.as_dict(), "by_size": sizes}


def count_objects(changed: Mask, mask: Mask) -> Objects:
    """Match the 8-connected objects of prediction and truth.

    A true object is found if at least half of its pixels are predicted. A predicted object is false if less than half
    of its pixels are truly changed.

    Args:
        changed: predicted change, bool (H, W).
        mask: true change, bool (H, W).
    """
    true, found = objects_by_size(mask, changed)
    predicted, right = objects_by_size(changed, mask)
    rows = np.stack((true, found, predicted, predicted - right), axis=1)
    return Objects(tuple(Matches(*row) for row in rows.tolist()))


def objects_by_size(mask: Mask, other: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Count by size the objects in `mask`, (3,), and those with at least half of their pixels in `other`, (3,)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]  # without label 0, the background
    covered = np.bincount(labels[other].astype(np.int32, copy=False), minlength=count)[1:]
    size = np.digitize(area, LARGER_FROM)
    every, half = (np.bincount(kind, minlength=len(OBJECT_SIZES)) for kind in (size, size[2 * covered >= area]))
    return every, half


def count_boundary(changed: Mask, mask: Mask, tolerance: int = TOLERANCE) -> Matches:
    """Match the boundary pixels of prediction and truth.

    A boundary pixel is a changed pixel with an unchanged 4-neighbour. The border of the image is not a boundary.

    Source: Csurka, Larlus and Perronnin, What is a good evaluation measure for semantic segmentation?, BMVC 2013. They
    average the score over images; here the counts add up.

    Args:
        changed: predicted change, bool (H, W).
        mask: true change, bool (H, W).
        tolerance: largest Euclidean distance of matching pixels.
    """
    predicted, true = boundary(changed), boundary(mask)
    found, right = true & widen(predicted, tolerance), predicted & widen(true, tolerance)
    kinds = (true, found, predicted, predicted & ~right)
    return Matches(*(int(np.count_nonzero(kind)) for kind in kinds))


def boundary(mask: Mask) -> Mask:
    """Return the pixels of `mask` that have a 4-neighbour in the image outside `mask`."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))  # erode treats pixels beyond the image as changed
    return np.asarray(mask & (cv2.erode(mask.astype(np.uint8), cross) == 0))


def widen(mask: Mask, radius: int) -> Mask:
    """Return the pixels at most `radius` away from a pixel of `mask`, by dilation with an exact disc."""
    reach = np.arange(-radius, radius + 1)
    disc = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc) > 0)
