"""The folder of a result: which files it may hold, and when it may be replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from change.common.errors import UserError, list_names
from change.common.gdal import geo
from change.rasters.places import is_on_earth
from change.rasters.polygons import STYLE, WRITERS

METADATA = "metadata.json"
WRITTEN = {
    "probability.tif",
    "probability.png",
    "mask.tif",
    "mask.png",
    *(f"changes.{kind}" for kind in WRITERS),
    STYLE.name,
    "preview.png",
    "report.html",
    METADATA,
}
GIVE = "give a folder that python -m change predict wrote for two rasters"
QGIS = (".aux.xml", "-wal", "-shm", "-journal")  # endings of the files that QGIS leaves beside those that it opens


def folders_to_keep(paths: Iterable[Path]) -> dict[Path, Path]:
    """Map every folder that holds one of `paths`, and that path itself, to the first such path.

    Build the map once for all pairs: the time to check a folder then does not grow with the number of pairs.
    """
    kept: dict[Path, Path] = {}
    for path in paths:
        resolved = path.resolve()
        for folder in (resolved, *resolved.parents):
            if folder in kept:
                break  # the folders above it are in `kept` as well
            kept[folder] = path
    return kept


def is_result(folder: Path) -> bool:
    """Return whether a folder holds a result of this program, whatever else it holds."""
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and {"threshold", "checkpoint"} <= metadata.keys()


def read_scene(folder: Path, raster: str) -> dict[str, Any]:
    """Read metadata.json of a finished scene whose `raster` is needed, such as mask.tif.

    Raises UserError if the folder holds no scene, or one without a place on earth.
    """
    if not is_result(folder):
        raise UserError(f"{folder} is not a finished scene: {GIVE}")
    if not (folder / raster).is_file():
        pictures = (folder / "mask.png").is_file()
        raise UserError(
            f"{folder} {'holds images without a place on earth' if pictures else f'lacks {raster}'}: {GIVE}"
        )
    metadata: dict[str, Any] = json.loads((folder / METADATA).read_bytes())
    with geo("rasterio").open(folder / raster) as dataset:
        if not is_on_earth(dataset.crs):
            raise UserError(
                f"{folder} has no coordinate reference system on earth: assign one to the rasters and predict again"
            )
    return metadata


def has_result(folder: Path, kept: Mapping[Path, Path], overwrite: bool, option: str = "-o") -> bool:
    """Return whether the folder of a pair already holds a result; False for a missing or empty folder.

    If the program was killed after it had moved an earlier result aside, that result is put back first.

    Args:
        folder: absolute.
        kept: result of `folders_to_keep` for the files and folders that must not be deleted.
        overwrite: whether the folder will be replaced.
        option: what names the folder, for the errors.

    Raises:
        UserError: if the folder must not be replaced: it is in `kept`, holds no result of this program, or, with
            `overwrite`, other files beside a result.
    """
    if not folder.name:
        raise UserError(f"{option} {folder}: choose a folder of its own")
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)
    if folder in kept:
        raise UserError(f"{option} {folder} holds {kept[folder]}: choose a folder of its own")
    if not folder.exists():
        return False
    if os.path.ismount(folder):
        raise UserError(f"{folder} is a mount point: choose a folder in it")
    if folder.is_dir() and not any(folder.iterdir()):
        return False
    if not is_result(folder):
        raise UserError(f"{folder} exists but holds no result of this program: choose another {option}")
    others = foreign_files(folder) if overwrite else []
    if others:
        raise UserError(
            f"{folder} holds other files beside a result of this program: {list_names(others)}; move them first"
        )
    return True


def foreign_files(folder: Path) -> list[str]:
    """Return the names in a folder that neither this program writes nor QGIS adds to its files."""
    found = []
    for path in folder.iterdir():
        name = path.name
        for ending in QGIS:
            name = name.removesuffix(ending)
        if name not in WRITTEN:
            found.append(path.name)
    return sorted(found)
