"""`python -m change area`: a sample of a tiny scene, its files, and the estimate from the filled-in sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import PIL.Image
import pytest
import rasterio
from rasterio.transform import Affine, from_origin

from change.common.errors import UserError
from change.evaluation.report import read_page
from change.rasters.area_result import as_text
from change.rasters.change_area import main
from change.rasters.pixel_areas import pixel_areas, sum_areas
from change.rasters.polygons import geodesic_areas
from change.rasters.scene import Settings, predict_rasters
from change.rasters.strata import CHANGE, NAMES, OUTSIDE, count_strata, draw_pixels
from tests.conftest import run_verb
from tests.rasters.drawn import GRID, UTM, WORLD, pixelwise, read_band, write_raster
from tests.rasters.test_scene import ABOUT

HEIGHT, WIDTH = 600, 90  # two strips of rows
SQUARES = [(20, 20, 15), (505, 40, 20), (300, 0, 10)]  # row, column, side; one lies across both strips
DEGREES = from_origin(14.5, 60.2, 2e-5, 2e-5)


def write_scene(folder: Path, crs: Any = UTM, transform: Affine = GRID) -> Path:
    """Predict a scene with `SQUARES` as changes and a margin without data on its right; return its folder."""
    first, second = np.full((2, 3, HEIGHT, WIDTH), 100, np.uint8)
    for row, column, side in SQUARES:
        second[1, row : row + side, column : column + side] = 250
    first[:, :, 80:] = 0
    before = write_raster(folder / "before.tif", first, crs, transform, nodata=0)
    after = write_raster(folder / "after.tif", second, crs, transform, nodata=0)
    out = folder / "out"
    out.mkdir()
    predict_rasters(before, after, out, predict=pixelwise, settings=Settings(0.5), about=ABOUT)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scene without a sample; copy it before a sample is drawn."""
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def drawn(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scene with a sample of 60 points without chips."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    shutil.copytree(finished, out)
    assert main([str(out), "--samples", "60", "--minimum", "20", "--chip", "0"]) == 0
    return out


def fill_in(out: Path, path: Path, **columns: Any) -> geopandas.GeoDataFrame:
    """Fill in what the mask says, replace `columns`, write the layer to `path`, and return it."""
    frame = geopandas.read_file(out / "area" / "area_sample.gpkg")
    levels = read_band(out / "mask.tif")
    frame["reference"] = np.where(levels[frame["row"], frame["column"]] == 1, "change", "No  Change")
    for name, values in columns.items():
        frame[name] = values
    frame.to_file(path, driver="GPKG")
    return frame


def estimate(out: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """Run the estimate; return area.json and what was printed."""
    capsys.readouterr()
    assert main([str(out), "--reference", str(path)]) == 0
    return json.loads((out / "area" / "area.json").read_text()), capsys.readouterr().out


# --- strata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [0, 2])
def test_strata(finished: Path, buffer: int) -> None:
    """The strata of strips are those of the whole mask, worked out pixel by pixel."""
    levels = read_band(finished / "mask.tif")
    padded = np.pad(levels == 1, buffer)
    side = range(2 * buffer + 1)
    near = np.any([padded[i : i + HEIGHT, j : j + WIDTH] for i in side for j in side], axis=0)
    expected = [(levels == 0) & ~near, levels == 1, (levels == 0) & near]
    strata = count_strata(finished / "mask.tif", buffer)
    assert strata.sizes == [int(mask.sum()) for mask in expected] and len(strata.counts) == 2
    rows, columns, kinds = draw_pixels(strata, strata.sizes, seed=0)
    for kind, mask in enumerate(expected):
        own = kinds == kind
        places = set(zip(rows[own].tolist(), columns[own].tolist(), strict=True))
        assert places == set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))


def test_every_pixel_is_equally_likely(tmp_path: Path) -> None:
    """Over 300 seeds, each pixel of a stratum is drawn as often as the others, and never twice in one sample."""
    levels = np.zeros((1, 4, 10), np.uint8)
    levels[0, :, 4:6], levels[0, 0, 0] = CHANGE, 255
    strata = count_strata(write_raster(tmp_path / "mask.tif", levels, nodata=255), 1)
    assert strata.sizes == [23, 8, 8] and len(NAMES) == OUTSIDE
    hits = np.zeros((4, 10))
    for seed in range(300):
        rows, columns, _ = draw_pixels(strata, [5, 2, 2], seed)
        assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == 9
        np.add.at(hits, (rows, columns), 1)
    assert hits[0, 0] == 0
    assert np.abs(hits[:, 4:6] / 300 - 2 / 8).max() < 0.1  # four standard errors
    rest = np.concatenate((hits[:, :3].ravel()[1:], hits[:, 7:].ravel()))
    assert np.abs(rest / 300 - 5 / 23).max() < 0.1


# --- areas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "transform"),
    [(UTM, GRID), (WORLD, DEGREES), (UTM, GRID * Affine.rotation(30)), (WORLD, from_origin(179.99, 60, 0.01, 0.01))],
)
def test_areas_are_geodesic(tmp_path: Path, crs: Any, transform: Affine) -> None:
    """Sums of pixels agree with the geodesic area of their outline, which pyproj computes."""
    mask = np.ones((40, 50), np.bool_)
    (found,) = sum_areas(crs, transform, first=0, masks=[mask])
    corners = [transform * corner for corner in ((0, 0), (50, 0), (50, 40), (0, 40))]
    shapely = pytest.importorskip("shapely")
    outline = shapely.segmentize(shapely.Polygon(corners), abs(transform.determinant) ** 0.5)
    (expected,) = geodesic_areas(np.array([shapely.MultiPolygon([outline])], object), crs, 1.0)
    assert found == pytest.approx(expected, rel=1e-5)
    rows, columns = (np.asarray(axis.ravel() + 0.5, np.float64) for axis in np.indices(mask.shape))
    assert pixel_areas(crs, transform, rows, columns).sum() == pytest.approx(found, rel=1e-6)


# --- the sample ----------------------------------------------------------------------------------------------------


def test_sample(finished: Path, tmp_path: Path) -> None:
    """The layer lies in the scene's system, its points in the pixels of their strata; chips show both dates."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {path.name for path in out.iterdir()}
    assert main([str(out), "--samples", "9", "--seed", "3", "--chip", "8"]) == 0
    assert {path.name for path in out.iterdir()} == before | {"area"}
    frame = geopandas.read_file(out / "area" / "area_sample.gpkg")
    with rasterio.open(out / "mask.tif") as dataset:
        assert frame.crs == dataset.crs
        at = [dataset.index(point.x, point.y) for point in frame.geometry]
        levels = dataset.read(1)
    assert at == list(zip(frame["row"], frame["column"], strict=True))
    assert frame["id"].tolist() == list(range(1, 10)) and frame["reference"].isna().all()
    assert frame["stratum"].value_counts().to_dict() == dict.fromkeys(NAMES, 3)
    assert all((levels[place] == 1) == (name == "change") for place, name in zip(at, frame["stratum"], strict=True))
    at_change = frame.index[frame["stratum"] == "change"][0]
    with PIL.Image.open(out / "area" / frame["chip"][at_change]) as image:
        chip = np.array(image)
    assert chip.shape == (384, 2 * 384 + 4, 3)
    middle = 384 * 9 // 16  # the centre of the pixel, which begins in the middle of eight
    assert chip[middle, middle].tolist() == [100] * 3 and chip[middle, 388 + middle].tolist() == [100, 250, 100]


def test_seed_and_sample_size(finished: Path, tmp_path: Path) -> None:
    """Every seed gives the same sample again; without --samples, the size follows from the wanted error."""
    found = []
    for name, options in (("a", ()), ("b", ()), ("c", ("--seed", "1")), ("d", ("--target_error", "0.005"))):
        shutil.copytree(finished, tmp_path / name)
        assert main([str(tmp_path / name), "--chip", "0", *options]) == 0
        found.append(json.loads((tmp_path / name / "area" / "area_sample.json").read_text()))
    assert found[0] == found[1] and found[0]["points"]["row"] != found[2]["points"]["row"]
    points = [sum(part["points"] for part in design["strata"]) for design in found]
    assert points[0] == points[2] < points[3]
    assert min(part["points"] for part in found[0]["strata"]) == 50


# --- the estimate --------------------------------------------------------------------------------------------------


def test_a_right_map(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If every reference agrees with the map, the estimate is the mapped area; what may be missed is reported."""
    fill_in(drawn, tmp_path / "filled.gpkg")
    result, text = estimate(drawn, tmp_path / "filled.gpkg", capsys)
    mapped = sum(side**2 for _, _, side in SQUARES) * 4 / 10_000
    assert result["area_ha"]["change"]["value"] == pytest.approx(mapped, rel=2e-3)  # the scale of UTM
    assert result["biased_pixel_count_ha"] == pytest.approx(result["area_ha"]["change"]["value"], rel=1e-4)
    assert result["overall_accuracy"]["value"] == 1 and len(result["notes"]) == 2
    assert "pixel count, biased" in text and "none of the 20 points in stratum buffer has changed" in text


def test_a_wrong_map(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the mapped change is none, and a quarter of the buffer is change: the shares follow by hand."""
    frame = fill_in(drawn, tmp_path / "filled.gpkg")
    reference = np.full(len(frame), "0", object)
    reference[np.flatnonzero(frame["stratum"] == "change")[:10]] = "CHANGE"
    reference[np.flatnonzero(frame["stratum"] == "buffer")[:5]] = " 1 "
    fill_in(drawn, tmp_path / "filled.gpkg", reference=reference)
    result, _ = estimate(drawn, tmp_path / "filled.gpkg", capsys)
    no_change, change, buffer = (part["pixels"] for part in result["strata"])
    pixels = change / 2 + buffer / 4
    share = pixels / (no_change + change + buffer)
    area = result["area_ha"]["change"]
    assert area["value"] == pytest.approx(share * result["compared_ha"], rel=1e-4)
    assert area["low"] < area["value"] < area["high"]
    assert result["users_accuracy"]["change"]["value"] == pytest.approx(0.5, rel=1e-4)
    assert result["producers_accuracy"]["change"]["value"] == pytest.approx(change / 2 / pixels, rel=1e-4)
    assert result["counts"] == [[35, 5], [10, 10]]


def test_report(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report keeps what it had and gets one section about the area, however often the estimate is repeated."""
    shutil.copytree(drawn, tmp_path / "out")
    report = tmp_path / "out" / "report.html"
    before = read_page(report)
    fill_in(drawn, tmp_path / "filled.gpkg")
    for _ in range(2):
        _, text = estimate(tmp_path / "out", tmp_path / "filled.gpkg", capsys)
    after = read_page(report)
    assert before and after
    area = after["result"]["scene"].pop("area")
    before["result"]["scene"].pop("area", None)
    assert after == before
    assert area["estimates"]["area of change"] in text and len(area["shares"]) == 2 == len(area["notes"])
    report.unlink()
    estimate(tmp_path / "out", tmp_path / "filled.gpkg", capsys)
    assert not report.exists()


def test_a_geographic_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pixels of degrees are measured on the ellipsoid; numbers, another system and a bare name are read."""
    out = write_scene(tmp_path, WORLD, DEGREES)
    assert main([str(out), "--samples", "30", "--chip", "0"]) == 0
    frame = fill_in(out, tmp_path / "filled.gpkg")
    numbers = (frame["stratum"] == "change").astype(int)
    fill_in(out, tmp_path / "filled.gpkg", reference=numbers)
    geopandas.read_file(tmp_path / "filled.gpkg").to_crs(32633).to_file(out / "area" / "mine.gpkg", driver="GPKG")
    result, _ = estimate(out, Path("mine.gpkg"), capsys)
    polygons = geopandas.read_file(out / "changes.gpkg")
    assert result["biased_pixel_count_ha"] * 10_000 == pytest.approx(polygons["area_m2"].sum(), rel=1e-4)
    assert result["area_ha"]["change"]["value"] == pytest.approx(result["biased_pixel_count_ha"], rel=1e-3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, ""), (np.nan, ""), ("  ", ""), ("No  Change", "no change"), (1.0, "1"), (True, "true")],
)
def test_values_as_text(value: Any, expected: str) -> None:
    assert as_text(value) == expected


# --- wrong input ---------------------------------------------------------------------------------------------------


def test_wrong_references(drawn: Path, tmp_path: Path) -> None:
    """Each fault of the layer is one line with the remedy."""
    path = tmp_path / "filled.gpkg"
    good = fill_in(drawn, path)
    right = good["reference"].to_numpy(object)
    gaps, typos = right.copy(), right.copy()
    gaps[[3, 8]], typos[4] = None, "maybe"
    moved = good.geometry.to_numpy().copy()
    moved[6] = moved[7]
    faults = [
        (good.assign(reference=gaps), "2 of 60 references are missing, ids 4, 9: fill in"),
        (good.assign(reference=typos), r"reference 'maybe' \(id 5\) is not known: use change or no change"),
        (good.drop(index=[0, 1]), "lacks the points 1, 2: keep"),
        (good.assign(id=[*range(1, 60), 99]), "lacks the points 60: keep"),
        (good.iloc[[*range(60), 0]], "has more than one point with the ids 1: keep"),
        (
            good.assign(id=range(1, 61)).iloc[[*range(60), 5]].assign(id=[*range(1, 61), 61]),
            "has added points 61: keep",
        ),
        (good.assign(sample="0123"), "belongs to another scene or seed"),
        (good.set_geometry(moved, crs=good.crs), "has moved points, ids 7: keep"),
        (good.drop(columns="reference"), "has no field reference: give"),
    ]
    for number, (frame, message) in enumerate(faults):
        frame.to_file(path := tmp_path / f"{number}.gpkg", driver="GPKG")
        with pytest.raises(UserError, match=message):
            main([str(drawn), "--reference", str(path)])


def test_wrong_scenes(finished: Path, drawn: Path, tmp_path: Path) -> None:
    """A folder without a scene or a sample, a second sample, and a mask that was predicted again."""
    for arguments, message in (
        ([tmp_path / "gone"], "no folder .*gone: give a folder"),
        ([tmp_path], "is not a finished scene: give a folder that python -m change predict wrote"),
        ([drawn, "--chip", "0"], "area exists, and a sample is not overwritten"),
        ([finished, "--reference", "x.gpkg"], "area_sample.json: draw a sample first"),
        ([drawn, "--reference", "x.gpkg"], "no file .*x.gpkg: give the filled-in"),
        ([drawn, "--reference", drawn / "mask.tif"], "mask.tif cannot be read as a vector file"),
        ([finished, "--samples", "5"], "--samples 5: choose 6 or more, 2 for each of 3 strata"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(argument) for argument in arguments])
    other = tmp_path / "other"
    shutil.copytree(drawn, other)
    (other / "mask.tif").write_bytes((finished / "probability.tif").read_bytes())
    with pytest.raises(UserError, match="has changed since"):
        main([str(other), "--reference", "area_sample.gpkg"])


def test_rasters_for_chips(finished: Path, tmp_path: Path) -> None:
    """Rasters that are missing or were replaced are reported before anything is written."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    metadata = json.loads((out / "metadata.json").read_text())
    for changed, message in (
        ({"before": "gone.tif"}, "gone.tif, from which .* is missing: run"),
        ({"width": 7}, "grid"),
    ):
        (out / "metadata.json").write_text(json.dumps(metadata | changed))
        with pytest.raises(UserError, match=message):
            main([str(out)])
    assert not (out / "area").exists()


def test_scenes_without_a_place(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"threshold": 0.5, "checkpoint": {}}')
    (tmp_path / "mask.png").touch()
    with pytest.raises(UserError, match="holds images without a place on earth: give"):
        main([str(tmp_path)])
    levels = np.zeros((1, 4, 4), np.uint8)
    write_raster(tmp_path / "mask.tif", levels, crs=None)
    with pytest.raises(UserError, match="has no coordinate reference system on earth: assign"):
        main([str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--buffer", "-1"), "--buffer -1: choose 0 to 64"),
        (("--target_error", "0"), "--target_error 0: choose a share"),
        (("--expected", "0.9,2,1"), "argument --expected: '0.9,2,1': give three numbers"),
        (("--reference", "x.gpkg", "--seed", "1"), "--seed does nothing with --reference: leave it out"),
    ],
)
def test_wrong_options(finished: Path, options: tuple[str, ...], message: str) -> None:
    found = run_verb("area", finished, *options)
    assert found.returncode == 2 and found.stderr.startswith(f"error: {message}") and found.stderr.count("\n") == 1
