"""The network rebuilt for prediction: fewer operations, the same outputs up to rounding.

Three groups of layers are merged: a convolution and the batch norm that reads it; in X-Cross the 1x1 convolution and
the batch norm behind the interpolation; and the three linear layers of the head. Weights are stored in the dtype of the
computation, in channels-last format, so that no call casts them. In half precision, the means, variances and
gates of the fusion stages stay in float32.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.decoder import Gate, Head
from models.network import PRXChange
from models.xcross import CrossAttention, XCross

QUERIES = 512  # number of queries whose attention weights are in memory at once

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
TRACING = Lock()  # torch.fx patches nn.Module during a trace, so there must be one at a time

log = logging.getLogger(__name__)


class FusedHead(nn.Module):
    """The head with its kernel computed once: a 1x1 convolution to the 4x4 block of each position."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        kernel, bias = head.compose()
        self.conv = nn.Conv2d(len(kernel), 16, 1, device="meta")  # draws no random weights
        self.conv.weight = nn.Parameter(kernel.detach().flatten(1).t()[:, :, None, None].contiguous())
        self.conv.bias = nn.Parameter(bias.repeat(2, 2).flatten())

    def forward(self, fused: Tensor) -> Tensor:
        """Predict: a map (B, C, H/4, W/4) -> logits (B, 1, H, W)."""
        return F.pixel_shuffle(self.conv(fused), 4)


class ChunkedAttention(nn.Module):
    """`CrossAttention` as matrix products over a few queries at a time.

    On a CPU with matrix units for half precision, `scaled_dot_product_attention` does not use these units.
    """

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.qkv = attention.qkv
        self.norm = attention.norm
        self.align_queries = attention.align_queries

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend, as `CrossAttention.forward` does in eval mode: (2B, T, C) -> (2B, T, C)."""
        query, key, value = self.norm(self.qkv(tokens).unflatten(2, (3, -1))).unbind(2)
        query = self.align_queries(query) * query.shape[2] ** -0.5
        key = key.transpose(1, 2)
        return torch.cat([torch.softmax(some @ key, dim=2) @ value for some in query.split(QUERIES, dim=1)], dim=1)


class Fused(nn.Module):
    """A copy of a network for prediction: in eval mode, without refinement heads."""

    def __init__(self, network: PRXChange, dtype: torch.dtype = torch.float32, chunked: bool = True) -> None:
        """Copy and rebuild a network.

        Args:
            network: the network, in any mode; it is not changed.
            dtype: dtype of the computation.
            chunked: attend in chunks if that is faster. It ties an exported network to its input size.
        """
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.dtype = dtype
        self.network.refinement = None
        fold_batch_norms(self.network)
        self.network.add_module("head", FusedHead(network.head))
        self.network.to(dtype).to(memory_format=torch.channels_last)
        chunked = chunked and dtype != torch.float32 and next(network.parameters()).device.type == "cpu"
        for module in list(self.network.modules()):
            if isinstance(module, Gate):
                module.float()
            if isinstance(module, XCross) and chunked:
                module.add_module("attention", ChunkedAttention(module.attention))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Predict.

        Args:
            before: float (B, 3, H, W), normalised; H and W are multiples of 32.
            after: the same shape.

        Returns:
            Logits, float32 (B, 1, H, W).
        """
        before = before.to(self.dtype, memory_format=torch.channels_last)
        after = after.to(self.dtype, memory_format=torch.channels_last)
        logits: Tensor = self.network(before, after)
        return logits.float()


class OwnForward(fx.Tracer):
    """A tracer for the forward of one module. Its submodules become single calls in the graph and are not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return True: no submodule is traced."""
        return True

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call. While a trace runs, torch.fx sends the calls of other threads here too; these are executed."""
        if get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def fold_batch_norms(network: nn.Module) -> None:
    """Merge batch norms into the convolutions that they read, and put `nn.Identity` in their place.

    The network must be in eval mode. Batch norms that are not certain to give the same outputs stay as they are, see
    `foldable_pairs`.
    """
    owners = Counter(id(part) for module in network.modules() for part in module.children())
    for module in list(network.modules()):
        parts = dict(module.named_children())
        for conv_name, norm_name in foldable_pairs(module):
            conv, norm = parts[conv_name], parts[norm_name]
            if owners[id(conv)] > 1 or owners[id(norm)] > 1:  # another owner may use it in another way
                continue
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
            module.add_module(conv_name, fuse_conv_bn_eval(conv, norm))
            module.add_module(norm_name, nn.Identity())


def foldable_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Find the convolutions and batch norms among a module's children that can be merged.

    The data flow in the module's forward decides, not the names. A pair can be merged if the batch norm reads the
    convolution, directly or through an interpolation, nothing else reads either of these, both are called once, and
    their channels agree. An affine map of each channel commutes with interpolation, because its weights sum to 1.

    Args:
        module: a module in eval mode.

    Returns:
        The names of the convolution and of the batch norm for each pair. The list is empty if the forward cannot be
        traced, for example because it branches on values.
    """
    parts = dict(module.named_children())
    if not any(type(part) in NORMS for part in parts.values()):
        return []
    try:
        with TRACING:
            nodes = list(OwnForward().trace(module).nodes)
    except Exception as error:  # torch.fx lets through whatever the forward raises when it gets no real tensors
        log.debug("batch norms of %s are not folded: %s", type(module).__name__, error)
        return []
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    pairs: list[tuple[str, str]] = []
    for node in nodes:
        source = source_of(node)
        if node.op != "call_module" or source is None or source.op != "call_module":
            continue
        conv_name, norm_name = str(source.target), str(node.target)
        once = calls[conv_name] == calls[norm_name] == 1
        if once and can_merge(parts.get(conv_name), parts.get(norm_name)):
            pairs.append((conv_name, norm_name))
    return pairs


def source_of(node: fx.Node) -> fx.Node | None:
    """Return the node whose output `node` reads, directly or through interpolations.

    Returns None if there is no such node, or if its output or an interpolated one is also read elsewhere.
    """
    while True:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or list(source.users) != [node]:
            return None
        if source.target is not F.interpolate:
            return source
        node = source


def can_merge(conv: nn.Module | None, norm: nn.Module | None) -> bool:
    """Return whether these are a convolution and a batch norm of the same width that has running statistics.

    Subclasses do not count, because they may do more, such as apply an activation.
    """
    return (
        type(conv) is nn.Conv2d
        and type(norm) in NORMS
        and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        and norm.num_features == conv.out_channels
        and norm.running_mean is not None
    )
