"""Counts and scores of classes against loops over pixels and the definitions of the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import (  # type: ignore[import-untyped]
    confusion_matrix,
    jaccard_score,
    precision_recall_fscore_support,
)
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from change.change_dataloader import Pair, Split
from change.checkpoint import Checkpoint
from change.common.classes import Classes, MaskClasses, parse_classes
from change.common.errors import UserError
from change.evaluation.class_scores import CLASS_SCORES, ClassCounts, check_classes, confusion_lines, count_classes
from change.evaluation.metrics import Counts, count_pixels
from models.config import NetworkConfig

CLASSES = parse_classes(["a", "b", "c"])


def draw() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw truth and prediction (3, 1, 7, 9), of which two thirds agree; class 3 is never predicted."""
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 4, (3, 1, 7, 9))
    predicted = np.where(rng.random(truth.shape) < 2 / 3, truth, rng.integers(0, 3, truth.shape))
    predicted[predicted == 3] = 0
    return truth, predicted


def test_counts_and_scores() -> None:
    truth, predicted = draw()
    counts = ClassCounts(count_classes(torch.tensor(predicted), torch.tensor(truth), 3).numpy())
    confusion = np.zeros((4, 4), int)
    for true, found in zip(truth.ravel(), predicted.ravel(), strict=True):
        confusion[true, found] += 1
    assert np.array_equal(counts.confusion, confusion)
    result = counts.as_dict(CLASSES)
    f1 = []
    for value, name in enumerate(CLASSES.names, start=1):
        true, found = truth == value, predicted == value
        both, either = (true & found).sum(), (true | found).sum()
        own = result["scores"][name]
        assert (own["pixels"], own["predicted"]) == (true.sum(), found.sum())
        assert own["recall"] == pytest.approx(both / true.sum()) and own["iou"] == pytest.approx(both / either)
        assert own["precision"] == (pytest.approx(both / found.sum()) if found.sum() else None)
        f1.append(2 * both / (true.sum() + found.sum()))
        assert own["f1"] == pytest.approx(f1[-1])
    assert result["mean"]["f1"] == {"mean": pytest.approx(np.mean(f1)), "classes": 3}
    assert result["mean"]["precision"]["classes"] == 2  # of c, which is never predicted, precision is undefined
    assert set(result["scores"]["a"]) == {"pixels", "predicted", *CLASS_SCORES}
    assert confusion_lines(counts, CLASSES)[3] == f"| a | {' | '.join(map(str, confusion[1]))} |"


def test_like_scikit_learn_and_torchmetrics() -> None:
    truth, predicted = draw()
    counts = ClassCounts(count_classes(torch.tensor(predicted), torch.tensor(truth), 3).numpy())
    assert np.array_equal(counts.confusion, confusion_matrix(truth.ravel(), predicted.ravel()))
    theirs = multiclass_confusion_matrix(torch.tensor(predicted), torch.tensor(truth), 4)
    assert np.array_equal(counts.confusion, theirs.numpy())
    flat, values = (truth.ravel(), predicted.ravel()), [1, 2, 3]
    precision, recall, f1, _ = precision_recall_fscore_support(*flat, labels=values, zero_division=np.nan)
    expected = dict(
        zip(CLASS_SCORES, (precision, recall, f1, jaccard_score(*flat, labels=values, average=None)), strict=True)
    )
    ours = counts.as_dict(CLASSES)
    for name, scores in expected.items():
        own = [ours["scores"][shown][name] for shown in CLASSES.names]
        np.testing.assert_allclose(np.array(own, float), scores)
        assert ours["mean"][name]["mean"] == pytest.approx(np.nanmean(scores))
    torches = [
        score(torch.tensor(predicted), torch.tensor(truth), 4, average=None)[1:].numpy()
        for score in (multiclass_f1_score, multiclass_jaccard_index)
    ]
    np.testing.assert_allclose(torches, [expected["f1"], expected["iou"]], rtol=1e-5)


def test_any_change_agrees_with_the_headline() -> None:
    """Merged, the confusion matrix gives the counts of changed and unchanged."""
    truth, predicted = draw()
    confusion = count_classes(torch.tensor(predicted), torch.tensor(truth), 3).numpy()
    pooled = count_pixels(torch.tensor(predicted > 0), torch.tensor(truth > 0)).sum(0)
    tn, fp, fn = confusion[0, 0], confusion[0, 1:].sum(), confusion[1:, 0].sum()
    assert Counts(*pooled.tolist()) == Counts(int(confusion[1:, 1:].sum()), int(fp), int(fn), int(tn))


def test_nothing_of_a_class() -> None:
    """Scores of a class that occurs nowhere are undefined, and left out of the means."""
    counts = ClassCounts(np.diag([5, 3, 0, 2]))
    assert counts.as_dict(CLASSES)["scores"]["b"]["f1"] is None
    assert counts.means()["f1"] == {"mean": 1.0, "classes": 2}
    assert ClassCounts(np.diag([5, 0, 0, 0])).means()["iou"] == {"mean": None, "classes": 0}


def make_split(classes: Classes | None) -> Split:
    pair = Pair("0", Path("a"), Path("b"), Path("m"), (1, 1))
    return Split("test", (pair,), holds=MaskClasses(classes))


def test_classes_must_agree(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    three = Checkpoint(NetworkConfig(classes=3), {}, classes=CLASSES, path=Path("3.pth"))
    check_classes(three, make_split(CLASSES))
    assert not caplog.messages
    other = parse_classes(["a", "c", "b"])
    with pytest.raises(UserError, match=r"3\.pth tells apart 3 classes \(a, b, c\), and the masks hold 3 classes"):
        check_classes(three, make_split(other))
    check_classes(Checkpoint(NetworkConfig(), {}), make_split(CLASSES))
    check_classes(three, make_split(None))
    assert caplog.messages == [
        "the checkpoint tells no classes apart: all classes of the masks are scored as changed",
        "the masks tell no classes apart: those of the checkpoint are scored as changed",
    ]
