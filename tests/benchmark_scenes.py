"""What a large scene takes: `python -m tests.benchmark_scenes --data FOLDER`, FOLDER of A and B, images of one size.

Two rasters are made of the images, repeated and turned: `--size` pixels square, 0.5 m in UTM, and about 0.6 m in the
Mercator projection of the web. `python -m change predict` runs on them as a process, and once more on a first raster
that begins half a tile further down and right, so that no tile lies where one lay before. Given are peak memory of the
process, its time and the network's share, and how far the two masks agree where both have data.

The floor: a row of tiles of before and after, 7 bytes a pixel, and its blended probabilities and weights, 16 bytes:
0.28 GB for a width of 12,000 and tiles of 1024; torch and the network beside. The network's arithmetic is 264 GFLOP a
tile of 1024 (`tests/benchmark.py`), of which 12,000 takes 16 x 16.
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
from change.common.files import shipped_file
from change.common.images import read_image
from change.rasters.predict import CHECKPOINT

FORMAT: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "count": 3, "nodata": 0, "tiled": True}
PLACE = 600_000, 3_400_000, 0.5  # east, north, metres a pixel, in UTM zone 14


def write_mosaic(images: list[Path], size: int, path: Path) -> None:
    """The images side by side, each time turned otherwise, on a grid in UTM; black is made the darkest grey."""
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
    """A raster in the Mercator projection of the web, `size` pixels square."""
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
    """A raster without its first rows and columns."""
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


def predicted(before: Path, after: Path, out: Path, given: list[str]) -> dict[str, Any]:
    """Run the verb; what metadata.json says of it, with the seconds of the process."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "change", "predict", str(before), str(after), "-o", str(out), *given]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise UserError(f"predict failed: {result.stderr.strip().splitlines()[-1]}")
    metadata: dict[str, Any] = json.loads((out / "metadata.json").read_text())
    return metadata | {"process": time.perf_counter() - began}


def agreement(one: Path, other: Path) -> float:
    """IoU of the changed class of two masks, where the second one lies."""
    with rasterio.open(one) as first, rasterio.open(other) as second:
        shift = round((second.transform.c - first.transform.c) / first.transform.a)
        down = round((second.transform.f - first.transform.f) / first.transform.e)
        height, width = min(second.height, first.height - down), min(second.width, first.width - shift)
        a = first.read(1, window=Window(shift, down, width, height))
        b = second.read(1, window=Window(0, 0, width, height))
    return float(((a == 1) & (b == 1)).sum() / max(1, ((a == 1) | (b == 1)).sum()))


def main(arguments: list[str]) -> int:
    """Make the rasters, run, print."""
    parser = OneLineParser(prog="python -m tests.benchmark_scenes", description="Memory and time of a large scene.")
    parser.add_argument("--data", type=Path, required=True, help="folder of A and B")
    parser.add_argument("--size", type=int, default=12_000, help="pixels a side (default: 12000)")
    parser.add_argument("--tile", type=int, default=1024, help="pixels (default: 1024)")
    parser.add_argument("--overlap", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--checkpoint_path", type=Path, default=shipped_file(CHECKPOINT), help=f"default: {CHECKPOINT}")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--amp", default="auto", help="default: auto")
    options = parser.parse_args(arguments)
    given = [f"--{name}={getattr(options, name)}" for name in ("tile", "overlap", "checkpoint_path", "device", "amp")]
    images = [sorted((options.data / date).iterdir()) for date in ("A", "B")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_mosaic(images[0], options.size, folder / "before.tif")
        write_mosaic(images[1], options.size, folder / "flat.tif")
        write_warped(folder / "flat.tif", options.size, folder / "after.tif")
        write_cut(folder / "before.tif", options.tile // 2, folder / "cut.tif")
        sys.stdout.write(
            f"{os.cpu_count()} cores, torch {torch.__version__}; {options.size} square, tile {options.tile}\n"
        )
        for name, before in (("whole", "before.tif"), ("half a tile further", "cut.tif")):
            found = predicted(folder / before, folder / "after.tif", folder / name, given)
            seconds, pixels = found["seconds"], found["pixels"]
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            sys.stdout.write(
                f"{name}: {found['process']:.1f} s, of them the network {seconds['network']:.1f}, the rest "
                f"{100 * (1 - seconds['network'] / seconds['all']):.1f}%; peak {peak:.2f} GiB; changed "
                f"{pixels['changed']} of {pixels['data']} pixels, {found['polygons']['count']} polygons\n"
            )
            sys.stdout.flush()
        both = (folder / name / "mask.tif" for name in ("whole", "half a tile further"))
        sys.stdout.write(f"IoU of the two masks: {agreement(*both):.4f}\n")
    return 0


if __name__ == "__main__":
    run_command(main)
