"""Small rasters of known content, for the tests in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin, xy
from rasterio.warp import transform as transform_points
from torch import Tensor

from tests.conftest import draw_pair

UTM, WEB, WORLD = (CRS.from_epsg(code) for code in (32633, 3857, 4326))
EAST, NORTH = 500_000.0, 5_000_000.0
GRID = from_origin(EAST, NORTH, 2, 2)


def write_raster(
    path: Path, levels: NDArray[Any], crs: CRS | None = UTM, transform: Affine = GRID, **profile: Any
) -> Path:
    """Write levels (bands, H, W) as a GeoTIFF."""
    count, height, width = levels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": levels.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **profile) as dataset:
        dataset.write(levels)
    return path


def write_vrt(path: Path, bands: list[tuple[str, Path, str]]) -> Path:
    """Write a virtual raster of 20 x 30 pixels on GRID; each band has a GDAL type, a source file and more XML."""
    sources = (
        f'<VRTRasterBand dataType="{kind}" band="{i}">{extra}<SimpleSource><SourceFilename>{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for i, (kind, source, extra) in enumerate(bands, start=1)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="30" rasterYSize="20"><SRS>EPSG:32633</SRS><GeoTransform>{EAST}, 2, 0, {NORTH}, 0, -2'
        f"</GeoTransform>{''.join(sources)}</VRTDataset>"
    )
    return path


def noise(height: int, width: int, bands: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 256, (bands, height, width), dtype=np.uint8)


def ground(transform: Affine, crs: CRS, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a smooth landscape on any grid: the value depends only on the place."""
    rows, columns = np.mgrid[:height, :width]
    x, y = (np.array(v) for v in xy(transform, rows.ravel(), columns.ravel()))
    east, north = (np.array(v).reshape(height, width) for v in transform_points(crs, UTM, x.tolist(), y.tolist()))
    waves = [np.sin((east - EAST) / 40 + i) + np.cos((north - NORTH) / 50 - i) for i in range(3)]
    return np.asarray(np.stack(waves) * 60 + 128, np.uint8)


def pixelwise(before: Tensor, after: Tensor) -> Tensor:
    """Predict each pixel by itself."""
    return before[:, :1].float() / 510 + after[:, 1:2].float() / 510


def scene(folder: Path, height: int = 96, width: int = 128) -> list[Path]:
    """Write two georeferenced rasters on one grid."""
    before, after, _ = draw_pair(np.random.default_rng(1), width, height)
    folder.mkdir(exist_ok=True)
    return [
        write_raster(folder / f"{name}.tif", image.transpose(2, 0, 1).copy())
        for name, image in (("before", before), ("after", after))
    ]


def read_band(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with rasterio.open(path) as dataset:
        levels: np.ndarray[Any, np.dtype[np.uint8]] = dataset.read(1)
    return levels
