"""Shared by the tests: tiny data sets in the real layout, and the programs, run in this process or in others."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from change.synthetic.render import draw_scene
from tests.in_process import run_in_process

# A shell's background jobs ignore Ctrl-C, and so would the programs that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# One thread, as in the programs that the tests start: with more, sums differ in the last bit.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent
# A network with a twelfth of the default's weights, which trains and is saved in a fraction of its time.
SMALL: dict[str, Any] = {"backbone": "timm:lcnet_050", "width": 32}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests first, so that no process is left with one at the end; the others keep their order."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def draw_pair(rng: np.random.Generator, width: int, height: int) -> tuple[NDArray[np.uint8], ...]:
    """Draw a scene with at least one new building: before and after (H, W, 3), and mask (H, W) of 0 and 255."""
    return tuple(array.copy() for array in draw_once(width, height, int(rng.integers(2**31))))


@functools.lru_cache(maxsize=256)
def draw_once(width: int, height: int, seed: int) -> tuple[NDArray[np.uint8], ...]:
    """Draw a scene for `draw_pair`, or return what was drawn before: many tests use the same few scenes."""
    before, after, mask = draw_scene(height, width, (seed,))
    return before, after, mask * np.uint8(255)


def write_pairs(folder: Path, count: int, width: int = 64, height: int = 64, seed: int = 0) -> Path:
    """Write `count` pairs as PNG into folder/{A,B,label}/0.png, 1.png, ..."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        for sub, picture in zip(("A", "B", "label"), draw_pair(rng, width, height), strict=True):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(picture).save(folder / sub / f"{index}.png")
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Write a data folder with five train pairs of 96 x 64 pixels and two val pairs of 64 x 64."""
    write_pairs(tmp_path / "data" / "train", 5, width=96, seed=1)
    write_pairs(tmp_path / "data" / "val", 2, seed=2)
    return tmp_path / "data"


def launcher(processes: int) -> list[str]:
    """Return the command line that starts this interpreter, in several processes through torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *(torchrun if processes > 1 else [])]


def surroundings() -> dict[str, str]:
    """Return the environment of a program: one thread, as in this process."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_program(
    program: str | Path,
    *arguments: object,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    timeout: float = 300,
    cwd: Path | None = None,
    as_process: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run train.py, test.py or another Python file as the main program, and capture what it writes.

    It runs inside this process, unless several processes, an environment or `as_process` ask for real ones. Several are
    started by tests/forked.py, which takes less time than torchrun; `start` and `run_verb` use torchrun.
    """
    file, given = REPOSITORY / program, [str(argument) for argument in arguments]
    if processes == 1 and not environment and not as_process:
        return run_in_process(file, given, cwd, timeout)
    several = [str(REPOSITORY / "tests" / "forked.py"), str(processes)] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *several, str(file), *given],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
        env={**surroundings(), **(environment or {})},
    )


def verb(*arguments: object, processes: int = 1) -> list[str]:
    """Return the command line of `python -m change`; it has to be run in the repository."""
    return [*launcher(processes), "-m", "change", *map(str, arguments)]


def run_verb(
    *arguments: object,
    processes: int = 1,
    timeout: float = 300,
    as_process: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m change` in the repository: in this process, or in real ones as `run_program` does."""
    if processes == 1 and not as_process:
        given = [str(argument) for argument in arguments]
        return run_in_process(REPOSITORY / "change" / "__main__.py", given, REPOSITORY, timeout)
    return subprocess.run(
        verb(*arguments, processes=processes),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
        check=False,
        env=surroundings(),
    )


def start(arguments: list[str], processes: int = 1) -> subprocess.Popen[str]:
    """Start train.py in a process group of its own."""
    return subprocess.Popen(
        [*launcher(processes), str(REPOSITORY / "train.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=surroundings(),
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """Return the ids of the processes that a process has started, oldest first."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `done` returns True; fail if the process ends before."""
    deadline = time.monotonic() + 120
    while not done():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_step(state: Path, process: subprocess.Popen[str], step: int) -> None:
    """Wait until the saved state of a run has reached `step`."""
    seen = 0  # when the state that was read last was written

    def reached() -> bool:
        nonlocal seen
        written = state.stat().st_mtime_ns if state.exists() else 0
        if written == seen:
            return False
        seen = written
        return bool(torch.load(state, mmap=True, weights_only=True)["progress"]["steps"] >= step)

    wait_for(reached, process)


def curve(folder: Path, tag: str, name: str = "run") -> list[tuple[int, float]]:
    """Read the steps and values of a curve from TensorBoard's files."""
    board = EventAccumulator(str(folder / "tensorboard" / name))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def train_arguments(root: Path, save_path: Path, **options: object) -> list[str]:
    """Return the arguments of a short run of a small network on the CPU; `options` replace these or add to them."""
    defaults: dict[str, object] = {
        **SMALL,
        "root": root,
        "save_path": save_path,
        "device": "cpu",
        "pretrained": "none",
        "trainsize": 0,
        "cropsize": 64,
        "train_batchsize": 2,
        "val_batchsize": 2,
        "epoch": 2,
        "val_epoch": 1,
        "workers": 0,
        "amp": "off",
        "lr": 1e-3,
    }
    if options.get("resume"):
        for name in ("pretrained", *SMALL):  # the checkpoint has weights, and says which network they are of
            del defaults[name]
    return [f"--{name}={value}" for name, value in {**defaults, **options}.items()]


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the last line on stderr, which holds the error."""
    return result.stderr.replace("\r", "\n").rstrip().rpartition("\n")[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real image pairs that PRX_REAL_DATA names; skip the test if it names none."""
    folder = os.environ.get("PRX_REAL_DATA")
    if not folder:
        pytest.skip("PRX_REAL_DATA names no folder of real image pairs")
    return Path(folder)
