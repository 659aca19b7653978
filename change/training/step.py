"""The parts of a training step: micro-batches with their weights, and losses that wait to be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from change.data.loaders import BatchShare
from change.data.samples import Batch
from models.losses import Losses

LOSS_NAMES = ("loss", *(f"loss_{name}" for name in Losses._fields[1:]))


@dataclass
class Pending:
    """A step whose losses have not been read from the device.

    Attributes:
        names: the names of this process's pairs.
        losses: the weighted losses of this process, in the order of `LOSS_NAMES`.
        pairs: number of pairs of all processes.
    """

    names: list[str]
    losses: Tensor
    pairs: int


def weighted_parts(batch: Batch, share: BatchShare) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], float]]:
    """Split a process's share of a batch into micro-batches: images and masks, and the weight of their mean loss.

    A weight is the micro-batch's share of the pairs of the whole batch, so the weights of all micro-batches and
    processes add up to 1. Pairs beyond `share.own` only fill up a micro-batch and have no weight.
    """
    left = share.own
    for part in zip(*(tensor.tensor_split(share.parts) for tensor in batch[:3]), strict=True):
        own = min(left, len(part[0]))
        left -= own
        yield part, own / share.pairs
