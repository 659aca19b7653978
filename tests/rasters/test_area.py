"""The area of interest: what lies outside is no data, and layers that cannot be one are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import torch
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from change.common.errors import UserError
from change.rasters.area import MARGIN, place_parts
from change.rasters.levels import NO_DATA
from change.rasters.predict import main
from change.rasters.raster import RasterPair
from change.rasters.scene import Settings, predict_rasters
from tests.rasters.drawn import EAST, NORTH, noise, pixelwise, read_band, write_raster
from tests.rasters.test_predict import arguments
from tests.rasters.test_scene import ABOUT

SIDE = 400
CENTRE = shapely.Point(EAST + SIDE, NORTH - SIDE)  # of a raster of SIDE x SIDE pixels of 2 m
RING = CENTRE.buffer(60).difference(CENTRE.buffer(20))


def pair(folder: Path, offset: float) -> tuple[Path, Path]:
    """Write two rasters of 16 bits, the second one shifted to the east by `offset` metres."""
    dark = noise(SIDE, SIDE, seed=1).astype(np.uint16) * 3
    dark[:, 150:250, 150:250] //= 2  # the stretch of the area is not that of the scene
    first = write_raster(folder / "1.tif", dark)
    grid = from_origin(EAST + offset, NORTH, 2, 2)
    return first, write_raster(folder / "2.tif", noise(SIDE, SIDE, seed=2).astype(np.uint16) * 5, transform=grid)


def layer(path: Path, *shapes: Any, crs: int | None = 32633, to: int | None = None) -> Path:
    """Write a vector file of shapes, in their reference system or projected `to` another one."""
    frame = geopandas.GeoDataFrame(geometry=list(shapes), crs=crs)
    (frame.to_crs(to) if to else frame).to_file(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 4, 5])
def test_a_ring(tmp_path: Path, offset: float) -> None:
    """Inside, the result is that of the whole scene; outside is no data. The second raster may have another grid."""
    paths = pair(tmp_path, offset)
    aoi = layer(tmp_path / "ring.geojson", RING, to=4326)
    results = []
    for name, area, vectors in (("whole", None, "none"), ("part", aoi, "gpkg")):
        (tmp_path / name).mkdir()
        settings = Settings(0.5, 128, 16, aoi=area, vectors=vectors)
        results.append(predict_rasters(*paths, tmp_path / name, predict=pixelwise, settings=settings, about=ABOUT))
    with rasterio.open(tmp_path / "part" / "mask.tif") as dataset:
        mask, transform = dataset.read(1), dataset.transform
    with rasterio.open(tmp_path / "whole" / "mask.tif") as dataset:
        left, top = round((transform.c - dataset.transform.c) / 2), round((dataset.transform.f - transform.f) / 2)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    x, y = transform.c + 2 * columns + 1, transform.f - 2 * rows - 1
    inside = shapely.contains_xy(RING, x, y)
    near = shapely.distance(RING.boundary, shapely.points(x, y)) < 0.01  # the layer has been projected twice
    for file in ("mask", "probability"):
        whole = read_band(tmp_path / "whole" / f"{file}.tif")
        part = read_band(tmp_path / "part" / f"{file}.tif")
        expected = np.where(inside, whole[top : top + part.shape[0], left : left + part.shape[1]], NO_DATA)
        assert np.array_equal(part[~near], expected[~near]) and near.sum() < 5
    assert mask.shape == pytest.approx((60 + 2 * MARGIN, 60 + 2 * MARGIN), abs=2)
    assert results[1]["pixels"]["data"] == (mask != NO_DATA).sum() == pytest.approx(inside.sum(), abs=5)
    assert results[1]["stretched"] == results[0]["stretched"] and results[1]["aoi"] == str(aoi)
    frame = geopandas.read_file(tmp_path / "part" / "changes.gpkg")
    assert len(frame) and frame.within(RING.buffer(2)).all()


def test_the_surroundings_are_seen(tmp_path: Path) -> None:
    """The network gets the images around the area, so that the area has no artificial edges."""
    rasters = RasterPair(*pair(tmp_path, 0), aoi=layer(tmp_path / "ring.gpkg", RING))
    before, _, data = rasters.rows(0, rasters.height)
    assert not data[:MARGIN].any() and (before[0, :, :MARGIN] > 0).any(0).float().mean() > 0.9
    rasters.close()


def test_pixels_without_data(tmp_path: Path) -> None:
    """The network gets the image mirrored at the border of its data, inside the area and outside of it."""
    images = [noise(SIDE, SIDE, seed=seed) // 2 + 1 for seed in (1, 2)]
    images[0][:, 190:195] = 0
    paths = [write_raster(tmp_path / f"{name}.tif", image, nodata=0) for name, image in enumerate(images)]
    seen: list[torch.Tensor] = []

    def watched(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        seen.extend((before[0], after[0]))
        return pixelwise(before, after)

    for name, area in (("whole", None), ("part", layer(tmp_path / "ring.gpkg", RING))):
        (tmp_path / name).mkdir()
        settings = Settings(0.5, 512, 0, aoi=area, vectors="none")
        predict_rasters(paths[0], paths[1], tmp_path / name, predict=watched, settings=settings, about=ABOUT)
    for before_and_after in (seen[:2], seen[2:]):
        shift = SIDE // 2 - before_and_after[0].shape[1] // 2  # the part lies in the middle
        for image, found in zip(images, before_and_after, strict=True):
            inside = slice(shift, SIDE - shift)
            filled = np.concatenate((image[:, :190], image[:, [188, 187, 187, 197, 196]], image[:, 195:]), axis=1)
            expected = np.where((images[0] == 0).any(0), filled, image)[:, inside, inside]
            rows = [row for row in range(expected.shape[1]) if row + shift != 192]  # two pixels are as near there
            assert np.array_equal(found[:, rows].numpy(), expected[:, rows])
    masks = [read_band(tmp_path / name / "mask.tif") for name in ("whole", "part")]
    assert (masks[0][190:195] == NO_DATA).all() and (masks[0][:190] != NO_DATA).all()
    assert (masks[1] != NO_DATA).sum() < masks[1].size / 2


@pytest.mark.parametrize(
    ("system", "place", "area"),
    [(32633, (15, 50), (-10, 0, 179, 80)), (5514, (15, 50), (-10, 35, 40, 70)), (3413, (-45, 85), (-180, 60, 180, 90))],
)
def test_a_continent(tmp_path: Path, system: int, place: tuple[float, float], area: tuple[float, ...]) -> None:
    """The area may be larger than the part of the earth for which the raster's reference system is made."""
    x, y = Transformer.from_crs(4326, system, always_xy=True).transform(*place)
    grid = {"crs": CRS.from_epsg(system), "transform": from_origin(x, y, 2, 2)}
    first, second = (write_raster(tmp_path / f"{seed}.tif", noise(40, 50, seed=seed), **grid) for seed in (0, 1))
    rasters = RasterPair(first, second, aoi=layer(tmp_path / "continent.gpkg", shapely.box(*area), crs=4326))
    assert (rasters.height, rasters.width) == (40, 50) and rasters.rows(0, 40)[2].all()
    rasters.close()


@pytest.mark.parametrize("system", [32633, 4326])
def test_hair_thin_spikes(tmp_path: Path, system: int) -> None:
    """A polygon with a spike that is narrower than the rounding of its points keeps its area."""
    dataset = rasterio.open(pair(tmp_path, 0)[0])
    project = Transformer.from_crs(32633, system, always_xy=True).transform
    square, hole = np.array([(0, 0), (100, 0), (100, 100), (-90, 100), (0, 100 - 1e-10)]), shapely.box(20, 30, 60, 70)
    kept = []
    for angle in np.radians(np.arange(7, 360, 10)):
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

        def place(points: Any, turn: Any = turn) -> Any:
            return np.stack(project(*(points @ turn + (CENTRE.x, CENTRE.y)).T), axis=1)

        shape = shapely.transform(shapely.Polygon(square, [hole.exterior]), place)
        if shape.is_valid:
            parts, index = place_parts(np.array([shape], object), pyproj.CRS(system), dataset, "", name="--aoi")
            kept.append(shapely.area(parts).sum())
            assert not index.any()
    assert len(kept) > 10 and kept == pytest.approx([100 * 100 - 40 * 40] * len(kept), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "shapes", "crs", "said"),
    [
        ("far.gpkg", [shapely.box(0, 0, 1, 1)], 4326, "far.gpkg holds no pixel that both rasters cover"),
        ("tiny.gpkg", [CENTRE.buffer(0.1).buffer(0)], 32633, "tiny.gpkg holds no pixel that both rasters cover"),
        ("points.gpkg", [CENTRE], 32633, "points.gpkg holds no polygons"),
        ("empty.gpkg", [], 32633, "empty.gpkg holds no polygons"),
        ("nowhere.shp", [RING], None, "nowhere.shp has no coordinate reference system"),
    ],
)
def test_layers_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shapes: list[Any], crs: int | None, said: str
) -> None:
    monkeypatch.setattr("change.rasters.predict_pairs.start_logging", lambda process: None)
    aoi = layer(tmp_path / name, *shapes, crs=crs)
    with pytest.raises(UserError, match=f"^--aoi .*{said}") as error:
        main(arguments(*pair(tmp_path, 0), "-o", tmp_path / "out", "--aoi", aoi))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_files_that_are_refused(tmp_path: Path) -> None:
    """No file, no vector file, several layers, and rasters without a place."""
    paths = pair(tmp_path, 0)
    with pytest.raises(UserError, match=r"--aoi .*gone.gpkg: there is no such file"):
        main(arguments(*paths, "-o", tmp_path / "out", "--aoi", tmp_path / "gone.gpkg"))
    with pytest.raises(UserError, match=r"--aoi .*1.txt cannot be read as a vector file"):
        (tmp_path / "1.txt").write_text("polygons")
        RasterPair(*paths, aoi=tmp_path / "1.txt")
    for name in "ab":
        geopandas.GeoDataFrame(geometry=[RING], crs=32633).to_file(tmp_path / "two.gpkg", layer=name)
    with pytest.raises(UserError, match=r"--aoi .*two.gpkg has 2 layers, a, b: save the one to use"):
        RasterPair(*paths, aoi=tmp_path / "two.gpkg")
    placeless = write_raster(tmp_path / "placeless.tif", noise(32, 32), transform=Affine.identity())
    with pytest.raises(UserError, match=r"--aoi needs .*placeless.tif has a coordinate reference system but no place"):
        RasterPair(placeless, placeless, assume_aligned=True, aoi=layer(tmp_path / "ring.gpkg", RING))
    bare = write_raster(tmp_path / "bare.tif", noise(32, 32), crs=None)
    with pytest.raises(UserError, match=r"--aoi needs .*bare.tif has no coordinate reference system"):
        RasterPair(bare, bare, assume_aligned=True, aoi=layer(tmp_path / "ring.gpkg", RING))
