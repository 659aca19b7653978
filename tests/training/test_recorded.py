"""Recorded steps give what plain steps give. On a machine without a GPU, a stand-in plays the part of CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from change.common.errors import UserError
from change.training.recorded import Recorded

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


class StandIn:
    """A CUDA graph for the CPU: a replay computes again and writes to the tensors of the recording."""

    def __init__(self) -> None:
        self.owner: Recorded | None = None

    def replay(self) -> None:
        """Overwrite the outputs and the gradients of the recording."""
        assert self.owner is not None
        self.owner.forget_gradients()
        outputs = self.owner.function(*self.owner.inputs)
        pairs = [(self.owner.outputs, outputs)]
        pairs += [(own, p.grad) for own, p in zip(self.owner.gradients, self.owner.parameters, strict=True)]
        for own, new in pairs:
            if own is not None:
                own.copy_(new)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return the device; on the CPU, the functions of CUDA graphs are replaced."""
    if request.param == "cpu":

        class Stream:
            def wait_stream(self, other: Stream) -> None:
                """Do nothing: the CPU has one stream."""

        @contextlib.contextmanager
        def block(*_: Any, **__: Any) -> Iterator[None]:
            yield

        for name, stand_in in {
            "CUDAGraph": StandIn,
            "Stream": Stream,
            "current_stream": Stream,
            "stream": block,
            "graph": block,
            "device": block,
            "get_rng_state": lambda _: torch.get_rng_state(),
            "set_rng_state": lambda state, _: torch.set_rng_state(state),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
    return torch.device(request.param)


class Small(nn.Module):
    """A network with running statistics, dropout, and a parameter that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
        self.idle = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, 1, H - 2, W - 2)."""
        out: Tensor = self.layers(images)
        return out


def train(device: torch.device, batches: list[Tensor], wrap: Callable[[Any, nn.Module], Any]) -> tuple[Any, Any]:
    """Take a step per batch; return the losses and the state of the network."""
    torch.manual_seed(0)
    network = Small().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)

    def gradients(images: Tensor) -> Tensor:
        loss = F.softplus(network(images.float() / 255)).mean()
        torch.autograd.backward(loss)
        return loss.detach()

    step, losses = wrap(gradients, network), []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        losses.append(float(step(batch.to(device))))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses, network.state_dict()


def recorded(function: Any, module: nn.Module) -> Recorded:
    """Wrap a function; the stand-in needs to know its owner."""
    found = Recorded(function, module)

    def record(inputs: tuple[Tensor, ...], plain: Callable[..., None] = found.record) -> None:
        plain(inputs)
        if isinstance(found.graph, StandIn):
            found.graph.owner = found

    found.record = record  # type: ignore[method-assign]
    return found


def draw(*sizes: int) -> list[Tensor]:
    """Draw batches of images with these numbers of images."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator) for size in sizes]


def test_steps_are_the_same(device: torch.device) -> None:
    """Losses, weights and running statistics are equal, with a shorter last batch and the draws of dropout."""
    batches = draw(4, 4, 3, 4)
    losses, state = train(device, batches, lambda function, _: function)
    again, again_state = train(device, batches, recorded)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(losses), rtol=1e-6, atol=0)
    for name, value in state.items():
        torch.testing.assert_close(again_state[name], value, rtol=1e-5, atol=1e-6)


def test_recorded_once(device: torch.device) -> None:
    """Batches of the recorded shape are replayed; others call the function."""
    calls: list[int] = []

    def double(values: Tensor) -> Tensor:
        calls.append(len(values))
        return 2 * values

    step = recorded(double, nn.Identity())
    first = step(torch.ones(2, device=device))
    assert first.tolist() == [2, 2]
    known = len(calls)
    assert step(torch.ones(3, device=device)).tolist() == [2, 2, 2]
    assert calls[known:] == [3]
    again = step(torch.full((2,), 5.0, device=device))
    assert again is first and again.tolist() == [10, 10]


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    "error", [RuntimeError("operation not permitted\nmore lines"), torch.OutOfMemoryError("out of memory")]
)
def test_failure(device: torch.device, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A step that cannot be recorded, or for which the memory is too small, ends the run with the remedy."""

    @contextlib.contextmanager
    def refuse(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise error

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    reason = str(error).partition("\n")[0]
    with pytest.raises(UserError, match=rf"CUDA graph \({reason}\): use --cuda_graphs False"):
        train(device, draw(4, 4), recorded)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_errors_of_the_step_itself(device: torch.device) -> None:
    """They are raised as they are: the recording is not to blame."""

    def fail(values: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        recorded(fail, nn.Identity())(torch.ones(2))


def test_device_of_the_inputs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording and replay happen on the device of the inputs, which need not be the current one."""
    entered: list[torch.device] = []
    enter = torch.cuda.device

    def noted(place: torch.device) -> Any:
        entered.append(place)
        return enter(place)

    monkeypatch.setattr(torch.cuda, "device", noted)
    values = torch.ones(2, device=device)
    recorded(lambda x: 2 * x, nn.Identity())(values)
    assert entered == [values.device]
