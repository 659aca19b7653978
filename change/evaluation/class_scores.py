"""Scores of classes, from one table of pixel counts: the confusion matrix."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.change_dataloader import Split
from change.checkpoint import Checkpoint
from change.common.classes import UNCHANGED, Classes
from change.common.errors import UserError
from change.evaluation.bootstrap import or_none
from change.evaluation.metrics import Counts

CLASS_SCORES = ("precision", "recall", "f1", "iou")
RULE = (
    "changed if 1 - the probability of unchanged exceeds the threshold; its class is then the most probable class of "
    "change"
)

log = logging.getLogger(__name__)


def count_classes(predicted: Tensor, truth: Tensor, number: int) -> Tensor:
    """Count the pixels of a batch by truth and prediction.

    Args:
        predicted: class values, integers (B, ...) from 0 to `number`.
        truth: the same.
        number: the number of classes K.

    Returns:
        int64 (K + 1, K + 1) on the same device: rows are the truth, columns the prediction.
    """
    size = 1 + number
    return torch.bincount((truth.long() * size + predicted).flatten(), minlength=size**2).view(size, size)


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Pixel counts by class.

    Attributes:
        confusion: int64 (K + 1, K + 1); rows are the truth, columns the prediction, and 0 is unchanged.
    """

    confusion: NDArray[np.int64]

    def by_class(self) -> list[Counts]:
        """Return the counts of each class of change against everything else."""
        right = np.diag(self.confusion)
        true, predicted, pixels = self.confusion.sum(1), self.confusion.sum(0), int(self.confusion.sum())
        table = np.stack((right, predicted - right, true - right, pixels - true - predicted + right), axis=1)
        return [Counts(*row) for row in table[1:].tolist()]

    def means(self) -> dict[str, dict[str, float | int | None]]:
        """Return the mean of each score over the classes on which it is defined, and the number of these classes."""
        scored = [counts.scores() for counts in self.by_class()]
        means: dict[str, dict[str, float | int | None]] = {}
        for name in CLASS_SCORES:
            defined = [scores[name] for scores in scored if not math.isnan(scores[name])]
            means[name] = {"mean": math.fsum(defined) / len(defined) if defined else None, "classes": len(defined)}
        return means

    def as_dict(self, classes: Classes) -> dict[str, Any]:
        """Return the scores for metrics.json; those that are undefined are None."""
        scores = {}
        for name, counts in zip(classes.names, self.by_class(), strict=True):
            own = counts.scores()
            scores[name] = {
                "pixels": counts.tp + counts.fn,
                "predicted": counts.tp + counts.fp,
                **{score: or_none(own[score]) for score in CLASS_SCORES},
            }
        return {
            "rule": RULE,
            "mean": self.means(),
            "scores": scores,
            "confusion": {
                "names": [UNCHANGED, *classes.names],
                "rows": "truth",
                "columns": "prediction",
                "pixels": self.confusion.tolist(),
            },
        }


def confusion_lines(counts: ClassCounts, classes: Classes) -> list[str]:
    """Return the confusion matrix as a table in Markdown."""
    names = [UNCHANGED, *classes.names]
    rows: list[Sequence[object]] = [["truth \\ prediction", *names], ["---", *["---:"] * len(names)]]
    rows += [[name, *row] for name, row in zip(names, counts.confusion.tolist(), strict=True)]
    return [f"| {' | '.join(map(str, row))} |" for row in rows]


def told_apart(checkpoint: Checkpoint, split: Split) -> Classes | None:
    """Return the classes that both a checkpoint and the masks of a split tell apart; None if only change is scored."""
    return checkpoint.classes if split.classes and split.labelled else None


def check_classes(checkpoint: Checkpoint, split: Split) -> None:
    """Log a line if only change is scored, although the checkpoint or the masks of a split tell classes apart.

    Raises UserError if both do, and the classes differ.
    """
    ours, theirs = checkpoint.classes, split.classes
    if not split.labelled:
        return
    if ours and theirs and ours.names != theirs.names:
        raise UserError(
            f"{checkpoint.path} tells apart {ours.described()}, and the masks hold {theirs.described()}: "
            "use --classes any to score only whether something changed, or other weights"
        )
    if theirs and not ours:
        log.info("the checkpoint tells no classes apart: all classes of the masks are scored as changed")
    elif ours and not theirs:
        log.info("the masks tell no classes apart: those of the checkpoint are scored as changed")
