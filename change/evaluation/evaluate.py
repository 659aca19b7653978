"""Evaluation of one checkpoint on one split: predict every pair, count, write the results."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from change.change_dataloader import Split
from change.checkpoint import Checkpoint
from change.common import distributed
from change.common.devices import DTYPES
from change.common.errors import UserError, list_names
from change.common.files import write_whole
from change.common.images import image_hash
from change.data.groups import Place
from change.data.loaders import or_raise
from change.data.samples import Batch, seen_in_training
from change.data.sources import sources_of
from change.evaluation.class_scores import check_classes, count_classes, told_apart
from change.evaluation.metrics import Counts, count_boundary, count_objects, count_pixels, histogram
from change.evaluation.outputs import Outputs, image_arrays
from change.evaluation.report import ImageCase, choose_cases, write_report
from change.evaluation.summary import Settings, summarise
from change.evaluation.table import format_table
from change.evaluation.tally import UNKNOWN, Tally, merge
from change.prediction.predictor import predictor
from change.prediction.threshold import any_change, changed_pixels, mask_values
from change.prediction.tiles import Predict
from models.network import PRXChange

log = logging.getLogger(__name__)


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
            UserError: if a file does not decode, a result cannot be written, another run writes to the same folder, a
                probability is not finite, or the classes are not those of the checkpoint.
        """
        if outputs.error_maps and not self.split.labelled:
            raise UserError(f"--save_iou_map needs masks: {self.split.name} has no folder label")
        check_classes(self.checkpoint, self.split)
        if self.left_out:
            log.info("left out of %s, not used in prediction: %s", self.checkpoint.path, list_names(self.left_out))
        with outputs.hold():
            outputs.prepare()
            self.write(network, loader, outputs)

    def write(self, network: PRXChange, loader: DataLoader[Batch | UserError], outputs: Outputs) -> None:
        """Do the work of `run` in folders that no other process writes to."""
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
        written = [f"written to {outputs.folder}"]
        if outputs.report:
            written.append(f"to look at scores and images, open {outputs.report} in a browser")
        sys.stdout.write("\n".join([*table, *written]) + "\n")

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
        tally, trained, sources = Tally(), self.checkpoint.trained_on(), sources_of(self.split)
        if classes := told_apart(self.checkpoint, self.split):
            tally.confusion = np.zeros((1 + len(classes.names), 1 + len(classes.names)), np.int64)
        share = math.ceil(len(self.split.pairs) / distributed.processes())
        with tqdm(total=share, desc="pairs", leave=False, disable=distributed.rank() > 0) as bar:
            for batch in or_raise(loader):
                probability = predict(batch.before, batch.after)
                seen = seen_in_training(batch, trained, sources)
                self.add(tally, batch, probability, seen=seen, outputs=outputs)
                bar.update(len(batch.names))
        return tally

    def add(self, tally: Tally, batch: Batch, probability: Tensor, *, seen: list[str], outputs: Outputs) -> None:
        """Count one batch and draw its pictures.

        Args:
            tally: the counts are added to it.
            batch: images and masks.
            probability: float32 (B, O, H, W), as `predictor` returns it.
            seen: names of the pairs that were used in training.
            outputs: paths of the pictures.
        """
        truths = batch.mask.to(probability.device)
        values, probability = mask_values(probability, self.settings.threshold, batch.names), any_change(probability)
        mask, changed = truths > 0, values > 0
        if number := len(tally.confusion):
            tally.confusion += count_classes(values, truths, number - 1).cpu().numpy()
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
            tally.rows.append(row | {"trained_on": True if name in seen else UNKNOWN})
            tally.contents.append(" ".join((name, *batch.hashes[i], image_hash(truth))))
            if outputs.report:
                tally.masks[name] = np.packbits(image)
            own = values[i, 0].cpu().numpy() if self.checkpoint.classes else None
            outputs.draw(batch, i, image, truth > 0 if self.split.labelled else None, self.checkpoint, own)

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
            before, after = image_arrays(batch, 0, self.checkpoint)
            size = before.shape[:2]
            changed = np.unpackbits(tally.masks[name], count=math.prod(size)).reshape(size) > 0
            mask = batch.mask[0, 0].numpy() > 0 if self.split.labelled else None
            yield ImageCase(name, before=before, after=after, changed=changed, mask=mask)
