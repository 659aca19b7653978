"""What several tests share: tiny data sets in the real layout, and the programs as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from change.synthetic.render import draw_scene
from tests.in_process import run_in_process

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's background jobs do, and the programs they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # as in the programs that tests start: sums in another order differ in the last bit

REPOSITORY = Path(__file__).resolve().parent.parent

Program = Callable[..., "subprocess.CompletedProcess[str]"]

# Whose tests take minutes, the longest first: processes that share out the files get them in this order, and none has
# a long one left at the end.
LONG = (
    "training",
    "distributed",
    "scripts",
    "wrong_input",
    "benchmark",
    "fuse",
    "cache",
    "report",
    "evaluation",
    "check",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; within a file nothing moves."""
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONG)))


def draw_pair(rng: np.random.Generator, width: int, height: int) -> tuple[NDArray[np.uint8], ...]:
    """A synthetic scene: before, after (H, W, 3), mask (H, W) of 0 and 255, of at least one building."""
    before, after, mask = draw_scene(height, width, (int(rng.integers(2**31)),))
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
    """A data folder with five train pairs of 96 x 64 and two val pairs of 64 x 64."""
    write_pairs(tmp_path / "data" / "train", 5, width=96, seed=1)
    write_pairs(tmp_path / "data" / "val", 2, seed=2)
    return tmp_path / "data"


def launcher(processes: int) -> list[str]:
    """This interpreter, in as many processes as asked for."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *(torchrun if processes > 1 else [])]


def surroundings() -> dict[str, str]:
    """The environment of a program: one thread, as in this process, so that results agree to the last bit."""
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

    It runs inside this process, unless several processes, an environment or `as_process` ask for real ones.
    """
    file, given = REPOSITORY / program, [str(argument) for argument in arguments]
    if processes == 1 and not environment and not as_process:
        return run_in_process(file, given, cwd, timeout)
    return subprocess.run(
        [*launcher(processes), str(file), *given],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
        env={**surroundings(), **(environment or {})},
    )


def verb(*arguments: object, processes: int = 1) -> list[str]:
    """`python -m change`, with this interpreter, in as many processes; to be run in the repository."""
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
    """Start train.py in a group of its own."""
    return subprocess.Popen(
        [*launcher(processes), str(REPOSITORY / "train.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=surroundings(),
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a process has started, in the order of starting."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `done`, while the process runs."""
    deadline = time.monotonic() + 120
    while not done():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_step(state: Path, process: subprocess.Popen[str], step: int) -> None:
    """Wait until the run's state has come to `step`; it is read once for every time it was written."""
    seen = 0

    def reached() -> bool:
        nonlocal seen
        written = state.stat().st_mtime_ns if state.exists() else 0
        if written == seen:
            return False
        seen = written
        return bool(torch.load(state, mmap=True, weights_only=True)["progress"]["steps"] >= step)

    wait_for(reached, process)


def curve(folder: Path, tag: str, name: str = "run") -> list[tuple[int, float]]:
    """A curve as TensorBoard shows it."""
    board = EventAccumulator(str(folder / "tensorboard" / name))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def train_arguments(root: Path, save_path: Path, **options: object) -> list[str]:
    """Arguments of a run on the CPU that takes seconds; `options` replace or add to them."""
    defaults: dict[str, object] = {
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
    return [f"--{name}={value}" for name, value in {**defaults, **options}.items()]


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr, where an error stands."""
    return result.stderr.replace("\r", "\n").rstrip().rpartition("\n")[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image pairs that PRX_REAL_DATA names; the test is skipped without."""
    folder = os.environ.get("PRX_REAL_DATA")
    if not folder:
        pytest.skip("PRX_REAL_DATA names no folder of real image pairs")
    return Path(folder)
