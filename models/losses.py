"""The losses of training.

Shapes: B pairs, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.network import PRXChange
from models.refinement import full_precision


class Losses(NamedTuple):
    """Scalars: what is minimised, the loss of the logits, the mean BCE of the refined points (0 without refinement)."""

    total: Tensor
    classification: Tensor
    refinement: Tensor


class TrainingLoss(nn.Module):
    """The network and its loss in one module: `forward` is one training pass, refinement on or off."""

    def __init__(
        self, network: PRXChange, k: int = 2, beta: float = 0.75, l1: float = 5.0, l2: float = 1.0, dice: float = 0.0
    ) -> None:
        """`k`, `beta`: how points are drawn; `l1`, `l2`: weights of the two losses where refinement is on; `dice`:
        weight of the Dice loss beside the logits' BCE."""
        super().__init__()
        self.network = network
        self.k, self.beta, self.l1, self.l2, self.dice = k, beta, l1, l2, dice

    def forward(
        self, before: Tensor, after: Tensor, mask: Tensor, points: Sequence[Tensor] | None = None
    ) -> tuple[Losses, Tensor]:
        """Images (B, 3, H, W), mask (B, 1, H, W) float of 0 and 1 -> losses and logits (B, 1, H, W).

        `points`, four of (B, P, 2) in 0..1, stand in for the drawn ones.
        """
        fused = self.network.fuse(before, after)
        logits = self.network.head(fused[-1])
        classification = F.binary_cross_entropy_with_logits(full_precision(logits), mask)
        if self.dice:
            classification = classification + self.dice * dice_loss(logits, mask)
        if self.network.refinement is None:
            return Losses(classification, classification, torch.zeros_like(classification)), logits
        answers = self.network.refinement(fused, mask, self.k, self.beta, points)
        refinement = torch.stack(
            [F.binary_cross_entropy_with_logits(full_precision(answer.refined), answer.labels) for answer in answers]
        ).mean()
        return Losses(self.l1 * classification + self.l2 * refinement, classification, refinement), logits


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - Dice of probabilities and mask, over all pixels of the batch together: (B, 1, H, W) each -> a scalar, 0..1.

    It is no mean over pairs: of a batch in parts, the mean of the parts' losses is another one.
    Source: Milletari et al., "V-Net", 3DV 2016, with sums in place of squares.
    """
    probability = torch.sigmoid(full_precision(logits))
    return 1 - (2 * (probability * mask).sum() + 1) / ((probability + mask).sum() + 1)
