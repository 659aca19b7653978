"""Evaluation of one checkpoint on one split: predict every pair, count, write the results."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from change.change_dataloader import Split
from change.checkpoint import Checkpoint
from change.common import distributed
from change.common.devices import DTYPES
from change.common.errors import UserError, list_names
from change.common.files import make_folder, write_whole
from change.common.images import image_hash
from change.common.pictures import error_map, mask_picture, panel, save_png
from change.data.groups import Place
from change.data.loaders import or_raise
from change.data.samples import Batch, seen_in_training
from change.evaluation.metrics import Counts, count_boundary, count_objects, count_pixels, histogram
from change.evaluation.report import ImageCase, choose_cases, read_template, write_report
from change.evaluation.summary import Settings, summarise
from change.evaluation.table import format_table
from change.evaluation.tally import Tally, merge
from change.prediction.predictor import predictor
from change.prediction.threshold import changed_pixels
from change.prediction.tiles import Predict
from models.network import PRXChange

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """Paths of the results; None for those that are not wanted.

    Attributes:
        folder: folder of metrics.json and images.csv.
        masks: folder of the predicted masks.
        error_maps: folder of the error maps.
        panels: folder of the panels.
        report: the report, an HTML file.
    """

    folder: Path
    masks: Path | None = None
    error_maps: Path | None = None
    panels: Path | None = None
    report: Path | None = None

    def prepare(self) -> None:
        """Make the folders. Raises UserError if that fails, or if the template of the report is missing."""
        for folder in (self.folder, self.masks, self.error_maps, self.panels):
            if folder:
                make_folder(folder)
        if self.report:
            read_template()

    def draw(self, batch: Batch, index: int, changed: NDArray[np.bool_], mask: NDArray[np.bool_] | None) -> None:
        """Write the pictures of one pair of a batch.

        Args:
            batch: the images.
            index: index of the pair in the batch.
            changed: predicted change, bool (H, W).
            mask: true change, bool (H, W), if it is known.
        """
        name = f"{batch.names[index]}.png"
        if self.masks:
            save_png(mask_picture(changed), self.masks / name)
        if self.error_maps and mask is not None:
            save_png(error_map(changed, mask), self.error_maps / name)
        if self.panels:
            before, after = image_arrays(batch, index)
            save_png(panel(before, after, changed, mask), self.panels / name)


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint, a split, and the settings for evaluating one on the other.

    Attributes:
        checkpoint: the weights.
        left_out: names of the weights that prediction does not use.
        split: the pairs.
        settings: settings that affect the scores.
        places: what `check` found for each pair, by the hashes of its images; empty if `check` was not run.
        compiling: off, on or auto, see `change.prediction.compiling`.
    """

    checkpoint: Checkpoint
    left_out: list[str]
    split: Split
    settings: Settings
    places: dict[tuple[str, str], Place]
    compiling: str = "off"

    def run(self, network: PRXChange, loader: DataLoader[Batch | UserError], outputs: Outputs) -> None:
        """Predict every pair, write the results and print the table.

        If several processes run, each draws the pictures of its own share of the pairs. The first one writes the rest.

        Args:
            network: the network of the checkpoint, on the device of the settings.
            loader: this process's share of the pairs.
            outputs: paths of the results.

        Raises:
            UserError: if a file does not decode, a result cannot be written, or a probability is not finite.
        """
        if outputs.error_maps and not self.split.labelled:
            raise UserError(f"--save_iou_map needs masks: {self.split.name} has no folder label")
        outputs.prepare()
        if self.left_out:
            log.info("left out of %s, not used in prediction: %s", self.checkpoint.path, list_names(self.left_out))
        tallies = distributed.gather_on_first(self.count(self.make_predict(network), loader, outputs))
        if not tallies:
            return
        tally = merge(tallies, [pair.name for pair in self.split.pairs])
        tally.drop_unknown_groups()
        result = summarise(tally, self.settings, self.split, self.checkpoint, self.left_out)
        write_whole(outputs.folder / "metrics.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        tally.write_rows(outputs.folder / "images.csv")
        if outputs.report:
            write_report(outputs.report, result, tally.rows, self.cases(tally, loader))
        table = format_table(result, self.settings, self.split, self.checkpoint)
        sys.stdout.write("\n".join([*table, f"written to {outputs.folder}"]) + "\n")

    def make_predict(self, network: PRXChange) -> Predict:
        """Return the function that predicts probabilities by the protocol of the settings."""
        size, protocol = self.settings.size, self.settings.protocol
        pixels = sum(size**2 or math.prod(pair.size) for pair in self.split.pairs)
        each = predictor(
            network,
            self.settings.device,
            DTYPES[self.settings.amp],
            self.checkpoint,
            pixels=pixels * (8 if protocol.tta else 1) / distributed.processes(),
            compiling=self.compiling,
        )
        return protocol.apply(each)

    def count(self, predict: Predict, loader: DataLoader[Batch | UserError], outputs: Outputs) -> Tally:
        """Predict and count this process's share of the pairs, and draw their pictures."""
        tally, trained = Tally(), self.checkpoint.trained_on()
        share = math.ceil(len(self.split.pairs) / distributed.processes())
        with tqdm(total=share, desc="pairs", leave=False, disable=distributed.rank() > 0) as bar:
            for batch in or_raise(loader):
                probability = predict(batch.before, batch.after)
                seen = seen_in_training(batch, trained)
                self.add(tally, batch, probability, seen=seen, outputs=outputs)
                bar.update(len(batch.names))
        return tally

    def add(self, tally: Tally, batch: Batch, probability: Tensor, *, seen: list[str], outputs: Outputs) -> None:
        """Count one batch and draw its pictures.

        Args:
            tally: the counts are added to it.
            batch: images and masks.
            probability: float32 (B, 1, H, W).
            seen: names of the pairs that were used in training.
            outputs: paths of the pictures.
        """
        mask = batch.mask.to(probability.device) > 0
        changed = changed_pixels(probability, self.settings.threshold, batch.names)
        counts = count_pixels(changed, mask).tolist()
        at_half = count_pixels(changed_pixels(probability, 0.5, batch.names), mask).tolist()
        tally.histogram += histogram(probability, mask).sum(0).cpu().numpy()
        for i, name in enumerate(batch.names):
            image, truth = changed[i, 0].cpu().numpy(), batch.mask[i, 0].numpy()
            row: dict[str, Any] = {"image": name, "predicted_share": float(image.mean())}
            row |= self.place_columns(batch.hashes[i])
            tally.counts.append(Counts(*counts[i]))
            tally.at_half.append(Counts(*at_half[i]))
            if self.split.labelled:
                tally.objects += count_objects(image, truth > 0)
                tally.boundary += count_boundary(image, truth > 0)
                row |= asdict(tally.counts[-1]) | tally.counts[-1].scores_or_none()
            tally.rows.append(row | {"trained_on": name in seen})
            tally.contents.append(" ".join((name, *batch.hashes[i], image_hash(truth))))
            if outputs.report:
                tally.masks[name] = np.packbits(image)
            outputs.draw(batch, i, image, truth > 0 if self.split.labelled else None)

    def place_columns(self, hashes: tuple[str, str]) -> dict[str, Any]:
        """Return the columns of images.csv that `check` provides; the group is empty if it did not see the pair."""
        if not self.places:
            return {}
        place = self.places.get(hashes)
        return {"group": place.group, "meets_train": place.meets_train} if place else {"group": ""}

    def cases(self, tally: Tally, loader: DataLoader[Batch | UserError]) -> Iterator[ImageCase]:
        """Read the best and worst images again, for the report."""
        indices = {pair.name: index for index, pair in enumerate(self.split.pairs)}
        for name in choose_cases(tally.rows):
            batch = loader.dataset[indices[name]]
            if isinstance(batch, UserError):
                raise batch
            before, after = image_arrays(batch, 0)
            size = before.shape[:2]
            changed = np.unpackbits(tally.masks[name], count=math.prod(size)).reshape(size) > 0
            mask = batch.mask[0, 0].numpy() > 0 if self.split.labelled else None
            yield ImageCase(name, before=before, after=after, changed=changed, mask=mask)


def image_arrays(batch: Batch, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return before and after of one pair of a batch, RGB (H, W, 3)."""
    return batch.before[index].permute(1, 2, 0).numpy(), batch.after[index].permute(1, 2, 0).numpy()
