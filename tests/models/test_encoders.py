"""The encoder contract, checked for every encoder; encoders by name or depth."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision

from models.config import ENCODERS, STRIDES, NetworkConfig, encoder_name
from models.encoders import BUILDERS, build_encoder, encode_dates, widen
from models.network import build_network
from models.unet import UNetDecoder
from models.xcross import StochasticDepth


def test_every_encoder_has_a_name_and_a_width() -> None:
    assert tuple(BUILDERS) == ENCODERS


@pytest.mark.parametrize("name", ENCODERS)
def test_contract(name: str) -> None:
    """Four maps of the promised strides and channels; the numbers of channels are multiples of 32."""
    with torch.device("meta"):
        encoder = build_encoder(name)
        features = encoder(torch.empty(2, 3, 64, 96))
    assert isinstance(features, list)
    assert [tuple(f.shape) for f in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.out_channels, STRIDES, strict=True)
    ]
    assert all(channels % 32 == 0 for channels in encoder.out_channels)
    assert not any(encoder.not_used and name.startswith(encoder.not_used) for name in encoder.state_dict())


def test_both_dates_share_the_encoder() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18").eval()
    before, after = torch.randn(2, 2, 3, 32, 64)
    with torch.inference_mode():
        both = encode_dates(encoder, before, after)
        before_maps, after_maps = encoder(before), encoder(after)
    for maps, of_before, of_after in zip(both, before_maps, after_maps, strict=True):
        torch.testing.assert_close(maps, torch.cat((of_before, of_after)))


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_a_depth_is_a_resnet(depth: int) -> None:
    name = f"resnet{depth}"
    assert encoder_name(depth) == encoder_name(str(depth)) == encoder_name(name) == name
    assert NetworkConfig(depth) == NetworkConfig(name)  # type: ignore[arg-type]
    assert NetworkConfig(depth).backbone == name  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [20, "20", "resnet20", "", "18.0", "vgg16"])
def test_unknown_encoders(value: str | int) -> None:
    for refuse in (encoder_name, build_encoder, NetworkConfig):
        with pytest.raises(
            ValueError,
            match=rf"backbone {value}: choose one of resnet18, resnet34, resnet50, .*, or timm:NAME",
        ):
            refuse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENCODERS)
def test_networks_build_without_memory(name: str) -> None:
    with torch.device("meta"):
        full = build_network(NetworkConfig(name, cross=True, refine=True))
        plain = build_network(NetworkConfig(name, model="unet"))
    assert all(tensor.is_meta for tensor in (full.state_dict() | plain.state_dict()).values())
    assert isinstance(plain.decoder, UNetDecoder)
    assert full.decoder.out_channels == plain.decoder.out_channels == full.encoder.out_channels[::-1]


# --- width ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "own"), [("resnet18", 64), ("resnet50", 128), ("efficientnet_lite0", 32)])
def test_width_scales_encoder_and_decoder(name: str, own: int) -> None:
    """0 is the encoder's own width. Other widths are projected; the decoder's channels follow."""
    assert NetworkConfig(name).width == NetworkConfig(name, width=own).width == own
    for width in (32, 64, 96):
        with torch.device("meta"):
            network = build_network(NetworkConfig(name, cross=True, width=width))
        assert network.encoder.out_channels == (width, 2 * width, 4 * width, 8 * width)
        assert network.decoder.out_channels == (8 * width, 4 * width, 2 * width, width)


def test_the_published_width_has_no_projection() -> None:
    with torch.device("meta"):
        names = [{name.split(".")[0] for name in build_encoder("resnet18", w).state_dict()} for w in (0, 64, 32)]
    assert "project" not in names[0] | names[1] and "project" in names[2]


@pytest.mark.parametrize("width", [-32, 16, 48])
def test_widths_that_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width {width}: choose a multiple of 32, or 0 for the encoder's own"):
        NetworkConfig(width=width)


# --- timm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18d", "convnext_atto", "mobilenetv3_small_050", "repvgg_a0"])
def test_networks_of_timm(name: str) -> None:
    """The maps are timm's own, projected, and the names of timm's file fill the encoder exactly."""
    torch.manual_seed(0)
    encoder: Any = build_encoder(f"timm:{name}", 32).eval()
    whole: Any = timm.create_model(name).eval()
    own = {encoder.own_name(key) or "none": tensor for key, tensor in whole.state_dict().items()}
    own.pop("none")  # the classifier
    new = {key: tensor for key, tensor in encoder.state_dict().items() if key.startswith(encoder.not_pretrained)}
    encoder.load_state_dict({**new, **own})
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = whole.forward_intermediates(image, intermediates_only=True)
        last = {one.shape[2:]: one for one in expected}
        for map_, layer, stride in zip(encoder(image), encoder.project, STRIDES, strict=True):
            torch.testing.assert_close(map_, layer(last[torch.Size((64 // stride, 96 // stride))]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:nonesuch", "timm:nonesuch: timm has no network of this name, see timm.list_models()"),
        ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224: it does not give feature maps for images of every size"),
        pytest.param(
            "timm:efficientvit_m0",
            "efficientvit_m0: .*strides 4, 8, 16, 32",
            marks=pytest.mark.skipif(timm.__version__ == "1.0.3", reason="timm 1.0.3 knows it only for one image size"),
        ),
    ],
)
def test_networks_of_timm_that_do_not_fit(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_those_of_torchvision(name: str) -> None:
    """A seed gives the same weights under the same names, and the same maps to the last bit."""
    torch.manual_seed(3)
    ours = build_encoder(name, 64 if name == "resnet18" else 256).eval()
    next_number = torch.rand(1)
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name).eval()
    assert torch.equal(torch.rand(1), next_number)
    expected = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    images = torch.rand(2, 3, 64, 96)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    for stage, found in zip(("layer1", "layer2", "layer3", "layer4"), ours(images), strict=True):
        x = getattr(theirs, stage)(x)
        assert torch.equal(x, found)


def test_stochastic_depth_is_that_of_torchvision() -> None:
    branch = torch.rand(64, 3, 2)
    torch.manual_seed(4)
    found = StochasticDepth(0.3)(branch)
    torch.manual_seed(4)
    assert torch.equal(found, torchvision.ops.StochasticDepth(0.3, mode="row")(branch))
    assert 0 < sum(bool((image == 0).all()) for image in found) < 64
    assert StochasticDepth(0.3).eval()(branch) is branch


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "timm:mobilenetv3_small_050"])
@pytest.mark.parametrize("channels", [1, 2, 5, 32])
def test_other_channels(name: str, channels: int) -> None:
    """Every encoder reads images of any number of channels, and knows the weights that read them."""
    encoder = build_encoder(name, in_channels=channels).eval()
    assert encoder.state_dict()[encoder.first].shape[1] == channels
    maps = encoder(torch.rand(2, channels, 64, 96))
    assert [tuple(one.shape[2:]) for one in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_weights_for_rgb_are_widened() -> None:
    """Colours keep their weights, other channels have the mean, and grey surfaces give the same response."""
    weight = torch.rand(4, 3, 7, 7)
    wide = widen(weight, (1, None, 0, None, 2))
    scale = 3 / 5
    assert torch.allclose(wide[:, [2, 0, 4]], weight * scale) and torch.allclose(wide[:, 1], weight.mean(1) * scale)
    assert torch.allclose(wide.sum(1), weight.sum(1))
    assert torch.equal(widen(weight, (0, 1, 2)), weight)
    assert torch.equal(widen(weight, (2, 1, 0)), weight[:, [2, 1, 0]])
