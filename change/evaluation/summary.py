"""The content of metrics.json: scores with intervals, and what they depend on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from change.change_dataloader import Split
from change.checkpoint import Checkpoint
from change.common.logs import versions
from change.evaluation.bootstrap import SCORES, bootstrap, pool
from change.evaluation.class_scores import ClassCounts, told_apart
from change.evaluation.metrics import BINS, TOLERANCE, Counts, Curve, image_means
from change.evaluation.tally import UNKNOWN, Tally
from change.prediction.predictor import precision_name
from change.prediction.tiles import Protocol

GROUPS = "groups of connected tiles"
CURVE_STEP = BINS // 64  # every CURVE_STEP-th threshold of the curve is written
OBJECT_RULE = "8-connected; found, or right, where at least half of its pixels are in the other mask"


@dataclass(frozen=True)
class Settings:
    """Settings that affect the scores.

    Attributes:
        protocol: how images are predicted.
        size: images are resized to this square; 0 leaves them as they are.
        threshold: a pixel is changed if its probability exceeds this.
        amp: number format of the network, a key of `change.common.devices.DTYPES`.
        device: device of the network.
    """

    protocol: Protocol
    size: int
    threshold: float
    amp: str
    device: torch.device

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for metrics.json."""
        return {
            **self.protocol.as_dict(),
            "size": f"resized to {self.size} x {self.size}" if self.size else "as they are",
            "scores": "changed class, from pixel counts pooled over all images",
            "threshold": self.threshold,
            "precision": precision_name(self.amp),
            "device": str(self.device),
        }


def summarise(
    tally: Tally, settings: Settings, split: Split, checkpoint: Checkpoint, left_out: Sequence[str]
) -> dict[str, Any]:
    """Return the content of metrics.json.

    Args:
        tally: the counts of all images, in the order of the split.
        settings: settings that affect the scores.
        split: the images; without labels, there are no scores.
        checkpoint: the weights.
        left_out: names of the weights that prediction does not use.

    Returns:
        Values for JSON; scores that are undefined are None.
    """
    classes = told_apart(checkpoint, split)
    return {
        **(summarise_scores(tally, settings.threshold) if split.labelled else {}),
        **({"classes": ClassCounts(tally.confusion).as_dict(classes)} if classes else {}),
        "images": len(tally.rows),
        "trained_on": sorted(row["image"] for row in tally.rows if row["trained_on"] is True),
        "trained_on_unknown": sum(row["trained_on"] == UNKNOWN for row in tally.rows),
        "protocol": settings.as_dict(),
        "data": {
            "split": split.name,
            "folder": str(split.pairs[0].before.parent.parent),
            "fingerprint": tally.fingerprint(),
            **({"bands": split.bands.names} if split.bands else {}),
        },
        "checkpoint": {
            "path": str(checkpoint.path),
            "sha256": checkpoint.sha256,
            "config": asdict(checkpoint.config),
            "lineage": summarise_lineage(checkpoint),
            "left_out": list(left_out),
        },
        "versions": versions(),
    }


def summarise_scores(tally: Tally, threshold: float) -> dict[str, Any]:
    """Return all scores of a tally with labels."""
    found: dict[str, Any] = pooled_scores(tally.counts, tally.rows)
    found["image_means"] = image_means(tally.counts)
    if threshold != 0.5:
        found["at_half"] = {"threshold": 0.5, **pooled_scores(tally.at_half, tally.rows)}
    apart = [i for i, row in enumerate(tally.rows) if row.get("meets_train") is False]
    if 0 < len(apart) < len(tally.rows):
        scores = pooled_scores([tally.counts[i] for i in apart], [tally.rows[i] for i in apart])
        found["apart_from_train"] = {"images": len(apart), **scores}
    found |= curve_scores(Curve(tally.histogram))
    found["objects"] = {"rule": OBJECT_RULE, **tally.objects.as_dict()}
    found["boundary"] = {"tolerance": TOLERANCE, **tally.boundary.as_dict()}
    return found


def pooled_scores(counts: Sequence[Counts], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the pooled scores and counts of images, with 95% intervals.

    The units of the intervals are groups if at least two of the images share one, else images.
    """
    units = [f"group {row['group']}" if "group" in row else f"image {row['image']}" for row in rows]
    table = np.array([[c.tp, c.fp, c.fn, c.tn] for c in counts], np.int64)
    found = bootstrap(pool(table, units)).as_dict()
    intervals = {
        "over": GROUPS if len(set(units)) < len(units) else "images",
        **{key: value for key, value in found.items() if key not in SCORES},
        "scores": {name: found[name] for name in SCORES},
    }
    total = sum(counts, Counts())
    return {"scores": total.scores_or_none(), "counts": asdict(total), "intervals": intervals}


def curve_scores(curve: Curve) -> dict[str, Any]:
    """Return average precision, scores by threshold, and the threshold that is best on these images."""
    scores = {name: values[::CURVE_STEP] for name, values in curve.scores().items() if name != "oa"}
    best, area = curve.best_threshold(), curve.average_precision()
    return {
        "average_precision": None if math.isnan(area) else area,
        "curve": {
            "threshold": [k / BINS for k in range(0, BINS, CURVE_STEP)],
            **{n: [None if math.isnan(v) else v for v in values.tolist()] for n, values in scores.items()},
        },
        "best_threshold": None if best is None else {"threshold": best, "f1": curve.at(best).f1},
    }


def summarise_lineage(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return one entry for each training pass that led to a checkpoint."""
    return [
        {
            "pass": record.name,
            "epoch": record.epoch,
            "images": len(record.images),
            "root": record.options.get("root"),
            "val": record.scores,
        }
        for record in checkpoint.lineage
    ]
