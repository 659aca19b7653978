"""An encoder of four layers, for tests whose time grows with the number of layers, such as exports to ONNX."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.encoders import Encoder


class FourLayers(Encoder):
    """One convolution per map; it takes the arguments of the functions in `models.encoders.BUILDERS`."""

    def __init__(self, width: int, in_channels: int = 3) -> None:
        super().__init__()
        self.out_channels = (width, 2 * width, 4 * width, 8 * width)
        sides = zip((in_channels, *self.out_channels), self.out_channels, (4, 2, 2, 2), strict=False)
        self.layers = nn.ModuleList(nn.Conv2d(inputs, own, stride, stride) for inputs, own, stride in sides)
        for layer in self.layers:  # without batch norms, torch's own weights would give ever smaller maps
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images, as described in `Encoder.forward`."""
        maps = [images]
        for layer in self.layers:
            maps.append(F.relu(layer(maps[-1])))
        return maps[1:]
