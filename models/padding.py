"""Prepare images for the network: normalise them, and pad their sides to multiples of 32.

Shapes: B pairs, N images, C channels, H and W the image's height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import MULTIPLE
from models.encoders import IMAGENET_MEAN, IMAGENET_STD


def normalise(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Compute (x / 255 - mean) / std for each channel.

    Args:
        images: RGB (B, 3, H, W) of 0..255, uint8 or float.
        mean: the channels' means, for values of 0..1.
        std: the channels' standard deviations, for values of 0..1.

    Returns:
        float32 of the same shape, on the images' device.
    """
    # Plain numbers: a tensor of them would be copied to the device at every call, and the copy waits for the device.
    channels = zip(images.unbind(1), mean, std, strict=True)
    return torch.stack([(channel.float() / 255 - m) / s for channel, m, s in channels], dim=1)


def apply_to_any_size(network: Callable[[Tensor, Tensor], Tensor], before: Tensor, after: Tensor) -> Tensor:
    """Apply a network to images of any size: pad them on the right and at the bottom, and crop the logits.

    Args:
        network: maps two batches, whose sides are multiples of 32, to logits (B, 1, H, W).
        before: float (B, 3, H, W), normalised.
        after: the same shape.

    Returns:
        Logits (B, 1, H, W).
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
