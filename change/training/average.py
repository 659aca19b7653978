"""The moving average of a network's weights over the training steps."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class WeightAverage(Generic[Network]):
    """An exponential moving average of weights and running statistics.

    The decay after n steps is at most (1 + n) / (10 + n), so that the start is soon forgotten. Integers are copied.
    `torch.optim.swa_utils.AveragedModel` is not used: it copies the weights at the first step, so old runs would not
    continue exactly, and it reads a counter from the device at every step.

    Source: the ExponentialMovingAverage of TensorFlow 1.

    Attributes:
        network: the average, a copy that follows the trained network; with decay 0 the trained network itself.
        networks: the trained network and the copy, if there is one.
    """

    def __init__(self, trained: Network, decay: float) -> None:
        """Start the average at the weights of `trained`, on its device. `decay` is 0 to below 1."""
        self.decay = decay
        self.network = copy.deepcopy(trained).requires_grad_(False) if decay else trained
        self.networks = [trained, self.network] if decay else [trained]
        pairs = list(zip(self.network.state_dict().values(), trained.state_dict().values(), strict=True))
        self.floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self.integers = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Move the average towards the weights after `steps` steps, without waiting for the device."""
        if self.decay:
            decay = min(self.decay, (1 + steps) / (10 + steps))
            averages, weights = map(list, zip(*self.floats, strict=True))
            torch._foreach_lerp_(averages, weights, 1 - decay)
            for average, integer in self.integers:
                average.copy_(integer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a run needs to continue; empty without an average."""
        return dict(self.network.state_dict()) if self.decay else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises RuntimeError if it does not fit."""
        if self.decay:
            self.network.load_state_dict(state)
