"""The classes that a run tells apart, if its masks hold classes."""

from __future__ import annotations

import logging
from pathlib import Path

from change.common.classes import Classes, MaskClasses, choose_classes
from change.common.errors import UserError, list_names
from change.evaluation.class_scores import CLASS_SCORES, ClassCounts, confusion_lines
from change.evaluation.table import percent
from change.options.train import DataOptions
from change.training.run_folder import Run
from change.training.run_state import RunState

SHOWN = 8  # classes in a line of the log

log = logging.getLogger(__name__)


def choose_run_classes(options: DataOptions, state: RunState | None) -> MaskClasses:
    """Return the classes of the masks, and whether all of them are read as changed.

    `state`: the state of an interrupted run; None for a new run.

    Raises UserError as `choose_classes` does, and if an interrupted run has other classes.
    """
    holds = choose_classes(Path(options.root), options.classes)
    told = None if holds.merged else holds.classes
    if state is not None and state.classes != told:
        theirs, ours = (classes.described() if classes else "no classes" for classes in (state.classes, told))
        raise UserError(f"the run began with {theirs}, and the masks in --root {options.root} now hold {ours}")
    if holds.classes and holds.merged:
        log.info("all classes of the masks are read as changed")
    return holds


def report_classes(counts: ClassCounts, classes: Classes, run: Run, step: int) -> dict[str, float | None]:
    """Log the scores of the classes on val, and write them to TensorBoard.

    Returns:
        The mean F1, under the name "mean_f1".
    """
    found, means = counts.as_dict(classes), counts.means()
    mean = means["f1"]["mean"]
    points = {f"val_mean/{name}": 100 * value for name in CLASS_SCORES if (value := means[name]["mean"]) is not None}
    for name, scores in found["scores"].items():
        points |= {f"val_{score}/{name}": 100 * scores[score] for score in CLASS_SCORES if scores[score] is not None}
    run.scalars(points, step)
    run.text("val/confusion", "\n".join(confusion_lines(counts, classes)), step)
    each = [f"{name} {percent(scores['f1'])}" for name, scores in found["scores"].items()]
    log.info("F1 of classes in percent: mean %s; %s", percent(mean), list_names(each, SHOWN))
    return {"mean_f1": mean}
