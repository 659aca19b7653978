"""Train and val are apart: no tile of one touches a tile of the other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from change.rasters.tile_split import split_tiles


def square(side: int) -> NDArray[np.int64]:
    return np.array(list(itertools.product(range(side), repeat=2)), np.int64)


def distance(places: NDArray[np.int64], first: NDArray[np.bool_], second: NDArray[np.bool_]) -> int:
    """Return the smallest distance between two sets of tiles, in tiles; 1 means that they touch."""
    apart = places[first][:, None] - places[second][None]
    return int(np.abs(apart).max(2).min())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_apart(seed: int, share: float) -> None:
    """In tiles with holes, far from the origin: both parts show change, and all other tiles lie between them."""
    draw = np.random.default_rng(seed)
    places = draw.permutation(square(12)[draw.random(144) < 0.8]) + 100
    changed = draw.random(len(places)) < 0.2
    train, val = split_tiles(places, changed, share, seed)
    assert distance(places, train, val) == 2 and changed[train].any() and changed[val].any()
    for number in np.flatnonzero(~train & ~val):
        one = np.arange(len(places)) == number
        assert distance(places, one, val) == 1
    assert val.sum() / (train.sum() + val.sum()) == pytest.approx(share, abs=0.08)


def test_the_best_draw_counts() -> None:
    """One tile of 4 x 4 for val lies in a corner, where the fewest others touch it; the choice can be repeated."""
    places = square(4)
    train, val = split_tiles(places, np.ones(16, np.bool_), 0.08, seed=3)
    assert train.sum() == 12 and val.sum() == 1
    again = split_tiles(places, np.ones(16, np.bool_), 0.08, seed=3)
    assert np.array_equal(again.train, train) and np.array_equal(again.val, val)
    others = [split_tiles(places, np.ones(16, np.bool_), 0.08, seed=seed).val for seed in range(4)]
    assert any(not np.array_equal(other, val) for other in others)


def test_the_only_change_is_in_train() -> None:
    changed = np.zeros(16, np.bool_)
    changed[0] = True
    train, val = split_tiles(square(4), changed, 0.2, seed=0)
    assert train[0] and val.any()


@pytest.mark.parametrize("places", [np.zeros((0, 2)), [[3, 3]], [[0, 0], [1, 1]], square(2)])
def test_tiles_that_all_touch(places: NDArray[np.int64]) -> None:
    places = np.asarray(places, np.int64)
    train, val = split_tiles(places, np.ones(len(places), np.bool_), 0.2, seed=0)
    assert len(train) == len(val) == len(places) and not train.any() and not val.any()
