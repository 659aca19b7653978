"""SIGTERM to a script of several passes: the program saves, the script waits for it, and no other pass starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.scripts import names_in_run_sh

# An interpreter that saves as train.py does: a second signal of the same kind ends it at once.
PROGRAM = f"""#!{sys.executable}
import os, signal, sys, time
log = open({{log!r}}, "a", buffering=1)
stop = []
def note(number, frame):
    stop.append(number)
    signal.signal(number, signal.SIG_DFL)
for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        log.write("ignored\\n")
    signal.signal(number, note)
log.write(f"started {{{{os.getpid()}}}}\\n")
while not stop:
    time.sleep(0.05)
time.sleep(1)
log.write("saved\\n")
sys.exit(128 + stop[-1])
"""


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(
    ("script", "number", "code", "whole_group"),
    [
        ("train_all.sh levir", signal.SIGTERM, 143, False),
        ("train_demo.sh", signal.SIGTERM, 143, False),
        ("train_buildings.sh", signal.SIGTERM, 143, False),
        ("train_all.sh levir", signal.SIGTERM, 143, True),
        ("train_demo.sh", signal.SIGTERM, 143, True),
        ("train_all.sh levir", signal.SIGINT, 130, True),
    ],
)
def test_the_program_saves(tmp_path: Path, script: str, number: signal.Signals, code: int, whole_group: bool) -> None:
    """Also if a supervisor, or a terminal, signals the script and the program at once."""
    log, program = tmp_path / "log", tmp_path / "program"
    program.write_text(PROGRAM.format(log=str(log)))
    program.chmod(0o755)
    for part in ("train", "val"):
        (tmp_path / "data" / part).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in names_in_run_sh()}
    environment |= {"python": str(program), "root": str(tmp_path / "data"), "save_path": str(tmp_path / "run")}
    name, *arguments = script.split()
    command = ["bash", str(REPOSITORY / "train_script" / name), *arguments]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while not lines(log) and time.monotonic() < deadline:
        time.sleep(0.02)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert [line.partition(" ")[0] for line in lines(log)] == ["started", "saved"]
