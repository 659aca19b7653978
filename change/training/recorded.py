"""Launch all GPU kernels of a function at once: a CUDA graph.

A training step of a small network launches thousands of short kernels, and the launches take longer than the kernels.
A CUDA graph records the kernels once and launches all of them with one call. The results are the same.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from change.prediction.compiling import is_out_of_memory

log = logging.getLogger(__name__)

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
        self.plain = False  # recording has failed

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns, and leave the gradients that it leaves."""
        if self.graph is None and not self.plain:
            self.record(inputs)
        if self.graph is None or any(own.shape != given.shape for own, given in zip(self.inputs, inputs, strict=True)):
            return self.function(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.outputs

    def record(self, inputs: tuple[Tensor, ...]) -> None:
        """Record the function; if that fails, it is called as it is. Raises an error about memory."""
        kept = [buffer.clone() for buffer in self.buffers]
        state = torch.cuda.get_rng_state()
        self.inputs = tuple(torch.clone(tensor) for tensor in inputs)
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(TRIES):
                    self.function(*self.inputs)
                    self.forget_gradients()
            # Other threads, such as the one that pins memory, may go on with what a recording does not allow.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.outputs = self.function(*self.inputs)
            self.gradients = [parameter.grad for parameter in self.parameters]
            self.graph = graph
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            log.warning("no CUDA graph of this step (%s): going on without", reason)
            self.plain = True
        torch.cuda.current_stream().wait_stream(stream)
        self.forget_gradients()
        torch.cuda.set_rng_state(state)
        for buffer, before in zip(self.buffers, kept, strict=True):
            buffer.copy_(before)

    def forget_gradients(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None
