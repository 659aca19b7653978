"""The decoder: four temporal fusion stages, deepest first, and the head.

Shapes: B pairs, C channels of the stage, h w its size. Both dates come as one batch of 2B, before first.
Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008); the gate is the squeeze-and-excitation of Hu et al.,
CVPR 2018, added to its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.refinement import full_precision
from models.xcross import XCross, split_dates

PATCH_SIZES = (1, 1, 2, 4)  # of X-Cross, for strides 32, 16, 8, 4
GROUP = 32  # channels in a group of every GroupNorm; a gate is narrower than its input by the same factor


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of 32 channels."""
    return nn.GroupNorm(channels // GROUP, channels)


class Gate(nn.Module):
    """1 + g, g from the means over all positions: one factor a channel and pair."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // GROUP, bias=False)
        self.excite = nn.Linear(channels // GROUP, channels, bias=False)

    def forward(self, means: Tensor) -> Tensor:
        """Means (B, C) -> factors (B, C), 1 to 2."""
        return 1 + torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class Affine(NamedTuple):
    """A normalisation as what it does to each channel, x * scale + shift, and the means of its outcome: (B, C) each."""

    scale: Tensor
    shift: Tensor
    means: Tensor


def norm_as_affine(norm: nn.GroupNorm, maps: Tensor) -> Affine:
    """GroupNorm on maps (B, C, h, w), without writing its outcome."""
    values = full_precision(maps)
    means, squares = values.mean((2, 3)), values.square().mean((2, 3))
    groups = (norm.num_groups, GROUP)
    centre, square = (torch.unflatten(x, 1, groups).mean(2, keepdim=True) for x in (means, squares))
    factor = torch.rsqrt((square - centre.square()).clamp_min(0) + norm.eps)
    centre, factor = (x.expand(-1, *groups).flatten(1) for x in (centre, factor))
    scale = factor * norm.weight
    shift = norm.bias - centre * scale
    return Affine(scale, shift, means * scale + shift)


def convolve_affine(conv: nn.Conv2d, maps: Sequence[Tensor], scale: Tensor, shift: Tensor) -> Tensor:
    """A 1x1 convolution without bias of concatenated maps, each x * scale + shift: n of (B, C, h, w) -> (B, C', h, w).

    `scale` and `shift`, (B, n C), go into the kernel, one for each pair: neither the product nor the concatenation is
    ever in memory.
    """
    height, width = maps[0].shape[2:]
    with torch.autocast(scale.device.type, enabled=False):
        kernel = conv.weight.flatten(1).to(scale.dtype)
        bias = F.linear(shift, kernel)
        kernels = (scale[:, None] * kernel).transpose(1, 2).chunk(len(maps), dim=1)
    out = bias[:, None].to(maps[0].dtype)
    for part, own in zip(maps, kernels, strict=True):
        out = torch.baddbmm(out, part.flatten(2).transpose(1, 2), own.to(part.dtype))
    return torch.unflatten(out, 1, (height, width)).permute(0, 3, 1, 2)


class DeepestStage(nn.Module):
    """Stage 0 (stride 32): normalise both dates, concatenate, 1x1 convolution."""

    def __init__(self, channels: int, patch_size: int, cross: bool, within: bool) -> None:
        super().__init__()
        self.cross = XCross(channels, patch_size, within) if cross else None
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
    """Stages 1..3: both dates and the upsampled coarser stage, normalised alike, gated, reduced, convolved.

    Normalisation, gate and reduction are linear once their few factors are known, which follow from the channels' means
    and variances: they are applied as one product, whose kernel is composed for each pair.
    """

    def __init__(self, coarse_channels: int, channels: int, patch_size: int, cross: bool, within: bool) -> None:
        super().__init__()
        self.cross = XCross(channels, patch_size, within) if cross else None
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
        maps = (*split_dates(features), self.upsample(coarse))
        with torch.autocast(features.device.type, enabled=False):  # few numbers, on which all others hang
            each = [norm_as_affine(self.norm, part) for part in maps]
            scale, shift, means = (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
            gate = self.gate(means)
        convolution, norm_and_relu = self.reduce[0], self.reduce[1:]
        assert isinstance(convolution, nn.Conv2d)
        reduced = norm_and_relu(convolve_affine(convolution, maps, scale * gate, shift * gate))
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

    def start_at(self, rate: float) -> None:
        """Set the last bias so that where all else is 0 the probability is `rate`, 1e-6 to 1 - 1e-6."""
        bias = self.out.bias
        assert bias is not None
        with torch.no_grad():
            bias.fill_(torch.logit(torch.tensor(rate, dtype=torch.float64), eps=1e-6))

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

    def __init__(self, encoder_channels: Sequence[int], cross: bool, within: bool = False) -> None:
        """`encoder_channels`: of strides 4, 8, 16, 32, each a multiple of 32."""
        super().__init__()
        widths = tuple(reversed(encoder_channels))
        self.deepest = DeepestStage(widths[0], PATCH_SIZES[0], cross, within)
        self.stages = nn.ModuleList(
            FusionStage(widths[i - 1], widths[i], PATCH_SIZES[i], cross, within) for i in range(1, len(widths))
        )
        self.out_channels = widths

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoder maps (2B, C, H/s, W/s) of strides 4, 8, 16, 32 -> (B, C, H/s, W/s) of strides 32, 16, 8, 4."""
        fused = [self.deepest(features[-1])]
        for stage, feature in zip(self.stages, reversed(features[:-1]), strict=True):
            fused.append(stage(feature, fused[-1]))
        return fused
