"""torch.compile with a fake compiler: what fails falls back to the plain call, except errors about memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn

from change.common.errors import UserError
from change.prediction.compiling import Compiled


class Difference(nn.Module):
    """The first channel of before - after; counts its own calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        self.calls += 1
        return (before - after)[:, :1]


def fake_compiler(monkeypatch: pytest.MonkeyPatch, error: Callable[[Tensor], Exception | None]) -> list[torch.Size]:
    """Let a compiled form raise what `error` returns for its first input, else work; return the shapes it gets."""
    asked: list[torch.Size] = []

    def compile(module: nn.Module, dynamic: bool) -> Callable[..., Any]:
        def form(before: Tensor, after: Tensor) -> Tensor:
            asked.append(before.shape)
            if found := error(before):
                raise found
            return (before - after)[:, :1]

        return form

    monkeypatch.setattr(torch, "compile", compile)
    return asked


def images(side: int) -> tuple[Tensor, Tensor]:
    return torch.ones(1, 3, side, side), torch.zeros(1, 3, side, side)


def test_a_later_shape_that_fails_is_called_plainly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning names the shape; the shape that works stays compiled."""

    def error(before: Tensor) -> Exception | None:
        return RuntimeError("cannot tile this\nmany more lines") if before.shape[2] == 5 else None

    asked = fake_compiler(monkeypatch, error)
    module = Difference()
    form = Compiled(module)
    with caplog.at_level(logging.WARNING):
        for side in (4, 5, 4, 5, 5):
            assert torch.equal(form(*images(side)), torch.ones(1, 1, side, side))
    assert [shape[2] for shape in asked] == [4, 5, 4] and module.calls == 3
    (record,) = caplog.records
    message = record.getMessage()
    assert "RuntimeError: cannot tile this)" in message and "1 x 3 x 5 x 5" in message


def test_training_and_prediction_are_compiled_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of a shape in eval mode, and without gradients, is guarded too."""
    module = Difference()
    fake_compiler(monkeypatch, lambda before: None if module.training else RuntimeError("not in eval mode"))
    form = Compiled(module)
    form(*images(4))
    assert module.calls == 0
    module.eval()
    assert torch.equal(form(*images(4)), torch.ones(1, 1, 4, 4)) and module.calls == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("backend='inductor' raised: CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        UserError("the files are gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_and_user_errors_are_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    fake_compiler(monkeypatch, lambda before: error)
    module = Difference()
    form = Compiled(module)
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            form(*images(4))
        assert raised.value is error
    assert module.calls == 0 and not caplog.records


def test_what_works_once_and_fails_later_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken device is not a compiler that does not work."""
    fails: list[bool] = []
    fake_compiler(monkeypatch, lambda before: RuntimeError("device lost") if fails else None)
    form = Compiled(Difference())
    form(*images(4))
    fails.append(True)
    with pytest.raises(RuntimeError, match="device lost"):
        form(*images(4))


def test_the_budget_of_the_host_program_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of kept activations is a global setting of torch; it is set inside calls only."""
    found: list[float] = []

    def error(before: Tensor) -> Exception | None:
        found.append(torch._functorch.config.activation_memory_budget)
        return RuntimeError("no compiler") if before.shape[2] == 5 else None

    fake_compiler(monkeypatch, error)
    form = Compiled(Difference(), kept=0.25)
    with torch._functorch.config.patch(activation_memory_budget=0.75):
        for side in (4, 4, 5):
            form(*images(side))
            assert torch._functorch.config.activation_memory_budget == 0.75
    assert found == [0.25] * 3
