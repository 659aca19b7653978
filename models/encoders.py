"""ResNet encoder: the four feature maps of a torchvision ResNet, without pooling and classifier.

Shapes: N images (both dates of a batch: N = 2B), H W image size, C channels.
Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; layers and parameter names are
torchvision's, so its ImageNet files load as they are.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

DEPTHS = (18, 34, 50, 101)
STRIDES = (4, 8, 16, 32)


class ResNetEncoder(nn.Module):
    """`forward` returns four maps of strides 4, 8, 16, 32 with `out_channels` channels.

    ResNet-18/34 give 64, 128, 256, 512 channels. ResNet-50/101 give 256..2048, which `project`, one 1x1
    convolution a map, takes to 128, 256, 512, 1024.
    """

    def __init__(self, depth: int = 18) -> None:
        """Build with random weights; `depth` is one of `DEPTHS`, else ValueError."""
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"backbone {depth}: choose one of {', '.join(map(str, DEPTHS))}")
        resnet = torchvision.models.get_model(f"resnet{depth}", weights=None)
        assert isinstance(resnet, torchvision.models.ResNet)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            resnet.layer1,
            resnet.layer2,
            resnet.layer3,
            resnet.layer4,
        )
        deep = depth >= 50
        self.out_channels = (128, 256, 512, 1024) if deep else (64, 128, 256, 512)
        self.project = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in self.out_channels if deep)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised float, H and W multiples of 32 -> four maps (N, C, H/s, W/s)."""
        # Pooled first: the same, for ReLU is monotone, on a quarter of the positions.
        x = self.relu(self.maxpool(self.bn1(self.conv1(images))))
        features: list[Tensor] = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        if self.project:
            features = [project(feature) for project, feature in zip(self.project, features, strict=True)]
        return features


def both_dates(encoder: ResNetEncoder, before: Tensor, after: Tensor) -> list[Tensor]:
    """Encode (B, 3, H, W) before and after as one batch: four maps (2B, C, H/s, W/s), before first."""
    features: list[Tensor] = encoder(torch.cat((before, after)))
    return features
