"""The table that test.py prints: the protocol, scores with intervals, and a warning about images trained on."""

from __future__ import annotations

from typing import Any

from change.change_dataloader import Split
from change.checkpoint import Checkpoint, pass_name
from change.common.errors import list_names
from change.evaluation.bootstrap import SCORES
from change.evaluation.class_scores import CLASS_SCORES
from change.evaluation.metrics import TOLERANCE
from change.evaluation.summary import Settings


def format_table(result: dict[str, Any], settings: Settings, split: Split, checkpoint: Checkpoint) -> list[str]:
    """Return the lines of the table.

    Args:
        result: the content of metrics.json.
        settings: settings that affect the scores.
        split: the images.
        checkpoint: the weights.
    """
    lines = [headline(result, settings, split, checkpoint)]
    if split.labelled:
        lines.append(f"{'':<26}" + "".join(f"{name:>11}" for name in SCORES))
        lines += score_lines("changed class, pooled", result)
        if "at_half" in result:
            lines += score_lines("at threshold 0.5", result["at_half"])
        if "apart_from_train" in result:
            apart = result["apart_from_train"]
            lines += score_lines(f"{apart['images']} images apart from train", apart)
        parts = [f"average precision {percent(result['average_precision'])}"]
        for key, name in (("objects", "objects"), ("boundary", f"boundaries within {TOLERANCE} pixels")):
            precision, recall = percent(result[key]["precision"]), percent(result[key]["recall"])
            parts.append(f"{name}: precision {precision}, recall {recall}")
        lines.append(", ".join(parts))
    if "classes" in result:
        lines += class_lines(result["classes"])
    if seen := result["trained_on"]:
        lines.append(f"NOT A TEST SCORE: {len(seen)} of these pairs were trained on: {list_names(seen, 10)}")
    elif split.labelled and not checkpoint.knows_its_images():
        lines.append(
            "it is not known whether these weights were trained on these pairs: the checkpoint does not record its "
            "training images"
        )
    elif split.labelled:
        lines.append(
            "trained on these pairs: unknown; no training image has the same pixels, but tiles or compressed copies "
            "may have been used"
        )
    return lines


def headline(result: dict[str, Any], settings: Settings, split: Split, checkpoint: Checkpoint) -> str:
    """Return the line that states what was evaluated and how."""
    protocol, config = settings.protocol, checkpoint.config
    parts = [f"{pass_name(config)} {config.backbone}", f"{result['images']} pairs of {split.name}"]
    if settings.size:
        parts.append(f"resized to {settings.size} x {settings.size}")
    if protocol.tile:
        parts.append(f"tiles of {protocol.tile} with an overlap of {protocol.overlap}")
    else:
        parts.append("whole images")
    if protocol.tta:
        parts.append("mean over 8 flips and turns")
    parts.append(f"threshold {settings.threshold:g}")
    return ", ".join(parts)


def score_lines(name: str, part: dict[str, Any]) -> list[str]:
    """Return one line of scores and two with the bounds of their intervals, all in percent."""
    intervals = part["intervals"]
    few = ", too few" if intervals["too_few"] else ""
    lows, highs = zip(*(intervals["scores"][score] for score in SCORES), strict=True)
    return [
        f"{name:<26}" + "".join(f"{percent(part['scores'][score]):>11}" for score in SCORES),
        f"{'  95% interval from':<26}" + "".join(f"{percent(value):>11}" for value in lows),
        f"{'  to':<26}"
        + "".join(f"{percent(value):>11}" for value in highs)
        + f"  over {intervals['units']} {intervals['over']}{few}",
    ]


def class_lines(found: dict[str, Any]) -> list[str]:
    """Return the scores of classes in percent, and their confusion matrix in pixels."""
    rows = [(name, [scores[score] for score in CLASS_SCORES]) for name, scores in found["scores"].items()]
    rows.append(("mean over classes", [found["mean"][score]["mean"] for score in CLASS_SCORES]))
    confusion = found["confusion"]
    width = max(26, 2 + max(len(name) for name, _ in rows))
    lines = [f"{'class':<{width}}" + "".join(f"{score:>11}" for score in CLASS_SCORES)]
    lines += [f"{name:<{width}}" + "".join(f"{percent(value):>11}" for value in values) for name, values in rows]
    lines.append("pixels, truth in rows, prediction in columns: " + ", ".join(confusion["names"]))
    digits = max(len(f"{pixels:,}") for row in confusion["pixels"] for pixels in row)
    for name, row in zip(confusion["names"], confusion["pixels"], strict=True):
        lines.append(f"{name:<{width}}" + " ".join(f"{pixels:>{digits},}" for pixels in row))
    return lines


def percent(value: float | None) -> str:
    """Format a score, 0 to 1, in percent; an undefined score gives a dash."""
    return "-" if value is None else f"{100 * value:.2f}"
