"""The pace of a run: one line in the log per epoch, and how long the rest of the run will take on this hardware."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from change.common.devices import hardware_name
from change.training.step import LOSS_NAMES

log = logging.getLogger(__name__)

SHOW_EVERY = 10.0  # seconds between two lines on the console; the log file has all


class Pace:
    """Measures steps and validations of this process, from the first reading of the losses on."""

    def __init__(self, epochs: int, steps: int, val_epoch: int, device: torch.device) -> None:
        """Prepare a run of `epochs` epochs of `steps` steps, with a validation after every `val_epoch`-th epoch."""
        self.epochs, self.steps, self.val_epoch, self.device = epochs, steps, val_epoch, device
        self.began: tuple[int, float] | None = None  # steps done and the time, when measuring began
        self.announced = False
        self.validations, self.validating = 0, 0.0  # their number, and seconds spent in them
        self.shown = 0.0

    def measure(self, epoch: int, done: int) -> None:
        """Begin to measure or, the second time, log how long the run will take.

        The first steps are left out, because they also start loader processes and choose algorithms.

        Args:
            epoch: Epochs done.
            done: Steps done in the run.
        """
        if self.began is None:
            self.began = done, time.monotonic()
        elif not self.announced:
            self.announced = True
            rest = self.seconds_left(epoch, done)
            if rest:
                steps, place = done - self.began[0], hardware_name(self.device)
                without = "" if self.validations else " without validations"
                text = "about %s to go%s, measured over %d steps on %s"
                log.info(text, format_duration(rest), without, steps, place)

    def seconds_left(self, epoch: int, done: int) -> float | None:
        """Estimate the seconds until the end of the run; None if nothing has been measured yet.

        Args:
            epoch: Epochs done, with their validations.
            done: Steps done in the run.
        """
        if self.began is None or done <= self.began[0]:
            return None
        per_step = (time.monotonic() - self.began[1] - self.validating) / (done - self.began[0])
        per_validation = self.validating / self.validations if self.validations else 0.0
        ends = range(epoch + 1, self.epochs + 1)
        validations = sum(end % self.val_epoch == 0 or end == self.epochs for end in ends)
        return (self.epochs * self.steps - done) * per_step + validations * per_validation

    @contextlib.contextmanager
    def validation(self) -> Iterator[None]:
        """Measure the validation in this `with` block."""
        began = time.monotonic()
        yield
        self.validations += 1
        self.validating += time.monotonic() - began

    def report(self, row: Mapping[str, Any], done: int) -> None:
        """Log an epoch in one line: its losses, learning rate, pairs per second, and the time to go.

        Args:
            row: The line of the epoch in NAME.epochs.jsonl.
            done: Steps done in the run.
        """
        parts = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in LOSS_NAMES]
        parts += [f"lr {row['lr']:.2e}", f"{row['pairs_per_second']:.1f} pairs/s"]
        rest = self.seconds_left(row["epoch"] - 1, done)
        if rest is not None and done < self.epochs * self.steps:
            parts.append(f"{format_duration(rest)} to go")
        now = time.monotonic()
        show = now - self.shown >= SHOW_EVERY
        if show:
            self.shown = now
        extra = {"only_in_file": not show}
        log.info("epoch %d/%d: %s", row["epoch"], self.epochs, ", ".join(parts), extra=extra)


def format_duration(seconds: float) -> str:
    """Format a duration: "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
