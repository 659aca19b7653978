"""FC-Siam-conc and FC-Siam-diff: a U-Net whose skip connections concatenate the dates, or take their difference.

Shapes: B pairs, C channels of the stage, h and w its map's height and width.

Source: Daudt, Le Saux and Boulch, "Fully Convolutional Siamese Networks for Change Detection", ICIP 2018.

As in the paper: transposed 3x3 convolutions upsample; three 3x3 convolutions in each of the two deepest stages and two
in the next; the last one of a stage reduces the channels to those of the next finer stage.

Departures:
    The encoder is ours, at strides 4 to 32 instead of 1 to 8, and the head replaces the last convolution.
    The deepest stage fuses both dates like every other stage. The paper pools its deepest map once more, and its
    decoder starts there.
    There is no dropout, so that all networks are trained by the same recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.rivals.parts import Rival, convolution
from models.xcross import split_dates

CONVOLUTIONS = (3, 3, 2, 1)  # per stage, deepest first; in the paper, the classifier is the second of the last stage


def build_stage(inputs: int, channels: int, outputs: int, number: int) -> nn.Sequential:
    """Build `number` convolutions: (B, inputs, h, w) -> (B, outputs, h, w), with `channels` between them."""
    widths = [inputs, *[channels] * (number - 1), outputs]
    return nn.Sequential(*(convolution(widths[i], widths[i + 1]) for i in range(number)))


class FCSiamDecoder(Rival):
    """Four stages, from stride 32 to stride 4; subclasses say how the skip connections fuse the dates."""

    skips: int  # the channels of the fused dates, as a multiple of C

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """Build the decoder, see `Rival`."""
        super().__init__()
        widths = tuple(reversed(encoder_channels))
        self.out_channels = (*widths[1:], widths[-1])
        self.upsamples = nn.ModuleList(
            nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1) for width in widths[1:]
        )
        self.stages = nn.ModuleList()
        for i, (width, outputs) in enumerate(zip(widths, self.out_channels, strict=True)):
            coarse = width if i else 0
            self.stages.append(build_stage(self.skips * width + coarse, width, outputs, CONVOLUTIONS[i]))

    def fuse(self, features: Tensor) -> Tensor:
        """Fuse the dates of a skip connection: (2B, C, h, w) -> (B, `skips` C, h, w)."""
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates into four maps, see `Rival.forward`."""
        maps = [self.stages[0](self.fuse(features[-1]))]
        for upsample, stage, feature in zip(self.upsamples, self.stages[1:], reversed(features[:-1]), strict=True):
            maps.append(stage(torch.cat((upsample(maps[-1]), self.fuse(feature)), dim=1)))
        return maps


class FCSiamConc(FCSiamDecoder):
    """FC-Siam-conc: the skip connections concatenate both dates."""

    skips = 2

    def fuse(self, features: Tensor) -> Tensor:
        """Concatenate the dates: (2B, C, h, w) -> (B, 2C, h, w)."""
        return torch.cat(split_dates(features), dim=1)


class FCSiamDiff(FCSiamDecoder):
    """FC-Siam-diff: the skip connections pass on the absolute difference, which is the same for exchanged dates."""

    skips = 1

    def fuse(self, features: Tensor) -> Tensor:
        """Subtract the dates: (2B, C, h, w) -> (B, C, h, w)."""
        before, after = split_dates(features)
        return (before - after).abs()
