"""Bring the dates of a data folder to one grid: `python -m change regrid ROOT -o OUT`.

ROOT holds train, val or test, or A, B and label. In OUT, the images and masks of each pair have the grid of its image
before, cut to what the image after covers: images are warped bilinearly, masks take the nearest pixel. Bands, types and
names stay as they are. Files of a pair that already have one grid, and lists of pairs, are copied.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from change.change_dataloader import AFTER, BEFORE, LABEL, SUFFIXES, require_subfolders
from change.common.errors import OneLineParser, UserError, list_names
from change.common.files import make_folder, write_folder
from change.common.gdal import find_alpha_band, gdal_errors, geo, limited_cache, open_raster, read_palette, reason
from change.common.logs import start_logging
from change.common.names import SPLITS, files_by_stem
from change.common.tiff import have_different_grids
from change.rasters.common_grid import check_reference_systems, overlap_window, warp_onto

log = logging.getLogger(__name__)

ROWS = 512  # rows that are written at once


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change regrid`; return the exit code."""
    given = parse(arguments)
    start_logging()
    folders = {name: given.root / name for name in SPLITS if (given.root / name / BEFORE).is_dir()}
    folders = folders or {"": given.root}
    with limited_cache():
        write_folder(given.out, partial(write_all, folders, lists=given.root / "list"))
    log.info("written to %s", given.out)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises UserError if there is nothing to read, or if OUT exists."""
    parser = OneLineParser(
        prog="python -m change regrid", description="Bring the dates of a data folder, as GeoTIFFs, to one grid."
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of train, val or test, or of A, B and label")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder to create")
    given = parser.parse_args(arguments)
    if not any((given.root / name / BEFORE).is_dir() for name in (*SPLITS, "")):
        raise UserError(f"{given.root} holds neither train, val or test, nor {BEFORE}, {AFTER} and {LABEL}")
    if given.out.exists():
        raise UserError(f"-o {given.out} exists, and nothing is overwritten: choose another folder")
    return given


def write_all(folders: dict[str, Path], out: Path, *, lists: Path) -> None:
    """Write all splits, given by name, and copy the lists. Raises UserError as `write_pair` does."""
    for name, folder in folders.items():
        require_subfolders(folder, need_labels=False)
        subfolders = [sub for sub in (BEFORE, AFTER, LABEL) if (folder / sub).is_dir()]
        files = {sub: files_by_stem(folder / sub, SUFFIXES) for sub in subfolders}
        for sub in subfolders:
            make_folder(out / name / sub)
        moved = 0
        stems: set[str] = set().union(*files.values())
        for stem in sorted(stems):
            lacking = [sub for sub in subfolders if stem not in files[sub]]
            if lacking:
                raise UserError(f"{folder}: {stem} has no file in {list_names(lacking)}")
            moved += write_pair({sub: files[sub][stem] for sub in subfolders}, out / name, files[BEFORE][stem])
        log.info("%s: %d of %d pairs were on two grids", folder, moved, len(files[BEFORE]))
    if lists.is_dir():
        shutil.copytree(lists, out / "list")


def write_pair(files: dict[str, Path], out: Path, before: Path) -> bool:
    """Write the files of a pair, by subfolder; return whether they were on different grids.

    Raises UserError if a file cannot be read or written, or if the dates have no common place.
    """
    if not any(have_different_grids(before, path) for path in files.values()):
        for sub, path in files.items():
            shutil.copy(path, out / sub / path.name)
        return False
    with contextlib.ExitStack() as stack:
        opened = {sub: stack.enter_context(contextlib.closing(open_raster(path))) for sub, path in files.items()}
        first = opened[BEFORE]
        check_reference_systems(first, opened[AFTER], before=before, after=files[AFTER])
        window = overlap_window(first, opened[AFTER], before=before, after=files[AFTER])
        for sub, dataset in opened.items():
            if sub == LABEL and dataset.crs is None and dataset.shape != first.shape:
                raise UserError(
                    f"{files[sub]} has no place on earth and another size than {before}: save it as a GeoTIFF"
                )
            nearest = sub == LABEL
            warped = dataset if dataset.crs is None or dataset is first else warp_onto(dataset, first, nearest=nearest)
            if warped is not dataset:
                stack.callback(warped.close)
            path = out / sub / f"{files[sub].stem}.tif"
            try:
                write_window(warped, window, path, like=dataset, first=first, masked=sub != LABEL)
            except gdal_errors() as error:
                raise UserError(f"{path} cannot be written from {files[sub]} ({reason(error)})") from error
    return True


def write_window(warped: Any, window: Any, path: Path, *, like: Any, first: Any, masked: bool) -> None:
    """Write a window of a dataset as a GeoTIFF with the bands of `like`, on the grid of `first`.

    `masked`: mask pixels without data, if there are any and `like` has no nodata value and no alpha band for them. In
    8-bit pictures they become 0 instead.
    """
    rasterio = geo("rasterio")
    windows = geo("rasterio.windows")
    alpha = find_alpha_band(warped) if find_alpha_band(like) is None else None  # added by the warp
    numbers = [number for number in range(1, warped.count + 1) if number != alpha]
    height, width = int(window.height), int(window.width)
    profile = {
        "driver": "GTiff",
        "dtype": like.dtypes[0],
        "count": len(numbers),
        "height": height,
        "width": width,
        "crs": first.crs,
        "transform": windows.transform(window, first.transform),
        "nodata": like.nodata,
        "compress": "deflate",
        "predictor": 1 if like.dtypes[0].startswith("float") else 2,
    }
    palette = read_palette(like) is not None
    is_picture = like.dtypes[0] == "uint8" and len(numbers) <= 4  # Pillow reads it, but no file with a mask
    if palette or like.dtypes[0] != "uint8":  # GDAL's own choice for 8 bits is RGB, if there are enough bands
        profile["photometric"] = "palette" if palette else "minisblack"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as out:
        out.descriptions = like.descriptions[: len(numbers)]
        if palette:
            out.write_colormap(1, like.colormap(1))
        elif like.dtypes[0] == "uint8":
            out.colorinterp = like.colorinterp
        inside = None
        if masked and like.nodata is None and find_alpha_band(like) is None:
            inside = warped.dataset_mask(window=window)
            if not inside.all() and not is_picture:
                out.write_mask(inside)
        for top in range(0, height, ROWS):
            rows = min(ROWS, height - top)
            source = windows.Window(window.col_off, window.row_off + top, width, rows)
            target = windows.Window(0, top, width, rows)
            levels = warped.read(numbers, window=source)
            if is_picture and inside is not None:
                levels = levels * (inside[top : top + rows] > 0)
            out.write(levels, window=target)
