"""`python -m change predict`: rasters, pictures, lists of pairs, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import geopandas
import numpy as np
import PIL.Image
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from change.common.errors import UserError
from change.data.archives import File
from change.data.cutting import decode
from change.data.masks import read_mask
from change.rasters.jobs import find_jobs
from change.rasters.levels import HIGHEST, NO_DATA
from change.rasters.predict import main, parse_arguments
from change.rasters.predict_pairs import make_settings
from change.rasters.scene import Settings, check_own_files, predict_rasters
from tests.conftest import REPOSITORY, draw_pair, run_verb, verb
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, WORLD, noise, pixelwise, read_band, scene, write_raster
from tests.rasters.test_scene import ABOUT
from tests.test_quick_start import CHECKPOINT, SCENES


def arguments(*given: object) -> list[str]:
    options = ["--checkpoint_path", CHECKPOINT, "--device", "cpu", "--amp", "off", "--tile", "64", "--overlap", "16"]
    return [str(argument) for argument in (*given, *options)]


def test_rasters(tmp_path: Path) -> None:
    """Check the place and content of every file of a scene, and that the files agree."""
    out = tmp_path / "out"
    pair = scene(tmp_path / "in")
    with rasterio.open(pair[0], "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2019:05:04")
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
    texts = frame[["before", "after", "before_date", "after_date", "checkpoint"]].drop_duplicates()
    assert texts.to_numpy().tolist() == [["before.tif", "after.tif", "2019-05-04", "", CHECKPOINT.name]]
    assert frame["id"].is_unique and metadata["min_pixels"] == 4


def test_the_mask_has_colours(tmp_path: Path) -> None:
    """Programs that show it do so in red; those that read levels get the same ones as before, also as a label."""
    paths = write_raster(tmp_path / "1.tif", noise(64, 64)), write_raster(tmp_path / "2.tif", noise(64, 64, seed=1))
    (tmp_path / "out").mkdir()
    predict_rasters(*paths, tmp_path / "out", predict=pixelwise, settings=Settings(0.5), about=ABOUT)
    expected = noise(64, 64)[0] / 510 + noise(64, 64, seed=1)[1] / 510 > 0.5
    path = tmp_path / "out" / "mask.tif"
    with rasterio.open(path) as dataset:
        colours = dataset.colormap(1)
        assert (colours[1], colours[255]) == ((255, 0, 0, 255), (0, 0, 0, 0))
        assert np.array_equal(dataset.read(1), expected)
    assert np.array_equal(read_mask(path, binary=True), expected)
    cut = decode(File(path), is_mask=True)  # as `prepare --tile` does
    assert cut.mode == "L" and np.array_equal(np.asarray(cut), expected)
    shown = np.asarray(PIL.Image.open(path).convert("RGB"))
    assert np.array_equal((shown == (255, 0, 0)).all(2), expected) and not shown[~expected].any()


@pytest.mark.slow
def test_lists(tmp_path: Path) -> None:
    """Two processes share three pairs; a second run skips the finished ones and tries the failed one again."""
    scene(tmp_path / "a", 64, 64)
    scene(tmp_path / "b", 64, 80)
    lines = ["a/before.tif\ta/after.tif\tone", "b/before.tif\tb/after.tif\ttwo", "a/before.tif\tnowhere.tif\tthree"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    given = arguments("predict", tmp_path / "pairs.txt", "-o", tmp_path / "out")
    result = run_verb(*given, processes=2)  # the first has two pairs, and goes on after one of them failed
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
    (tmp_path / "B" / "._1.png").write_bytes(b"metadata of macOS")
    assert len(find_jobs(tmp_path / "A", tmp_path / "B", tmp_path / "out")) == 2
    (tmp_path / "B" / "1.png").rename(tmp_path / "B" / "0.jpg")
    with pytest.raises(UserError, match=r"0.jpg and 0.png share a stem"):
        find_jobs(tmp_path / "A", tmp_path / "B", tmp_path / "out")
    (tmp_path / "B" / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"files without a partner .*: 1"):
        find_jobs(tmp_path / "A", tmp_path / "B", tmp_path / "out")


def test_images_of_other_kinds(tmp_path: Path) -> None:
    """No change is reported where either image is transparent; more than 8 bits are refused."""
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
    hidden = np.where(opaque > 0, after, 255 - after)
    PIL.Image.fromarray(np.concatenate((hidden, opaque), axis=2)).save(tmp_path / "hidden.png")
    probabilities = []
    for name in ("after", "hidden"):
        main(arguments(tmp_path / "before.png", tmp_path / f"{name}.png", "-o", tmp_path / name))
        probabilities.append(np.asarray(PIL.Image.open(tmp_path / name / "probability.png")))
    assert np.array_equal(
        probabilities[0], probabilities[1]
    )  # colours under transparent parts do not reach the network
    PIL.Image.fromarray(np.full((70, 90), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep.png has 16 bits: .*--stretch"):
        main(arguments(tmp_path / "before.png", tmp_path / "deep.png", "-o", tmp_path / "deep"))


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    """An earlier result stays until the new one is complete; anything else is never replaced."""
    out, pair = tmp_path / "out", scene(tmp_path / "in")
    out.mkdir()
    assert main(arguments(*pair, "-o", out)) == 0
    (out / "mask.tif").write_text("earlier")
    with pytest.raises(UserError, match=r"out already holds a result: .*--overwrite"):
        main(arguments(*pair, "-o", out))
    with pytest.raises(UserError, match=r"nowhere.tif"):
        main(arguments(pair[0], tmp_path / "nowhere.tif", "-o", out, "--overwrite"))
    (tmp_path / "in" / "cut.tif").write_bytes(pair[1].read_bytes()[:9000])
    with pytest.raises(UserError, match=r"cut.tif"):
        main(arguments(pair[0], tmp_path / "in" / "cut.tif", "-o", out, "--overwrite"))
    assert (out / "mask.tif").read_text() == "earlier"
    out.rename(tmp_path / ".out.old")  # as if killed between two renames
    with pytest.raises(UserError, match=r"out already holds a result: .*--overwrite"):
        main(arguments(*pair, "-o", out))
    assert main(arguments(*pair, "-o", out, "--overwrite")) == 0
    assert read_band(out / "mask.tif").shape == (96, 128)
    with pytest.raises(UserError, match="cannot make the folder"):
        main(arguments(*pair, "-o", pair[0] / "below"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    (out / "changes.gpkg-wal").touch()
    assert main(arguments(*pair, "-o", out, "--overwrite")) == 0
    (out / "map.qgz").touch()
    with pytest.raises(UserError, match=r"out holds other files beside a result of this program: map.qgz"):
        main(arguments(*pair, "-o", out, "--overwrite"))
    assert (out / "map.qgz").exists() and not (out / "changes.gpkg-wal").exists()
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match=r"link already holds a result"):
        main(arguments(*pair, "-o", tmp_path / "link"))
    (out / "map.qgz").unlink()
    assert main(arguments(*pair, "-o", tmp_path / "link", "--overwrite")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link", "out"]


def test_folders_that_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused: a folder with the input, with other files, a file, and the current folder."""
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


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path: Path) -> None:
    """A killed run leaves no folder of that name; the next run writes it and cleans up."""
    folder = tmp_path / "in"
    folder.mkdir()
    pair = [write_raster(folder / f"{i}.tif", noise(800, 200, seed=i)) for i in (1, 2)]
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
        (["--min_area", "-1"], "--min_area -1"),
        (["--simplify", "nan"], "--simplify nan"),
        (["--outlines", "square", "--simplify", "1"], "--simplify does nothing with --outlines square"),
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


RASTER_OPTIONS = [
    "--bands=1,2,3",
    "--alpha=no",
    "--stretch=auto",
    "--assume_aligned",
    "--vectors=none",
    f"--aoi={__file__}",
    "--min_area=0",
    "--simplify=1",
    "--outlines=square",
]


@pytest.mark.parametrize("given", RASTER_OPTIONS)
def test_options_of_rasters_do_nothing_with_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """They are refused before the work, also in a list; a list that holds one pair of rasters may have them."""
    monkeypatch.setattr("change.rasters.predict_pairs.make_detector", lambda *_, **__: pytest.fail("predicts"))
    for name in ("1.png", "2.JPG", "3.tif"):
        (tmp_path / name).touch()
    (tmp_path / "pairs.txt").write_text("1.png\t2.JPG\n")
    name = given.partition("=")[0]
    for pair in ((tmp_path / "1.png", tmp_path / "2.JPG"), (tmp_path / "pairs.txt",)):
        with pytest.raises(UserError, match=f"^{name} does nothing with PNG, JPEG and BMP images: leave it out"):
            main(arguments(*pair, "-o", tmp_path / "out", given))
    (tmp_path / "pairs.txt").write_text("1.png\t2.JPG\tone\n1.png\t3.tif\ttwo\n")
    with pytest.raises(pytest.fail.Exception, match="predicts"):
        main(arguments(tmp_path / "pairs.txt", "-o", tmp_path / "out", given))


@pytest.mark.parametrize("given", ["--min_area=0", "--simplify=0", "--outlines=square"])
def test_options_of_polygons_do_nothing_without_them(tmp_path: Path, given: str) -> None:
    name = given.partition("=")[0]
    with pytest.raises(UserError, match=f"^{name} does nothing with --vectors none: leave it out"):
        main(arguments(*scene(tmp_path / "in"), "-o", tmp_path / "out", given, "--vectors=none"))
    assert not (tmp_path / "out").exists()


def test_options_reach_the_settings(tmp_path: Path) -> None:
    """Those that are not given have the defaults of `Settings`."""
    common = ["a.tif", "b.tif", "-o", "out", "--checkpoint_path", str(CHECKPOINT)]
    assert make_settings(parse_arguments(common), threshold=0.5) == Settings(0.5)
    given = [
        "--bands=3,2,1",
        "--alpha=no",
        "--stretch=none",
        "--assume_aligned",
        "--vectors=geojson",
        "--min_area=2",
        "--simplify=1",
    ]
    expected = Settings(
        0.5, bands=(3, 2, 1), alpha="no", stretch="none", assume_aligned=True, vectors="geojson", min_area=2, simplify=1
    )
    assert make_settings(parse_arguments([*common, *given]), threshold=0.5) == expected
    square = parse_arguments([*common, "--outlines=square"])
    assert make_settings(square, threshold=0.5) == Settings(0.5, outlines="square")


def test_rasters_of_two_reference_systems(tmp_path: Path) -> None:
    """If the second raster is in degrees, the mask lies on the grid of the first, cut to what both cover."""
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


@pytest.mark.parametrize("missing", ["STYLE", "TEMPLATE"])
def test_a_missing_file_of_ours_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """If the package was built without a file, nothing is predicted and nothing is written."""
    monkeypatch.setattr(f"change.rasters.scene.{missing}", tmp_path / "lost.file")
    before, after = scene(tmp_path / "in")
    (tmp_path / "pairs.txt").write_text(f"{before}\t{after}\tone\n")
    monkeypatch.setattr("change.rasters.predict_pairs.make_detector", lambda *_, **__: pytest.fail("predicts"))
    for pair in ((before, after), (tmp_path / "pairs.txt",)):
        with pytest.raises(UserError, match=r"lost.file is missing: it comes with PRX-Change; install it again"):
            main(arguments(*pair, "-o", tmp_path / "out"))
    (tmp_path / "library").mkdir()
    with pytest.raises(UserError, match=r"lost.file is missing"):
        predict_rasters(
            before,
            after,
            tmp_path / "library",
            predict=lambda before, after: pytest.fail("predicts"),
            settings=Settings(0.5),
            about={},
        )
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "after.tif",
        "before.tif",
        "in",
        "library",
        "pairs.txt",
    ]


def test_without_polygons_no_style_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("change.rasters.scene.STYLE", tmp_path / "lost.file")
    check_own_files("none")
    with pytest.raises(UserError, match=r"lost.file"):
        check_own_files("geojson")


def test_a_missing_default_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("change.common.files.CLONE", tmp_path / "clone")
    with pytest.raises(UserError, match=r"clone/checkpoints/buildings.pth is missing"):
        main([str(path) for path in (*scene(tmp_path / "in"), "-o", tmp_path / "out")])
    assert not (tmp_path / "out").exists()
