"""`python -m change regrid`: the dates of a data folder on one grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject

from change.change_dataloader import find_split
from change.common.band_files import read_bands, read_header
from change.common.bands import choose_bands
from change.common.images import fill_missing
from change.rasters.raster import RasterPair
from tests.band_pairs import NAMES, name_bands, write_band_pairs
from tests.conftest import last_line, run_verb
from tests.rasters.drawn import GRID, UTM, write_raster


def moved_set(folder: Path) -> Path:
    """Write a data set with lists; the second date and the mask of pair 1 lie on another grid, which covers less."""
    write_band_pairs(folder / "data", 2, bands=3)
    data = folder / "data"
    (data / "list").mkdir()
    (data / "list" / "train.txt").write_text("0\n1\n")
    other = GRID @ Affine.translation(4.4, 3.6) @ Affine.scale(1.3)
    rng = np.random.default_rng(5)
    write_raster(data / "B" / "1.tif", rng.integers(500, 3000, (3, 44, 45), dtype=np.uint16), UTM, other)
    name_bands(data / "B" / "1.tif", NAMES[:3])
    write_raster(data / "label" / "1.tif", rng.integers(0, 2, (1, 44, 45), dtype=np.uint8) * np.uint8(255), UTM, other)
    return data


def test_dates_come_to_one_grid(tmp_path: Path) -> None:
    """Levels are those that `predict` reads from the files on two grids; names and types stay, masks stay masks."""
    data, out = moved_set(tmp_path), tmp_path / "out"
    result = run_verb("regrid", data, "-o", out)
    assert result.returncode == 0 and "1 of 2 pairs were on two grids" in result.stderr
    assert (out / "list" / "train.txt").read_text() == "0\n1\n"
    for sub in ("A", "B", "label"):  # copied
        assert (out / sub / "0.tif").read_bytes() == (data / sub / "0.tif").read_bytes()
    files = [rasterio.open(out / sub / "1.tif") for sub in ("A", "B", "label")]
    assert len({(file.transform, file.shape, file.crs) for file in files}) == 1
    assert files[1].descriptions == NAMES[:3] and files[1].dtypes == ("uint16",) * 3
    assert set(np.unique(files[2].read(1))) == {0, 255}
    bands = choose_bands("all", "", read_header(data / "A" / "1.tif"))
    pair = RasterPair(data / "A" / "1.tif", data / "B" / "1.tif", reads=bands)
    before, after, valid = pair.rows(0, pair.height)
    pair.close()
    assert files[0].transform == pair.transform and files[0].shape == (pair.height, pair.width)
    found = find_split(out, "train", bands=bands).read(1)
    filled = fill_missing([levels[0].permute(1, 2, 0).numpy() for levels in (before, after)], valid)
    assert np.array_equal(found.before, filled[0]) and np.array_equal(found.after, filled[1])
    assert valid.any() and not valid.all()
    held = [read_bands(out / sub / "1.tif", bands)[1] for sub in ("A", "B")]
    assert np.array_equal(held[0] & held[1], valid)
    # The same from GDAL's own warp of the whole files, bilinear for images and by nearest neighbour for masks.
    for file, sub, how in ((files[1], "B", Resampling.bilinear), (files[2], "label", Resampling.nearest)):
        with rasterio.open(data / sub / "1.tif") as source:
            expected = np.zeros((source.count, *file.shape), source.dtypes[0])
            reproject(
                source.read(),
                expected,
                src_transform=source.transform,
                src_crs=source.crs,
                dst_transform=file.transform,
                dst_crs=file.crs,
                resampling=how,
            )
        assert np.abs(file.read()[:, valid].astype(int) - expected[:, valid]).max() <= 1
    top, left = round((GRID.f - files[0].transform.f) / 2), round((files[0].transform.c - GRID.c) / 2)
    with rasterio.open(data / "A" / "1.tif") as source:
        cut = source.read()[:, top : top + files[0].height, left : left + files[0].width]
    assert np.array_equal(files[0].read()[:, valid], cut[:, valid])


def test_wrong_input(tmp_path: Path) -> None:
    """One line, and nothing is written."""
    data = moved_set(tmp_path)
    out = tmp_path / "out"
    result = run_verb("regrid", tmp_path, "-o", out)
    assert result.returncode == 2 and "holds neither train, val or test, nor A, B and label" in last_line(result)
    result = run_verb("regrid", data, "-o", data)
    assert result.returncode == 2 and "exists, and nothing is overwritten" in last_line(result)
    (data / "B" / "0.tif").unlink()
    result = run_verb("regrid", data, "-o", out)
    assert result.returncode == 2 and "0 has no file in B" in last_line(result) and not out.exists()


@pytest.mark.parametrize("size", [(66, 71), (50, 50)])
def test_a_mask_without_a_place(tmp_path: Path, size: tuple[int, int]) -> None:
    """It is taken to lie on the grid of the image before, if it has its size."""
    data, out = moved_set(tmp_path), tmp_path / "out"
    levels = np.random.default_rng(0).integers(0, 2, (1, *size), dtype=np.uint8) * np.uint8(255)
    write_raster(data / "label" / "1.tif", levels, None, Affine.identity())
    result = run_verb("regrid", data, "-o", out)
    if size == (66, 71):
        assert result.returncode == 0, result.stderr
        with rasterio.open(out / "label" / "1.tif") as file:
            top, left = round((GRID.f - file.transform.f) / 2), round((file.transform.c - GRID.c) / 2)
            expected = levels[0, top : top + file.height, left : left + file.width]
            assert np.array_equal(file.read(1), expected)
    else:
        assert result.returncode == 2 and "has no place on earth and another size than" in last_line(result)
