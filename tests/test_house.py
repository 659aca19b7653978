"""The plan of the house: which part may import which, directly or through others, and how long things may be."""

from __future__ import annotations

import ast
import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

OURS = ("models", "change", "train", "test", "tests")
TENSORBOARD = ("tensorboard", "torch.utils.tensorboard")
FILES = ("os", "sys", "io", "pathlib", "argparse", "shutil", "tempfile", "glob", "subprocess", "logging")
DATA = ("change.common", "change.change_dataloader", "change.data")
NETWORK = ("change.common", "models", "change.checkpoint", "change.published")
PREDICTION = (*NETWORK, "change.prediction")
EVALUATION = (*PREDICTION, *DATA, "change.evaluation")
OPTIONS = ("change.common", "models", "change.options", "change.prediction.tiles", "change.prediction.compiling")

# What a part may reach of ours, itself included. The first entry that a module's name begins with counts.
MAY_REACH: dict[str, tuple[str, ...]] = {
    "models": ("models",),
    "change.common": ("change.common",),
    "change.change_dataloader": DATA,
    "change.data": DATA,
    "change.synthetic": ("change.common", "change.synthetic"),
    "change.checkpoint": NETWORK,
    "change.published": ("change.common", "models", "change.published"),
    "change.options": OPTIONS,
    "change.prediction.tiles": ("change.prediction.tiles",),
    "change.prediction": PREDICTION,
    "change.detector": (*PREDICTION, "change.detector"),
    "change.evaluation.metrics": ("change.evaluation.metrics", "change.evaluation.bootstrap"),
    "change.evaluation.bootstrap": ("change.evaluation.bootstrap",),
    "change.evaluation": EVALUATION,
    "change.training": (*EVALUATION, *OPTIONS, "change.training"),
    "change.rasters": (*EVALUATION, *OPTIONS, "change.rasters"),
    "change.experiments": ("change", "models"),
    "change.__main__": ("change", "models"),
    "change": (),  # the package itself
}
WRITES_TENSORBOARD = ("change.training", "change.experiments", "change.__main__")


def module_name(path: Path, root: Path) -> str:
    """The dotted name of a file below `root`."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def modules(root: Path) -> dict[str, Path]:
    """Every module of `models` and `change` by its name."""
    paths = [path for package in ("models", "change") for path in sorted((root / package).rglob("*.py"))]
    return {module_name(path, root): path for path in paths}


@cache
def imported(path: Path, stamp: int) -> frozenset[str]:
    """The names that a file imports, also inside functions; `from a import b` gives a and a.b."""
    del stamp  # part of the cache's key: the file may have been edited
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a module is one of `prefixes`, or inside one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def parents(name: str) -> list[str]:
    """The packages that importing a module imports too."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def reached(start: str, known: dict[str, Path]) -> dict[str, str]:
    """Every module that `start` imports, directly or through ours, and by which of ours; others' are not followed."""
    found: dict[str, str] = {}
    todo = [start]
    while todo:
        module = todo.pop()
        for name in imported(known[module], known[module].stat().st_mtime_ns):
            is_module = name in known or name.split(".")[0] not in ("models", "change")
            if is_module and name not in found:
                found[name] = module
                if name in known:
                    todo += [name, *(parent for parent in parents(name) if parent not in found)]
    return found


def complaints(root: Path) -> list[str]:
    """One line for every forbidden import in a tree."""
    known, lines = modules(root), []
    for module in known:
        part = next(part for part in MAY_REACH if within(module, (part,)))
        for name, by in reached(module, known).items():
            ours = name.split(".")[0] in OURS
            if ours and name not in parents(module) and not within(name, MAY_REACH[part]):
                lines.append(f"{module} reaches {name} through {by}")
            if within(name, TENSORBOARD) and not within(module, WRITES_TENSORBOARD):
                lines.append(f"{module} reaches {name} through {by}")
            if part == "models" and within(name, FILES):
                lines.append(f"{module} imports {name}: models know no files and no programs")
            if part == "models" and not ours and not within(name, (*ALLOWED_IN_MODELS, *FILES)):
                lines.append(f"{module} imports {name}: models know torch, torchvision, timm and themselves")
    return lines


ALLOWED_IN_MODELS = (
    "torch",
    "torchvision",
    "timm",
    "__future__",
    "collections",
    "dataclasses",
    "functools",
    "math",
    "typing",
)

# A forbidden import for every part, and a module of that part to plant it in.
PLANTED = {
    "models/xcross.py": "import numpy",
    "models/decoder.py": "from change.common.errors import UserError",
    "models/losses.py": "import pathlib",
    "change/common/errors.py": "import change.data.transforms",
    "change/data/transforms.py": "import change.evaluation.evaluate",
    "change/data/groups.py": "import models.network",
    "change/change_dataloader.py": "from change import checkpoint",
    "change/synthetic/world.py": "import change.prediction.tiles",
    "change/checkpoint.py": "import change.prediction.tiles",
    "change/published.py": "import change.checkpoint",
    "change/options.py": "import change.training.schedule",
    "change/prediction/tiles.py": "import change.common.errors",
    "change/prediction/folding.py": "import change.training.trainer",
    "change/prediction/compiling.py": "from torch.utils.tensorboard import SummaryWriter",
    "change/evaluation/metrics.py": "import models.network",
    "change/evaluation/bootstrap.py": "import change.checkpoint",
    "change/evaluation/report.py": "import change.training.run_folder",
    "change/training/schedule.py": "import change.rasters.scene",
    "change/rasters/polygons.py": "def later() -> None:\n    from change.training import trainer",
    "change/experiments/__init__.py": "import train",
}


def test_imports_run_one_way() -> None:
    """Transitively: what a module imports, what that imports, and so on."""
    assert complaints(REPOSITORY) == []


@pytest.mark.parametrize("place", PLANTED)
def test_a_forbidden_import_is_found(place: str, tmp_path: Path) -> None:
    for package in ("models", "change"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / place
    path.write_text(f"{path.read_text()}\n{PLANTED[place]}\n")
    assert complaints(tmp_path)


def test_an_import_through_others_is_found(tmp_path: Path) -> None:
    """`change.data.archives` imports nothing forbidden itself, but what it imports does."""
    for package in ("models", "change"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "change" / "common" / "files.py"
    path.write_text(path.read_text() + "\nimport models.network\n")
    assert any(line.startswith("change.data.archives reaches models.network") for line in complaints(tmp_path))
