"""The pictures of a scene: the listed changes, their chips, scale bars, and the preview."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import PIL.Image
import pytest
import shapely

from change.rasters.numbering import Changes
from change.rasters.scene import Settings, predict_rasters
from change.rasters.scene_report import CHIP, LISTED, chip_block, scale_bar, summarise
from tests.rasters.drawn import EAST, NORTH, pixelwise, write_raster
from tests.rasters.test_scene import ABOUT

SIDE = 300


def report_of(folder: Path, **options: Any) -> dict[str, Any]:
    """Predict a scene of 16 changed squares and a speck, and return what the report's script reads.

    The squares have sides from 3 to 18 pixels; the speck is a single pixel.
    """
    first, second = np.full((2, 3, SIDE, SIDE), 100, np.uint8)
    first[2] = np.arange(SIDE, dtype=np.uint16)[:, None] % 200
    for index in range(16):
        row, column = 20 + index // 4 * 70, 20 + index % 4 * 70
        second[1, row : row + 3 + index, column : column + 3 + index] = 250
    second[1, 5, 5] = 250
    paths = write_raster(folder / "1.tif", first), write_raster(folder / "2.tif", second)
    (folder / "out").mkdir()
    predict_rasters(*paths, folder / "out", predict=pixelwise, settings=Settings(0.5, **options), about=ABOUT)
    page = (folder / "out" / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_largest_changes_are_listed(tmp_path: Path) -> None:
    """They are those of the layer, in its order; their chips show them outlined at both dates."""
    scene = report_of(tmp_path)["result"]["scene"]
    frame = geopandas.read_file(tmp_path / "out" / "changes.gpkg")
    assert len(frame) == 16 and scene["found"].startswith(f"The {LISTED} largest of 16 polygons.")
    assert [change["id"] for change in scene["changes"]] == frame["id"].tolist()[:LISTED]
    largest = scene["changes"][0]
    assert largest["pixels"] == 18**2 and largest["area"] == f"{frame['area_m2'][0]:,.0f} m²"
    assert largest["mean"] == f"{frame['mean_probability'][0]:.2f}"
    assert (largest["width"], largest["height"]) == (CHIP, CHIP)
    centre = frame.geometry[:1].centroid.to_crs(4326)[0]
    latitude, longitude = (float(part) for part in largest["place"].split(", "))
    assert (latitude, longitude) == pytest.approx((centre.y, centre.x), abs=2e-5)
    scale = CHIP / 64
    for date, inside in (("before", 100), ("after", 250)):
        chip = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(largest[date].partition(",")[2]))), np.int16)
        yellow = (chip[..., 0] > 200) & (chip[..., 1] > 160) & (chip[..., 2] < 90)
        rows, columns = np.nonzero(yellow)
        extent = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert extent == pytest.approx((18 * scale + 4, 18 * scale + 4), abs=3)
        assert chip[CHIP // 2, CHIP // 2, 1] == pytest.approx(inside, abs=8)


def test_the_preview_outlines_the_polygons(tmp_path: Path) -> None:
    """It shows both dates; changes without a polygon have no outline."""
    report_of(tmp_path)
    picture = np.asarray(PIL.Image.open(tmp_path / "out" / "preview.png"))
    assert picture.shape == (SIDE, 2 * SIDE + 4, 3)
    yellow = (picture == (255, 210, 0)).all(2)
    for left in (0, SIDE + 4):
        assert yellow[19, left + 19 : left + 24].all() and not yellow[20:23, left + 20 : left + 23].any()
        assert not yellow[:12, left : left + 12].any()
        assert yellow[:, left : left + SIDE].sum() == sum((side + 2) ** 2 - side**2 for side in range(3, 19))


def test_the_area_is_outlined(tmp_path: Path) -> None:
    """The preview and the report show what lies around the area of interest, and where it ends."""
    aoi = tmp_path / "area.gpkg"
    box = shapely.box(EAST + 200, NORTH - 400, EAST + 400, NORTH - 200)  # columns 100 to 199, rows 100 to 199
    geopandas.GeoDataFrame(geometry=[box], crs=32633).to_file(aoi)
    page = report_of(tmp_path, aoi=aoi)
    assert page["result"]["scene"]["has_area"] and "surroundings" in page["cases"][0]["name"]
    picture = np.asarray(PIL.Image.open(tmp_path / "out" / "preview.png"))
    white = (picture[:, :SIDE] == 255).all(2)
    rows, columns = np.nonzero(white)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (99, 200, 99, 200)
    assert not white[100:200, 100:200].any() and (picture[:, :SIDE] > 0).any(2).mean() > 0.99


def test_the_summary_has_dates() -> None:
    about = {"width": 1000, "height": 20, "before_date": "2009-08-02T10:00:00", "after_date": "2020-07-15"}
    metadata = {**about, "pixels": {"data": 200, "changed": 0}}
    assert summarise(metadata, 0.5) == "2009-08-02 to 2020-07-15 · 1,000 x 20 pixels of 0.5 m · " + (
        "no change found in 200 pixels"
    )
    assert summarise({**metadata, "after_date": ""}, None) == "1,000 x 20 pixels · no change found in 200 pixels"


def test_without_polygons(tmp_path: Path) -> None:
    """The connected changes are listed, all of them, without areas."""
    scene = report_of(tmp_path, vectors="none")["result"]["scene"]
    assert scene["found"].startswith(f"The {LISTED} largest of 17 connected changes.")
    assert [change["pixels"] for change in scene["changes"]] == [side**2 for side in range(18, 6, -1)]
    assert scene["changes"][0]["area"] is None and "smallest_polygon" not in scene["about"]["Prediction"]


@pytest.mark.parametrize(
    ("pixels", "side", "most", "label"),
    [
        (1000, 0.5, 0.25, "100 m"),
        (934, 5.0, 0.25, "1 km"),
        (64, 0.1, 0.5, "2 m"),
        (3, 0.1, 0.5, "0.1 m"),
        (10**6, 10.0, 0.25, "2,000 km"),
        (300, None, 0.25, "50 pixels"),
        (1, None, 0.5, "0.5 pixels"),
    ],
)
def test_scale_bars(pixels: int, side: float | None, most: float, label: str) -> None:
    """The bar is a round length, and between two fifths of its maximum and the maximum."""
    bar = scale_bar(pixels, side, most)
    number, unit = bar["label"].split()
    length = float(number.replace(",", "")) * (1000 if unit == "km" else 1)
    assert bar["label"] == label and bar["share"] == pytest.approx(length / (pixels * (side or 1)))
    assert 0.39 * most < bar["share"] <= most


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 200, 110, 205), (73, 170, 64, 64)),
        ((0, 0, 5, 5), (0, 0, 64, 64)),
        ((495, 0, 500, 400), (0, 0, 500, 640)),
        ((0, 0, 500, 800), (0, 0, 500, 800)),
    ],
)
def test_chips_show_the_change_and_its_surroundings(
    box: tuple[int, int, int, int], expected: tuple[int, int, int, int]
) -> None:
    values = np.array([[0, value] for value in (1, 1, 1, 1, 1, *box)])
    assert chip_block(Changes(*values), 1, 500, 800) == expected
