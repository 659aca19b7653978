"""train.py with --cache device: in RAM on a CPU, and the batches of a GPU, which a CPU can make too."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from change.checkpoint import read_tensors
from change.common.devices import free_bytes
from change.training import data as run_data
from change.training.trainer import Training
from tests.conftest import last_line, run_program, train_arguments, write_pairs
from tests.training.test_trainer import epochs, equal, weights

HARD = {
    "best_name": "run",
    "cropsize": 32,
    "train_batchsize": 4,
    "scale": "0.7 1.4",
    "symmetries": True,
    "swap": True,
    "color_setting": "0.3 0.3 0.3 0.05",
}


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches as on a GPU."""
    monkeypatch.setattr(run_data, "makes_batches", lambda device: True)


def train(dataset: Path, folder: Path, **options: object) -> None:
    result = run_program("train.py", *train_arguments(dataset, folder, **{**HARD, **options}))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_training_from_memory(dataset: Path, tmp_path: Path) -> None:
    """On a CPU, losses, scores and weights are those without the option."""
    for cache, workers in (("off", 0), ("device", 1)):
        train(dataset, tmp_path / cache, cache=cache, workers=workers)
    assert epochs(tmp_path / "device") == epochs(tmp_path / "off")
    assert equal(weights(tmp_path / "device"), weights(tmp_path / "off"))
    assert not (dataset / ".cache").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("in_batches")
def test_training_in_batches(dataset: Path, tmp_path: Path) -> None:
    """Losses are close to those without the option."""
    for cache in ("off", "device"):
        train(dataset, tmp_path / cache, cache=cache, grad_accum=3, trainsize=96)
    found, expected = (epochs(tmp_path / cache) for cache in ("device", "off"))
    assert [row["step"] for row in found] == [2, 4]
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
    assert found != expected  # the batches were made in another way


@pytest.mark.slow
@pytest.mark.usefixtures("in_batches")
def test_stop_and_go_on_in_batches(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped within an epoch and continued ends with the weights of an uninterrupted one."""
    options = {"cache": "device", "train_batchsize": 1, "epoch": 1}
    train(dataset, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "agreed", lambda training: (15 * (training.progress.steps == 3), False))
        arguments = train_arguments(dataset, tmp_path / "broken", **{**HARD, **options})
        assert run_program("train.py", *arguments).returncode == 128 + 15
    assert read_tensors(tmp_path / "broken" / "run.state.pth")["progress"]["step"] == 3
    result = run_program("train.py", "--continue_run", tmp_path / "broken", "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert epochs(tmp_path / "broken") == epochs(tmp_path / "whole")
    assert equal(weights(tmp_path / "broken"), weights(tmp_path / "whole"))


@pytest.mark.usefixtures("in_batches")
def test_val_that_was_trained_on(tmp_path: Path) -> None:
    """The hashes of what is kept on the device reveal images in both splits."""
    root = tmp_path / "data"
    write_pairs(root / "train", 2)
    write_pairs(root / "val", 2)
    result = run_program("train.py", *train_arguments(root, tmp_path / "run", epoch=1, cache="device"))
    assert result.returncode == 0, result.stderr
    assert "2 of its pairs were trained on: 0, 1" in result.stderr


@pytest.mark.parametrize("batches", [False, True], ids=["samples", "batches"])
def test_too_little_memory(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: bool) -> None:
    """The run ends before a pair is decoded, and before its folder is made."""
    monkeypatch.setattr(run_data, "makes_batches", lambda device: batches)
    monkeypatch.setattr("change.data.on_device.free_bytes", lambda device: 100_000)
    monkeypatch.setattr("change.change_dataloader.Split.read", lambda *given: pytest.fail("a pair was decoded"))
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", cache="device"))
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: --cache device needs \d\.\d\d GB .* 0\.00 GB of RAM are free: use --cache disk", last_line(result)
    )
    assert not (tmp_path / "run").exists()


def test_wrong_values(dataset: Path, tmp_path: Path) -> None:
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", cache="gpu"))
    assert result.returncode == 2 and "device" in last_line(result)
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", cache="device", cache_path="x"))
    assert last_line(result).startswith("error: --cache_path does nothing without --cache disk")


def test_free_memory() -> None:
    """It is below all of the RAM and enough for this test."""
    free = free_bytes(torch.device("cpu"))
    assert free is not None and 10**7 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
