"""The network for prediction: equal outputs in float32, close ones in half precision; safe folding; compiling."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from change.prediction import compiling
from change.prediction.compiling import Compiled, WhenItPays, worth_compiling
from change.prediction.folding import ChunkedAttention, Fused, can_merge, fold_batch_norms
from models.config import ENCODERS, NetworkConfig
from models.network import PRXChange, build_network
from models.padding import apply_to_any_size
from models.xcross import CrossAttention
from tests.models.test_parity import close, published_network
from tests.reference.reference_weights import reference_pair
from tests.textbook import textbook

CPU = torch.device("cpu")
Module = TypeVar("Module", bound=nn.Module)


@pytest.fixture(scope="module")
def network() -> PRXChange:
    return published_network(18, "cross")


@pytest.mark.parametrize("part", ["base", "cross"])
@pytest.mark.parametrize("depth", [18, 34])
@torch.inference_mode()
def test_float32_is_exact(depth: int, part: str) -> None:
    """Within 1e-4 of the largest logit, the bound of the reference, also for padded sides and several pairs."""
    network = published_network(depth, part)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused = Fused(network)
    for shape in ((1, 128, 128), (3, 96, 160), (1, 70, 45)):
        pair = reference_pair(4, *shape)
        close(apply_to_any_size(fused, *pair), apply_to_any_size(textbook(network), *pair).numpy(), 1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@torch.inference_mode()
def test_bottlenecks_and_training_mode() -> None:
    """A network as it is during training: in training mode, with refinement heads, here with a ResNet-50."""
    torch.manual_seed(0)
    network = randomise(build_network(NetworkConfig("resnet50", refine=True)))
    fused, pair = Fused(network), reference_pair(4, 1, 64, 64)
    assert network.training and network.refinement is not None
    close(fused(*pair), network.eval()(*pair).numpy(), 1e-4)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@torch.inference_mode()
def test_half_precision(network: PRXChange, dtype: torch.dtype, bound: float) -> None:
    """The logits are float32 and close; only the weights of the gates are kept in float32."""
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


# --- batch norms ---------------------------------------------------------------------------------------------------


def randomise(network: Module) -> Module:
    """Draw weights and statistics for the batch norms, so that folding them changes the convolutions."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return network


def norms_left(network: nn.Module) -> list[str]:
    """Return the names of the batch norms that are not folded."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("model", ["prx", "unet"])
@pytest.mark.parametrize("backbone", ENCODERS)
def test_every_batch_norm_of_ours_is_folded(backbone: str, model: str) -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(backbone, cross=model == "prx", model=model)).eval()
    assert norms_left(network)
    fold_batch_norms(network)
    assert not norms_left(network)


class Block(nn.Module):
    """A convolution and a batch norm whose names tell nothing; `flow` is the forward that calls them."""

    def __init__(self, flow: Callable[[Any, Tensor], Tensor], conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.a_norm = norm  # registered before what it reads
        self.other = conv
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x)


def conv(out_channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(4, out_channels, 3, padding=1)


def read_elsewhere(m: Any, x: Tensor) -> Tensor:
    y = m.other(x)
    total: Tensor = m.a_norm(y) + y
    return total


def read_elsewhere_after_interpolation(m: Any, x: Tensor) -> Tensor:
    y = F.interpolate(m.other(x), scale_factor=2.0)
    total: Tensor = m.a_norm(y) * y
    return total


def shape_and_values_decide(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.a_norm(m.other(x))
    return y if x.sum() > 0 else -y


class NormAndRelu(nn.BatchNorm2d):
    """A subclass that does more, such as timm's."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


FOLDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "directly": lambda m, x: m.a_norm(m.other(x)).relu(),
    "interpolated": lambda m, x: m.a_norm(F.interpolate(m.other(x), scale_factor=2.0, mode="bilinear")),
    "input read too": lambda m, x: m.a_norm(m.other(x)) + x,
}
STAYS: dict[str, tuple[Callable[[Any, Tensor], Tensor], nn.Module, nn.Module]] = {
    "read elsewhere": (read_elsewhere, conv(), nn.BatchNorm2d(4)),
    "interpolation read elsewhere": (read_elsewhere_after_interpolation, conv(), nn.BatchNorm2d(4)),
    "another operation between": (lambda m, x: m.a_norm(m.other(x).relu()), conv(), nn.BatchNorm2d(4)),
    "norm first": (lambda m, x: m.other(m.a_norm(x)), conv(), nn.BatchNorm2d(4)),
    "convolution called twice": (lambda m, x: m.a_norm(m.other(m.other(x))), conv(), nn.BatchNorm2d(4)),
    "norm called twice": (lambda m, x: m.a_norm(m.other(m.a_norm(x))), conv(), nn.BatchNorm2d(4)),
    "norm with an activation": (lambda m, x: m.a_norm(m.other(x)), conv(), NormAndRelu(4)),
    "no convolution": (lambda m, x: m.a_norm(m.other(x)), nn.Linear(12, 12), nn.BatchNorm2d(4)),
    "no running statistics": (
        lambda m, x: m.a_norm(m.other(x)),
        conv(),
        nn.BatchNorm2d(4, track_running_stats=False),
    ),
    "branches on values": (shape_and_values_decide, conv(), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("case", FOLDS)
@torch.inference_mode()
def test_data_flow_tells_what_is_folded(case: str) -> None:
    torch.manual_seed(0)
    block = randomise(Block(FOLDS[case], conv(), nn.BatchNorm2d(4))).eval()
    images = torch.randn(2, 4, 8, 12)
    expected = block(images)
    fold_batch_norms(block)
    assert not norms_left(block)
    torch.testing.assert_close(block(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", STAYS)
@torch.inference_mode()
def test_what_is_not_certain_is_not_folded(case: str) -> None:
    torch.manual_seed(0)
    block = randomise(Block(*STAYS[case])).eval()
    images = torch.randn(2, 4, 8, 12)
    expected = block(images)
    fold_batch_norms(block)
    assert norms_left(block) == ["a_norm"]
    assert torch.equal(block(images), expected)


def test_which_layers_can_be_merged() -> None:
    assert can_merge(conv(), nn.BatchNorm2d(4)) and can_merge(conv(), nn.SyncBatchNorm(4))
    assert not can_merge(conv(8), nn.BatchNorm2d(4)), "another width"
    assert not can_merge(conv(), NormAndRelu(4)), "it does more"
    assert not can_merge(conv(), nn.BatchNorm2d(4, track_running_stats=False)), "it depends on the batch"
    assert not can_merge(nn.ConvTranspose2d(4, 4, 2), nn.BatchNorm2d(4)), "kernels are transposed"
    assert not can_merge(conv(), None) and not can_merge(None, nn.BatchNorm2d(4))


@torch.inference_mode()
def test_a_convolution_of_two_modules_is_not_folded() -> None:
    """The second module reads the convolution without the batch norm."""
    torch.manual_seed(0)
    shared = conv()
    network = nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(4)), nn.Sequential(shared, nn.ReLU()))
    images = torch.randn(2, 4, 8, 12)
    expected = randomise(network).eval()(images)
    fold_batch_norms(network)
    assert norms_left(network) == ["0.1"] and torch.equal(network(images), expected)


def test_other_threads_go_on_while_batch_norms_are_folded() -> None:
    """torch.fx patches all modules while it traces; a program may run other networks in other threads meanwhile."""
    other, images, found = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), list[Tensor]()

    def flow(m: Any, x: Tensor) -> Tensor:
        thread = Thread(target=lambda: found.append(other(images)))
        thread.start()
        thread.join()
        y: Tensor = m.a_norm(m.other(x))
        return y

    block = Block(flow, conv(), nn.BatchNorm2d(4)).eval()
    fold_batch_norms(block)
    assert not norms_left(block)
    assert len(found) == 1 and torch.equal(found[0], other(images))


# --- compiling -----------------------------------------------------------------------------------------------------


class Instant(nn.Module):
    """A network that takes no time. The fixture `compiled` lists the calls of `torch.compile`."""

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
    """The time of a shape's second call and the pixels that are left decide; at most two shapes are compiled."""
    clock = iter(range(0, 10_000, 10))  # every timed call takes ten seconds
    monkeypatch.setattr("change.prediction.compiling.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(compiling, "SAVED", {"cpu": 0.5})
    worth = compiling.COST / (0.5 * 10)  # calls
    for calls_left, expected in ((worth - 1, 0), (worth + 1, 1)):
        predict = WhenItPays(Instant(), CPU, (2 + calls_left) * 32 * 32, "auto")
        calls(predict, 32, 32, 32, 32)
        assert len(compiled) == expected, calls_left
    predict = WhenItPays(Instant(), CPU, 1e12, "auto")
    calls(predict, *[32, 64, 96, 128] * 3)
    assert len(compiled) == 1 + 2
    for choice, more in (("off", 0), ("on", 2)):
        compiled.clear()
        calls(WhenItPays(Instant(), CPU, 1e12, choice), *[32, 64, 96] * 3)
        assert len(compiled) == more


def test_every_form_has_its_own_share_of_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form is compiled with its own share, whichever form was made or called last."""
    found: list[float] = []

    def compile(module: nn.Module, dynamic: bool) -> Callable[..., Any]:
        return lambda *inputs: found.append(torch._functorch.config.activation_memory_budget)

    monkeypatch.setattr(torch, "compile", compile)
    lean, whole = Compiled(Instant(), 0.5), Compiled(Instant())
    for form in (lean, whole, lean, whole):
        form(torch.ones(1), torch.ones(1))
    assert found == [0.5, 1.0, 0.5, 1.0]


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, once, and the outputs of the plain network. If that fails too, its error is raised."""

    def compile(module: nn.Module, dynamic: bool) -> Callable[..., Any]:
        def fails(*inputs: Tensor) -> Any:
            raise RuntimeError("no compiler\nmany lines more")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    form, ones = Compiled(Instant()), torch.ones(1, 3, 4, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(form(ones, ones), torch.zeros(1, 1, 4, 4))
    (record,) = caplog.records
    assert "does not work here (RuntimeError: no compiler): going on without" in record.getMessage()
    with pytest.raises(RuntimeError, match="size of tensor"):
        Compiled(Instant())(ones, torch.ones(1, 3, 5, 5))


def test_only_options_decide_whether_training_is_compiled() -> None:
    cuda = torch.device("cuda")
    assert worth_compiling("on", CPU, 1) and worth_compiling("auto", cuda, 10**5)
    assert not worth_compiling("auto", CPU, 10**5) and not worth_compiling("auto", cuda, 10)
    assert not worth_compiling("off", cuda, 10**5)
