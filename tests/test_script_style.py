"""The style of the bash scripts: short lines, one statement per line, and no findings of shellcheck."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted(REPOSITORY.glob("*_script/*.sh"))


def strip_bash(line: str) -> str:
    """Return a line without quoted text and comment, neither of which holds statements; `;;` ends no statement."""
    line = re.sub(r"'[^']*'", "''", line)
    line = re.sub(r'"(?:\$\((?:[^()]|\([^()]*\))*\)|[^"$]|\$)*"', '""', line)
    return re.sub(r"(^|\s)#.*", "", line).replace(";;", "")


def style_faults(text: str) -> list[str]:
    """Return the lines of a script that are too long, or hold more than one statement."""
    faults = []
    for line in text.splitlines():
        code = strip_bash(line)
        joined = ";" in re.sub(r";\s*(?:then|do)\s*$", "", code)
        chained = len(re.findall(r"&&|\|\|", code)) > 1
        one_line_block = re.search(r"\b(?:then|do|else)\s+\S", code) or re.search(r"\(\)\s*\{\s*\S", code)
        if len(line) > 100 or joined or chained or one_line_block:
            faults.append(line)
    return faults


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_style_of_scripts(script: Path) -> None:
    """Lines of at most 100 columns with one statement each."""
    assert style_faults(script.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "a=1; b=2",
        "if true; then echo; fi",
        "for x in 1 2; do echo; done",
        "one && two && three",
        "[ -f x ] || make x || exit 1",
        "f() { echo; }",
        'echo "a; b"; echo c',
        "echo " + "x" * 100,
    ],
)
def test_style_faults_are_found(line: str) -> None:
    assert style_faults(f"{line}\n") == [line]


@pytest.mark.parametrize(
    "line",
    ["if true; then", "while true; do", 'echo "a; b && c && d"', "a=1  # b; c", 'here="$(cd "$x" && pwd)"', "    ;;"],
)
def test_plain_lines_are_no_fault(line: str) -> None:
    assert style_faults(f"{line}\n") == []


def test_shellcheck() -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    command = [shellcheck, "-x", *map(str, SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
