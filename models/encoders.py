"""Encoders by name: an image in, four feature maps out.

To add an encoder, write a subclass of `Encoder` and add a line to `BUILDERS`.

Shapes: N images (both dates of a batch of B pairs: N = 2B), C channels, H and W the image's height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class Encoder(nn.Module):
    """Base class of all encoders.

    Attributes:
        out_channels: number of channels of the maps of strides 4, 8, 16, 32. The decoder needs multiples of 32.
        not_pretrained: prefixes of the state dict's names that files of pretrained weights lack.
        not_used: names in files of pretrained weights that the encoder has no use for, such as the classifier's.
    """

    out_channels: tuple[int, int, int, int]
    not_pretrained: tuple[str, ...] = ()
    not_used: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            images: float (N, 3, H, W), normalised; H and W are multiples of 32.

        Returns:
            Four maps (N, C, H/s, W/s) for the strides s = 4, 8, 16, 32, with C from `out_channels`.
        """
        raise NotImplementedError


class ResNetEncoder(Encoder):
    """The four stages of a ResNet, without the global pooling and the classifier.

    ResNet-18 and -34 give 64, 128, 256, 512 channels. ResNet-50 and -101 give 256, 512, 1024, 2048, which `project`,
    one 1x1 convolution per map, halves to 128, 256, 512, 1024.

    Layers and parameter names are torchvision's, so its files of ImageNet weights load without translation.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    not_pretrained = ("project.",)
    not_used = ("fc.weight", "fc.bias")

    def __init__(self, name: str) -> None:
        """Build the encoder with random weights.

        Args:
            name: a ResNet of torchvision, such as "resnet18".
        """
        super().__init__()
        resnet = torchvision.models.get_model(name, weights=None)
        assert isinstance(resnet, torchvision.models.ResNet)
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.layer3 = resnet.layer3
        self.layer4 = resnet.layer4
        has_bottlenecks = resnet.fc.in_features == 2048
        self.out_channels = (128, 256, 512, 1024) if has_bottlenecks else (64, 128, 256, 512)
        self.project = nn.ModuleList()
        if has_bottlenecks:
            self.project.extend(nn.Conv2d(2 * width, width, 1) for width in self.out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images, as described in `Encoder.forward`."""
        # ReLU is monotone, so pooling first gives the same result, and leaves ReLU a quarter of the positions.
        x = self.relu(self.maxpool(self.bn1(self.conv1(images))))
        features: list[Tensor] = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        if len(self.project) > 0:
            features = [project(feature) for project, feature in zip(self.project, features, strict=True)]
        return features


BUILDERS: dict[str, Callable[[], Encoder]] = {
    "resnet18": partial(ResNetEncoder, "resnet18"),
    "resnet34": partial(ResNetEncoder, "resnet34"),
    "resnet50": partial(ResNetEncoder, "resnet50"),
    "resnet101": partial(ResNetEncoder, "resnet101"),
}
ENCODERS = tuple(BUILDERS)


def encoder_name(value: str | int) -> str:
    """Return the encoder's name in `ENCODERS`. A number, as int or str, is the depth of a ResNet: 18 is "resnet18".

    Raises:
        ValueError: there is no such encoder.
    """
    name = str(value)
    if name.isdigit():
        name = f"resnet{name}"
    if name not in BUILDERS:
        raise ValueError(f"backbone {value}: choose one of {', '.join(ENCODERS)}")
    return name


def build_encoder(name: str | int) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: an encoder's name, or the depth of a ResNet.

    Raises:
        ValueError: there is no such encoder.
    """
    return BUILDERS[encoder_name(name)]()


def encode_dates(encoder: Encoder, before: Tensor, after: Tensor) -> list[Tensor]:
    """Encode both dates as one batch.

    Args:
        encoder: the encoder.
        before: float (B, 3, H, W), normalised; H and W are multiples of 32.
        after: the same shape.

    Returns:
        Four maps (2B, C, H/s, W/s) for the strides s = 4, 8, 16, 32: first the B maps of before, then those of after.
    """
    features: list[Tensor] = encoder(torch.cat((before, after)))
    return features
