"""`python -m change regrid` on 8-bit RGB, masks with a colour table, and images with masked pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from change.change_dataloader import find_split
from tests.conftest import run_verb
from tests.rasters.drawn import GRID, UTM, write_raster

COLOURS = {0: (0, 0, 0, 255), 255: (255, 255, 255, 255)}


def test_rgb_can_be_trained_on(tmp_path: Path) -> None:
    """Both dates stay RGB, the mask keeps its colours, and masked pixels become black."""
    data, out, rng = tmp_path / "data", tmp_path / "out", np.random.default_rng(0)
    for sub in ("A", "B", "label"):
        (data / sub).mkdir(parents=True)
    other = GRID @ Affine.scale(1.25)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        for sub, side, grid in (("A", 60, GRID), ("B", 48, other)):
            levels = rng.integers(1, 256, (3, side, side), dtype=np.uint8)
            write_raster(data / sub / "0.tif", levels, UTM, grid, photometric="rgb")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(data / "A" / "0.tif", "r+") as before:
        valid = np.ones((60, 60), np.bool_)
        valid[:10, :20] = False
        before.write_mask(valid)
    mask = rng.integers(0, 2, (1, 60, 60), dtype=np.uint8) * np.uint8(255)
    write_raster(data / "label" / "0.tif", mask, UTM, GRID, photometric="palette")
    with rasterio.open(data / "label" / "0.tif", "r+") as label:
        label.write_colormap(1, COLOURS)
    result = run_verb("regrid", data, "-o", out)
    assert result.returncode == 0, result.stderr
    with rasterio.open(out / "A" / "0.tif") as before, rasterio.open(out / "B" / "0.tif") as after:
        assert before.shape == after.shape == (60, 60) and before.transform == after.transform
        assert [kind.name for kind in after.colorinterp] == ["red", "green", "blue"]
        assert np.array_equal((before.read() > 0).all(0), valid)
    with rasterio.open(out / "label" / "0.tif") as label:
        assert label.colormap(1)[255] == COLOURS[255] and np.array_equal(label.read(), mask)
    assert find_split(out, "").pairs[0].size == (60, 60)
