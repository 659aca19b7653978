"""The plain baseline: a U-Net decoder on both dates' concatenated features, against which PRX-Change is measured.

Shapes: B pairs, C channels of the stage, h w its size. Both dates come as one batch of 2B, before first.
Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015; with a
Siamese encoder: Daudt et al., "Fully Convolutional Siamese Networks for Change Detection", ICIP 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.xcross import split_dates


def double_convolution(channels: int, out_channels: int) -> nn.Sequential:
    """Twice a 3x3 convolution, BatchNorm, ReLU: (B, channels, h, w) -> (B, out_channels, h, w)."""
    layers: list[nn.Module] = []
    for width in (channels, out_channels):
        layers += [
            nn.Conv2d(width, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNetDecoder(nn.Module):
    """Concatenate both dates, upsample the stage before, concatenate, convolve twice. As `Decoder`, it returns the map
    of every stage, deepest first."""

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """`encoder_channels`: of strides 4, 8, 16, 32."""
        super().__init__()
        widths = tuple(reversed(encoder_channels))
        self.deepest = double_convolution(2 * widths[0], widths[0])
        self.upsamples = nn.ModuleList(
            nn.ConvTranspose2d(widths[i - 1], widths[i], 2, stride=2) for i in range(1, len(widths))
        )
        self.stages = nn.ModuleList(double_convolution(3 * width, width) for width in widths[1:])
        self.out_channels = widths

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoder maps (2B, C, H/s, W/s) of strides 4, 8, 16, 32 -> (B, C, H/s, W/s) of strides 32, 16, 8, 4."""
        maps = [self.deepest(torch.cat(split_dates(features[-1]), dim=1))]
        for upsample, stage, feature in zip(self.upsamples, self.stages, reversed(features[:-1]), strict=True):
            maps.append(stage(torch.cat((*split_dates(feature), upsample(maps[-1])), dim=1)))
        return maps
