"""PRX-Change: encoder, decoder, head and, in training, refinement, composed from a small configuration.

Shapes: B pairs, I the channels of the images, 3 for RGB, H and W their height and width, O the logits per pixel, see
`NetworkConfig.outputs`. Images are float, normalised by `models.padding.normalise`.
With O = 1, a pixel is changed if sigmoid(logit) exceeds the threshold. Else channel 0 of the softmax is the probability
of unchanged, and channels 1 to O - 1 are those of the classes of change.

Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.config import RIVALS, NetworkConfig
from models.decoder import Decoder, DeepestStage, FusionStage, Head
from models.encoders import Encoder, build_encoder, encode_dates
from models.refinement import Refinement
from models.rivals.parts import Rival
from models.rivals.registry import build_rival
from models.unet import UNetDecoder
from models.xcross import XCross


class PRXChange(nn.Module):
    """Two co-registered images in, change logits out."""

    def __init__(
        self, encoder: Encoder, decoder: Decoder | UNetDecoder | Rival, head: Head, refinement: Refinement | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.refinement = refinement

    def fuse(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Compute the fused maps of all stages of the decoder.

        Args:
            before: float (B, I, H, W), normalised; H and W are multiples of 32.
            after: the same shape.

        Returns:
            Maps (B, C, H/s, W/s) of strides s = 32, 16, 8, 4; only that of stride 4 for the networks in
            `models.config.ONE_MAP`.
        """
        fused: list[Tensor] = self.decoder(encode_dates(self.encoder, before, after))
        return fused

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Predict.

        Args:
            before: float (B, I, H, W), normalised; H and W are multiples of 32.
            after: the same shape.

        Returns:
            Logits (B, O, H, W).
        """
        logits: Tensor = self.head(self.fuse(before, after)[-1])
        return logits


def build_decoder(encoder_channels: Sequence[int], cross: bool, within: bool, patch: int) -> Decoder:
    """Build PRX-Change's decoder with random weights.

    Args:
        encoder_channels: the encoder's channels at strides 4, 8, 16, 32, each a multiple of 32.
        cross: whether each stage has X-Cross.
        within: whether X-Cross attends within each date.
        patch: side of the patches of X-Cross at stride 4, see `NetworkConfig`.
    """
    widths = tuple(reversed(encoder_channels))

    def attention(stage: int) -> XCross | None:
        side = max(1, patch >> (len(widths) - 1 - stage))
        return XCross(widths[stage], side, within) if cross else None

    # Each stage's attention is built just before the stage: this order fixes the random weights of a seeded run.
    deepest = DeepestStage(widths[0], attention(0))
    stages = [FusionStage(widths[i - 1], widths[i], attention(i)) for i in range(1, len(widths))]
    return Decoder(deepest, stages)


def build_network(config: NetworkConfig) -> PRXChange:
    """Build the network with random weights, in training mode, on torch's default device."""
    encoder = build_encoder(config.backbone, config.width, config.in_channels)
    decoder: Decoder | UNetDecoder | Rival
    if config.model == "unet":
        decoder = UNetDecoder(encoder.out_channels)
    elif config.model in RIVALS:
        decoder = build_rival(config.model, encoder.out_channels)
    else:
        decoder = build_decoder(encoder.out_channels, config.cross, config.within, config.patch)
    refinement = Refinement(decoder.out_channels, config.outputs) if config.refine else None
    return PRXChange(encoder, decoder, Head(decoder.out_channels[-1], config.outputs), refinement)
