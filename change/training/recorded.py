"""Launch all GPU kernels of a function at once: a CUDA graph.

A training step of a small network launches thousands of short kernels, and the launches take longer than the kernels.
A CUDA graph records the kernels once and launches all of them with one call. The results are the same.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from change.common.errors import UserError

TRIES = 3  # plain calls before the recording, in which libraries start and choose their algorithms

Function = Callable[..., Any]  # takes tensors; returns a tensor or a tuple of tensors


class Recorded:
    """A function of tensors on a GPU, recorded at its first call and replayed for inputs of the same shapes.

    Each replay overwrites the results of the one before. Inputs of other shapes are computed without the recording.
    """

    def __init__(self, function: Function, module: nn.Module | None = None) -> None:
        """Wrap a function.

        Args:
            function: It must not wait for the GPU, and must do the same at every call.
            module: The module whose gradients the function computes; they must be None before each call. Its buffers
                may change.
        """
        self.function = function
        self.parameters = [] if module is None else list(module.parameters())
        self.buffers = [] if module is None else list(module.buffers())
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: Any = None
        self.gradients: list[Tensor | None] = []

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns, and set the gradients as the function does.

        Raises:
            UserError: the function cannot be recorded, or the recording does not fit into memory.
        """
        with torch.cuda.device(inputs[0].device):  # streams and graphs belong to the current device
            if self.graph is None:
                self.record(inputs)
            if any(own.shape != given.shape for own, given in zip(self.inputs, inputs, strict=True)):
                return self.function(*inputs)
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
            assert self.graph is not None
            self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.outputs

    def record(self, inputs: tuple[Tensor, ...]) -> None:
        """Record the function; raises UserError as `__call__` does."""
        kept = [buffer.clone() for buffer in self.buffers]
        device = inputs[0].device
        state = torch.cuda.get_rng_state(device)
        self.inputs = tuple(torch.clone(tensor) for tensor in inputs)
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(TRIES):
                self.function(*self.inputs)
                self.forget_gradients()
        try:
            # Other threads, such as the one that pins memory, may keep making calls that are not allowed in a capture.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.outputs = self.function(*self.inputs)
        except RuntimeError as error:  # torch may be unable to draw random numbers after that, so the run must end
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"this training step cannot be recorded as a CUDA graph ({reason}): use --cuda_graphs False"
            ) from error
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.graph = graph
        torch.cuda.current_stream().wait_stream(stream)
        self.forget_gradients()
        torch.cuda.set_rng_state(state, device)
        for buffer, before in zip(self.buffers, kept, strict=True):
            buffer.copy_(before)

    def forget_gradients(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None
