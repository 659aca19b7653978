"""From a checkpoint to the probabilities of a pair of images: `ChangeDetector().predict(before, after)`.

The interface for users, which also predicts rasters, is in `change.detector`.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.checkpoint import load_checkpoint, network_for_prediction
from change.common.band_files import read_bands
from change.common.bands import Bands, blank
from change.common.choices import OVERLAP, TILE
from change.common.devices import DTYPES, choose_amp, choose_device
from change.common.errors import UserError
from change.common.files import DEFAULT_CHECKPOINT, shipped_file
from change.common.images import Image, as_input, bits, fill_missing, read_opaque, split_alpha
from change.common.tiff import have_different_grids, more_than_rgba
from change.prediction.predictor import precision_name, predictor
from change.prediction.threshold import any_change, mask_values, require_finite
from change.prediction.tiles import Predict, sliding, symmetric

Picture = str | os.PathLike[str] | PIL.Image.Image | NDArray[Any]
RASTERS = "`python -m change predict` or `predict_rasters`"


class ChangeDetector:
    """A checkpoint that is ready to predict pairs of any size.

    Attributes:
        checkpoint: the loaded checkpoint.
        threshold: the checkpoint's threshold; a pixel is changed if its probability exceeds it.
        device: the device of the network.
        amp: the number format of the network: off (float32), bf16 or fp16.
        tile, overlap, batch: as given.
        predict_tile: the function that predicts one batch of tiles (B, C, H, W) each, uint8 RGB or levels of the
            checkpoint's bands, as probabilities float32 (B, O, H, W), as `change.prediction.predictor` explains.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        amp: str = "off",
        tile: int = TILE,
        overlap: int = OVERLAP,
        tta: bool = False,
        batch: int = 1,
        compiling: str = "off",
        pixels: float = 0,
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: file of weights, one of ours or a published one; by default the one for buildings that comes
                with the program.
            device: auto, cpu, cuda, mps or the number of a GPU.
            amp: number format: off (float32), bf16, fp16 or auto.
            tile: side of the tiles in pixels; larger images are predicted in tiles, which are blended.
            overlap: pixels by which neighbouring tiles overlap.
            tta: whether to average over the eight flips and quarter turns.
            batch: number of tiles that are predicted at once.
            compiling: use of torch.compile: off, on, or auto (if that is expected to save time).
            pixels: number of pixels that are to be predicted in total, for `compiling` auto.

        Raises:
            UserError: if the checkpoint cannot be loaded, the device does not exist, or the overlap is not smaller than
                the tile.
        """
        if not 0 <= overlap < tile:
            raise UserError(f"overlap {overlap}: choose 0 or more, and less than the tile, {tile}")
        self.device = choose_device(device)
        self.amp = choose_amp(amp, self.device)
        self.tile, self.overlap, self.batch = tile, overlap, batch
        self.checkpoint = load_checkpoint(shipped_file(DEFAULT_CHECKPOINT) if checkpoint is None else Path(checkpoint))
        self.threshold = self.checkpoint.threshold
        network, _ = network_for_prediction(self.checkpoint)
        each = predictor(
            network.to(self.device),
            self.device,
            DTYPES[self.amp],
            self.checkpoint,
            pixels=pixels * (8 if tta else 1),
            compiling=compiling,
        )
        self.predict_tile: Predict = symmetric(each) if tta else each
        self._predict = sliding(self.predict_tile, tile, overlap, batch)

    def predict(self, before: Picture, after: Picture, *, name: str = "") -> NDArray[np.float32]:
        """Predict the probability of change.

        Args:
            before: a file, a Pillow image (8 bits per channel) or an array, uint8 RGB (H, W, 3). If the checkpoint
                reads other bands: a file with them, or an array (H, W, C) of their type. In arrays of floats,
                NaN is no data.
            after: the same for the later date, of the same size. Two GeoTIFFs must lie on the same grid.
            name: name of the pair, for errors; by default the file of `before`.

        Returns:
            float32 (H, W), 0 to 1. A pixel is changed if its probability exceeds `threshold`. It is 0 where either
            image is fully transparent; the colours hidden there do not matter. If the checkpoint tells classes apart,
            it is the probability of any change.

        Raises:
            UserError: if an image is of another kind or cannot be read, if the sizes or grids differ, or if a
                probability is not finite.
        """
        found, data = self.predict_all(before, after, name)
        probability: NDArray[np.float32] = any_change(found)[0, 0].cpu().numpy()
        return probability * data

    def predict_classes(self, before: Picture, after: Picture, *, name: str = "") -> NDArray[np.uint8]:
        """Predict the class of each pixel; arguments as in `predict`.

        Returns:
            uint8 (H, W). Value v is class `checkpoint.classes.names[v - 1]`, and 0 is unchanged or without data. A
            pixel is changed if the probability that `predict` returns exceeds `threshold`.

        Raises:
            UserError: as `predict` does, and if the checkpoint tells no classes apart.
        """
        if self.checkpoint.classes is None:
            raise UserError(f"{self.checkpoint.path} tells no classes apart: use predict")
        found, data = self.predict_all(before, after, name)
        values: NDArray[np.uint8] = mask_values(found, self.threshold, [name])[0, 0].cpu().numpy()
        return values * data

    def predict_all(self, before: Picture, after: Picture, name: str) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return the probabilities (1, O, H, W), and where both images hold data, bool (H, W); as `predict` does."""
        check_grids(before, after)
        (first, first_opaque), (second, second_opaque) = self.read(before, "before"), self.read(after, "after")
        pictures = [first, second]
        sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in pictures]
        if sizes[0] != sizes[1]:
            raise UserError(f"before has {sizes[0]} pixels, after {sizes[1]}: bring both to the same grid")
        data = first_opaque & second_opaque
        pictures = [as_input(picture) for picture in fill_missing(pictures, data)]
        tensors = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1)))[None] for p in pictures]
        found = self._predict(*tensors)
        require_finite(found, [name or file_name(before) or "this pair"])
        return found, data

    def read(self, picture: Picture, name: str) -> tuple[Image, NDArray[np.bool_]]:
        """Return an image as the network reads it (H, W, C), and the pixels that hold data, bool (H, W).

        Raises UserError as `rgb` and `levels` do.
        """
        bands = self.checkpoint.bands
        return rgb(picture, name) if bands is None else levels(picture, name, bands)

    def describe(self) -> dict[str, Any]:
        """Return number format, device and checkpoint, as metadata of results."""
        network = {
            "path": str(self.checkpoint.path),
            "sha256": self.checkpoint.sha256,
            "config": asdict(self.checkpoint.config),
            "resolution": self.checkpoint.resolution,
        }
        return {"precision": precision_name(self.amp), "device": str(self.device), "checkpoint": network}


def file_name(picture: Picture) -> str:
    """Return the path of an image that is given as a file, or else ""."""
    return str(picture) if isinstance(picture, (str, os.PathLike)) else ""


def check_grids(before: Picture, after: Picture) -> None:
    """Raise UserError if both images are GeoTIFF files of different grids."""
    if not isinstance(before, (str, os.PathLike)) or not isinstance(after, (str, os.PathLike)):
        return
    if have_different_grids(Path(before), Path(after)):
        raise UserError(f"{before} and {after} lie on different grids: {RASTERS} warps one to the other")


def rgb(picture: Picture, name: str) -> tuple[Image, NDArray[np.bool_]]:
    """Convert a file, a Pillow image or an array to uint8 RGB (H, W, 3).

    Args:
        picture: the image.
        name: name of the image, for errors.

    Returns:
        The image, and the pixels that are not fully transparent, bool (H, W).

    Raises:
        UserError: if the image has more than 8 bits per channel, is of another kind, or cannot be read.
    """
    if isinstance(picture, (str, os.PathLike)):
        if more := more_than_rgba(Path(picture)):
            raise UserError(f"{picture} has {more}: use {RASTERS}, or convert it to 8-bit RGB")
        return read_opaque(Path(picture))
    if isinstance(picture, PIL.Image.Image):
        if bits(picture) > 8:
            raise UserError(f"{name} has {bits(picture)} bits per channel: convert it to 8")
        return split_alpha(np.asarray(picture.convert("RGBA")))
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(f"{name} is {array.dtype} {array.shape}: give uint8 RGB (height, width, 3)")
    return array, np.ones(array.shape[:2], np.bool_)


def levels(picture: Picture, name: str, bands: Bands) -> tuple[Image, NDArray[np.bool_]]:
    """Read the bands of a file or check an array of them.

    Args:
        picture: a file, or an array (H, W, C) of the bands' type.
        name: name of the image, for errors.
        bands: what the network reads.

    Returns:
        Levels (H, W, C), 0 where there is no data, and the pixels that hold data, bool (H, W).

    Raises:
        UserError: if the file or the array has other bands, or cannot be read.
    """
    if isinstance(picture, (str, os.PathLike)):
        return read_bands(Path(picture), bands)
    array = np.asarray(picture)
    if array.dtype != bands.kind or array.ndim != 3 or array.shape[2] != len(bands.names) or not array.size:
        raise UserError(
            f"{name} is {array.dtype} {array.shape}: give (height, width, {len(bands.names)}) with {bands.described()}"
        )
    data = np.isfinite(array).all(2) if array.dtype.kind == "f" else np.ones(array.shape[:2], np.bool_)
    return blank(array, data[..., None]), data
