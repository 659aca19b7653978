"""The network against expected outputs made with the published system (tests/reference)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.checkpoint import from_published, load_strict
from change.published import our_name
from models.config import STRIDES, NetworkConfig
from models.decoder import Decoder, FusionStage
from models.encoders import encode_dates
from models.losses import TrainingLoss
from models.network import PRXChange, build_network
from models.refinement import PointLogits, StageRefinement
from models.xcross import CrossAttention, StochasticDepth
from tests.conftest import REPOSITORY
from tests.reference.reference_weights import reference_pair, reference_state_dict

REFERENCE = REPOSITORY / "tests" / "reference"
NETWORKS = [(depth, part) for depth in (18, 34) for part in ("base", "cross")]
PAIRS = [(1, 1, 128, 128), (2, 2, 96, 96)]


def published_network(depth: int, part: str) -> PRXChange:
    keys = REFERENCE / f"keys_resnet{depth}_{part}.json"
    checkpoint = from_published(reference_state_dict(keys), keys)
    assert checkpoint.config == NetworkConfig(f"resnet{depth}", cross=part == "cross", refine=True)
    network = build_network(checkpoint.config)
    load_strict(network, checkpoint.weights, keys)
    return network.eval()


def close(ours: Tensor, expected: NDArray[np.float32], tolerance: float = 1e-4) -> None:
    """Equal within `tolerance` of the largest absolute value expected."""
    assert ours.shape == expected.shape
    error = np.abs(ours.detach().numpy() - expected).max()
    assert error <= tolerance * np.abs(expected).max(), f"{error} of {np.abs(expected).max()}"


@pytest.fixture(params=NETWORKS, ids=lambda p: f"resnet{p[0]}-{p[1]}", scope="module")
def reference(request: pytest.FixtureRequest) -> Iterator[tuple[PRXChange, dict[str, NDArray[np.float32]]]]:
    depth, part = request.param
    with np.load(REFERENCE / f"expected_resnet{depth}_{part}.npz") as arrays:
        yield published_network(depth, part), dict(arrays)


@torch.inference_mode()
def test_outputs(reference: tuple[PRXChange, dict[str, NDArray[np.float32]]]) -> None:
    network, expected = reference
    checked = set()

    def check(name: str, ours: Tensor) -> None:
        close(ours, expected[name])
        checked.add(name)

    for seed, batch, height, width in PAIRS:
        suffix = f"_s{seed}_b{batch}_{height}x{width}"
        before, after = reference_pair(seed, batch, height, width)
        features = encode_dates(network.encoder, before, after)
        fused = network.decoder(features)
        check("logits" + suffix, network(before, after))
        for i in range(4):
            check(f"encoder{i}_mean{suffix}", features[i].mean((2, 3)))
            check(f"fusion{i}_mean{suffix}", fused[i].mean((2, 3)))
        assert isinstance(network.decoder, Decoder)
        stage = network.decoder.stages[1]
        assert isinstance(stage, FusionStage)
        if (cross := stage.cross) is not None:
            for date, output in zip(("before", "after"), cross(features[1]).chunk(2), strict=True):
                check(f"xcross2_{date}_mean{suffix}", output.mean((2, 3)))
    outputs = {name for name in expected if not name.startswith(("refine", "loss"))}
    assert checked == outputs


@torch.inference_mode()
def test_refinement(reference: tuple[PRXChange, dict[str, NDArray[np.float32]]]) -> None:
    network, expected = reference
    suffix = "_s1_b1_128x128"
    before, after = reference_pair(1, 1, 128, 128)
    mask = torch.from_numpy(np.random.RandomState(101).standard_normal((1, 1, 128, 128)).astype(np.float32) > 0.5)
    points = [torch.from_numpy(expected[f"refine{i}_points{suffix}"]) for i in range(4)]
    fused = network.fuse(before, after)
    assert network.refinement is not None
    answers: list[PointLogits] = network.refinement(fused, mask.float(), 2, 0.75, points)
    for i, answer in enumerate(answers):
        close(answer.refined, expected[f"refine{i}_logits{suffix}"].reshape(answer.refined.shape))
        close(answer.labels, expected[f"refine{i}_labels{suffix}"].reshape(answer.labels.shape), tolerance=0)
        stage = network.refinement.stages[i]
        assert isinstance(stage, StageRefinement)
        coarse_mean = stage.coarse(fused[i]).mean((2, 3))
        close(
            coarse_mean.reshape(expected[f"refine{i}_coarse_mean{suffix}"].shape),
            expected[f"refine{i}_coarse_mean{suffix}"],
        )
    losses, _ = TrainingLoss(network)(before, after, mask.float(), points)
    for name, loss in zip(("total", "cls", "refine"), losses, strict=True):
        close(loss, expected[f"loss_{name}{suffix}"].reshape(()))


def published_name_of_zero_gradient(name: str) -> bool:
    """Return whether this is a bias before a BatchNorm, whose true gradient is zero."""
    return name.endswith(("to_feature.conv.bias", "mlp.norm2.bias")) and "x_cross" in name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("part", ["base", "cross"])
def test_training_step(part: str, dtype: torch.dtype) -> None:
    """One training step as published.

    In float32, rounding differs between processors and changes the norms of some gradients by up to 4e-3. The tight
    bound on gradients is therefore for float64.
    """
    with np.load(REFERENCE / f"expected_train_step_resnet18_{part}.npz") as arrays:
        expected = dict(arrays)
    network = published_network(18, part).train().to(dtype)
    drop_nothing(network)
    before, after = (image.to(dtype) for image in reference_pair(7, 2, 96, 96))
    mask = torch.from_numpy(np.random.RandomState(107).standard_normal((2, 1, 96, 96)).astype(np.float32) > 0.5)
    points = [
        torch.from_numpy(np.random.RandomState(7 + 1000 + i).random_sample((2, 96 // s, 2)).astype(np.float32)).to(
            dtype
        )
        for i, s in enumerate(reversed(STRIDES))
    ]
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-4, eps=1e-3, weight_decay=2e-3)
    losses, logits = TrainingLoss(network)(before, after, mask.to(dtype), points)
    losses.total.backward()
    for name, loss in zip(("total", "cls", "refine"), losses, strict=True):
        close(loss, expected[f"loss_{name}"].reshape(()), 1e-3)
    close(logits, expected["logits"], 1e-3)

    parameters = dict(network.named_parameters())
    names = [str(name) for name in expected["grad_names"] if "tf0.upsample" not in str(name)]
    assert {our_name(name) for name in names} == set(parameters)
    for name, norm in zip(expected["grad_names"], expected["grad_norms"], strict=True):
        if "tf0.upsample" not in name and not published_name_of_zero_gradient(name):
            gradient = parameters[our_name(str(name))].grad
            assert gradient is not None
            tolerance = 1e-3 if dtype == torch.float64 else 1e-2
            assert float(gradient.norm()) == pytest.approx(float(norm), rel=tolerance), name

    optimizer.step()
    state = network.state_dict()
    for name, norm in zip(expected["running_names"], expected["running_norms"], strict=True):
        assert float(state[our_name(str(name))].float().norm()) == pytest.approx(float(norm), rel=1e-3), name
    for name, norm, total in zip(expected["after_names"], expected["after_norms"], expected["after_sums"], strict=True):
        if "tf0.upsample" in name or published_name_of_zero_gradient(name):
            continue
        weight = state[our_name(str(name))].float()
        assert float(weight.norm()) == pytest.approx(float(norm), rel=1e-3), name
        # Terms of a sum cancel, so the bound is 1e-3 of the largest sum that these weights could have.
        assert float(weight.sum()) == pytest.approx(float(total), abs=1e-3 * float(weight.abs().sum())), name
    with torch.inference_mode():
        close(network.eval()(before, after), expected["logits_after_step_eval"], 1e-3)


def drop_nothing(network: torch.nn.Module) -> None:
    """Set every dropout and drop-path rate to 0."""
    for module in network.modules():
        if isinstance(module, (torch.nn.Dropout, StochasticDepth)):
            module.p = 0.0
        elif isinstance(module, CrossAttention):
            module.drop = 0.0
