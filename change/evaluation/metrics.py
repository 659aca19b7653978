"""Scores of change masks, from exact counts that add up over images: of pixels, by threshold, of objects and of
boundaries."""

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

from change.evaluation.bootstrap import or_none, scores

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BINS = 1024  # a power of two: p * BINS is exact in float32
OBJECT_SIZES = ("1-99", "100-999", "1000 and more")  # pixels
LARGER_FROM = (100, 1000)  # where the second and the third of them begin
TOLERANCE = 2  # pixels a boundary may be off


@dataclass(frozen=True)
class Counts:
    """Pixels by prediction and truth; `+` pools them. Precision, recall, f1 and iou are of the changed class.

    A ratio without any pixel in its denominator is undefined: NaN.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN)."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def oa(self) -> float:
        """Overall accuracy: (TP + TN) / all pixels."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def scores(self) -> dict[str, float]:
        """The five scores by name, each 0..1 or NaN."""
        return {name: getattr(self, name) for name in SCORES}

    def scores_or_none(self) -> dict[str, float | None]:
        """The same with None for NaN, which JSON does not know."""
        return {name: or_none(value) for name, value in self.scores().items()}


SCORES = ("precision", "recall", "f1", "iou", "oa")


def ratio(part: int, whole: int) -> float:
    """part / whole, NaN for nothing of nothing."""
    return part / whole if whole else math.nan


def count_pixels(changed: Tensor, mask: Tensor) -> Tensor:
    """Predicted and true change, bool (B, ...) each -> int64 (B, 4) of TP, FP, FN, TN, on the same device."""
    changed, mask = changed.flatten(1), mask.flatten(1)
    tp = (changed & mask).sum(1)
    predicted, true = changed.sum(1), mask.sum(1)
    return torch.stack((tp, predicted - tp, true - tp, mask.shape[1] - predicted - true + tp), dim=1)


def image_means(images: Sequence[Counts]) -> dict[str, dict[str, float | int | None]]:
    """Each score's mean over the images on which it is defined (None: on none), and how many these are.

    Every image weighs the same here, however few its changed pixels: another figure than the pooled score, never to be
    compared with it.
    """
    means: dict[str, dict[str, float | int | None]] = {}
    for name in SCORES:
        defined = [value for image in images if not math.isnan(value := getattr(image, name))]
        means[name] = {"mean": math.fsum(defined) / len(defined) if defined else None, "images": len(defined)}
    return means


# --- by threshold --------------------------------------------------------------------------------------------------


def histogram(probability: Tensor, mask: Tensor) -> Tensor:
    """Probabilities float32 (B, ...) of 0..1 and truth bool (B, ...) -> int64 (B, 2, BINS), on the same device:
    [:, 0] counts unchanged pixels, [:, 1] changed ones.

    p falls into bin ceil(p * BINS) - 1 (0 into bin 0), so that p > k / BINS is exactly bin >= k, for every k above 0.
    """
    bins = (probability.flatten(1) * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    image = torch.arange(len(bins), device=bins.device)[:, None]
    place = (2 * image + mask.flatten(1)) * BINS + bins
    return torch.bincount(place.flatten(), minlength=len(bins) * 2 * BINS).view(-1, 2, BINS)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores at every threshold k / BINS, k = 0..BINS - 1, from a `histogram` summed over images, int64 (2, BINS).

    A pixel is changed above the threshold; at k = 0 every pixel is, also one of probability 0.
    """

    histogram: Ints

    @property
    def counts(self) -> Ints:
        """TP, FP, FN, TN by k, int64 (BINS, 4)."""
        fp, tp = self.histogram[:, ::-1].cumsum(1)[:, ::-1]
        return np.stack((tp, fp, tp[0] - tp, fp[0] - fp), axis=1)

    def at(self, threshold: float) -> Counts:
        """The counts at a threshold, which is a whole multiple of 1 / BINS."""
        k = int(threshold * BINS)
        assert k == threshold * BINS and 0 <= k < BINS, threshold
        return Counts(*self.counts[k].tolist())

    def scores(self) -> dict[str, Floats]:
        """The five scores by k, each float64 (BINS,), NaN where undefined."""
        return scores(self.counts)

    def average_precision(self) -> float:
        """Sum over k, downwards, of (recall(k) - recall(k + 1)) * precision(k): scikit-learn's, on probabilities
        rounded up to whole multiples of 1 / BINS. NaN without a changed pixel."""
        changed = self.histogram[1]
        defined = np.nan_to_num(self.scores()["precision"])  # undefined only above the last pixel, which weigh 0
        return float(changed @ defined / changed.sum()) if changed.any() else math.nan

    def best_threshold(self) -> float | None:
        """The threshold of the highest F1, of several the nearest to 0.5; None without a changed pixel."""
        if not self.histogram[1].any():
            return None
        f1 = self.scores()["f1"][1:]  # not k = 0, which is no p > threshold
        best = 1 + np.flatnonzero(f1 == np.max(f1))
        return float(best[np.argmin(np.abs(best - BINS // 2))]) / BINS


# --- of objects and of boundaries ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """How many true things there are and how many of them were found; how many were predicted and how many of them are
    false. `+` pools them. A ratio of nothing is undefined: NaN."""

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
        """The share of the predicted that is not false."""
        return ratio(self.predicted - self.false, self.predicted)

    @property
    def recall(self) -> float:
        """The share of the true that was found."""
        return ratio(self.found, self.true)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where one of them is 0 or undefined, NaN where both are."""
        right = self.predicted - self.false
        whole = self.found * self.predicted + right * self.true
        return 2 * self.found * right / whole if whole else ratio(0, self.true + self.predicted)

    def as_dict(self) -> dict[str, float | int | None]:
        """Counts and scores for JSON, None for NaN."""
        ratios = {name: or_none(getattr(self, name)) for name in ("precision", "recall", "f1")}
        return {**asdict(self), **ratios}


@dataclass(frozen=True)
class Objects:
    """Matches of objects by `OBJECT_SIZES`: true ones by their own size, predicted ones by theirs; `+` pools them."""

    by_size: tuple[Matches, ...] = (Matches(),) * len(OBJECT_SIZES)

    def __add__(self, other: Objects) -> Objects:
        return Objects(tuple(mine + theirs for mine, theirs in zip(self.by_size, other.by_size, strict=True)))

    @property
    def total(self) -> Matches:
        """Objects of all sizes."""
        return sum(self.by_size, Matches())

    def as_dict(self) -> dict[str, Any]:
        """Counts and scores for JSON, in all and by size. F1 in all only: of one size, true and predicted objects are
        different ones."""
        sizes = []
        for pixels, matches in zip(OBJECT_SIZES, self.by_size, strict=True):
            sizes.append({"pixels": pixels, **matches.as_dict()})
            del sizes[-1]["f1"]
        return {**self.total.as_dict(), "by_size": sizes}


def count_objects(changed: Mask, mask: Mask) -> Objects:
    """Match the 8-connected objects of prediction and truth, bool (H, W) each.

    A true object is found where at least half of its pixels are predicted; a predicted one is false where less than
    half of its pixels are truly changed.
    """
    true, found = objects_by_size(mask, changed)
    predicted, right = objects_by_size(changed, mask)
    rows = np.stack((true, found, predicted, predicted - right), axis=1)
    return Objects(tuple(Matches(*row) for row in rows.tolist()))


def objects_by_size(mask: Mask, other: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How many objects `mask` holds, and of how many at least half the pixels are in `other`, (3,) each."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]  # without label 0, the background
    covered = np.bincount(labels[other].astype(np.int32, copy=False), minlength=count)[1:]
    size = np.digitize(area, LARGER_FROM)
    every, half = (np.bincount(kind, minlength=len(OBJECT_SIZES)) for kind in (size, size[2 * covered >= area]))
    return every, half


def count_boundary(changed: Mask, mask: Mask, tolerance: int = TOLERANCE) -> Matches:
    """Match the boundary pixels of prediction and truth, bool (H, W) each: they may be `tolerance` apart (Euclidean).

    A boundary pixel is a changed one with an unchanged 4-neighbour; the image's border is no boundary. After Csurka,
    Larlus and Perronnin, What is a good evaluation measure for semantic segmentation?, BMVC 2013, who average the score
    over images; these counts add up.
    """
    predicted, true = boundary(changed), boundary(mask)
    found, right = true & widened(predicted, tolerance), predicted & widened(true, tolerance)
    kinds = (true, found, predicted, predicted & ~right)
    return Matches(*(int(np.count_nonzero(kind)) for kind in kinds))


def boundary(mask: Mask) -> Mask:
    """The pixels of `mask` with a 4-neighbour outside it; beyond the image, OpenCV takes everything to be inside."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return np.asarray(mask & (cv2.erode(mask.astype(np.uint8), cross) == 0))


def widened(mask: Mask, radius: int) -> Mask:
    """The pixels at most `radius` from one of `mask`, by dilation with a disc: exact."""
    reach = np.arange(-radius, radius + 1)
    disc = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc) > 0)
