"""Progressive feature refinement: in training, every stage learns the points it is least sure of.

Shapes: B pairs, C channels of a stage, h w its size, P points an image. Points are (B, P, 2), x then y, in 0..1
over the whole image.
Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008); the drawing of points follows Kirillov et al., "PointRend:
Image Segmentation as Rendering", CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PointLogits(NamedTuple):
    """One stage's answer at its points: refined logits, coarse logits and labels, each (B, P)."""

    refined: Tensor
    coarse: Tensor
    labels: Tensor


class StageRefinement(nn.Module):
    """Coarse logits of one stage's fused map, and better ones at single points."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(channels, 1, 1)
        self.fc1 = nn.Linear(channels + 1, channels + 1)
        self.norm = nn.LayerNorm(channels + 1)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(channels + 1, 1)

    def forward(self, fused: Tensor, mask: Tensor, k: int, beta: float, points: Tensor | None = None) -> PointLogits:
        """Fused map (B, C, h, w), mask (B, 1, H, W) of 0 and 1 -> answers at P = w points an image.

        The points are drawn with `k` and `beta` from the coarse logits, or are those given.
        """
        coarse = self.coarse(fused)
        if points is None:
            points = draw_points(coarse, fused.shape[3], k, beta)
        coarse_logits = sample_points(coarse, points)
        x = torch.cat((sample_points(fused, points), coarse_logits), dim=2)
        refined = self.fc2(self.drop(F.gelu(self.norm(self.fc1(x)))))
        labels = sample_points(mask, points, mode="nearest")
        return PointLogits(refined.squeeze(2), coarse_logits.squeeze(2), labels.squeeze(2))


class Refinement(nn.Module):
    """The refinement heads of all stages, deepest first."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(StageRefinement(c) for c in channels)

    def forward(
        self, fused: Sequence[Tensor], mask: Tensor, k: int, beta: float, points: Sequence[Tensor] | None = None
    ) -> list[PointLogits]:
        """Refine each fused map (B, C, H/s, W/s) at W/s points: drawn with `k` and `beta`, or the ones given."""
        answers: list[PointLogits] = []
        for i, (stage, feature) in enumerate(zip(self.stages, fused, strict=True)):
            answers.append(stage(feature, mask, k, beta, None if points is None else points[i]))
        return answers


@torch.no_grad()
def draw_points(coarse: Tensor, number: int, k: int, beta: float) -> Tensor:
    """Draw `number` points an image from coarse logits (B, 1, h, w): (B, number, 2).

    Of k * number uniform candidates, the floor(beta * number) nearest probability 0.5; the rest uniform.
    """
    candidates = torch.rand(len(coarse), k * number, 2, device=coarse.device)
    hard = hardest_points(candidates, sample_points(coarse, candidates).squeeze(2), int(beta * number))
    fresh = torch.rand(len(coarse), number - hard.shape[1], 2, device=coarse.device)
    return torch.cat((hard, fresh), dim=1)


def hardest_points(candidates: Tensor, logits: Tensor, number: int) -> Tensor:
    """The `number` candidates (B, P, 2) whose probability, the sigmoid of logits (B, P), is nearest 0.5."""
    nearest = logits.abs().topk(number, dim=1, largest=False).indices
    return candidates.gather(1, nearest.unsqueeze(2).expand(-1, -1, 2))


def sample_points(values: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Read a map (B, C, h, w) at points (B, P, 2): (B, P, C), in float32 where the map is of half precision.

    As `grid_sample` with align_corners=False and zeros around the map; `mode`: "bilinear" or "nearest". Only what is
    read is copied, and the gradient of indexing, unlike that of `grid_sample`, adds in a fixed order on a GPU too.
    """
    height, width = values.shape[2:]
    cells = values.permute(0, 2, 3, 1)  # rows of C: no copy where the map lies channels-last
    image = torch.arange(len(values), device=values.device)[:, None]

    def read(x: Tensor, y: Tensor) -> Tensor:
        """The cells of columns x and rows y, whole numbers (B, P): (B, P, C), 0 outside of the map."""
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        cell = cells[image, y.clamp(0, height - 1).long(), x.clamp(0, width - 1).long()]
        return full_precision(cell) * inside[..., None]

    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    if mode == "nearest":
        return read(x.round(), y.round())
    left, top = x.floor(), y.floor()
    right_share, low_share = (x - left)[..., None], (y - top)[..., None]
    upper = read(left, top) * (1 - right_share) + read(left + 1, top) * right_share
    lower = read(left, top + 1) * (1 - right_share) + read(left + 1, top + 1) * right_share
    return upper * (1 - low_share) + lower * low_share


def full_precision(values: Tensor) -> Tensor:
    """As float32 where half precision comes in; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
