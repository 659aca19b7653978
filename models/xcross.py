"""X-Cross: cross-attention between the two dates, which treats both alike.

Shapes: B pairs, C channels, h and w the map's height and width, p the patch size, T = (h/p)(w/p) tokens. Both dates
form one batch of 2B: first before, then after. Only a learned token tells them apart.

Source: Tan et al. 2024 (doi 10.1016/j.jag.2024.104008), section X-Cross.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DROP = 0.1  # probability with which attention weights, activations of the MLP and residual paths are dropped


class StochasticDepth(nn.Module):
    """Drop a residual branch for random images of a batch in training, and scale it up for the others.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        """Return a float branch (B, ...) with a share of 1 - `p` of the images kept."""
        if not self.training or self.p == 0:
            return branch
        kept = 1 - self.p
        mask = branch.new_empty(len(branch), *(1,) * (branch.ndim - 1)).bernoulli_(kept)
        return branch * mask.div_(kept)


class CrossAttention(nn.Module):
    """Single-head attention: the queries of one date read the keys and values of the other."""

    def __init__(self, channels: int, within: bool = False) -> None:
        """Build the layer.

        Args:
            channels: C.
            within: let each date's queries read its own values instead, as a baseline.
        """
        super().__init__()
        self.within = within
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.drop = DROP

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend.

        Args:
            tokens: (2B, T, C), first before, then after.

        Returns:
            (2B, T, C). Row b holds values of image b, read by the queries of the other date.
        """
        query, key, value = self.norm(self.qkv(tokens).unflatten(2, (3, -1))).unbind(2)
        attended: Tensor = F.scaled_dot_product_attention(
            self.align_queries(query).unsqueeze(1),
            key.unsqueeze(1),
            value.unsqueeze(1),
            dropout_p=self.drop if self.training else 0.0,
        )
        return attended.squeeze(1)

    def align_queries(self, query: Tensor) -> Tensor:
        """Reorder the queries (2B, T, C) to match the keys and values that they read."""
        return query if self.within else swap_dates(query)


class Mlp(nn.Module):
    """Linear, LayerNorm, GELU, dropout, linear, LayerNorm, dropout, all of width C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.fc2 = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.drop = nn.Dropout(DROP)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform each token: (2B, T, C) -> (2B, T, C)."""
        hidden = self.drop(F.gelu(self.norm1(self.fc1(tokens))))
        out: Tensor = self.drop(self.norm2(self.fc2(hidden)))
        return out


class XCross(nn.Module):
    """One layer of cross-attention between patches of p x p positions, added to the feature map."""

    def __init__(self, channels: int, patch_size: int, within: bool = False) -> None:
        """Build the layer.

        Args:
            channels: C.
            patch_size: p, the side of a patch; one patch is one token.
            within: attend within each date instead of between the dates, as a baseline.
        """
        super().__init__()
        self.patch_size = patch_size
        self.embed = nn.Conv2d(channels, channels, patch_size, stride=patch_size, bias=False)
        self.token_before = nn.Parameter(torch.zeros(1, 1, channels))
        self.token_after = nn.Parameter(torch.zeros(1, 1, channels))
        self.norm_in = nn.LayerNorm(channels)
        self.attention = CrossAttention(channels, within)
        self.norm_out = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.drop_path = StochasticDepth(DROP)
        self.to_map = nn.Conv2d(channels, channels, 1)
        self.norm_map = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Add the output of the attention to the map of each date.

        Args:
            features: (2B, C, h, w), first before, then after; h and w are multiples of p.

        Returns:
            A map of the same shape.
        """
        patches = self.embed(features)
        before, after = split_dates(patches.flatten(2).transpose(1, 2))
        x = self.norm_in(torch.cat((before + self.token_before, after + self.token_after)))
        y = self.norm_out(x + self.drop_path(self.attention(x)))
        z = y + self.drop_path(self.mlp(y))
        # A 1x1 convolution commutes with interpolation, whose weights sum to 1. Convolving first means fewer positions.
        z = self.to_map(z.transpose(1, 2).unflatten(2, patches.shape[2:]))
        if self.patch_size > 1:
            z = F.interpolate(z, size=features.shape[2:], mode="bilinear", align_corners=True)
        out: Tensor = features + self.norm_map(z)
        return out


def split_dates(both: Tensor) -> tuple[Tensor, Tensor]:
    """Split (2B, ...), first before, then after, into two tensors (B, ...)."""
    # Not `chunk`: the number of chunks would tie an exported network to the batch size of its trace.
    before, after = torch.unflatten(both, 0, (2, -1)).unbind()
    return before, after


def swap_dates(both: Tensor) -> Tensor:
    """Exchange the halves of (2B, ...): first after, then before."""
    before, after = split_dates(both)
    return torch.cat((after, before))
