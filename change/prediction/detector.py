"""Change detection from Python: `ChangeDetector("checkpoints/buildings_r18.pth").predict(before, after)`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from change.checkpoint import load_checkpoint, network_for_prediction
from change.common.devices import DTYPES, choose_amp, choose_device
from change.common.errors import UserError
from change.common.images import Image, bits, read_opaque
from change.prediction.predictor import predictor
from change.prediction.tiles import Predict, sliding, symmetric

Picture = str | os.PathLike[str] | PIL.Image.Image | NDArray[np.uint8]
TILE, OVERLAP = 1024, 256  # pixels


class ChangeDetector:
    """A checkpoint, ready to predict pairs of any size."""

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        device: str = "auto",
        amp: str = "off",
        tile: int = TILE,
        overlap: int = OVERLAP,
        tta: bool = False,
        batch: int = 1,
        compiling: str = "off",
        pixels: float = 0,
    ) -> None:
        """`device`: auto, cpu, cuda, mps or a GPU's number; `amp`: off (float32), bf16, fp16 or auto; images with a
        side above `tile` pixels are predicted in tiles, `batch` at once, that overlap by `overlap` and are blended;
        `tta`: the mean over the eight flips and quarter turns; `compiling`: torch.compile off, on, or auto, where it is
        expected to pay for so many `pixels`. Raises UserError for a file, device or precision that is not there, and
        for an overlap of a tile or more."""
        if not 0 <= overlap < tile:
            raise UserError(f"overlap {overlap}: choose 0 or more, and less than the tile, {tile}")
        self.device = choose_device(device)
        self.amp = choose_amp(amp, self.device)
        self.checkpoint = load_checkpoint(Path(checkpoint))
        self.threshold = self.checkpoint.threshold
        network, _ = network_for_prediction(self.checkpoint)
        area = pixels * (8 if tta else 1)
        each = predictor(
            network.to(self.device), self.device, DTYPES[self.amp], self.checkpoint, pixels=area, compiling=compiling
        )
        self.each: Predict = symmetric(each) if tta else each  # of one tile
        self._predict = sliding(self.each, tile, overlap, batch)

    def predict(self, before: Picture, after: Picture) -> NDArray[np.float32]:
        """The probability of change, float32 (H, W), 0 to 1; above `threshold` a pixel is changed.

        `before`, `after`: of one size, each a file, a Pillow image (8 bits a channel; alpha is dropped) or an array,
        uint8 RGB (H, W, 3). Raises UserError for anything else.
        """
        pictures = [rgb(picture, name) for picture, name in ((before, "before"), (after, "after"))]
        sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in pictures]
        if sizes[0] != sizes[1]:
            raise UserError(f"before has {sizes[0]} pixels, after {sizes[1]}: bring both to one grid")
        tensors = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1)))[None] for p in pictures]
        probability: NDArray[np.float32] = self._predict(*tensors)[0, 0].cpu().numpy()
        return probability

    def about(self) -> dict[str, Any]:
        """What a result says of how it was made."""
        network = {
            "path": str(self.checkpoint.path),
            "sha256": self.checkpoint.sha256,
            "config": asdict(self.checkpoint.config),
        }
        precision = "float32" if self.amp == "off" else self.amp
        return {"precision": precision, "device": str(self.device), "checkpoint": network}


def rgb(picture: Picture, name: str) -> Image:
    """A file, a Pillow image or an array as uint8 RGB (H, W, 3); `name` is for the error."""
    if isinstance(picture, (str, os.PathLike)):
        return read_opaque(Path(picture))[0]
    if isinstance(picture, PIL.Image.Image):
        if bits(picture) > 8:
            raise UserError(f"{name} has {bits(picture)} bits: bring it to 8")
        return np.asarray(picture.convert("RGB"))
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(f"{name} is {array.dtype} {array.shape}: give uint8 RGB, (height, width, 3)")
    return array
