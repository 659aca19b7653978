"""Square outlines: right angles on the ground, areas and holes kept, nothing that crosses or touches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import geopandas
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from shapely.affinity import rotate, translate

from change.rasters.scene import Settings, predict_rasters
from change.rasters.squaring import keep_clear, square_outlines
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, pixelwise, write_raster
from tests.rasters.test_polygons import polygons
from tests.rasters.test_scene import ABOUT

SIDE = 60  # pixels
CENTRE = EAST + SIDE, NORTH - SIDE  # of a raster of SIDE x SIDE pixels of 2 m
BUILDINGS = {
    "rectangle": shapely.box(-40, -20, 40, 20),
    "corner": shapely.box(-40, -30, 40, 30) - shapely.box(-10, -10, 50, 40),
    "cross": shapely.box(-40, -12, 40, 12) | shapely.box(-12, -40, 12, 40),
    "courtyard": shapely.box(-40, -30, 40, 30) - shapely.box(-20, -10, 20, 12),
}


def grid_of(system: int) -> tuple[CRS, Affine]:
    """Return a grid of about 2 m around CENTRE in a reference system; its pixels are squares in their units."""
    crs = CRS.from_epsg(system)
    x, y = Transformer.from_crs(UTM.to_wkt(), system, always_xy=True).transform(*CENTRE)
    pixel = 2 / 111_000 if crs.is_geographic else 2.0 if crs == UTM else 2.8
    return crs, from_origin(x - SIDE * pixel / 2, y + SIDE * pixel / 2, pixel, pixel)


def trace(folder: Path, mask: NDArray[np.uint8], crs: CRS, grid: Affine) -> Any:
    """Return the changes of a mask as a GeoDataFrame with square outlines."""
    draw = polygons(folder, mask, mask, grid, crs)
    return draw(highest=1, min_area=0, simplify=0, outlines="square")


def corner_angles(polygon: Any) -> NDArray[np.float64]:
    """Return the angles at the corners of all rings of a polygon, in degrees from 0 to 180."""
    found = []
    for ring in (polygon.exterior, *polygon.interiors):
        steps = np.diff(shapely.get_coordinates(ring), axis=0)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        found.append(np.degrees(np.arccos((steps * np.roll(steps, 1, axis=0)).sum(axis=1))))
    return np.concatenate(found)


@pytest.mark.parametrize("system", [32633, 4326, 3857])
@pytest.mark.parametrize("name", BUILDINGS)
def test_buildings(tmp_path: Path, name: str, system: int) -> None:
    """A building at any angle gets its corners back, at right angles on the ground, in metres and in degrees."""
    crs, grid = grid_of(system)
    there = Transformer.from_crs(UTM.to_wkt(), system, always_xy=True).transform
    back = Transformer.from_crs(system, UTM.to_wkt(), always_xy=True).transform
    for angle in (0, 17, 38, 70):
        building = shapely.transform(rotate(BUILDINGS[name], angle, origin=(0, 0)), lambda points: points + CENTRE)
        placed = shapely.transform(building, lambda points: np.stack(there(*points.T), axis=1))
        mask = rasterize([placed], out_shape=(SIDE, SIDE), transform=grid).astype(np.uint8)
        frame = trace(tmp_path, mask, crs, grid)
        (found,) = shapely.transform(frame.geometry[0], lambda points: np.stack(back(*points.T), axis=1)).geoms
        assert frame["squared"].tolist() == [True]
        angles = corner_angles(found)
        assert angles == pytest.approx(90, abs=0.05) and len(angles) == len(corner_angles(building))
        assert len(found.interiors) == len(building.interiors)
        assert found.intersection(building).area / found.union(building).area > 0.9
        assert found.area == pytest.approx(frame["area_m2"][0], rel=0.002)  # UTM shrinks by 0.04%
        assert found.length == pytest.approx(frame["perimeter_m"][0], rel=0.002)


@pytest.mark.parametrize("seed", range(2))
def test_any_mask(tmp_path: Path, seed: int) -> None:
    """Whatever the changes are: squares are valid, keep area and holes, and touch nothing; the others stay."""
    coarse = np.random.default_rng(seed).random((24, 24)).astype(np.float32)
    mask = (cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_CUBIC) > 0.75).astype(np.uint8)
    draw = polygons(tmp_path, mask, mask, GRID, UTM)
    before = draw(highest=1, min_area=0, simplify=0)
    after = draw(highest=1, min_area=0, simplify=0, outlines="square")
    squared = after["squared"].to_numpy()
    assert 0.1 < squared.mean() < 0.9 and after.is_valid.all()
    first, second = after.sindex.query(after.geometry, predicate="intersects")
    assert (first == second).all()
    same = ["id", "area_m2", "mean_probability", "max_probability"]
    assert after[same].equals(before[same])
    assert (after.geometry[~squared] == before.geometry[~squared]).all()
    assert (after.area[squared] / before.area[squared]).to_numpy() == pytest.approx(1, abs=1e-6)
    for old, new in zip(before.geometry[squared], after.geometry[squared], strict=True):
        (polygon,) = new.geoms
        assert corner_angles(polygon) == pytest.approx(90, abs=0.05)
        assert len(polygon.interiors) == len(old.buffer(0.1, join_style="mitre").interiors)  # of joined parts
        assert old.intersection(new).area / old.union(new).area > 0.85


def test_what_is_no_building_stays(tmp_path: Path) -> None:
    """Discs, triangles, slanted slivers and cut corners stay; a speck at a corner of a building is absorbed."""
    mask = np.zeros((90, 190), np.uint8)
    cv2.circle(mask, (25, 25), 16, 1, -1)
    cv2.fillPoly(mask, [np.array([(55, 40), (100, 40), (78, 5)])], 1)
    cut_corners = [(124, 10), (168, 10), (182, 24), (182, 66), (168, 80), (124, 80), (110, 66), (110, 24)]
    cv2.fillPoly(mask, [np.array(cut_corners)], 1)  # 7% of the area of the rectangle is missing
    cv2.line(mask, (5, 85), (40, 50), 1)
    mask[60:80, 60:100] = mask[80, 100] = 1
    frame = trace(tmp_path, mask, UTM, GRID).set_index("id")
    assert frame["squared"].sort_index().tolist() == [False, False, False, False, True]
    (building,) = frame.geometry[5].geoms
    assert len(building.exterior.coords) == 5


def test_corners_that_face_each_other(tmp_path: Path) -> None:
    """The corners of two rounded buildings would overlap if both were square, so one keeps its outline."""
    shape = rotate(shapely.box(-8, -8, 8, 8).buffer(5), 45)
    for gap, squared in ((3, [True, True]), (0, [False, True])):
        shapes = [translate(shape, x, 25) for x in (25, 60 + gap)]
        mask = rasterize(shapes, out_shape=(50, 100)).astype(np.uint8)
        frame = trace(tmp_path, mask, UTM, GRID)
        assert sorted(frame["squared"]) == squared and frame.geometry[0].disjoint(frame.geometry[1])


@pytest.mark.parametrize(("right", "kept"), [(9.5, True), (11.0, False)])
def test_neighbours(right: float, kept: bool) -> None:
    """If two squares touch, the one that has moved farther is given up; if a square touches an outline, the square."""
    boxes = [shapely.box(x, 0, x + 8, 8) for x in (0, 10, 20, 30, 90)]
    outlines = np.array([shapely.multipolygons([box]) for box in boxes], object)
    squares = outlines.copy()
    squares[0] = shapely.box(0, -1, right, 9)  # touches the square of the next one, or its outline as well
    squares[1] = shapely.box(9, -1, 18, 9)
    squares[3] = shapely.box(28, 0, 38, 8)  # touches an outline along an edge
    squares[4] = shapely.box(89, 0, 99, 8)
    found, squared = keep_clear(outlines, squares.copy(), np.array([0.2, 0.3, -np.inf, 0.1, 9.0]))
    assert squared.tolist() == [kept, False, False, False, True]
    assert (found == np.where(squared, squares, outlines)).all()


def test_places_outside_the_reference_system() -> None:
    """Outlines that cannot be placed on the ground stay, and an empty array stays empty."""
    outlines = np.array([shapely.multipolygons([shapely.box(1e9, 1e9, 1e9 + 90, 1e9 + 50)])], object)
    found, squared = square_outlines(outlines, UTM, 2.0)
    assert found[0] == outlines[0] and not squared.any()
    assert [len(values) for values in square_outlines(outlines[:0], UTM, 2.0)] == [0, 0]


def test_predict(tmp_path: Path) -> None:
    """A result states which polygons are square; everything else is as without square outlines."""
    building = rotate(shapely.box(EAST + 30, NORTH - 60, EAST + 80, NORTH - 30), 20)
    disc = shapely.Point(EAST + 120, NORTH - 80).buffer(30)
    levels = rasterize([building, disc], out_shape=(64, 96), transform=GRID, fill=5, default_value=250, dtype="uint8")
    before, after = (write_raster(tmp_path / f"{name}.tif", np.stack([levels] * 3)) for name in ("before", "after"))
    frames, results = [], []
    for outlines in ("pixels", "square"):
        folder = tmp_path / outlines
        folder.mkdir()
        settings = Settings(0.5, outlines=outlines)
        results.append(predict_rasters(before, after, folder, predict=pixelwise, settings=settings, about=ABOUT))
        frames.append(geopandas.read_file(folder / "changes.gpkg"))
        assert json.loads((folder / "metadata.json").read_text())["outlines"] == outlines
    plain, square = frames
    assert square["squared"].tolist() == [False, True] and square.geometry[0] == plain.geometry[0]
    assert results[1]["polygons"] == results[0]["polygons"] | {"squared": 1}
    assert "2 polygons of 4 pixels or more, 1 of them square" in (tmp_path / "square" / "report.html").read_text()
    changed = ["geometry", "perimeter_m"]
    assert square.drop(columns=["squared", *changed]).equals(plain.drop(columns=changed))
    assert square["perimeter_m"][1] == pytest.approx(160, rel=0.05) and plain["perimeter_m"][1] > 180
