"""One look at both rasters: what is odd is a warning, what is usual is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from change.rasters.look import Look, look_at, look_at_pictures
from change.rasters.raster import RasterPair
from change.rasters.scene import Settings, predict_rasters
from tests.conftest import draw_pair
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, WORLD, pixelwise, write_raster

SIZE = 300


def picture(seed: int = 1) -> NDArray[np.uint8]:
    """Draw the first date of a scene, (3, SIZE, SIZE)."""
    return np.ascontiguousarray(draw_pair(np.random.default_rng(seed), SIZE, SIZE)[0].transpose(2, 0, 1))


def touched(image: NDArray[Any]) -> NDArray[Any]:
    """Return a copy in which one level differs: another image that looks the same."""
    image = image.copy()
    image[0, 0, 0] ^= 64
    return image


def look(folder: Path, first: NDArray[Any], second: NDArray[Any], grid: Affine = GRID, **options: Any) -> Look:
    """Look at two rasters, the second on `grid`."""
    paths = write_raster(folder / "1.tif", first), write_raster(folder / "2.tif", second, transform=grid)
    pair = RasterPair(*paths, **options)
    found = look_at(pair)
    pair.close()
    return found


def test_nothing_is_odd(tmp_path: Path) -> None:
    """A usual pair gives facts and no warning."""
    first, second, _ = (image for image in draw_pair(np.random.default_rng(3), SIZE, SIZE))
    facts, warnings = look(tmp_path, first.transpose(2, 0, 1), second.transpose(2, 0, 1))
    assert warnings == [] and not facts["after_is_warped"]
    assert facts["before"]["pixel_m"] == pytest.approx([2, 2], rel=0.01)
    expected = {"bands": [1, 2, 3], "declared": ["red", "green", "blue"], "alpha": None, "no_data": 0, "odd_levels": 0}
    assert facts["after"].items() >= expected.items()


@pytest.mark.parametrize(("columns", "rows"), [(0, 8), (-12, 5), (2, 1), (1, 1)])
def test_shift(tmp_path: Path, columns: int, rows: int) -> None:
    """The shift is that of the pixels; it is a warning from more than 2 pixels on, and names the remedy."""
    big = draw_pair(np.random.default_rng(5), SIZE + 60, SIZE + 60)[0].transpose(2, 0, 1)
    first = big[:, 30 : 30 + SIZE, 30 : 30 + SIZE]
    second = big[:, 30 - rows : 30 - rows + SIZE, 30 - columns : 30 - columns + SIZE]
    facts, warnings = look(tmp_path, first, second)
    assert (facts["shift"]["x"], facts["shift"]["y"]) == pytest.approx((columns, rows), abs=1)
    metres = 2 * np.hypot(columns, rows)
    assert facts["shift_in_windows"] == pytest.approx((columns, rows), abs=0.05)
    if np.hypot(columns, rows) <= 2:
        assert warnings == []
    else:
        (warning,) = warnings
        assert "2.tif is shifted by about" in warning and warning.endswith("; --align corrects it")
        assert float(warning.split("(")[1].split(" m)")[0]) == pytest.approx(metres, abs=2)


def test_shift_in_a_large_scene(tmp_path: Path) -> None:
    """It is measured at full resolution, where there is data."""
    big = np.tile(draw_pair(np.random.default_rng(5), 1330, 1330)[0].transpose(2, 0, 1), (1, 1, 1))
    first, second = big[:, 20:1320, 20:1320].copy(), big[:, 13:1313, 20:1320]
    first[:, :400] = 0
    paths = write_raster(tmp_path / "1.tif", first, nodata=0), write_raster(tmp_path / "2.tif", second)
    shift = look_at(RasterPair(*paths)).facts["shift"]
    assert (shift["x"], shift["y"]) == pytest.approx((0, 7), abs=0.5)


def test_pixels(tmp_path: Path) -> None:
    """Dates of other pixel sizes and pixels that are not square are reported."""
    image = picture()
    coarse = from_origin(EAST, NORTH, 20, 20)
    facts, warnings = look(tmp_path, image, image[:, :30, :30], coarse)
    assert facts["after_is_warped"]
    assert any("2.tif (20 m) are 10 times as large as those of" in warning for warning in warnings)
    place = (WORLD, from_origin(10, 60, 1e-5, 1e-5))
    paths = write_raster(tmp_path / "1.tif", image, *place), write_raster(tmp_path / "2.tif", touched(image), *place)
    (warning,) = look_at(RasterPair(*paths)).warnings
    assert "1.tif are 0.556 m wide and 1.11 m high" in warning


@pytest.mark.parametrize(
    ("side", "trained_on", "said"),
    [
        (5.0, (0.5, 2.0), "1.tif has pixels of 5.0 m, but this checkpoint was trained on 0.5 to 2 m: expect misses"),
        (0.2, (0.5, 2.0), "1.tif has pixels of 0.2 m, but this checkpoint was trained on 0.5 to 2 m: expect misses"),
        (3.9, (0.5, 2.0), ""),
        (0.26, (0.5, 2.0), ""),
        (1.0, (0.3, 0.3), "1.tif has pixels of 1.0 m, but this checkpoint was trained on 0.3 m: expect misses"),
        (99.0, None, ""),
    ],
)
def test_resolution(tmp_path: Path, side: float, trained_on: tuple[float, float] | None, said: str) -> None:
    """Pixels that are more than twice as fine or as coarse as those trained on are reported."""
    grid = from_origin(EAST, NORTH, side, side)
    images = picture(), touched(picture())
    paths = [write_raster(tmp_path / f"{i}.tif", image, transform=grid) for i, image in enumerate(images, start=1)]
    expected = [str(tmp_path / said)] if said else []
    assert look_at(RasterPair(*paths), trained_on).warnings == expected


def test_bands_that_are_used(tmp_path: Path) -> None:
    """They are named for rasters of more than three bands only."""
    four = np.concatenate((picture(), picture(2)[:1]))
    bare = write_raster(tmp_path / "1.tif", four, photometric="MINISBLACK")
    rgba = write_raster(tmp_path / "2.tif", np.concatenate((picture(), np.full_like(four[:1], 255))))
    notes = look_at(RasterPair(bare, rgba)).facts["notes"]
    assert notes == [
        f"bands 1, 2 and 3 of the 4 in {bare} are used as red, green and blue",
        f"bands 1, 2 and 3 of the 4 in {rgba} are used as red, green and blue, and band 4 as transparency",
    ]
    assert look_at(RasterPair(bare, bare, bands=(4, 3, 2))).facts["notes"][0].startswith("bands 4, 3 and 2 of the 4")
    assert look(tmp_path, picture(), picture()).facts["notes"] == []


def test_the_same_image_twice(tmp_path: Path) -> None:
    """Nothing can change: a file was probably given twice."""
    (warning,) = look(tmp_path, picture(), picture()).warnings
    assert "2.tif show the same pixels, so no change can be found" in warning
    assert look(tmp_path, picture(), touched(picture())).warnings == []


def test_missing_data(tmp_path: Path) -> None:
    image = picture()
    image[:, :, 100:] = 0
    paths = write_raster(tmp_path / "1.tif", image, nodata=0), write_raster(tmp_path / "2.tif", picture())
    facts, warnings = look_at(RasterPair(*paths))
    assert facts["before"]["no_data"] == pytest.approx(2 / 3, abs=0.01) and facts["shift"] is None
    assert len(warnings) == 1 and "about 67% of" in warnings[0] and "1.tif is nodata" in warnings[0]


def test_levels(tmp_path: Path) -> None:
    """Black borders, odd levels and images that the network cannot see."""
    image, border = picture(), picture()
    border[:, :60] = 0
    assert "20% of" in look(tmp_path, image, border).warnings[0]
    (warning,) = look(tmp_path, image, np.minimum(picture(), 1)).warnings
    assert "2.tif looks almost uniform to the network" in warning
    deep = picture().astype(np.int16) * 12 + 200
    cloudy = deep.copy()
    cloudy[:, :90, :90] = 16000
    warnings = look(tmp_path, deep, cloudy).warnings
    assert any("% of the levels of" in text and "2.tif lie far outside the others" in text for text in warnings)
    assert look(tmp_path, deep, touched(deep)).warnings == []


def test_ignored_places(tmp_path: Path) -> None:
    """With --assume_aligned, places that differ are reported, and impossible ones are left out of the result."""
    image = picture()
    (warning,) = look(tmp_path, image, touched(image), from_origin(EAST + 2, NORTH, 2, 2), assume_aligned=True).warnings
    assert "lie on different grids, which is ignored" in warning
    assert look(tmp_path, image, touched(image), assume_aligned=True).warnings == []
    bad = write_raster(tmp_path / "bad.tif", image, UTM, Affine.identity())
    other = write_raster(tmp_path / "other.tif", touched(image), UTM, Affine.identity())
    (warning,) = look_at(RasterPair(bad, other, assume_aligned=True)).warnings
    assert "bad.tif has a coordinate reference system but no place in it" in warning and "no polygons" in warning


def test_where_it_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Warnings go to the console, metadata.json and the report."""
    image, border = picture(), picture()
    border[:, :60] = 0
    paths = write_raster(tmp_path / "1.tif", image), write_raster(tmp_path / "2.tif", border)
    (tmp_path / "out").mkdir()
    about: dict[str, Any] = {"precision": "float32", "checkpoint": {"resolution": (0.1, 0.2)}}
    with caplog.at_level(logging.WARNING):
        predict_rasters(*paths, tmp_path / "out", predict=pixelwise, settings=Settings(0.5), about=about)
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    resolution, warning = metadata["warnings"]
    assert resolution.startswith(f"{paths[0]} has pixels of 2.0 m, but this checkpoint was trained on 0.1 to 0.2 m:")
    assert warning.startswith("20% of") and {warning, resolution} <= {*caplog.messages}
    assert metadata["look"]["after"]["no_data"] == 0
    assert warning in (tmp_path / "out" / "report.html").read_text()


def test_pictures(tmp_path: Path) -> None:
    """The shift between two pictures is measured, and black parts are reported only if they are not transparent."""
    big = draw_pair(np.random.default_rng(5), SIZE, SIZE + 20)[0]
    first, second = big[12:], big[:-12]
    paths = tmp_path / "1.png", tmp_path / "2.png"
    data = np.ones(first.shape[:2], np.bool_)
    facts, (warning,) = look_at_pictures(*paths, (first, second), data)
    assert facts["shift"]["y"] == pytest.approx(12, abs=1) and warning.startswith(f"{paths[1]} is shifted by about")
    blank = first.copy()
    blank[:60] = 0
    assert any("1.png is black" in text for text in look_at_pictures(*paths, (blank, first), data).warnings)
    data[:60] = False
    assert look_at_pictures(*paths, (blank, first), data).warnings == []


def test_a_scene_without_a_place(tmp_path: Path) -> None:
    """It is reported with the other warnings, unless no polygons are wanted."""
    place = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    path = write_raster(tmp_path / "1.tif", picture(), place)
    other = write_raster(tmp_path / "2.tif", touched(picture()), place)
    about: dict[str, Any] = {"precision": "float32", "checkpoint": {}}
    for vectors, count in (("gpkg", 1), ("none", 0)):
        (tmp_path / vectors).mkdir()
        settings = Settings(0.5, vectors=vectors)
        found = predict_rasters(path, other, tmp_path / vectors, predict=pixelwise, settings=settings, about=about)
        assert len(found["warnings"]) == count and not (tmp_path / vectors / "changes.gpkg").exists()
        assert all("1.tif has no coordinate reference system on earth" in text for text in found["warnings"])
