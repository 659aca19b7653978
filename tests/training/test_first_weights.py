"""The weights that a pass starts from: those of an earlier pass, or those of a pretrained encoder."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest
import torch
import torchvision

import change.training.first_weights
from change.checkpoint import Checkpoint
from change.common.classes import parse_classes
from change.common.errors import UserError
from change.common.files import file_hash
from change.prediction.threshold import any_change
from change.training.first_weights import hand_over, load_encoder
from models.config import NetworkConfig
from models.encoders import ResNetEncoder, build_encoder
from models.network import build_network

pytestmark = pytest.mark.slow

# --- earlier passes ------------------------------------------------------------------------------------------------


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


@torch.inference_mode()
def test_handover_to_classes() -> None:
    """The mean output of the classes, less the logarithms of their shares in train, is the output without classes.

    The mean is weighted by the shares.
    """
    torch.manual_seed(0)
    plain, config = NetworkConfig(width=32), NetworkConfig(width=32, classes=2)
    first, second = build_network(plain).eval(), build_network(config).eval()
    first.head.start_at(0.3)
    checkpoint = Checkpoint(plain, first.state_dict(), path=Path("1.pth"))
    new = hand_over(checkpoint, second, config, parse_classes("new <-> vanished"), [0.96, 0.03, 0.01])
    assert new == ["head.out.weight", "head.out.bias"]
    pair = torch.rand(2, 1, 3, 64, 64)
    change, outputs = first(*pair), second(*pair)
    shares = torch.tensor([0.75, 0.25])[:, None, None]
    classes = outputs[:, 1:] - outputs[:, :1] - shares.log()
    torch.testing.assert_close((classes * shares).sum(1, keepdim=True), change)
    assert (classes[:, 0] - classes[:, 1]).abs().mean() > 0.01  # else gradients below do not depend on the class
    torch.testing.assert_close(any_change(outputs.softmax(1)), change.sigmoid(), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("earlier", "later", "message"),
    [
        (
            NetworkConfig("resnet18"),
            NetworkConfig("resnet34"),
            "1.pth holds the encoder resnet18, this run is set to --backbone resnet34: choose --backbone resnet18",
        ),
        (NetworkConfig(width=32), NetworkConfig(), "1.pth has a decoder of width 32, .* of 64: choose --width 32"),
        (NetworkConfig(model="unet"), NetworkConfig(), "1.pth holds the model unet, this run is set to --model prx"),
        (NetworkConfig(cross=True), NetworkConfig(cross=True, within=True), "differ in --within: leave it out"),
        (NetworkConfig(cross=True, within=True), NetworkConfig(cross=True), "differ in --within: add it"),
        (NetworkConfig(cross=True), NetworkConfig(cross=True, patch=8), "choose --patch 4"),
        (NetworkConfig(cross=True), NetworkConfig(), "comes from a cross pass, this is a base pass: add --cross"),
        (NetworkConfig(refine=True), NetworkConfig(cross=True), "comes from a refine pass, .*: add --refine"),
    ],
)
def test_handover_refuses(earlier: NetworkConfig, later: NetworkConfig, message: str) -> None:
    with torch.device("meta"):
        network = build_network(later)
    with pytest.raises(UserError, match=message):
        hand_over(Checkpoint(earlier, {}, path=Path("1.pth")), network, later)


# --- pretrained encoders -------------------------------------------------------------------------------------------


def torchvision_file(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Write a ResNet's state dict as torchvision distributes it."""
    state: dict[str, torch.Tensor] = torchvision.models.get_model(name, weights=None).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        ("resnet18", "resnet18.pth"),
        ("resnet34", "resnet34-b627a593.pth"),
        ("resnet50", "resnet50-0676ba61.pth"),
        ("resnet101", "resnet101.pth"),
    ],
)
def test_encoder_from_base_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file_name: str) -> None:
    state = torchvision_file(tmp_path / file_name, name)
    monkeypatch.setattr(change.training.first_weights, "BASE_FOLDER", tmp_path)
    encoder = build_encoder(name)
    message = load_encoder(encoder, name, "imagenet")
    has_projections = name in ("resnet50", "resnet101")
    assert (
        file_name in message and "fc.weight, fc.bias" in message and ("project.0.weight" in message) == has_projections
    )
    own = encoder.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items() if not key.startswith("fc."))


def test_encoder_by_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own download, from a local server; then from a server that does not have the file."""
    served = tmp_path / "served"
    state = torchvision_file(served / "plain.pth", "resnet18")
    digest = file_hash(served / "plain.pth")[:8]
    (served / "plain.pth").rename(served / f"resnet18-{digest}.pth")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(change.training.first_weights, "BASE_FOLDER", tmp_path / "none")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(weights.value, "url", f"{place}/resnet18-{digest}.pth")
    encoder = build_encoder("resnet18")
    assert isinstance(encoder, ResNetEncoder)
    assert place in load_encoder(encoder, "resnet18", "imagenet")
    assert torch.equal(encoder.conv1.weight, state["conv1.weight"])

    monkeypatch.setattr(weights.value, "url", f"{place}/resnet18-00000000.pth")
    with pytest.raises(
        UserError, match=r"for resnet18: fetch http.*resnet18-00000000.pth into .*none or use --pretrained none"
    ):
        load_encoder(encoder, 18, "imagenet")
    server.shutdown()
    server.server_close()


def test_encoder_of_another_depth(tmp_path: Path) -> None:
    torchvision_file(tmp_path / "resnet34.pth", "resnet34")
    with pytest.raises(UserError, match=r"does not fit this network: unexpected layer1.2"):
        load_encoder(build_encoder("resnet18"), "resnet18", str(tmp_path / "resnet34.pth"))


def test_an_encoder_without_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that torchvision does not know ends with one line, not with its ValueError."""
    monkeypatch.setattr(change.training.first_weights, "encoder_name", lambda name: name)
    with pytest.raises(UserError, match="no ImageNet weights for novelnet: use --pretrained none, or the path of a"):
        load_encoder(build_encoder("resnet18"), "novelnet", "imagenet")
