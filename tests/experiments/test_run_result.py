"""The CSV of a run: what real runs leave in it, and damaged files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from change.common.errors import UserError
from change.evaluation.compare import read_run
from change.experiments import experiment
from change.experiments.experiment import main
from change.experiments.leaderboard import make_page
from change.experiments.run_result import read_result
from tests.conftest import run_program
from tests.experiments.board import draw_counts, write_board_run

TINY = """
out = "OUT"
seeds = [3]
[train]
recipe = "scratch"
device = "cpu"
pretrained = "none"
cropsize = 32
train_batchsize = 2
workers = 0
warmup = 0
[[data]]
name = "tiny"
root = "ROOT"
epoch = 2
[[arm]]
name = "base"
[[arm]]
name = "more"
start = "base"
epoch_share = 0.5
train.refine = true
"""


def run_here(command: Sequence[str], dry_run: bool = False) -> int:
    """Run a program inside this process, as `change.experiments.programs.run` does in another."""
    return run_program(command[1], *command[2:]).returncode


@pytest.mark.slow
def test_real_runs(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts and counts are those of the runs; asking again trains nothing and gives the same files."""
    path, results = tmp_path / "tiny.toml", tmp_path / "results"
    path.write_text(TINY.replace("OUT", str(tmp_path / "out")).replace("ROOT", str(dataset)))
    monkeypatch.setattr(experiment, "run", run_here)
    assert main([str(path), f"--results={results}"]) == 0
    files = {file.name: file.read_bytes() for file in results.glob("tiny/*")}
    assert sorted(files) == ["base_3.csv", "more_3.csv"]
    monkeypatch.setattr(experiment, "run", lambda *_: pytest.fail("a finished run is run again"))
    assert main([str(path), f"--results={results}"]) == 0
    assert files == {file.name: file.read_bytes() for file in results.glob("tiny/*")}
    for name, crops in (("base", 5 * 2), ("more", 5 * 2 + 5 * 1)):
        found, folder = read_result(results / "tiny" / f"{name}_3.csv"), tmp_path / "out" / "tiny" / f"{name}_3"
        tested = read_run(folder / "test")
        assert found.run.images == tested.images and np.array_equal(found.run.counts, tested.counts)
        facts = found.facts
        assert (facts.data, facts.network, facts.seed, facts.split) == ("tiny", name, 3, "val")
        assert (facts.crops, facts.cropsize, facts.recipe, facts.pretrained) == (crops, 32, "scratch", "none")
        assert (facts.device, facts.config["refine"]) == ("cpu", name == "more")
        rows = [json.loads(line) for line in (folder / "w.epochs.jsonl").read_text().splitlines()]
        own = sum(row["seconds"] for row in rows)
        assert facts.seconds == pytest.approx(own, abs=0.06) if name == "base" else facts.seconds > own
        assert facts.average_precision == tested.metrics["average_precision"]
        assert facts.boundary_f1 == tested.metrics["boundary"]["f1"]
        assert str(tmp_path) not in (results / "tiny" / f"{name}_3.csv").read_text()
    assert "| base | 3 |" in make_page(results)


def test_folds_have_no_results(tmp_path: Path) -> None:
    path = tmp_path / "folds.toml"
    path.write_text('root = "a"\nout = "b"\nfolds = [0]\nlists = "c"\n[train]\nepoch = 1\n[[arm]]\nname = "one"\n')
    with pytest.raises(UserError, match="--results needs seeds"):
        main([str(path), f"--results={tmp_path}"])


def test_what_is_read(tmp_path: Path) -> None:
    """Names, groups, counts, and which images are apart; unknown if the file does not say."""
    counts = draw_counts(0.6, 0, images=8)
    found = read_result(write_board_run(tmp_path, "set", "bit", 1, counts))
    assert found.run.images == [f"tile_{i:03}" for i in range(8)] and np.array_equal(found.run.counts, counts)
    assert found.run.groups == ["0", "0", "1", "1", "2", "2", "3", "3"]
    assert found.apart is not None and found.apart.tolist() == [False, True, True, True] * 2
    found = read_result(write_board_run(tmp_path, "set", "bit", 1, counts, grouped=False))
    assert found.apart is None and not any(found.run.groups)


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "no facts": lambda text: text.partition("\n")[2],
    "no json": lambda text: text.replace("{", "", 1),
    "a fact is missing": lambda text: text.replace('"seed": 1, ', ""),
    "another fact": lambda text: text.replace('"seed": 1', '"seed": 1, "x": 1'),
    "a fact of another type": lambda text: text.replace('"seed": 1', '"seed": "1"'),
    "no counts": lambda text: text.replace("tp,fp", "a,b"),
    "one image twice": lambda text: text.replace("tile_001", "tile_000"),
    "no number": lambda text: text.replace("tile_001,0,False,", "tile_001,0,False,x"),
    "another word": lambda text: text.replace("tile_001,0,False", "tile_001,0,no"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = write_board_run(tmp_path, "set", "bit", 1, draw_counts(0.6, 0, images=4))
    text = path.read_text()
    assert len(list(csv.reader(text.splitlines()))) == 6 and DAMAGE[kind](text) != text
    path.write_text(DAMAGE[kind](text))
    with pytest.raises(UserError, match=r"bit_1\.csv was not written by experiment --results \(.+\): delete it"):
        read_result(path)


def test_a_file_of_another_name(tmp_path: Path) -> None:
    path = write_board_run(tmp_path, "set", "bit", 1, draw_counts(0.6, 0, images=4))
    with pytest.raises(UserError, match=r"bit_2\.csv holds the result of set/bit_1: give it back that name"):
        read_result(path.rename(path.with_name("bit_2.csv")))
