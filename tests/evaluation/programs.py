"""test.py in this process, and its files."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def load_main() -> Callable[[list[str]], int]:
    """Load the main of test.py; the standard library has a module of the same name."""
    spec = importlib.util.spec_from_file_location("prx_test", REPOSITORY / "test.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def score(root: Path, checkpoint: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run the main of test.py on the CPU and return the content of metrics.json."""
    common = [f"--test_root={root}", f"--checkpoint_path={checkpoint}", f"--save_path={out}", "--device=cpu"]
    assert load_main()([*common, "--workers=0", *more]) == 0
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics
