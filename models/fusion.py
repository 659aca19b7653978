"""The decoder: four temporal fusion stages, deepest first, and the head.

Shapes: B pairs, C channels of the stage, h w its size. Both dates come as one batch of 2B, before first.
Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008); the gate is the squeeze-and-excitation of Hu et al.,
CVPR 2018, added to its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.xcross import XCross, split_dates

PATCH_SIZES = (1, 1, 2, 4)  # of X-Cross, for strides 32, 16, 8, 4
GROUP = 32  # channels in a group of every GroupNorm; a gate is narrower than its input by the same factor


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of 32 channels."""
    return nn.GroupNorm(channels // GROUP, channels)


class Gate(nn.Module):
    """x + x * g, g from the mean over all positions: one factor a channel and pair."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // GROUP, bias=False)
        self.excite = nn.Linear(channels // GROUP, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x + x * gate[:, :, None, None]


class DeepestStage(nn.Module):
    """Stage 0 (stride 32): normalise both dates, concatenate, 1x1 convolution."""

    def __init__(self, channels: int, patch_size: int, cross: bool) -> None:
        super().__init__()
        self.cross = XCross(channels, patch_size) if cross else None
        self.norm = group_norm(channels)
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(2B, C, h, w) -> (B, C, h, w)."""
        if self.cross is not None:
            features = self.cross(features)
        before, after = split_dates(self.norm(features))
        fused: Tensor = self.mix(torch.cat((before, after), dim=1))
        return fused


class FusionStage(nn.Module):
    """Stages 1..3: both dates and the upsampled coarser stage, normalised alike, gated, reduced, convolved."""

    def __init__(self, coarse_channels: int, channels: int, patch_size: int, cross: bool) -> None:
        super().__init__()
        self.cross = XCross(channels, patch_size) if cross else None
        self.norm = group_norm(channels)
        self.upsample = nn.ConvTranspose2d(coarse_channels, channels, 2, stride=2)
        self.gate = Gate(3 * channels)
        self.reduce = nn.Sequential(nn.Conv2d(3 * channels, channels, 1, bias=False), group_norm(channels), nn.ReLU())
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), group_norm(channels), nn.ReLU()
        )

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        """(2B, C, h, w) and the stage before, (B, coarse C, h/2, w/2) -> (B, C, h, w)."""
        if self.cross is not None:
            features = self.cross(features)
        before, after = split_dates(self.norm(features))
        coarse = self.norm(self.upsample(coarse))
        reduced = self.reduce(self.gate(torch.cat((before, after, coarse), dim=1)))
        fused: Tensor = reduced + self.conv(reduced)
        return fused


class Head(nn.Module):
    """C channels at stride 4 -> one logit a pixel: two transposed convolutions and a 1x1, all linear.

    Linear in a row is linear: they are applied as one transposed convolution 4x4 stride 4, its kernel composed at
    every call (2,048 products a channel), which never needs the C/2-channel map at full resolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample1 = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.upsample2 = nn.ConvTranspose2d(channels // 2, channels // 2, 2, stride=2)
        self.out = nn.Conv2d(channels // 2, 1, 1)

    def composed(self) -> tuple[Tensor, Tensor]:
        """The one layer that equals the three: kernel (C, 1, 4, 4), bias (2, 2), repeated over the image."""
        with torch.autocast(self.out.weight.device.type, enabled=False):  # as exact in mixed precision as without
            assert self.upsample1.bias is not None and self.upsample2.bias is not None and self.out.bias is not None
            last = self.out.weight[0, :, 0, 0]  # (m)
            inner = torch.einsum("nmyx,m->nyx", self.upsample2.weight, last)
            kernel = torch.einsum("cnYX,nyx->cYyXx", self.upsample1.weight, inner).reshape(-1, 1, 4, 4)
            # The first layer's bias passes through the second's kernel: another value on each of its 2x2 positions.
            bias = torch.einsum("n,nyx->yx", self.upsample1.bias, inner) + self.upsample2.bias @ last + self.out.bias
        return kernel, bias

    def forward(self, fused: Tensor) -> Tensor:
        """(B, C, H/4, W/4) -> logits (B, 1, H, W)."""
        kernel, bias = self.composed()
        logits = F.conv_transpose2d(fused, kernel, stride=4)
        return logits + bias.to(logits.dtype).repeat(fused.shape[2] * 2, fused.shape[3] * 2)


class Decoder(nn.Module):
    """Four stages on the encoder's maps. `forward` returns the fused map of every stage, deepest first."""

    def __init__(self, encoder_channels: Sequence[int], cross: bool) -> None:
        """`encoder_channels`: of strides 4, 8, 16, 32, each a multiple of 32."""
        super().__init__()
        widths = tuple(reversed(encoder_channels))
        self.deepest = DeepestStage(widths[0], PATCH_SIZES[0], cross)
        self.stages = nn.ModuleList(
            FusionStage(widths[i - 1], widths[i], PATCH_SIZES[i], cross) for i in range(1, len(widths))
        )
        self.out_channels = widths

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoder maps (2B, C, H/s, W/s) of strides 4, 8, 16, 32 -> (B, C, H/s, W/s) of strides 32, 16, 8, 4."""
        fused = [self.deepest(features[-1])]
        for stage, feature in zip(self.stages, reversed(features[:-1]), strict=True):
            fused.append(stage(feature, fused[-1]))
        return fused
