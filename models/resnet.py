"""The stages of a ResNet, with the layers and parameter names of torchvision.

They are written out here because importing torchvision takes as long as importing torch.

Shapes: N images, C channels, H and W the height and width of a map.
"""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = 1000  # of ImageNet


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the block of ResNet-18 and -34."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        """Build a block that turns (N, inputs, H, W) into (N, channels, H / stride, W / stride)."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        branch += shortcut
        activated: Tensor = self.relu(branch)
        return activated


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut, the block of ResNet-50 and -101.

    The 3x3 convolution has the stride, as in torchvision; in the paper the first one has it.
    """

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        """Build a block that turns (N, inputs, H, W) into (N, 4 channels, H / stride, W / stride)."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        branch = self.bn3(self.conv3(branch))
        branch += shortcut
        activated: Tensor = self.relu(branch)
        return activated


Block = type[BasicBlock] | type[Bottleneck]

# The block of each network, and the number of blocks in its four stages.
RESNETS: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def build_stage(block: Block, inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Build a stage: `blocks` blocks, the first of which changes the channels and has the stride.

    Args:
        block: the class of the blocks.
        inputs: channels of the stage's input.
        channels: channels inside of the blocks; the output has block.expansion times as many.
        blocks: number of blocks.
        stride: 1 or 2.
    """
    outputs = channels * block.expansion
    downsample: nn.Module | None = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    layers = [block(inputs, channels, stride)]
    layers[0].downsample = downsample
    layers += [block(outputs, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions, as in He et al., "Delving Deep into Rectifiers", ICCV 2015."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
