"""Use torch.compile if it saves time, and fall back to plain calls if it fails.

Compiling takes about a minute for each input shape and shortens every later call. In training, all steps of an epoch
but the last have the same shape. The choice does not depend on timings, so that a continued run stays the same. In
prediction, shapes differ and there may be little work: the second call of each shape is timed, and the shape is
compiled if enough work is left. At most two shapes are compiled.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from change.common.errors import OUT_OF_MEMORY, UserError

log = logging.getLogger(__name__)

SHAPES = 2  # maximum number of shapes that are compiled for prediction
STEPS = 2000  # training runs of fewer steps are compiled only on request
COST = 60.0  # seconds to compile one shape, on two CPU cores or on one beside a GPU
# The share of a plain call's time that compiling saves in prediction. On a CPU (measured) nearly all time goes into
# convolutions and matrix products, which stay the same; the value for a GPU is a cautious guess.
SAVED = {"cpu": 0.07, "cuda": 0.3}


def worth_compiling(choice: str, device: torch.device, steps: int, shares_statistics: bool = False) -> bool:
    """Return whether to compile a part of a training run of `steps` steps. `auto` does not depend on timings.

    `auto` does not compile on a CPU, where compiling takes minutes and does not speed up convolutions, nor a network
    that shares the statistics of its batch norms with other processes, because each of them breaks the graph.
    """
    return choice == "on" or (choice == "auto" and device.type == "cuda" and not shares_statistics and steps >= STEPS)


class Compiled:
    """The compiled form of a module, which uses the module itself for inputs that cannot be compiled."""

    def __init__(self, module: nn.Module, kept: float = 1.0) -> None:
        """Wrap a module; compiling starts with the first call.

        Args:
            module: called with tensors only.
            kept: share of the activations, 0 to 1, that stay in memory for the backward pass; the others are
                computed again.
        """
        self.module, self.kept = module, kept
        # Every shape is compiled separately: one graph for all shapes is slower.
        self.form: Callable[..., Any] = torch.compile(module, dynamic=False)
        self.proven: set[Hashable] = set()  # cases that have worked
        self.plain: set[Hashable] = set()  # cases that failed to compile

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the module returns.

        Raises what the module raises, errors about memory, and errors of cases that have worked before.
        """
        case = self.case(inputs)
        if case in self.plain:
            return self.module(*inputs)
        # The budget is read whenever torch compiles, at any call. It is global, so it is set only for this call.
        budget = torch._functorch.config.patch(activation_memory_budget=self.kept)
        if case in self.proven:
            with budget:
                return self.form(*inputs)
        try:
            with budget:
                outputs = self.form(*inputs)
        except Exception as error:  # any error of a compiler, a cache or a driver
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            outputs = self.module(*inputs)  # if this fails too, compiling is not to blame
            reason = str(error).strip().partition("\n")[0]
            sizes = ", ".join(" x ".join(map(str, tensor.shape)) for tensor in inputs)
            log.warning(
                "torch.compile does not work here (%s: %s): going on without it for inputs of %s",
                type(error).__name__,
                reason,
                sizes,
            )
            self.plain.add(case)
            return outputs
        self.proven.add(case)
        return outputs

    def case(self, inputs: Sequence[Tensor]) -> Hashable:
        """Return the shapes and dtypes, the training mode and the gradient mode: torch compiles once for each case."""
        tensors = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        return tensors, self.module.training, torch.is_grad_enabled()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory is exhausted, even if a compiler has wrapped it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


class WhenItPays:
    """A network for prediction (before, after -> logits), compiled for the shapes for which that saves time."""

    def __init__(self, network: nn.Module, device: torch.device, pixels: float, choice: str = "auto") -> None:
        """Wrap a network.

        Args:
            network: takes before and after, (B, C, H, W) each, and returns logits (B, O, H, W).
            device: the network's device.
            pixels: number of pixels that are to be predicted in total, as far as known.
            choice: one of `COMPILE_CHOICES`.
        """
        self.network, self.device, self.left, self.choice = network, device, pixels, choice
        self.calls: dict[torch.Size, int] = defaultdict(int)
        self.compiled: dict[torch.Size, Compiled] = {}

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """Turn images (B, C, H, W) into logits (B, O, H, W)."""
        shape, pixels = before.shape, before.shape[0] * before.shape[2] * before.shape[3]
        if shape not in self.compiled and len(self.compiled) < SHAPES:
            self.calls[shape] += 1
            if self.choice == "on":
                self.compiled[shape] = Compiled(self.network)
            elif self.choice == "auto" and self.calls[shape] == 2:  # the first call also initialises libraries
                return self.call_timed(before, after, pixels)
        self.left -= pixels
        logits: Tensor = self.compiled.get(shape, self.network)(before, after)
        return logits

    def call_timed(self, before: Tensor, after: Tensor, pixels: int) -> Tensor:
        """Call the network; the time that this takes decides whether later calls of this shape are compiled."""
        self.synchronise()
        began = time.perf_counter()
        logits: Tensor = self.network(before, after)
        self.synchronise()
        seconds = time.perf_counter() - began
        self.left -= pixels
        saving = SAVED.get(self.device.type, 0.0) * seconds * self.left / pixels
        if saving > COST:
            log.info("compiling for %s, which is expected to save %.0f s", tuple(before.shape), saving)
            self.compiled[before.shape] = Compiled(self.network)
        return logits

    def synchronise(self) -> None:
        """Wait for the device if it works asynchronously."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
