"""Memory and time of a large scene: `python -m tests.benchmark_scenes --data FOLDER`.

FOLDER holds A and B, with images of one size. They are repeated and turned to make two rasters of `--size` pixels a
side: one with pixels of 0.5 m in UTM, one of about 0.6 m in Web Mercator. `python -m change predict` runs on them as a
process. It runs again on a first raster that begins half a tile further down and to the right, so that no tile covers
the same ground as before. The output is the peak memory of the process, its time, the network's share of it, and the
agreement of the two masks.

The floor: a row of tiles of before and after takes 7 bytes per pixel, its blended probabilities and weights 16 bytes.
That is 0.28 GB for a width of 12,000 and tiles of 1024, in addition to torch and the network. The network's arithmetic
is 264 GFLOP per tile of 1024 (`tests/benchmark.py`); 12,000 pixels a side take 16 x 16 tiles.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.windows import Window

from change.common.errors import OneLineParser, UserError, run_command
from change.common.files import DEFAULT_CHECKPOINT, shipped_file
from change.common.images import read_image

FORMAT: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "count": 3, "nodata": 0, "tiled": True}
PLACE = 600_000, 3_400_000, 0.5  # east and north in UTM zone 14, metres per pixel


def write_mosaic(images: list[Path], size: int, path: Path) -> None:
    """Write the images side by side, repeated in different rotations, on a grid in UTM.

    Black becomes the darkest grey, because 0 means nodata. Raises UserError for images that differ in size.
    """
    east, north, metres = PLACE
    with rasterio.open(
        path,
        "w",
        height=size,
        width=size,
        crs="EPSG:32614",
        transform=from_origin(east, north, metres, metres),
        **FORMAT,
    ) as out:
        side = len(read_image(images[0]))
        across = -(-size // side)
        for index in range(across * across):
            row, column = (side * part for part in divmod(index, across))
            image = np.rot90(read_image(images[index % len(images)]), index // len(images))
            if image.shape[:2] != (side, side):
                raise UserError(f"{images[index % len(images)]}: choose images of one size, and square")
            image = np.maximum(image[: size - row, : size - column], 1)
            out.write(image.transpose(2, 0, 1), window=Window(column, row, *image.shape[1::-1]))


def write_warped(source: Path, size: int, path: Path) -> None:
    """Warp a raster to Web Mercator, `size` pixels a side."""
    with rasterio.open(source) as dataset:
        transform, width, height = calculate_default_transform(
            dataset.crs, "EPSG:3857", dataset.width, dataset.height, *dataset.bounds, dst_width=size, dst_height=size
        )
        with rasterio.open(
            path, "w", height=height, width=width, crs="EPSG:3857", transform=transform, **FORMAT
        ) as out:
            for band in (1, 2, 3):
                reproject(
                    rasterio.band(dataset, band),
                    rasterio.band(out, band),
                    resampling=Resampling.bilinear,
                    num_threads=2,
                )


def write_cut(source: Path, first: int, path: Path) -> None:
    """Copy a raster without its first rows and columns."""
    with rasterio.open(source) as dataset:
        window = Window(first, first, dataset.width - first, dataset.height - first)
        profile = dataset.profile | {
            "height": window.height,
            "width": window.width,
            "transform": dataset.window_transform(window),
        }
        with rasterio.open(path, "w", **profile) as out:
            for row in range(0, int(window.height), 512):
                rows = min(512, int(window.height) - row)
                part = dataset.read(window=Window(first, first + row, window.width, rows))
                out.write(part, window=Window(0, row, window.width, rows))


def run_predict(before: Path, after: Path, out: Path, given: list[str]) -> dict[str, Any]:
    """Run `python -m change predict`; return the content of metadata.json, and the seconds of the process."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "change", "predict", str(before), str(after), "-o", str(out), *given]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise UserError(f"predict failed: {result.stderr.strip().splitlines()[-1]}")
    metadata: dict[str, Any] = json.loads((out / "metadata.json").read_text())
    return metadata | {"process": time.perf_counter() - began}


def measure_agreement(one: Path, other: Path) -> float:
    """Return the IoU of the changed class of two masks, in the area that both cover."""
    with rasterio.open(one) as first, rasterio.open(other) as second:
        shift = round((second.transform.c - first.transform.c) / first.transform.a)
        down = round((second.transform.f - first.transform.f) / first.transform.e)
        height, width = min(second.height, first.height - down), min(second.width, first.width - shift)
        a = first.read(1, window=Window(shift, down, width, height))
        b = second.read(1, window=Window(0, 0, width, height))
    return float(((a == 1) & (b == 1)).sum() / max(1, ((a == 1) | (b == 1)).sum()))


def main(arguments: list[str]) -> int:
    """Make the rasters, run the predictions and print the results; return the exit code."""
    parser = OneLineParser(prog="python -m tests.benchmark_scenes", description="Memory and time of a large scene.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds A and B")
    parser.add_argument("--size", type=int, default=12_000, help="side of the scene in pixels (default: 12000)")
    parser.add_argument("--tile", type=int, default=1024, help="side of the tiles in pixels (default: 1024)")
    parser.add_argument("--overlap", type=int, default=256, help="overlap of the tiles in pixels (default: 256)")
    parser.add_argument("--checkpoint_path", type=Path, help=f"weights to use (default: {DEFAULT_CHECKPOINT})")
    parser.add_argument("--device", default="auto", help="as for predict (default: auto)")
    parser.add_argument("--amp", default="auto", help="as for predict (default: auto)")
    options = parser.parse_args(arguments)
    options.checkpoint_path = options.checkpoint_path or shipped_file(DEFAULT_CHECKPOINT)
    given = [f"--{name}={getattr(options, name)}" for name in ("tile", "overlap", "checkpoint_path", "device", "amp")]
    images = [sorted((options.data / date).iterdir()) for date in ("A", "B")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_mosaic(images[0], options.size, folder / "before.tif")
        write_mosaic(images[1], options.size, folder / "flat.tif")
        write_warped(folder / "flat.tif", options.size, folder / "after.tif")
        write_cut(folder / "before.tif", options.tile // 2, folder / "cut.tif")
        size = f"{options.size} x {options.size} pixels"
        sys.stdout.write(f"{os.cpu_count()} cores, torch {torch.__version__}; {size}, tile {options.tile}\n")
        for name, before in (("whole", "before.tif"), ("shifted by half a tile", "cut.tif")):
            found = run_predict(folder / before, folder / "after.tif", folder / name, given)
            seconds, pixels = found["seconds"], found["pixels"]
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            sys.stdout.write(
                f"{name}: {found['process']:.1f} s, of which the network takes {seconds['network']:.1f}, the rest "
                f"{100 * (1 - seconds['network'] / seconds['all']):.1f}%; peak {peak:.2f} GiB; changed "
                f"{pixels['changed']} of {pixels['data']} pixels, {found['polygons']['count']} polygons\n"
            )
            sys.stdout.flush()
        both = (folder / name / "mask.tif" for name in ("whole", "shifted by half a tile"))
        sys.stdout.write(f"IoU of the two masks: {measure_agreement(*both):.4f}\n")
    return 0


if __name__ == "__main__":
    run_command(main)
