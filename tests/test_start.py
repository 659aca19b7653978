"""The start of every program: help and wrong arguments are answered without importing torch, which takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from change.__main__ import VERBS
from tests.conftest import REPOSITORY

SAMPLES = ("test_samples/A/0_0000.jpg", "test_samples/B/0_0000.jpg")
PROGRAMS = [["train.py"], ["test.py"], ["-m", "change"], *(["-m", "change", verb] for verb in VERBS)]


def start(*arguments: str) -> tuple[int, str, list[str]]:
    """Run Python; return the exit code, the lines of stderr that are ours, and the modules that were imported."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    lines = result.stderr.splitlines()
    modules = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    return result.returncode, "\n".join(line for line in lines if not line.startswith("import time:")), modules


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program[-1])
def test_help_and_wrong_arguments(program: list[str]) -> None:
    code, said, modules = start(*program, "--help")
    assert code == 0 and not said and "torch" not in modules and "argparse" in modules
    code, said, modules = start(*program, "--no-such-option=1")
    assert code == 2 and said.startswith("error: ") and "\n" not in said and "torch" not in modules


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("train.py", "--root=a"), "error: --save_path is missing"),
        (("train.py", "--root=a", "--save_path=b", "--lr=-1"), "error: --lr -1.0: choose 0 or more"),
        (
            ("train.py", "--root=a", "--save_path=b", "--backbone=vgg"),
            "error: argument --backbone: backbone vgg: choose",
        ),
        (("test.py", "--test_root=a"), "error: --checkpoint_path is missing"),
        (("test.py", "--test_root=a", "--checkpoint_path=b", "--threshold=2"), "error: --threshold 2: choose"),
        (("-m", "change", "predict", "a", "b", "-o", "c", "--tile=1"), "error: --tile 1: choose 32 or more"),
        (("test.py", "--test_root=a", "--checkpoint_path=b"), "error: no checkpoint at b: check the path"),
        (("test.py", "--test_root=a", "--checkpoint_path=train.py"), "error: no folder a: check the path of"),
        (("-m", "change", "predict", "a.tif", "b.tif", "-o", "c"), "error: no file at a.tif: check the path"),
        (("-m", "change", "predict", *SAMPLES, "-o", "c", "--checkpoint_path=d"), "error: no checkpoint at d: check"),
        (("-m", "change", "tiles", "a", "b", "c", "-o", "d", "--size=9"), "error: --size 9: choose a multiple of 32"),
        (("-m", "change", "tiles", "a.tif", "b.tif", "c", "-o", "d"), "error: no file at a.tif: check the path"),
    ],
)
def test_wrong_values(arguments: tuple[str, ...], error: str) -> None:
    code, said, modules = start(*arguments)
    assert code == 2 and said.startswith(error) and "\n" not in said
    assert not {"torch", "rasterio", "geopandas"} & set(modules)


def test_a_resnet_predicts_without_torchvision_and_timm() -> None:
    """Both take as long to import as torch does."""
    program = (
        "from change.prediction.detector import ChangeDetector; "
        "ChangeDetector('checkpoints/buildings_r18.pth', compiling='off')"
    )
    code, said, modules = start("-c", program)
    assert code == 0, said
    assert "torch" in modules and not {"torchvision", "timm", "torch._dynamo"} & set(modules)
