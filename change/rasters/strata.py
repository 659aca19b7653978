"""The strata of a finished scene: no change, change, and a buffer around change.

Strata are numbered as in `NAMES`. The scene's mask is read in strips of rows, so a scene of any size can be sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.gdal import geo
from change.rasters.class_layer import MOST
from change.rasters.numbering import Numbers, strips
from change.rasters.pixel_areas import sum_areas

NAMES = ("no change", "change", "buffer")
NO_CHANGE, CHANGE, BUFFER, OUTSIDE = range(4)  # OUTSIDE is no data


@dataclass(frozen=True)
class Strata:
    """The number of pixels in each stratum of a scene, and its areas.

    Attributes:
        mask: the mask of the scene.
        buffer: width of the buffer in pixels; 0 if there is none.
        counts: pixels of each stratum in each strip, (S, 3).
        compared_m2: area of all pixels with data.
        changed_m2: area of the pixels that are mapped as change.
    """

    mask: Path
    buffer: int
    counts: Numbers
    compared_m2: float
    changed_m2: float

    @property
    def sizes(self) -> list[int]:
        """Number of pixels of each stratum."""
        return [int(count) for count in self.counts.sum(axis=0)]


def count_strata(mask: Path, buffer: int) -> Strata:
    """Count the pixels of the strata of a scene, which has a place on earth, and sum their areas."""
    counts, areas = [], []
    with geo("rasterio").open(mask) as dataset:
        for row, strata in read_strata(dataset, buffer):
            counts.append(np.bincount(strata.ravel(), minlength=4)[:OUTSIDE])
            masks = [strata != OUTSIDE, strata == CHANGE]
            areas.append(sum_areas(dataset.crs, dataset.transform, first=row, masks=masks))
    compared, changed = np.sum(areas, axis=0).tolist()
    return Strata(mask, buffer, np.array(counts, np.int64), compared, changed)


def read_strata(dataset: Any, buffer: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read the mask in strips; yield the first row of each and the stratum of its pixels, (h, W).

    All classes of a mask are change. The buffer holds the unchanged pixels that lie at most `buffer` rows and columns
    from a changed one.
    """
    kernel = np.ones((2 * buffer + 1, 2 * buffer + 1), np.uint8)
    for row, window in strips(dataset):
        first, last = max(0, row - buffer), min(dataset.height, row + window.height + buffer)
        wider = geo("rasterio.windows").Window(col_off=0, row_off=first, width=dataset.width, height=last - first)
        levels = dataset.read(1, window=wider)
        outside = levels > MOST
        near = cv2.dilate(((levels >= CHANGE) & ~outside).astype(np.uint8), kernel)
        strata = np.where(outside, OUTSIDE, np.minimum(levels, CHANGE)).astype(np.uint8)
        strata[(levels == NO_CHANGE) & (near > 0)] = BUFFER
        yield row, strata[row - first : row - first + window.height]


def draw_pixels(strata: Strata, drawn: list[int], seed: int) -> tuple[Numbers, Numbers, Numbers]:
    """Draw pixels at random, every pixel of a stratum with the same probability and none twice.

    Args:
        strata: the strata.
        drawn: number of pixels to draw from each.
        seed: random seed.

    Returns:
        Rows, columns and strata of the pixels, (n,) each, in random order, so that the order reveals nothing.
    """
    rng = np.random.default_rng(seed)
    ranks = [np.sort(rng.choice(size, count, replace=False)) for size, count in zip(strata.sizes, drawn, strict=True)]
    ends = np.cumsum(strata.counts, axis=0)
    parts = []
    with geo("rasterio").open(strata.mask) as dataset:
        for strip, (row, found) in enumerate(read_strata(dataset, strata.buffer)):
            for kind, own in enumerate(ranks):
                begin = ends[strip, kind] - strata.counts[strip, kind]
                here = own[(own >= begin) & (own < ends[strip, kind])] - begin
                if len(here):
                    at = np.flatnonzero(found == kind)[here]
                    parts.append((at // dataset.width + row, at % dataset.width, np.full(len(at), kind)))
    rows, columns, kinds = (np.concatenate(part).astype(np.int64) for part in zip(*parts, strict=True))
    order = rng.permutation(len(rows))
    return rows[order], columns[order], kinds[order]
