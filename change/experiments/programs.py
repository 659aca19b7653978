"""Build the commands of train.py, test.py and the verbs, and run them as processes."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from change.common.errors import UserError
from change.common.files import CLONE


def find_program(program: str) -> Path:
    """Return the path of train.py or test.py. Raises UserError if this is an installed package, which has neither."""
    path = CLONE / program
    if not path.is_file():
        raise UserError(
            f"{program} is not part of the installed package: clone the repository of PRX-Change, and run this there"
        )
    return path


def program_command(program: str, options: Mapping[str, object], nproc: str = "1") -> list[str]:
    """Return the command that runs train.py or test.py with this interpreter.

    Args:
        program: "train.py" or "test.py".
        options: Values by the name of the option.
        nproc: Number of processes for torchrun, or "gpu"; "1" runs without torchrun.

    Raises:
        UserError: If this is an installed package, which has neither program.
    """
    path = find_program(program)
    launcher = [] if nproc == "1" else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
    return [sys.executable, *launcher, str(path), *(f"--{name}={value}" for name, value in options.items())]


def verb_command(verb: str, *arguments: object) -> list[str]:
    """Return the command that runs `python -m change VERB` with this interpreter."""
    return [sys.executable, "-m", "change", verb, *map(str, arguments)]


def run(command: Sequence[str], dry_run: bool = False) -> int:
    """Run a command and return its exit code: 128 plus the signal's number if a signal ended it, or made it end.

    Ctrl-C and SIGTERM are left to the command, because train.py then saves its state. With `dry_run`, the command is
    printed instead.
    """
    if dry_run:
        sys.stdout.write(shlex.join(command) + "\n")
        return 0
    paths = [str(CLONE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    process = subprocess.Popen(command, env=environment)
    with signals_left_to(process) as passed_on:
        code = process.wait()
    code = code if code >= 0 else 128 - code
    return 128 + signal.SIGTERM if passed_on and code else code


@contextlib.contextmanager
def signals_left_to(process: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Ignore Ctrl-C, which a terminal sends to `process` too, and pass SIGTERM on; restore both handlers afterwards.

    SIGTERM is passed on as Ctrl-C: it may have been sent to `process` as well, and a second SIGTERM would end it
    without saving. Yields the signals that were passed on so far.
    """
    passed_on: list[int] = []

    def ignore(number: int, frame: FrameType | None) -> None:
        """Do nothing. Unlike SIG_IGN, a handler is not inherited by processes that are started now."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not passed_on:
            process.send_signal(signal.SIGINT)
        passed_on.append(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, ignore),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
