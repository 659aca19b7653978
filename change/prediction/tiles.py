"""Windows over large images, blended, and test-time augmentation: for any function from a pair to probabilities.

Shapes: images (B, C, H, W) of any type, probabilities float32 (B, 1, H, W) of 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # before, after -> probabilities
LEVELS = 1024  # weights along a side are multiples of 1 / LEVELS: products and sums with them are exact in float64


@dataclass(frozen=True)
class Protocol:
    """How an image is predicted. `name`: full, slide or tile256; `window` and `overlap` in pixels, window 0: whole."""

    name: str = "full"
    window: int = 0
    overlap: int = 0
    tta: bool = False

    def applied(self, predict: Predict) -> Predict:
        """`predict` under this protocol: for images of any size, windows and symmetries included."""
        each = symmetric(predict) if self.tta else predict
        return sliding(each, self.window, self.overlap) if self.window else each


def symmetric(predict: Predict) -> Predict:
    """The mean over the eight symmetries of the square: flips and quarter turns."""

    def mean(before: Tensor, after: Tensor) -> Tensor:
        parts = []
        for flip in (False, True):
            for turns in range(4):
                laid = [torch.rot90(i.flip(-1) if flip else i, turns, (-2, -1)) for i in (before, after)]
                back = torch.rot90(predict(laid[0], laid[1]), -turns, (-2, -1))
                parts.append(back.flip(-1) if flip else back)
        while len(parts) > 1:  # in pairs: of equal values every sum is exact
            parts = [first + second for first, second in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0] / 8

    return mean


def sliding(predict: Predict, window: int, overlap: int, batch: int = 0) -> Predict:
    """Predict square windows of `window` pixels that overlap by `overlap`, and blend them; the result is on the CPU.

    `batch`: windows at once, at most; 0: as many as have the pixels of the whole image.
    """

    def blended(before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        tall, wide = min(window, height), min(window, width)
        some = batch or max(1, height * width // (tall * wide))
        starts = [start for start, _ in weighted_starts(height, window, overlap)]
        rows = ((before[..., row : row + tall, :], after[..., row : row + tall, :]) for row in starts)
        return torch.cat(list(bands(rows, predict, height, window, overlap, some)), dim=2)

    return blended


def bands(
    rows: Iterable[tuple[Tensor, Tensor]], predict: Predict, height: int, window: int, overlap: int, batch: int
) -> Iterator[Tensor]:
    """An image of any height, predicted in windows and blended from the top down, without ever being in memory whole.

    `rows`: for every start of `weighted_starts(height, window, overlap)` before and after, (B, C, min(window, height),
    W); yields probabilities float32 (B, 1, rows, W), on the CPU, which follow one another without a gap. `batch`: the
    windows that are predicted at once, at most.

    A side below `window` is predicted whole. The last window of a row or column ends with the image, and so overlaps
    by more where the sides are no multiples. Weights rise as a raised cosine over the overlap, but not towards the
    image's border. Where windows agree the result is their very value: sums are exact, in float64.
    """
    starts = weighted_starts(height, window, overlap)
    total = along = across = torch.empty(0)  # the sum, and the sums of weights down it and across it
    columns: list[tuple[int, Tensor]] = []
    for index, ((top, down), (before, after)) in enumerate(zip(starts, rows, strict=True)):
        many, (tall, width) = len(before), before.shape[-2:]
        wide = min(window, width)
        if index == 0:
            total = torch.zeros(many, 1, tall, width, dtype=torch.float64)
            along, across = torch.zeros(tall, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
            columns = weighted_starts(width, window, overlap)
            for c, weight in columns:
                across[c : c + wide] += weight
        for first in range(0, len(columns), batch):
            some = columns[first : first + batch]
            cut = [torch.cat([images[..., c : c + wide] for c, _ in some]) for images in (before, after)]
            parts = predict(cut[0], cut[1]).cpu().double().view(len(some), many, 1, tall, wide)
            for (c, weight), part in zip(some, parts, strict=True):
                total[..., c : c + wide] += (part * weight).mul_(down[:, None])
        along += down
        done = starts[index + 1][0] - top if index + 1 < len(starts) else tall
        yield total[..., :done, :].div_(along[:done, None]).div_(across).float()
        for sums in (total.movedim(-2, 0), along):
            sums[: tall - done] = sums[done:].clone()
            sums[tall - done :] = 0


def weighted_starts(length: int, window: int, overlap: int) -> list[tuple[int, Tensor]]:
    """Where the windows along a side begin, and their weights along it, float64 (min(window, length),)."""
    if length <= window:
        return [(0, torch.ones(length, dtype=torch.float64))]
    steps = math.ceil((length - window) / (window - overlap))
    rise = torch.sin((torch.arange(overlap, dtype=torch.float64) + 0.5) / max(1, overlap) * (math.pi / 2)) ** 2
    rise = (rise * LEVELS).ceil() / LEVELS
    placed = []
    for step in range(steps + 1):
        weight = torch.ones(window, dtype=torch.float64)
        if step > 0:
            weight[:overlap] *= rise
        if step < steps:
            weight[window - overlap :] *= rise.flip(0)
        placed.append((min(step * (window - overlap), length - window), weight))
    return placed
