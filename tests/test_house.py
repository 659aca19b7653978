"""The plan of the house: imports run one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# What a room may import of ours. Whoever is not listed may import everything.
ALLOWED: dict[str, set[str]] = {
    "change.errors": set(),
    "change.distributed": {"change.errors"},
    "change.average": set(),
    "change.progress": set(),
    "change.files": {"change.errors"},
    "change.statistics": set(),
    "change.metrics": {"change.statistics"},
    "change.compare": {"change.errors", "change.files", "change.statistics"},
    "change.pictures": {"change.files"},
    "change.report": {"change.files", "change.pictures"},
    "change.transforms": set(),
    "change.images": {"change.errors", "change.transforms"},
    "change.pseudo": {"change.transforms"},
    "change.change_dataloader": {
        "change.errors",
        "change.files",
        "change.images",
        "change.pseudo",
        "change.transforms",
    },
    "change.cache": {"change.change_dataloader", "change.errors", "change.transforms"},
    "change.environment": set(),
    "change.likeness": {"change.transforms"},
    "change.sheets": {
        "change.change_dataloader",
        "change.errors",
        "change.files",
        "change.images",
        "change.transforms",
    },
    "change.check": {
        "change.change_dataloader",
        "change.errors",
        "change.files",
        "change.groups",
        "change.images",
        "change.likeness",
        "change.runlog",
        "change.sheets",
        "change.transforms",
    },
    "change.groups": {"change.errors"},
    "change.folds": {"change.errors", "change.files", "change.groups"},
    "change.tiles": set(),
    "change.raster": {"change.errors"},
    "change.polygons": {"change.raster"},
    "change.scene": {
        "change.errors",
        "change.files",
        "change.pictures",
        "change.polygons",
        "change.raster",
        "change.report",
        "change.runlog",
        "change.tiles",
    },
    "change.scenery": set(),
    "change.canvas": {"change.scenery"},
    "change.synthetic": {"change.canvas", "change.errors", "change.files", "change.pictures", "change.scenery"},
    "change.precision": {"change.errors"},
    "change.sources": {"change.errors", "change.files"},
    "change.prepare": {
        "change.change_dataloader",
        "change.errors",
        "change.files",
        "change.images",
        "change.runlog",
        "change.sources",
    },
    "change.compiling": {"change", "change.distributed"},
    "change.fuse": {"models"},
    "change.config": {"change.compiling", "change.errors", "change.precision", "change.tiles", "models"},
    "change.checkpoint": {"change.errors", "change.files", "models"},
}


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in ("models", "change", "train", "test", "tests")}


def test_models_know_torch_alone() -> None:
    for path in (REPOSITORY / "models").glob("*.py"):
        assert all(name.startswith("models") for name in imported(path)), path
        assert "import os" not in path.read_text() and "pathlib" not in path.read_text(), path


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_run_one_way(module: str) -> None:
    path = REPOSITORY / (module.replace(".", "/") + ".py")
    rooms = {name if name.startswith("change") else name.split(".")[0] for name in imported(path)}
    assert rooms <= ALLOWED[module]


def test_nothing_imports_the_programs() -> None:
    for path in [*(REPOSITORY / "models").glob("*.py"), *(REPOSITORY / "change").glob("*.py")]:
        assert not imported(path) & {"train", "test", "tests"}, path
