"""PRX-Change: encoder, decoder and, in training, refinement heads, put together from a small configuration.

Shapes: B pairs, H W image size. Images are float RGB, normalised with `normalise`; logits are (B, 1, H, W), a pixel
is changed where sigmoid(logit) exceeds the threshold (0.5).
Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.encoder import DEPTHS, STRIDES, ResNetEncoder, both_dates
from models.fusion import Decoder, Head
from models.refinement import Refinement, full_precision
from models.unet import UNetDecoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MODELS = ("prx", "unet")
MULTIPLE = STRIDES[-1]  # of which the network's input sides are multiples


@dataclass(frozen=True)
class NetworkConfig:
    """What the network is rebuilt from: ResNet depth (18, 34, 50, 101), X-Cross on, refinement heads on, which
    network it is ("prx", or "unet", the plain baseline, which has no X-Cross), and, to compare with, whether the blocks
    of X-Cross attend within each date. ValueError for anything else."""

    backbone: int = 18
    cross: bool = False
    refine: bool = False
    model: str = "prx"
    within: bool = False

    def __post_init__(self) -> None:
        if self.backbone not in DEPTHS:
            raise ValueError(f"backbone {self.backbone}: choose one of {', '.join(map(str, DEPTHS))}")
        if self.model not in MODELS:
            raise ValueError(f"model {self.model}: choose one of {', '.join(MODELS)}")
        if self.model == "unet" and self.cross:
            raise ValueError("the U-Net has no cross-attention: leave it out")
        if self.within and not self.cross:
            raise ValueError("attention within dates is a form of X-Cross: put that on")


class PRXChange(nn.Module):
    """Two co-registered images in, change logits out."""

    def __init__(
        self, encoder: ResNetEncoder, decoder: Decoder | UNetDecoder, head: Head, refinement: Refinement | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.refinement = refinement

    def fuse(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """(B, 3, H, W) each, sides multiples of 32 -> fused maps (B, C, H/s, W/s) of strides 32, 16, 8, 4."""
        fused: list[Tensor] = self.decoder(both_dates(self.encoder, before, after))
        return fused

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """(B, 3, H, W) each, normalised, sides multiples of 32 -> logits (B, 1, H, W)."""
        logits: Tensor = self.head(self.fuse(before, after)[-1])
        return logits


class Losses(NamedTuple):
    """Scalars: what is minimised, the loss of the logits, the mean BCE of the refined points (0 without refinement)."""

    total: Tensor
    classification: Tensor
    refinement: Tensor


class TrainingLoss(nn.Module):
    """The network and its loss in one module: `forward` is one training pass, refinement on or off."""

    def __init__(
        self, network: PRXChange, k: int = 2, beta: float = 0.75, l1: float = 5.0, l2: float = 1.0, dice: float = 0.0
    ) -> None:
        """`k`, `beta`: how points are drawn; `l1`, `l2`: weights of the two losses where refinement is on; `dice`:
        weight of the Dice loss beside the logits' BCE."""
        super().__init__()
        self.network = network
        self.k, self.beta, self.l1, self.l2, self.dice = k, beta, l1, l2, dice

    def forward(
        self, before: Tensor, after: Tensor, mask: Tensor, points: Sequence[Tensor] | None = None
    ) -> tuple[Losses, Tensor]:
        """Images (B, 3, H, W), mask (B, 1, H, W) float of 0 and 1 -> losses and logits (B, 1, H, W).

        `points`, four of (B, P, 2) in 0..1, stand in for the drawn ones.
        """
        fused = self.network.fuse(before, after)
        logits = self.network.head(fused[-1])
        classification = F.binary_cross_entropy_with_logits(full_precision(logits), mask)
        if self.dice:
            classification = classification + self.dice * dice_loss(logits, mask)
        if self.network.refinement is None:
            return Losses(classification, classification, torch.zeros_like(classification)), logits
        answers = self.network.refinement(fused, mask, self.k, self.beta, points)
        refinement = torch.stack(
            [F.binary_cross_entropy_with_logits(full_precision(answer.refined), answer.labels) for answer in answers]
        ).mean()
        return Losses(self.l1 * classification + self.l2 * refinement, classification, refinement), logits


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - Dice of probabilities and mask, over all pixels of the batch together: (B, 1, H, W) each -> a scalar, 0..1.

    It is no mean over pairs: of a batch in parts, the mean of the parts' losses is another one.
    Source: Milletari et al., "V-Net", 3DV 2016, with sums in place of squares.
    """
    probability = torch.sigmoid(full_precision(logits))
    return 1 - (2 * (probability * mask).sum() + 1) / ((probability + mask).sum() + 1)


def build_network(config: NetworkConfig) -> PRXChange:
    """Build the network with random weights, in training mode, on torch's default device."""
    encoder = ResNetEncoder(config.backbone)
    widths = encoder.out_channels
    decoder = UNetDecoder(widths) if config.model == "unet" else Decoder(widths, config.cross, config.within)
    refinement = Refinement(decoder.out_channels) if config.refine else None
    return PRXChange(encoder, decoder, Head(decoder.out_channels[-1]), refinement)


def normalise(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Uint8 RGB (B, 3, H, W), 0..255 -> float32, (x / 255 - mean) / std, on the images' device."""
    # With plain numbers: a tensor of them, made at every call, would be a copy that waits for the device.
    channels = zip(images.unbind(1), mean, std, strict=True)
    return torch.stack([(channel.float() / 255 - m) / s for channel, m, s in channels], dim=1)


def any_size(network: Callable[[Tensor, Tensor], Tensor], before: Tensor, after: Tensor) -> Tensor:
    """Apply the network to images of any size: (B, 3, H, W) normalised -> logits (B, 1, H, W).

    Pads on the right and at the bottom to multiples of 32 (reflected; replicated where a side is too short for
    that) and crops the logits.
    """
    height, width = before.shape[2:]
    both = pad_side(pad_side(torch.cat((before, after)), 3), 2)
    logits = network(*both.chunk(2))
    return logits[..., :height, :width]


def pad_side(images: Tensor, dim: int) -> Tensor:
    """Pad (N, C, H, W) at the end of `dim` (2 or 3) to the next multiple of 32."""
    extra = -images.shape[dim] % MULTIPLE
    if not extra:
        return images
    padding = (0, extra, 0, 0) if dim == 3 else (0, 0, 0, extra)
    return F.pad(images, padding, mode="reflect" if extra < images.shape[dim] else "replicate")
