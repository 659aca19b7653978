"""Where a run stands, what follows from that (learning rate, seeds), and what stops it."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field
from types import FrameType

import numpy as np


class Interrupted(Exception):
    """The run was told to stop; its state is saved. `code`: what the process should exit with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class StopSignal:
    """Notes the first Ctrl-C or SIGTERM, for the loop to stop where it can save; a second one kills."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Progress:
    """Where a run stands. `sums`: of total, classification and refinement loss over this epoch's pairs so far."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the next one
    steps: int = 0  # steps done in all
    best: float = -1.0
    best_epoch: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    pairs: int = 0


@dataclass(frozen=True)
class Schedule:
    """Learning rate, set anew every `every` epochs: lr * (1 - epoch / epochs) ** power, or half a cosine from lr to 0.

    In the first `warmup` epochs it rises evenly to that.
    """

    lr: float
    epochs: int
    power: float
    every: int = 1
    cosine: bool = False
    warmup: int = 0

    def at(self, epoch: int) -> float:
        """The rate of the epoch that follows `epoch` finished ones."""
        held = epoch - epoch % self.every
        left = 1 - held / self.epochs
        share = (1 - math.cos(math.pi * left)) / 2 if self.cosine else left**self.power
        return self.lr * share * min(1.0, (held + 1) / (self.warmup + 1))


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of one step's dropout and points in one process."""
    return int(np.random.SeedSequence((seed, step, process, 2)).generate_state(1, np.uint64)[0])
