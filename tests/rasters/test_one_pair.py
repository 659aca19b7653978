"""`ChangeDetector.predict_rasters`: the files of `python -m change predict`, and a summary of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import PIL.Image
import pytest
import rasterio
import shapely

from change import ChangeDetector
from change.common.errors import UserError
from change.common.locks import hold_folder
from change.rasters.predict import main
from tests.conftest import draw_pair
from tests.rasters.drawn import noise, scene, write_raster

COMMAND = ("--device", "cpu", "--amp", "off", "--tile", "64", "--overlap", "16")


@pytest.fixture(scope="module")
def detector() -> ChangeDetector:
    return ChangeDetector(device="cpu", tile=64, overlap=16)


def test_rasters(detector: ChangeDetector, tmp_path: Path) -> None:
    """The folder holds what the command writes, and the summary agrees with the files."""
    before, after = scene(tmp_path / "in")
    out, expected = tmp_path / "python", tmp_path / "command"
    found = detector.predict_rasters(str(before), after, out, min_area=20, simplify=1, stretch="2,98")
    options = ("--min_area", "20", "--simplify", "1", "--stretch", "2,98")
    assert main([str(before), str(after), "-o", str(expected), *COMMAND, *options]) == 0
    assert {name: path.name for name, path in found.files.items()} == {p.name: p.name for p in expected.iterdir()}
    for name in ("mask.tif", "probability.tif"):
        with rasterio.open(found.files[name]) as ours, rasterio.open(expected / name) as theirs:
            assert ours.transform == theirs.transform and ours.crs == theirs.crs
            assert np.array_equal(ours.read(), theirs.read())
    frame, other = (geopandas.read_file(folder / "changes.gpkg") for folder in (out, expected))
    assert frame.equals(other)
    ours, theirs = (json.loads((folder / "metadata.json").read_text()) for folder in (out, expected))
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"seconds"}
    assert found.folder == out and found.polygons == len(frame) > 0
    assert found.area_m2 == pytest.approx(frame["area_m2"].sum())
    with rasterio.open(out / "mask.tif") as mask:
        levels = mask.read(1)
    assert found.changed == (levels == 1).sum() and found.compared == levels.size
    assert found.share == found.changed / levels.size
    assert str(found).startswith(f"{found.polygons} polygon") and list(found.warnings) == ours["warnings"]


def test_pictures(detector: ChangeDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images give a mask without polygons; `out` may be relative, and a threshold can be chosen."""
    before, after, _ = draw_pair(np.random.default_rng(1), 90, 70)
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(before).save("before.png")
    PIL.Image.fromarray(after).save("after.png")
    found = detector.predict_rasters("before.png", "after.png", "out", threshold=0.2)
    assert found.folder == tmp_path / "out" and found.polygons is None and found.area_m2 is None
    mask = np.asarray(PIL.Image.open(found.files["mask.png"])) > 0
    assert np.array_equal(mask, detector.predict(before, after) > 0.2)
    assert found.changed == mask.sum()
    with pytest.raises(UserError, match="--bands does nothing with PNG, JPEG and BMP images"):
        detector.predict_rasters("before.png", "after.png", "other", bands=(1, 2, 3))


def test_nothing_is_lost(detector: ChangeDetector, tmp_path: Path) -> None:
    """An earlier result is replaced only if the caller says so, and never while another run writes there."""
    before, after = (write_raster(tmp_path / f"{seed}.tif", noise(40, 40, seed=seed)) for seed in (0, 1))
    out = tmp_path / "out"
    detector.predict_rasters(before, after, out, vectors="none")
    assert not list(out.glob("changes.*"))
    with pytest.raises(UserError, match=r"out already holds a result: choose another out, or add overwrite=True"):
        detector.predict_rasters(before, after, out)
    assert not list(out.glob("changes.*"))
    assert detector.predict_rasters(before, after, out, overwrite=True).polygons is not None
    with pytest.raises(UserError, match=rf"out {tmp_path} holds {before}"):
        detector.predict_rasters(before, after, tmp_path, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no result of this program: choose another out"):
        detector.predict_rasters(before, after, tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vectors": "shp"}, "vectors 'shp': choose one of gpkg, geojson, none"),
        ({"alpha": True}, "alpha True: choose one of auto, yes, no"),
        ({"bands": (0, 1, 2)}, "bands 0,1,2: give three numbers from 1"),
        ({"min_area": -1}, "min_area -1: choose 0 or more"),
        ({"simplify": float("nan")}, "simplify nan: choose 0 or more"),
        ({"outlines": "round"}, "outlines 'round': choose one of pixels, square"),
        ({"outlines": "square", "simplify": 1}, "simplify does nothing with outlines='square': leave it out"),
        ({"threshold": 1}, "threshold 1: choose a number from 0 to below 1"),
        ({"stretch": "98,2"}, "98,2"),
    ],
)
def test_wrong_values(detector: ChangeDetector, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    """They are errors as on the command line, and leave nothing behind."""
    before, after = (write_raster(tmp_path / f"{seed}.tif", noise(40, 40, seed=seed)) for seed in (0, 1))
    with pytest.raises(UserError, match=said):
        detector.predict_rasters(before, after, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tif", "1.tif"]


def test_wrong_calls(detector: ChangeDetector, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(40, 40))
    with pytest.raises(TypeError, match="min_aera"):
        detector.predict_rasters(path, path, tmp_path / "out", min_aera=3)
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: give a file"):
        detector.predict_rasters(tmp_path, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no file at"):
        detector.predict_rasters(path, tmp_path / "b.tif", tmp_path / "out")


def test_a_folder_in_use(detector: ChangeDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of the folder is taken before anything is written."""
    held: list[tuple[Path, bool]] = []

    def hold(folder: Path, option: str, beside: bool = False) -> Any:
        held.append((folder, beside))
        return hold_folder(folder, option, beside)

    monkeypatch.setattr("change.rasters.one_pair.hold_folder", hold)
    monkeypatch.setattr("change.rasters.one_pair.predict_job", lambda *_, **__: held.append((Path(), False)))
    path = write_raster(tmp_path / "a.tif", noise(40, 40))
    with pytest.raises(FileNotFoundError):  # nothing is written here
        detector.predict_rasters(path, path, tmp_path / "out")
    assert held == [(tmp_path / "out", True), (Path(), False)]


def test_area(detector: ChangeDetector, tmp_path: Path) -> None:
    """Outside of the layer's polygons there is no data; the layer's path may be text."""
    before, after = scene(tmp_path / "in")
    with rasterio.open(before) as raster:
        left, bottom, right, top = raster.bounds
    half = shapely.box(left, bottom, (left + right) / 2, top)
    geopandas.GeoDataFrame(geometry=[half], crs=raster.crs).to_file(tmp_path / "half.gpkg")
    found = detector.predict_rasters(before, after, tmp_path / "out", aoi=str(tmp_path / "half.gpkg"))
    assert found.compared == raster.width * raster.height / 2
    with pytest.raises(UserError, match=r"aoi .*gone\.gpkg: there is no such file; check the path"):
        detector.predict_rasters(before, after, tmp_path / "other", aoi=tmp_path / "gone.gpkg")
