"""The installed package: what the wheel holds, and the commands from a folder outside the clone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from change import ChangeDetector
from change.checkpoint import load_checkpoint, network_for_prediction
from tests.conftest import REPOSITORY, surroundings, write_pairs

# What a build reads, beside the packages.
SOURCES = (
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "requirements.txt",
    "requirements-geo.txt",
    "tests/requirements-onnx.txt",
    "tests/requirements.txt",
    "checkpoints/buildings.pth",
    "checkpoints/land.pth",
)


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Run a command that must succeed and return what it writes to stdout."""
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**surroundings(), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the files that a build reads."""
    source = tmp_path_factory.mktemp("source")
    for place in SOURCES:
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / place, source / place)
    for place in ("models", "change", "test_samples"):
        shutil.copytree(REPOSITORY / place, source / place, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", "out"]
    run(pip, source)
    (built,) = (source / "out").glob("prx_change-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder and return that folder."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    run(pip, folder)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: Path) -> None:
    """It holds every tracked file of the packages, two checkpoints and one pair of images, and nothing else."""
    tracked = run(["git", "ls-files", "models", "change"], REPOSITORY).splitlines()
    samples = [min(path.name for path in (REPOSITORY / "test_samples" / date).iterdir()) for date in ("A", "B")]
    shipped = {
        "change/shipped/checkpoints/buildings.pth",
        "change/shipped/checkpoints/land.pth",
        f"change/shipped/test_samples/A/{samples[0]}",
        f"change/shipped/test_samples/B/{samples[1]}",
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == {*tracked, *shipped}


@pytest.mark.slow
def test_extras_are_those_of_the_requirement_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    extras = {
        "geo": ["requirements-geo.txt"],
        "onnx": ["tests/requirements-onnx.txt"],
        "test": ["requirements-geo.txt", "tests/requirements-onnx.txt", "tests/requirements.txt"],
    }
    wanted = [f"Requires-Dist: {line}" for line in requirements("requirements.txt")]
    for extra, files in extras.items():
        wanted += [f'Requires-Dist: {line}; extra == "{extra}"' for file in files for line in requirements(file)]
    assert sorted(line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")) == sorted(wanted)


def requirements(file: str) -> list[str]:
    """Return the lines of a requirement file that name a package."""
    return [line for line in (REPOSITORY / file).read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.slow
def test_commands_work_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """Predict by module and by command write the same mask; export writes the default checkpoint's weights."""
    write_pairs(tmp_path, 1)
    place = str(installed)
    where = run([sys.executable, "-c", "import change; print(change.__file__)"], tmp_path, PYTHONPATH=place)
    assert Path(where.strip()).is_relative_to(installed)

    module, command = [sys.executable, "-m", "change"], [str(installed / "bin" / "prx-change")]
    for name, program in (("module", module), ("command", command)):
        given = ["predict", "A/0.png", "B/0.png", "-o", name, "--device", "cpu"]
        run([*program, *given], tmp_path, PYTHONPATH=place)
    masks = [next((tmp_path / name).rglob("mask.*")).read_bytes() for name in ("module", "command")]
    assert masks[0] == masks[1]

    checkpoint = installed / "change" / "shipped" / "checkpoints" / "buildings.pth"
    given = ["export", str(checkpoint), "--format", "pth", "-o", "weights.pth"]
    run([*module, *given], tmp_path, PYTHONPATH=place)
    weights = torch.load(tmp_path / "weights.pth", weights_only=True)
    network, _ = network_for_prediction(load_checkpoint(REPOSITORY / "checkpoints" / "buildings.pth"))
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in network.state_dict().items())


# Predicts with the default checkpoint, from a folder without it.
PYTHON = """
from change import ChangeDetector
detector = ChangeDetector(device="cpu")
print(detector.checkpoint.path)
print(detector.predict_rasters("A/0.png", "B/0.png", "out").changed)
"""


@pytest.mark.slow
def test_python_interface(installed: Path, tmp_path: Path) -> None:
    """The default checkpoint is the installed one, and predicts as that of the clone."""
    write_pairs(tmp_path, 1)
    path, changed = run([sys.executable, "-c", PYTHON], tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert Path(path).is_relative_to(installed)
    detector = ChangeDetector(REPOSITORY / "checkpoints" / "buildings.pth", device="cpu")
    mask = detector.predict(tmp_path / "A" / "0.png", tmp_path / "B" / "0.png") > detector.threshold
    assert int(changed) == mask.sum() > 0
    assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "out" / "mask.png")) > 0, mask)


# Imports every verb's module, then finds the pair of images that an export is compared on.
INSIDE = """
import importlib
from change.__main__ import VERBS
from change.common.files import shipped_file
for module, _ in VERBS.values():
    assert callable(importlib.import_module(module).main), module
for date in ("A", "B"):
    print(min((shipped_file("test_samples") / date).iterdir()))
"""


@pytest.mark.slow
def test_every_verb_can_be_imported(installed: Path, tmp_path: Path) -> None:
    found = run([sys.executable, "-c", INSIDE], tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert len(found) == 2 and all(Path(line).is_relative_to(installed) for line in found)
