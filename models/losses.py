"""The training loss, composed of named terms.

A new term that compares logits with the mask takes two steps: add a function to `MASK_TERMS` here, and an option for
its weight, of the same name, to `LossOptions` in change/options/train.py.

Shapes: B pairs, I channels of the images, 3 for RGB, H and W their height and width, O logits per pixel as in
`NetworkConfig.outputs`, P points per image. Masks are float (B, 1, H, W) of 0 and 1 or, if O > 1, of class values from
0 to O - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.network import PRXChange
from models.refinement import PointLogits, to_full_precision


class Losses(NamedTuple):
    """Scalars: the loss that is minimised, the loss of the mask, and the loss of the refined points.

    Without refinement the last is 0, and the first two are equal.
    """

    total: Tensor
    classification: Tensor
    refinement: Tensor


# --- terms ---------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean cross-entropy of logits (B, O, H, W) and mask -> a scalar. It is binary if O is 1."""
    # Classes last, as rows: the loss of maps has no deterministic form on a GPU.
    return cross_entropy_of_rows(logits if logits.shape[1] == 1 else logits.permute(0, 2, 3, 1), mask)


def cross_entropy_of_rows(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute the mean cross-entropy of logits and truth -> a scalar.

    Args:
        logits: of the truth's shape, or (..., O) with one row per value of the truth.
        truth: float, 0 and 1 or, for rows, class values from 0 to O - 1.
    """
    logits = to_full_precision(logits)
    if logits.shape == truth.shape:
        return F.binary_cross_entropy_with_logits(logits, truth)
    return F.cross_entropy(logits.flatten(0, -2), truth.flatten().long())


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Compute 1 - Dice over all pixels of the batch together, logits (B, O, H, W) and mask -> a scalar, 0 to 1.

    If O > 1, it is the mean over the classes of change that occur in the batch's mask, and 0 if none does. Classes that
    do not occur are left to the cross-entropy: their Dice loss is nearly 1 as soon as a few pixels have a small
    probability, and would drown out the other classes.

    It is not a mean over pairs: if a batch is split into micro-batches, the mean of their losses differs from it.
    Source: Milletari et al., "V-Net", 3DV 2016, with sums instead of squares.
    """
    logits = to_full_precision(logits)
    if logits.shape[1] == 1:
        probability = torch.sigmoid(logits)
        return dice_of_sums((probability * mask).sum(), (probability + mask).sum())
    probabilities = torch.softmax(logits, dim=1)[:, 1:]
    values = torch.arange(1, logits.shape[1], device=mask.device, dtype=mask.dtype)
    masks = (mask == values[:, None, None]).to(probabilities.dtype)  # (B, O - 1, H, W)
    pixels = masks.sum((0, 2, 3))
    losses = dice_of_sums((probabilities * masks).sum((0, 2, 3)), probabilities.sum((0, 2, 3)) + pixels)
    occurs = (pixels > 0).to(losses.dtype)
    return (losses * occurs).sum() / occurs.sum().clamp_min(1)


def dice_of_sums(common: Tensor, total: Tensor) -> Tensor:
    """Compute 1 - Dice from the sum of probability times mask, and the sum of both; any shape."""
    return 1 - (2 * common + 1) / (total + 1)


# Terms that compare logits (B, O, H, W) with the mask -> a scalar.
MASK_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "dice": dice_loss}


def mask_loss(logits: Tensor, mask: Tensor, weights: Mapping[str, float]) -> Tensor:
    """Compute the weighted sum of the terms of `MASK_TERMS` whose weight is not 0."""
    terms = [weight * MASK_TERMS[name](logits, mask) for name, weight in weights.items() if weight]
    return sum(terms[1:], terms[0])


def point_loss(stages: Sequence[PointLogits]) -> Tensor:
    """Compute the mean over the stages of the cross-entropy of the refined points."""
    return torch.stack([cross_entropy_of_rows(stage.refined, stage.labels) for stage in stages]).mean()


# --- the network and its loss --------------------------------------------------------------------------------------


class TrainingLoss(nn.Module):
    """The network and its loss in one module, with or without refinement."""

    def __init__(
        self,
        network: PRXChange,
        *,
        k: int = 2,
        beta: float = 0.75,
        l1: float = 5.0,
        l2: float = 1.0,
        **weights: float,
    ) -> None:
        """Combine a network and the weights of its loss.

        Args:
            network: the network; its refinement heads, if it has any, are trained too.
            k: refinement candidates per point.
            beta: share of the points that are the hardest candidates, 0 to 1.
            l1: weight of the mask's loss if there is refinement.
            l2: weight of the points' loss.
            weights: weights of the other terms of `MASK_TERMS`, such as `dice=0.5`; the cross-entropy has weight 1.

        Raises:
            ValueError: a weight belongs to no term.
        """
        super().__init__()
        unknown = weights.keys() - MASK_TERMS.keys()
        if unknown:
            raise ValueError(f"unknown loss terms {', '.join(sorted(unknown))}: choose from {', '.join(MASK_TERMS)}")
        self.network = network
        self.k, self.beta, self.l1, self.l2 = k, beta, l1, l2
        self.mask_weights = {"cross_entropy": 1.0, **weights}

    def forward(
        self, before: Tensor, after: Tensor, mask: Tensor, points: Sequence[Tensor] | None = None
    ) -> tuple[Losses, Tensor]:
        """Compute losses and logits.

        Args:
            before: float (B, I, H, W), normalised; H and W are multiples of 32.
            after: the same shape.
            mask: float (B, 1, H, W).
            points: points to use instead of drawn ones, one tensor (B, P, 2) per stage; x and y in 0..1.

        Returns:
            The losses, and the logits (B, O, H, W).
        """
        fused = self.network.fuse(before, after)
        logits = self.network.head(fused[-1])
        classification = mask_loss(logits, mask, self.mask_weights)
        if self.network.refinement is None:
            return Losses(classification, classification, torch.zeros_like(classification)), logits
        refinement = point_loss(self.network.refinement(fused, mask, self.k, self.beta, points))
        return Losses(self.l1 * classification + self.l2 * refinement, classification, refinement), logits
