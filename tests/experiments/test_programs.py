"""Build the commands of the programs, and run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from change.common.errors import UserError
from change.experiments import programs
from change.experiments.programs import program_command, run, verb_command
from tests.conftest import REPOSITORY


def test_commands() -> None:
    train = str(REPOSITORY / "train.py")
    options = {"scale": "0.8 1.25", "cross": True, "lr": 1e-3}
    given = ["--scale=0.8 1.25", "--cross=True", "--lr=0.001"]
    assert program_command("train.py", options) == [sys.executable, train, *given]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=gpu"]
    assert program_command("train.py", options, "gpu") == [sys.executable, *launcher, train, *given]
    assert verb_command("pack", Path("a"), Path("b")) == [sys.executable, "-m", "change", "pack", "a", "b"]


def test_an_installed_package_has_no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "CLONE", tmp_path)
    with pytest.raises(UserError, match=r"train\.py is not part of the installed package: clone the repository"):
        program_command("train.py", {})


def test_running(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process finds the package from any folder, its exit code is returned, and a dry run only prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert run([sys.executable, "-c", "import change.common.errors"]) == 0
    assert run([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
    assert run(["a program", "--with=x y"], dry_run=True) == 0
    assert capfd.readouterr().out == "'a program' '--with=x y'\n"


# As train.py: the first signal of a kind is noted, a second one of the same kind ends the process at once.
CHILD = """
import pathlib, signal, sys, time
seen = []
def stop(number, frame):
    seen.append(number)
    signal.signal(number, signal.SIG_DFL)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
pathlib.Path("ready").touch()
while not seen:
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path("stopped").write_text(" ".join(map(str, seen)))
sys.exit(128 + seen[-1])
"""

PARENT = """
import signal, sys
from change.experiments.programs import run
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
code = run([sys.executable, "child.py"])
assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("number", "group", "seen"),
    [(signal.SIGTERM, False, {2}), (signal.SIGTERM, True, {2, 15}), (signal.SIGINT, True, {2})],
)
def test_a_signal_lets_the_program_finish(tmp_path: Path, number: signal.Signals, group: bool, seen: set[int]) -> None:
    """SIGTERM reaches only the parent or the whole group, Ctrl-C the group. The child always saves its state."""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if group:
        os.killpg(parent.pid, number)
    else:
        parent.send_signal(number)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 128 + number and errors == b""
    assert set(map(int, (tmp_path / "stopped").read_text().split())) == seen
