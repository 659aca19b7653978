"""Splits that are decoded once and kept in memory, and loaders that make batches where the pixels are.

Pixels take 7 bytes each: two images and a mask, all uint8. On a CPU, `PairsInMemory.read` replaces `Split.read`, and
samples are made as usual. On a GPU, worker processes only make the random draws. `DeviceTrainLoader` sends them to the
GPU, which makes the crops of the whole batch there.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from change.change_dataloader import Pixels, Split
from change.common.devices import free_bytes
from change.common.errors import UserError
from change.data.batch_augmentation import (
    CROP_COLUMNS,
    DEGRADATIONS,
    SWAP,
    BatchColours,
    BatchCrop,
    BatchDegradations,
    as_row,
)
from change.data.cache import decode_pairs
from change.data.loaders import EpochOrder, make_loader
from change.data.samples import Batch, TrainSamples, WholeSamples
from change.data.transforms import ColorJitter, draw_crop

log = logging.getLogger(__name__)

BYTES = 7  # per pixel of a pair
WORKING_BYTES = 100  # per pixel of the images of a batch, while crops are made one operation after the other
MOST_DRAWING = 2  # worker processes that draw: each serves thousands of samples per second

Wrap = Callable[[nn.Module], Callable[..., Any]]  # may compile a module
Record = Callable[[Callable[..., Any]], Callable[..., Any]]  # launches all kernels of a function together


def require_memory(sizes: Iterable[tuple[int, int]], working: int, device: torch.device, copies: int = 1) -> None:
    """Check that pairs fit into memory before they are decoded.

    Args:
        sizes: Width and height of every pair.
        working: Further bytes that are needed.
        device: Where the pairs are to be kept.
        copies: Number of processes that keep them in this memory.

    Raises:
        UserError: If there is too little memory. It names both figures.
    """
    needed = copies * (BYTES * sum(width * height for width, height in sizes) + working)
    free = free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"--cache device needs {needed / 1e9:,.2f} GB for the pairs of train and val, and {free / 1e9:,.2f} GB of "
            f"{'RAM' if device.type == 'cpu' else f'{device} memory'} are free: use --cache disk"
        )


class PairsInMemory:
    """Decoded pairs in the memory of a device."""

    def __init__(self, sizes: Sequence[tuple[int, int]], decoded: Iterable[Pixels], device: torch.device) -> None:
        """Keep pairs.

        Args:
            sizes: Width and height of every pair.
            decoded: The pairs, with hashes.
            device: Where to keep them.

        Raises:
            UserError: If `decoded` raises it.
        """
        self.sizes = sizes
        areas = [width * height for width, height in sizes]
        *self.starts, total = accumulate(areas, initial=0)
        self.images = torch.empty((2 * total, 3), dtype=torch.uint8, device=device)
        self.masks = torch.empty(total, dtype=torch.uint8, device=device)
        self.hashes: list[list[tuple[str, str]]] = []
        for start, area, pixels in zip(self.starts, areas, decoded, strict=True):
            for date, image in enumerate((pixels.before, pixels.after)):
                first = 2 * start + date * area
                self.images[first : first + area] = as_tensor(image).view(area, 3)
            self.masks[start : start + area] = as_tensor(pixels.mask).view(area)
            self.hashes.append(pixels.hashes)
        widths = [width for width, _ in sizes]
        self.layout = torch.tensor([self.starts, widths, areas], device=device).T.contiguous()

    def pair(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of a pair: two images (H, W, 3) and a mask (H, W)."""
        width, height = self.sizes[index]
        start, area = self.starts[index], width * height
        images = self.images[2 * start : 2 * (start + area)].view(2, height, width, 3)
        return images[0], images[1], self.masks[start : start + area].view(height, width)

    def read(self, index: int, hashed: bool) -> Pixels:
        """Return a pair as `Split.read` does. The arrays are views, and read-only. The device must be the CPU."""
        before, after, mask = (view.numpy() for view in self.pair(index))
        for array in (before, after, mask):
            array.flags.writeable = False
        return Pixels(before, after, mask, self.hashes[index] if hashed else [])


def decode_into_memory(split: Split, device: torch.device) -> PairsInMemory:
    """Decode all pairs of a split into the memory of `device`. Raises UserError for a file that does not decode."""
    sizes = [pair.size for pair in split.pairs]
    log.info(
        "%s: decoding %d pairs into memory, %.1f MB", split.name, len(sizes), BYTES * sum(w * h for w, h in sizes) / 1e6
    )
    return PairsInMemory(sizes, decode_pairs(split.read, range(len(sizes))), device)


def as_tensor(array: NDArray[np.uint8]) -> Tensor:
    """Turn an array into a tensor; an array that is not writeable is copied."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


# --- training ------------------------------------------------------------------------------------------------------


class Draws(Dataset[Tensor]):
    """The random draws of `TrainSamples`, without the pixels: a key (epoch, index) gives a row (1, COLUMNS)."""

    def __init__(self, samples: TrainSamples) -> None:
        assert isinstance(samples.jitter, ColorJitter), "--cache device keeps 8-bit RGB"
        self.crop, self.jitter, self.seed, self.geometry = samples.crop, samples.jitter, samples.seed, samples.geometry
        self.degradations = samples.degradations
        self.sizes = [pair.size for pair in samples.split.pairs]

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, index = key
        width, height = self.sizes[index]
        rng = np.random.default_rng((self.seed, epoch, index, 1))
        crop = draw_crop(height, width, self.crop, rng, self.geometry)
        colours = [self.jitter.draw(rng) for _ in range(2)]
        degradations = [self.degradations.draw(rng) for _ in range(2)]
        return torch.from_numpy(as_row(index, crop, colours, degradations))[None]


def join_draws(rows: list[Tensor], length: int) -> tuple[Tensor, int]:
    """Join rows, and repeat the last one until there are `length`; also return how many there were.

    All batches then have the same shape, for which the augmentation can be compiled.
    """
    return torch.cat(rows + rows[-1:] * (length - len(rows))), len(rows)


class EndlessOrder(Sampler[list[tuple[int, int]]]):
    """The batches of an `EpochOrder` from where it stands, followed by those of all later epochs.

    With it, workers draw the first batches of an epoch while the last ones of the epoch before are in use.
    """

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = copy(self.order)
        while True:
            yield from order
            order.epoch, order.start = order.epoch + 1, 0


class DeviceTrainLoader:
    """Makes the batches of `TrainLoader`, up to rounding, on the device that keeps the pairs.

    Raises no errors later: all files have been decoded.
    """

    def __init__(
        self,
        samples: TrainSamples,
        pairs: PairsInMemory,
        order: EpochOrder,
        workers: int,
        *,
        wrap: Wrap | None = None,
        record: Record | None = None,
    ) -> None:
        """Make the loader of a process.

        Args:
            samples: The samples, which define the draws.
            pairs: All pairs of the split.
            order: This process's share of the batches.
            workers: Number of worker processes; at most `MOST_DRAWING` are used.
            wrap: Compiles a module, or returns it as it is.
            record: Changes a function so that each call overwrites the tensors that the call before returned.
        """
        self.order, self.pairs, self.names = order, pairs, [pair.name for pair in samples.split.pairs]
        assert isinstance(samples.jitter, ColorJitter), "--cache device keeps 8-bit RGB"
        self.hash_epoch, self.colours_change = samples.hash_epoch, samples.jitter.active
        self.degrades = samples.degradations.share > 0
        self.device = pairs.images.device
        self.opposites = torch.tensor(samples.geometry.opposites, dtype=torch.uint8, device=self.device)
        whole = min(order.batch_size, order.samples)
        first, end = order.bounds(whole)
        self.loader = make_loader(
            Draws(samples),
            EndlessOrder(order),
            min(workers, MOST_DRAWING),
            pin=self.device.type == "cuda",
            collate=functools.partial(join_draws, length=max(end - first, order.share(0).parts)),
        )
        self.drawn: Iterator[tuple[Tensor, int]] = iter(())
        self.next: tuple[int, int] | None = None  # epoch and number of the batch that `drawn` gives next
        wrap = wrap or (lambda module: module)
        self.cut = wrap(BatchCrop(samples.crop, *bounds_of_sides(samples)).to(self.device))
        self.recolour = wrap(BatchColours().to(self.device))
        self.degrade = wrap(BatchDegradations().to(self.device))
        self.recorded = record(self.make) if record else None

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch `start` on; the tensors are on the device.

        With `record`, a batch is overwritten when the next one is made.
        """
        for step in range(start, len(self)):
            if self.next != (epoch, step):
                self.order.epoch, self.order.start = epoch, step
                self.drawn = iter(self.loader)
            rows, own = next(self.drawn)
            self.next = (epoch, step + 1) if step + 1 < len(self) else (epoch + 1, 0)
            indices = rows[:own, 0].int().tolist()
            make = self.recorded or self.make
            before, after, mask = make(rows.to(self.device, non_blocking=True))
            yield Batch(
                before[:own],
                after[:own],
                mask[:own],
                [self.names[index] for index in indices],
                [hashes for i in indices for hashes in self.pairs.hashes[i]] if epoch == self.hash_epoch else [],
            )

    @torch.no_grad()
    def make(self, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make images (B, 3, crop, crop), channels last in memory, and masks (B, 1, crop, crop) from draws."""
        images, masks = self.cut(self.pairs.images, self.pairs.masks, self.pairs.layout, draws)
        if self.colours_change:
            images = self.apply(self.recolour, images, draws[:, CROP_COLUMNS:DEGRADATIONS])
        if self.degrades:
            images = self.apply(self.degrade, images, draws[:, DEGRADATIONS:])
        before, after = images.permute(0, 1, 4, 2, 3)
        if len(self.opposites):
            swapped = draws[:, SWAP, None, None] > 0
            masks = torch.where(swapped, self.opposites[masks.long()], masks)
        return before, after, masks[:, None]

    @staticmethod
    def apply(change: Callable[..., Any], images: Tensor, draws: Tensor) -> Tensor:
        """Change the images of both dates (2, B, ...) as one batch; `draws` (B, N): those of before, then of after."""
        by_date = torch.cat(draws.chunk(2, dim=1))
        changed: Tensor = change(images.flatten(0, 1), by_date)
        return changed.view_as(images)


def bounds_of_sides(samples: TrainSamples) -> tuple[int, int]:
    """Return bounds of the sides that `draw_crop` can draw for a split: no square is larger than its image."""
    geometry, crop = samples.geometry, samples.crop
    limits = [min(pair.size) for pair in samples.split.pairs]
    smallest, largest = math.floor(crop / geometry.largest), math.ceil(crop / geometry.smallest)
    return max(1, min(smallest, *limits)), min(largest, max(limits))


# --- validation ----------------------------------------------------------------------------------------------------


class DeviceWholeLoader:
    """Gives the batches of `whole_loader` from the device that keeps the pairs of this process."""

    def __init__(self, samples: WholeSamples, pairs: PairsInMemory, batches: Sequence[Sequence[int]]) -> None:
        """Make the loader of a process.

        Args:
            samples: The samples.
            pairs: The pairs as `samples.pixels` returns them, in the order of `batches`.
            batches: The numbers of the pairs of each batch.
        """
        self.samples, self.pairs, self.batches = samples, pairs, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        place = 0
        for batch in self.batches:
            views = [self.pairs.pair(place + i) for i in range(len(batch))]
            before, after, mask = (torch.stack(tensors) for tensors in zip(*views, strict=True))
            yield Batch(
                before.permute(0, 3, 1, 2),
                after.permute(0, 3, 1, 2),
                mask[:, None],
                [self.samples.split.pairs[index].name for index in batch],
                [hashes for i in range(len(batch)) for hashes in self.pairs.hashes[place + i]],
            )
            place += len(batch)
