"""The stretch to 8 bits: a few odd levels do not determine it, and levels that are not 8-bit ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from change.common.errors import UserError
from change.rasters.raster import RasterPair
from change.rasters.stretch import choose_stretch
from tests.rasters.drawn import noise, write_raster


@pytest.mark.parametrize("odd", [16_000, -9_999, None])
def test_odd_levels_do_not_count(odd: int | None) -> None:
    """4% of clouds or of undeclared nodata give the percentiles of the rest."""
    levels = np.random.default_rng(0).normal(1500, 300, (3, 1, 10_000)).astype(np.int16)
    levels = np.clip(levels, 600, 2400)
    rest = levels[:, :, 400:]
    if odd is not None:
        levels[:, :, :400] = odd
    stretch = choose_stretch("2,98", levels, np.ones(levels.shape, np.bool_))
    used = levels if odd is None else rest
    assert np.allclose((stretch.low, stretch.high), np.percentile(used, (2, 98), axis=(1, 2)))
    assert stretch.odd == pytest.approx(0 if odd is None else 0.04)


def test_equal_quartiles() -> None:
    """If more than half of the pixels share a level, all levels count."""
    levels = np.zeros((3, 1, 1000), np.uint16)
    levels[:, :, 800:] = 5000
    stretch = choose_stretch("2,98", levels, np.ones(levels.shape, np.bool_))
    assert (stretch.low, stretch.high, stretch.odd) == ((0, 0, 0), (5000, 5000, 5000), 0)


def test_levels_that_are_not_8_bit(tmp_path: Path) -> None:
    """`--stretch none` is refused for floats of 0 to 1, 12 bits and decibels, and taken for 0 to 255."""
    levels = noise(40, 60)
    for wrong, said in (
        ((levels / 255).astype(np.float32), r"1.tif \(float32, 0.00\d+ to 1\) are not 0 to 255"),
        (levels.astype(np.uint16) * 16, r"1.tif \(uint16, 16 to 4080\) are not 0 to 255"),
        ((levels / -10).astype(np.float32), r"1.tif \(float32, -25.5 to -0.1\)"),
    ):
        path = write_raster(tmp_path / "1.tif", wrong)
        with pytest.raises(UserError, match="--stretch none: the levels of .*" + said):
            RasterPair(path, path, stretch="none")
        RasterPair(path, path).close()
    path = write_raster(tmp_path / "1.tif", levels.astype(np.uint16))
    before, _, _ = RasterPair(path, path, stretch="none").rows(0, 40)
    assert np.array_equal(before[0].numpy(), levels)
