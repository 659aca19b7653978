"""Encoders of timm rebuilt for prediction: fixed padding, activations inside convolutions, the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from change.prediction.folding import ActivatedConv, Fused, can_activate, can_merge, fix_padding, merge_activations
from models.config import NetworkConfig
from models.encoders import build_encoder
from models.network import PRXChange, build_network
from models.padding import apply_to_any_size
from tests.models.test_parity import close
from tests.prediction.test_folding import Block, conv, norms_left, randomise
from tests.reference.reference_weights import reference_pair

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def lite_network(backbone: str = "efficientnet_lite0") -> PRXChange:
    torch.manual_seed(0)
    return randomise(build_network(NetworkConfig(backbone, cross=True))).eval()


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("backbone", LITE)
@torch.inference_mode()
def test_float32_is_exact(backbone: str) -> None:
    """Within 1e-4 of the largest logit, also for padded sides and several pairs; the network stays as it was."""
    network = lite_network(backbone)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for fused in (Fused(network), Fused(network, portable=True)):
        assert not norms_left(fused) and not count(fused, Conv2dSame)
        for shape in ((1, 128, 128), (3, 96, 160), (1, 70, 45)):
            pair = reference_pair(4, *shape)
            close(apply_to_any_size(fused, *pair), apply_to_any_size(network, *pair).numpy(), 1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@torch.inference_mode()
def test_half_precision() -> None:
    """Close to float32, and with drawn statistics, which enlarge errors, about as close as autocast."""
    pair = reference_pair(4, 2, 64, 96)
    torch.manual_seed(0)
    network = build_network(NetworkConfig("efficientnet_lite0", cross=True)).eval()
    close(Fused(network, torch.bfloat16)(*pair), network(*pair).numpy(), 0.05)
    network = lite_network()
    expected = network(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        autocast_error = (network(*pair) - expected).abs().max()
    error = (Fused(network, torch.bfloat16)(*pair) - expected).abs().max()
    assert 0 < error < 1.5 * autocast_error


@pytest.mark.parametrize("backbone", LITE)
@torch.inference_mode()
def test_fixed_padding(backbone: str) -> None:
    """The maps are those of timm's own layers, also at odd numbers of cells per side."""
    torch.manual_seed(0)
    encoder = randomise(build_encoder(backbone)).eval()
    fixed = deepcopy(encoder)
    assert count(fixed, Conv2dSame) == 5
    fix_padding(fixed)
    assert not count(fixed, Conv2dSame)
    for sides in ((32, 32), (64, 96), (160, 224)):
        images = torch.randn(2, 3, *sides)
        for ours, expected in zip(fixed(images), encoder(images), strict=True):
            close(ours, expected.numpy(), 1e-5)


@pytest.mark.parametrize(
    "layer",
    [Conv2dSame(4, 4, 3), Conv2dSame(4, 4, 2, stride=2), Conv2dSame(4, 4, 3, stride=2, dilation=2)],
    ids=["stride 1", "even kernel", "dilated"],
)
def test_other_padding_is_left_to_timm(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    fix_padding(network)
    assert network[0] is layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_no_activation_is_left(dtype: torch.dtype) -> None:
    """Every ReLU6 of Lite0 becomes part of a convolution, unless the network is to be portable.

    They follow the stem, the first block's depthwise convolution and two convolutions of each other block.
    """
    network, pair = lite_network(), reference_pair(4, 1, 64, 64)
    ours, portable = Fused(network, dtype), Fused(network, dtype, portable=True)
    assert count(ours, ActivatedConv) == count(portable, nn.ReLU6) == 1 + 1 + 2 * 15
    assert not count(ours, nn.ReLU6) and not count(portable, ActivatedConv)
    encoders = ours.network.encoder, portable.network.encoder
    images = pair[0].to(dtype)
    for merged, plain in zip(*(encoder(images) for encoder in encoders), strict=True):
        close(merged.float(), plain.float().numpy(), 1e-6)


def read_elsewhere(m: Any, x: Tensor) -> Tensor:
    y = m.other(x)
    total: Tensor = y + m.a_norm(y)
    return total


Flow = Callable[[Any, Tensor], Tensor]
CASES: dict[str, tuple[Flow, nn.Module, nn.Module, bool]] = {
    "ReLU": (lambda m, x: m.a_norm(m.other(x)), conv(), nn.ReLU(), True),
    "ReLU6": (lambda m, x: m.a_norm(m.other(x)), conv(), nn.ReLU6(inplace=True), True),
    "GELU": (lambda m, x: m.a_norm(m.other(x)), conv(), nn.GELU(), False),
    "called twice": (lambda m, x: m.a_norm(m.a_norm(x) - m.other(x)), conv(), nn.ReLU(), False),
    "read elsewhere": (read_elsewhere, conv(), nn.ReLU(), False),
    "interpolated": (
        lambda m, x: m.a_norm(F.interpolate(m.other(x), scale_factor=2.0, mode="bilinear")),
        conv(),
        nn.ReLU(),
        False,
    ),
    "reflected": (
        lambda m, x: m.a_norm(m.other(x)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_which_activations_are_merged(case: str) -> None:
    torch.manual_seed(0)
    flow, layer, activation, merged = CASES[case]
    block = Block(flow, layer, activation)
    images = 5 * torch.randn(2, 4, 8, 12)
    expected = block(images)
    merge_activations(block)
    assert isinstance(block.other, ActivatedConv) is merged
    torch.testing.assert_close(block(images), expected, rtol=1e-5, atol=1e-5)


def test_which_layers_of_timm_can_be_merged() -> None:
    norm = BatchNormAct2d(4)
    assert can_merge(conv(), norm) and can_merge(Conv2dSame(4, 4, 3, stride=2), norm)
    assert not can_merge(conv(), BatchNormAct2d(4, drop_layer=nn.Dropout)), "it drops something"
    assert not can_activate(Conv2dSame(4, 4, 3, stride=2), nn.ReLU()), "it pads by itself"
    assert not can_activate(nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()), "its padding is no number"
    assert not can_activate(conv(), None) and not can_activate(None, nn.ReLU())
