"""Bands: which are taken for red, green, blue and transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from change.rasters.look import look_at
from change.rasters.raster import RasterPair
from tests.rasters.drawn import EAST, GRID, NORTH, noise, write_raster

MOVED = from_origin(EAST, NORTH, 2.01, 2.01)  # must be warped to GRID


def declare(path: Path, levels: NDArray[np.uint8], *names: str, described: bool = False) -> Path:
    """Write a raster whose bands are declared by colour interpretation or by description."""
    write_raster(path, levels, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        if described:
            dataset.descriptions = names
        else:
            dataset.colorinterp = [ColorInterp[name] for name in names]
    return path


@pytest.mark.parametrize("described", [False, True])
def test_declared_colours(tmp_path: Path, described: bool) -> None:
    """Bands declared blue, green, red are read as such, at each date by itself, unless --bands are given."""
    levels = noise(40, 60, 4)
    plain = write_raster(tmp_path / "1.tif", levels[[2, 1, 0]])
    other = declare(tmp_path / "2.tif", levels, "blue", "green", "red", "undefined", described=described)
    pair = RasterPair(plain, other)
    before, after, _ = pair.rows(0, 40)
    assert np.array_equal(before, after) and pair.after.bands == [3, 2, 1]
    assert look_at(pair).facts["after"]["declared"][:3] == ["blue", "green", "red"]
    _, after, _ = RasterPair(plain, other, bands=(1, 2, 3)).rows(0, 40)
    assert np.array_equal(after[0].numpy(), levels[:3])


def test_bands_that_are_declared_otherwise(tmp_path: Path) -> None:
    """Without all three colours, the first bands are taken, and a warning says what they are."""
    path = declare(tmp_path / "1.tif", noise(40, 60), "undefined", "red", "green")
    (warning,) = look_at(RasterPair(path, path)).warnings[:1]
    assert "bands 1,2,3 of" in warning and "declared as undefined, red, green: choose --bands" in warning
    assert not any("declared as" in text for text in look_at(RasterPair(path, path, bands=(2, 3, 1))).warnings)


def with_lake(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return four bands of 40 x 60 pixels; the fourth is 0 in the left third."""
    alpha = alpha.copy()
    alpha[:, :20] = 0
    return np.concatenate((noise(40, 60), alpha[None]))


@pytest.mark.parametrize("grid", [GRID, MOVED])
def test_near_infrared_is_no_transparency(tmp_path: Path, grid: rasterio.Affine) -> None:
    """GDAL declares the fourth band as alpha; its levels tell, and --alpha decides."""
    plain = write_raster(tmp_path / "1.tif", noise(40, 60))
    infrared = write_raster(tmp_path / "2.tif", with_lake(noise(40, 60, 1, seed=3)[0] // 2 + 20), transform=grid)
    mask = write_raster(tmp_path / "3.tif", with_lake(np.full((40, 60), 255, np.uint8)), transform=grid)
    for path, alpha, lake_is_data in (
        (infrared, "auto", True),
        (infrared, "yes", False),
        (infrared, "no", True),
        (mask, "auto", False),
        (mask, "no", True),
    ):
        with rasterio.open(path) as dataset:
            assert dataset.colorinterp[3] is ColorInterp.alpha
        pair = RasterPair(plain, path, alpha=alpha)
        data = pair.rows(0, pair.height)[2]
        assert data[:38, 22:].all() and data[:38, :19].all() == data[:38, :19].any() == lake_is_data, (path, alpha)
        said = any("band 4 of" in text and "--alpha yes" in text for text in look_at(pair).warnings)
        assert said == (path == infrared and alpha == "auto")
        pair.close()


def test_a_chosen_band_is_no_transparency(tmp_path: Path) -> None:
    """If --bands names the band that is declared as alpha, it is a colour."""
    path = write_raster(tmp_path / "1.tif", with_lake(np.full((40, 60), 255, np.uint8)))
    pair = RasterPair(path, path, bands=(4, 1, 2))
    before, _, data = pair.rows(0, 40)
    assert data.all() and not before[0, 0, :, :20].any() and (before[0, 0, :, 20:] == 255).all()


def test_nodata_counts_without_transparency(tmp_path: Path) -> None:
    """A raster whose alpha band is not used keeps its nodata value."""
    levels = with_lake(noise(40, 60, 1, seed=3)[0] // 2 + 20)
    levels[:3, :5] = 0
    path = write_raster(tmp_path / "1.tif", levels, nodata=0)
    data = RasterPair(path, path).rows(0, 40)[2]
    assert data[5:].all() and not data[:5].any()
