"""One scene from two rasters to files, by library calls: the content of the files, and errors that leave nothing."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.env import get_gdal_config
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor

from change.common.errors import UserError
from change.common.files import write_folder
from change.common.gdal import CACHE, quiet_gdal
from change.rasters.jobs import count_pixels
from change.rasters.levels import HIGHEST, NO_DATA
from change.rasters.picture_pair import predict_pictures
from change.rasters.raster import RasterPair
from change.rasters.scene import Settings, predict_rasters
from tests.rasters.drawn import noise, pixelwise, read_band, scene, write_raster

ABOUT: dict[str, Any] = {"precision": "float32", "checkpoint": {}}


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (32, 0), (512, 128)])
def test_a_pixelwise_network_passes_bit_for_bit(tmp_path: Path, tile: int, overlap: int) -> None:
    """Rows, tiles, blending and files change no value; pixels without data are marked."""
    first, second = noise(150, 210, seed=1), noise(150, 210, seed=2)
    first[:, 20:40, :70] = 0
    paths = write_raster(tmp_path / "1.tif", first, nodata=0), write_raster(tmp_path / "2.tif", second)
    (tmp_path / "out").mkdir()
    settings = Settings(0.5, tile, overlap, batch=2, vectors="none")
    predict_rasters(*paths, tmp_path / "out", predict=pixelwise, settings=settings, about=ABOUT)
    expected = pixelwise(*(torch.from_numpy(image)[None] for image in (first, second)))[0, 0].numpy()
    data = first.any(0)
    levels, mask = (read_band(tmp_path / "out" / f"{name}.tif") for name in ("probability", "mask"))
    assert np.array_equal(levels, np.where(data, (expected * HIGHEST + 0.5).astype(np.uint8), NO_DATA))
    assert np.array_equal(mask, np.where(data, expected > 0.5, NO_DATA))


def test_changed_share_in_the_report(tmp_path: Path) -> None:
    """The report gives the changed share of the scene, not of the overview, in which changes look larger."""
    first, second = np.full((3, 1500, 1500), 100, np.uint8), np.full((3, 1500, 1500), 100, np.uint8)
    second[:, ::5, ::5] = 255
    paths = write_raster(tmp_path / "1.tif", first), write_raster(tmp_path / "2.tif", second)
    (tmp_path / "out").mkdir()
    settings = Settings(0.5, 512, 0, vectors="none")
    found = predict_rasters(*paths, tmp_path / "out", predict=pixelwise, settings=settings, about=ABOUT)
    assert found["pixels"] == {"data": 1500**2, "changed": 300**2}
    assert '"predicted_share":0.04' in (tmp_path / "out" / "report.html").read_text()


def test_black_is_a_colour(tmp_path: Path) -> None:
    """A tile that is black at one date holds data, unless black is nodata."""
    first = np.zeros((3, 32, 64), np.uint8)
    paths = write_raster(tmp_path / "1.tif", first), write_raster(tmp_path / "2.tif", noise(32, 64) // 2 + 128)
    (tmp_path / "out").mkdir()
    found = predict_rasters(*paths, tmp_path / "out", predict=pixelwise, settings=Settings(0.1, 32, 0), about=ABOUT)
    assert found["pixels"] == {"data": 2048, "changed": 2048}


@pytest.mark.parametrize("limit", [2_000, 30_000, 60_000, 100_000, 235_000])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The error is one line and nothing is left; the reading thread ends before the rasters are closed."""
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
        predict_rasters(before, after, folder, predict=pixelwise, settings=settings, about=ABOUT)

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write|cannot be written"):
            write_folder(out, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert seen[0] == seen[1] and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_without_geopandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before the work; without polygons, geopandas is not needed."""
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
            predict_rasters(before, after, out, predict=watched, settings=Settings(0.5, vectors=vectors), about=ABOUT)
        assert shown == expected


def host_state() -> dict[str, object]:
    """Return what a library must not change in the program that calls it."""
    loggers = {name: logging.getLogger(name).level for name in (None, "rasterio", "pyogrio", "fiona", "change")}
    return {
        "loggers": loggers,
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "cache": get_gdal_config("GDAL_CACHEMAX"),
    }


def test_the_calling_program_is_left_as_it_was(tmp_path: Path) -> None:
    """Opening and predicting keep log levels, warning filters, environment and GDAL's cache size."""
    before, after = scene(tmp_path / "in")
    bare = tmp_path / "bare.tif"
    PIL.Image.fromarray(noise(96, 128).transpose(1, 2, 0)).save(bare)
    (tmp_path / "out").mkdir()
    seen: list[object] = []

    def watched(first: Tensor, second: Tensor) -> Tensor:
        seen.append(get_gdal_config("GDAL_CACHEMAX"))
        return pixelwise(first, second)

    state = host_state()
    pair = RasterPair(before, after)
    assert not rasterio.env.hasenv() and host_state() == state
    pair.close()
    with pytest.warns(NotGeoreferencedWarning):  # the filters are those of the calling program
        RasterPair(bare, bare, assume_aligned=True).close()
    assert host_state() == state
    predict_rasters(before, after, tmp_path / "out", predict=watched, settings=Settings(0.5), about=ABOUT)
    assert host_state() == state and set(seen) == {CACHE} != {state["cache"]}
    with rasterio.Env():  # a program that has configured GDAL itself
        cache = get_gdal_config("GDAL_CACHEMAX")
        (tmp_path / "again").mkdir()
        predict_rasters(before, after, tmp_path / "again", predict=watched, settings=Settings(0.5), about=ABOUT)
        assert get_gdal_config("GDAL_CACHEMAX") == cache == seen[-1]
    assert host_state() == state


def test_the_program_silences_rasterio(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The program silences messages of rasterio, and puts levels and filters back."""
    bare = tmp_path / "bare.tif"
    PIL.Image.fromarray(noise(96, 128).transpose(1, 2, 0)).save(bare)
    state = host_state()
    with warnings.catch_warnings(record=True) as caught, quiet_gdal():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # as Python does by default, unlike pytest
        logging.getLogger("rasterio").warning("a remark")
        RasterPair(bare, bare, assume_aligned=True).close()
    assert not caught and not caplog.records and host_state() == state
    assert count_pixels(bare) == 96 * 128 and host_state() == state


def test_probabilities_that_are_nan(tmp_path: Path) -> None:
    """The error names the scene and nothing is left, for rasters and for pictures."""
    before, after = scene(tmp_path / "in")

    def predict(first: Tensor, second: Tensor) -> Tensor:
        probability = pixelwise(first, second)
        probability[..., 5, 7] = torch.nan
        return probability

    def write_scene(folder: Path) -> None:
        predict_rasters(before, after, folder, predict=predict, settings=Settings(0.5, 64, 16), about=ABOUT)

    with pytest.raises(UserError, match=r"no finite probability for .*before\.tif"):
        write_folder(tmp_path / "out", write_scene)
    first, second = tmp_path / "in" / "1.png", tmp_path / "in" / "2.png"
    for path in (first, second):
        PIL.Image.fromarray(noise(40, 50).transpose(1, 2, 0)).save(path)
    nothing = torch.full((1, 1, 40, 50), torch.nan)
    detector: Any = SimpleNamespace(predict_all=lambda image, other, name: (nothing, np.ones((40, 50), np.bool_)))

    def write_pictures(folder: Path) -> None:
        predict_pictures(first, second, folder, detector=detector, threshold=0.5, about=ABOUT)

    with pytest.raises(UserError, match=r"no finite probability for .*1\.png"):
        write_folder(tmp_path / "out", write_pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
