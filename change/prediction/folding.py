"""The network rebuilt for prediction alone: fewer operations, the same outputs to rounding.

What becomes one: a convolution and the batch norm behind it; in X-Cross the 1x1 convolution, the interpolation and the
batch norm behind them (an affine map of each channel commutes with interpolation, whose weights sum to 1); the three
linear layers of the head. Weights are kept in the type that is computed in, channels last, so that nothing is cast on
the way; means, variances and gates of the fusion stages stay in float32.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # what all share, the synchronised one too
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.decoder import Gate, Head
from models.network import PRXChange
from models.xcross import CrossAttention, XCross

PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"), ("3", "4"), ("to_map", "norm_map"))
QUERIES = 512  # whose attention weights are in memory at once


class FusedHead(nn.Module):
    """The head with its kernel composed once: a 1x1 convolution to the 4x4 block of each position."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        kernel, bias = head.composed()
        self.conv = nn.Conv2d(len(kernel), 16, 1)
        self.conv.weight.data = kernel.flatten(1).t()[:, :, None, None].contiguous()
        self.conv.bias = nn.Parameter(bias.repeat(2, 2).flatten())

    def forward(self, fused: Tensor) -> Tensor:
        """(B, C, H/4, W/4) -> logits (B, 1, H, W)."""
        return F.pixel_shuffle(self.conv(fused), 4)


class ChunkedAttention(nn.Module):
    """`CrossAttention` as matrix products over some queries at a time: on a CPU with matrix units for half precision
    `scaled_dot_product_attention` leaves them idle."""

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.qkv, self.norm, self.asking = attention.qkv, attention.norm, attention.asking

    def forward(self, tokens: Tensor) -> Tensor:
        """(2B, T, C), before first -> (2B, T, C)."""
        query, key, value = self.norm(self.qkv(tokens).unflatten(2, (3, -1))).unbind(2)
        query, key = self.asking(query) * query.shape[2] ** -0.5, key.transpose(1, 2)
        return torch.cat([torch.softmax(some @ key, dim=2) @ value for some in query.split(QUERIES, dim=1)], dim=1)


class Fused(nn.Module):
    """Two images in, logits out, as the network it is made from; in eval mode, without refinement heads."""

    def __init__(self, network: PRXChange, dtype: torch.dtype = torch.float32, chunked: bool = True) -> None:
        """`dtype`: what is computed in; `chunked`: attention in chunks where that is faster, which ties an exported
        network to its size."""
        super().__init__()
        self.network, self.dtype = deepcopy(network).eval().requires_grad_(False), dtype
        self.network.refinement = None
        for module in list(self.network.modules()):
            fold_batch_norms(module)
        self.network.add_module("head", FusedHead(network.head))
        self.network.to(dtype).to(memory_format=torch.channels_last)
        chunked = chunked and dtype != torch.float32 and next(network.parameters()).device.type == "cpu"
        for module in list(self.network.modules()):
            if isinstance(module, Gate):
                module.float()
            if isinstance(module, XCross) and chunked:
                module.add_module("attention", ChunkedAttention(module.attention))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """(B, 3, H, W) each, normalised, sides multiples of 32 -> logits float32 (B, 1, H, W)."""
        before, after = (i.to(self.dtype, memory_format=torch.channels_last) for i in (before, after))
        logits: Tensor = self.network(before, after)
        return logits.float()


def fold_batch_norms(module: nn.Module) -> None:
    """Put the batch norms that are direct children of a module into the convolutions before them."""
    children = dict(module.named_children())
    for conv_name, norm_name in PAIRS:
        conv, norm = children.get(conv_name), children.get(norm_name)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm):
            module.add_module(conv_name, fuse_conv_bn_eval(conv, norm))
            module.add_module(norm_name, nn.Identity())
