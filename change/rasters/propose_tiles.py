"""Choose the tiles of a scene that are worth labelling.

A tile is worth labelling if the network is unsure there, because its label teaches most; if the network is sure of
change, because false alarms show there; or at random, because missed changes show only there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from change.common.gdal import geo
from change.rasters.levels import HIGHEST, NO_DATA
from change.rasters.numbering import ROWS, Numbers

UNSURE, CHANGE, RANDOM = "unsure", "change", "random"  # why a tile is chosen
APART = 2  # tiles that do not touch lie at least this far apart, counted in tiles

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The complete tiles of a scene: those in which every pixel was predicted.

    Attributes:
        places: row and column (N, 2) of each tile on the common grid of the rasters, counted in tiles.
        mean: mean probability (N,).
        uncertainty: mean uncertainty (N,). That of a pixel is 1 at the threshold, 0 at the probabilities 0 and 1, and
            linear between them.
        change: mean certainty of change (N,). That of a pixel is 0 up to the threshold and rises linearly to 1.
    """

    places: Numbers
    mean: Values
    uncertainty: Values
    change: Values


class Choice(NamedTuple):
    """A chosen tile: its number among the candidates, from 0, and why it was chosen."""

    number: int
    why: str


def measure_tiles(probability: Path, *, size: int, top: int, left: int, threshold: float) -> Candidates:
    """Measure the complete tiles of a scene; its probabilities are read in strips of rows.

    Args:
        probability: probability.tif of the scene.
        size: side of the tiles in pixels. They begin at multiples of it on the common grid.
        top, left: row and column of the common grid at which the scene begins.
        threshold: 0 to below 1; a pixel is changed if its probability exceeds it.
    """
    tables = pixel_tables(threshold)
    first_row, first_column = -(-top // size), -(-left // size)
    found = [np.zeros((0, 5))]
    with geo("rasterio").open(probability) as dataset:
        count = max(0, (left + dataset.width) // size - first_column)
        for row in range(first_row, (top + dataset.height) // size if count else first_row):
            first, begin = row * size - top, first_column * size - left
            sums = add_up(dataset, tables, first=first, begin=begin, size=size, count=count)
            complete = np.flatnonzero(sums[-1] == 0)
            places = np.stack((np.full(len(complete), row), complete + first_column), axis=1)
            found.append(np.concatenate((places, sums[:-1, complete].T / size**2), axis=1))
    every = np.concatenate(found)
    mean, uncertainty, change = every[:, 2:].T
    return Candidates(every[:, :2].astype(np.int64), mean, uncertainty, change)


def pixel_tables(threshold: float) -> NDArray[np.float32]:
    """Return probability, uncertainty, certainty of change and absence of data of every level, (4, 256)."""
    levels = np.arange(256)
    probability = np.minimum(levels / HIGHEST, 1.0)
    change = np.clip((probability - threshold) / (1 - threshold), 0, 1)
    below = probability / threshold if threshold else np.ones(256)
    uncertainty = np.where(probability > threshold, 1 - change, below)
    return np.asarray(np.stack((probability, uncertainty, change, levels == NO_DATA)), np.float32)


def add_up(dataset: Any, tables: NDArray[np.float32], *, first: int, begin: int, size: int, count: int) -> Values:
    """Add up the values of the pixels in a row of tiles.

    Args:
        dataset: the open raster of probabilities.
        tables: value of every level, (T, 256).
        first, begin: row and column of the raster at which the row of tiles begins.
        size: side of the tiles in pixels.
        count: number of tiles.

    Returns:
        The sums, (T, count).
    """
    sums = np.zeros((len(tables), count))
    for row in range(first, first + size, ROWS):
        height = min(ROWS, first + size - row)
        window = geo("rasterio.windows").Window(col_off=begin, row_off=row, width=count * size, height=height)
        levels = dataset.read(1, window=window).reshape(height, count, size)
        for number, table in enumerate(tables):
            sums[number] += table[levels].sum(axis=(0, 2), dtype=np.float64)
    return sums


def choose_tiles(candidates: Candidates, count: int, seed: int) -> list[Choice]:
    """Choose tiles, in turn the one of which the network is most unsure, the surest change, and a random one.

    No two tiles touch, and they lie as far apart as their number allows: the largest distance is used at which `count`
    tiles are found. Tiles without change are never chosen as change.

    Args:
        candidates: the tiles to choose from, (N,).
        count: number of tiles.
        seed: random seed.

    Returns:
        The tiles in the order of choice; fewer than `count` if more would touch. That many are always found.
    """
    total = len(candidates.places)
    tickets = np.random.default_rng(seed).permutation(total)
    with_change = np.flatnonzero(candidates.change > 0)
    orders = {
        UNSURE: np.lexsort((tickets, -candidates.uncertainty)),
        CHANGE: with_change[np.lexsort((tickets[with_change], -candidates.change[with_change]))],
        RANDOM: np.argsort(tickets),
    }
    widest = max(APART, int(np.ceil(np.sqrt(total / count))))
    chosen: list[Choice] = []
    for distance in range(widest, APART - 1, -1):
        chosen = choose_at(candidates.places, orders, count=count, distance=distance)
        if len(chosen) == count:
            break
    return chosen


def choose_at(places: Numbers, orders: dict[str, Numbers], *, count: int, distance: int) -> list[Choice]:
    """Choose tiles in turn from several orders, at least `distance` tiles apart in rows or in columns.

    Fewer tiles than `count` are chosen if no other lies far enough from those.
    """
    if not len(places):
        return []
    spots = [(row, column) for row, column in places.tolist()]
    taken = np.zeros(places.max(axis=0) + 1, np.bool_)  # by row and column: chosen, or too near to a chosen one
    left = {why: iter(order.tolist()) for why, order in orders.items()}
    chosen: list[Choice] = []
    while left and len(chosen) < count:
        for why in list(left):
            best = next((number for number in left[why] if not taken[spots[number]]), None)
            if best is None:
                del left[why]
            elif len(chosen) < count:
                chosen.append(Choice(best, why))
                row, column = spots[best]
                top, begin = max(0, row - distance + 1), max(0, column - distance + 1)
                taken[top : row + distance, begin : column + distance] = True
    return chosen
