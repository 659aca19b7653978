"""Changer (ChangerEx): parts of the features are exchanged between the dates, which are then aligned and fused.

Shapes: B pairs, C channels of an encoder's map, D = 2C channels of the decoder with C at stride 4, h and w a map's
height and width. Maps of 2B hold both dates: first before, then after.

Source: Fang, Li and Li, "Changer: Feature Interaction is What You Need for Change Detection", IEEE Transactions on
Geoscience and Remote Sensing, 2023.

As in the paper: the dates exchange every second column at stride 8, and every second channel at strides 16 and 32. 1x1
convolutions bring all maps of a date to D channels and one map of D / 2. Two flow fields, predicted from both dates,
warp each date to the other; the differences are concatenated and pass through a residual MLP with a 3x3 convolution.

Departures:
    The maps are exchanged only behind the encoder. In the paper, each stage reads what the previous one has exchanged.
    The map that predicts the flow is normalised by GroupNorm over all its channels instead of InstanceNorm.
    There is no dropout, so that all networks are trained by the same recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.refinement import sample_points, to_full_precision
from models.rivals.parts import Rival, convolution, resize_to
from models.xcross import split_dates, swap_dates


def exchange(features: Tensor, dim: int) -> Tensor:
    """Exchange positions 0, 2, 4 ... of both dates: (2B, C, h, w) -> the same shape.

    Args:
        features: first before, then after.
        dim: 1 to exchange channels, 3 to exchange columns.
    """
    place = torch.arange(features.shape[dim], device=features.device)
    place = place.reshape((-1,) + (1,) * (3 - dim))
    return torch.where(place % 2 == 0, swap_dates(features), features)


def warp(maps: Tensor, flow: Tensor) -> Tensor:
    """Read maps where a flow points to.

    Args:
        maps: (B, C, h, w).
        flow: offsets (B, 2, h, w) in pixels of the map, x then y.

    Returns:
        (B, C, h, w) of the maps' dtype; 0 where the flow points outside.
    """
    height, width = maps.shape[2:]
    flow = to_full_precision(flow)  # half precision cannot number the columns of a large map
    x = torch.arange(width, device=maps.device, dtype=flow.dtype) + 0.5 + flow[:, 0]
    y = torch.arange(height, device=maps.device, dtype=flow.dtype)[:, None] + 0.5 + flow[:, 1]
    points = torch.stack((x / width, y / height), dim=3).flatten(1, 2)
    read = sample_points(maps, points).transpose(1, 2)
    return torch.unflatten(read, 2, (height, width)).to(maps.dtype)


class FlowFusion(nn.Module):
    """Flow-guided dual alignment fusion: warp each date to the other and subtract."""

    def __init__(self, channels: int) -> None:
        """Build the layers that predict the flow from both dates of `channels` channels."""
        super().__init__()
        both = 2 * channels
        self.flow = nn.Sequential(
            nn.Conv2d(both, both, 5, padding=2, groups=both),
            nn.GroupNorm(1, both),
            nn.GELU(),
            nn.Conv2d(both, 4, 1, bias=False),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Fuse two maps (B, C, h, w): (B, 2C, h, w)."""
        to_after, to_before = torch.unflatten(self.flow(torch.cat((before, after), dim=1)), 1, (2, 2)).unbind(1)
        return torch.cat((warp(before, to_after) - after, warp(after, to_before) - before), dim=1)


class MixMlp(nn.Module):
    """A residual MLP with a depthwise 3x3 convolution inside, from SegFormer (Xie et al., NeurIPS 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position: (B, C, h, w) -> (B, C, h, w)."""
        out: Tensor = x + self.last(F.gelu(self.depthwise(self.first(x))))
        return out


class Changer(Rival):
    """ChangerEx. It gives one map, of stride 4 and D channels."""

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """Build the decoder, see `Rival`."""
        super().__init__()
        channels = 2 * encoder_channels[0]
        self.project = nn.ModuleList(convolution(own, channels, 1) for own in encoder_channels)
        self.mix = convolution(len(encoder_channels) * channels, channels // 2, 1)
        self.fuse = FlowFusion(channels // 2)
        self.discriminate = MixMlp(channels)
        self.out_channels = (channels,)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates into one of stride 4, see `Rival.forward`."""
        exchanged = [features[0], exchange(features[1], dim=3), *(exchange(x, dim=1) for x in features[2:])]
        maps = [project(x) for project, x in zip(self.project, exchanged, strict=True)]
        both = self.mix(torch.cat([resize_to(x, maps[0]) for x in maps], dim=1))
        return [self.discriminate(self.fuse(*split_dates(both)))]
