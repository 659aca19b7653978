"""Samples and batches: augmented crops for training, whole images for validation and test.

Shapes: in a batch, images are uint8 RGB (B, 3, H, W), or float32 (B, C, H, W) if bands are chosen, and masks uint8
(B, 1, H, W) of 0 and 1 or, if there are classes, of the values 0 to K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from change.change_dataloader import Pixels, Split
from change.common.errors import UserError, list_names
from change.common.images import Image, as_input
from change.data.degradation import NO_DEGRADATION, Degradations
from change.data.transforms import PLAIN, BandJitter, ColorJitter, Geometry, augment, resize

Reader = Callable[[int, bool], Pixels]  # has the signature of `Split.read`


class Batch(NamedTuple):
    """Images (B, C, H, W), masks (B, 1, H, W), names, and the `image_hash` of every image if hashes were asked for.

    Without labels the masks are 0 everywhere.
    """

    before: Tensor
    after: Tensor
    mask: Tensor
    names: list[str]
    hashes: list[tuple[str, str]]


class TrainSamples(Dataset[Batch | UserError]):
    """Augmented crops. A key is (epoch, index); all random draws of a sample follow from it and the seed.

    For a file that does not decode, the sample is a UserError. It is returned, not raised, because an error that is
    raised in a worker process reaches the main process with a traceback in its message.
    """

    def __init__(
        self,
        split: Split,
        crop: int,
        jitter: ColorJitter | BandJitter,
        seed: int,
        hash_epoch: int = 0,
        geometry: Geometry = PLAIN,
        degradations: Degradations = NO_DEGRADATION,
    ) -> None:
        """Check that every image is large enough.

        Args:
            split: The pairs.
            crop: Side of the square crops, in pixels.
            jitter: Colour changes, drawn separately for each date.
            seed: Random seed.
            hash_epoch: The only epoch in which images are hashed.
            geometry: How crops are scaled, turned, swapped and shifted.
            degradations: Degradations, drawn separately for each date.

        Raises:
            UserError: If an image is smaller than `crop`.
        """
        small = [f"{p.before} {p.size[0]}x{p.size[1]}" for p in split.pairs if min(p.size) < crop]
        if small:
            raise UserError(f"crop {crop} is larger than {list_names(small)}: choose a smaller --cropsize")
        self.split, self.crop, self.jitter, self.seed, self.hash_epoch = split, crop, jitter, seed, hash_epoch
        self.geometry, self.degradations = geometry, degradations
        self.read: Reader = split.read  # may be replaced by the `read` of a cache

    def __len__(self) -> int:
        return len(self.split.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Batch | UserError:
        epoch, index = key
        try:
            pixels = self.read(index, epoch == self.hash_epoch)
            rng = np.random.default_rng((self.seed, epoch, index, 1))
            images = pixels.before, pixels.after, pixels.mask
            crops = augment(*images, self.crop, self.jitter, rng, self.geometry, self.degradations)
        except UserError as error:
            return error
        return as_batch(*crops, self.split.pairs[index].name, pixels.hashes)


class WholeSamples(Dataset[Batch | UserError]):
    """Whole images with hashes, as stored or resized to a square (images bilinearly, masks by nearest neighbour)."""

    def __init__(self, split: Split, size: int = 0) -> None:
        """`size`: side of the square; 0 leaves images as they are."""
        self.split, self.size = split, size
        self.read: Reader = split.read  # may be replaced by the `read` of a cache

    def __len__(self) -> int:
        return len(self.split.pairs)

    def __getitem__(self, index: int) -> Batch | UserError:
        try:
            pixels = self.pixels(index)
        except UserError as error:
            return error
        return as_batch(*pixels[:3], self.split.pairs[index].name, pixels.hashes)

    def pixels(self, index: int) -> Pixels:
        """Return a pair as stored or resized, with hashes of what is stored. Raises UserError as `Split.read` does."""
        before, after, mask, hashes = self.read(index, True)
        square = (self.size, self.size)
        if self.size and self.split.pairs[index].size != square:
            before, after = (resize(image, self.size, cv2.INTER_LINEAR) for image in (before, after))
            # Nearest neighbours of OpenCV differ between its versions, those of Pillow do not.
            mask = np.array(PIL.Image.fromarray(mask).resize(square, PIL.Image.Resampling.NEAREST))
        return Pixels(before, after, mask, hashes)

    def shape(self, index: int) -> tuple[int, int]:
        """Return the width and height of a pair as `pixels` returns it."""
        return (self.size, self.size) if self.size else self.split.pairs[index].size


def as_batch(before: Image, after: Image, mask: Image, name: str, hashes: list[tuple[str, str]]) -> Batch:
    """Turn arrays (H, W, C), (H, W, C) and (H, W) into a batch of one, channels last in memory.

    Arrays that are not writeable, such as those of a mapped file, are copied. Levels that are not uint8 become float32.
    """
    arrays = [np.require(array, requirements=["C", "W"]) for array in (as_input(before), as_input(after), mask)]
    first, second, truth = (torch.from_numpy(array) for array in arrays)
    return Batch(first.permute(2, 0, 1)[None], second.permute(2, 0, 1)[None], truth[None, None], [name], hashes)


def join(samples: Sequence[Batch | UserError]) -> Batch | UserError:
    """Join batches of one into a batch; if one of them is an error, return the error."""
    good: list[Batch] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    return Batch(
        join_tensors([sample.before for sample in good]),
        join_tensors([sample.after for sample in good]),
        join_tensors([sample.mask for sample in good]),
        [name for sample in good for name in sample.names],
        [pair for sample in good for pair in sample.hashes],
    )


def join_tensors(parts: list[Tensor]) -> Tensor:
    """Join tensors (1, C, H, W) with channels last in memory into one (B, C, H, W).

    In a worker process the result is written directly to shared memory, from which the main process reads it.
    """
    rows = [part.permute(0, 2, 3, 1) for part in parts]
    whole = torch.empty((len(rows), *rows[0].shape[1:]), dtype=rows[0].dtype)
    if get_worker_info() is not None:
        whole.untyped_storage().share_memory_()
    return torch.cat(rows, out=whole).permute(0, 3, 1, 2)


def seen_in_training(
    batch: Batch, trained: frozenset[str], sources: Mapping[str, tuple[str, str]] | None = None
) -> list[str]:
    """Return the names of the pairs with an image that was trained on.

    Args:
        batch: The pairs, with hashes.
        trained: The hashes of the images that were trained on.
        sources: The hashes of the images that pairs were cut from, by name, see `change.data.sources`.
    """
    whole = sources or {}
    return [
        name
        for name, hashes in zip(batch.names, batch.hashes, strict=True)
        if trained.intersection((*hashes, *whole.get(name, ())))
    ]
