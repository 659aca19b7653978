"""The rival decoders: maps, sizes, gradients, batches of one, exchanged dates, folding, compile, ONNX, checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion
from torchvision.models import efficientnet_b4

from change.checkpoint import Checkpoint, load_checkpoint, network_for_prediction, pass_name
from change.common.errors import UserError
from change.options.train import NetworkOptions
from change.prediction.folding import Fused, fold_batch_norms
from change.prediction.onnx_file import OLDEST, AnySize, pairs_of_sizes, write_onnx
from models.config import NORMS_OVER_PAIRS, ONE_MAP, RIVALS, NetworkConfig
from models.losses import TrainingLoss
from models.network import PRXChange, build_network
from models.padding import apply_to_any_size
from models.rivals.bit import TokenAttention
from models.rivals.btc import BINS, pooling_matrix
from models.rivals.changer import exchange, warp
from models.rivals.registry import BUILDERS
from models.rivals.snunet import NestedBlock, SNUNet
from models.rivals.tinycd import Mixing, build_mask, build_stage, instance_norm
from tests.conftest import draw_pair
from tests.models.test_parity import close
from tests.reference.reference_weights import reference_pair

SYMMETRIC = ("fc_siam_diff",)  # exchanging the dates does not change their output
NOT_FOLDED = {"snunet": 6}  # batch norms that stay, because something else reads the convolution too

# The true gradient of these is zero: biases that cancel in a difference of the dates or that a batch norm removes, and
# the slope of a PReLU whose input is nowhere negative.
CANCELLED = {
    "fc_siam_diff": re.compile(r"encoder\.project\.\d\.bias"),
    "btc": re.compile(r"encoder\.project\.\d\.bias"),
    "changer": re.compile(r"encoder\.project\.\d\.bias"),
    "bit": re.compile(r"decoder\.decoder\.7\.mlp\.3\.bias"),
    "tinycd": re.compile(r"decoder\.masks\.\d\.6\.weight"),
}

rivals = pytest.mark.parametrize("name", RIVALS)


def build(name: str, refine: bool = False) -> PRXChange:
    """Build a rival with a small encoder, in training mode; its batch norms have weights and statistics."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig("resnet18", model=name, width=32, refine=refine))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.7, 1.4)
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


def random_mask(batch: int, height: int, width: int) -> Tensor:
    return (torch.from_numpy(np.random.RandomState(3).random_sample((batch, 1, height, width))) > 0.5).float()


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def test_every_rival_has_a_builder() -> None:
    assert tuple(BUILDERS) == RIVALS
    assert set(ONE_MAP) <= set(RIVALS)


@rivals
def test_maps(name: str) -> None:
    """Maps of strides 32, 16, 8, 4, or only that of stride 4, with the promised channels."""
    with torch.device("meta"):
        network = build_network(NetworkConfig("efficientnet_lite0", model=name))
        maps = network.fuse(*torch.empty(2, 2, 3, 64, 96))
    strides = (4,) if name in ONE_MAP else (32, 16, 8, 4)
    channels = network.decoder.out_channels
    assert [m.shape for m in maps] == [(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]


@rivals
@torch.inference_mode()
def test_odd_sizes_and_folding(name: str) -> None:
    """Images of any size work, also of one tile of 32, and the network for prediction gives the same."""
    network = build(name)
    fused = Fused(network)
    network.eval()
    for shape in ((1, 70, 45), (2, 32, 32)):
        pair = reference_pair(1, *shape)
        logits = apply_to_any_size(network, *pair)
        assert logits.shape == (shape[0], 1, *shape[1:]) and logits.isfinite().all() and logits.std() > 1e-3
        close(apply_to_any_size(fused, *pair), logits.numpy(), 1e-4)


@rivals
def test_batch_norms_are_folded(name: str) -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig("efficientnet_lite0", model=name)).eval()
    fold_batch_norms(network)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == NOT_FOLDED.get(name, 0)


@rivals
@torch.inference_mode()
def test_half_precision(name: str) -> None:
    network, pair = build(name).eval(), reference_pair(1, 1, 64, 96)
    expected = network(*pair)
    close(Fused(network, torch.bfloat16)(*pair), expected.numpy(), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(network(*pair).float(), expected.numpy(), 0.1)


@rivals
def test_a_training_step(name: str) -> None:
    """A batch of one pair gives a gradient for every parameter, and a few steps reduce the loss."""
    network = build(name, refine=name not in ONE_MAP)
    training = TrainingLoss(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
    pair, mask = reference_pair(1, 1, 64, 96), random_mask(1, 64, 96)
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        losses, _ = training(*pair, mask)
        losses.total.backward()
        norms = {key: -1.0 if p.grad is None else float(p.grad.norm()) for key, p in network.named_parameters()}
        cancelled = {key for key in norms if name in CANCELLED and CANCELLED[name].fullmatch(key)}
        assert all(norms[key] >= 0 for key in cancelled) and len(cancelled) in (0, 1, 3, 4)
        assert {key: norm for key, norm in norms.items() if not norm > 1e-7 and key not in cancelled} == {}
        optimizer.step()
        found.append(float(losses.classification.detach()))
    assert found[-1] < found[0]


@rivals
def test_one_pair_of_the_smallest_crop(name: str) -> None:
    """It is refused before training for exactly the networks that fail."""
    training, pair = TrainingLoss(build(name)), reference_pair(1, 1, 32, 32)
    if name in NORMS_OVER_PAIRS:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            training(*pair, random_mask(1, 32, 32))
    else:
        losses, _ = training(*pair, random_mask(1, 32, 32))
        assert losses.total.isfinite()


@rivals
@torch.inference_mode()
def test_exchanged_dates(name: str) -> None:
    """The output stays for the networks whose paper makes both dates equal; every network reads both dates."""
    network = build(name).eval()
    before, after = reference_pair(1, 2, 64, 96)
    logits, exchanged = network(before, after), network(after, before)
    if name in SYMMETRIC:
        close(exchanged, logits.numpy(), 1e-5)
    else:
        assert (exchanged - logits).abs().max() > 1e-3
    assert min(float((network(one, one) - logits).abs().max()) for one in (before, after)) > 1e-3
    # The pairs of a batch are independent.
    close(network(before[1:], after[1:]), logits[1:].numpy(), 1e-4)


@rivals
def test_checkpoint(name: str, tmp_path: Path) -> None:
    network = build(name).eval()
    Checkpoint(NetworkConfig("resnet18", model=name, width=32), network.state_dict()).save(tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth")
    assert loaded.config.model == pass_name(loaded.config) == name
    pair = reference_pair(1, 1, 32, 64)
    with torch.inference_mode():
        assert torch.equal(network_for_prediction(loaded)[0](*pair), network(*pair))


@rivals
def test_options(name: str) -> None:
    """Cross-attention is refused, and so is refinement of a single map."""
    assert NetworkOptions(model=name, width=96).config() == NetworkConfig(model=name, width=96)
    with pytest.raises(UserError, match=f"--model {name} has no cross-attention: leave out --cross"):
        NetworkOptions(model=name, cross=True)
    with pytest.raises(ValueError, match=f"model {name} has no cross-attention: leave it out"):
        NetworkConfig(model=name, cross=True)
    if name not in ONE_MAP:
        assert pass_name(NetworkOptions(model=name, refine=True).config()) == f"{name}+refine"
        return
    with pytest.raises(UserError, match=f"--model {name} has no maps of several strides to refine: leave out --refine"):
        NetworkOptions(model=name, refine=True)
    with pytest.raises(ValueError, match=f"model {name} has no maps of several strides to refine"):
        NetworkConfig(model=name, refine=True)


@pytest.mark.slow
@rivals
@torch.no_grad()
def test_compile(name: str) -> None:
    network, pair = build(name).eval(), reference_pair(1, 1, 64, 96)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    close(compiled(*pair), network(*pair).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fc_siam_conc", *(pytest.param(n, marks=pytest.mark.rare) for n in RIVALS[1:])])
def test_onnx(name: str, tmp_path: Path) -> None:
    """The file that `export` writes gives PyTorch's probabilities for any batch size and for odd image sizes."""
    if TorchVersion(torch.__version__) < OLDEST:
        pytest.skip(f"torch {torch.__version__} cannot export to ONNX")
    network = build(name)
    checkpoint = Checkpoint(NetworkConfig("resnet18", model=name, width=32), network.state_dict())
    cases = pairs_of_sizes(draw_pair(np.random.default_rng(0), 64, 64)[:2])
    module = AnySize(Fused(network, portable=True), checkpoint).eval()
    write_onnx(module, cases, tmp_path / "net.onnx", tolerance=1e-4, metadata={})
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for shape in ((1, 75, 33), (2, 9, 50), (3, 64, 96)):
        pairs = [draw_pair(np.random.default_rng(seed), 96, 96)[:2] for seed in range(shape[0])]
        before, after = (np.stack([pair[date] for pair in pairs]).transpose(0, 3, 1, 2) for date in (0, 1))
        inputs = {"before": before[..., : shape[1], : shape[2]], "after": after[..., : shape[1], : shape[2]]}
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(images.copy()) for images in inputs.values())).numpy()
        found = session.run(None, inputs)[0]
        assert found.shape == (shape[0], 1, *shape[1:]) and np.abs(found - expected).max() <= 1e-4


# --- parameters: the papers' counts ---------------------------------------------------------------------------------


def test_fc_siam_has_the_parameters_of_the_paper() -> None:
    """1.546 and 1.350 million, with the paper's encoder, its deepest upsampling and its classifier added by hand."""
    widths = (16, 32, 64, 128)
    sides = [(3, 16, 2), (16, 32, 2), (32, 64, 3), (64, 128, 3)]  # inputs, channels, convolutions
    encoder = sum(9 * (i * c + (n - 1) * c * c) for i, c, n in sides)
    deepest = 2 * 9 * 128 * 128  # upsampling of the pooled map, and the convolution that reads it
    # The classifier is a 3x3 convolution to two classes behind a first one, which is the only one of our last stage.
    classifier = 9 * 16 * 2
    for name, expected in (("fc_siam_conc", 1.546), ("fc_siam_diff", 1.350)):
        total = millions(BUILDERS[name](widths)) + (encoder + deepest + classifier) / 1e6
        assert total == pytest.approx(expected, rel=0.01)


def test_changer_has_the_parameters_of_the_paper() -> None:
    """11.39 million with ResNet-18, in all."""
    with torch.device("meta"):
        network = build_network(NetworkConfig("resnet18", model="changer"))
    assert millions(network.encoder, network.decoder) == pytest.approx(11.39, rel=0.01)


def test_bit_has_the_parameters_of_the_paper() -> None:
    """3.55 million with a ResNet-18 without its last stage, a 3x3 convolution to 32 channels, and its classifier."""
    with torch.device("meta"):
        network = build_network(NetworkConfig("resnet18", model="bit"))
    encoder, decoder = network.encoder, network.decoder
    first = millions(encoder) - millions(encoder.get_submodule("layer4"))
    transformer = millions(decoder) - millions(decoder.get_submodule("project"), decoder.get_submodule("smooth"))
    convolutions = 9 * 256 * 32 + 9 * 32 * 32 + 9 * 32 * 2  # to 32 channels, and the two of the classifier
    assert first + transformer + convolutions / 1e6 == pytest.approx(3.55, rel=0.02)


def test_tinycd_has_the_parameters_of_the_paper() -> None:
    """0.29 million with the paper's encoder and widths, masks at strides 1, 2 and 4, and its classifier added."""
    with torch.device("meta"):
        encoder = efficientnet_b4().features[:4]  # 24, 32 and 56 channels at strides 2, 4 and 8
        masks = [build_mask(3, (10, 5)), build_mask(24, (12, 6)), build_mask(32, (16, 8))]
        deepest = Mixing(56, instance_norm(56))
        stages = [build_stage(inputs, outputs) for inputs, outputs in ((56, 64), (64, 64), (64, 32))]
    classifier = 32 * 16 + 16 * 8 + 8  # a per-pixel MLP
    total = millions(encoder, *masks, deepest, *stages) + classifier / 1e6
    assert total == pytest.approx(0.29, rel=0.02)


def test_snunet_has_the_parameters_of_the_paper() -> None:
    """12.03 million with 32 channels, five levels and its own encoder of the same blocks."""
    widths = (32, 64, 128, 256, 512)
    encoder = [NestedBlock(inputs, own) for inputs, own in zip((3, *widths[:-1]), widths, strict=True)]
    assert millions(SNUNet(widths), *encoder) == pytest.approx(12.03, rel=0.01)


# --- parts that are computed in another way -------------------------------------------------------------------------


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("length", [1, 2, 5, 6, 13])
def test_pooling_is_torchs(bins: int, length: int) -> None:
    row = torch.rand(2, 3, 1, length)
    found = row @ pooling_matrix(bins, length, row).t()
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(row, (1, bins)))


def test_attention_to_tokens_is_torchs() -> None:
    torch.manual_seed(0)
    layer, x, tokens = TokenAttention(32), torch.randn(2, 20, 32), torch.randn(2, 4, 32)
    parts = (layer.query(x), layer.key(tokens), layer.value(tokens))
    query, key, value = (part.unflatten(2, (8, 64)).transpose(1, 2) for part in parts)
    attended = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(layer(x, tokens), layer.out(attended.transpose(1, 2).flatten(2)))


def test_warp() -> None:
    """A flow of whole pixels moves the map; outside of it are zeros. Half a pixel is the mean of two."""
    maps = torch.rand(1, 2, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    torch.testing.assert_close(warp(maps, flow), maps)
    flow[:, 0], flow[:, 1] = 2, -1
    expected = torch.zeros_like(maps)
    expected[:, :, 1:, :3] = maps[:, :, :3, 2:]
    torch.testing.assert_close(warp(maps, flow), expected)
    flow[:, 0], flow[:, 1] = 0.5, 0
    torch.testing.assert_close(warp(maps, flow)[..., :4], (maps[..., :4] + maps[..., 1:]) / 2)


def test_exchange() -> None:
    """Every second column or channel, and twice is not at all."""
    both = torch.rand(4, 4, 2, 6)
    for dim, index in ((1, (slice(None), slice(0, None, 2))), (3, (..., slice(0, None, 2)))):
        expected = both.clone()
        expected[:2][index], expected[2:][index] = both[2:][index], both[:2][index]
        assert torch.equal(exchange(both, dim), expected)
        assert torch.equal(exchange(exchange(both, dim), dim), both)
