"""BIT: each date is summarised by a few tokens; a transformer relates the tokens, and the pixels read them.

Shapes: B pairs, D = 32 channels, N pixels of a map, T tokens, h and w a map's height and width. Maps of 2B hold both
dates: first before, then after.

Source: Chen, Qi and Shi, "Remote Sensing Image Change Detection with Transformers", IEEE Transactions on Geoscience and
Remote Sensing, 2021.

As in the paper: 32 channels, 4 tokens per date from a softmax over the pixels, one encoder layer over the tokens of
both dates with learned positions, 8 decoder layers in which the pixels of a date read its tokens, 8 heads, and the
absolute difference of the dates.

The channels per head are inferred. 64 give the paper's 3.55 million parameters within 2%; 8 in the decoder would give
3.04 million.

Departures:
    All four maps of the encoder are projected, interpolated to stride 4 and added. A 3x3 convolution, BatchNorm and
    ReLU follow. The paper reads one map, of a ResNet-18 without its last stage, whose third stage keeps stride 8. One
    convolution to 32 channels gives its pixels, at stride 4. Here every stage is trained.
    The head replaces the classifier, which is two 3x3 convolutions at full resolution.
    Attention is computed with its matrices multiplied in another order, with the same result, see `TokenAttention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.rivals.parts import Rival, convolution, resize_to
from models.xcross import split_dates

CHANNELS = 32
TOKENS = 4  # per date
HEADS, HEAD_CHANNELS = 8, 64
DECODER_LAYERS = 8


class TokenAttention(nn.Module):
    """Multi-head attention to a few tokens.

    Queries are multiplied with the keys through a matrix (D, heads T), and the weights with the values through one of
    (heads T, D). So no map of heads x 64 channels is ever held in memory.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_CHANNELS
        self.query = nn.Linear(channels, inner, bias=False)
        self.key = nn.Linear(channels, inner, bias=False)
        self.value = nn.Linear(channels, inner, bias=False)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Let x (B, N, D) read tokens (B, T, D): (B, N, D)."""
        heads = (HEADS, HEAD_CHANNELS)
        key = self.key(tokens).unflatten(2, heads)
        value = self.value(tokens).unflatten(2, heads)
        reads = torch.einsum("bthd,hdc->bcht", key, torch.unflatten(self.query.weight, 0, heads)) * HEAD_CHANNELS**-0.5
        writes = torch.einsum("bthd,chd->bhtc", value, torch.unflatten(self.out.weight, 1, heads))
        weights = (x @ reads.flatten(2)).unflatten(2, (HEADS, -1)).softmax(3)
        out: Tensor = weights.flatten(2) @ writes.flatten(1, 2) + self.out.bias
        return out


class Layer(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = TokenAttention(channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Let x (B, N, D) read tokens (B, T, D): (B, N, D)."""
        x = x + self.attention(self.norm(x), self.norm(tokens))
        out: Tensor = x + self.mlp(x)
        return out


class BIT(Rival):
    """The bitemporal image transformer. It gives one map, of stride 4 and 32 channels."""

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        """Build the decoder, see `Rival`."""
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(own, CHANNELS, 1) for own in encoder_channels)
        self.smooth = convolution(CHANNELS, CHANNELS)
        self.to_tokens = nn.Conv2d(CHANNELS, TOKENS, 1, bias=False)
        self.position = nn.Parameter(torch.randn(1, 2 * TOKENS, CHANNELS))
        self.encoder = Layer(CHANNELS)
        self.decoder = nn.ModuleList(Layer(CHANNELS) for _ in range(DECODER_LAYERS))
        self.out_channels = (CHANNELS,)

    def tokenise(self, maps: Tensor) -> Tensor:
        """Average the pixels of a map with one set of weights per token: (2B, D, h, w) -> (2B, T, D)."""
        weights = self.to_tokens(maps).flatten(2).softmax(2)
        tokens: Tensor = weights @ maps.flatten(2).transpose(1, 2)
        return tokens

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the maps of both dates into one of stride 4, see `Rival.forward`."""
        projected = [project(x) for project, x in zip(self.project, features, strict=True)]
        total = projected[0]
        for x in projected[1:]:
            total = total + resize_to(x, total)
        maps = self.smooth(total)
        tokens = torch.cat(split_dates(self.tokenise(maps)), dim=1) + self.position
        tokens = self.encoder(tokens, tokens)
        tokens = torch.cat(torch.unflatten(tokens, 1, (2, -1)).unbind(1))
        pixels = maps.flatten(2).transpose(1, 2)
        for layer in self.decoder:
            pixels = layer(pixels, tokens)
        before, after = split_dates(torch.unflatten(pixels.transpose(1, 2), 2, maps.shape[2:]))
        return [(before - after).abs()]
