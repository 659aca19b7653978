"""BTC: the difference of the encoder's maps, decoded by UPerNet.

Shapes: B pairs, C channels of an encoder's map, D channels of the decoder, h and w a map's height and width.

Sources: Rolih, Fucka, Wolf and Cehovin Zajc, "Be the Change You Want to See: Revisiting Remote Sensing Change Detection
Practices", 2025 (arXiv 2507.03367); Xiao et al., "Unified Perceptual Parsing for Scene Understanding" (UPerNet), ECCV
2018; Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.

As in the papers: before minus after at every stride, with the sign; the deepest map is pooled to 1, 2, 3 and 6 cells
per side; the maps are added from coarse to fine, convolved, and concatenated at stride 4.

Departures:
    The encoder is ours instead of a Swin transformer.
    D is twice the encoder's channels at stride 4 instead of 512, as UPerNet is built for a ResNet-18.
    The pooled maps have GroupNorm instead of BatchNorm, which cannot train on one pair: one cell has no variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.decoder import group_norm
from models.rivals.parts import Rival, convolution, resize_to
from models.xcross import split_dates

BINS = (1, 2, 3, 6)  # cells per side of the pooled maps


def pooling_matrix(bins: int, length: int, like: Tensor) -> Tensor:
    """Return the matrix (bins, length) that averages a side of `length` positions into cells.

    Cell i covers the positions from floor(i length / bins) to ceil((i + 1) length / bins), as in
    `nn.AdaptiveAvgPool2d`, which cannot be exported with open sizes.
    """
    cell = torch.arange(bins, device=like.device)[:, None]
    place = torch.arange(length, device=like.device)
    first, last = cell * length // bins, ((cell + 1) * length + bins - 1) // bins
    inside = ((place >= first) & (place < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class PyramidPooling(nn.Module):
    """Add the surroundings to the deepest map: averages over cells of four sizes."""

    def __init__(self, channels: int, outputs: int) -> None:
        """Build the layers from C to D channels; D is a multiple of 32."""
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, outputs, 1, bias=False), group_norm(outputs), nn.ReLU()) for _ in BINS
        )
        self.mix = convolution(channels + len(BINS) * outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Pool and mix: (B, C, h, w) -> (B, D, h, w)."""
        parts = [x]
        for bins, branch in zip(BINS, self.branches, strict=True):
            rows, columns = (pooling_matrix(bins, side, x) for side in x.shape[2:])
            parts.append(resize_to(branch(rows @ x @ columns.t()), x))
        mixed: Tensor = self.mix(torch.cat(parts, dim=1))
        return mixed


class BTC(Rival):
    """UPerNet on the differences of the dates. It gives one map, of stride 4 and D channels."""

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """Build the decoder, see `Rival`."""
        super().__init__()
        channels = 2 * encoder_channels[0]
        self.pooling = PyramidPooling(encoder_channels[-1], channels)
        self.laterals = nn.ModuleList(convolution(own, channels, 1) for own in encoder_channels[:-1])
        self.smooth = nn.ModuleList(convolution(channels, channels) for _ in self.laterals)
        self.fuse = convolution(len(encoder_channels) * channels, channels)
        self.out_channels = (channels,)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates into one of stride 4, see `Rival.forward`."""
        differences = []
        for feature in features:
            before, after = split_dates(feature)
            differences.append(before - after)
        path = self.pooling(differences[-1])
        levels = [path]
        for lateral, smooth, x in zip(
            reversed(self.laterals), reversed(self.smooth), reversed(differences[:-1]), strict=True
        ):
            own = lateral(x)
            path = own + resize_to(path, own)
            levels.append(smooth(path))
        return [self.fuse(torch.cat([resize_to(level, levels[-1]) for level in levels], dim=1))]
