"""The network for prediction: the same outputs in float32, near ones in half precision; compiled only where it pays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from change.prediction import compiling
from change.prediction.compiling import Compiled, WhenItPays, worth_compiling
from change.prediction.folding import ChunkedAttention, Fused
from models.network import NetworkConfig, PRXChange, build_network
from models.padding import any_size
from models.xcross import CrossAttention
from tests.models.test_parity import close, published_network
from tests.reference.reference_weights import reference_pair
from tests.textbook import textbook

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> PRXChange:
    return published_network(18, "cross")


@pytest.mark.parametrize("part", ["base", "cross"])
@pytest.mark.parametrize("depth", [18, 34])
@torch.inference_mode()
def test_float32_is_exact(depth: int, part: str) -> None:
    """To 1e-4 of the largest, the bound of the reference; also for sides that are padded, and more pairs than one."""
    network = published_network(depth, part)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused = Fused(network)
    for shape in ((1, 128, 128), (3, 96, 160), (1, 70, 45)):
        pair = reference_pair(4, *shape)
        close(any_size(fused, *pair), any_size(textbook(network), *pair).numpy(), 1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@torch.inference_mode()
def test_bottlenecks_and_training_mode() -> None:
    """A ResNet-50, as training hands it over: in training mode, with refinement heads."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(50, refine=True))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    fused, pair = Fused(network), reference_pair(4, 1, 64, 64)
    assert network.training and network.refinement is not None
    close(fused(*pair), network.eval()(*pair).numpy(), 1e-4)
    left = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@torch.inference_mode()
def test_half_precision(network: PRXChange, dtype: torch.dtype, bound: float) -> None:
    """Logits are float32 and near; nothing but gates and the dates' own statistics is computed in float32."""
    fused, pair = Fused(network, dtype), reference_pair(4, 2, 64, 96)
    logits = fused(*pair)
    assert logits.dtype == torch.float32
    close(logits, network(*pair).numpy(), bound)
    kept = {name for name, p in fused.named_parameters() if p.dtype == torch.float32}
    assert kept and all(".gate." in name for name in kept)


@torch.inference_mode()
def test_attention_in_chunks(network: PRXChange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("change.prediction.folding.QUERIES", 7)
    attention = next(module for module in network.modules() if isinstance(module, CrossAttention))
    tokens = torch.randn(4, 45, attention.qkv.in_features)
    torch.testing.assert_close(ChunkedAttention(attention)(tokens), attention(tokens))


# --- compiling -----------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A network that takes no time; what `torch.compile` is asked for is counted in `compiled`."""

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return (before - after)[:, :1]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    asked: list[nn.Module] = []

    def compile(module: nn.Module, dynamic: bool) -> Callable[..., Any]:
        asked.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    return asked


def calls(predict: WhenItPays, *sides: int) -> None:
    for side in sides:
        predict(torch.ones(1, 3, side, side), torch.zeros(1, 3, side, side))


def test_compiled_where_much_is_left(compiled: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second call of a shape on, by the time that took and the pixels that are left; two shapes at most."""
    clock = iter(range(0, 10_000, 10))  # every timed call takes ten seconds
    monkeypatch.setattr("change.prediction.compiling.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(compiling, "SAVED", {"cpu": 0.5})
    worth = compiling.COST / (0.5 * 10)  # calls
    for calls_left, expected in ((worth - 1, 0), (worth + 1, 1)):
        predict = WhenItPays(Counting(), CPU, (2 + calls_left) * 32 * 32, "auto")
        calls(predict, 32, 32, 32, 32)
        assert len(compiled) == expected, calls_left
    predict = WhenItPays(Counting(), CPU, 1e12, "auto")
    calls(predict, *[32, 64, 96, 128] * 3)
    assert len(compiled) == 1 + 2
    for choice, more in (("off", 0), ("on", 2)):
        compiled.clear()
        calls(WhenItPays(Counting(), CPU, 1e12, choice), *[32, 64, 96] * 3)
        assert len(compiled) == more


def test_every_form_has_its_own_share_of_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shape is compiled with is that of the form that is called, whichever was made or called last."""
    found: list[float] = []

    def compile(module: nn.Module, dynamic: bool) -> Callable[..., Any]:
        return lambda *inputs: found.append(torch._functorch.config.activation_memory_budget)

    monkeypatch.setattr(torch, "compile", compile)
    lean, whole = Compiled(Counting(), 0.5), Compiled(Counting())
    for form in (lean, whole, lean, whole):
        form(torch.ones(1), torch.ones(1))
    assert found == [0.5, 1.0, 0.5, 1.0]


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, once, and the plain outputs; what fails plainly too is an error as ever."""

    def compile(module: nn.Module, dynamic: bool) -> Callable[..., Any]:
        def fails(*inputs: Tensor) -> Any:
            raise RuntimeError("no compiler\nmany lines more")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    form, ones = Compiled(Counting()), torch.ones(1, 3, 4, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(form(ones, ones), torch.zeros(1, 1, 4, 4))
    (record,) = caplog.records
    assert "does not work here (RuntimeError: no compiler): going on without" in record.getMessage()
    with pytest.raises(RuntimeError, match="size of tensor"):
        Compiled(Counting())(ones, torch.ones(1, 3, 5, 5))


def test_training_is_compiled_by_its_options_alone() -> None:
    cuda = torch.device("cuda")
    assert worth_compiling("on", CPU, 1) and worth_compiling("auto", cuda, 10**5)
    assert not worth_compiling("auto", CPU, 10**5) and not worth_compiling("auto", cuda, 10)
    assert not worth_compiling("off", cuda, 10**5)
