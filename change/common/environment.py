"""Find or set up the interpreter for this repository: `python3 -m change.common.environment REQUIREMENTS...`.

The last line on stdout is the path of an interpreter that has everything in the requirement files:

- the interpreter that runs this, if it has everything;
- otherwise, if no environment is active, the one in `.venv`, which is created and filled if necessary;
- otherwise, with PRX_SETUP=1, that of the active conda or virtual environment, into which the packages are installed.
  Without PRX_SETUP=1 nothing is installed, and the error shows the command that would do it.

TORCH_INDEX names a package index to install torch and torchvision from. Only the standard library is used.
"""

from __future__ import annotations

import operator
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
VENV = REPOSITORY / ".venv"
OLDEST = (3, 10)
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SIZE = "about 5 GB on Linux, because torch includes CUDA packages"
HINT = f"; without a GPU, set TORCH_INDEX={CPU_INDEX} for about 1 GB"

# A requirement is NAME or NAME>=VERSION, with a marker if only some versions of Python need it:
# tomli>=2; python_version < "3.11"
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w, -]*\])?(?:\s*>=\s*([\w.+]+))?(?:\s*;\s*(.+))?")
MARKER = re.compile(r"""python_version\s*(<|<=|>|>=|==|!=)\s*["']([\d.]+)["']""")
COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def requirements(files: list[str]) -> list[tuple[str, str]]:
    """Return the name and least version ("" for any) of every requirement that applies to the running Python.

    Exits with an error if a line does not match REQUIREMENT.
    """
    found = []
    for file in files:
        for line in (REPOSITORY / file).read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if not text:
                continue
            match = REQUIREMENT.fullmatch(text)
            if match is None:
                stop(f'{file}: cannot read "{text}": write NAME>=VERSION, and ; python_version < "3.11" if needed')
            if match[3] is None or applies(match[3], file):
                found.append((match[1], match[2] or ""))
    return found


def applies(marker: str, file: str, running: str = PYTHON_VERSION) -> bool:
    """Tell whether a marker such as `python_version < "3.11"` holds for the version `running`."""
    match = MARKER.fullmatch(marker.strip())
    if match is None:
        stop(f'{file}: cannot read the marker "{marker}": only comparisons of python_version are understood')
    return bool(COMPARISONS[match[1]](numbers(running), numbers(match[2])))


def numbers(version: str) -> list[int]:
    """Return the leading numbers of a version, for comparison: "2.15.0+cpu" -> [2, 15, 0]."""
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else []


def find_missing(files: list[str]) -> list[str]:
    """List the requirements that the packages of this interpreter do not meet."""
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


def find_missing_in(python: str, files: list[str]) -> list[str]:
    """List the requirements that another interpreter does not meet: all if it does not exist or does not work."""
    code = f"from change.common.environment import find_missing; print(*find_missing({files!r}), sep='\\n')"
    try:
        answer = subprocess.run([python, "-c", code], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return [name for name, _ in requirements(files)]
    return [line for line in answer.stdout.splitlines() if line]


def install_commands(python: str, files: list[str]) -> list[list[str]]:
    """Return the pip commands that install the requirements: torch and torchvision first if TORCH_INDEX is set."""
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    everything = [*pip, *[part for file in files for part in ("-r", str(REPOSITORY / file))]]
    index = os.environ.get("TORCH_INDEX")
    if not index:
        return [everything]
    torch = [f"{name}>={least}" for name, least in requirements(files) if name.startswith("torch")]
    return [[*pip, "--index-url", index, *torch], everything]


def install(python: str, files: list[str]) -> None:
    """Run pip, with its output on stderr. Exits with an error if it fails."""
    for command in install_commands(python, files):
        if subprocess.run([*command, "--quiet"], stdout=sys.stderr, check=False).returncode:
            stop(f"pip failed; see its message above. To try again, run: {shlex.join(command)}")


def stop(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def main(files: list[str]) -> None:
    """Find or set up the interpreter and print its path."""
    if sys.version_info < OLDEST:
        running = f"{sys.executable} is Python {sys.version.split()[0]}"
        stop(f"{running}, but 3.10 or newer is needed: name another one, as in python=python3.12")
    missing = find_missing(files)
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    python = sys.executable
    if missing and active:
        if os.environ.get("PRX_SETUP") != "1":
            line = " && ".join(shlex.join(command) for command in install_commands(python, files))
            stop(f"the active environment {active} lacks {', '.join(missing)}. Run: {line} ({SIZE}{HINT})")
        install(python, files)
    elif missing:
        python = str(VENV / "bin" / "python")
        missing = find_missing_in(python, files)
        if missing:
            torch_from = os.environ.get("TORCH_INDEX")
            size = f" (torch from {torch_from})" if torch_from else f" ({SIZE}{HINT})"
            large = any(name.startswith("torch") for name in missing)
            sys.stderr.write(f"installing {', '.join(missing)} into {VENV}, once{size if large else ''}\n")
            if subprocess.run([sys.executable, "-m", "venv", str(VENV)], stdout=sys.stderr, check=False).returncode:
                stop(f"{VENV} could not be created; see the message above")
            install(python, files)
    sys.stdout.write(python + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
