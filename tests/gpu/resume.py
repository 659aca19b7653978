"""A run of train.py on the device that is killed and continued, beside one that is not: part of the checks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from change.checkpoint import read_tensors
from change.common.errors import UserError
from tests.conftest import SMALL, write_pairs
from tests.gpu.settings import Session, to_arguments

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 16  # of the run that is killed and continued
PATIENCE = 240.0  # seconds; the session has its own, usually earlier, deadline


class Train:
    """A process of train.py with its output in a file."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "train.py"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def finish(self) -> None:
        """Wait for the end. Raises UserError with the last line of the log if the run fails."""
        if self.process.wait(PATIENCE):
            lines = self.log.read_text(errors="replace").replace("\r", "\n").strip().split("\n")
            raise UserError(f"train.py ended with code {self.process.returncode}: {lines[-1]}")

    def kill_after(self, state: Path, steps: int) -> int:
        """Kill the process once its state has a number of steps; return the number in the last state.

        Raises UserError if it ends before.
        """
        deadline = time.monotonic() + PATIENCE
        while not state.is_file() or steps_of(state) < steps:
            if self.process.poll() is not None:
                self.finish()
                raise UserError(f"the run that was to be killed after step {steps} ended before")
            if time.monotonic() > deadline:
                raise UserError(f"the run that was to be killed did not reach step {steps} in {PATIENCE:.0f} s")
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        return steps_of(state)


def steps_of(state: Path) -> int:
    """Return the number of steps of a saved state."""
    return int(torch.load(state, mmap=True, weights_only=True)["progress"]["steps"])


def killed_run(session: Session, device: str) -> Iterator[tuple[str, float]]:
    """Compare a run that is killed in the middle and continued with one that is not.

    If the run fails with --deterministic, the comparison is repeated without it.

    Yields:
        Names and values of figures, which are 0 if the two runs agree in every bit.
    """
    folder = session.scratch / "resume"
    write_pairs(folder / "data" / "train", 8, seed=1)
    write_pairs(folder / "data" / "val", 2, seed=2)
    try:
        yield from compare_runs(folder, device, STEPS, deterministic=True)
    except UserError as error:
        yield f"failures with --deterministic ({error})", 1.0
        yield from compare_runs(folder, device, STEPS, deterministic=False)


def compare_runs(folder: Path, device: str, steps: int, deterministic: bool) -> Iterator[tuple[str, float]]:
    """Run both, see `killed_run`. Raises UserError if one of them fails."""
    options = {
        "root": folder / "data",
        "device": device,
        **(SMALL if device == "cpu" else {"backbone": "efficientnet_lite0"}),  # on a CPU, this is only rehearsed
        "pretrained": "none",
        "recipe": "scratch",
        "refine": True,
        "cross": True,
        "trainsize": 0,
        "cropsize": 64,
        "train_batchsize": 2,
        "val_batchsize": 2,
        "epoch": steps // 4,  # there are 8 pairs
        "val_epoch": 2,
        "workers": 1,
        "compile": "off",
        "amp": "off" if device == "cpu" else "fp16",
        "deterministic": deterministic,
        "best_name": "run",
    }
    whole, broken = folder / "whole", folder / "broken"
    for old in (whole, broken):
        shutil.rmtree(old, ignore_errors=True)
    first = Train(to_arguments({**options, "save_path": whole}), folder / "whole.txt")
    second = Train(to_arguments({**options, "save_path": broken, "save_minutes": 0}), folder / "broken.txt")
    try:
        reached = second.kill_after(broken / "run.state.pth", steps // 2)
        third = Train(["--continue_run", str(broken)], folder / "continued.txt")
        try:
            third.finish()
        finally:
            third.process.kill()
        first.finish()
    finally:
        first.process.kill()
        second.process.kill()
    if reached >= steps:
        raise UserError(f"the run was killed too late, after step {reached} of {steps}")
    states = [read_tensors(place / "run.state.pth") for place in (whole, broken)]
    for name in ("weights", "average"):
        yield f"{name} after {steps} steps, killed after {reached}", largest_difference(*(s[name] for s in states))
    rows = [[json.loads(line)["loss"] for line in losses_of(place)] for place in (whole, broken)]
    yield "losses of the epochs", max(abs(one - other) for one, other in zip(*rows, strict=True))


def losses_of(folder: Path) -> list[str]:
    """Return the lines of the epochs of a run."""
    return (folder / "run.epochs.jsonl").read_text().splitlines()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of two state dicts with the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
