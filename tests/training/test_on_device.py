"""train.py with --cache device: in RAM on a CPU, and the batches of a GPU, which a CPU can make too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from change.common.devices import free_bytes
from change.training import build
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
    monkeypatch.setattr(build, "makes_batches", lambda device: True)


def train(dataset: Path, folder: Path, **options: object) -> None:
    result = run_program("train.py", *train_arguments(dataset, folder, **HARD, **options))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_training_from_memory(dataset: Path, tmp_path: Path, workers: int) -> None:
    """On a CPU, losses, scores and weights are those without the option."""
    for cache in ("off", "device"):
        train(dataset, tmp_path / cache, cache=cache, workers=workers)
    assert epochs(tmp_path / "device") == epochs(tmp_path / "off")
    assert equal(weights(tmp_path / "device"), weights(tmp_path / "off"))
    assert not (dataset / ".cache").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("in_batches")
@pytest.mark.parametrize("options", [{}, {"grad_accum": 3, "trainsize": 96}], ids=["whole", "parts"])
def test_training_in_batches(dataset: Path, tmp_path: Path, options: dict[str, object]) -> None:
    """Losses are close to those without the option. The same images were seen, so that leaks into val are found."""
    for cache in ("off", "device"):
        train(dataset, tmp_path / cache, cache=cache, **options)
    found, expected = (epochs(tmp_path / cache) for cache in ("device", "off"))
    assert [row["step"] for row in found] == [2, 4]
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
    assert found != expected  # the batches were made in another way
