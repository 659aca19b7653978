"""docs/Dockerfile, without building it: versions, and the files that it copies."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import PIL.Image
import pytest

from change.common.environment import CPU_INDEX, requirements
from tests.conftest import REPOSITORY, surroundings, write_pairs

DOCKERFILE = (REPOSITORY / "docs" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
IGNORE = (REPOSITORY / "docs" / "Dockerfile.dockerignore").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction of this name: COPY, ARG and so on."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def copied() -> list[str]:
    """Return the paths that COPY instructions read, relative to the repository."""
    return [source for line in instructions("COPY") for source in line.split()[:-1]]


def is_ignored(path: str) -> bool:
    """Return whether .dockerignore leaves a file out. The last pattern that matches it or a folder around it counts."""
    ignored = False
    places = [path, *map(str, PurePosixPath(path).parents)][:-1]
    for line in IGNORE.splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = places if not line.startswith("**/") else [part for place in places for part in place.split("/")]
        if line and not line.startswith("#") and any(fnmatch.fnmatchcase(name, pattern) for name in names):
            ignored = not line.startswith("!")
    return ignored


def tracked(*paths: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *paths], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_copied_files_exist_and_reach_the_build() -> None:
    """Docker gets all tracked files that the Dockerfile copies, and no others."""
    for source in copied():
        assert tracked(source), source
    wanted = tracked(*copied())
    assert [path for path in wanted if is_ignored(path)] == []
    others = set(tracked()) - set(wanted)
    assert [path for path in others if not is_ignored(path)] == []
    for private in ("data/mine.tif", "results/qs/log.txt", "checkpoints/mine.pth", ".git/config", ".venv/bin/python"):
        assert is_ignored(private), private
    assert is_ignored("change/data/__pycache__/masks.pyc")


def test_named_in_dockerignore_exist() -> None:
    names = [line[1:] for line in IGNORE.splitlines() if line.startswith("!")]
    assert names and [name for name in names if not (REPOSITORY / name).exists()] == []


def test_versions() -> None:
    """The base has a Python that the README names; PyTorch comes from the index that the scripts use without a GPU."""
    arguments = dict(line.split("=") for line in instructions("ARG"))
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    oldest, newest = map(int, re.findall(r"needs Python 3\.(\d+) to 3\.(\d+)", readme)[0])
    base = re.fullmatch(r"python:3\.(\d+)-slim", arguments["BASE"])
    assert base and oldest <= int(base[1]) <= newest
    assert f"Python 3.{oldest} to 3.{newest}" in DOCKERFILE
    (index,) = re.findall(r'--index-url "(\S+)"', DOCKERFILE)
    assert index.replace("${COMPUTE}", arguments["COMPUTE"]) == CPU_INDEX
    (pattern,) = re.findall(r'grep "(\S+)" requirements.txt', DOCKERFILE)
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    from_index = [line for line in lines if re.search(pattern, line)]
    assert from_index == [f"{n}>={least}" for n, least in requirements(["requirements.txt"]) if n.startswith("torch")]
    assert len(from_index) == 2


def test_it_does_not_run_as_root() -> None:
    (user,) = instructions("USER")
    assert user.isdigit() and int(user) > 0 and f"--uid {user}" in DOCKERFILE


def test_the_page_names_its_arguments() -> None:
    page = (REPOSITORY / "docs" / "docker.md").read_text(encoding="utf-8")
    given = set(re.findall(r"--build-arg (\w+)=", page))
    assert given and given <= {line.partition("=")[0] for line in instructions("ARG")}
    (folder,) = instructions("WORKDIR")
    assert set(re.findall(r":(/\w+)/(?:data|results)\b", page)) == {folder}


@pytest.mark.slow
def test_the_copied_files_are_enough(tmp_path: Path) -> None:
    """A prediction works with them, in a folder that has nothing else."""
    for path in tracked(*copied()):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, tmp_path / path)
    write_pairs(tmp_path / "data", 1)
    command = ["-m", "change", "predict", "data/A/0.png", "data/B/0.png", "-o", "results/scene", "--device", "cpu"]
    for given in (["-m", "compileall", "-q", "change", "models"], command):
        done = subprocess.run(
            [sys.executable, *given], cwd=tmp_path, capture_output=True, text=True, env=surroundings()
        )
        assert done.returncode == 0, done.stderr
    assert PIL.Image.open(tmp_path / "results" / "scene" / "mask.png").size == (64, 64)
