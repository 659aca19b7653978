"""Checkpoints: they load as they were saved, published and old files load, others are refused, writes are atomic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from change.checkpoint import (
    Checkpoint,
    PassRecord,
    load_checkpoint,
    network_for_prediction,
    pass_name,
    read_tensors,
    save_tensors,
)
from change.common.errors import UserError
from change.common.files import write_whole
from change.published import UNUSED_PUBLISHED
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import REPOSITORY
from tests.reference.reference_weights import reference_state_dict

REFERENCE = REPOSITORY / "tests" / "reference"


def test_round_trip(tmp_path: Path) -> None:
    config = NetworkConfig("resnet34", cross=True, refine=True)
    record = PassRecord("base", ["ab", "cd"], {"lr": 0.1}, {"torch": "x"}, {"f1": 0.5}, 7)
    saved = Checkpoint(config, build_network(config).state_dict(), [record], threshold=0.4)
    saved.save(tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth")
    assert (loaded.config, loaded.lineage, loaded.threshold) == (config, [record], 0.4)
    assert (loaded.mean, loaded.std) == (saved.mean, saved.std)
    assert loaded.trained_on() == {"ab", "cd"}
    assert all(torch.equal(loaded.weights[name], saved.weights[name]) for name in saved.weights)
    network, left_out = network_for_prediction(loaded)
    assert network.refinement is None and not network.training
    assert left_out and all(name.startswith("refinement.") for name in left_out)


def test_resolution(tmp_path: Path) -> None:
    """It is stored if it is known; files of earlier versions have no entry, and nonsense is refused."""
    config = NetworkConfig("resnet18")
    for resolution in (None, (0.3, 0.3), (0.5, 2.0)):
        Checkpoint(config, {"w": torch.ones(1)}, resolution=resolution).save(tmp_path / "net.pth")
        assert load_checkpoint(tmp_path / "net.pth").resolution == resolution
    content = read_tensors(tmp_path / "net.pth")
    for wrong in ([2.0, 0.5], [0.0, 1.0], [1.0], "ab", [1.0, float("nan")]):
        save_tensors({**content, "resolution": wrong}, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=r"wrong.pth is not a whole checkpoint"):
            load_checkpoint(tmp_path / "wrong.pth")
    del content["resolution"]
    save_tensors(content, tmp_path / "old.pth")
    assert load_checkpoint(tmp_path / "old.pth").resolution is None


@pytest.mark.parametrize(("name", "resolution"), [("buildings", (0.5, 2)), ("land", (0.5, 2)), ("prx_change", None)])
def test_shipped_files_know_their_resolution(name: str, resolution: tuple[float, float] | None) -> None:
    assert load_checkpoint(REPOSITORY / "checkpoints" / f"{name}_r18.pth").resolution == resolution


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("part", ["base", "cross"])
@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published(tmp_path: Path, depth: int, part: str, refined: bool, prefix: str) -> None:
    """Plain state dicts, with and without X-Cross and refinement, also as DataParallel writes them."""
    state = reference_state_dict(REFERENCE / f"keys_resnet{depth}_{part}.json")
    torch.save({prefix + k: v for k, v in state.items() if refined or "PFRM" not in k}, tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth")
    assert loaded.config == NetworkConfig(f"resnet{depth}", part == "cross", refined)
    assert not loaded.knows_its_images()
    network, left_out = network_for_prediction(loaded)
    assert {name.removeprefix("module.") for name in left_out if "tf0" in name} == set(UNUSED_PUBLISHED)
    assert len(left_out) - 2 == (sum("PFRM" in name for name in state) if refined else 0)
    total = sum(state[name].numel() for name in state if "PFRM" not in name and "tf0.upsample" not in name)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == total


def test_old_files_give_a_depth(tmp_path: Path) -> None:
    """Files of earlier versions have the depth of the ResNet where new ones have the encoder's name."""
    config = NetworkConfig("resnet34")
    Checkpoint(config, {"a": torch.zeros(1)}).save(tmp_path / "new.pth")
    content = read_tensors(tmp_path / "new.pth")
    assert content["config"]["backbone"] == "resnet34"
    content["config"] = {"backbone": 34, "cross": False, "refine": False}
    save_tensors(content, tmp_path / "old.pth")
    assert load_checkpoint(tmp_path / "old.pth").config == config


def test_pass_names() -> None:
    assert [
        pass_name(config)
        for config in (
            NetworkConfig(),
            NetworkConfig(refine=True),
            NetworkConfig(cross=True, refine=True),
            NetworkConfig(cross=True, within=True),
            NetworkConfig(model="unet", refine=True),
        )
    ] == ["base", "refine", "refine+cross", "within", "unet+refine"]


def test_not_a_published_network(tmp_path: Path) -> None:
    """Each kind of foreign state dict is refused with its own line."""
    for state, message in (
        ({}, "it is empty"),
        ({"a": 1}, "neither a checkpoint nor a state dict: a"),
        ({"conv1.weight": torch.zeros(1)}, "holds only an encoder: give it to train.py as --pretrained"),
        ({"backbone.layer3.0.conv1.weight": torch.zeros(1)}, "holds no PRX-Change network"),
    ):
        torch.save(state, tmp_path / "net.pth")
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / "net.pth")


WRONG: dict[str, tuple[str, object]] = {
    "weights": ("weights", {"a": [1]}),
    "names": ("weights", {1: torch.zeros(1)}),
    "normalisation": ("normalisation", {"mean": "abc", "std": [1, 1, 1]}),
    "images": ("lineage", [{"name": "base", "images": None}]),
    "config": ("config", {"backbone": 20}),
    "format": ("format", "prx-change/99"),
}


@pytest.mark.parametrize("what", WRONG)
def test_content_of_another_kind(tmp_path: Path, what: str) -> None:
    Checkpoint(NetworkConfig(), {"a": torch.zeros(1)}).save(tmp_path / "net.pth")
    content = read_tensors(tmp_path / "net.pth")
    key, value = WRONG[what]
    torch.save({**content, key: value}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"net\.pth"):
        load_checkpoint(tmp_path / "net.pth")


def test_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way leaves the old file and no other."""
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"cannot write .*file: Input/output error"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
