"""Evaluation of one checkpoint on one split: pooled scores, a row an image, pictures, and the protocol beside them."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from change.change_dataloader import Batch, Split, or_raise
from change.checkpoint import Checkpoint, pass_name
from change.engine import predict, seen_in_training
from change.errors import UserError, listed
from change.files import make_folder, write_whole
from change.metrics import SCORES, Counts, count_pixels
from change.pictures import error_map, mask_picture, panel, save_png
from change.precision import Precision
from change.runlog import versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """Folders: of metrics.json and images.csv, and of the pictures that are wanted (None: not)."""

    folder: Path
    masks: Path | None = None
    error_maps: Path | None = None
    panels: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how. `size`: images are resized to this square; 0: whole, as they are."""

    checkpoint: Checkpoint
    split: Split
    precision: Precision
    size: int
    left_out: list[str]

    def run(self, network: nn.Module, loader: DataLoader[Batch | UserError], outputs: Outputs) -> dict[str, Any]:
        """Predict every pair, write everything, print the table; return what metrics.json holds.

        Raises UserError for a file that does not decode or a folder that cannot be written.
        """
        if outputs.error_maps and not self.split.labelled:
            raise UserError(f"--save_iou_map needs masks: {self.split.name} has no folder label")
        for folder in (outputs.folder, outputs.masks, outputs.error_maps, outputs.panels):
            if folder:
                make_folder(folder)
        if self.left_out:
            log.info("left out of %s, not used in prediction: %s", self.checkpoint.path, listed(self.left_out))
        trained = self.checkpoint.trained_on()
        rows: list[dict[str, Any]] = []
        total, seen = Counts(), list[str]()
        with tqdm(total=len(self.split.pairs), desc="pairs", leave=False) as bar:
            for batch, changed in predict(network, or_raise(loader), self.precision, self.checkpoint):
                counts = count_pixels(changed, batch.mask.to(changed.device) > 0).tolist()
                seen += seen_in_training(batch, trained)
                for i, name in enumerate(batch.names):
                    image = Counts(*counts[i])
                    total += image
                    rows.append(self.row(name, image))
                    self.draw(batch, changed[i, 0].cpu().numpy(), i, outputs)
                bar.update(len(batch.names))
        for row in rows:
            row["trained_on"] = row["image"] in seen
        result = self.summary(total, seen)
        write_whole(outputs.folder / "metrics.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: str(row["image"])))
        write_whole(outputs.folder / "images.csv", table.getvalue().encode())
        self.report(total, seen, outputs)
        return result

    def row(self, name: str, counts: Counts) -> dict[str, Any]:
        """A line of images.csv: counts and scores, empty where undefined; without labels the changed share alone."""
        predicted = (counts.tp + counts.fp) / max(1, sum(asdict(counts).values()))
        row: dict[str, Any] = {"image": name, "predicted_share": f"{predicted:.6f}"}
        if self.split.labelled:
            row.update(asdict(counts))
            scores = counts.scores_or_none()
            row.update({key: "" if value is None else f"{value:.6f}" for key, value in scores.items()})
        return row

    def draw(self, batch: Batch, changed: Any, index: int, outputs: Outputs) -> None:
        """Write the pictures of one pair that are wanted; `changed`: bool (H, W)."""
        name = f"{batch.names[index]}.png"
        mask = batch.mask[index, 0].numpy() > 0 if self.split.labelled else None
        if outputs.masks:
            save_png(mask_picture(changed), outputs.masks / name)
        if outputs.error_maps and mask is not None:
            save_png(error_map(changed, mask), outputs.error_maps / name)
        if outputs.panels:
            before, after = (images[index].permute(1, 2, 0).numpy() for images in (batch.before, batch.after))
            save_png(panel(before, after, changed, mask), outputs.panels / name)

    def summary(self, counts: Counts, seen: list[str]) -> dict[str, Any]:
        """What metrics.json holds; scores that are undefined are null."""
        labelled = {"scores": counts.scores_or_none(), "counts": asdict(counts)} if self.split.labelled else {}
        return {
            **labelled,
            "images": len(self.split.pairs),
            "trained_on": sorted(seen),
            "protocol": {
                "size": f"resized to {self.size} x {self.size}" if self.size else "whole images, not resized",
                "scores": "changed class, from pixel counts pooled over all images",
                "threshold": self.checkpoint.threshold,
                "precision": "float32" if self.precision.name == "off" else self.precision.name,
                "device": str(self.precision.device),
            },
            "data": {"split": self.split.name, "folder": str(self.split.pairs[0].before.parent.parent)},
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

    def report(self, counts: Counts, seen: list[str], outputs: Outputs) -> None:
        """Print the table of scores, and the names of pairs that were trained on."""
        lines = [
            f"{pass_name(self.checkpoint.config)} ResNet-{self.checkpoint.config.backbone}, {len(self.split.pairs)} "
            f"pairs of {self.split.name}, " + (f"resized to {self.size}" if self.size else "whole images")
        ]
        if self.split.labelled:
            lines.append("".join(f"{name:>11}" for name in SCORES))
            lines.append("".join(f"{100 * value:>11.2f}" for value in counts.scores().values()))
        if seen:
            lines.append(f"NOT A TEST SCORE: {len(seen)} of these pairs were trained on: {listed(seen, 10)}")
        elif self.split.labelled and not self.checkpoint.knows_its_images():
            lines.append("whether these weights were trained on these pairs is not known: they carry no record of it")
        lines.append(f"written to {outputs.folder}")
        sys.stdout.write("\n".join(lines) + "\n")
