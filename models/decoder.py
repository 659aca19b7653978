"""The decoder: four stages that fuse both dates, deepest first, and the head.

Shapes: B pairs, C channels of the stage, h and w its map's height and width. The encoder's maps hold both dates as one
batch of 2B: first before, then after.

Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008). The gate is the squeeze-and-excitation block of Hu et al.,
CVPR 2018, whose output is added to its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.refinement import to_full_precision
from models.xcross import split_dates

GROUP = 32  # channels per group of every GroupNorm; also the factor by which a gate is narrower than its input


def group_norm(channels: int) -> nn.GroupNorm:
    """Build a GroupNorm with 32 channels per group."""
    return nn.GroupNorm(channels // GROUP, channels)


class Gate(nn.Module):
    """Weights for the channels, computed from their means over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // GROUP, bias=False)
        self.excite = nn.Linear(channels // GROUP, channels, bias=False)

    def forward(self, means: Tensor) -> Tensor:
        """Map the channels' means (B, C) to factors (B, C) between 1 and 2."""
        return 1 + torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class Affine(NamedTuple):
    """A normalisation written as x * scale + shift, and the means of its output; (B, C) each."""

    scale: Tensor
    shift: Tensor
    means: Tensor


def norm_as_affine(norm: nn.GroupNorm, maps: Tensor) -> Affine:
    """Express a GroupNorm of maps (B, C, h, w) as a scale and a shift, without computing its output."""
    values = to_full_precision(maps)
    means = values.mean((2, 3))
    squares = values.square().mean((2, 3))
    groups = (norm.num_groups, GROUP)
    centre = torch.unflatten(means, 1, groups).mean(2, keepdim=True)
    square = torch.unflatten(squares, 1, groups).mean(2, keepdim=True)
    factor = torch.rsqrt((square - centre.square()).clamp_min(0) + norm.eps)
    centre = centre.expand(-1, *groups).flatten(1)
    factor = factor.expand(-1, *groups).flatten(1)
    scale = factor * norm.weight
    shift = norm.bias - centre * scale
    return Affine(scale, shift, means * scale + shift)


def convolve_affine(conv: nn.Conv2d, maps: Sequence[Tensor], scale: Tensor, shift: Tensor) -> Tensor:
    """Apply x * scale + shift to concatenated maps, then a 1x1 convolution without bias.

    `scale` and `shift` are multiplied into one kernel per pair, so that neither the scaled maps nor their concatenation
    is ever held in memory.

    Args:
        conv: the 1x1 convolution, from n C to C' channels.
        maps: n maps (B, C, h, w).
        scale: (B, n C).
        shift: (B, n C).

    Returns:
        (B, C', h, w).
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
    """The stage of stride 32: normalise both dates, concatenate them, apply a 1x1 convolution."""

    def __init__(self, channels: int, attention: nn.Module | None = None) -> None:
        """Build the stage.

        Args:
            channels: C, a multiple of 32.
            attention: a module such as `XCross` that maps (2B, C, h, w) to the same shape and is applied first.
        """
        super().__init__()
        self.cross = attention
        self.norm = group_norm(channels)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.out_channels = channels

    def forward(self, features: Tensor) -> Tensor:
        """Fuse both dates: (2B, C, h, w) -> (B, C, h, w)."""
        if self.cross is not None:
            features = self.cross(features)
        before, after = split_dates(self.norm(features))
        fused: Tensor = self.mix(torch.cat((before, after), dim=1))
        return fused


class FusionStage(nn.Module):
    """A stage of stride 16, 8 or 4: fuse both dates and the upsampled map of the previous stage.

    The three maps are normalised, concatenated, weighted by a gate, reduced to C channels and convolved. Normalisation,
    gate and reduction are linear once their factors are known, and these depend only on the channels' means and
    variances. They are therefore applied as one product, with one kernel per pair.
    """

    def __init__(self, coarse_channels: int, channels: int, attention: nn.Module | None = None) -> None:
        """Build the stage.

        Args:
            coarse_channels: channels of the previous stage.
            channels: C, a multiple of 32.
            attention: a module such as `XCross` that maps (2B, C, h, w) to the same shape and is applied first.
        """
        super().__init__()
        self.cross = attention
        self.norm = group_norm(channels)
        self.upsample = nn.ConvTranspose2d(coarse_channels, channels, 2, stride=2)
        self.gate = Gate(3 * channels)
        self.reduce = nn.Sequential(nn.Conv2d(3 * channels, channels, 1, bias=False), group_norm(channels), nn.ReLU())
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), group_norm(channels), nn.ReLU()
        )
        self.out_channels = channels

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        """Fuse both dates and the coarser map.

        Args:
            features: (2B, C, h, w), first before, then after.
            coarse: the map of the previous stage, (B, coarse C, h/2, w/2).

        Returns:
            (B, C, h, w).
        """
        if self.cross is not None:
            features = self.cross(features)
        maps = (*split_dates(features), self.upsample(coarse))
        # In float32 even under autocast: these few numbers scale all others.
        with torch.autocast(features.device.type, enabled=False):
            norms = [norm_as_affine(self.norm, part) for part in maps]
            scale = torch.cat([norm.scale for norm in norms], dim=1)
            shift = torch.cat([norm.shift for norm in norms], dim=1)
            gate = self.gate(torch.cat([norm.means for norm in norms], dim=1))
        convolution, norm_and_relu = self.reduce[0], self.reduce[1:]
        assert isinstance(convolution, nn.Conv2d)
        reduced = norm_and_relu(convolve_affine(convolution, maps, scale * gate, shift * gate))
        fused: Tensor = reduced + self.conv(reduced)
        return fused


class Head(nn.Module):
    """Two transposed convolutions and a 1x1 convolution, from C channels at stride 4 to O logits per pixel.

    All three are linear, so they are applied as one transposed convolution, 4x4 with stride 4. Its kernel is computed
    at every call, with few products per channel. The map of C/2 channels at full resolution is never needed.
    """

    def __init__(self, channels: int, outputs: int = 1) -> None:
        """Build the head. `channels`: C; `outputs`: O, see `NetworkConfig.outputs`."""
        super().__init__()
        self.upsample1 = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.upsample2 = nn.ConvTranspose2d(channels // 2, channels // 2, 2, stride=2)
        self.out = nn.Conv2d(channels // 2, outputs, 1)

    def start_at(self, rate: float) -> None:
        """Set the last bias so that a map of zeros gives the probability `rate`, clamped to 1e-6..1 - 1e-6."""
        bias = self.out.bias
        assert bias is not None and len(bias) == 1
        with torch.no_grad():
            bias.fill_(torch.logit(torch.tensor(rate, dtype=torch.float64), eps=1e-6))

    def start_at_shares(self, shares: Sequence[float]) -> None:
        """Set the last biases so that a map of zeros gives the O probabilities `shares`, each at least 1e-6."""
        bias = self.out.bias
        assert bias is not None and len(bias) == len(shares) > 1
        with torch.no_grad():
            bias.copy_(torch.tensor(shares, dtype=torch.float64).clamp_min(1e-6).log())

    def compose(self) -> tuple[Tensor, Tensor]:
        """Compute the single layer that is equivalent to the three.

        Returns:
            The kernel (C, O, 4, 4) and the bias (O, 2, 2), which repeats over the image.
        """
        # Without autocast, so that the kernel has full precision even in mixed precision.
        with torch.autocast(self.out.weight.device.type, enabled=False):
            assert self.upsample1.bias is not None and self.upsample2.bias is not None and self.out.bias is not None
            last = self.out.weight[:, :, 0, 0]  # (O, m)
            inner = torch.einsum("nmyx,om->onyx", self.upsample2.weight, last)
            kernel = torch.einsum("cnYX,onyx->coYyXx", self.upsample1.weight, inner).reshape(-1, len(last), 4, 4)
            # The first layer's bias passes through the second's kernel, which gives its 2x2 positions different values.
            varying = torch.einsum("n,onyx->oyx", self.upsample1.bias, inner)
            second = torch.stack([self.upsample2.bias @ weights for weights in last])
            bias = varying + second[:, None, None] + self.out.bias[:, None, None]
        return kernel, bias

    def forward(self, fused: Tensor) -> Tensor:
        """Predict: a map (B, C, H/4, W/4) -> logits (B, O, H, W)."""
        kernel, bias = self.compose()
        logits = F.conv_transpose2d(fused, kernel, stride=4)
        return logits + bias.to(logits.dtype).repeat(1, fused.shape[2] * 2, fused.shape[3] * 2)


class Decoder(nn.Module):
    """Four stages, from stride 32 to stride 4. Each passes its map to the next."""

    def __init__(self, deepest: DeepestStage, stages: Sequence[FusionStage]) -> None:
        """Compose the decoder.

        Args:
            deepest: the stage of stride 32.
            stages: the stages of strides 16, 8, 4.
        """
        super().__init__()
        self.deepest = deepest
        self.stages = nn.ModuleList(stages)
        self.out_channels = (deepest.out_channels, *(stage.out_channels for stage in stages))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates.

        Args:
            features: the encoder's maps (2B, C, H/s, W/s) of strides s = 4, 8, 16, 32, first before, then after.

        Returns:
            Fused maps (B, C, H/s, W/s) of strides s = 32, 16, 8, 4.
        """
        fused = [self.deepest(features[-1])]
        for stage, feature in zip(self.stages, reversed(features[:-1]), strict=True):
            fused.append(stage(feature, fused[-1]))
        return fused
