"""`python -m change tiles`: labels right to the pixel, parts that lie apart, and wrong input."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import geopandas
import numpy as np
import PIL.Image
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from rasterio.transform import Affine, from_origin

import change.data.check
from change.common.errors import UserError
from change.common.images import image_hash
from change.data.sources import read_sources
from change.rasters.drawn_changes import read_changes
from change.rasters.raster import RasterPair
from change.rasters.tiles import main
from change.rasters.training_set import TileSettings, write_training_set
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, WORLD, noise, write_raster
from tests.rasters.test_area import layer

HEIGHT, WIDTH = 330, 400  # of the scene; tiles of 32 leave a rest in both directions
SIZE = 32
ROTATED = Affine.translation(EAST, NORTH) @ Affine.rotation(25) @ Affine.scale(2, -1.5)
DEGREES = from_origin(15, 45.15, 2.5e-5, 1.8e-5)  # pixels of about 2 m, in UTM zone 33 too


def texture(seed: int) -> NDArray[np.uint8]:
    """Draw smooth clouds (3, H, W) that do not repeat, so that `check` can recognise neighbours, and own noise."""
    clouds = np.asarray(cv2.GaussianBlur(np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3)), (0, 0), 4))
    clouds = clouds + 0.01 * np.random.default_rng(seed).normal(size=clouds.shape)
    levels = np.clip(128 + 50 * clouds / clouds.std(), 1, 255)
    return np.ascontiguousarray(levels.transpose(2, 0, 1), np.uint8)


def shapes(transform: Affine, count: int = 60) -> list[Any]:
    """Draw polygons on a grid: stars and rings, some across its border, some overlapping, the last of them outside."""
    draw = np.random.default_rng(7)
    found = []
    for number in range(count):
        angles = np.linspace(0, 2 * np.pi, 11, endpoint=False)
        reach = draw.uniform(1, 14, 11)
        x, y = draw.uniform(-5, WIDTH + 5), draw.uniform(-5, HEIGHT + 5)
        star = shapely.Polygon(np.stack((x + reach * np.cos(angles), y + reach * np.sin(angles)), 1))
        ring = shapely.Point(x, y).buffer(9).difference(shapely.Point(x, y).buffer(4.3))
        found.append(ring if number % 4 == 0 else star)
    found.append(shapely.box(WIDTH + 50, 10, WIDTH + 70, 30))
    return [shapely.transform(shape, lambda points: np.stack(transform @ points.T, 1)) for shape in found]


def centres_inside(polygons: Any, transform: Affine, system: Any) -> tuple[NDArray[np.bool_], NDArray[np.object_]]:
    """Test each pixel's centre in the polygons' reference system; return where it is inside, and the centres (H, W)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x, y = transform @ (columns + 0.5, rows + 0.5)
    x, y = Transformer.from_crs(system.to_wkt(), polygons.crs, always_xy=True).transform(x, y)
    inside = np.any([shapely.contains_xy(shape, x, y) for shape in polygons.geometry], axis=0)
    return inside, shapely.points(x, y)


def scene(folder: Path, *, crs: Any = UTM, transform: Affine = GRID, to: int | None = None) -> list[Path]:
    """Write two rasters and a layer of polygons, projected `to` another reference system."""
    paths = [write_raster(folder / f"{n}.tif", texture(n), crs=crs, transform=transform) for n in (1, 2)]
    frame = geopandas.GeoDataFrame(geometry=shapes(transform), crs=crs.to_wkt())
    (frame.to_crs(to) if to else frame).to_file(folder / "changes.gpkg")
    return [*paths, folder / "changes.gpkg"]


def make(folder: Path, paths: list[Path], **options: Any) -> dict[str, Any]:
    folder.mkdir()
    before, after, polygons = paths
    settings = TileSettings(**{"size": SIZE, **options})
    return write_training_set(before, after, polygons, folder, settings=settings)


def read_png(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("crs", "transform", "to"),
    [
        (UTM, GRID, None),
        (UTM, ROTATED, None),
        (WORLD, DEGREES, None),
        pytest.param(UTM, GRID, 3035, marks=pytest.mark.slow),
        pytest.param(UTM, ROTATED, 4326, marks=pytest.mark.slow),
        pytest.param(WORLD, DEGREES, 3857, marks=pytest.mark.slow),
    ],
)
def test_every_pixel(tmp_path: Path, crs: Any, transform: Affine, to: int | None) -> None:
    """Each label equals an independent test of each pixel's centre, whatever the systems of grid and polygons."""
    paths = scene(tmp_path, crs=crs, transform=transform, to=to)
    polygons = geopandas.read_file(paths[2])
    with closing(RasterPair(*paths[:2])) as pair:
        assert (pair.height, pair.width) == (HEIGHT, WIDTH)
        changes = read_changes(paths[2], pair)
        starts = [0, 1, 100, 203, HEIGHT]
        parts = [changes.label_rows(*ends, WIDTH) for ends in itertools.pairwise(starts)]
    expected, centres = centres_inside(polygons, transform, crs)
    wrong = np.concatenate(parts) != expected
    assert 0.05 < expected.mean() < 0.3 and wrong.sum() <= (10 if to else 0)
    outlines = shapely.union_all(polygons.geometry.boundary.to_numpy())
    rounded = 1e-8 if polygons.crs.is_geographic else 1e-3  # 1 mm: projections of centres and of outlines differ
    assert (shapely.distance(outlines, centres[wrong]) < rounded).all()
    assert changes.count == len(polygons) and changes.repaired == 0


def test_a_training_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Check every tile's pixels, its place, the sources, and the line; `check` finds neighbours but no leak."""
    paths = scene(tmp_path, crs=WORLD, transform=DEGREES, to=32633)
    expected, _ = centres_inside(geopandas.read_file(paths[2]), DEGREES, WORLD)
    data = tmp_path / "data"
    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("change.rasters.training_set.start_logging", lambda: None)
        assert main([*map(str, paths), "-o", str(data), "--size", str(SIZE), "--val", "0.25", "--seed", "1"]) == 0
    metadata = json.loads((data / "metadata.json").read_text())
    assert {path.name for path in data.iterdir()} == {"train", "val", "metadata.json"}
    before, after = texture(1).transpose(1, 2, 0), texture(2).transpose(1, 2, 0)
    places, labels = {}, []
    for part in ("train", "val"):
        places[part] = np.array(list(metadata["tiles"][part].values()))
        for name, (top, left) in metadata["tiles"][part].items():
            here = slice(top, top + SIZE), slice(left, left + SIZE)
            assert name == f"1_{top}_{left}"
            labels.append(read_png(data / part / "label" / f"{name}.png"))
            assert np.array_equal(labels[-1], expected[here] * np.uint8(255))
            assert np.array_equal(read_png(data / part / "A" / f"{name}.png"), before[here])
            assert np.array_equal(read_png(data / part / "B" / f"{name}.png"), after[here])
        files = [path.stem for kind in ("A", "B", "label") for path in (data / part / kind).iterdir()]
        assert sorted(files) == sorted(3 * list(metadata["tiles"][part]))
        hashes = image_hash(before), image_hash(after)
        assert read_sources(data / part) == dict.fromkeys(metadata["tiles"][part], hashes)
    apart = np.abs(places["train"][:, None] - places["val"][None]).max(2)
    assert apart.min() == 2 * SIZE
    counts, tiles = metadata["counts"], (HEIGHT // SIZE) * (WIDTH // SIZE)
    assert counts["train"] + counts["val"] + counts["gap"] == tiles == sum(map(len, metadata["tiles"].values()))
    assert metadata["pixels"] == {"labelled": len(labels) * SIZE**2, "changed": np.sum(np.array(labels) > 0)}
    west, north = DEGREES.c, DEGREES.f
    box = shapely.box(west, north - HEIGHT * 1.8e-5, west + WIDTH * 2.5e-5, north)
    pixel = abs(Geod(ellps="WGS84").geometry_area_perimeter(box)[0]) / (HEIGHT * WIDTH)
    assert metadata["hectares"]["labelled"] == pytest.approx(len(labels) * SIZE**2 * pixel / 1e4, rel=1e-3)
    assert metadata["hectares"]["changed"] == pytest.approx(metadata["pixels"]["changed"] * pixel / 1e4, rel=1e-3)
    line = f"{counts['train']} train and {counts['val']} val tiles of 32 x 32 pixels"
    drawn = f"{metadata['drawn']['used']} polygons used, {61 - metadata['drawn']['used']} outside the tiles"
    assert line in caplog.text and drawn in caplog.text and 30 < metadata["drawn"]["used"] < 60


@pytest.mark.slow
def test_check_is_clean(tmp_path: Path) -> None:
    """The project's own check finds neighbours within train, so it would see them across the parts as well."""
    make(tmp_path / "data", scene(tmp_path), size=64)
    assert change.data.check.main([str(tmp_path / "data"), f"--save_path={tmp_path / 'check'}"]) == 0
    result = json.loads((tmp_path / "check" / "check.json").read_text())
    assert {finding["rank"] for finding in result["findings"]} <= {"note"}
    assert any(finding["kind"] == "continued within a split" for finding in result["findings"])
    assert all(split["meeting_another_split"] == 0 for split in result["splits"].values())


def test_within_and_nodata(tmp_path: Path) -> None:
    """Only tiles whose pixels all lie in the area and hold data at both dates are used."""
    paths = scene(tmp_path)
    levels = texture(2)
    levels[:, 40, 50] = levels[:, 300:, :] = 0
    write_raster(paths[1], levels, nodata=0)
    area = shapely.box(EAST, NORTH - 2 * 300, EAST + 2 * 353, NORTH).difference(
        shapely.Point(EAST + 700, NORTH).buffer(9)
    )
    within = layer(tmp_path / "within.geojson", area, to=4326)
    metadata = make(tmp_path / "data", paths, within=within)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    usable = shapely.contains_xy(area, EAST + 2 * columns + 1, NORTH - 2 * rows - 1) & (levels > 0).all(0)
    fitting = [
        [top, left]
        for top in range(0, HEIGHT - SIZE + 1, SIZE)
        for left in range(0, WIDTH - SIZE + 1, SIZE)
        if usable[top : top + SIZE, left : left + SIZE].all()
    ]
    found = [place for part in metadata["tiles"].values() for place in part.values()]
    assert sorted(found) == fitting and len(fitting) == 9 * 11 - 2
    assert metadata["counts"]["without_data"] == 1 + 12 and metadata["counts"]["not_within"] == 1 + 9


@pytest.mark.parametrize("reading", [{}, {"bands": (3, 2, 1), "stretch": "5,95"}])
def test_what_predict_sees(tmp_path: Path, reading: dict[str, Any]) -> None:
    """Tiles hold what predict shows the network: 16 bits stretched, the second date warped, the bands in order."""
    grid = from_origin(EAST + 5, NORTH - 3, 2.3, 2.3)
    first = write_raster(tmp_path / "1.tif", texture(1).astype(np.uint16) * 20)
    second = write_raster(tmp_path / "2.tif", texture(2).astype(np.uint16) * 31, transform=grid)
    polygons = layer(tmp_path / "changes.shp", *shapes(GRID), to=3857)
    metadata = make(tmp_path / "data", [first, second, polygons], reading=reading)
    with closing(RasterPair(first, second, **reading)) as pair:
        images = [image[0].numpy() for image in pair.rows(0, pair.height)[:2]]
    assert metadata["look"]["after_is_warped"] and metadata["counts"]["train"] > 10
    for name, (top, left) in metadata["tiles"]["val"].items():
        for kind, image in zip("AB", images, strict=True):
            part = image[:, top : top + SIZE, left : left + SIZE].transpose(1, 2, 0)
            assert np.array_equal(read_png(tmp_path / "data" / "val" / kind / f"{name}.png"), part)


def test_layers(tmp_path: Path) -> None:
    """One of several layers is chosen by name, for the polygons and for the area."""
    paths = scene(tmp_path)
    several = tmp_path / "several.gpkg"
    geopandas.read_file(paths[2]).to_file(several, layer="drawn")
    geopandas.GeoDataFrame(geometry=[shapely.box(EAST, NORTH - 400, EAST + 400, NORTH)], crs=32633).to_file(
        several, layer="area"
    )
    named = {"layer": "drawn", "within": several, "within_layer": "area"}
    metadata = make(tmp_path / "data", [*paths[:2], several], **named)
    assert metadata["counts"]["train"] and metadata["layer"] == "drawn" and metadata["drawn"]["polygons"] == 61
    for number, (less, said) in enumerate(
        [
            ({"layer": ""}, "POLYGONS .* has 2 layers, drawn, area: choose one with --layer"),
            ({"within_layer": ""}, "--within .* has 2 layers, drawn, area: choose one with --within_layer"),
            ({"layer": "other"}, "POLYGONS .* has no layer other: choose one of drawn, area"),
        ]
    ):
        with pytest.raises(UserError, match=f"^{said}"):
            make(tmp_path / str(number), [*paths[:2], several], **{**named, **less})


BOW = shapely.Polygon([(EAST, NORTH), (EAST + 90, NORTH - 90), (EAST + 90, NORTH), (EAST, NORTH - 90)])


def test_odd_features(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Invalid outlines are repaired; points and features without geometry are left out. Both are reported."""
    paths = scene(tmp_path)
    odd = layer(tmp_path / "odd.gpkg", *shapes(GRID), BOW, shapely.Point(EAST + 9, NORTH - 9), None)
    metadata = make(tmp_path / "data", [*paths[:2], odd])
    assert metadata["drawn"]["polygons"] == 62 and metadata["drawn"]["repaired"] == 1
    assert "1 of 62 polygons had invalid outlines and were repaired" in caplog.text
    assert "2 of 64 features have no area and are left out" in caplog.text


FAR = shapely.box(EAST + 1e5, NORTH, EAST + 1e5 + 10, NORTH + 10)
SMALL = shapely.box(EAST + 330, NORTH - 340, EAST + 350, NORTH - 320)
REST = shapely.box(EAST, NORTH - 2 * HEIGHT, EAST + 50, NORTH - 2 * HEIGHT + 10)  # below the last row of tiles


@pytest.mark.parametrize(
    ("name", "drawn", "crs", "options", "said"),
    [
        ("far.gpkg", [FAR], 32633, {}, "POLYGONS .*far.gpkg lies outside the rasters: it covers 600000"),
        ("empty.gpkg", [], 32633, {}, "POLYGONS .*empty.gpkg is empty: save the polygons"),
        ("point.gpkg", [shapely.Point(EAST, NORTH)], 32633, {}, "POLYGONS .*point.gpkg holds no polygons: give"),
        ("bare.shp", [SMALL], None, {}, "POLYGONS .*bare.shp has no coordinate reference system: assign it"),
        ("rest.gpkg", [REST], 32633, {}, "none of the 120 tiles holds a changed pixel"),
        ("small.gpkg", [SMALL], 32633, {"size": 352}, "--size 352: no tile fits; both rasters cover 400 x 330 pixels"),
        ("small.gpkg", [SMALL], 32633, {"size": 160}, "4 tiles of --size 160 cannot be divided: train or val would"),
        ("small.gpkg", [SMALL], 32633, {"within": True}, "--size 32: no tile fits; .* 120 are not fully in --within"),
    ],
)
def test_wrong_polygons(
    tmp_path: Path, name: str, drawn: list[Any], crs: int | None, options: dict[str, Any], said: str
) -> None:
    paths = [*scene(tmp_path)[:2], layer(tmp_path / name, *drawn, crs=crs)]
    if options.get("within"):
        options = {"within": paths[2]}
    with pytest.raises(UserError, match=f"^{said}") as error:
        make(tmp_path / "data", paths, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "100"], "--size 100: choose a multiple of 32, from 32 to"),
        (["--val", "1"], "--val 1: choose a share above 0 and below 1"),
        (["--val", "nan"], "--val nan: choose a share above 0 and below 1"),
        (["--seed", "-1"], "--seed -1: choose 0 or more"),
        (["--within", "gone.gpkg"], "--within gone.gpkg: there is no such file"),
        (["--within_layer", "area"], "--within_layer area has no effect without --within"),
        (["-o", "."], "-o . exists, and nothing is overwritten: choose another folder"),
    ],
)
def test_wrong_values(tmp_path: Path, options: list[str], said: str) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"^{said}"):
        main([*(str(tmp_path / name) for name in "abc"), "-o", str(tmp_path / "data"), *options])
    with pytest.raises(UserError, match=r"POLYGONS .*gone: there is no such file"):
        main([*(str(tmp_path / name) for name in ("a", "b", "gone")), "-o", str(tmp_path / "data")])


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rasters that do not overlap, and a raster that ends early, leave no folder behind."""
    monkeypatch.setattr("change.rasters.training_set.start_logging", lambda: None)
    paths = scene(tmp_path)
    far = write_raster(tmp_path / "far.tif", noise(64, 64), transform=from_origin(EAST + 1e5, NORTH, 2, 2))
    there = set(tmp_path.iterdir())
    command = [str(paths[0]), str(far), str(paths[2]), "-o", str(tmp_path / "data")]
    with pytest.raises(UserError, match=r"^the rasters do not overlap: "):
        main(command)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(paths[1].read_bytes()[: paths[1].stat().st_size * 9 // 10])
    with pytest.raises(UserError, match=r"cut.tif cannot be read .*: the file is damaged or incomplete"):
        main([str(paths[0]), str(cut), str(paths[2]), "-o", str(tmp_path / "data"), "--size", "32"])
    assert {path for path in tmp_path.iterdir() if path.suffix != ".lock"} == there | {cut}
