"""Find or set up the interpreter for this repository: `python3 -m change.common.environment REQUIREMENTS...`.

The last line on stdout is the path of an interpreter that has everything in the requirement files:

- the interpreter that runs this, if it has everything;
- otherwise, if no environment is active, the one in `.venv`, which is created and filled if necessary;
- otherwise, with PRX_SETUP=1, that of the active conda or virtual environment, into which the packages are installed.
  Without PRX_SETUP=1 nothing is installed, and the error shows the command that would do it.

On Linux without an NVIDIA GPU, torch and torchvision come from PyTorch's index of CPU-only packages if pip reaches it.
TORCH_INDEX names another index for them. Only the standard library is used.

With --check as the first argument, nothing is installed. It is then an error if the running interpreter lacks a
package.
"""

from __future__ import annotations

import math
import operator
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
VENV = REPOSITORY / ".venv"
OLDEST = (3, 10)
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH = ("torch", "torchvision")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # exists while the driver is loaded

# GB to download and GB on disk on Linux: for requirements.txt with and without CUDA, and for the other files.
WITH_CUDA, WITHOUT_CUDA, OTHER_FILES = (3.1, 5.8), (0.4, 1.3), (0.3, 1.1)

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


@dataclass(frozen=True)
class Source:
    """The source of torch and torchvision.

    Attributes:
        index: The package index; empty for the one that pip uses for everything else.
        packages: The packages to install from that index first.
        note: A message to the user about the choice of the index; may be empty.
        size: A message to the user about the size and duration of the installation; may be empty.
    """

    index: str
    packages: list[str]
    note: str
    size: str


def choose_source(python: str, files: list[str], missing: list[str]) -> Source:
    """Choose where torch and torchvision come from, by TORCH_INDEX and by the hardware.

    Args:
        python: The interpreter whose pip installs the packages.
        files: The requirement files.
        missing: The requirements that are not met, as `find_missing` lists them.
    """
    index = os.environ.get("TORCH_INDEX", "")
    if not any(re.match(r"torch\b", name) for name in missing):
        return Source("", [], "", "")
    if index:
        torch = [f"{name}>={least}" for name, least in requirements(files) if name in TORCH]
        return Source(index, torch, f"PyTorch comes from {index}, as TORCH_INDEX says", "")
    others = [OTHER_FILES] if len(files) > 1 else []
    large, small = describe_size(WITH_CUDA, *others), describe_size(WITHOUT_CUDA, *others)
    if not sys.platform.startswith("linux"):  # the ordinary packages of other systems have no CUDA
        return Source("", [], "", small)
    if has_nvidia_gpu():
        return Source("", [], "an NVIDIA GPU was found, so PyTorch comes with CUDA", large)
    if torch := find_cpu_packages(python):
        note = f"no NVIDIA GPU was found, so PyTorch comes without CUDA, from {CPU_INDEX}"
        return Source(CPU_INDEX, torch, note, small)
    note = f"no NVIDIA GPU was found, but pip finds no CPU-only packages at {CPU_INDEX}, so its default index is used"
    return Source("", [], note, large)


def describe_size(*parts: tuple[float, float]) -> str:
    """Describe the size of an installation, and how long it takes with 100 Mbit/s and 30 seconds per GB on disk."""
    download, disk = (sum(values) for values in zip(*parts, strict=True))
    minutes = math.ceil((download * 80 + disk * 30) / 60)
    return f"{download:.1f} GB to download and {disk:.1f} GB on disk, about {minutes} minutes at 100 Mbit/s"


def has_nvidia_gpu() -> bool:
    """Return whether the NVIDIA driver is loaded or nvidia-smi lists a GPU. It does not need torch."""
    if NVIDIA_DRIVER.exists():
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        answer = subprocess.run([program, "-L"], capture_output=True, encoding="utf-8", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU" in answer.stdout


def find_cpu_packages(python: str) -> list[str]:
    """Return requirements for torch and torchvision in CPU_INDEX; empty if it is unreachable or lacks one of them.

    The newest version of torch is pinned, because pip may be configured to search other indexes as well.
    """
    where = ["--index-url", CPU_INDEX, "--retries", "0", "--timeout", "10"]
    newest = []
    for name in TORCH:
        command = [python, "-m", "pip", "index", "versions", name, *where]
        try:
            answer = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return []
        found = re.search(r"Available versions: .*?([\w.]+\+cpu)", answer.stdout)
        if answer.returncode or found is None:
            return []
        newest.append(found[1])
    return [f"torch=={newest[0]}", "torchvision"]


def install_commands(python: str, files: list[str], source: Source | None = None) -> list[list[str]]:
    """Return the pip commands that install the requirements.

    Args:
        python: The interpreter to install them for.
        files: The requirement files.
        source: The source of torch and torchvision; by default the index that pip uses for everything else.
    """
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    everything = [*pip, *[part for file in files for part in ("-r", str(REPOSITORY / file))]]
    if source is None or not source.index:
        return [everything]
    return [[*pip, "--index-url", source.index, *source.packages], everything]


def install(python: str, files: list[str], source: Source) -> None:
    """Run pip, with its output and progress on stderr. Exits with an error if it fails."""
    for command in install_commands(python, files, source):
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            stop(f"pip failed; see its message above. To try again, run: {shlex.join(command)}")


def announce(missing: list[str], place: str, source: Source) -> None:
    """Report on stderr what will be installed and where, its size, and how long the installation takes."""
    if source.note:
        sys.stderr.write(f"{source.note}\n")
    size = f": {source.size}" if source.size else ""
    sys.stderr.write(f"installing {', '.join(missing)} into {place}, once{size}\n")
    sys.stderr.flush()


def stop(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def check(files: list[str]) -> None:
    """Exit with an error that lists the packages that this interpreter lacks, if there are any."""
    if missing := find_missing(files):
        command = shlex.join(install_commands(sys.executable, files)[0])
        stop(f"{sys.executable} lacks {', '.join(missing)}. Run: {command}")


def refuse(missing: list[str], active: str, files: list[str]) -> NoReturn:
    """Exit with an error that shows the commands which complete the active environment."""
    source = choose_source(sys.executable, files, missing)
    line = " && ".join(shlex.join(command) for command in install_commands(sys.executable, files, source))
    remarks = "; ".join(text for text in (source.size, source.note) if text)
    size = f" ({remarks})" if remarks else ""
    stop(f"the active environment {active} lacks {', '.join(missing)}. Run: {line}{size}")


def set_up(files: list[str]) -> str:
    """Find or set up the interpreter and return its path."""
    missing = find_missing(files)
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    python, place = sys.executable, active
    if missing and active and os.environ.get("PRX_SETUP") != "1":
        refuse(missing, active, files)
    if missing and not active:
        python, place = str(VENV / "bin" / "python"), str(VENV)
        missing = find_missing_in(python, files)
        command = [sys.executable, "-m", "venv", place]
        if missing and subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            stop(f"{VENV} could not be created; see the message above, remove {VENV}, and run this again")
    if missing:
        source = choose_source(python, files, missing)
        announce(missing, str(place), source)
        install(python, files, source)
    return python


def main(arguments: list[str]) -> None:
    """Find or set up the interpreter and print its path."""
    if sys.version_info < OLDEST:
        running = f"{sys.executable} is Python {sys.version.split()[0]}"
        stop(f"{running}, but 3.10 or newer is needed: name another one, as in python=python3.12")
    if arguments[:1] == ["--check"]:
        check(arguments[1:])
        return
    sys.stdout.write(set_up(arguments) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
