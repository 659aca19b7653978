"""Checkpoints: what goes in comes out, published files load, handovers name what is new, writes are atomic."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest
import torch
import torchvision

import change.checkpoint
from change.checkpoint import (
    Checkpoint,
    PassRecord,
    hand_over,
    load_checkpoint,
    load_encoder,
    network_for_prediction,
    read_tensors,
)
from change.common.errors import UserError
from change.common.files import file_hash, write_whole
from models.encoders import ResNetEncoder
from models.network import NetworkConfig, build_network
from tests.conftest import REPOSITORY
from tests.reference.reference_weights import reference_state_dict

REFERENCE = REPOSITORY / "tests" / "reference"


def test_round_trip(tmp_path: Path) -> None:
    config = NetworkConfig(34, cross=True, refine=True)
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


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("part", ["base", "cross"])
@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published(tmp_path: Path, depth: int, part: str, refined: bool, prefix: str) -> None:
    """Plain state dicts, with and without X-Cross and refinement, also as DataParallel writes them."""
    state = reference_state_dict(REFERENCE / f"keys_resnet{depth}_{part}.json")
    torch.save({prefix + k: v for k, v in state.items() if refined or "PFRM" not in k}, tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth")
    assert loaded.config == NetworkConfig(depth, part == "cross", refined)
    assert not loaded.knows_its_images()
    network, left_out = network_for_prediction(loaded)
    assert {name.removeprefix("module.") for name in left_out if "tf0" in name} == set(
        change.checkpoint.UNUSED_PUBLISHED
    )
    assert len(left_out) - 2 == (sum("PFRM" in name for name in state) if refined else 0)
    total = sum(state[name].numel() for name in state if "PFRM" not in name and "tf0.upsample" not in name)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == total


def test_handover_names_what_is_new() -> None:
    base = NetworkConfig()
    checkpoint = Checkpoint(base, build_network(base).state_dict(), path=Path("1.pth"))
    for config in (NetworkConfig(refine=True), NetworkConfig(cross=True), NetworkConfig(cross=True, refine=True)):
        network = build_network(config)
        initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        new = hand_over(checkpoint, network, config)
        assert set(new) == initial.keys() - checkpoint.weights.keys()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, initial[name] if name in new else checkpoint.weights[name])


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
    """What fails half way leaves the old file and no other."""
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"cannot write .*file: Input/output error"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# --- encoder weights -----------------------------------------------------------------------------------------------


def torchvision_file(path: Path, depth: int) -> dict[str, torch.Tensor]:
    """Write a ResNet's state dict as torchvision distributes it."""
    state: dict[str, torch.Tensor] = torchvision.models.get_model(f"resnet{depth}", weights=None).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    ("depth", "name"),
    [
        (18, "resnet18-f37072fd.pth"),
        (18, "resnet18.pth"),
        (34, "resnet34-b627a593.pth"),
        (50, "resnet50-0676ba61.pth"),
        (101, "resnet101.pth"),
    ],
)
def test_encoder_from_base_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int, name: str) -> None:
    state = torchvision_file(tmp_path / name, depth)
    monkeypatch.setattr(change.checkpoint, "BASE_FOLDER", tmp_path)
    encoder = ResNetEncoder(depth)
    said = load_encoder(encoder, depth, "imagenet")
    assert name in said and "fc.weight, fc.bias" in said and ("project.0.weight" in said) == (depth >= 50)
    own = encoder.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items() if not key.startswith("fc."))


def test_encoder_by_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own download, from a server here; then a server that has nothing."""
    served = tmp_path / "served"
    state = torchvision_file(served / "plain.pth", 18)
    digest = file_hash(served / "plain.pth")[:8]
    (served / "plain.pth").rename(served / f"resnet18-{digest}.pth")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(change.checkpoint, "BASE_FOLDER", tmp_path / "none")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(weights.value, "url", f"{place}/resnet18-{digest}.pth")
    encoder = ResNetEncoder(18)
    assert place in load_encoder(encoder, 18, "imagenet")
    assert torch.equal(encoder.conv1.weight, state["conv1.weight"])

    monkeypatch.setattr(weights.value, "url", f"{place}/resnet18-00000000.pth")
    with pytest.raises(UserError, match=r"fetch http.*resnet18-00000000.pth into .*none or use --pretrained none"):
        load_encoder(encoder, 18, "imagenet")
    server.shutdown()
    server.server_close()


def test_encoder_of_another_depth(tmp_path: Path) -> None:
    torchvision_file(tmp_path / "resnet34.pth", 34)
    with pytest.raises(UserError, match=r"does not fit this network: it has besides layer1.2"):
        load_encoder(ResNetEncoder(18), 18, str(tmp_path / "resnet34.pth"))
