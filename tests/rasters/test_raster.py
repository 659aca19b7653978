"""Pairs of rasters on one grid: warped, shifted, stretched, masked; and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as transform_points

from change.common.errors import UserError
from change.rasters.grids import apply_affine
from change.rasters.raster import RasterPair
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, WEB, WORLD, ground, noise, write_raster, write_vrt


def read(pair: RasterPair) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Read all of both dates, and where both hold data."""
    before, after, data = pair.rows(0, pair.height)
    return before[0].numpy(), after[0].numpy(), data


def test_one_grid(tmp_path: Path) -> None:
    """Two rasters on one grid are read unchanged, also by rows."""
    first, second = noise(40, 50, seed=1), noise(40, 50, seed=2)
    pair = RasterPair(write_raster(tmp_path / "1.tif", first), write_raster(tmp_path / "2.tif", second))
    before, after, data = read(pair)
    assert np.array_equal(before, first) and np.array_equal(after, second) and data.all()
    assert pair.transform == GRID and pair.crs == UTM
    rows = pair.rows(7, 19)
    assert np.array_equal(rows[0][0].numpy(), first[:, 7:19]) and np.array_equal(rows[1][0].numpy(), second[:, 7:19])


def test_whole_shift(tmp_path: Path) -> None:
    """A second raster that begins 6 rows lower and 4 columns to the left is cut, not resampled."""
    first, second = noise(40, 50, seed=1), noise(30, 30, seed=2)
    other = write_raster(tmp_path / "2.tif", second, transform=from_origin(EAST - 8, NORTH - 12, 2, 2))
    pair = RasterPair(write_raster(tmp_path / "1.tif", first), other)
    before, after, data = read(pair)
    assert (pair.height, pair.width) == (30, 26) and data.all()
    assert np.array_equal(before, first[:, 6:36, :26]) and np.array_equal(after, second[:, :, 4:])
    assert pair.transform == from_origin(EAST, NORTH - 12, 2, 2)


@pytest.mark.parametrize(
    ("crs", "pixel"), [(UTM, 1.3), (UTM, 3.0), (WEB, 2.0), (WORLD, 2e-5)], ids=["finer", "coarser", "web", "degrees"]
)
def test_warped(tmp_path: Path, crs: CRS, pixel: float) -> None:
    """A raster on another grid shows the same ground in the same place."""
    (x,), (y,) = transform_points(UTM, crs, [EAST + 20], [NORTH - 30])
    grid = from_origin(x, y, pixel, pixel)
    second = write_raster(tmp_path / "2.tif", ground(grid, crs, 150, 150), crs, grid)
    pair = RasterPair(write_raster(tmp_path / "1.tif", ground(GRID, UTM, 100, 120)), second)
    before, after, data = read(pair)
    assert 0.5 < data.mean() <= 1 and pair.height < 100
    apart = np.abs(before.astype(int) - after.astype(int))[:, data]
    assert np.percentile(apart, 99) <= 4  # the waves span 120 levels; a shift of half a pixel gives 6
    assert not before[:, ~data].any() and not after[:, ~data].any()


def test_warped_in_strips(tmp_path: Path) -> None:
    """Warping a few rows at a time gives what GDAL gives for all of them."""
    first, transform = noise(300, 90), from_origin(EAST, NORTH, 2.1, 2.1)
    other = write_raster(tmp_path / "2.tif", ground(transform, UTM, 300, 90), transform=transform, nodata=0)
    pair = RasterPair(write_raster(tmp_path / "1.tif", first), other)
    rows = pair.rows(5, 295)
    expected = pair.after.dataset.read([1, 2, 3], window=rasterio.windows.Window(0, 5, pair.width, 290))
    assert pair.height == 300 and np.array_equal(rows[1][0].numpy(), expected * rows[2])
    assert rows[2].all()


def test_no_data(tmp_path: Path) -> None:
    """Nodata, alpha and NaN of either date mean no data."""
    first = noise(20, 30, seed=1)
    first[:, :5] = 0
    second = np.concatenate((noise(20, 30, seed=2), np.full((1, 20, 30), 255, np.uint8)))
    second[3, :, 20:] = 0
    path = write_raster(tmp_path / "2.tif", second, photometric="RGB", alpha="yes")
    pair = RasterPair(write_raster(tmp_path / "1.tif", first, nodata=0), path)
    before, after, data = read(pair)
    assert data[5:, :20].all() and not data[:5].any() and not data[:, 20:].any()
    assert not before[:, :5].any() and not after[:, :5].any()
    levels = np.random.default_rng(0).random((3, 20, 30)).astype(np.float32)
    levels[1, 3, 4] = np.nan
    _, _, data = read(RasterPair(write_raster(tmp_path / "3.tif", levels), path))
    assert not data[3, 4] and data[3, 5]


@pytest.mark.parametrize(
    ("dtype", "bands", "profile"),
    [
        ("uint8", 3, {}),
        ("uint8", 5, {}),
        ("uint16", 4, {}),
        ("int16", 3, {}),
        ("float32", 3, {}),
        ("float32", 3, {"nodata": -9999}),
        ("uint16", 4, {"nodata": 0}),
    ],
)
def test_outside_of_a_warped_raster(tmp_path: Path, dtype: str, bands: int, profile: dict[str, Any]) -> None:
    """The corners around a rotated raster hold no data, whatever its type."""
    turned = Affine(1.53, -1.28, EAST + 50, -1.28, -1.53, NORTH - 10)  # by 40 degrees
    second = write_raster(tmp_path / "2.tif", noise(60, 60, bands).astype(dtype), transform=turned, **profile)
    pair = RasterPair(write_raster(tmp_path / "1.tif", noise(100, 120)), second)
    rows, columns = np.mgrid[: pair.height, : pair.width] + 0.5
    column, row = apply_affine(~turned, *apply_affine(pair.transform, columns, rows))
    inside = (column > 0) & (column < 60) & (row > 0) & (row < 60)
    _, after, data = read(pair)
    assert 0.5 < inside.mean() < 0.65 and (data == inside).mean() > 0.95
    assert not after[:, ~data].any()


def test_masks_of_files(tmp_path: Path) -> None:
    """Alpha bands, in any type and number of bands, and masks in files count, warped or not."""
    first = write_raster(tmp_path / "1.tif", noise(40, 60))
    for dtype, bands in (("uint8", 5), ("uint16", 4), ("float32", 4)):
        levels = noise(40, 60, bands).astype(dtype)
        levels[3] = 255  # the alpha band: GDAL takes the first one after blue
        levels[3, :, 30:] = 0
        path = tmp_path / "alpha.tif"
        for grid in (GRID, from_origin(EAST, NORTH, 2.01, 2.01)):
            write_raster(path, levels, transform=grid, alpha="yes", photometric="RGB")
            _, _, data = read(RasterPair(first, path))
            assert data[:39, :30].all() and not data[:, 31:].any(), (dtype, bands, grid)
    path = write_raster(tmp_path / "masked.tif", noise(40, 60, 4).astype(np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.arange(60) < np.full((40, 1), 30))
    for other in (first, write_raster(tmp_path / "3.tif", noise(40, 60), transform=from_origin(EAST, NORTH, 1.9, 1.9))):
        _, _, data = read(RasterPair(other, path))
        assert 0.45 < data.mean() < 0.56


def test_nodata_of_the_bands_that_are_read(tmp_path: Path) -> None:
    """Integers are nodata if all chosen bands are, floats if any is; the stretch leaves nodata out."""
    deep = np.random.default_rng(0).integers(200, 3000, (4, 20, 30)).astype(np.uint16)
    deep[:3, :, :10] = deep[0, :, 20:] = 0
    other = write_raster(tmp_path / "2.tif", noise(20, 30))
    pair = RasterPair(write_raster(tmp_path / "1.tif", deep, nodata=0), other)
    _, _, data = read(pair)
    assert data[:, 10:].all() and not data[:, :10].any()
    assert min(pair.before.stretch.low) >= 200
    real = deep[:3].astype(np.float32)
    real[0, :, 20:] = np.finfo(np.float32).min
    pair = RasterPair(write_raster(tmp_path / "1.tif", real, nodata=float(np.finfo(np.float32).min)), other)
    _, _, data = read(pair)
    assert data[:, :20].all() and not data[:, 20:].any() and min(pair.before.stretch.low) >= 0


def test_a_sliver_of_data(tmp_path: Path) -> None:
    """Data that the squares of the sample miss is found."""
    levels = np.zeros((3, 30, 5000), np.uint8)
    levels[:, :, 4999] = 7
    path = write_raster(tmp_path / "1.tif", levels, nodata=0)
    assert read(RasterPair(path, path))[2].sum() == 30


def test_stretch_of_little_data(tmp_path: Path) -> None:
    """If the squares of the sample hold few pixels with data, more pixels are read."""
    levels = np.zeros((3, 1600, 1600), np.uint16)
    levels[:, 127:190, 127:200] = np.random.default_rng(0).integers(3000, 9000, (3, 63, 73))
    first, second = (write_raster(tmp_path / f"{name}.tif", levels, nodata=0) for name in "12")
    stretch = RasterPair(first, second).before.stretch
    inside = levels[:, 127:190, 127:200].reshape(3, -1)
    low, high = np.percentile(inside, (2, 98), axis=1)
    assert np.allclose(stretch.low, low, atol=60) and np.allclose(stretch.high, high, atol=60)


def test_stretch(tmp_path: Path) -> None:
    """16 bits are stretched from the 2nd and 98th percentile, or from those that are given."""
    deep = np.random.default_rng(0).integers(200, 3000, (3, 60, 60)).astype(np.uint16)
    path = write_raster(tmp_path / "1.tif", deep)
    before, _, _ = read(RasterPair(path, path))
    low, high = np.percentile(deep[0], (2, 98))
    expected = np.clip((deep[0] - low) * 255 / (high - low), 0, 255)
    assert np.abs(before[0] - expected).max() <= 0.51
    wide, _, _ = read(RasterPair(path, path, stretch="0,100"))
    assert np.min(wide) == 0 and np.max(wide) == 255 and (wide == 255).mean() < 0.01
    with pytest.raises(UserError, match="--stretch 98,2"):
        RasterPair(path, path, stretch="98,2")


def test_palette_and_bands(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 3, (1, 20, 30), dtype=np.uint8)
    path = write_raster(tmp_path / "1.tif", levels, photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (9, 8, 7, 255), 1: (1, 2, 3, 255), 2: (50, 60, 70, 255)})
    many = noise(20, 30, bands=5)
    before, after, _ = read(RasterPair(path, write_raster(tmp_path / "2.tif", many), bands=(1, 2, 3)))
    assert np.array_equal(before[:, levels[0] == 2].T, np.tile([50, 60, 70], ((levels == 2).sum(), 1)))
    assert np.array_equal(after, many[:3])
    warped = write_raster(tmp_path / "3.tif", noise(40, 60), transform=from_origin(EAST, NORTH, 1.5, 1.5))
    _, after, data = read(RasterPair(warped, path))
    assert {*map(tuple, after[:, data].T.tolist())} == {(9, 8, 7), (1, 2, 3), (50, 60, 70)}
    wide = write_raster(tmp_path / "wide.tif", levels.astype(np.uint16) * 700)
    table = "".join(f'<Entry c1="{9 + i}" c2="8" c3="7" c4="{255 * (i != 1)}"/>' for i in range(3))
    for name, kind, held in (("1.vrt", "Byte", levels[0] != 1), ("wide.vrt", "UInt16", levels[0] == 0)):
        extra = f"<ColorInterp>Palette</ColorInterp><ColorTable>{table}</ColorTable>"
        source = write_vrt(tmp_path / name, [(kind, wide if kind == "UInt16" else path, extra)])
        before, _, data = read(RasterPair(source, path))  # a level is transparent, or not in the table
        assert np.array_equal(data, held) and (before[:, levels[0] == 0].T == (9, 8, 7)).all()
    radar = write_raster(tmp_path / "4.tif", noise(20, 30, 2))
    with pytest.raises(UserError, match=r"4.tif has 2 bands, so band 3 does not exist: choose --bands from 1 to 2"):
        RasterPair(warped, radar)
    other = tmp_path / "2.tif"
    swapped, _, _ = read(RasterPair(other, other, bands=(5, 1, 1)))
    assert np.array_equal(swapped, many[[4, 0, 0]])


def test_a_pole_and_the_date_line(tmp_path: Path) -> None:
    """The overlap is found even if the edges of the second raster do not show it."""
    north = write_raster(tmp_path / "n.tif", noise(60, 720), WORLD, from_origin(-180, 90, 0.5, 0.5))
    polar = write_raster(
        tmp_path / "p.tif", noise(400, 400), CRS.from_epsg(3413), from_origin(-2e6, 2e6, 10_000, 10_000)
    )
    pair = RasterPair(north, polar)
    assert pair.height > 36 and pair.width == 720  # 90 to below 72 degrees
    data = read(pair)[2]
    assert data[:30].mean() > 0.98 and read(RasterPair(polar, north))[2].all()
    east = write_raster(tmp_path / "e.tif", noise(40, 80), WORLD, from_origin(178, 2, 0.05, 0.05))
    zone = CRS.from_epsg(32660)
    (left,), (bottom,) = transform_points(WORLD, zone, [179.0], [0.5])
    across = write_raster(tmp_path / "a.tif", noise(50, 250), zone, from_origin(left, bottom + 50_000, 1000, 1000))
    pair = RasterPair(east, across)
    data = read(pair)[2]
    assert data.sum() * (0.05 * 111_000) ** 2 == pytest.approx(250_000 * 50_000, rel=0.05)


def test_assume_aligned(tmp_path: Path) -> None:
    first, second = (
        write_raster(tmp_path / f"{i}.tif", noise(20, 30, seed=i), crs=None, transform=Affine.identity())
        for i in (1, 2)
    )
    with pytest.raises(UserError, match=r"have no coordinate reference system: .*--assume_aligned"):
        RasterPair(first, second)
    assert np.array_equal(read(RasterPair(first, second, assume_aligned=True))[1], noise(20, 30, seed=2))
    smaller = write_raster(tmp_path / "3.tif", noise(20, 29))
    with pytest.raises(UserError, match=r"30 x 20 pixels, .*29 x 20"):
        RasterPair(first, smaller, assume_aligned=True)


def test_files_that_are_refused(tmp_path: Path) -> None:
    """Each error names the file."""
    good = write_raster(tmp_path / "good.tif", noise(20, 30))
    PIL.Image.fromarray(noise(20, 30).transpose(1, 2, 0)).save(tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg").rename(tmp_path / "jpeg.tif")
    (tmp_path / "text.tif").write_text("no raster")
    cut = write_raster(tmp_path / "cut.tif", noise(400, 400))
    cut.write_bytes(cut.read_bytes()[:200_000])
    far = write_raster(tmp_path / "far.tif", noise(20, 30), transform=from_origin(EAST + 1000, NORTH, 2, 2))
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 20, 30), np.uint8), nodata=0)
    nan = write_raster(tmp_path / "nan.tif", np.full((3, 20, 30), np.nan, np.float32))
    for path, said in (
        (tmp_path / "jpeg.tif", "jpeg.tif has no coordinate reference system"),
        (tmp_path / "text.tif", "text.tif cannot be read as a raster"),
        (tmp_path / "nowhere.tif", "nowhere.tif cannot be read as a raster"),
        (far, "do not overlap: .*good.tif covers .* in EPSG:32633"),
        (empty, "empty.tif holds no data"),
        (nan, "nan.tif holds no data"),
        (
            write_raster(tmp_path / "grey.tif", noise(20, 30, 1)),
            "grey.tif has 1 band, so band 2 does not exist: --bands 1,1,1",
        ),
        (write_raster(tmp_path / "complex.tif", noise(20, 30).astype(np.complex64)), "complex numbers"),
    ):
        with pytest.raises(UserError, match=said):
            RasterPair(good, path)
    parts = [write_raster(tmp_path / f"{n}.tif", noise(20, 30, 1).astype(n)) for n in ("uint8", "uint16")]
    write_vrt(tmp_path / "mixed.vrt", [("Byte", parts[0], ""), ("Byte", parts[0], ""), ("UInt16", parts[1], "")])
    with pytest.raises(UserError, match=r"mixed.vrt has bands of uint16 and uint8: choose --bands of one type"):
        RasterPair(good, tmp_path / "mixed.vrt")
    assert read(RasterPair(good, tmp_path / "mixed.vrt", bands=(1, 2, 1)))[2].all()
    nowhere = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(UserError, match=r"site.tif .* cannot be projected to EPSG:32633, the system of .*good.tif"):
        RasterPair(good, write_raster(tmp_path / "site.tif", noise(20, 30), nowhere))
    for name in ("one", "two"):
        with (
            rasterio.open(good) as dataset,
            rasterio.open(
                tmp_path / "many.gpkg",
                "w",
                **{**dataset.profile, "driver": "GPKG"},
                RASTER_TABLE=name,
                APPEND_SUBDATASET="YES",
            ) as out,
        ):
            out.write(dataset.read())
    with pytest.raises(UserError, match=r"many.gpkg holds 2 rasters"):
        RasterPair(good, tmp_path / "many.gpkg")
    with pytest.raises(UserError, match=r"cut.tif cannot be read"):
        RasterPair(cut, cut).rows(0, 400)
    tile = write_raster(tmp_path / "tile.tif", noise(20, 30, 1))
    mosaic = write_vrt(tmp_path / "mosaic.vrt", [("Byte", parts[0], ""), ("Byte", parts[0], ""), ("Byte", tile, "")])
    tile.unlink()
    with pytest.raises(UserError, match=r"mosaic.vrt cannot be read \(.*tile.tif: No such file"):
        RasterPair(good, mosaic)
