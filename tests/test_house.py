"""The plan of the house: which part may import which, directly or through others, and how long things may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache

import pytest

import change.detector
from tests.conftest import REPOSITORY

DATA = ("change.common", "change.change_dataloader", "change.data")
NETWORK = ("change.common", "models", "change.checkpoint", "change.published")
PREDICTION = (*NETWORK, "change.prediction")
EVALUATION = (*PREDICTION, *DATA, "change.evaluation")
OPTIONS = ("change.common", "models.config", "change.options", "change.prediction.tiles")

# The modules of this repository that a part may reach. The first entry that a module's name begins with counts.
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
    "change.detector": (*EVALUATION, *OPTIONS, "change.rasters", "change.detector"),
    "change.evaluation.metrics": ("change.evaluation.metrics", "change.evaluation.bootstrap"),
    "change.evaluation.bootstrap": ("change.evaluation.bootstrap",),
    "change.evaluation.area_estimate": ("change.evaluation.area_estimate",),
    "change.evaluation": EVALUATION,
    "change.training": (*EVALUATION, *OPTIONS, "change.training"),
    "change.rasters": (*EVALUATION, *OPTIONS, "change.rasters"),
    "change.experiments": ("change", "models"),
    "change.__main__": ("change", "models"),
    "change": (),  # the package itself, and every file that has no entry above
}
# Imported when a name is first used, and not by importing the module: a test below makes sure of that.
ON_DEMAND = ("change", "change.detector")
WRITES_TENSORBOARD = ("change.training", "change.experiments", "change.__main__")

# Everything outside of this repository that `models` may import.
ALLOWED_IN_MODELS = (
    "torch",
    "timm",
    "__future__",
    "collections",
    "copy",
    "dataclasses",
    "functools",
    "math",
    "typing",
)
TENSORBOARD = ("tensorboard", "torch.utils.tensorboard")
HIDDEN = ("__import__", "exec", "eval")  # built-in functions that can hide an import
OURS = ("models", "change", "train", "test", "tests")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


# --- imports -------------------------------------------------------------------------------------------------------


def read_modules() -> dict[str, str]:
    """Return the source of every module of `models` and `change` by its dotted name."""
    paths = [path for package in ("models", "change") for path in sorted((REPOSITORY / package).rglob("*.py"))]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path.read_text() for name, path in zip(names, paths, strict=True)}


@cache
def mentioned(source: str) -> frozenset[str]:
    """Return the dotted names that a source imports anywhere, and its strings that could name a module.

    `from a import b` gives a.b, a relative import a name that begins with a dot. Strings count because
    `importlib.import_module` takes one. Uses of `HIDDEN` count too, and those of `open`, which `models` may not use.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
            names.add(f'"{node.value}"')
        elif isinstance(node, ast.Name) and node.id in (*HIDDEN, "open"):
            names.add(node.id)
    return frozenset(names)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether a module is one of `prefixes`, or inside one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def parents(name: str) -> list[str]:
    """Return the packages that importing a module imports too."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def imported(source: str, modules: dict[str, str]) -> set[str]:
    """Return what a source imports: our modules by their full names, others as they are written."""
    found = set()
    for name in mentioned(source):
        if name.startswith('"'):
            name = name.strip('"')
            if name not in modules and not within(name, TENSORBOARD):
                continue
        while within(name, ("models", "change")) and name not in modules:
            name = name.rpartition(".")[0]  # a class or function: the module that holds it
        found.add(name)
    return found


def reached(start: str, modules: dict[str, str]) -> dict[str, str]:
    """Return every module that importing `start` can import, with the module of ours that imports it.

    The packages around a module are run as well when it is imported, so their imports are followed.
    """
    found: dict[str, str] = {}
    followed: set[str] = set()
    todo = [start]
    while todo:
        current = todo.pop()
        for module in (*parents(current), current):
            if module in followed:
                continue
            followed.add(module)
            for name in imported(modules[module], modules):
                if (module, name) == ON_DEMAND:
                    continue
                found.setdefault(name, module)
                if name in modules:
                    todo.append(name)
    return found


def complaints(modules: dict[str, str]) -> list[str]:
    """Return one line per forbidden import."""
    lines = []
    for module in modules:
        part = next(part for part in MAY_REACH if within(module, (part,)))
        for name, by in reached(module, modules).items():
            ours = within(name, OURS)
            forbidden = ours and not within(name, MAY_REACH[part])
            forbidden |= within(name, TENSORBOARD) and not within(module, WRITES_TENSORBOARD)
            forbidden |= part == "models" and not ours and not within(name, ALLOWED_IN_MODELS)
            forbidden |= name.startswith(".") or name in HIDDEN
            if forbidden:
                lines.append(f"{module} reaches {name} through {by}")
    return lines


# Forbidden imports, each with a module to plant it in: at least one per part, and the ways to hide one.
PLANTED = [
    ("models.xcross", "import numpy"),
    ("models.decoder", "from change.common.errors import UserError"),
    ("models.losses", "import pathlib"),
    ("models.padding", "open('weights.pth')"),
    ("change.published", "import change.checkpoint"),
    ("models.unet", "from importlib import import_module"),
    ("change.common.errors", "import change.data.transforms"),
    ("change.common.files", "from change import data"),
    ("change.common.images", "import change"),
    ("change.rasters.raster", "from change import ChangeDetector"),
    ("change.data.transforms", "import change.evaluation.evaluate"),
    ("change.data.groups", "import models.network"),
    ("change.data.folds", "import importlib\nimportlib.import_module('models.network')"),
    ("change.data.similarity", "__import__('models.network')"),
    ("change.data.archives", "from .. import checkpoint"),
    ("change.data.cache", "if False:\n    import change.checkpoint as found"),
    ("change.change_dataloader", "from change import checkpoint"),
    ("change.synthetic.world", "import change.prediction.tiles"),
    ("change.checkpoint", "import change.prediction.tiles"),
    ("change.options", "import change.training.schedule"),
    ("change.prediction", "import models.network"),  # run before `change.prediction.tiles`, which knows no network
    ("change.prediction.tiles", "import change.common.errors"),
    ("change.prediction.folding", "import change.training.trainer"),
    ("change.prediction.compiling", "from torch.utils.tensorboard import SummaryWriter"),
    ("change.prediction.predictor", "from torch.utils import tensorboard"),
    ("change.prediction.threshold", "exec('import change.training.trainer')"),
    ("change.detector", "import change.training.trainer"),
    ("change.evaluation.metrics", "import models.network"),
    ("change.evaluation.bootstrap", "import change.checkpoint"),
    ("change.evaluation.area_estimate", "import change.common.errors"),
    ("change.evaluation.report", "import change.training.run_folder"),
    ("change.training.schedule", "import change.rasters.scene"),
    ("change.rasters.polygons", "def later() -> None:\n    from change.training import trainer"),
    ("change.experiments", "import train"),
    ("change.__main__", "import tests.textbook"),
    ("change", "from change.common import errors"),
    ("models", "import change.common"),
]


def test_imports_run_one_way() -> None:
    """The rule is transitive: what a module imports, what that imports, and so on."""
    assert complaints(read_modules()) == []


def test_what_is_imported_on_demand() -> None:
    """Importing `change` imports nothing else of ours, and not torch; the name then leads to `change.detector`."""
    source = "import sys, change; print([n for n in sys.modules if n.split('.')[0] in ('change', 'models', 'torch')])"
    done = subprocess.run([sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "['change']\n"
    assert change.ChangeDetector is change.detector.ChangeDetector and not hasattr(change, "Detector")


def test_every_rule_has_its_module() -> None:
    assert set(MAY_REACH) <= set(read_modules())


@pytest.mark.parametrize(("module", "line"), PLANTED)
def test_a_forbidden_import_is_found(module: str, line: str) -> None:
    modules = read_modules()
    modules[module] += f"\n{line}\n"
    assert complaints(modules)


def test_an_import_through_others_is_found() -> None:
    """`change.data.archives` imports nothing forbidden itself, but what it imports does."""
    modules = read_modules()
    modules["change.common.files"] += "\nimport models.network\n"
    assert "change.data.archives reaches models.network through change.common.files" in complaints(modules)


def test_a_new_file_beside_the_wings_needs_a_rule() -> None:
    modules = {**read_modules(), "change.novelty": "import change.common.errors\n"}
    assert complaints(modules) == ["change.novelty reaches change.common.errors through change.novelty"]


# --- lengths -------------------------------------------------------------------------------------------------------

LONGEST_FILE = 400  # lines of Python
LONGEST_FUNCTION = 60  # lines
LONGEST_BASH_LINE = 100  # columns; ruff checks those of Python


def tracked(*patterns: str) -> dict[str, str]:
    """Return the text of every file that git tracks under one of the patterns."""
    names = subprocess.run(["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name: (REPOSITORY / name).read_text() for name in names.stdout.splitlines()}


def function_lengths(source: str) -> dict[str, int]:
    """Return the lines of every function by its name; of functions of one name, those of the longest."""
    lengths: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lengths[node.name] = max(lengths.get(node.name, 0), node.end_lineno - node.lineno + 1)
    return lengths


def test_files_are_short() -> None:
    lengths = {name: len(text.splitlines()) for name, text in tracked("*.py").items()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{name} {function}": lines
        for name, text in tracked("*.py").items()
        for function, lines in function_lengths(text).items()
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_lines_of_bash_are_short() -> None:
    widths = {name: max(map(len, text.splitlines())) for name, text in tracked("*.sh", ".ci/run").items()}
    assert {name: columns for name, columns in widths.items() if columns > LONGEST_BASH_LINE} == {}


def test_lengths_are_counted() -> None:
    """A function counts from `def` to its last line, also inside a class or another function."""
    source = "class A:\n    @cache\n    def f(self):\n        def g():\n            pass\n\n        return g\n"
    assert function_lengths(source) == {"f": 5, "g": 2}
