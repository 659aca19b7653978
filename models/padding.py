"""From images to what the network takes: normalised, with sides that are multiples of 32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.encoders import STRIDES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MULTIPLE = STRIDES[-1]  # of which the network's input sides are multiples


def normalise(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Uint8 RGB (B, 3, H, W), 0..255 -> float32, (x / 255 - mean) / std, on the images' device."""
    # With plain numbers: a tensor of them, made at every call, would be a copy that waits for the device.
    channels = zip(images.unbind(1), mean, std, strict=True)
    return torch.stack([(channel.float() / 255 - m) / s for channel, m, s in channels], dim=1)


def any_size(network: Callable[[Tensor, Tensor], Tensor], before: Tensor, after: Tensor) -> Tensor:
    """Apply the network to images of any size: (B, 3, H, W) normalised -> logits (B, 1, H, W).

    Pads on the right and at the bottom to multiples of 32 (reflected; replicated where a side is too short for
    that) and crops the logits.
    """
    height, width = before.shape[2:]
    both = pad_side(pad_side(torch.cat((before, after)), 3), 2)
    logits = network(*both.chunk(2))
    return logits[..., :height, :width]


def pad_side(images: Tensor, dim: int) -> Tensor:
    """Pad (N, C, H, W) at the end of `dim` (2 or 3) to the next multiple of 32."""
    extra = -images.shape[dim] % MULTIPLE
    if not extra:
        return images
    padding = (0, extra, 0, 0) if dim == 3 else (0, 0, 0, extra)
    return F.pad(images, padding, mode="reflect" if extra < images.shape[dim] else "replicate")
