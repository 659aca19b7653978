"""What the rival decoders share: their interface, and a convolution with batch norm and ReLU.

Shapes: B pairs, C channels, h and w a map's height and width, H and W the image's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rival(nn.Module):
    """Base class: the maps of both dates in, fused maps out, as in `models.unet.UNetDecoder`.

    Subclasses are built from the encoder's channels, see `models.rivals.registry.build_rival`.

    Attributes:
        out_channels: channels of the fused maps, the map of stride 4 last.
    """

    out_channels: tuple[int, ...]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates.

        Args:
            features: the encoder's maps (2B, C, H/s, W/s) of strides s = 4, 8, 16, 32, first before, then after.

        Returns:
            Fused maps (B, C, H/s, W/s) with C from `out_channels`: those of strides s = 32, 16, 8, 4, or only that of
            stride 4 if the network is listed in `models.config.ONE_MAP`.
        """
        raise NotImplementedError


def convolution(inputs: int, outputs: int, side: int = 3) -> nn.Sequential:
    """Build a convolution of side x side, BatchNorm and ReLU: (B, inputs, h, w) -> (B, outputs, h, w)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def resize_to(maps: Tensor, target: Tensor) -> Tensor:
    """Interpolate maps (B, C, h, w) bilinearly to the height and width of `target`."""
    return F.interpolate(maps, size=target.shape[2:], mode="bilinear", align_corners=False)


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Alternate the channels of two maps (B, C, h, w): (B, 2C, h, w), which begins with channel 0 of both."""
    return torch.stack((first, second), dim=2).flatten(1, 2)
