"""The GPU session on the CPU: its summary and files, failures that do not stop the rest, the deadline, wrong input."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from change.checkpoint import load_checkpoint
from change.common.errors import UserError
from tests.conftest import REPOSITORY, run_program, wait_for
from tests.gpu.checks import Figure, run_checks
from tests.gpu.settings import read_group, read_runs

DEFAULTS = """
[defaults]
backbone = "timm:lcnet_050"
width = 32
recipe = "scratch"
pretrained = "none"
trainsize = 0
cropsize = 32
train_batchsize = 4
val_epoch = 1
workers = 0
amp = "off"
"""
RUNS = """
[[run]]
name = "short"
options = { epoch = 1 }

[[run]]
name = "broken"
options = { pretrained = "missing.pth", width = 64 }

[[run]]
name = "unlikely"
options = { epoch = 100000 }

[[run]]
name = "long"
options = { epoch = 100000, recipe = "published", train_batchsize = 2 }
"""


def start_session(out: Path, minutes: float, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmark", "--gpu-session", str(minutes), "--device", "cpu", "--out", out]
    return subprocess.Popen(
        list(map(str, [*command, *arguments])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run_session(out: Path, minutes: float, *arguments: object) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr."""
    process = start_session(out, minutes, *arguments)
    stdout, stderr = process.communicate(timeout=600)
    return process.returncode, stdout, stderr


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Read a CSV file; the rows by their name."""
    with path.open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.mark.rare
@pytest.mark.slow
def test_checks_and_table(dataset: Path, tmp_path: Path) -> None:
    """Every check passes on the CPU; a group whose crops do not fit gets rows with errors, and the others figures."""
    out = tmp_path / "out"
    groups = ("files32x2", "files96x2", "infer64")
    checks = ("parity", "prediction", "efficientnet", "resume")  # those of ResNet-18 run the same code, and are slower
    options = ("--data", dataset, "--groups", *groups, "--rounds", 1, "--checks", *checks)
    code, stdout, stderr = run_session(out, 60, "--parts", "checks", "table", *options)
    assert code == 0, stderr
    found = json.loads((out / "checks.json").read_text())
    assert all(check["passed"] for check in found.values()), found
    assert len(found) == 6
    table = json.loads((out / "table.json").read_text())
    rows = {(row["work"], row["variant"]): row for row in table["rows"]}
    assert rows["infer 64", "ours float32"]["difference"] < 1e-4
    assert all(row["seconds"] > 0 for (work, _), row in rows.items() if "96" not in work)
    assert "error" in rows["files 96 x 2", "ours float32"] and table["skipped"] == []
    assert len([work for work, _ in rows if work.startswith("files 32")]) == 4
    summary = (out / "summary.txt").read_text()
    assert stdout.endswith(summary)
    assert "resume: passed" in summary and "infer 64" in summary


@pytest.mark.rare
@pytest.mark.slow
def test_training(dataset: Path, tmp_path: Path) -> None:
    """A run ends, one fails, one does not fit, and one is told to stop; the weights of two are packed."""
    out, runs = tmp_path / "out", tmp_path / "runs.toml"
    runs.write_text(DEFAULTS + RUNS)
    process = start_session(out, 30, "--parts", "train", "--data", dataset, "--runs", runs)
    wait_for(lambda: (out / "val.csv").is_file() and "long" in read_table(out / "val.csv"), process)
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    rows = read_table(out / "runs.csv")
    assert [row["state"] for row in rows.values()] == ["done", "failed", "skipped", "stopped"], stdout
    assert "missing.pth" in rows["broken"]["note"]
    score = read_table(out / "val.csv")["short"]
    assert score["epoch"] == "1" and float(score["f1"]) == pytest.approx(float(rows["short"]["last_f1"]), abs=1e-4)
    assert rows["short"]["crops"] == "5"  # an epoch of five pairs
    short, long = load_checkpoint(out / "short.pth"), load_checkpoint(out / "long.last.pth")
    assert short.lineage[-1].epoch == 1 and long.lineage[-1].options["epoch"] == 100000
    assert long.mean == short.mean and short.config == long.config
    assert "continue with" in (out / "long.log.txt").read_text()
    assert all(name in stdout for name in rows)
    assert not list((dataset).glob(".cache"))


def test_a_check_that_fails(tmp_path: Path) -> None:
    """Too large a figure, NaN and an error fail; the checks after them run."""

    def gives(value: float) -> Iterator[Figure]:
        yield Figure("figure", value, 1.0)

    def breaks() -> Iterator[Figure]:
        yield Figure("figure", 0.5, 1.0)
        raise RuntimeError("no kernel\nat all")

    checks = {
        "large": lambda: gives(1.5),
        "nan": lambda: gives(float("nan")),
        "error": breaks,
        "good": lambda: gives(1),
    }
    run_checks(checks, {"beside": lambda: gives(0)}, tmp_path)
    found = json.loads((tmp_path / "checks.json").read_text())
    assert {name: check["passed"] for name, check in found.items()} == {
        "large": False,
        "nan": False,
        "good": True,
        "error": False,
        "beside": True,
    }
    assert found["error"]["error"] == "RuntimeError: no kernel" and found["error"]["figures"][0]["value"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults]\n", "at least one table"),
        ("run = 3\n", "at least one table"),
        ("[[run]]\nname = 'a b'\n", "name is 'a b'"),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'a'\n", "two runs are named a"),
        ("[[run]]\nname = 'a'\noptions = { speed = 1 }\n", "unknown key speed"),
        ("[[run]]\nname = 'a'\noptions = { device = 'cpu' }\n", "device cannot be chosen here"),
        ("[[run]]\nname = 'a'\noptions = { cropsize = 33 }\n", "run 1, a: --cropsize 33"),
        ("[more]\n", "unknown key more"),
    ],
)
def test_wrong_runs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "runs.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_runs(tmp_path / "runs.toml", tmp_path)


def test_the_default_runs(tmp_path: Path) -> None:
    runs = read_runs(None, tmp_path)
    assert len({run.options["seed"] for run in runs}) == len(runs) == 8
    assert read_group("step256x32") == ("step", 256, 32)
    with pytest.raises(UserError, match="step250"):
        read_group("step250x2")


@pytest.mark.slow
def test_wrong_input(dataset: Path, tmp_path: Path) -> None:
    """The command, run in this process, ends with one line before it writes anything."""
    runs = tmp_path / "runs.toml"
    runs.write_text("[[run]]\nname = 'a'\noptions = { lr = 'fast' }\n")
    given = ("--gpu-session", 1, "--device", "cpu", "--out", tmp_path / "out", "--data", dataset, "--runs", runs)
    result = run_program("tests/benchmark.py", *given, cwd=REPOSITORY)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "'fast'" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_part_that_is_late(dataset: Path, tmp_path: Path) -> None:
    """A part is killed at its deadline, here long before it is done, and the summary says so."""
    code, stdout, stderr = run_session(tmp_path / "out", 0.12, "--parts", "checks")
    assert code == 0, stderr
    assert "checks: KILLED at its deadline" in stdout
