"""`python -m change propose`: which tiles are chosen, that `tiles` takes exactly these, the layers, and wrong input."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.transform import Affine

import change.rasters.tiles
from change.common.errors import UserError
from change.rasters.predict import main as predict
from change.rasters.propose import main
from change.rasters.propose_tiles import Candidates, choose_tiles, measure_tiles
from change.rasters.scene import Settings, predict_rasters
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, WORLD, noise, pixelwise, read_band, write_raster
from tests.rasters.test_area import layer
from tests.rasters.test_scene import ABOUT
from tests.rasters.test_training_set import DEGREES, HEIGHT, ROTATED, WIDTH, read_png, texture

SIZE = 32
THRESHOLD = 0.6


@pytest.fixture(autouse=True)
def _loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the handlers of the root logger to pytest."""
    for module in ("propose_files", "training_set"):
        monkeypatch.setattr(f"change.rasters.{module}.start_logging", lambda: None)


def write_scene(folder: Path, crs: Any = UTM, transform: Affine = GRID, **settings: Any) -> Path:
    """Predict a scene of smooth changes with a hole without data, from rasters with odd names; return its folder."""
    before, after = texture(1), texture(2)
    after[:, 100:103, 200:210] = 0
    paths = [
        write_raster(folder / f"{name}.tif", levels, crs, transform, nodata=0)
        for name, levels in (("be & <fore>", before), ("after", after))
    ]
    return run_predict(paths, folder / "out", **{"min_area": 0, **settings})


def run_predict(paths: list[Path], out: Path, threshold: float = THRESHOLD, **settings: Any) -> Path:
    """Predict a scene pixel by pixel from two rasters; return its folder."""
    before, after = paths
    out.mkdir()
    predict_rasters(before, after, out, predict=pixelwise, settings=Settings(threshold, **settings), about=ABOUT)
    return out


def propose(out: Path, *options: object) -> tuple[Any, Any]:
    """Propose tiles of 32 x 32 pixels; return the layers of tiles and of changes."""
    assert main([str(out), "--size", str(SIZE), *map(str, options)]) == 0
    layers = out / "propose" / "propose.gpkg"
    return geopandas.read_file(layers, layer="tiles"), geopandas.read_file(layers, layer="changes")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scene without a proposal; copy it before tiles are proposed."""
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def proposed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scene with twelve proposed tiles."""
    out = tmp_path_factory.mktemp("proposed") / "out"
    shutil.copytree(finished, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("change.rasters.propose_files.start_logging", lambda: None)
        propose(out, "-n", 12)
    return out


# --- measuring and choosing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "left", "size"), [(0, 0, 32), (40, 7, 32), (0, 0, 544)])
def test_measures(tmp_path: Path, top: int, left: int, size: int) -> None:
    """Each complete tile's means follow from its pixels one by one; tiles lie at multiples of the size."""
    levels = np.random.default_rng(0).integers(0, 255, (600, 1200), np.uint8)
    levels[300, 20] = 255
    path = write_raster(tmp_path / "probability.tif", levels[None], nodata=255)
    found = measure_tiles(path, size=size, top=top, left=left, threshold=0.25)
    expected: list[tuple[float, ...]] = []
    for row, column in itertools.product(range(0, top + 600, size), range(0, left + 1200, size)):
        rows, columns = slice(row - top, row - top + size), slice(column - left, column - left + size)
        inside = row >= top and column >= left and rows.stop <= 600 and columns.stop <= 1200
        if inside and levels[rows, columns].max() < 255:
            pixels = levels[rows, columns] / 254
            unsure = [p / 0.25 if p <= 0.25 else (1 - p) / 0.75 for p in pixels.ravel()]
            sure = [max(0.0, (p - 0.25) / 0.75) for p in pixels.ravel()]
            means = float(pixels.mean()), float(np.mean(unsure)), float(np.mean(sure))
            expected.append((row // size, column // size, *means))
    own = np.column_stack((found.places, found.mean, found.uncertainty, found.change))
    assert np.allclose(own, np.array(expected), atol=1e-6) and 0 < len(own) < 600 * 1200 / size**2


@pytest.mark.parametrize("threshold", [0.0, 0.999])
def test_extreme_thresholds(tmp_path: Path, threshold: float) -> None:
    """A threshold of 0 is no division by zero; uncertainty stays between 0 and 1."""
    levels = np.arange(32 * 32, dtype=np.uint16).reshape(1, 32, 32) % 255
    path = write_raster(tmp_path / "probability.tif", levels.astype(np.uint8), nodata=255)
    found = measure_tiles(path, size=32, top=0, left=0, threshold=threshold)
    assert 0 < found.uncertainty[0] < 1 and np.isfinite(found.change[0])


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A scene of many rows is read in strips: its pixels are never all in memory."""
    path = write_raster(tmp_path / "probability.tif", np.ones((1, 60_000, 64), np.uint8), nodata=255)
    tracemalloc.start()
    try:
        found = measure_tiles(path, size=64, top=0, left=0, threshold=0.5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.places) == 60_000 // 64 and peak < 60_000 * 64 / 3


def candidates(height: int, width: int, changed: float = 1.0) -> Candidates:
    """Make up the measures of all tiles of a scene, a share of which shows change."""
    draw = np.random.default_rng(5)
    places = np.stack(np.divmod(np.arange(height * width), width), axis=1)
    values = draw.random((3, height * width))
    return Candidates(places, values[0], values[1], np.where(draw.random(height * width) < changed, values[2], 0))


def gaps(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distance of each tile to the nearest other one, counted in tiles: 1 if they touch."""
    apart = np.abs(places[:, None] - places[None]).max(axis=2)
    np.fill_diagonal(apart, 10**6)
    return np.asarray(apart.min(axis=1), np.int64)


@pytest.mark.parametrize("seed", range(3))
def test_choice(seed: int) -> None:
    """A third for each reason, apart from each other; the first ones are the most extreme of the scene."""
    every = candidates(30, 40)
    chosen = choose_tiles(every, 30, seed)
    numbers = np.array([choice.number for choice in chosen])
    assert [choice.why for choice in chosen] == ["unsure", "change", "random"] * 10
    assert gaps(every.places[numbers]).min() >= 4  # at random, some of 30 tiles would touch
    assert chosen[0].number == every.uncertainty.argmax()
    mean = every.uncertainty[numbers[0::3]].mean(), every.change[numbers[1::3]].mean()
    assert min(mean) > 0.85 > 0.7 > every.change[numbers[2::3]].mean()
    assert chosen == choose_tiles(every, 30, seed) != choose_tiles(every, 30, seed + 3)


def test_as_many_as_said() -> None:
    """If too few tiles fit, as many are returned as are found when just these are asked for; none touch."""
    every = candidates(9, 11)
    most = choose_tiles(every, 1000, 0)
    assert 20 <= len(most) <= 5 * 6
    for count in range(1, len(most) + 1):
        chosen = choose_tiles(every, count, 0)
        assert len(chosen) == count
        assert count == 1 or gaps(every.places[[choice.number for choice in chosen]]).min() >= 2
    assert len(choose_tiles(every, len(most) + 1, 0)) == len(most)


def test_little_change() -> None:
    """If few tiles show change, the others are unsure or random; no tile without change counts as change."""
    every = candidates(20, 20, changed=0.01)
    chosen = choose_tiles(every, 30, 0)
    shown = [every.change[choice.number] > 0 for choice in chosen if choice.why == "change"]
    assert len(chosen) == 30 and shown and all(shown) and len(shown) < 10
    assert choose_tiles(candidates(0, 0), 5, 0) == []


# --- the files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "transform", "aoi"),
    [
        (UTM, GRID, None),
        (UTM, ROTATED, None),
        pytest.param(WORLD, DEGREES, None, marks=pytest.mark.slow),
        (UTM, GRID, shapely.box(EAST + 330, NORTH - 650, EAST + 790, NORTH - 330)),
    ],
)
def test_tiles_takes_exactly_these(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, crs: Any, transform: Affine, aoi: Any
) -> None:
    """The command that propose prints takes the proposed tiles; uncorrected, their labels are the predicted mask."""
    area = None if aoi is None else layer(tmp_path / "aoi.gpkg", aoi)
    out = write_scene(tmp_path, crs, transform, aoi=area)
    caplog.set_level("INFO")
    tiles, changes = propose(out, "-n", 4 if aoi else 12)
    command = shlex.split(caplog.messages[-1])
    assert command[:4] == ["python", "-m", "change", "tiles"] and command[-2:] == ["-o", "DATA"]
    data = tmp_path / "data"
    assert change.rasters.tiles.main([*command[4:-1], str(data), "--val", "0.5"]) == 0
    metadata = json.loads((data / "metadata.json").read_text())
    assert metadata["counts"]["gap"] == 0  # no tile is lost between train and val
    taken = [place for part in metadata["tiles"].values() for place in part.values()]
    assert sorted(taken) == sorted(map(list, zip(tiles["row"], tiles["column"], strict=True)))
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    with rasterio.open(out / "mask.tif") as dataset:
        left, top = (round(value) for value in ~transform @ (dataset.transform.c, dataset.transform.f))
        mask[top : top + dataset.height, left : left + dataset.width] = dataset.read(1)
    for part in ("train", "val"):
        for name, (row, column) in metadata["tiles"][part].items():
            expected = mask[row : row + SIZE, column : column + SIZE]
            assert np.array_equal(read_png(data / part / "label" / f"{name}.png"), expected * 255)
    assert (tiles["why"] == "change").sum() == len(tiles) // 3 and len(changes) > 3


def test_the_layers(finished: Path, proposed: Path) -> None:
    """Tiles are complete, apart and not done; each tile's polygons are the predicted pixels in it, in single parts."""
    tiles, changes = (geopandas.read_file(proposed / "propose" / "propose.gpkg", layer=n) for n in ("tiles", "changes"))
    assert list(tiles.columns[:-1]) == ["tile", "why", "mean_probability", "uncertainty", "row", "column", "done"]
    assert tiles["done"].isna().all() and tiles["tile"].tolist() == list(range(1, 13))
    assert tiles["why"].value_counts().to_dict() == {"unsure": 4, "change": 4, "random": 4}
    places = tiles[["row", "column"]].to_numpy()
    assert (places % SIZE == 0).all() and gaps(places // SIZE).min() >= 2
    levels, mask = read_band(finished / "probability.tif"), read_band(finished / "mask.tif")
    predicted = geopandas.read_file(finished / "changes.gpkg").set_index("id")
    with rasterio.open(finished / "mask.tif") as dataset:
        pixel = abs(dataset.transform.determinant)
        assert tiles.crs == changes.crs == dataset.crs
    for tile in tiles.itertuples():
        here = slice(tile.row, tile.row + SIZE), slice(tile.column, tile.column + SIZE)
        assert tile.geometry.area == pytest.approx(SIZE**2 * pixel)
        assert levels[here].max() < 255 and tile.mean_probability == pytest.approx(levels[here].mean() / 254)
        own = changes[changes["tile"] == tile.tile]
        assert own.area.sum() == pytest.approx((mask[here] == 1).sum() * pixel)
        assert own.within(tile.geometry).all() and (own.geometry.count_geometries() == 1).all()
    assert (changes.geom_type == "MultiPolygon").all() and len(changes) > 10
    first = changes.iloc[0]
    assert first["mean_probability"] == predicted["mean_probability"][first["id"]]
    assert predicted.geometry[first["id"]].contains(first.geometry.representative_point())


def test_the_seed(finished: Path, tmp_path: Path) -> None:
    """The same seed writes the same layers and project; another one draws other tiles at random."""
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        shutil.copytree(finished, tmp_path / name)
        for raster in finished.parent.glob("*.tif"):
            shutil.copy(raster, tmp_path)
        tiles, changes = propose(tmp_path / name, "-n", 12, "--seed", seed)
        project = (tmp_path / name / "propose" / "propose.qgs").read_text()
        found.append((tiles.to_json(), changes.to_json(), project, tiles.loc[tiles["why"] == "random", "row"].tolist()))
    assert found[0] == found[1] and found[0][3] != found[2][3]


def test_no_polygons_in_the_tiles(tmp_path: Path) -> None:
    """Change that lies in no complete tile leaves an empty layer, which has its fields and can be edited."""
    levels = np.full((3, 110, 110), 50, np.uint8)
    levels[:, 100:, 100:] = 250
    paths = [write_raster(tmp_path / f"{name}.tif", levels) for name in "ab"]
    tiles, changes = propose(run_predict(paths, tmp_path / "out"), "-n", 3)
    assert len(tiles) == 3 and "change" not in set(tiles["why"])
    assert not len(changes) and list(changes.columns) == ["tile", "id", "mean_probability", "geometry"]


def test_another_place_in_qgis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With --assume_aligned, a second raster whose file gives another place is reported; the tiles are on the first."""
    paths = [write_raster(tmp_path / "1.tif", texture(1)), write_raster(tmp_path / "2.tif", texture(2), crs=None)]
    tiles, _ = propose(run_predict(paths, tmp_path / "out", assume_aligned=True), "-n", 4)
    assert re.search(r"--assume_aligned: QGIS shows .*2\.tif where its file says", caplog.text)
    assert tiles.crs == UTM and tiles.geometry.iloc[0].bounds[0] == EAST + 2 * tiles["column"].iloc[0]


def test_options_of_the_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The command reads the rasters as predict did."""
    out = write_scene(tmp_path, bands=(3, 2, 1), stretch="5,95", alpha="no", assume_aligned=True)
    caplog.set_level("INFO")
    propose(out, "-n", 4)
    command = shlex.split(caplog.messages[-1])[4:]
    given = change.rasters.tiles.parse_arguments([*command[:-1], str(tmp_path / "data")])
    assert given.reading == {"bands": (3, 2, 1), "stretch": "5,95", "alpha": "no", "assume_aligned": True}


# --- wrong input ---------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(proposed: Path) -> None:
    """A second proposal and predict --overwrite leave the labels alone."""
    content = {path: path.read_bytes() for path in (proposed / "propose").iterdir()}
    with pytest.raises(UserError, match="propose exists, and labels are not overwritten: move it away first"):
        main([str(proposed), "--size", str(SIZE)])
    metadata = json.loads((proposed / "metadata.json").read_text())
    with pytest.raises(UserError, match="holds other files beside a result of this program: propose; move them"):
        predict([metadata["before"], metadata["after"], "-o", str(proposed), "--overwrite", "--device", "cpu"])
    assert {path: path.read_bytes() for path in (proposed / "propose").iterdir()} == content


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-n", "0"], "-n 0: choose 1 to 10000"),
        (["--size", "100"], "--size 100: choose a multiple of 32, from 32 to 4096"),
        (["--seed", "-1"], "--seed -1: choose 0 or more"),
        (["--size", "352"], "--size 352: no tile lies fully in the predicted area of .*: choose a smaller --size"),
        (
            ["-n", "99", "--size", "64"],
            r"-n 99: only (\d+) tiles of 64 x 64 pixels of .* do not touch each other: choose -n \1 or fewer",
        ),
    ],
)
def test_wrong_values(finished: Path, options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}") as error:
        main([str(finished), *options])
    assert "\n" not in str(error.value) and not (finished / "propose").exists()


def test_the_number_that_fits(finished: Path, tmp_path: Path) -> None:
    """The number that the error names can be chosen."""
    with pytest.raises(UserError, match="only") as error:
        main([str(finished), "-n", "99", "--size", "64"])
    found = re.search(r"choose -n (\d+)", str(error.value))
    assert found
    shutil.copytree(finished, tmp_path / "out")
    for raster in finished.parent.glob("*.tif"):
        shutil.copy(raster, tmp_path)
    tiles, _ = propose(tmp_path / "out", "-n", found[1], "--size", 64)
    assert len(tiles) == int(found[1]) > 4


def test_wrong_scenes(finished: Path, tmp_path: Path) -> None:
    """A missing, unfinished or empty result, and rasters that are gone or have another grid: one line each."""
    with pytest.raises(UserError, match=r"^no folder .*gone: give a folder that python -m change predict wrote"):
        main([str(tmp_path / "gone")])
    with pytest.raises(UserError, match="is not a finished scene: give a folder"):
        main([str(tmp_path)])
    metadata = json.loads((finished / "metadata.json").read_text())
    before = Path(metadata["before"])
    moved = write_raster(tmp_path / "moved.tif", noise(HEIGHT, WIDTH), transform=GRID @ Affine.translation(0.5, 0))
    small = write_raster(tmp_path / "small.tif", noise(64, 64))
    faults: list[tuple[dict[str, Any], str, str]] = [
        ({}, "metadata.json", "is not a finished scene: give a folder"),
        ({}, "probability.tif", "lacks probability.tif: give a folder"),
        ({}, "changes.gpkg", "lacks changes.gpkg: predict again with --vectors gpkg"),
        ({"pixels": {"data": 9, "changed": 0}}, "", "no change was predicted, so there is nothing to correct"),
        ({"before": str(tmp_path / "none.tif")}, "", "none.tif, from which .* was predicted, is missing"),
        ({"before": str(moved)}, "", "have another grid than .*: predict again, and then propose"),
        ({"before": str(small)}, "", "have another grid than .*: predict again, and then propose"),
        ({"after": str(small)}, "", "have another grid than .*: predict again, and then propose"),
    ]
    for number, (entries, removed, said) in enumerate(faults):
        out = tmp_path / str(number)
        shutil.copytree(finished, out)
        (out / "metadata.json").write_text(json.dumps({**metadata, **entries}))
        if removed:
            (out / removed).unlink()
        with pytest.raises(UserError, match=said) as error:
            main([str(out), "--size", str(SIZE), "-n", "4"])
        assert "\n" not in str(error.value) and not (out / "propose").exists()
    assert before.is_file()


def test_scenes_without_a_place(tmp_path: Path) -> None:
    """Rasters without a reference system, and images, have no place on earth."""
    paths = [write_raster(tmp_path / f"{seed}.tif", noise(64, 64, seed=seed), crs=None) for seed in (1, 2)]
    run_predict(paths, tmp_path / "out", 0.1, assume_aligned=True)
    with pytest.raises(UserError, match="out has no coordinate reference system on earth: assign one"):
        main([str(tmp_path / "out")])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "metadata.json").write_text('{"threshold": 0.5, "checkpoint": {}}')
    (tmp_path / "pictures" / "mask.png").touch()
    with pytest.raises(UserError, match="pictures holds images without a place on earth: give a folder"):
        main([str(tmp_path / "pictures")])
