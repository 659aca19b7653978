"""Divide the tiles of a scene into train and val so that no tile of one touches a tile of the other.

Tiles are grouped into square blocks, and whole blocks, drawn at random, become val. Tiles that touch a tile of val at
a side or a corner belong to neither part: they are the gap, as wide as a tile. A val area in
a corner has a shorter gap than one in the middle. So several draws are compared, and the best one is used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ATTEMPTS = 100  # draws that are compared
BLOCKS = 4  # number of blocks that val would consist of if the tiles filled a square

Chosen = NDArray[np.bool_]


class Parts(NamedTuple):
    """The tiles of train and of val, bool (N,) each; all others are the gap."""

    train: Chosen
    val: Chosen


def split_tiles(places: NDArray[np.int64], changed: Chosen, share: float, seed: int) -> Parts:
    """Divide tiles into train, val and a gap. The same input always gives the same parts.

    Of `ATTEMPTS` draws, those with change in both parts come first, then those with change in train. Among them, the
    best has the smallest sum of the share of tiles in the gap and the difference between val's share and `share`.

    Args:
        places: row and column (N, 2) of each tile, counted in tiles.
        changed: bool (N,), whether a tile shows change.
        share: share of the tiles of train and val that val should get, above 0 and below 1.
        seed: random seed.

    Returns:
        The parts. Both are empty if no block leaves tiles for train.
    """
    count = len(places)
    best, best_score = Parts(np.zeros(count, np.bool_), np.zeros(count, np.bool_)), (-1, -np.inf)
    if not count:
        return best
    places = places - places.min(axis=0)
    side = max(1, round(float(np.sqrt(share * count / BLOCKS))))
    blocks = np.unique(places // side, axis=0, return_inverse=True)[1].reshape(count)
    for attempt in range(ATTEMPTS):
        order = np.random.default_rng((seed, attempt)).permutation(int(blocks.max()) + 1)
        parts = draw_parts(places, blocks, order, share)
        if parts is None:
            continue
        has_change = bool(changed[parts.train].any()), bool(changed[parts.val].any())
        lost = 1 - float((parts.train | parts.val).mean()) + abs(val_share(parts) - share)
        score = 2 * has_change[0] + has_change[1], -lost
        if score > best_score:
            best, best_score = parts, score
    return best


def draw_parts(
    places: NDArray[np.int64], blocks: NDArray[np.int64], order: NDArray[np.int64], share: float
) -> Parts | None:
    """Add blocks to val in the given order, each if it brings val's share nearer to `share`.

    Args:
        places: row and column (N, 2) of each tile, from 0.
        blocks: the number (N,) of each tile's block.
        order: the numbers of the blocks.
        share: as in `split_tiles`.

    Returns:
        The parts, or None if no block leaves tiles for train.
    """
    best = None
    for block in order:
        val = blocks == block
        if best is not None:
            val = val | best.val
        train = ~touching(places, val)
        parts = Parts(train, val)
        nearer = best is None or abs(val_share(parts) - share) < abs(val_share(best) - share)
        if train.any() and nearer:
            best = parts
    return best


def val_share(parts: Parts) -> float:
    """Return val's share of the tiles of train and val."""
    return float(parts.val.sum() / (parts.train.sum() + parts.val.sum()))


def touching(places: NDArray[np.int64], chosen: Chosen) -> Chosen:
    """Find the tiles (N,) that are chosen, or touch a chosen one at a side or a corner.

    Args:
        places: row and column (N, 2) of each tile, from 0.
        chosen: bool (N,).
    """
    height, width = places.max(axis=0) + 1
    occupied = np.zeros((height + 2, width + 2), np.bool_)
    occupied[places[chosen, 0] + 1, places[chosen, 1] + 1] = True
    rows = occupied[:-2] | occupied[1:-1] | occupied[2:]
    near = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return np.asarray(near[places[:, 0], places[:, 1]], np.bool_)
