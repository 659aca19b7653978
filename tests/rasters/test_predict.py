"""`python -m change predict`: scenes in tiles to rasters and polygons, lists of pairs, and nothing half-written."""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import geopandas
import numpy as np
import PIL.Image
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform_bounds
from shapely import count_coordinates
from torch import Tensor

from change.common.errors import UserError
from change.common.files import write_folder
from change.rasters.polygons import Numbering, change_polygons
from change.rasters.predict import find_jobs, main
from change.rasters.raster import RasterPair
from change.rasters.scene import HIGHEST, NO_DATA, Settings, predict_rasters
from tests.conftest import REPOSITORY, draw_pair, run_verb, verb
from tests.rasters.test_raster import EAST, GRID, NORTH, UTM, WORLD, noise, write_raster
from tests.test_quick_start import CHECKPOINT, SCENES

ABOUT: dict[str, Any] = {"precision": "float32", "checkpoint": {}}


def pixelwise(before: Tensor, after: Tensor) -> Tensor:
    """Depends on the pixel alone."""
    return before[:, :1].float() / 510 + after[:, 1:2].float() / 510


def scene(folder: Path, height: int = 96, width: int = 128) -> list[Path]:
    """Two georeferenced rasters on one grid."""
    before, after, _ = draw_pair(np.random.default_rng(1), width, height)
    folder.mkdir(exist_ok=True)
    return [
        write_raster(folder / f"{name}.tif", image.transpose(2, 0, 1).copy())
        for name, image in (("before", before), ("after", after))
    ]


def arguments(*given: object) -> list[str]:
    options = ["--checkpoint_path", CHECKPOINT, "--device", "cpu", "--amp", "off", "--tile", "64", "--overlap", "16"]
    return [str(argument) for argument in (*given, *options)]


def values(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with rasterio.open(path) as dataset:
        levels: np.ndarray[Any, np.dtype[np.uint8]] = dataset.read(1)
    return levels


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (32, 0), (512, 128)])
def test_a_pixelwise_network_passes_bit_for_bit(tmp_path: Path, tile: int, overlap: int) -> None:
    """Through the rows, the tiles, their blending and the files; where there is no data, none is claimed."""
    first, second = noise(150, 210, seed=1), noise(150, 210, seed=2)
    first[:, 20:40, :70] = 0
    paths = write_raster(tmp_path / "1.tif", first, nodata=0), write_raster(tmp_path / "2.tif", second)
    (tmp_path / "out").mkdir()
    settings = Settings(0.5, tile, overlap, batch=2, vectors="none")
    predict_rasters(*paths, tmp_path / "out", pixelwise, settings, ABOUT, shown=False)
    expected = pixelwise(*(torch.from_numpy(image)[None] for image in (first, second)))[0, 0].numpy()
    data = first.any(0)
    levels, mask = (values(tmp_path / "out" / f"{name}.tif") for name in ("probability", "mask"))
    assert np.array_equal(levels, np.where(data, (expected * HIGHEST + 0.5).astype(np.uint8), NO_DATA))
    assert np.array_equal(mask, np.where(data, expected > 0.5, NO_DATA))


def test_rasters(tmp_path: Path) -> None:
    """Every file of a scene: where it lies, what it holds, and what the others say of it."""
    out = tmp_path / "out"
    pair = scene(tmp_path / "in")
    assert main(arguments(*pair, "-o", out)) == 0
    names = {"probability.tif", "mask.tif", "changes.gpkg", "changes.qml", "preview.png", "report.html"}
    assert {path.name for path in out.iterdir()} == names | {"metadata.json"}
    metadata = json.loads((out / "metadata.json").read_text())
    with rasterio.open(out / "mask.tif") as mask, rasterio.open(out / "probability.tif") as probability:
        assert mask.crs == UTM and mask.transform == GRID and mask.nodata == NO_DATA
        assert mask.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and probability.scales == (1 / HIGHEST,)
        changed, levels = mask.read(1) == 1, probability.read(1)
        assert json.loads(mask.tags()["PRX_CHANGE"])["checkpoint"]["sha256"] == metadata["checkpoint"]["sha256"]
    assert changed.any() and (levels[changed] >= HIGHEST // 2).all() and (levels[~changed] <= HIGHEST // 2).all()
    assert metadata["pixels"] == {"data": changed.size, "changed": int(changed.sum())}
    assert f"Change from {pair[0].stem} to {pair[1].stem}" in (out / "report.html").read_text()
    frame = geopandas.read_file(out / "changes.gpkg")
    assert frame.crs == UTM and frame["area_m2"].sum() == pytest.approx(4 * changed.sum(), rel=0.01)
    weighted = (frame["mean_probability"] * frame["area_m2"]).sum() / frame["area_m2"].sum()
    assert weighted == pytest.approx(levels[changed].mean() / HIGHEST, abs=0.002)
    assert frame["max_probability"].max() == levels.max() / HIGHEST


def polygons(folder: Path, changed: NDArray[np.uint8], levels: NDArray[np.uint8], grid: Affine, crs: CRS) -> Any:
    """Of a mask and a probability: a function of the highest level, the least area and by how much to simplify."""
    mask = write_raster(folder / "mask.tif", changed[None], crs, grid, nodata=NO_DATA)
    height, width = changed.shape
    numbering = Numbering(folder / "numbers.tif", {"height": height, "width": width, "crs": crs, "transform": grid})
    for row in range(0, height, 8):
        numbering.add(changed[row : row + 8], levels[row : row + 8])
    return functools.partial(change_polygons, numbering.path, mask, numbering.finished())


def test_polygons_in_degrees(tmp_path: Path) -> None:
    """A square of 0.01 degrees at 60 degrees north: its area by the formula of the sphere; a hole and a corner."""
    changed = np.zeros((40, 60), np.uint8)
    changed[10:20, 10:20], changed[13:15, 13:15], changed[20, 20], changed[35, 50] = 1, 0, 1, 1
    changed[30:33, 3:9] = NO_DATA
    of = polygons(tmp_path, changed, changed * 100, from_origin(10, 60, 0.001, 0.001), WORLD)
    frame = of(200, 0, 0)
    assert len(frame) == 2 and frame["mean_probability"].tolist() == [0.5, 0.5]
    pixel = (np.pi / 180 * 0.001 * 6_371_000) ** 2 * np.cos(np.radians(59.985))
    assert frame["area_m2"].tolist() == pytest.approx([97 * pixel, pixel], rel=0.01)
    assert len(of(1, 10 * pixel, 0)) == 1
    simpler = of(1, 10 * pixel, 1.5)
    assert count_coordinates(simpler.geometry[0]) < count_coordinates(frame.geometry[0])


def test_changes_across_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at three rows at a time, changes are those of the whole; their outlines are valid, areas add up."""
    monkeypatch.setattr("change.rasters.polygons.ROWS", 3)
    rng = np.random.default_rng(0)
    changed = (rng.random((31, 40)) < 0.35).astype(np.uint8)
    levels = rng.integers(100, 255, changed.shape).astype(np.uint8)
    of = polygons(tmp_path, changed, levels, GRID, UTM)
    found, whole = cv2.connectedComponents(changed, connectivity=8)
    numbers = values(tmp_path / "numbers.tif")
    assert len({*zip(whole.flat, numbers.flat, strict=True)}) == found == len(np.unique(numbers))
    changes = of.args[2]
    for number in range(1, found):
        rows, columns = np.nonzero(numbers == number)
        expected = len(rows), levels[rows, columns].sum(), np.max(levels[rows, columns]), rows.sum(), columns.sum()
        fields = changes.pixels, changes.total, changes.highest, changes.rows, changes.columns
        assert tuple(field[number] for field in fields) == expected
    frame = of(254, 0, 0)
    assert len(frame) == found - 1 and frame.is_valid.all()
    assert frame["area_m2"].sum() == pytest.approx(4 * changed.sum(), rel=0.002)


def test_lists(tmp_path: Path) -> None:
    """Several pairs by several processes; once more, what is there is skipped and what failed is tried again."""
    scene(tmp_path / "a", 64, 64)
    scene(tmp_path / "b", 64, 80)
    lines = ["a/before.tif\ta/after.tif\tone", "b/before.tif\tb/after.tif\ttwo", "a/before.tif\tnowhere.tif\tthree"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    given = arguments("predict", tmp_path / "pairs.txt", "-o", tmp_path / "out")
    result = run_verb(
        *given, processes=2
    )  # of which the second has one pair, and the first goes on where its own fails
    assert result.returncode != 0 and "1 of 3 pairs failed: three" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "two"]
    begun = (tmp_path / "out" / "one" / "mask.tif").stat().st_mtime_ns
    (tmp_path / "pairs.txt").write_text("\n".join([*lines[:2], "b/after.tif\tb/before.tif\tthree"]))
    assert main(given[1:]) == 0
    assert (tmp_path / "out" / "three" / "mask.tif").is_file()
    assert (tmp_path / "out" / "one" / "mask.tif").stat().st_mtime_ns == begun


def test_folders_of_images(tmp_path: Path) -> None:
    for index in range(2):
        for date, image in zip("AB", draw_pair(np.random.default_rng(index), 90, 70)[:2], strict=True):
            (tmp_path / date).mkdir(exist_ok=True)
            PIL.Image.fromarray(image).save(tmp_path / date / f"{index}.png")
    assert main(arguments(tmp_path / "A", tmp_path / "B", "-o", tmp_path / "out")) == 0
    for index in range(2):
        folder = tmp_path / "out" / str(index)
        mask, probability = (np.asarray(PIL.Image.open(folder / f"{name}.png")) for name in ("mask", "probability"))
        assert mask.shape == probability.shape == (70, 90)
        assert ((mask == 255) == (probability >= 128)).mean() > 0.999
        assert json.loads((folder / "metadata.json").read_text())["pixels"]["changed"] == (mask == 255).sum()
    (tmp_path / "B" / "._1.png").write_bytes(b"of another system")
    assert len(find_jobs(tmp_path / "A", tmp_path / "B", tmp_path / "out")) == 2
    (tmp_path / "B" / "1.png").rename(tmp_path / "B" / "0.jpg")
    with pytest.raises(UserError, match=r"0.jpg and 0.png: keep one"):
        find_jobs(tmp_path / "A", tmp_path / "B", tmp_path / "out")
    (tmp_path / "B" / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"without a partner .*: 1"):
        find_jobs(tmp_path / "A", tmp_path / "B", tmp_path / "out")


def test_text_files_of_pairs(tmp_path: Path) -> None:
    """As spreadsheets write them, too."""
    (tmp_path / "pairs.csv").write_text("a.tif,b.tif,one\n\nc.tif,d.tif,\n", encoding="utf-8-sig")
    (tmp_path / "pairs.txt").write_text("a, b.tif\tc.tif\td e\n")
    found = {(j.before.name, j.after.name, j.folder.name) for j in find_jobs(tmp_path / "pairs.csv", None, tmp_path)}
    assert found == {("a.tif", "b.tif", "one"), ("c.tif", "d.tif", "c")}
    (job,) = find_jobs(tmp_path / "pairs.txt", None, tmp_path)
    assert (job.before.name, job.folder.name) == ("a, b.tif", "d e")
    for line in ("a.tif\tb.tif\t..\n", "a\0.tif\tb.tif\n", ".tif\tb.tif\t\n"):
        (tmp_path / "pairs.txt").write_text(line)
        with pytest.raises(UserError, match=r"line 1: .* is no name of a folder"):
            find_jobs(tmp_path / "pairs.txt", None, tmp_path)


def test_images_of_other_kinds(tmp_path: Path) -> None:
    """Where either one is transparent no change is reported; more than 8 bits are refused."""
    before, after, _ = draw_pair(np.random.default_rng(1), 90, 70)
    PIL.Image.fromarray(before).save(tmp_path / "before.png")
    opaque = np.full((70, 90, 1), 255, np.uint8)
    opaque[:, :60] = 0
    PIL.Image.fromarray(np.concatenate((after, opaque), axis=2)).save(tmp_path / "after.png")
    assert (
        main(arguments(tmp_path / "before.png", tmp_path / "after.png", "-o", tmp_path / "out", "--threshold=0")) == 0
    )
    mask = np.asarray(PIL.Image.open(tmp_path / "out" / "mask.png")) > 0
    assert mask[:, 60:].all() and not mask[:, :60].any()
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["pixels"] == {"data": 2100, "changed": 2100}
    PIL.Image.fromarray(np.full((70, 90), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep.png has 16 bits: .*--stretch"):
        main(arguments(tmp_path / "before.png", tmp_path / "deep.png", "-o", tmp_path / "deep"))


def test_the_share_that_a_report_gives(tmp_path: Path) -> None:
    """That of the scene, not of its small picture, in which no change is too small to be seen."""
    first, second = np.full((3, 1500, 1500), 100, np.uint8), np.full((3, 1500, 1500), 100, np.uint8)
    second[:, ::5, ::5] = 255
    paths = write_raster(tmp_path / "1.tif", first), write_raster(tmp_path / "2.tif", second)
    (tmp_path / "out").mkdir()
    settings = Settings(0.5, 512, 0, vectors="none")
    found = predict_rasters(*paths, tmp_path / "out", pixelwise, settings, ABOUT, shown=False)
    assert found["pixels"] == {"data": 1500**2, "changed": 300**2}
    assert '"predicted_share":0.04' in (tmp_path / "out" / "report.html").read_text()


def test_black_is_a_colour(tmp_path: Path) -> None:
    """A tile that is black at one date holds data, unless the file says that it does not."""
    first = np.zeros((3, 32, 64), np.uint8)
    paths = write_raster(tmp_path / "1.tif", first), write_raster(tmp_path / "2.tif", noise(32, 64) // 2 + 128)
    (tmp_path / "out").mkdir()
    found = predict_rasters(*paths, tmp_path / "out", pixelwise, Settings(0.1, 32, 0), ABOUT, shown=False)
    assert found["pixels"] == {"data": 2048, "changed": 2048}


def test_nothing_is_lost(tmp_path: Path) -> None:
    """What is there stays, unless it is a result to be replaced, and then until its successor is whole."""
    out, pair = tmp_path / "out", scene(tmp_path / "in")
    out.mkdir()
    assert main(arguments(*pair, "-o", out)) == 0
    (out / "mask.tif").write_text("earlier")
    with pytest.raises(UserError, match=r"out is there already: .*--overwrite"):
        main(arguments(*pair, "-o", out))
    with pytest.raises(UserError, match=r"nowhere.tif"):
        main(arguments(pair[0], tmp_path / "nowhere.tif", "-o", out, "--overwrite"))
    (tmp_path / "in" / "cut.tif").write_bytes(pair[1].read_bytes()[:9000])
    with pytest.raises(UserError, match=r"cut.tif"):
        main(arguments(pair[0], tmp_path / "in" / "cut.tif", "-o", out, "--overwrite"))
    assert (out / "mask.tif").read_text() == "earlier"
    out.rename(tmp_path / ".out.old")  # as if killed between two renames
    with pytest.raises(UserError, match=r"out is there already: .*--overwrite"):
        main(arguments(*pair, "-o", out))
    assert main(arguments(*pair, "-o", out, "--overwrite")) == 0
    assert values(out / "mask.tif").shape == (96, 128)
    with pytest.raises(UserError, match="cannot make the folder"):
        main(arguments(*pair, "-o", pair[0] / "below"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    (out / "changes.gpkg-wal").touch()
    assert main(arguments(*pair, "-o", out, "--overwrite")) == 0
    (out / "map.qgz").touch()
    with pytest.raises(UserError, match=r"out holds more than a result of this program: map.qgz"):
        main(arguments(*pair, "-o", out, "--overwrite"))
    assert (out / "map.qgz").exists() and not (out / "changes.gpkg-wal").exists()
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match=r"link is there already"):
        main(arguments(*pair, "-o", tmp_path / "link"))
    (out / "map.qgz").unlink()
    assert main(arguments(*pair, "-o", tmp_path / "link", "--overwrite")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link", "out"]


@pytest.mark.parametrize("limit", [2_000, 30_000, 60_000, 100_000, 235_000])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """One line, and nothing is left; what reads ahead is waited for, since the rasters are closed then."""
    before, after = scene(tmp_path / "in", 240, 256)
    rows, seen = RasterPair.rows, [0, 0]

    def slowly(self: RasterPair, first: int, last: int) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
        seen[0] += 1
        time.sleep(0.05)
        found = rows(self, first, last)
        seen[1] += 1
        return found

    monkeypatch.setattr(RasterPair, "rows", slowly)
    settings, out = Settings(0.5, 32, 8), tmp_path / "out"

    def write(folder: Path) -> None:
        predict_rasters(before, after, folder, pixelwise, settings, ABOUT, False)

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write|cannot be written"):
            write_folder(out, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert seen[0] == seen[1] and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_without_geopandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the work; without polygons it is not needed."""
    monkeypatch.setitem(sys.modules, "geopandas", None)
    before, after = scene(tmp_path / "in")
    shown: list[str] = []

    def watched(before: Tensor, after: Tensor) -> Tensor:
        shown.append("tile")
        return pixelwise(before, after)

    for vectors, expected in (("gpkg", []), ("none", ["tile"])):
        out = tmp_path / vectors
        out.mkdir()
        with nullcontext() if vectors == "none" else pytest.raises(UserError, match="requirements-geo"):
            predict_rasters(before, after, out, watched, Settings(0.5, vectors=vectors), ABOUT, False)
        assert shown == expected


def test_folders_that_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds the input, one of other files, a file, the one that the user is in."""
    pair = scene(tmp_path / "in")
    (tmp_path / "in" / "metadata.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metadata.json").write_text('{"stac_version": "1.0"}')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    for out, said in (
        (tmp_path / "in", "holds .*before.tif"),
        (tmp_path / "mine", "no result of this program"),
        (tmp_path / "other", "no result of this program"),
        (Path("/"), "choose a folder of its own|holds"),
        (pair[0], "holds .*before.tif|no result of this program"),
        (Path(), "choose a folder of its own"),
    ):
        with pytest.raises(UserError, match=said):
            main(arguments(*pair, "-o", out, "--overwrite"))
    assert sorted(tmp_path.rglob("*")) == before


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """No folder of that name; the next run makes it, and leaves nothing beside it."""
    folder = tmp_path / "in"
    folder.mkdir()
    pair = [write_raster(folder / f"{i}.tif", noise(1500, 200, seed=i)) for i in (1, 2)]
    given = arguments("predict", *pair, "-o", tmp_path / "out")
    process = subprocess.Popen(verb(*given), stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    while not (tmp_path / ".out.part" / ".mask.tif").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    assert main(given[1:]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--tile", "16"], "--tile 16"),
        (["--overlap", "64"], "overlap 64"),
        (["--bands", "1,2"], "give three numbers"),
        (["--threshold", "7"], "0 to below 1"),
        (["--threshold", "val", "--checkpoint_path", str(SCENES)], "threshold"),
        (["--stretch", "most"], "--stretch most"),
    ],
)
def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str) -> None:
    with pytest.raises((UserError, SystemExit)) as error:
        main([*arguments(*scene(tmp_path / "in"), "-o", tmp_path / "out"), *given])
    assert said in str(error.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_scenes_lie(tmp_path: Path) -> None:
    """A second raster in degrees: the mask lies on the first one's grid, cut to what both cover."""
    first, _ = scene(tmp_path / "in")
    grid = from_origin(15.0003, 45.1535, 2e-5, 2e-5)
    other = write_raster(tmp_path / "in" / "degrees.tif", noise(80, 60), WORLD, grid)
    with rasterio.open(first) as dataset:
        left, bottom, right, top = transform_bounds(WORLD, UTM, *rasterio.open(other).bounds)
        bounds = dataset.bounds
    assert main(arguments(first, other, "-o", tmp_path / "out", "--vectors", "geojson")) == 0
    with rasterio.open(tmp_path / "out" / "mask.tif") as mask:
        assert mask.crs == UTM and (mask.transform.c - EAST) % 2 == 0 and (NORTH - mask.transform.f) % 2 == 0
        expected = max(left, bounds.left), max(bottom, bounds.bottom), min(right, bounds.right), min(top, bounds.top)
        assert np.abs(np.array(mask.bounds) - expected).max() <= 4
    assert geopandas.read_file(tmp_path / "out" / "changes.geojson").crs == WORLD
