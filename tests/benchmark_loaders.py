"""The loaders that the benchmark times: those of the textbook, and ours with and without decoded pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ColorJitter as TorchvisionJitter
from torchvision.transforms.functional import pil_to_tensor

from change.change_dataloader import Split, find_split
from change.common.devices import choose_device
from change.data.cache import DecodedCache
from change.data.loaders import TrainLoader
from change.data.on_device import DeviceTrainLoader, decode_into_memory
from change.data.samples import TrainSamples
from change.data.transforms import ColorJitter
from change.prediction.compiling import Compiled
from models.padding import normalise
from tests.benchmark_rounds import Variant

JITTER = (0.2, 0.2, 0.1, 0.1)


class TextbookSamples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The samples of the textbook: files decoded whole by Pillow, cropped, flipped, jittered by torchvision."""

    def __init__(self, split: Split, crop: int) -> None:
        self.split, self.crop = split, crop
        brightness, contrast, saturation, hue = JITTER
        self.jitter = TorchvisionJitter(brightness, contrast, saturation, hue)

    def __len__(self) -> int:
        return len(self.split.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        pair, draw = self.split.pairs[index], np.random.default_rng(index)
        assert pair.mask is not None
        left, top = (int(draw.integers(side - self.crop + 1)) for side in pair.size)
        box = (left, top, left + self.crop, top + self.crop)
        before, after = (PIL.Image.open(path).convert("RGB").crop(box) for path in (pair.before, pair.after))
        mask = PIL.Image.open(pair.mask).convert("L").crop(box)
        flips = [
            f for f in (PIL.Image.Transpose.FLIP_LEFT_RIGHT, PIL.Image.Transpose.FLIP_TOP_BOTTOM) if draw.random() < 0.5
        ]
        for flip in flips:
            before, after, mask = (image.transpose(flip) for image in (before, after, mask))
        images = [normalise(pil_to_tensor(self.jitter(image))[None])[0] for image in (before, after)]
        return images[0], images[1], (pil_to_tensor(mask) > 127).to(torch.uint8)


def batches(variant: Variant, workers: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield augmented batches without end: uint8 images (textbook: normalised float) and masks.

    They are on the CPU, or where the pixels are if `variant.on_device`.
    """
    split, pin = find_split(Path(variant.data), "train"), variant.device.startswith("cuda")
    if variant.form == "textbook":
        samples = TextbookSamples(split, variant.size)
        loader = DataLoader(
            samples, variant.batch, shuffle=True, num_workers=1, drop_last=True, pin_memory=pin, persistent_workers=True
        )
        while True:
            yield from map(tuple, loader)
    ours = TrainSamples(split, variant.size, ColorJitter(*JITTER), 0)
    if variant.cached:
        ours.read = DecodedCache(split, Path(variant.data) / ".cache").read
    train: TrainLoader | DeviceTrainLoader = TrainLoader(ours, variant.batch, workers, pin)
    if variant.on_device:
        pairs = decode_into_memory(split, choose_device(variant.device))
        train = DeviceTrainLoader(ours, pairs, train.order, workers, wrap=Compiled if variant.compiled else None)
    epoch = 1  # images are hashed only in the first
    while True:
        for batch in train.epoch(epoch):
            if len(batch.names) == variant.batch:
                yield batch[:3]
        epoch += 1
