"""TinyCD: the channels of both dates are mixed in pairs, and masks made from the mixtures gate the decoder.

Shapes: B pairs, C channels of a stage, h and w its map's height and width.

Source: Codegoni, Lombardi and Ferrari, "TINYCD: A (Not So) Deep Learning Model for Change Detection", Neural Computing
and Applications, 2023 (arXiv 2207.13159, 2022).

As in the paper: the dates' channels alternate and a grouped 3x3 convolution mixes each pair of them; a per-pixel MLP
whose widths halve turns a mixture into a mask; the decoder interpolates, multiplies by the mask, and applies a
depthwise 3x3 and a 1x1 convolution. PReLU follows every convolution. A normalisation of each image and channel follows
the PReLU of the mixtures and of the decoder.

Departures:
    The encoder is ours, with all four strides, instead of the first blocks of EfficientNet-B4. Its widths set those of
    the decoder. The paper's maps have strides 2, 4 and 8, and it also mixes the images themselves. So its decoder ends
    at full resolution, with a per-pixel MLP as the classifier. Here the head upsamples from stride 4.
    The deepest mixture has GroupNorm with weights and 32 channels per group, because a map of one position has no
    variance.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.decoder import group_norm
from models.rivals.parts import Rival, interleave, resize_to
from models.xcross import split_dates


def instance_norm(channels: int) -> nn.GroupNorm:
    """Build a normalisation of each image and channel, without weights."""
    return nn.GroupNorm(channels, channels, affine=False)


class Mixing(nn.Module):
    """Mix each channel of before with the same channel of after."""

    def __init__(self, channels: int, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 3, padding=1, groups=channels)
        self.finish = nn.Sequential(nn.PReLU(), norm)

    def forward(self, features: Tensor) -> Tensor:
        """Mix the dates: (2B, C, h, w), first before, then after -> (B, C, h, w)."""
        mixed: Tensor = self.finish(self.conv(interleave(*split_dates(features))))
        return mixed


def build_mask(channels: int, hidden: Sequence[int]) -> nn.Sequential:
    """Build the mixing and attention mask block: (2B, C, h, w) -> a mask (B, 1, h, w).

    `hidden`: channels of the per-pixel MLP before the mask; in the paper 10 and 5 at the images, else C/2 and C/4.
    """
    layers: list[nn.Module] = [Mixing(channels, instance_norm(channels))]
    for outputs in (*hidden, 1):
        layers += [nn.Conv2d(channels, outputs, 1), nn.PReLU()]
        channels = outputs
    return nn.Sequential(*layers)


def build_stage(inputs: int, outputs: int) -> nn.Sequential:
    """Build a depthwise and a 1x1 convolution: (B, inputs, h, w) -> (B, outputs, h, w)."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs),
        nn.PReLU(),
        instance_norm(inputs),
        nn.Conv2d(inputs, outputs, 1),
        nn.PReLU(),
        instance_norm(outputs),
    )


class TinyCD(Rival):
    """Four stages, from stride 32 to stride 4."""

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """Build the decoder, see `Rival`."""
        super().__init__()
        widths = tuple(reversed(encoder_channels))
        self.deepest = Mixing(widths[0], group_norm(widths[0]))
        self.masks = nn.ModuleList(build_mask(width, (width // 2, width // 4)) for width in widths[1:])
        self.stages = nn.ModuleList(build_stage(widths[i - 1], widths[i]) for i in range(1, len(widths)))
        self.out_channels = widths

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates into four maps, see `Rival.forward`."""
        maps = [self.deepest(features[-1])]
        for mask, stage, feature in zip(self.masks, self.stages, reversed(features[:-1]), strict=True):
            maps.append(stage(resize_to(maps[-1], feature) * mask(feature)))
        return maps
