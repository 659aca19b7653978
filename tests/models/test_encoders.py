"""The encoder contract, checked for every encoder; encoders by name or depth."""

from __future__ import annotations

import pytest
import torch

from models.encoders import ENCODERS, STRIDES, build_encoder, encode_dates, encoder_name
from models.network import NetworkConfig, build_network
from models.unet import UNetDecoder


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
    assert not set(encoder.not_used) & encoder.state_dict().keys()


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
            ValueError, match=rf"backbone {value}: choose one of resnet18, resnet34, resnet50, resnet101"
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
