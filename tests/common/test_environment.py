"""Set-up in processes, with real virtual environments and pip; the package indexes are folders of tiny packages."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import os
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from change.common import environment
from change.common.environment import applies, find_missing, numbers, requirements
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

CUDA_SIZE = "3.1 GB to download and 5.8 GB on disk, about 8 minutes at 100 Mbit/s"
CPU_SIZE = "0.4 GB to download and 1.3 GB on disk, about 2 minutes at 100 Mbit/s"


def make_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel with one empty module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    record = "".join(f"{path},sha256={digests[path]},{len(text)}\n" for path, text in files.items())
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            wheel.writestr(path, text)
    links = "".join(f'<a href="{wheel.name}">{wheel.name}</a>' for wheel in sorted(place.glob("*.whl")))
    (place / "index.html").write_text(links)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Make a repository with three requirements, and two package indexes: pip's own, and one without CUDA."""
    place = tmp_path / "a clone"
    (place / "change" / "common").mkdir(parents=True)
    for package in ("change", "change/common"):
        (place / package / "__init__.py").write_text("")
    (place / "requirements.txt").write_text("torch>=2.6\ntorchvision>=0.21\nsmall>=1.0\n")
    for name, version, cpu_version in (("torch", "2.9.0", "2.8.0+cpu"), ("torchvision", "0.24.0", "0.23.0+cpu")):
        make_wheel(tmp_path / "index", name, version)
        make_wheel(tmp_path / "cpu", name, cpu_version)
    make_wheel(tmp_path / "index", "small", "1.1")
    set_machine(place, cpu_index=(tmp_path / "unreachable").as_uri())
    return place


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a virtual environment, which takes three seconds; the tests use copies."""
    place = tmp_path_factory.mktemp("made") / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    return place


@pytest.fixture
def mine(tmp_path: Path, made_once: Path) -> Path:
    """Return an environment of the user's, with pip and nothing else."""
    return Path(shutil.copytree(made_once, tmp_path / "mine", symlinks=True))


@pytest.fixture
def begun(clone: Path, made_once: Path) -> Path:
    """Return a clone whose .venv is still empty, as after a set-up that was interrupted."""
    shutil.copytree(made_once, clone / ".venv", symlinks=True)
    return clone


def set_machine(clone: Path, *, cpu_index: str, driver: bool = False, nvidia_smi: str = "exit 9") -> None:
    """Give the clone's environment.py another index of CPU-only packages, and make it see another machine."""
    source = (REPOSITORY / "change" / "common" / "environment.py").read_text()
    replaced = source.replace(environment.CPU_INDEX, cpu_index)
    replaced = replaced.replace(str(environment.NVIDIA_DRIVER), str(clone if driver else clone / "no driver"))
    assert source.count(environment.CPU_INDEX) == source.count(str(environment.NVIDIA_DRIVER)) == 1
    (clone / "change" / "common" / "environment.py").write_text(replaced)
    program = clone.parent / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    program.chmod(0o755)


@pytest.fixture
def cpu_server(clone: Path) -> Iterator[str]:
    """Serve the index of CPU-only packages by HTTP, and return its URL."""
    handler = functools.partial(QuietHandler, directory=str(clone.parent / "cpu"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Do nothing."""


def find(clone: Path, python: str = sys.executable, *first: str, **values: str) -> subprocess.CompletedProcess[str]:
    """Run the module as the scripts do, offline."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PRX_SETUP", "TORCH_INDEX")}
    kept = {name: value for name, value in kept.items() if not name.startswith("PIP_")}
    kept["PATH"] = os.pathsep.join([str(clone.parent / "bin"), kept["PATH"]])
    index = (clone.parent / "index").as_uri()
    variables = {**kept, "PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull, **values}
    command = [python, "-m", "change.common.environment", *first, "requirements.txt"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, env=variables, check=False)


def version_in(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version('{package}'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def test_no_environment_makes_one_once(clone: Path) -> None:
    first = find(clone)
    assert first.returncode == 0, first.stderr
    assert "installing torch, torchvision, small into" in first.stderr and CUDA_SIZE in first.stderr
    assert "Installing collected packages" in first.stderr  # pip is not quiet
    python = first.stdout.strip()
    assert Path(python) == clone / ".venv" / "bin" / "python"
    assert version_in(python, "torch") == "2.9.0" and version_in(python, "small") == "1.1"
    again = find(clone)
    assert again.stdout.strip() == python and again.stderr == ""
    (clone / "requirements.txt").write_text("torch>=2.6\ntorchvision>=0.21\nsmall>=1.0\nlater>=1\n")
    make_wheel(clone.parent / "index", "later", "1.0")
    third = find(clone)
    assert third.returncode == 0 and version_in(python, "later") == "1.0"
    assert third.stderr.startswith(f"installing later into {clone / '.venv'}, once\n")
    inside = find(clone, python=python)
    assert inside.stdout.strip() == python and inside.stderr == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the ordinary packages have no CUDA")
def test_without_a_gpu_it_takes_cpu_packages(begun: Path, cpu_server: str) -> None:
    set_machine(begun, cpu_index=cpu_server)
    result = find(begun)
    assert result.returncode == 0, result.stderr
    announced = result.stderr.splitlines()[:2]
    assert announced[0] == f"no NVIDIA GPU was found, so PyTorch comes without CUDA, from {cpu_server}"
    assert announced[1].endswith(CPU_SIZE)
    python = result.stdout.strip()
    assert version_in(python, "torch") == "2.8.0+cpu" and version_in(python, "torchvision") == "0.23.0+cpu"
    assert version_in(python, "small") == "1.1"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the ordinary packages have no CUDA")
def test_where_torch_comes_from(clone: Path, cpu_server: str, mine: Path) -> None:
    """A driver or a GPU means CUDA; so does an index that is unreachable or that lacks one of the packages."""
    python = str(mine / "bin" / "python")

    def announced(clone: Path) -> str:
        """Return the error in an active environment, into which nothing is installed."""
        result = find(clone, python, VIRTUAL_ENV=str(mine))
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        return result.stderr

    set_machine(clone, cpu_index=cpu_server, driver=True)
    assert "--index-url" not in announced(clone) and CUDA_SIZE in announced(clone)
    set_machine(clone, cpu_index=cpu_server, nvidia_smi="echo GPU 0: NVIDIA H100")
    assert "--index-url" not in announced(clone) and "an NVIDIA GPU was found" in announced(clone)
    set_machine(clone, cpu_index=cpu_server, nvidia_smi="echo No devices were found")
    assert f"--index-url {cpu_server} torch==2.8.0+cpu torchvision" in announced(clone) and CPU_SIZE in announced(clone)
    set_machine(clone, cpu_index="http://127.0.0.1:9")
    assert "--index-url" not in announced(clone)
    assert "pip finds no CPU-only packages at http://127.0.0.1:9" in announced(clone)
    shutil.rmtree(clone.parent / "cpu" / "torchvision")
    set_machine(clone, cpu_index=cpu_server)
    assert "--index-url" not in announced(clone)


def test_the_tests_need_more() -> None:
    expected = "0.7 GB to download and 2.4 GB on disk, about 3 minutes at 100 Mbit/s"
    assert environment.describe_size(environment.WITHOUT_CUDA, environment.OTHER_FILES) == expected


def test_check_names_what_is_missing(clone: Path, tmp_path: Path, mine: Path) -> None:
    """The tests and scripts of a chosen interpreter: nothing is installed, and only what is missing is named."""
    python = str(mine / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links"]
    for name in ("torch", "torchvision"):
        subprocess.run([*install, str(tmp_path / "index" / name), name], check=True)
    told = find(clone, python, "--check")
    assert told.returncode == 2 and told.stdout == "" and told.stderr.count("\n") == 1
    assert f"{python} lacks small. Run: " in told.stderr
    active = find(clone, python, VIRTUAL_ENV=str(mine))
    assert "lacks small. Run: " in active.stderr and "GB" not in active.stderr
    subprocess.run([*install, str(tmp_path / "index" / "small"), "small"], check=True)
    good = find(clone, python, "--check")
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")


def test_active_environment_is_left_alone_unless_asked(clone: Path, mine: Path) -> None:
    python = str(mine / "bin" / "python")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        told = find(clone, python=python, **{variable: str(mine)})
        assert told.returncode == 2 and told.stdout == "" and told.stderr.count("\n") == 1
        assert "lacks torch, torchvision, small" in told.stderr and f"{python} -m pip install" in told.stderr
        assert shlex.quote(str(clone / "requirements.txt")) in told.stderr  # its folder has a space
        assert version_in(python, "small") == "" and not (clone / ".venv").exists()
    asked = find(clone, python=python, VIRTUAL_ENV=str(mine), PRX_SETUP="1")
    assert asked.returncode == 0 and asked.stdout.strip() == python
    assert version_in(python, "small") == "1.1" and not (clone / ".venv").exists()


def test_torch_from_its_own_index(begun: Path) -> None:
    result = find(begun, TORCH_INDEX=(begun.parent / "cpu").as_uri())
    assert result.returncode == 0, result.stderr
    python = result.stdout.strip()
    assert version_in(python, "torch") == "2.8.0+cpu" and version_in(python, "small") == "1.1"
    assert f"PyTorch comes from {(begun.parent / 'cpu').as_uri()}, as TORCH_INDEX says" in result.stderr


def test_pip_that_fails(clone: Path) -> None:
    shutil.rmtree(clone.parent / "index" / "small")
    result = find(clone)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: pip failed")


def test_this_environment_has_everything() -> None:
    files = ["requirements.txt", "requirements-geo.txt", "tests/requirements-onnx.txt", "tests/requirements.txt"]
    assert find_missing(files) == []


@pytest.mark.parametrize(("less", "more"), [("2.9.1", "2.10"), ("2.6", "2.6.0+cpu"), ("1.26.4", "2"), ("", "0.1")])
def test_versions_are_ordered(less: str, more: str) -> None:
    assert numbers(less) < numbers(more)


def write_requirements(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(environment, "REPOSITORY", folder)
    (folder / "some.txt").write_text(text)


def test_requirements_for_some_versions_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
        # a comment
        torchlike>=2.6
        plain  # any version
        old>=2; python_version < "3.11"
        new >= 1.5.2 ; python_version >= '3.10'
        extra[some,more]>=3
    """
    write_requirements(tmp_path, monkeypatch, text)
    old = [("old", "2")] if sys.version_info < (3, 11) else []
    expected = [("torchlike", "2.6"), ("plain", ""), *old, ("new", "1.5.2"), ("extra", "3")]
    assert requirements(["some.txt"]) == expected


@pytest.mark.parametrize(
    ("marker", "running", "expected"),
    [
        ('python_version < "3.11"', "3.10", True),
        ('python_version < "3.11"', "3.11", False),
        ('python_version<"3.9"', "3.10", False),  # 10 is more than 9
        ("python_version >= '3.10'", "3.13", True),
        ('python_version != "3.12"', "3.12", False),
        ('python_version == "3.12"', "3.12", True),
    ],
)
def test_markers(marker: str, running: str, expected: bool) -> None:
    assert applies(marker, "some.txt", running) == expected


@pytest.mark.parametrize("line", ["small==1.0", "small>=1; sys_platform == 'linux'", "small>=1,<2"])
def test_a_requirement_of_another_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    write_requirements(tmp_path, monkeypatch, line)
    with pytest.raises(SystemExit) as error:
        requirements(["some.txt"])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("error: some.txt: cannot read")


def test_a_marker_keeps_a_package_out(begun: Path) -> None:
    """The package is neither asked for nor installed: the set-up reads markers as pip does."""
    (begun / "requirements.txt").write_text('small>=1.0\nabsent>=1; python_version < "3.0"\n')
    result = find(begun)
    assert result.returncode == 0, result.stderr
    assert "installing small into" in result.stderr
    assert find(begun).stderr == ""
