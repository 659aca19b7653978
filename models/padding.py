"""Prepare images for the network: normalise them, and pad their sides to multiples of 32.

Shapes: B pairs, N images, C channels, I channels of the images, 3 for RGB, O logits per pixel as in
`NetworkConfig.outputs`, H and W the image's height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import MULTIPLE
from models.encoders import IMAGENET_MEAN, IMAGENET_STD

LEVELS = 255.0  # the highest level of 8-bit images


def normalise(
    images: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    unit: float = LEVELS,
) -> Tensor:
    """Compute (x / unit - mean) / std for each channel.

    Args:
        images: (B, I, H, W), uint8 or float; RGB is 0..255.
        mean: the channels' means, of x / unit.
        std: the channels' standard deviations, of x / unit.
        unit: 255 for 8-bit RGB.

    Returns:
        float32 of the same shape, on the images' device.
    """
    # Plain numbers: a tensor of them would be copied to the device at every call, and the copy waits for the device.
    channels = zip(images.unbind(1), mean, std, strict=True)
    return torch.stack([(channel.float() / unit - m) / s for channel, m, s in channels], dim=1)


def apply_to_any_size(network: Callable[[Tensor, Tensor], Tensor], before: Tensor, after: Tensor) -> Tensor:
    """Apply a network to images of any size: pad them on the right and at the bottom, and crop the logits.

    Args:
        network: maps two batches, whose sides are multiples of 32, to logits (B, O, H, W).
        before: float (B, I, H, W), normalised.
        after: the same shape.

    Returns:
        Logits (B, O, H, W).
    """
    height, width = before.shape[2:]
    both = pad_side(pad_side(torch.cat((before, after)), 3), 2)
    logits = network(*both.chunk(2))
    return logits[..., :height, :width]


def pad_side(images: Tensor, dim: int) -> Tensor:
    """Pad images at the end of one side to the next multiple of 32.

    The padding is the reflected image, or the repeated last row or column if the side is too short to reflect.

    Args:
        images: (N, C, H, W).
        dim: 2 to pad the height, 3 to pad the width.
    """
    extra = -images.shape[dim] % MULTIPLE
    if not extra:
        return images
    padding = (0, extra, 0, 0) if dim == 3 else (0, 0, 0, extra)
    return F.pad(images, padding, mode="reflect" if extra < images.shape[dim] else "replicate")
