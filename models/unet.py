"""The baseline: a U-Net decoder on the concatenated features of both dates, to compare PRX-Change with.

Shapes: B pairs, C channels of the stage, H and W the image's height and width. The encoder's maps hold both dates as
one batch of 2B: first before, then after.

Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015; with a
Siamese encoder: Daudt et al., "Fully Convolutional Siamese Networks for Change Detection", ICIP 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.xcross import split_dates


def double_convolution(channels: int, out_channels: int) -> nn.Sequential:
    """Build two blocks of 3x3 convolution, BatchNorm and ReLU: (B, channels, h, w) -> (B, out_channels, h, w)."""
    layers: list[nn.Module] = []
    for width in (channels, out_channels):
        layers += [
            nn.Conv2d(width, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNetDecoder(nn.Module):
    """Four stages, from stride 32 to stride 4, with the same inputs and outputs as `models.decoder.Decoder`.

    Each stage concatenates both dates and the upsampled map of the previous stage, and convolves twice.
    """

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """Build the decoder.

        Args:
            encoder_channels: the encoder's channels at strides 4, 8, 16, 32.
        """
        super().__init__()
        widths = tuple(reversed(encoder_channels))
        self.deepest = double_convolution(2 * widths[0], widths[0])
        self.upsamples = nn.ModuleList(
            nn.ConvTranspose2d(widths[i - 1], widths[i], 2, stride=2) for i in range(1, len(widths))
        )
        self.stages = nn.ModuleList(double_convolution(3 * width, width) for width in widths[1:])
        self.out_channels = widths

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates.

        Args:
            features: the encoder's maps (2B, C, H/s, W/s) of strides s = 4, 8, 16, 32, first before, then after.

        Returns:
            Fused maps (B, C, H/s, W/s) of strides s = 32, 16, 8, 4.
        """
        maps = [self.deepest(torch.cat(split_dates(features[-1]), dim=1))]
        for upsample, stage, feature in zip(self.upsamples, self.stages, reversed(features[:-1]), strict=True):
            maps.append(stage(torch.cat((*split_dates(feature), upsample(maps[-1])), dim=1)))
        return maps
