"""X-Cross: cross-attention between the two dates of one stage, equal for both.

Shapes: B pairs, C channels, h w size of the feature map, p patch size, T = (h/p)(w/p) tokens. Both dates travel
as one batch of 2B, before first; only the learned token tells them apart.
Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008), section X-Cross.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

DROP = 0.1  # of attention weights, mlp activations and whole residual paths


class CrossAttention(nn.Module):
    """Each date's values, asked by the other date's queries; `within`: by its own, to compare with."""

    def __init__(self, channels: int, within: bool = False) -> None:
        super().__init__()
        self.within = within
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.drop = DROP

    def forward(self, tokens: Tensor) -> Tensor:
        """(2B, T, C), before first -> (2B, T, C): row b holds date b's values, read by the other date's queries."""
        query, key, value = self.norm(self.qkv(tokens).unflatten(2, (3, -1))).unbind(2)
        attended: Tensor = F.scaled_dot_product_attention(
            self.asking(query).unsqueeze(1),
            key.unsqueeze(1),
            value.unsqueeze(1),
            dropout_p=self.drop if self.training else 0.0,
        )
        return attended.squeeze(1)

    def asking(self, query: Tensor) -> Tensor:
        """The queries (2B, T, C) in the order in which they ask."""
        return query if self.within else swap_dates(query)


class Mlp(nn.Module):
    """Linear, LayerNorm, GELU, dropout, linear, LayerNorm, dropout; all of width C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(channels, channels), nn.LayerNorm(channels)
        self.fc2, self.norm2 = nn.Linear(channels, channels), nn.LayerNorm(channels)
        self.drop = nn.Dropout(DROP)

    def forward(self, tokens: Tensor) -> Tensor:
        """(2B, T, C) -> (2B, T, C)."""
        hidden = self.drop(F.gelu(self.norm1(self.fc1(tokens))))
        out: Tensor = self.drop(self.norm2(self.fc2(hidden)))
        return out


class XCross(nn.Module):
    """One layer, one head of cross-attention on patches of p x p positions, added to the feature map."""

    def __init__(self, channels: int, patch_size: int, within: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed = nn.Conv2d(channels, channels, patch_size, stride=patch_size, bias=False)
        self.token_before = nn.Parameter(torch.zeros(1, 1, channels))
        self.token_after = nn.Parameter(torch.zeros(1, 1, channels))
        self.norm_in = nn.LayerNorm(channels)
        self.attention = CrossAttention(channels, within)
        self.norm_out = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.drop_path = StochasticDepth(DROP, mode="row")
        self.to_map = nn.Conv2d(channels, channels, 1)
        self.norm_map = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(2B, C, h, w), before first, h and w multiples of p -> the same shape."""
        patches = self.embed(features)
        before, after = split_dates(patches.flatten(2).transpose(1, 2))
        x = self.norm_in(torch.cat((before + self.token_before, after + self.token_after)))
        y = self.norm_out(x + self.drop_path(self.attention(x)))
        z = y + self.drop_path(self.mlp(y))
        # A 1x1 convolution commutes with interpolation, whose weights sum to 1: convolve the few positions first.
        z = self.to_map(z.transpose(1, 2).unflatten(2, patches.shape[2:]))
        if self.patch_size > 1:
            z = F.interpolate(z, size=features.shape[2:], mode="bilinear", align_corners=True)
        out: Tensor = features + self.norm_map(z)
        return out


def split_dates(both: Tensor) -> tuple[Tensor, Tensor]:
    """(2B, ...) before first -> before and after, (B, ...) each."""
    # Not `chunk`: the number of chunks would tie an exported network to the batch size it was traced with.
    before, after = torch.unflatten(both, 0, (2, -1)).unbind()
    return before, after


def swap_dates(both: Tensor) -> Tensor:
    """(2B, ...) before first -> (2B, ...) after first."""
    before, after = split_dates(both)
    return torch.cat((after, before))
