"""Scores of binary change masks, from exact counts of pixels that add up over images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
        return {name: None if math.isnan(value) else value for name, value in self.scores().items()}


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
