"""Checks before training: pairs that a network cannot learn from, and options with which it cannot train."""

from __future__ import annotations

import logging

import torch

from change.change_dataloader import Split
from change.common.errors import UserError
from change.data.loaders import EpochOrder
from change.options.train import TrainOptions
from models.config import MULTIPLE, NORMS_OVER_PAIRS

log = logging.getLogger(__name__)


def require_change(train: Split, root: str) -> None:
    """Raise UserError if no mask of train marks any change: the network would learn to find none."""
    if train.changed == 0:
        raise UserError(
            f"no train mask in {root} marks any change: the label folder may hold empty masks or those of other pairs, "
            f"or JPEG masks no brighter than 127; look at them, and run python -m change check {root}"
        )


def require_batch_norm(options: TrainOptions, order: EpochOrder, device: torch.device) -> None:
    """Raise UserError if a batch norm would see a single value per channel, which has no variance.

    Encoders see both dates as one batch, and our decoder normalises groups of channels or both dates. Only the
    decoders in `NORMS_OVER_PAIRS` normalise over the pairs at stride 32, where the smallest crop has one pixel.
    """
    synchronised = device.type == "cuda" and order.processes > 1
    model = options.network.model
    smallest_crop = model in NORMS_OVER_PAIRS and options.data.cropsize == MULTIPLE
    if smallest_crop and order.smallest() == 1 and not synchronised:
        parts = f" and --grad_accum {order.parts}" if order.parts > 1 else ""
        shared = f" over {order.processes} processes" if order.processes > 1 else ""
        raise UserError(
            f"--model {model} with --cropsize {MULTIPLE} cannot train on a batch of one pair, because its batch norm "
            f"needs more than one value: --train_batchsize {order.batch_size}{parts} splits {order.samples} train pairs"
            f"{shared} into batches of which the smallest is one pair; choose a --cropsize of {2 * MULTIPLE} or more, "
            "or another --train_batchsize"
        )


def report_stretch(val: Split, size: int) -> None:
    """Log a warning if val images are resized to a square of `size` pixels; 0 leaves them as they are."""
    other = [pair.size for pair in val.pairs if size and pair.size != (size, size)]
    if other:
        width, height = other[0]
        log.warning(
            "%d of %d val images are resized to %dx%d, such as one of %dx%d: F1, the best epoch and the threshold on "
            "val are computed on resized images; --trainsize 0 keeps their size, as test.py does",
            len(other),
            len(val.pairs),
            size,
            size,
            width,
            height,
        )
