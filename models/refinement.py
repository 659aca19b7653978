"""Progressive feature refinement: in training, every stage also learns at the points it is least sure of.

Shapes: B pairs, C channels of a stage, h and w its map's height and width, O logits per pixel as in
`NetworkConfig.outputs`, P points per image. Points are (B, P, 2), x then y, in 0..1 over the whole image. Masks hold 0
and 1, or, if O > 1, values of classes.

Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008). The points are drawn as in Kirillov et al., "PointRend: Image
Segmentation as Rendering", CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PointLogits(NamedTuple):
    """A stage's output at its points: refined and coarse logits, (B, P), or (B, P, O) if O > 1; labels (B, P)."""

    refined: Tensor
    coarse: Tensor
    labels: Tensor


class StageRefinement(nn.Module):
    """Coarse logits for all positions of a stage's fused map, and refined logits for some points."""

    def __init__(self, channels: int, outputs: int = 1) -> None:
        """Build the head. `channels`: C; `outputs`: O."""
        super().__init__()
        width = channels + outputs
        self.coarse = nn.Conv2d(channels, outputs, 1)
        self.fc1 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, fused: Tensor, mask: Tensor, k: int, beta: float, points: Tensor | None = None) -> PointLogits:
        """Refine at P = w points per image.

        Args:
            fused: the stage's map (B, C, h, w).
            mask: float (B, 1, H, W).
            k: candidates per point, see `draw_points`.
            beta: share of hard points, see `draw_points`.
            points: points to use instead of drawn ones, (B, P, 2).
        """
        coarse = self.coarse(fused)
        if points is None:
            points = draw_points(coarse, fused.shape[3], k, beta)
        coarse_logits = sample_points(coarse, points)
        x = torch.cat((sample_points(fused, points), coarse_logits), dim=2)
        refined = self.fc2(self.drop(F.gelu(self.norm(self.fc1(x)))))
        labels = sample_points(mask, points, mode="nearest")
        # squeeze keeps an axis of several logits
        return PointLogits(refined.squeeze(2), coarse_logits.squeeze(2), labels.squeeze(2))


class Refinement(nn.Module):
    """The refinement heads of all stages, deepest first."""

    def __init__(self, channels: Sequence[int], outputs: int = 1) -> None:
        """Build one head per stage.

        Args:
            channels: channels of the fused maps of strides 32, 16, 8, 4.
            outputs: O.
        """
        super().__init__()
        self.stages = nn.ModuleList(StageRefinement(c, outputs) for c in channels)

    def forward(
        self, fused: Sequence[Tensor], mask: Tensor, k: int, beta: float, points: Sequence[Tensor] | None = None
    ) -> list[PointLogits]:
        """Refine every stage at W/s points per image.

        Args:
            fused: maps (B, C, H/s, W/s) of strides s = 32, 16, 8, 4.
            mask: float (B, 1, H, W).
            k: candidates per point, see `draw_points`.
            beta: share of hard points, see `draw_points`.
            points: points to use instead of drawn ones, one tensor (B, P, 2) per stage.

        Returns:
            The outputs of all stages, deepest first.
        """
        answers: list[PointLogits] = []
        for i, (stage, feature) in enumerate(zip(self.stages, fused, strict=True)):
            answers.append(stage(feature, mask, k, beta, None if points is None else points[i]))
        return answers


@torch.no_grad()
def draw_points(coarse: Tensor, number: int, k: int, beta: float) -> Tensor:
    """Draw points, most of them where the coarse logits are least certain.

    From k * number uniformly drawn candidates, the floor(beta * number) least certain ones are kept: those with a
    probability nearest 0.5 or, if O > 1, with the smallest margin between the two highest logits. The remaining points
    are drawn uniformly.

    Args:
        coarse: coarse logits (B, O, h, w).
        number: points per image.
        k: candidates per point.
        beta: share of the points that are taken from the candidates, 0..1.

    Returns:
        Points (B, number, 2).
    """
    candidates = torch.rand(len(coarse), k * number, 2, device=coarse.device)
    hard = hardest_points(candidates, margins(sample_points(coarse, candidates)), int(beta * number))
    fresh = torch.rand(len(coarse), number - hard.shape[1], 2, device=coarse.device)
    return torch.cat((hard, fresh), dim=1)


def margins(logits: Tensor) -> Tensor:
    """Return the single logits (B, P, 1), or the margins between the two highest (B, P, O), as (B, P)."""
    if logits.shape[2] == 1:
        return logits.squeeze(2)
    highest = logits.topk(2, dim=2).values
    return highest[..., 0] - highest[..., 1]


def hardest_points(candidates: Tensor, logits: Tensor, number: int) -> Tensor:
    """Select the `number` candidates (B, P, 2) whose logit, or margin of logits, (B, P) is nearest 0.

    A logit of 0 is the probability 0.5.
    """
    nearest = logits.abs().topk(number, dim=1, largest=False).indices
    return candidates.gather(1, nearest.unsqueeze(2).expand(-1, -1, 2))


def sample_points(values: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Read a map at points.

    The result is that of `grid_sample` with align_corners=False and zeros outside of the map. Unlike `grid_sample`, it
    copies only the cells that are read, and sums the gradient in a fixed order on a GPU too.

    Args:
        values: the map (B, C, h, w).
        points: (B, P, 2).
        mode: "bilinear" or "nearest".

    Returns:
        (B, P, C); float32 if the map is in half precision, else of its dtype.
    """
    height, width = values.shape[2:]
    cells = values.permute(0, 2, 3, 1)  # rows of C values; a map in channels-last format is not copied
    image = torch.arange(values.shape[0], device=values.device)[:, None]

    def read(x: Tensor, y: Tensor) -> Tensor:
        """Read the cells at columns x and rows y, whole numbers (B, P). Returns (B, P, C), 0 outside the map."""
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        cell = cells[image, y.clamp(0, height - 1).long(), x.clamp(0, width - 1).long()]
        return to_full_precision(cell) * inside[..., None]

    x = points[..., 0] * width - 0.5
    y = points[..., 1] * height - 0.5
    if mode == "nearest":
        return read(x.round(), y.round())
    left = x.floor()
    top = y.floor()
    right_share = (x - left)[..., None]
    low_share = (y - top)[..., None]
    upper = read(left, top) * (1 - right_share) + read(left + 1, top) * right_share
    lower = read(left, top + 1) * (1 - right_share) + read(left + 1, top + 1) * right_share
    return upper * (1 - low_share) + lower * low_share


def to_full_precision(values: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
