"""Run the bash scripts in tests: with a recorder in place of the interpreter, or for real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from change.common.command_line import parse_given
from change.options.train import TrainOptions
from tests.conftest import REPOSITORY, run_program, run_verb

# An interpreter that only records its arguments, one per line, with a line of dots after each command.
RECORDER = """#!/bin/sh
printf '%s\\n' "$@" ... >>"$0.log"
"""


def run_script(script: str, cwd: Path, *arguments: str, **values: object) -> subprocess.CompletedProcess[str]:
    """Run a script. Of the environment variables that scripts take, only `values` and a few defaults are set."""
    environment = {name: value for name, value in os.environ.items() if name not in names_in_run_sh()}
    environment |= {"python": sys.executable, "OMP_NUM_THREADS": "2", **{k: str(v) for k, v in values.items()}}
    command = ["bash", str(REPOSITORY / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


@cache
def names_in_run_sh(array: str = r"\w+") -> frozenset[str]:
    """Return the words in the arrays of run.sh whose name matches the pattern `array`: by default, in all arrays."""
    text = (REPOSITORY / "train_script" / "run.sh").read_text()
    arrays = re.findall(rf"^{array}=\(\n([^)]*)\)", text, re.MULTILINE)
    return frozenset(word for words in arrays for word in words.split())


def make_recorder(place: Path, code: int = 0) -> Path:
    """Write an interpreter that records its arguments and exits with `code`."""
    recorder = place / "recorder"
    recorder.write_text(f"{RECORDER}exit {code}\n")
    recorder.chmod(0o755)
    recorder.with_suffix(".log").unlink(missing_ok=True)
    return recorder


def recorded(place: Path) -> list[list[str]]:
    """Return the arguments of every command that the recorder in `place` was given."""
    log = place / "recorder.log"
    text = log.read_text() if log.exists() else ""
    return [command.splitlines() for command in text.split("...\n") if command]


def commands_of(script: str, cwd: Path, *arguments: str, **values: object) -> list[list[str]]:
    """Return the commands that a script gives its interpreter, without running them."""
    result = run_script(script, cwd, *arguments, **{**values, "python": make_recorder(cwd)})
    assert result.returncode == 0, result.stderr
    return recorded(cwd)


def command_of(script: str, cwd: Path, *arguments: str, **values: object) -> list[str]:
    """Return the only command that a script gives."""
    (command,) = commands_of(script, cwd, *arguments, **values)
    return command


def options_in(command: list[str]) -> dict[str, str]:
    """Return the options of a command. If one is repeated, the last counts, as it does for the programs."""
    options = [word.removeprefix("--").split("=", 1) for word in command if word.startswith("--") and "=" in word]
    return dict(options)


def options_of(script: str, cwd: Path, *arguments: str, **values: object) -> dict[str, str]:
    """Return the options that a script gives its program."""
    return options_in(command_of(script, cwd, *arguments, **values))


def read_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return options of train.py as train.py reads them."""
    return parse_given(TrainOptions, [f"--{name}={value}" for name, value in options.items()], "")


def perform(command: list[str], cwd: Path) -> str:
    """Run a recorded command; return what it writes on stderr."""
    if command[:2] == ["-m", "change"]:
        result = run_verb(*command[2:])
    else:
        result = run_program(Path(command[0]), *command[1:], cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stderr
