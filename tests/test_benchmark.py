"""The benchmark: one line per variant, the same numbers in the JSON file, outputs that agree."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from change.common.errors import UserError
from tests import benchmark
from tests.benchmark import size_and_batch
from tests.benchmark_rounds import plan_groups
from tests.conftest import REPOSITORY, run_program


def run_benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in this process; each variant has its own."""
    return run_program("tests/benchmark.py", "--device", "cpu", "--rounds", 1, *arguments, cwd=REPOSITORY)


@pytest.mark.rare
@pytest.mark.slow
def test_table_and_json(tmp_path: Path) -> None:
    result = run_benchmark("--sizes", 64, "--only", "infer", "count", "--half", "--json", tmp_path / "found.json")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {(row["work"], row["variant"]): row for row in found["rows"]}
    forms = ["textbook float32", "textbook bf16", "ours float32", "ours bf16"]
    assert list(rows) == [*(("infer 64", form) for form in forms), ("count 64", "textbook"), ("count 64", "ours")]
    assert rows["infer 64", "ours float32"]["difference"] < 1e-4
    assert 1e-4 < rows["infer 64", "ours bf16"]["difference"] < 0.1
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["infer 64", "textbook float32"]["ratio"] == 1
    assert len(result.stdout.splitlines()) == 3 + len(rows)


@pytest.mark.slow
def test_wrong_input() -> None:
    result = run_benchmark("--steps", "512")
    assert result.returncode == 2 and "'512' is not SIZExBATCH" in result.stderr
    assert size_and_batch("512x8") == (512, 8)


@pytest.mark.slow
def test_a_variant_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is a real one; the machine is not measured, which test_table_and_json does.

    One of the four variants is enough: the others would be started too, and then ended.
    """
    monkeypatch.setattr(benchmark, "measure_rates", lambda device: {})
    monkeypatch.setattr(benchmark, "plan_groups", lambda *given: [plan_groups(*given)[0][:1]])
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError, match=r"^the process of load 512 x 4, textbook, ended"):
        benchmark.main(["--device", "cpu", "--rounds", "1", "--only", "load", "--data", str(tmp_path)])
