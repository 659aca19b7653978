"""The prediction of a network: two images in, probabilities out."""

from __future__ import annotations

import torch
from torch import Tensor

from change.checkpoint import Checkpoint
from change.common.devices import exact_float32
from change.prediction.compiling import WhenItPays
from change.prediction.folding import Fused
from change.prediction.tiles import Predict
from models.network import PRXChange
from models.padding import apply_to_any_size


def predictor(
    network: PRXChange,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint: Checkpoint,
    pixels: float = 0,
    compiling: str = "off",
) -> Predict:
    """Make a function from images (B, C, H, W) of any size to probabilities, float32 (B, O, H, W) on `device`.

    O is 1, or for a checkpoint with classes 1 + the number of classes, see `to_probabilities`. Images are uint8 RGB, or
    levels of the checkpoint's bands.

    Args:
        network: on `device`; it is copied, so later changes to it have no effect.
        device: device of the computation.
        dtype: dtype of the computation: float32, bfloat16 or float16.
        checkpoint: provides the normalisation of the images.
        pixels: number of pixels that are to be predicted in total, for `compiling`.
        compiling: off, on, or auto: compile if that is expected to save time.
    """
    forward = WhenItPays(Fused(network, dtype), device, pixels, compiling)

    def predict(before: Tensor, after: Tensor) -> Tensor:
        with torch.inference_mode(), exact_float32(dtype):
            before, after = (checkpoint.normalise(images.to(device, non_blocking=True)) for images in (before, after))
            return to_probabilities(apply_to_any_size(forward, before, after))

    return predict


def to_probabilities(logits: Tensor) -> Tensor:
    """Turn logits (B, O, H, W) into probabilities: of change if O is 1, else of unchanged and of each class."""
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


def precision_name(amp: str) -> str:
    """Return the name of a number format as results record it: float32, bf16 or fp16."""
    return "float32" if amp == "off" else amp
