"""Small pairs of several bands, as GeoTIFFs in the layout of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.rasters.drawn import GRID, UTM, write_raster

NAMES = ("B03", "B04", "B08", "B11", "B12")


def draw_bands(
    rng: np.random.Generator, height: int, width: int, count: int, kind: str
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint8]]:
    """Draw before and after (count, H, W) of a type, and a mask (H, W) of 0 and 255: squares whose levels rise."""
    ground = rng.normal(1000, 100, (count, height, width)) * (1 + np.arange(count))[:, None, None]
    after, mask = ground + rng.normal(0, 20, ground.shape), np.zeros((height, width), np.uint8)
    for _ in range(3):
        top, left = int(rng.integers(height - 12)), int(rng.integers(width - 12))
        after[:, top : top + 12, left : left + 12] *= 1.8
        mask[top : top + 12, left : left + 12] = 255
    scale = {"uint8": 0.02, "uint16": 1.0, "int16": 1.0, "float32": 1e-4}[kind]
    before, after = (levels * scale for levels in (ground, after))
    if kind == "uint8":
        before, after = before.clip(0, 255), after.clip(0, 255)
    return before.astype(kind), after.astype(kind), mask


def write_band_pairs(
    folder: Path,
    count: int,
    *,
    bands: int = 5,
    kind: str = "uint16",
    height: int = 66,
    width: int = 71,
    seed: int = 0,
    names: tuple[str, ...] = NAMES,
    **profile: Any,
) -> Path:
    """Write `count` pairs into folder/{A,B,label}/0.tif, 1.tif, ..."""
    rng = np.random.default_rng(seed)
    for sub in ("A", "B", "label"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        before, after, mask = draw_bands(rng, height, width, bands, kind)
        for sub, levels in (("A", before), ("B", after)):
            path = write_raster(folder / sub / f"{index}.tif", levels, UTM, GRID, **profile)
            name_bands(path, names[:bands])
        write_raster(folder / "label" / f"{index}.tif", mask[None], UTM, GRID)
    return folder


def name_bands(path: Path, names: tuple[str, ...]) -> None:
    """Name the bands of a GeoTIFF."""
    import rasterio

    with rasterio.open(path, "r+") as dataset:
        for number, name in enumerate(names, start=1):
            dataset.set_band_description(number, name)


def write_band_set(folder: Path, **options: Any) -> Path:
    """Write a data set of three train pairs and one val pair."""
    write_band_pairs(folder / "train", 3, seed=1, **options)
    write_band_pairs(folder / "val", 1, seed=2, **options)
    return folder
