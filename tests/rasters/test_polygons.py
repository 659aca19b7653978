"""Connected changes: numbered across strips, measured, and as polygons."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from shapely import count_coordinates

from change.common.gdal import geo
from change.rasters.levels import NO_DATA
from change.rasters.numbering import Numbering
from change.rasters.polygons import add_texts, change_polygons, write_vectors
from tests.rasters.drawn import GRID, UTM, WORLD, read_band, write_raster


def polygons(folder: Path, changed: NDArray[np.uint8], levels: NDArray[np.uint8], grid: Affine, crs: CRS) -> Any:
    """Number the changes of a mask and return `change_polygons` for them, without its keyword arguments."""
    mask = write_raster(folder / "mask.tif", changed[None], crs, grid, nodata=NO_DATA)
    height, width = changed.shape
    numbering = Numbering(folder / "numbers.tif", {"height": height, "width": width, "crs": crs, "transform": grid})
    for row in range(0, height, 8):
        numbering.add(changed[row : row + 8], levels[row : row + 8])
    return functools.partial(change_polygons, numbering.path, mask, numbering.finish())


def test_polygons_in_degrees(tmp_path: Path) -> None:
    """Compare areas in degrees at 60 degrees north with those on a sphere; one change has a hole and a corner."""
    changed = np.zeros((40, 60), np.uint8)
    changed[10:20, 10:20], changed[13:15, 13:15], changed[20, 20], changed[35, 50] = 1, 0, 1, 1
    changed[30:33, 3:9] = NO_DATA
    draw = polygons(tmp_path, changed, np.asarray(changed * 100, np.uint8), from_origin(10, 60, 0.001, 0.001), WORLD)
    frame = draw(highest=200, min_area=0, simplify=0)
    assert len(frame) == 2 and frame["mean_probability"].tolist() == [0.5, 0.5]
    pixel = (np.pi / 180 * 0.001 * 6_371_000) ** 2 * np.cos(np.radians(59.985))
    assert frame["area_m2"].tolist() == pytest.approx([97 * pixel, pixel], rel=0.01)
    height_and_width = np.pi / 180 * 0.001 * 6_371_000 * (1 + np.cos(np.radians(59.985)))
    around = [26 * height_and_width, 2 * height_and_width]  # the hole counts
    assert frame["perimeter_m"].tolist() == pytest.approx(around, rel=0.01)
    assert len(draw(highest=1, min_area=10 * pixel, simplify=0)) == 1
    simpler = draw(highest=1, min_area=10 * pixel, simplify=1.5)
    assert count_coordinates(simpler.geometry[0]) < count_coordinates(frame.geometry[0])
    assert simpler["perimeter_m"][0] < frame["perimeter_m"][0] and simpler["area_m2"][0] == frame["area_m2"][0]


def test_changes_across_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes that are labelled three rows at a time equal those of the whole mask; outlines are valid."""
    monkeypatch.setattr("change.rasters.numbering.ROWS", 3)
    rng = np.random.default_rng(0)
    changed = (rng.random((31, 40)) < 0.35).astype(np.uint8)
    levels = rng.integers(100, 255, changed.shape).astype(np.uint8)
    draw = polygons(tmp_path, changed, levels, GRID, UTM)
    found, whole = cv2.connectedComponents(changed, connectivity=8)
    numbers = read_band(tmp_path / "numbers.tif")
    assert len({*zip(whole.flat, numbers.flat, strict=True)}) == found == len(np.unique(numbers))
    _, first = np.unique(numbers, return_index=True)
    assert (np.diff(first[1:]) > 0).all()  # counted from the top left, wherever the strips begin
    changes = draw.args[2]
    for number in range(1, found):
        rows, columns = np.nonzero(numbers == number)
        expected = len(rows), levels[rows, columns].sum(), np.max(levels[rows, columns]), rows.sum(), columns.sum()
        fields = changes.pixels, changes.total, changes.highest, changes.rows, changes.columns
        assert tuple(field[number] for field in fields) == expected
        box = changes.top[number], changes.left[number], changes.bottom[number] - 1, changes.right[number] - 1
        assert box == (rows.min(), columns.min(), rows.max(), columns.max())
    frame = draw(highest=254, min_area=0, simplify=0)
    assert len(frame) == found - 1 and frame.is_valid.all()
    assert frame["area_m2"].sum() == pytest.approx(4 * changed.sum(), rel=0.002)


def test_small_polygons(tmp_path: Path) -> None:
    """By default, polygons of four pixels are kept and smaller ones are not, wherever they lie."""
    changed = np.zeros((30, 30), np.uint8)
    changed[2:4, 2:4] = changed[10, 10:13] = changed[20, 20:25] = 1
    changed[[13, 14, 15, 16], [5, 6, 7, 8]] = 1  # four pixels that touch at corners
    draw = polygons(tmp_path, changed, changed, from_origin(10, 60, 0.001, 0.001), WORLD)
    whole, kept = (draw(highest=1, min_area=area, simplify=0) for area in (0, None))
    assert len(whole) == 4 and len(kept) == 3
    pixels = {int(number): int(draw.args[2].pixels[number]) for number in whole["id"]}
    assert sorted(pixels.values()) == [3, 4, 4, 5] and {pixels[number] for number in kept["id"]} == {4, 5}


def test_a_speckled_mask(tmp_path: Path) -> None:
    """One change with thousands of holes that touch at corners is valid, has the right area, and takes no minutes."""
    changed = (np.random.default_rng(0).random((200, 200)) < 0.5).astype(np.uint8)
    draw = polygons(tmp_path, changed, changed, GRID, UTM)
    began = time.process_time()
    frame = draw(highest=1, min_area=0, simplify=0)
    assert time.process_time() - began < 5  # repairing 8-connected outlines took 20 s
    assert len(frame) == cv2.connectedComponents(changed, connectivity=8)[0] - 1
    assert frame.is_valid.all() and frame.area.sum() == 4 * changed.sum()


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
def test_the_layer_does_not_depend_on_its_content(tmp_path: Path, kind: str) -> None:
    """Layers with one part, with several parts and without features have one geometry type and the same fields."""
    changed = np.zeros((3, 10, 10), np.uint8)
    changed[0, 2:4, 2:4] = 1
    changed[1, [2, 3], [2, 3]] = 1
    for mask in changed:
        frame = polygons(tmp_path, mask, mask, GRID, UTM)(highest=1, min_area=0, simplify=0)
        add_texts(frame, {"before": "1.tif", "before_date": ""})
        write_vectors(frame, tmp_path, kind, pixel=2)
        info = geo("pyogrio").read_info(tmp_path / f"changes.{kind}")
        if mask.any() or kind == "gpkg":  # an empty GeoJSON file has no place for either
            assert info["geometry_type"] == "MultiPolygon"
            types = {"id": "Integer64", "area_m2": "Real", "perimeter_m": "Real"}
            types |= {"mean_probability": "Real", "max_probability": "Real"}
            if kind == "geojson":
                types["id"] = "Integer"  # the reader takes the narrowest type
            expected = {**types, "before": "String", "before_date": "String"}
            found = zip(info["fields"], info["ogr_types"], strict=True)
            assert {name: name_of_type.removeprefix("OFT") for name, name_of_type in found} == expected
        assert info["features"] == min(1, mask.sum())
        (tmp_path / f"changes.{kind}").unlink()
