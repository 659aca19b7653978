"""torch.compile where it pays, and the plain call where it cannot work.

Compiling costs a minute or so for each shape of input; what it saves is a share of every later call. In training all
steps but the last of an epoch have one shape, and whether to compile follows from the options alone, so that a run is
the same when it goes on. In prediction shapes differ and the work may be short: there the first calls are timed, and
the shape that recurs is compiled once enough is left to do; two shapes at most.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from change.common import distributed

log = logging.getLogger(__name__)

CHOICES = ("auto", "on", "off")
SHAPES = 2  # compiled at most, in prediction
STEPS = 2000  # of training, below which compiling is not tried unasked
COST = 60.0  # seconds for a shape, on two CPU cores or one beside a GPU
# The share of an eager call's time that compiling saves in prediction. On a CPU (measured) nearly all of it is in
# convolutions and matrix products, which stay the same; on a GPU this is a cautious guess.
SAVED = {"cpu": 0.07, "cuda": 0.3}


def worth_compiling(choice: str, device: torch.device, steps: int) -> bool:
    """Whether a training run of so many steps is compiled. What `auto` means must not depend on any clock.

    On a CPU the convolutions stay as they are, and compiling takes minutes: only on request. Where several processes
    share batch norms a graph would break at each of them.
    """
    alone = distributed.processes() == 1
    return choice == "on" or (choice == "auto" and device.type == "cuda" and alone and steps >= STEPS)


class Compiled:
    """A module's compiled form; its first call says, once, where it has to be the module itself."""

    def __init__(self, module: nn.Module, kept: float = 1.0) -> None:
        """`kept`: the share of activations, 0 to 1, that stay in memory for the backward pass; it computes others."""
        self.module, self.kept = module, kept
        # Shapes are compiled one by one: a graph for all of them is slower, and is built where two differ.
        self.form: Callable[..., Any] = torch.compile(module, dynamic=False)
        self.tried = False

    def __call__(self, *inputs: Tensor) -> Any:
        """As the module."""
        # Read whenever a shape is compiled, at any call; other forms, of other shares, may have been called between.
        torch._functorch.config.activation_memory_budget = self.kept
        if self.tried:
            return self.form(*inputs)
        self.tried = True
        try:
            return self.form(*inputs)
        except Exception as error:  # of a compiler, a cache, a driver: whatever it is, the plain call decides
            outputs = self.module(*inputs)
            reason = str(error).strip().partition("\n")[0]
            log.warning("torch.compile does not work here (%s: %s): going on without", type(error).__name__, reason)
            self.form = self.module
            return outputs


class WhenItPays:
    """A network for prediction (before, after -> logits), compiled for the shapes where that saves time."""

    def __init__(self, network: nn.Module, device: torch.device, pixels: float, choice: str = "auto") -> None:
        """`pixels`: how many are to be predicted in all, as far as known; `choice`: one of `CHOICES`."""
        self.network, self.device, self.left, self.choice = network, device, pixels, choice
        self.calls: dict[torch.Size, int] = defaultdict(int)
        self.compiled: dict[torch.Size, Compiled] = {}

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """(B, 3, H, W) each -> logits (B, 1, H, W)."""
        shape, pixels = before.shape, before.shape[0] * before.shape[2] * before.shape[3]
        if shape not in self.compiled and len(self.compiled) < SHAPES:
            self.calls[shape] += 1
            if self.choice == "on":
                self.compiled[shape] = Compiled(self.network)
            elif self.choice == "auto" and self.calls[shape] == 2:  # the first call also sets things up
                return self.timed(before, after, pixels)
        self.left -= pixels
        logits: Tensor = self.compiled.get(shape, self.network)(before, after)
        return logits

    def timed(self, before: Tensor, after: Tensor, pixels: int) -> Tensor:
        """Call, and decide by the time this took whether the next call of this shape is worth compiling."""
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
        """Wait for the device, where it runs on its own."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
