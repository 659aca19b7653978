"""The network: gradients, sizes, exact simplifications, refinement points, compile and export, precision, weights."""

from __future__ import annotations

import os
import re
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from change.checkpoint import pass_name
from change.prediction.folding import ChunkedAttention, Fused
from models.config import STRIDES, NetworkConfig
from models.decoder import Decoder, DeepestStage, FusionStage, Head
from models.losses import TrainingLoss, dice_loss
from models.network import PRXChange, build_network
from models.padding import apply_to_any_size
from models.refinement import Refinement, draw_points, hardest_points
from models.xcross import CrossAttention, StochasticDepth, XCross
from tests.models.test_parity import close, published_network
from tests.reference.reference_weights import reference_pair
from tests.textbook import textbook

# Batch normalisation removes what these biases add, so their true gradient is zero and the computed one is rounding.
BEFORE_BATCH_NORM = re.compile(r"\.cross\.(to_map|mlp\.norm2)\.bias$")
PASSES = [(cross, refine) for cross in (False, True) for refine in (False, True)]


@pytest.fixture(scope="module")
def networks() -> dict[str, PRXChange]:
    """In eval mode, with weights in which nothing is neutral, such as tokens or running statistics of 0."""
    return {part: published_network(18, part) for part in ("base", "cross")}


def random_mask(batch: int, height: int, width: int) -> Tensor:
    return (torch.from_numpy(np.random.RandomState(3).random_sample((batch, 1, height, width))) > 0.5).float()


@pytest.mark.parametrize(
    "backbone, cross, refine", [*(("resnet18", *switches) for switches in PASSES), ("resnet50", True, True)]
)
def test_every_parameter_learns(backbone: str, cross: bool, refine: bool) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbone, cross, refine))
    losses, _ = TrainingLoss(network)(*reference_pair(1, 2, 96, 96), random_mask(2, 96, 96))
    losses.total.backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in network.named_parameters()}
    exempt = {name for name in norms if BEFORE_BATCH_NORM.search(name)}
    assert len(exempt) == (8 if cross else 0)
    assert {name: norm for name, norm in norms.items() if not norm > 1e-7 and name not in exempt} == {}


# A side of 40 can be reflected by 24; one of 10 cannot by 22, nor one of 16 by 16.
@pytest.mark.parametrize("height, width", [(128, 128), (512, 512), (96, 160), (122, 205), (40, 10), (16, 48)])
@torch.inference_mode()
def test_any_size(networks: dict[str, PRXChange], height: int, width: int) -> None:
    network = networks["base" if height == 512 else "cross"]
    pair = reference_pair(1, 1, height, width)
    logits = apply_to_any_size(network, *pair)
    assert logits.shape == (1, 1, height, width)
    padded = [image.numpy() for image in pair]
    for dim, extra in ((2, -height % 32), (3, -width % 32)):
        widths = [(0, extra if i == dim else 0) for i in range(4)]
        padded = [np.pad(x, widths, mode="reflect" if extra < x.shape[dim] else "edge") for x in padded]
    expected = network(*map(torch.from_numpy, padded))
    assert expected.shape[2] % 32 == 0 and expected.shape[3] % 32 == 0
    close(logits, expected[..., :height, :width].numpy(), 1e-6)


def test_head_equals_its_three_layers() -> None:
    torch.manual_seed(0)
    head = Head(64).double()
    fused = torch.randn(2, 64, 5, 7, dtype=torch.float64)
    composed, layers = head(fused), head.out(head.upsample2(head.upsample1(fused)))
    torch.testing.assert_close(composed, layers, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(x.square().sum(), list(head.parameters())) for x in (composed, layers)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def literal_cross(cross: XCross, before: Tensor, after: Tensor) -> list[Tensor]:
    """X-Cross as the paper describes it, in eval mode, with the 1x1 convolution after the upsampling."""
    channels = before.shape[1]
    xb = cross.norm_in(cross.embed(before).flatten(2).transpose(1, 2) + cross.token_before)
    xa = cross.norm_in(cross.embed(after).flatten(2).transpose(1, 2) + cross.token_after)
    qb, kb, vb = (cross.attention.norm(part) for part in cross.attention.qkv(xb).split(channels, dim=2))
    qa, ka, va = (cross.attention.norm(part) for part in cross.attention.qkv(xa).split(channels, dim=2))
    cb = torch.softmax(qa @ kb.transpose(1, 2) / channels**0.5, dim=2) @ vb
    ca = torch.softmax(qb @ ka.transpose(1, 2) / channels**0.5, dim=2) @ va
    outputs = []
    for features, x, c in ((before, xb, cb), (after, xa, ca)):
        y = cross.norm_out(x + c)
        z = y + cross.mlp.norm2(cross.mlp.fc2(F.gelu(cross.mlp.norm1(cross.mlp.fc1(y)))))
        p = cross.patch_size
        z = z.transpose(1, 2).reshape(len(z), channels, features.shape[2] // p, features.shape[3] // p)
        if p > 1:
            z = nn.Upsample(scale_factor=p, mode="bilinear", align_corners=True)(z)
        outputs.append(features + cross.norm_map(cross.to_map(z)))
    return outputs


@torch.inference_mode()
def test_cross_equals_the_description(networks: dict[str, PRXChange]) -> None:
    decoder = deepcopy(networks["cross"].decoder).double()
    crosses = [module for module in decoder.modules() if isinstance(module, XCross)]
    assert [cross.patch_size for cross in crosses] == [1, 1, 2, 4]
    for cross in crosses:
        dates = torch.randn(2, 3, cross.embed.in_channels, 8, 12, dtype=torch.float64)
        both, exchanged = dates.flatten(0, 1), dates.flip(0).flatten(0, 1)
        torch.testing.assert_close(cross(both), torch.cat(literal_cross(cross, *dates)), rtol=0, atol=1e-10)
        # Only the learned tokens tell the dates apart.
        assert not torch.allclose(cross(exchanged).roll(3, 0), cross(both))
        cross.token_after.copy_(cross.token_before)
        torch.testing.assert_close(cross(exchanged).roll(3, 0), cross(both))


@torch.inference_mode()
def test_swapped_dates_differ(networks: dict[str, PRXChange]) -> None:
    before, after = reference_pair(1, 1, 64, 64)
    for network in networks.values():
        assert not torch.allclose(network(before, after), network(after, before), rtol=0.01)


def nearest_half(logits: Tensor, number: int) -> Tensor:
    """Indices (B, number) of the logits (B, P) whose probability is nearest 0.5."""
    probability = 1 / (1 + np.exp(-logits.double().numpy()))
    return torch.from_numpy(np.argsort(np.abs(probability - 0.5), axis=1)[:, :number])


def as_sets(points: Tensor) -> list[set[tuple[float, ...]]]:
    return [{tuple(point) for point in image} for image in points.tolist()]


def test_hardest_points() -> None:
    torch.manual_seed(0)
    candidates, logits = torch.rand(3, 50, 2), 4 * torch.randn(3, 50)
    expected = torch.stack([points[index] for points, index in zip(candidates, nearest_half(logits, 20), strict=True)])
    assert as_sets(hardest_points(candidates, logits, 20)) == as_sets(expected)


@pytest.mark.parametrize("number, k, beta, hard", [(24, 2, 0.75, 18), (3, 2, 0.75, 2), (16, 3, 0.5, 8), (7, 2, 1, 7)])
def test_draw_points(monkeypatch: pytest.MonkeyPatch, number: int, k: int, beta: float, hard: int) -> None:
    torch.manual_seed(0)
    coarse = (4 * torch.randn(2, 1, 6, 9)).requires_grad_()
    draws: list[Tensor] = []
    rand = torch.rand

    def recorded(*size: int, device: torch.device) -> Tensor:
        draws.append(rand(*size, device=device))
        return draws[-1]

    monkeypatch.setattr(torch, "rand", recorded)
    points = draw_points(coarse, number, k, beta)
    candidates, fresh = draws
    assert not points.requires_grad
    assert (points.shape, candidates.shape, fresh.shape) == ((2, number, 2), (2, k * number, 2), (2, number - hard, 2))
    read = F.grid_sample(coarse.detach(), 2 * candidates[:, None] - 1, align_corners=False)[:, 0, 0]
    expected = [points[index] for points, index in zip(candidates, nearest_half(read, hard), strict=True)]
    assert as_sets(points) == as_sets(torch.cat((torch.stack(expected), fresh), dim=1))


@pytest.mark.parametrize("height, width", [(64, 64), (64, 160), (160, 64)])
def test_points_of_each_stage(height: int, width: int) -> None:
    channels, strides = (512, 256, 128, 64), STRIDES[::-1]
    fused = [torch.randn(2, c, height // s, width // s) for c, s in zip(channels, strides, strict=True)]
    answers = Refinement(channels)(fused, random_mask(2, height, width), 2, 0.75)
    for answer, stride in zip(answers, strides, strict=True):
        assert {part.shape for part in answer} == {(2, width // stride)}
        assert set(answer.labels.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.slow
@torch.no_grad()
def test_compile_traces_the_network(networks: dict[str, PRXChange]) -> None:
    pair = reference_pair(1, 1, 64, 96)
    compiled = torch.compile(networks["cross"], fullgraph=True, backend="aot_eager")
    close(compiled(*pair), networks["cross"](*pair).numpy())


@pytest.mark.slow
@torch.no_grad()
def test_compile_builds_kernels(networks: dict[str, PRXChange]) -> None:
    """Compile the last stage and the head: together they use all our operations, and take half the time."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile on the CPU needs a C++ compiler")
    head, decoder = networks["cross"].head, networks["cross"].decoder
    assert isinstance(decoder, Decoder)
    stage = decoder.stages[-1]

    def last_stage(features: Tensor, coarse: Tensor) -> Tensor:
        logits: Tensor = head(stage(features, coarse))
        return logits

    maps = torch.randn(4, 64, 16, 24), torch.randn(2, 128, 8, 12)
    # Scalar kernels are built in less time than vectorised ones.
    compiled = torch.compile(last_stage, fullgraph=True, options={"cpp.simdlen": 1})
    close(compiled(*maps), last_stage(*maps).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["base", "cross"])
@torch.no_grad()
def test_export(networks: dict[str, PRXChange], part: str) -> None:
    sizes = {0: Dim("batch", min=1, max=8), 2: 32 * Dim("rows", min=2, max=32), 3: 32 * Dim("columns", min=2, max=32)}
    program = torch.export.export(networks[part], reference_pair(1, 2, 96, 128), dynamic_shapes=(sizes, sizes))
    exported = program.module()
    for shape in ((1, 64, 160), (8, 96, 64), (1, 64, 1024), (3, 128, 128)):
        pair = reference_pair(2, *shape)
        close(exported(*pair), networks[part](*pair).numpy())


# The first value of some weights after torch.manual_seed(0), recorded when the decoder still built its own attention.
SEEDED = {
    NetworkConfig("resnet18"): {
        "encoder.layer4.1.conv2.weight": 0.028865,
        "decoder.deepest.mix.weight": 0.024158,
        "decoder.stages.2.conv.0.weight": 0.035829,
        "head.out.weight": -0.065039,
    },
    NetworkConfig("resnet18", cross=True, refine=True): {
        "decoder.deepest.cross.mlp.fc1.weight": -0.035651,
        "decoder.deepest.mix.weight": -0.000139,
        "decoder.stages.2.cross.attention.qkv.weight": -0.107673,
        "decoder.stages.2.conv.0.weight": -0.026317,
        "refinement.stages.3.fc1.weight": -0.020093,
        "head.out.weight": 0.001010,
    },
    NetworkConfig("resnet50", cross=True, refine=True): {
        "encoder.project.3.weight": 0.010400,
        "decoder.deepest.cross.mlp.fc1.weight": -0.001418,
        "decoder.stages.2.cross.attention.qkv.weight": 0.046007,
        "decoder.stages.2.conv.0.weight": -0.004625,
        "refinement.stages.3.fc1.weight": -0.044283,
        "head.out.weight": -0.094971,
    },
    NetworkConfig("resnet18", model="unet", refine=True): {
        "decoder.deepest.0.weight": 0.008053,
        "decoder.stages.2.0.weight": -0.010406,
        "refinement.stages.3.fc1.weight": 0.055930,
        "head.out.weight": -0.068303,
    },
}


@pytest.mark.parametrize("config", SEEDED, ids=lambda config: f"{config.backbone}-{pass_name(config)}")
def test_a_seed_gives_the_same_weights(config: NetworkConfig) -> None:
    """The order in which modules are built is part of every seeded run: another order draws other weights."""
    torch.manual_seed(0)
    state = build_network(config).state_dict()
    found = {name: float(state[name].flatten()[0]) for name in SEEDED[config]}
    assert found == pytest.approx(SEEDED[config], abs=1e-6)


def test_the_attention_of_a_stage_is_passed_in() -> None:
    """Any module that keeps the shape will do; without one, the stage reads the features as they are."""
    torch.manual_seed(0)
    features, coarse = torch.randn(4, 32, 4, 6), torch.randn(2, 64, 2, 3)
    for with_attention, without, *maps in (
        (DeepestStage(32, nn.Tanh()), DeepestStage(32), features),
        (FusionStage(64, 32, nn.Tanh()), FusionStage(64, 32), features, coarse),
    ):
        without.load_state_dict(with_attention.state_dict())
        torch.testing.assert_close(with_attention(*maps), without(maps[0].tanh(), *maps[1:]))
        assert not torch.allclose(with_attention(*maps), without(*maps))


def test_parameter_counts() -> None:
    def millions(*modules: nn.Module) -> float:
        return sum(p.numel() for module in modules for p in module.parameters()) / 1e6

    with torch.device("meta"):
        plain, full = build_network(NetworkConfig()), build_network(NetworkConfig(cross=True, refine=True))
    assert full.refinement is not None
    crosses = [module for module in full.decoder.modules() if isinstance(module, XCross)]
    decoder = millions(plain.decoder, plain.head)
    assert millions(full.decoder, full.head) == pytest.approx(decoder + millions(*crosses))
    found = [round(x, 2) for x in (millions(plain.encoder), decoder, millions(*crosses), millions(full.refinement))]
    assert found == [11.18, 2.31, 2.56, 0.35]


@pytest.mark.parametrize("part", ["base", "cross"])
def test_bfloat16(networks: dict[str, PRXChange], part: str) -> None:
    pair = reference_pair(1, 1, 96, 128)
    with torch.inference_mode():
        expected = networks[part](*pair)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = networks[part](*pair)
    assert logits.isfinite().all()
    close(logits.float(), expected.numpy(), 0.05)


@pytest.mark.parametrize("part", ["base", "cross"])
def test_textbook_gives_the_same(networks: dict[str, PRXChange], part: str) -> None:
    """The same outputs and, in training without dropout, the same losses and gradients."""
    with torch.inference_mode():
        pair = reference_pair(1, 2, 96, 128)
        close(networks[part](*pair), textbook(networks[part])(*pair).numpy(), 1e-5)
    torch.manual_seed(0)
    network = build_network(NetworkConfig(cross=part == "cross", refine=True)).double()
    for module in network.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
        if isinstance(module, CrossAttention):
            module.drop = 0.0
    points = [torch.rand(2, 96 // stride, 2, dtype=torch.float64) for stride in STRIDES[::-1]]
    found = []
    for form in (network, textbook(network)):
        losses, _ = TrainingLoss(form)(*(i.double() for i in pair), random_mask(2, 96, 128).double(), points)
        losses.total.backward()
        found.append(
            (torch.stack(losses), torch.stack([p.grad.norm() for p in form.parameters() if p.grad is not None]))
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-9)


# --- baselines, and parts of the training recipe --------------------------------------------------------------------


def test_unet() -> None:
    """Maps of the same shape as the decoder's, gradients everywhere, the same outputs when rebuilt for prediction."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(model="unet", refine=True))
    pair = reference_pair(1, 2, 96, 128)
    fused, ours = network.fuse(*pair), build_network(NetworkConfig()).fuse(*pair)
    assert [maps.shape for maps in fused] == [maps.shape for maps in ours]
    losses, logits = TrainingLoss(network)(*pair, random_mask(2, 96, 128))
    losses.total.backward()
    assert logits.shape == (2, 1, 96, 128)
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without
    with torch.inference_mode():
        close(Fused(network)(*pair), network.eval()(*pair).numpy(), 1e-4)


def test_unet_sees_both_dates_apart() -> None:
    """Exchanging the dates changes the output, and so does either date: it does not only read their difference."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(model="unet")).eval()
    before, after = reference_pair(1, 1, 64, 64)
    with torch.inference_mode():
        answers = [network(*pair) for pair in ((before, after), (after, before), (before, before), (after, after))]
    assert all((answers[i] - answers[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))


@pytest.mark.parametrize(("patch", "sides"), [(1, (1, 1, 1, 1)), (4, (1, 1, 2, 4)), (8, (1, 2, 4, 8))])
@torch.inference_mode()
def test_patches(patch: int, sides: tuple[int, ...]) -> None:
    """Patches have these sides at strides 32, 16, 8, 4; all inputs consist of whole patches."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig("efficientnet_lite0", cross=True, patch=patch)).eval()
    assert tuple(module.patch_size for module in network.modules() if isinstance(module, XCross)) == sides
    for height, width in ((32, 32), (96, 32)):
        pair = reference_pair(1, 1, height, width)
        close(network(*pair), textbook(network)(*pair).numpy(), 1e-4)


def test_attention_within_a_date() -> None:
    """The output for one date depends on the other date with X-Cross, but not with attention within each date."""
    for within in (True, False):
        torch.manual_seed(0)
        attention = CrossAttention(32, within).eval()
        tokens = torch.randn(4, 9, 32)
        other = torch.cat((tokens[:2], torch.randn(2, 9, 32)))
        assert torch.equal(attention(tokens)[:2], attention(other)[:2]) is within
        torch.testing.assert_close(ChunkedAttention(attention)(tokens), attention(tokens))
    names = [set(build_network(NetworkConfig(cross=True, within=w)).state_dict()) for w in (True, False)]
    assert names[0] == names[1]


def test_dice_loss() -> None:
    """Computed by hand over the whole batch: 2 * 0.5 * 8 / (0.5 * 32 + 8), with 1 added above and below."""
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, :2] = 1
    assert float(dice_loss(torch.zeros(2, 1, 4, 4), mask)) == pytest.approx(1 - (8 + 1) / (16 + 8 + 1))
    assert float(dice_loss(100 * (2 * mask - 1), mask)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(torch.full((2, 1, 4, 4), -100.0), 0 * mask)) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    network = build_network(NetworkConfig()).eval().requires_grad_(False)
    pair, truth = reference_pair(1, 2, 64, 64), random_mask(2, 64, 64)
    plain, logits = TrainingLoss(network)(*pair, truth)
    both, _ = TrainingLoss(network, dice=0.5)(*pair, truth)
    assert float(both.total) == pytest.approx(float(plain.total) + 0.5 * float(dice_loss(logits, truth)))


def test_start_at_a_rate() -> None:
    head = build_network(NetworkConfig()).head
    head.start_at(0.05)
    torch.nn.init.zeros_(head.out.weight)
    logits = head(torch.randn(1, 64, 4, 4))
    torch.testing.assert_close(torch.sigmoid(logits), torch.full_like(logits, 0.05))
