"""Packed checkpoints: a quarter of the size, weights within half a level, and only refinement heads are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from change.checkpoint import (
    Checkpoint,
    PassRecord,
    load_checkpoint,
    network_for_prediction,
    read_tensors,
    save_tensors,
)
from change.common.command_line import from_flat, to_flat
from change.common.errors import UserError
from change.options.train import TrainOptions
from change.prediction.pack import without_paths
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import run_verb

pytestmark = pytest.mark.slow


@pytest.fixture
def whole(tmp_path: Path, request: pytest.FixtureRequest) -> Checkpoint:
    """Save a checkpoint as the third pass does. The parameter is the name of the encoder."""
    torch.manual_seed(0)
    config = NetworkConfig(getattr(request, "param", "resnet18"), cross=True, refine=True)
    record = PassRecord("base", ["ab"], {"lr": 0.1, "root": "/mine"})
    saved = Checkpoint(config, build_network(config).state_dict(), [record], threshold=0.4)
    saved.save(tmp_path / "best.pth")
    return saved


@pytest.mark.parametrize("whole", ["resnet18", "efficientnet_lite0"], indirect=True)
def test_pack(whole: Checkpoint, tmp_path: Path) -> None:
    result = run_verb("pack", tmp_path / "best.pth", tmp_path / "small.pth")
    assert result.returncode == 0, result.stderr
    assert "refinement." in result.stderr
    assert (tmp_path / "small.pth").stat().st_size < 0.274 * (tmp_path / "best.pth").stat().st_size
    small = load_checkpoint(tmp_path / "small.pth")
    assert small.config == replace(whole.config, refine=False)
    assert (small.lineage, small.threshold) == ([PassRecord("base", ["ab"], {"lr": 0.1})], 0.4)
    assert set(small.weights) == {name for name in whole.weights if not name.startswith("refinement.")}
    rounded = 0
    for name, weight in small.weights.items():
        exact = whole.weights[name]
        assert weight.dtype == exact.dtype and weight.shape == exact.shape
        if not torch.equal(weight, exact):
            rounded += weight.numel()
            output = 1 if "upsample" in name else 0  # for a transposed convolution
            largest = exact.abs().amax([dim for dim in range(exact.ndim) if dim != output], keepdim=True)
            assert ((weight - exact).abs() <= 0.501 * largest / 127).all(), name
    assert rounded > 0.99 * sum(weight.numel() for weight in small.weights.values() if weight.ndim > 1)
    pair = [torch.randn(1, 3, 64, 64) for _ in range(2)]
    with torch.inference_mode():
        exact, close = (network_for_prediction(checkpoint)[0](*pair) for checkpoint in (whole, small))
    assert (exact - close).abs().max() < 0.1 * exact.abs().max()


def test_pack_overwrites_nothing(whole: Checkpoint, tmp_path: Path) -> None:
    before = (tmp_path / "best.pth").read_bytes()
    for arguments in ((tmp_path / "best.pth", tmp_path / "best.pth"), (tmp_path / "none.pth", tmp_path / "small.pth")):
        result = run_verb("pack", *arguments)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert (tmp_path / "best.pth").read_bytes() == before and not (tmp_path / "small.pth").exists()


@pytest.mark.parametrize(("pretrained", "kept"), [("imagenet", True), ("none", True), ("/mine/resnet18.pth", False)])
def test_no_path_of_the_training_machine_is_kept(pretrained: str, kept: bool) -> None:
    """Every option of train.py whose value is a path is left out; the others stay."""
    places = ["root", "list", "save_path", "checkpoint_path", "cache_path", "continue_run"]
    defaults = to_flat(from_flat(TrainOptions, {"root": "/mine", "save_path": "/mine"}))
    options = {**defaults, **dict.fromkeys(places, "/mine"), "pretrained": pretrained}
    found = without_paths(options)
    assert "/mine" not in str(found)
    assert options.keys() - found.keys() == {*places, *([] if kept else ["pretrained"])}


def test_damaged_levels(whole: Checkpoint, tmp_path: Path) -> None:
    whole.save(tmp_path / "small.pth", packed=True)
    content = read_tensors(tmp_path / "small.pth")
    levels = torch.zeros(3, dtype=torch.int8)
    for stored in ({"levels": levels}, {"levels": levels, "scale": torch.zeros(2)}, "x"):
        content["weights"]["head.out.weight"] = stored
        save_tensors(content, tmp_path / "damaged.pth")
        with pytest.raises(UserError, match=r"damaged\.pth is not a whole checkpoint"):
            load_checkpoint(tmp_path / "damaged.pth")
