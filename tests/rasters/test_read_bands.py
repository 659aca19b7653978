"""Pairs of rasters whose bands are read as they are, not as RGB."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from change.common.band_files import read_header
from change.common.bands import choose_bands
from change.common.errors import UserError
from change.rasters.aligned_raster import Block
from change.rasters.raster import RasterPair
from change.rasters.rows import RowReader
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, write_raster


def ground(seed: int, count: int = 5, side: int = 300) -> NDArray[np.float32]:
    """Draw levels (count, side, side), float32, with structure at every scale."""
    rng = np.random.default_rng(seed)
    levels = np.full((count, side, side), 1000.0)
    for scale in (1, 4, 16, 64):
        coarse = rng.normal(0, 10 * scale, (count, side // scale + 1, side // scale + 1))
        levels += np.kron(coarse, np.ones((scale, scale)))[:, :side, :side]
    return levels.astype(np.float32)


def test_missing_data_is_zero(tmp_path: Path) -> None:
    """NaN in one band of one date reaches neither network nor picture."""
    levels = ground(0)
    paths = [write_raster(tmp_path / f"{date}.tif", levels) for date in "ab"]
    holed = levels.copy()
    holed[2, 10:20, 30:50] = np.nan
    write_raster(paths[1], holed)
    bands = choose_bands("2 3 4 5", "4 3 2", read_header(paths[0]))
    pair = RasterPair(paths[0], paths[1], reads=bands)
    before, after, data = pair.rows(0, pair.height)
    picture, _ = pair.after.read(Block(0, 0, pair.height, pair.width))
    pair.close()
    assert not data[10:20, 30:50].any() and data.sum() == 300 * 300 - 200
    assert before.shape == (1, 4, 300, 300) and before.dtype == after.dtype
    for image in (before, after):
        assert np.array_equal(image[0].numpy(), np.where(data, levels[1:], 0))
    assert picture.dtype == np.uint8 and picture.shape == (3, 300, 300) and not picture[:, 10:20, 30:50].any()


def test_shifts_are_undone_in_every_band(tmp_path: Path) -> None:
    """With --align, all bands move; whole pixels are restored to within the error of cubic interpolation."""
    levels = ground(1)
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    write_raster(paths[0], levels)
    write_raster(paths[1], np.roll(levels, (3, -2), (1, 2)))
    pair = RasterPair(paths[0], paths[1], reads=choose_bands("all", "", read_header(paths[0])), align=True)
    assert pair.alignment is not None and pair.alignment.applied
    before, after, data = pair.rows(20, 280)
    pair.close()
    inner = np.s_[:, :, :, 20:280]
    difference = (before - after)[inner].abs().flatten(2).mean(2)
    assert data[:, 20:280].all() and (difference[0].numpy() < 0.05 * levels.std((1, 2))).all()


def test_the_surroundings_of_an_area_are_shown(tmp_path: Path) -> None:
    """Overviews show the whole scene, as they do for RGB."""
    levels = ground(2)
    paths = [write_raster(tmp_path / f"{date}.tif", levels) for date in "ab"]
    area = shapely.box(EAST + 100, NORTH - 200, EAST + 200, NORTH - 100)
    geopandas.GeoDataFrame(geometry=[area], crs=UTM).to_file(tmp_path / "area.gpkg")
    bands = choose_bands("all", "", read_header(paths[0]))
    pair = RasterPair(paths[0], paths[1], reads=bands, aoi=tmp_path / "area.gpkg")
    rows = RowReader(pair, 64, 16)
    held = [rows.data.sum() for _ in rows]
    assert sum(held) > 0 and min(held) == 0
    rows.close()
    pair.close()
    assert (rows.overviews[0] > 0).any(2).mean() > 0.9


def test_rgb_needs_three_bands(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", ground(0, side=40), UTM, GRID)
    with pytest.raises(UserError, match="--bands 1,2: give three numbers from 1, of red, green and blue"):
        RasterPair(path, path, bands=(1, 2))
