"""The learning rate of every epoch, and the seed of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """The learning rate: lr * (1 - epoch / epochs) ** power, or half a cosine from lr to 0.

    It is updated every `every` epochs. In the first `warmup` epochs it rises linearly to these values.
    """

    lr: float
    epochs: int
    power: float
    every: int = 1
    cosine: bool = False
    warmup: int = 0

    def at(self, epoch: int) -> float:
        """Return the rate of an epoch, counted from 0."""
        held = epoch - epoch % self.every
        left = 1 - held / self.epochs
        share = (1 - math.cos(math.pi * left)) / 2 if self.cosine else left**self.power
        return self.lr * share * min(1.0, (held + 1) / (self.warmup + 1))


def step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed for dropout and refinement points in one step of one process."""
    return int(np.random.SeedSequence((seed, step, process, 2)).generate_state(1, np.uint64)[0])
