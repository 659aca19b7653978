"""The network rebuilt for prediction: fewer operations, the same outputs up to rounding.

Three groups of layers are merged: a convolution and the batch norm that reads it; in X-Cross the 1x1 convolution and
the batch norm behind the interpolation; and the three linear layers of the head. Convolutions of timm that compute
their padding at every call get a fixed one. On a CPU, a ReLU that reads a convolution becomes part of it. Weights are
stored in the dtype of the computation, in channels-last format, so that no call casts them. In half precision, the
means, variances and gates of the fusion stages stay in float32.
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
# Activations that oneDNN applies as part of a convolution, and their names and values there.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
TRACING = Lock()  # torch.fx patches nn.Module during a trace, so there must be one at a time

log = logging.getLogger(__name__)


class FusedHead(nn.Module):
    """The head with its kernel computed once: a 1x1 convolution to the 4x4 block of each position."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        kernel, bias = head.compose()
        self.conv = nn.Conv2d(len(kernel), 16 * len(bias), 1, device="meta")  # draws no random weights
        self.conv.weight = nn.Parameter(kernel.detach().flatten(1).t()[:, :, None, None].contiguous())
        self.conv.bias = nn.Parameter(bias.repeat(1, 2, 2).flatten())

    def forward(self, fused: Tensor) -> Tensor:
        """Predict: a map (B, C, H/4, W/4) -> logits (B, O, H, W), with O as in `NetworkConfig.outputs`."""
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


def onednn_supports(dtype: torch.dtype) -> bool:
    """Return whether oneDNN is available and computes convolutions in this dtype on this machine's CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


class ActivatedConv(nn.Module):
    """A convolution and its activation as one operation of oneDNN, on a CPU.

    The activation by itself would read and write the whole map once more. A layer of a depthwise encoder spends more
    time on its map than on arithmetic, so this counts there.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.name, self.values = ACTIVATIONS[type(activation)]

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve and activate: (N, C, h, w) -> (N, C', h', w')."""
        conv = self.conv
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps,
            conv.weight,
            conv.bias,
            conv.padding,
            conv.stride,
            conv.dilation,
            conv.groups,
            self.name,
            self.values,
            "",
        )
        return out


class Fused(nn.Module):
    """A copy of a network for prediction: in eval mode, without refinement heads."""

    def __init__(self, network: PRXChange, dtype: torch.dtype = torch.float32, portable: bool = False) -> None:
        """Copy and rebuild a network.

        Args:
            network: the network, in any mode; it is not changed.
            dtype: dtype of the computation.
            portable: leave out what ties an exported network to its input size (attention in chunks) or to this
                machine's libraries (activations as part of convolutions).
        """
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.dtype = dtype
        self.network.refinement = None
        fold_batch_norms(self.network)
        fix_padding(self.network)
        self.network.add_module("head", FusedHead(network.head))
        self.network.to(dtype).to(memory_format=torch.channels_last)
        on_cpu = next(network.parameters()).device.type == "cpu" and not portable
        if on_cpu and onednn_supports(dtype):
            merge_activations(self.network)
        for module in list(self.network.modules()):
            if isinstance(module, Gate):
                module.float()
            if isinstance(module, XCross) and on_cpu and dtype != torch.float32:
                module.add_module("attention", ChunkedAttention(module.attention))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Predict.

        Args:
            before: float (B, C, H, W), normalised; H and W are multiples of 32.
            after: the same shape.

        Returns:
            Logits, float32 (B, O, H, W), with O as in `NetworkConfig.outputs`.
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
    """Merge batch norms into the convolutions that they read.

    What is left takes their place: `nn.Identity`, or the activation of timm's `BatchNormAct2d`.

    The network must be in eval mode. Batch norms that are not certain to give the same outputs stay as they are, see
    `connected_pairs`. An affine map of each channel commutes with interpolation, because its weights sum to 1.
    """
    for module, conv_name, norm_name in connected_pairs(network, can_merge, through_interpolation=True):
        conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS)
        module.add_module(conv_name, fuse_conv_bn_eval(conv, norm))
        module.add_module(norm_name, norm.get_submodule("act") if is_of_timm(norm, "BatchNormAct2d") else nn.Identity())


def merge_activations(network: nn.Module) -> None:
    """Replace convolutions by `ActivatedConv` if nothing but an activation reads them, see `connected_pairs`."""
    for module, conv_name, activation_name in connected_pairs(network, can_activate):
        conv, activation = module.get_submodule(conv_name), module.get_submodule(activation_name)
        assert isinstance(conv, nn.Conv2d)
        module.add_module(conv_name, ActivatedConv(conv, activation))
        module.add_module(activation_name, nn.Identity())


def fix_padding(network: nn.Module) -> None:
    """Replace convolutions of stride 2 with TensorFlow's padding, `Conv2dSame`, by plain ones with the same outputs.

    The padding depends on the size of the map, so timm pads a copy of the map at every call. In a network whose input
    has sides that are multiples of 32, the map has even sides, and a kernel of odd size k needs (k - 2) // 2 zeros on
    the left and one more on the right. With a row and a column of zeros in front, it needs k // 2 on both sides.
    """
    for module in list(network.modules()):
        for name, conv in list(module.named_children()):
            if not isinstance(conv, nn.Conv2d) or not is_of_timm(conv, "Conv2dSame"):
                continue
            if conv.stride != (2, 2) or conv.dilation != (1, 1):
                continue
            height, width = conv.kernel_size
            if height % 2 == 0 or width % 2 == 0:
                continue
            plain = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                (height + 1, width + 1),
                stride=2,
                padding=(height // 2, width // 2),
                groups=conv.groups,
                device="meta",  # draws no random weights
            )
            plain.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 0, 1, 0)))
            plain.bias = conv.bias
            module.add_module(name, plain)


def connected_pairs(
    network: nn.Module,
    matches: Callable[[nn.Module | None, nn.Module | None], bool],
    through_interpolation: bool = False,
) -> list[tuple[nn.Module, str, str]]:
    """Find pairs of layers in a network of which the second reads the first and nothing else does.

    The data flow in the forward of each module decides, not the names. Both layers are called once, and belong to no
    other module, which may use them in another way.

    Args:
        network: a network in eval mode.
        matches: tells whether two layers are of the wanted kinds.
        through_interpolation: whether interpolations may stand between the layers.

    Returns:
        The module and the names of its two children for each pair.
    """
    owners = Counter(id(part) for module in network.modules() for part in module.children())
    found: list[tuple[nn.Module, str, str]] = []
    for module in network.modules():
        parts = {name: part for name, part in module.named_children() if owners[id(part)] == 1}
        if not any(matches(one, other) for one in parts.values() for other in parts.values()):
            continue
        nodes = trace(module)
        calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
        for node in nodes:
            source = source_of(node, through_interpolation)
            if node.op != "call_module" or source is None or source.op != "call_module":
                continue
            first, second = str(source.target), str(node.target)
            if calls[first] == calls[second] == 1 and matches(parts.get(first), parts.get(second)):
                found.append((module, first, second))
    return found


def trace(module: nn.Module) -> list[fx.Node]:
    """Return the operations of a module's forward; none if it cannot be traced, e.g. because it branches on values."""
    try:
        with TRACING:
            return list(OwnForward().trace(module).nodes)
    except Exception as error:  # torch.fx lets through whatever the forward raises when it gets no real tensors
        log.debug("layers of %s are not merged: %s", type(module).__name__, error)
        return []


def source_of(node: fx.Node, through_interpolation: bool) -> fx.Node | None:
    """Return the node whose output `node` reads, directly or, if that is allowed, through interpolations.

    Returns None if there is no such node, or if its output or an interpolated one is also read elsewhere.
    """
    while True:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or list(source.users) != [node]:
            return None
        if source.target is not F.interpolate or not through_interpolation:
            return source
        node = source


def can_merge(conv: nn.Module | None, norm: nn.Module | None) -> bool:
    """Return whether these are a convolution and a batch norm of the same width that has running statistics.

    Other subclasses than timm's do not count, because they may do more, such as apply an activation.
    """
    with_activation = is_of_timm(norm, "BatchNormAct2d")
    return (
        isinstance(conv, nn.Conv2d)
        and (type(conv) is nn.Conv2d or is_of_timm(conv, "Conv2dSame"))
        and isinstance(norm, NORMS)
        and (type(norm) in NORMS or with_activation)
        and norm.num_features == conv.out_channels
        and norm.running_mean is not None
        and not (with_activation and type(norm.get_submodule("drop")) is not nn.Identity)
    )


def is_of_timm(layer: nn.Module | None, name: str) -> bool:
    """Return whether a layer is of the class `name` of timm, which is not imported, because that takes seconds."""
    kind = type(layer)
    return kind.__name__ == name and kind.__module__.startswith("timm.")


def can_activate(conv: nn.Module | None, activation: nn.Module | None) -> bool:
    """Return whether these are a convolution padded with zeros and an activation that can be a part of it."""
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and type(activation) in ACTIVATIONS
    )
