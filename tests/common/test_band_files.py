"""Reading bands from files, and their statistics."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config, set_gdal_config

from change.change_dataloader import find_split, read_images
from change.common import band_files
from change.common.band_files import measure, open_bands, read_bands, read_header
from change.common.bands import choose_bands
from change.common.errors import UserError
from change.common.gdal import CACHE, limited_cache
from change.common.images import image_hash
from change.rasters.raster import RasterPair
from tests.band_pairs import name_bands, write_band_pairs
from tests.rasters.drawn import GRID, UTM, write_raster


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
def test_levels_and_missing_data(tmp_path: Path, kind: str) -> None:
    """Levels are those of the file, in the order of the bands; pixels without data are 0."""
    levels = np.random.default_rng(0).integers(1, 100, (4, 20, 30)).astype(kind)
    levels[:, 3, 4] = 7
    levels[:2, 5, 6] = 7  # nodata in two of four bands
    path = write_raster(tmp_path / "a.tif", levels, nodata=7)
    bands = choose_bands("3 1 4", "", read_header(path))
    found, data = read_bands(path, bands)
    assert found.dtype == kind and found.shape == (20, 30, 3)
    assert not data[3, 4] and not found[3, 4].any()
    assert data[5, 6] == (kind != "float32")  # floats have values of their own for missing data
    expected = levels[[2, 0, 3]].transpose(1, 2, 0)
    assert np.array_equal(found[data], expected[data])


def test_not_a_number_is_no_data(tmp_path: Path) -> None:
    levels = np.ones((2, 8, 8), np.float32)
    levels[0, 1, 2], levels[1, 3, 4] = np.nan, np.inf
    path = write_raster(tmp_path / "a.tif", levels)
    found, data = read_bands(path, choose_bands("all", "", read_header(path)))
    assert np.isfinite(found).all() and (~data).nonzero()[0].tolist() == [1, 3]


def test_png_of_16_bits(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (12, 9, 3), dtype=np.uint16)
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), levels[..., ::-1])
    found, data = read_bands(path, choose_bands("all", "", read_header(path)))
    assert np.array_equal(found, levels) and data.all()


def test_names_come_from_the_file(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((2, 8, 8), np.uint16))
    name_bands(path, ("NIR", "Red"))
    assert read_header(path).names == ("nir", "red")


def test_a_file_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0nothing")
    with pytest.raises(UserError, match=r"a\.tif cannot be read"):
        read_header(path)
    good = write_raster(tmp_path / "b.tif", np.random.default_rng(0).integers(0, 9999, (2, 200, 200)).astype("uint16"))
    bands = choose_bands("all", "", read_header(good))
    good.write_bytes(good.read_bytes()[:60_000])
    with pytest.raises(UserError, match=r"b\.tif cannot be read"):
        read_bands(good, bands)


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16}])
def test_statistics(tmp_path: Path, profile: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are numpy's over all pixels that hold data, although files are read in many parts."""
    monkeypatch.setattr(band_files, "PART", 500)
    rng = np.random.default_rng(0)
    paths, held = [], []
    for index in range(3):
        levels = rng.normal(
            np.array([5e3, 300])[:, None, None], np.array([900, 50])[:, None, None], (2, 90, 70)
        ).astype(np.uint16)
        levels[:, : 10 * index] = 9
        paths.append(write_raster(tmp_path / f"{index}.tif", levels, nodata=9, **profile))
        held.append(levels[:, 10 * index :].reshape(2, -1))
    bands = choose_bands("all", "", read_header(paths[0]))
    found = measure(paths, bands)
    whole = np.concatenate(held, axis=1).astype(np.float64)
    assert found.bands == bands
    assert found.mean == pytest.approx(whole.mean(1), rel=1e-12) and found.std == pytest.approx(whole.std(1), rel=1e-12)


def test_statistics_that_cannot_be_used(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(1, 99, (2, 16, 16)).astype(np.uint16)
    levels[1] = 4
    path = write_raster(tmp_path / "a.tif", levels)
    with pytest.raises(UserError, match="--bands: band2 has the same level in all train images"):
        measure([path], choose_bands("all", "", read_header(path)))
    empty = write_raster(tmp_path / "b.tif", np.zeros((1, 16, 16), np.uint16), nodata=0)
    with pytest.raises(UserError, match=r"b\.tif and the other images hold no data"):
        measure([empty], choose_bands("all", "", read_header(empty)))


def test_an_alpha_band_that_is_not_chosen(tmp_path: Path) -> None:
    """It is the transparency of the others, as in `predict`, whatever the number of bands."""
    levels = np.random.default_rng(0).integers(1, 9999, (6, 64, 64)).astype(np.uint16)
    levels[5] = 65535
    levels[5, :10] = 0
    path = write_raster(tmp_path / "a.tif", levels)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [*dataset.colorinterp[:5], ColorInterp.alpha]
    bands = choose_bands("1 2 3 4 5", "", read_header(path))
    _, data = read_bands(path, bands)
    pair = RasterPair(path, path, reads=bands)
    _, _, expected = pair.rows(0, 64)
    pair.close()
    assert np.array_equal(data, expected) and not data[:10].any() and data[10:].all()


def test_a_pair_without_data_in_places(tmp_path: Path) -> None:
    """The network sees the mirrored image there; hashes are those that `check` stores, whatever is filled in."""
    folder = write_band_pairs(tmp_path, 1, nodata=7)
    with rasterio.open(folder / "B" / "0.tif", "r+") as dataset:
        levels = dataset.read()
        levels[:, 30:33] = 7
        dataset.write(levels)
    bands = choose_bands("all", "", read_header(folder / "B" / "0.tif"))
    split = find_split(folder, "", bands=bands)
    blanked, found = read_images(split.pairs[0], bands), split.read(0)
    assert found.hashes == [tuple(image_hash(image) for image in blanked)]
    for image, old in zip((found.before, found.after), blanked, strict=True):
        assert not old[30:33].any() and np.array_equal(image[[30, 32]], old[[28, 34]])
        assert np.array_equal(image[:30], old[:30]) and np.array_equal(image[33:], old[33:])


@pytest.mark.parametrize("user", ["", "77"])
def test_the_cache_of_gdal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    """It is limited while a file is open, unless the user has set GDAL_CACHEMAX, and left as it was afterwards."""
    path = write_raster(tmp_path / "a.tif", np.ones((2, 8, 8), np.uint16))
    if user:
        monkeypatch.setenv("GDAL_CACHEMAX", user)
    before = 3 * CACHE  # whatever threads of other tests have left
    set_gdal_config("GDAL_CACHEMAX", before)
    with open_bands(path):
        assert get_gdal_config("GDAL_CACHEMAX") == (before if user else CACHE)
    assert get_gdal_config("GDAL_CACHEMAX") == before and not rasterio.env.hasenv()


def test_threads_share_the_limit() -> None:
    """The thread that ends last restores the value from before the first one began."""
    before = 3 * CACHE
    set_gdal_config("GDAL_CACHEMAX", before)
    first_inside, second_inside, first_done = (threading.Event() for _ in range(3))

    def first() -> None:
        with limited_cache():
            first_inside.set()
            assert second_inside.wait(10)
        first_done.set()

    def second() -> None:
        assert first_inside.wait(10)
        with limited_cache():
            second_inside.set()
            assert first_done.wait(10) and get_gdal_config("GDAL_CACHEMAX") == CACHE

    with ThreadPoolExecutor(2) as pool:
        for thread in [pool.submit(first), pool.submit(second)]:
            thread.result()
    assert get_gdal_config("GDAL_CACHEMAX") == before


def test_a_file_of_several_rasters(tmp_path: Path) -> None:
    path = tmp_path / "many.gpkg"
    for name in ("one", "two"):
        place = {"width": 8, "height": 8, "count": 3, "dtype": "uint8", "crs": UTM, "transform": GRID}
        with rasterio.open(path, "w", "GPKG", **place, RASTER_TABLE=name, APPEND_SUBDATASET="YES") as dataset:
            dataset.write(np.ones((3, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"many\.gpkg holds 2 rasters: save the one to use as a GeoTIFF"):
        read_header(path)
