"""SNUNet: nested U-Nets with dense skip connections, and attention over the channels of their outputs.

Shapes: B pairs, C channels of a level, h and w its map's height and width. Level 0 has stride 4, level 3 stride 32.

Source: Fang, Li, Shao and Li, "SNUNet-CD: A Densely Connected Siamese Network for Change Detection of VHR Images", IEEE
Geoscience and Remote Sensing Letters, 2021.

As in the paper: node j of a level reads both dates, the nodes 1 .. j - 1 of its level and the upsampled node j - 1 of
the next coarser level, whose node 0 is the date after. A block has two convolutions and a shortcut from the first. The
ensemble channel attention module weighs the channels of all nodes of level 0.

Departure: the encoder is ours and has four levels, at strides 4 to 32, instead of five at strides 1 to 16. So there are
six nodes instead of ten. The map before of stride 32 is not read, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.rivals.parts import Rival
from models.xcross import split_dates


class NestedBlock(nn.Module):
    """Two 3x3 convolutions; the output of the first is added to that of the second."""

    def __init__(self, inputs: int, channels: int) -> None:
        """Build a block that turns (B, inputs, h, w) into (B, channels, h, w)."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve twice."""
        first = self.conv1(x)
        return F.relu(first + self.bn2(self.conv2(F.relu(self.bn1(first)))))


class ChannelAttention(nn.Module):
    """Weights of the channels from their means and maxima, as in CBAM (Woo et al., ECCV 2018)."""

    def __init__(self, channels: int, ratio: int) -> None:
        """Build the layers; the hidden one has `channels` / `ratio` channels."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // ratio, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // ratio, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute weights (B, C, 1, 1) between 0 and 1 for a map (B, C, h, w)."""
        means, maxima = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(self.mlp(means) + self.mlp(maxima))


class SNUNet(Rival):
    """SNUNet-ECAM. It gives one map, of stride 4: the nodes of level 0, weighted, with 3 C channels."""

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """Build the decoder, see `Rival`."""
        super().__init__()
        depth = len(encoder_channels) - 1
        self.nodes, self.upsamples = nn.ModuleDict(), nn.ModuleDict()
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                own, coarse = encoder_channels[i], encoder_channels[i + 1]
                self.nodes[f"{i}_{j}"] = NestedBlock((j + 1) * own + coarse, own)
                self.upsamples[f"{i}_{j}"] = nn.ConvTranspose2d(coarse, coarse, 2, stride=2)
        self.within = ChannelAttention(encoder_channels[0], 4)
        self.across = ChannelAttention(depth * encoder_channels[0], 16)
        self.out_channels = (depth * encoder_channels[0],)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates into one of stride 4, see `Rival.forward`."""
        dates = [split_dates(feature) for feature in features]
        previous = [after for _, after in dates]  # node j - 1 of every level
        skips: list[list[Tensor]] = [list(pair) for pair in dates]  # what later nodes of the level read
        for j in range(1, len(features)):
            current = []
            for i in range(len(features) - j):
                coarse = self.upsamples[f"{i}_{j}"](previous[i + 1])
                node = self.nodes[f"{i}_{j}"](torch.cat((*skips[i], coarse), dim=1))
                skips[i].append(node)
                current.append(node)
            previous = current
        outputs = skips[0][2:]
        every = torch.cat(outputs, dim=1)
        shared = self.within(torch.stack(outputs).sum(0))
        return [self.across(every) * (every + torch.cat([shared] * len(outputs), dim=1))]
