"""The mean of checkpoints, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from change.checkpoint import Checkpoint, PassRecord, load_checkpoint
from change.common.errors import UserError
from change.prediction.average import main
from models.config import NetworkConfig
from models.network import build_network


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Save two checkpoints of one network, the second fine-tuned from the first."""
    monkeypatch.setattr("change.prediction.average.start_logging", lambda: None)  # it would replace pytest's handlers
    config = NetworkConfig("resnet18", model="unet")
    records = [PassRecord("unet", ["ab"]), PassRecord("unet", ["cd"])]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.pth"
        weights = build_network(config).state_dict()
        Checkpoint(config, weights, records[:seed], val_threshold=0.3, resolution=(0.5, float(seed))).save(path)
        found.append(path)
    return found


def test_mean(paths: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.pth"
    assert main([*map(str, paths), "-o", str(out)]) == 0
    first, second, mean = (load_checkpoint(path) for path in (*paths, out))
    for name, weight in mean.weights.items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, torch.stack([first.weights[name], second.weights[name]]).mean(0))
        else:
            assert torch.equal(weight, second.weights[name])
    assert [record.images for record in mean.lineage] == [["ab"], ["cd"]]
    assert mean.val_threshold is None and mean.resolution == (0.5, 2)


def test_refused(paths: list[Path], tmp_path: Path) -> None:
    """Nothing is overwritten, and networks that differ are named."""
    out = tmp_path / "mean.pth"
    with pytest.raises(UserError, match=r"1\.pth is the only checkpoint: give two or more"):
        main([str(paths[0]), "-o", str(out)])
    with pytest.raises(UserError, match=r"2\.pth already exists: choose another name"):
        main([str(paths[0]), str(paths[0]), "-o", str(paths[1])])
    replace(load_checkpoint(paths[0]), threshold=0.4).save(tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth and .*1\.pth differ in their threshold"):
        main([str(tmp_path / "other.pth"), str(paths[0]), "-o", str(out)])
    config = NetworkConfig("resnet18")
    Checkpoint(config, build_network(config).state_dict()).save(tmp_path / "prx.pth")
    with pytest.raises(UserError, match=r"1\.pth and .*prx\.pth differ in their network"):
        main([str(paths[0]), str(tmp_path / "prx.pth"), "-o", str(out)])
    assert not out.exists()
