"""Evaluation of one checkpoint on one split: scores with intervals, a row an image, pictures, the protocol beside."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from change.change_dataloader import Batch, Split, or_raise, seen_in_training
from change.checkpoint import Checkpoint, pass_name
from change.common import distributed
from change.common.devices import DTYPES
from change.common.errors import UserError, listed
from change.common.files import make_folder, write_whole
from change.common.images import image_hash
from change.common.logs import versions
from change.common.pictures import error_map, mask_picture, panel, save_png
from change.data.groups import Place
from change.evaluation.bootstrap import bootstrap, pool
from change.evaluation.metrics import (
    BINS,
    SCORES,
    TOLERANCE,
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
from change.evaluation.report import ImageCase, choose_cases, write_report
from change.prediction.predictor import predictor
from change.prediction.threshold import changed_pixels
from change.prediction.tiles import Protocol
from models.network import PRXChange

log = logging.getLogger(__name__)

GROUPS = "groups of connected tiles"
CURVE_STEP = BINS // 64  # every how many thresholds of the curve are written


@dataclass(frozen=True)
class Outputs:
    """Folders: of metrics.json and images.csv, and of the pictures that are wanted (None: not); the report's file."""

    folder: Path
    masks: Path | None = None
    error_maps: Path | None = None
    panels: Path | None = None
    report: Path | None = None


@dataclass
class Tally:
    """What adds up over images. `rows`: the lines of images.csv; `masks`: predictions, packed, for the report alone."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    at_half: list[Counts] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, BINS), np.int64))
    objects: Objects = field(default_factory=Objects)
    boundary: Matches = field(default_factory=Matches)
    contents: list[str] = field(default_factory=list)
    masks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how. `size`: images are resized to this square; 0: as they are. `places`: what check
    knows of images, empty if it was not run."""

    checkpoint: Checkpoint
    split: Split
    device: torch.device
    amp: str
    size: int
    left_out: list[str]
    protocol: Protocol
    threshold: float
    places: dict[tuple[str, str], Place]
    compiling: str = "off"

    def run(self, network: PRXChange, loader: DataLoader[Batch | UserError], outputs: Outputs) -> None:
        """Predict every pair, write everything, print the table.

        Of many processes each draws the pictures of its own share of the pairs, which `loader` gives; the first one
        does the rest. Raises UserError for a file that does not decode or a folder that cannot be written.
        """
        if outputs.error_maps and not self.split.labelled:
            raise UserError(f"--save_iou_map needs masks: {self.split.name} has no folder label")
        for folder in (outputs.folder, outputs.masks, outputs.error_maps, outputs.panels):
            if folder:
                make_folder(folder)
        if self.left_out:
            log.info("left out of %s, not used in prediction: %s", self.checkpoint.path, listed(self.left_out))
        area = sum(self.size**2 or math.prod(pair.size) for pair in self.split.pairs) * (8 if self.protocol.tta else 1)
        each = predictor(
            network,
            self.device,
            DTYPES[self.amp],
            self.checkpoint,
            pixels=area / distributed.processes(),
            compiling=self.compiling,
        )
        predict = self.protocol.applied(each)
        tally, trained = Tally(), self.checkpoint.trained_on()
        share = -(-len(self.split.pairs) // distributed.processes())
        with tqdm(total=share, desc="pairs", leave=False, disable=distributed.rank() > 0) as bar:
            for batch in or_raise(loader):
                probability = predict(batch.before, batch.after)
                self.add(tally, batch, probability, seen_in_training(batch, trained), outputs)
                bar.update(len(batch.names))
        tallies = distributed.collected(tally)
        if not tallies:
            return
        tally = self.in_order(tallies)
        self.drop_unknown_places(tally)
        result = self.summary(tally)
        write_whole(outputs.folder / "metrics.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        write_rows(tally.rows, outputs.folder / "images.csv")
        if outputs.report:
            write_report(outputs.report, result, tally.rows, self.cases(tally, loader))
        sys.stdout.write("\n".join([*self.table(result), f"written to {outputs.folder}"]) + "\n")

    # --- images ----------------------------------------------------------------------------------------------------

    def add(self, tally: Tally, batch: Batch, probability: Tensor, seen: list[str], outputs: Outputs) -> None:
        """Count a batch, of probabilities (B, 1, H, W), and draw the pictures that are wanted."""
        mask = batch.mask.to(probability.device) > 0
        changed = changed_pixels(probability, self.threshold, batch.names)
        counts = count_pixels(changed, mask).tolist()
        at_half = count_pixels(changed_pixels(probability, 0.5, batch.names), mask).tolist()
        tally.histogram += histogram(probability, mask).sum(0).cpu().numpy()
        for i, name in enumerate(batch.names):
            image, truth = changed[i, 0].cpu().numpy(), batch.mask[i, 0].numpy()
            tally.counts.append(Counts(*counts[i]))
            tally.at_half.append(Counts(*at_half[i]))
            row: dict[str, Any] = {"image": name, "predicted_share": float(image.mean())}
            place = self.places.get(batch.hashes[i])
            if self.places:
                row |= {"group": place.group, "meets_train": place.meets_train} if place else {"group": ""}
            if self.split.labelled:
                tally.objects += count_objects(image, truth > 0)
                tally.boundary += count_boundary(image, truth > 0)
                row |= asdict(tally.counts[-1]) | tally.counts[-1].scores_or_none()
            tally.rows.append(row | {"trained_on": name in seen})
            tally.contents.append(" ".join((name, *batch.hashes[i], image_hash(truth))))
            if outputs.report:
                tally.masks[name] = np.packbits(image)
            self.draw(batch, image, i, outputs)

    def draw(self, batch: Batch, changed: NDArray[np.bool_], index: int, outputs: Outputs) -> None:
        """Write the pictures of one pair that are wanted; `changed`: bool (H, W)."""
        name = f"{batch.names[index]}.png"
        mask = batch.mask[index, 0].numpy() > 0 if self.split.labelled else None
        if outputs.masks:
            save_png(mask_picture(changed), outputs.masks / name)
        if outputs.error_maps and mask is not None:
            save_png(error_map(changed, mask), outputs.error_maps / name)
        if outputs.panels:
            before, after = shown(batch, index)
            save_png(panel(before, after, changed, mask), outputs.panels / name)

    def cases(self, tally: Tally, loader: DataLoader[Batch | UserError]) -> Iterator[ImageCase]:
        """The report's best and worst images, read again."""
        indices = {pair.name: index for index, pair in enumerate(self.split.pairs)}
        for name in choose_cases(tally.rows):
            batch = loader.dataset[indices[name]]
            if isinstance(batch, UserError):
                raise batch
            before, after = shown(batch, 0)
            size = before.shape[:2]
            changed = np.unpackbits(tally.masks[name], count=math.prod(size)).reshape(size) > 0
            yield ImageCase(name, before, after, changed, batch.mask[0, 0].numpy() > 0 if self.split.labelled else None)

    def in_order(self, tallies: Sequence[Tally]) -> Tally:
        """Several processes' tallies as one, with the images in the order of the split."""
        indices = {pair.name: index for index, pair in enumerate(self.split.pairs)}
        images = [image for t in tallies for image in zip(t.rows, t.counts, t.at_half, strict=True)]
        images.sort(key=lambda image: indices[image[0]["image"]])
        return Tally(
            [row for row, _, _ in images],
            [counts for _, counts, _ in images],
            [at_half for _, _, at_half in images],
            np.sum([t.histogram for t in tallies], axis=0),
            sum((t.objects for t in tallies), Objects()),
            sum((t.boundary for t in tallies), Matches()),
            [content for t in tallies for content in t.contents],
            {name: mask for t in tallies for name, mask in t.masks.items()},
        )

    def drop_unknown_places(self, tally: Tally) -> None:
        """Say so, and go on without groups, where check knows not every image."""
        unknown = [row["image"] for row in tally.rows if row.get("group") == ""]
        if unknown:
            log.warning("check.json knows nothing of %s: intervals are over images; run check again", listed(unknown))
            for row in tally.rows:
                row.pop("group", None)
                row.pop("meets_train", None)

    # --- results ---------------------------------------------------------------------------------------------------

    def summary(self, tally: Tally) -> dict[str, Any]:
        """What metrics.json holds; scores that are undefined are null."""
        rows = tally.rows
        labelled: dict[str, Any] = {}
        if self.split.labelled:
            curve = Curve(tally.histogram)
            labelled = scored(tally.counts, rows) | {"image_means": image_means(tally.counts)}
            if self.threshold != 0.5:
                labelled["at_half"] = {"threshold": 0.5, **scored(tally.at_half, rows)}
            apart = [i for i, row in enumerate(rows) if row.get("meets_train") is False]
            if 0 < len(apart) < len(rows):
                chosen = scored([tally.counts[i] for i in apart], [rows[i] for i in apart])
                labelled["apart_from_train"] = {"images": len(apart), **chosen}
            labelled |= sweep(curve) | {
                "objects": {
                    "rule": "8-connected; found, or right, where at least half of its pixels are in the other mask",
                    **tally.objects.as_dict(),
                },
                "boundary": {"tolerance": TOLERANCE, **tally.boundary.as_dict()},
            }
        return {
            **labelled,
            "images": len(rows),
            "trained_on": sorted(row["image"] for row in rows if row["trained_on"]),
            "protocol": {
                **asdict(self.protocol),
                "size": f"resized to {self.size} x {self.size}" if self.size else "as they are",
                "scores": "changed class, from pixel counts pooled over all images",
                "threshold": self.threshold,
                "precision": "float32" if self.amp == "off" else self.amp,
                "device": str(self.device),
            },
            "data": {
                "split": self.split.name,
                "folder": str(self.split.pairs[0].before.parent.parent),
                "fingerprint": hashlib.sha256("\n".join(sorted(tally.contents)).encode()).hexdigest(),
            },
            "checkpoint": {
                "path": str(self.checkpoint.path),
                "sha256": self.checkpoint.sha256,
                "config": asdict(self.checkpoint.config),
                "lineage": [
                    {
                        "pass": r.name,
                        "epoch": r.epoch,
                        "images": len(r.images),
                        "root": r.options.get("root"),
                        "val": r.scores,
                    }
                    for r in self.checkpoint.lineage
                ],
                "left_out": self.left_out,
            },
            "versions": versions(),
        }

    def table(self, result: dict[str, Any]) -> list[str]:
        """What is printed: protocol, scores with their intervals, and the names of pairs that were trained on."""
        how = self.protocol
        windows = f", windows of {how.window} that overlap by {how.overlap}" if how.window else ", whole images"
        lines = [
            f"{pass_name(self.checkpoint.config)} {self.checkpoint.config.backbone}, {result['images']} pairs "
            f"of {self.split.name}"
            + (f", resized to {self.size}" if self.size else "")
            + windows
            + (", mean over 8 symmetries" if how.tta else "")
            + f", threshold {self.threshold:g}"
        ]
        if self.split.labelled:
            lines.append(f"{'':<26}" + "".join(f"{name:>11}" for name in SCORES))
            lines += score_lines("changed class, pooled", result)
            if "at_half" in result:
                lines += score_lines("at threshold 0.5", result["at_half"])
            if "apart_from_train" in result:
                apart = result["apart_from_train"]
                lines += score_lines(f"{apart['images']} images apart from train", apart)
            lines.append(
                "average precision "
                + percent(result["average_precision"])
                + ", "
                + ", ".join(
                    f"{name}: precision {percent(result[key]['precision'])}, recall {percent(result[key]['recall'])}"
                    for key, name in (("objects", "objects"), ("boundary", f"boundaries within {TOLERANCE} pixels"))
                )
            )
        if result["trained_on"]:
            seen = result["trained_on"]
            lines.append(f"NOT A TEST SCORE: {len(seen)} of these pairs were trained on: {listed(seen, 10)}")
        elif self.split.labelled and not self.checkpoint.knows_its_images():
            lines.append("whether these weights were trained on these pairs is not known: they carry no record of it")
        return lines


def shown(batch: Batch, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Before and after of one pair, RGB (H, W, 3)."""
    return batch.before[index].permute(1, 2, 0).numpy(), batch.after[index].permute(1, 2, 0).numpy()


def scored(counts: Sequence[Counts], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pooled scores and counts of images, with 95% intervals over groups, where two of the images are in one."""
    total = sum(counts, Counts())
    units = [f"group {row['group']}" if "group" in row else f"image {row['image']}" for row in rows]
    table = np.array([[c.tp, c.fp, c.fn, c.tn] for c in counts], np.int64)
    found = bootstrap(pool(table, units)).as_dict()
    intervals = {
        "over": GROUPS if len(set(units)) < len(units) else "images",
        **{key: value for key, value in found.items() if key not in SCORES},
        "scores": {name: found[name] for name in SCORES},
    }
    return {"scores": total.scores_or_none(), "counts": asdict(total), "intervals": intervals}


def sweep(curve: Curve) -> dict[str, Any]:
    """Average precision, and scores by threshold; those of the threshold that is best on these very images apart."""
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


def percent(value: float | None) -> str:
    """A score as it is printed."""
    return "-" if value is None else f"{100 * value:.2f}"


def score_lines(name: str, part: dict[str, Any]) -> list[str]:
    """A line of scores, and one with their intervals."""
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


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write images.csv, by name; empty where undefined."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in sorted(rows, key=lambda row: str(row["image"])):
        writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()})
    write_whole(path, table.getvalue().encode())
