"""The state of a run: written and read again, and what --resume takes over from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from change.checkpoint import Checkpoint, PassRecord, load_checkpoint, read_tensors, save_tensors
from change.common.errors import UserError
from change.training.run_state import Progress, RunState, read_state
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import run_program, train_arguments

STATE = RunState(
    options={"lr": 0.1},
    data="digest",
    weights={"w": torch.arange(3.0)},
    optimizer={"state": {}, "param_groups": []},
    precision_name="bf16",
    precision={},
    progress=Progress(epoch=2, steps=7, sums=[1.0, 2.0, 3.0]),
    lineage=[PassRecord("base", images=["a"])],
    images=["a", "b"],
    average={"w": torch.ones(3)},
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    threshold=0.25,
    resolution=(0.5, 2.0),
)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    STATE.save(tmp_path / "state.pth")
    read = read_state(tmp_path / "state.pth")
    assert torch.equal(read.weights["w"], STATE.weights["w"]) and torch.equal(read.average["w"], STATE.average["w"])
    assert replace(read, weights={}, average={}) == replace(STATE, weights={}, average={})


def test_states_of_earlier_versions(tmp_path: Path) -> None:
    """They lack average, normalisation and threshold; the last two were always those of ImageNet and 0.5."""
    STATE.save(tmp_path / "state.pth")
    content = read_tensors(tmp_path / "state.pth")
    for name in ("average", "mean", "std", "threshold", "resolution"):
        del content[name]
    save_tensors(content, tmp_path / "old.pth")
    old = read_state(tmp_path / "old.pth")
    assert (old.average, old.threshold, old.mean) == ({}, 0.5, (0.485, 0.456, 0.406))
    assert old.resolution is None
    for change, message in (
        ({"format": "prx-change-run/9"}, "no state that this version can continue"),
        ({"progress": {"novelty": 1}}, "does not fit this version"),
    ):
        save_tensors({**content, **change}, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=message):
            read_state(tmp_path / "wrong.pth")
    del content["images"]
    save_tensors(content, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="missing: images"):
        read_state(tmp_path / "wrong.pth")


def test_resume_takes_normalisation_and_threshold_over(dataset: Path, tmp_path: Path) -> None:
    """The checkpoints and the state of a run have those of the checkpoint that it starts from."""
    torch.manual_seed(0)
    weights = build_network(NetworkConfig()).state_dict()
    start = Checkpoint(
        NetworkConfig(), weights, [PassRecord("base", images=["a"])], mean=(0.1, 0.2, 0.3), std=(1.0, 0.9, 0.8)
    )
    replace(start, threshold=0.3, val_threshold=0.7).save(tmp_path / "start.pth")
    run = tmp_path / "run"
    arguments = train_arguments(dataset, run, resume=True, checkpoint_path=tmp_path / "start.pth", epoch=1)
    result = run_program("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    kept, state = load_checkpoint(run / "1.pth"), read_state(run / "1.state.pth")
    for found in (kept, state):
        assert (found.mean, found.std, found.threshold) == ((0.1, 0.2, 0.3), (1.0, 0.9, 0.8), 0.3)
    assert [record.name for record in kept.lineage] == ["base", "base"] and kept.val_threshold != 0.7
