"""Which interpreter runs this repository, and setting it up: `python3 -m change.common.environment REQUIREMENTS...`.

The last line on stdout is the path of an interpreter that has what the requirement files name. Where the one that runs
this has it all, that is it. Else, with no environment active, `.venv` is made and filled, once; in an active conda or
virtual environment nothing is changed, and the line to run is printed, unless PRX_SETUP=1 asks to run it.

TORCH_INDEX names a package index to take torch and torchvision from. Uses the standard library alone.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
VENV = REPOSITORY / ".venv"
OLDEST = (3, 10)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SIZE = "about 5 GB on Linux, where torch brings its CUDA packages"
HINT = f"; without a GPU, TORCH_INDEX={CPU_INDEX} makes it about 1 GB"


def requirements(files: list[str]) -> list[tuple[str, str]]:
    """The name and the least version of every line NAME>=VERSION."""
    lines = [line.strip() for file in files for line in (REPOSITORY / file).read_text().splitlines()]
    parts = [line.partition(">=") for line in lines if line and not line.startswith("#")]
    return [(name.strip(), version.strip()) for name, _, version in parts]


def numbers(version: str) -> list[int]:
    """The leading numbers of a version, for comparing: "2.15.0+cpu" -> [2, 15, 0]."""
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else []


def lacking(files: list[str]) -> list[str]:
    """The requirements that this interpreter's packages do not meet."""
    missing = []
    for name, least in requirements(files):
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if numbers(installed) < numbers(least):
            missing.append(f"{name}>={least} (it has {installed})")
    return missing


def lacking_in(python: str, files: list[str]) -> list[str]:
    """The same of another interpreter, which may not be there or not work: then it lacks everything."""
    code = f"from change.common.environment import lacking; print(*lacking({files!r}), sep='\\n')"
    try:
        answer = subprocess.run([python, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [name for name, _ in requirements(files)]
    return [line for line in answer.stdout.splitlines() if line]


def install_commands(python: str, files: list[str]) -> list[list[str]]:
    """The pip calls that meet the requirements: torch and torchvision first where TORCH_INDEX names an index."""
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    everything = [*pip, *[part for file in files for part in ("-r", str(REPOSITORY / file))]]
    index = os.environ.get("TORCH_INDEX")
    if not index:
        return [everything]
    torch = [f"{name}>={least}" for name, least in requirements(files) if name.startswith("torch")]
    return [[*pip, "--index-url", index, *torch], everything]


def install(python: str, files: list[str]) -> None:
    """Run pip; what it says goes to stderr. Raises SystemExit where it fails."""
    for command in install_commands(python, files):
        if subprocess.run([*command, "--quiet"], stdout=sys.stderr, check=False).returncode:
            stop(f"pip failed; its message stands above. To try again: {shlex.join(command)}")


def stop(message: str) -> None:
    """Say one line and exit with code 2."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def main(files: list[str]) -> None:
    """Find or make the interpreter and print its path."""
    if sys.version_info < OLDEST:
        stop(
            f"{sys.executable} is Python {sys.version.split()[0]}: 3.10 or newer is needed; name one: python=python3.12"
        )
    missing = lacking(files)
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    python = sys.executable
    if missing and active:
        if os.environ.get("PRX_SETUP") != "1":
            line = " && ".join(shlex.join(command) for command in install_commands(python, files))
            stop(f"the active environment {active} lacks {', '.join(missing)}. Run: {line} ({SIZE}{HINT})")
        install(python, files)
    elif missing:
        python = str(VENV / "bin" / "python")
        missing = lacking_in(python, files)
        if missing:
            torch_from = os.environ.get("TORCH_INDEX")
            size = f" (torch from {torch_from})" if torch_from else f" ({SIZE}{HINT})"
            large = any(name.startswith("torch") for name in missing)
            sys.stderr.write(f"installing {', '.join(missing)} into {VENV}, once{size if large else ''}\n")
            if subprocess.run([sys.executable, "-m", "venv", str(VENV)], stdout=sys.stderr, check=False).returncode:
                stop(f"{VENV} could not be made; the message stands above")
            install(python, files)
    sys.stdout.write(python + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
