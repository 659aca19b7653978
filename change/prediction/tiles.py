"""Blended tiles for large images, and test-time augmentation, for any function from a pair to probabilities.

Shapes: images (B, C, H, W) of any type; probabilities float32 (B, O, H, W), 0 to 1. O is whatever the function returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # before, after -> probabilities
LEVELS = 1024  # weights are multiples of 1 / LEVELS, so that products and sums with them are exact in float64


@dataclass(frozen=True)
class Protocol:
    """The way in which images are predicted.

    Attributes:
        name: full, slide or tile256.
        tile: side of the square tiles in pixels; 0 predicts whole images.
        overlap: pixels by which neighbouring tiles overlap.
        tta: whether to average over the eight flips and quarter turns.
    """

    name: str = "full"
    tile: int = 0
    overlap: int = 0
    tta: bool = False

    def apply(self, predict: Predict) -> Predict:
        """Wrap `predict` so that it follows this protocol on images of any size."""
        each = symmetric(predict) if self.tta else predict
        return sliding(each, self.tile, self.overlap) if self.tile else each

    def as_dict(self) -> dict[str, str | int | bool]:
        """Return the protocol for metrics.json, whose format calls the tile a window."""
        return {"name": self.name, "window": self.tile, "overlap": self.overlap, "tta": self.tta}


def symmetric(predict: Predict) -> Predict:
    """Wrap `predict` so that it returns the mean over the eight flips and quarter turns of the images."""

    def mean(before: Tensor, after: Tensor) -> Tensor:
        parts = []
        for flip in (False, True):
            for turns in range(4):
                turned = [torch.rot90(i.flip(-1) if flip else i, turns, (-2, -1)) for i in (before, after)]
                back = torch.rot90(predict(turned[0], turned[1]), -turns, (-2, -1))
                parts.append(back.flip(-1) if flip else back)
        while len(parts) > 1:  # add up in pairs: the sum of two equal values is exact
            parts = [first + second for first, second in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0] / 8

    return mean


def sliding(predict: Predict, tile: int, overlap: int, batch: int = 0) -> Predict:
    """Wrap `predict` so that it works on square tiles, which are blended into a result on the CPU.

    Args:
        predict: called with batches of tiles.
        tile: side of the tiles in pixels.
        overlap: pixels by which neighbouring tiles overlap.
        batch: number of tiles per call; 0 means as many as together have the area of the image.
    """

    def blended(before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        tall, wide = min(tile, height), min(tile, width)
        tiles = batch or max(1, height * width // (tall * wide))
        starts = [start for start, _ in weighted_starts(height, tile, overlap)]
        rows = ((before[..., row : row + tall, :], after[..., row : row + tall, :]) for row in starts)
        parts = bands(rows, predict, height=height, tile=tile, overlap=overlap, batch=tiles)
        return torch.cat(list(parts), dim=2)

    return blended


def bands(
    rows: Iterable[tuple[Tensor, Tensor]], predict: Predict, *, height: int, tile: int, overlap: int, batch: int
) -> Iterator[Tensor]:
    """Predict an image in tiles and blend them from top to bottom, without holding the whole image in memory.

    A side shorter than `tile` is predicted whole. The last tile of a row or column ends at the border of the image, so
    it may overlap its neighbour by more. Weights rise as a raised cosine over the overlap, but do not fall towards the
    border of the image. If all tiles agree on a pixel, the result is exactly their value: sums are exact in float64.

    Args:
        rows: for each start in `weighted_starts(height, tile, overlap)`, the before and after images of one row of
            tiles, (B, C, min(tile, height), W).
        predict: called with batches of tiles.
        height: height of the image in pixels.
        tile: side of the tiles in pixels.
        overlap: pixels by which neighbouring tiles overlap.
        batch: maximum number of tiles per call.

    Yields:
        Probabilities float32 (B, O, rows, W) on the CPU, from the top down without a gap.
    """
    starts = weighted_starts(height, tile, overlap)
    total = along = across = torch.empty(0)  # the weighted sum, and the sums of weights down and across the image
    columns: list[tuple[int, Tensor]] = []
    for index, ((top, down), (before, after)) in enumerate(zip(starts, rows, strict=True)):
        many, (tall, width) = len(before), before.shape[-2:]
        wide = min(tile, width)
        if index == 0:
            along, across = torch.zeros(tall, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
            columns = weighted_starts(width, tile, overlap)
            for left, weight in columns:
                across[left : left + wide] += weight
        for first in range(0, len(columns), batch):
            some = columns[first : first + batch]
            cut = [torch.cat([images[..., left : left + wide] for left, _ in some]) for images in (before, after)]
            found = predict(cut[0], cut[1]).cpu().double()
            if not total.numel():
                total = torch.zeros(many, found.shape[1], tall, width, dtype=torch.float64)
            parts = found.view(len(some), many, -1, tall, wide)
            for (left, weight), part in zip(some, parts, strict=True):
                total[..., left : left + wide] += (part * weight).mul_(down[:, None])
        along += down
        done = starts[index + 1][0] - top if index + 1 < len(starts) else tall
        yield total[..., :done, :].div_(along[:done, None]).div_(across).float()
        for sums in (total.movedim(-2, 0), along):  # move up the sums that the next row of tiles adds to
            sums[: tall - done] = sums[done:].clone()
            sums[tall - done :] = 0


def weighted_starts(length: int, tile: int, overlap: int) -> list[tuple[int, Tensor]]:
    """Return the starts of the tiles along a side, each with its weights, float64 (min(tile, length),)."""
    if length <= tile:
        return [(0, torch.ones(length, dtype=torch.float64))]
    steps = math.ceil((length - tile) / (tile - overlap))
    rise = torch.sin((torch.arange(overlap, dtype=torch.float64) + 0.5) / max(1, overlap) * (math.pi / 2)) ** 2
    rise = (rise * LEVELS).ceil() / LEVELS
    placed = []
    for step in range(steps + 1):
        weight = torch.ones(tile, dtype=torch.float64)
        if step > 0:
            weight[:overlap] *= rise
        if step < steps:
            weight[tile - overlap :] *= rise.flip(0)
        placed.append((min(step * (tile - overlap), length - tile), weight))
    return placed
