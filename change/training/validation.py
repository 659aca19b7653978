"""Validation: the scores of the current weights on val."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from change.checkpoint import Checkpoint
from change.common import distributed
from change.common.errors import UserError
from change.common.pictures import panel
from change.data.loaders import or_raise
from change.data.on_device import DeviceWholeLoader
from change.data.samples import Batch, seen_in_training
from change.evaluation.class_scores import ClassCounts, count_classes
from change.evaluation.metrics import BINS, Counts, Curve, count_pixels, histogram
from change.prediction.predictor import predictor
from change.prediction.threshold import any_change, mask_values
from models.network import PRXChange

PANELS, PANEL_SIDE = 4, 256  # val pairs shown in TensorBoard, and their height in pixels


@dataclass(frozen=True)
class Validation:
    """The outcome of a validation, over all processes.

    Attributes:
        counts: pooled pixel counts of changed and unchanged at the checkpoint's threshold.
        curve: the scores at every threshold.
        seen: names of the val pairs with an image that was trained on, sorted.
        panels: pictures of the first pairs of this process, RGB (H, W, 3), by name; empty if it draws none.
        classes: pooled pixel counts of the classes; None for a network without.
    """

    counts: Counts
    curve: Curve
    seen: list[str]
    panels: dict[str, NDArray[np.uint8]]
    classes: ClassCounts | None = None


def validate(
    network: PRXChange,
    loader: DataLoader[Batch | UserError] | DeviceWholeLoader,
    template: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    trained: frozenset[str],
    draw: bool,
    after_batch: Callable[[], None],
) -> Validation:
    """Predict and count every pair of val.

    Args:
        network: the network, on `device`.
        loader: this process's share of the pairs.
        template: the checkpoint whose normalisation and threshold apply.
        device: the device that computes.
        dtype: dtype of the computation.
        trained: hashes of the images that were trained on.
        draw: whether this process draws panels.
        after_batch: called after every batch, equally often in every process.

    Raises:
        UserError: a file does not decode, or a probability is not finite.
    """
    total = torch.zeros(2, BINS, dtype=torch.int64, device=device)
    counted = torch.zeros(4, dtype=torch.int64, device=device)
    number = len(template.classes.names) if template.classes else 0
    confused = torch.zeros(1 + number, 1 + number, dtype=torch.int64, device=device)
    predict = predictor(network, device, dtype, template)
    panels: dict[str, NDArray[np.uint8]] = {}
    seen: list[str] = []
    (rounds,) = distributed.largest([len(loader)])
    for batch, _ in zip_longest(or_raise(loader), range(rounds)):
        if batch is not None:  # it is None if other processes have one batch more than this one
            probability = predict(batch.before, batch.after)
            values = mask_values(probability, template.threshold, batch.names)
            truth = batch.mask.to(device)
            mask, changed = truth > 0, values > 0
            if number:
                confused += count_classes(values, truth, number)
            total += histogram(any_change(probability), mask).sum(0)
            counted += count_pixels(changed, mask).sum(0)
            seen += seen_in_training(batch, trained)
            missing = PANELS - len(panels) if draw else 0
            for i in range(min(len(batch.names), missing)):
                panels[batch.names[i]] = small_panel(batch, changed, i, template)
        after_batch()
    return Validation(
        counts=Counts(*distributed.sum_over_processes(counted.cpu()).tolist()),
        curve=Curve(distributed.sum_over_processes(total.cpu()).numpy()),
        seen=sorted(name for names in distributed.gather(seen) for name in names),
        panels=panels,
        classes=ClassCounts(distributed.sum_over_processes(confused.cpu()).numpy()) if number else None,
    )


def small_panel(batch: Batch, changed: Tensor, index: int, template: Checkpoint) -> NDArray[np.uint8]:
    """Draw the panel of a pair for TensorBoard, at most `PANEL_SIDE` pixels high."""
    dates = batch.before, batch.after
    before, after = (template.picture(images[index].permute(1, 2, 0).cpu().numpy()) for images in dates)
    picture = panel(before, after, changed[index, 0].cpu().numpy(), batch.mask[index, 0].cpu().numpy() > 0)
    scale = min(1.0, PANEL_SIDE / picture.shape[0])
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
