"""PRX-Change: encoder, decoder and, in training, refinement heads, put together from a small configuration.

Shapes: B pairs, H W image size. Images are float RGB, normalised with `normalise`; logits are (B, 1, H, W), a pixel
is changed where sigmoid(logit) exceeds the threshold (0.5).
Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from models.decoder import Decoder, Head
from models.encoders import DEPTHS, ResNetEncoder, both_dates
from models.refinement import Refinement
from models.unet import UNetDecoder

MODELS = ("prx", "unet")


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


def build_network(config: NetworkConfig) -> PRXChange:
    """Build the network with random weights, in training mode, on torch's default device."""
    encoder = ResNetEncoder(config.backbone)
    widths = encoder.out_channels
    decoder = UNetDecoder(widths) if config.model == "unet" else Decoder(widths, config.cross, config.within)
    refinement = Refinement(decoder.out_channels) if config.refine else None
    return PRXChange(encoder, decoder, Head(decoder.out_channels[-1]), refinement)
