"""Write the proposal of `python -m change propose`: tiles to label and predicted polygons to correct, for QGIS."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from change.common.errors import UserError
from change.common.files import write_folder, write_whole
from change.common.gdal import geo, limited_cache, quiet_gdal
from change.common.logs import start_logging
from change.rasters.drawn_changes import to_pixels
from change.rasters.grids import SAME, Values, apply_affine
from change.rasters.numbering import Numbers
from change.rasters.places import Outlines, polygonal_parts
from change.rasters.propose_project import STYLE, check_own_files, make_project
from change.rasters.propose_tiles import CHANGE, RANDOM, UNSURE, Candidates, Choice, choose_tiles, measure_tiles
from change.rasters.raster import RasterPair
from change.rasters.result_folder import read_scene
from change.rasters.tiles import READING

log = logging.getLogger(__name__)

FOLDER, LAYERS, PROJECT = "propose", "propose.gpkg", "propose.qgs"
TILES, CHANGES = "tiles", "changes"  # the layers
POLYGONS = "changes.gpkg"  # of the scene
PRECISION = 1e-6  # pixels: that of the clipped polygons
SLIVER = 0.01  # square pixels: smaller parts of polygons are left out
MARGIN = 0.05  # of the extent: what the project shows around the tiles


def propose_tiles(folder: Path, *, count: int, size: int, seed: int) -> int:
    """Choose tiles of a finished scene and write them into its folder `propose`; return the exit code.

    Args:
        folder: the folder of the scene.
        count: number of tiles.
        size: side of the tiles in pixels.
        seed: random seed.

    Raises:
        UserError: if the folder holds no finished scene on earth with predicted polygons, if there is a proposal, if
            the rasters are missing or have another grid, or if fewer tiles fit.
    """
    start_logging()
    out = folder / FOLDER
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists, and labels are not overwritten: move it away first")
    check_own_files()
    with quiet_gdal(), limited_cache():
        metadata = read_changes(folder)
        with contextlib.closing(open_rasters(folder, metadata)) as pair:
            top, left = find_offset(folder, metadata, pair)
            candidates = measure_tiles(
                folder / "probability.tif", size=size, top=top, left=left, threshold=metadata["threshold"]
            )
            chosen = choose_tiles(candidates, count, seed)
            if len(chosen) < count:
                raise UserError(describe_lack(folder, len(chosen), count=count, size=size))
            tiles = tile_layer(candidates, chosen, pair, size=size)
            changes = change_layer(folder / POLYGONS, tiles, pair, size=size)
            project = make_project(out, pair, wider(tiles.total_bounds))
        write_folder(out, lambda aside: write_files(aside, tiles, changes, project))
    why = Counter(tiles["why"])
    log.info(
        "%d tiles of %d x %d pixels: %d unsure, %d sure of change, %d at random; %d predicted polygons in them",
        *(len(tiles), size, size, why[UNSURE], why[CHANGE], why[RANDOM], len(changes)),
    )
    log.info("open %s in QGIS, correct the layer %s in every tile, save it, and run", out / PROJECT, CHANGES)
    log.info("%s", shlex.join(tiles_command(metadata, out / LAYERS, size)))
    return 0


# --- the scene -----------------------------------------------------------------------------------------------------


def read_changes(folder: Path) -> dict[str, Any]:
    """Read metadata.json of a finished scene with polygons. Raises UserError as `read_scene` does, or without them."""
    metadata = read_scene(folder, "probability.tif")
    if not metadata["pixels"]["changed"]:
        raise UserError(
            f"{folder}: no change was predicted, so there is nothing to correct: predict again with a --threshold "
            f"below {metadata['threshold']:g}, or with another --checkpoint_path"
        )
    if not (folder / POLYGONS).is_file():
        raise UserError(f"{folder} lacks {POLYGONS}: predict again with --vectors gpkg")
    return metadata


def open_rasters(folder: Path, metadata: dict[str, Any]) -> RasterPair:
    """Open the rasters of a scene on their whole common grid, also if only a part of it was predicted.

    Raises UserError if they are missing, or as `RasterPair` does.
    """
    paths = [Path(metadata[name]) for name in ("before", "after")]
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path}, from which {folder} was predicted, is missing: put it back, or run this in the folder in "
                "which predict ran"
            )
    reading = {name: metadata[name] for name in ("bands", "stretch", "assume_aligned", "alpha")}
    pair = RasterPair(*paths, **reading)
    first, second = pair.before.source.dataset, pair.after.source.dataset
    if pair.assumes_aligned and (first.crs, first.transform) != (second.crs, second.transform):
        log.warning("--assume_aligned: QGIS shows %s where its file says, not where it was compared", paths[1])
    if metadata.get("align"):
        log.warning("--align: QGIS shows %s as it is in its file, not aligned: draw on %s", paths[1], paths[0])
    return pair


def find_offset(folder: Path, metadata: dict[str, Any], pair: RasterPair) -> tuple[int, int]:
    """Find the row and column of the common grid at which a scene begins, which is not 0 after predict --aoi.

    Raises UserError if the scene is no part of that grid.
    """
    height, width = metadata["height"], metadata["width"]
    columns, rows = np.array([0.0, width, 0.0]), np.array([0.0, 0.0, height])
    x, y = apply_affine(metadata["transform"], columns, rows)
    found = np.stack(apply_affine(~pair.transform, x, y))
    left, top = np.round(found[:, 0]).astype(int).tolist()
    off = np.abs(found - np.stack((columns + left, rows + top))).max()
    inside = 0 <= top <= pair.height - height and 0 <= left <= pair.width - width
    if off > SAME or not inside:
        raise UserError(
            f"{metadata['before']} and {metadata['after']} have another grid than {folder}: predict again, and then "
            "propose"
        )
    return top, left


def describe_lack(folder: Path, found: int, *, count: int, size: int) -> str:
    """Describe that fewer tiles than `count` fit, and what to do."""
    if not found:
        return f"--size {size}: no tile lies fully in the predicted area of {folder}: choose a smaller --size"
    return (
        f"-n {count}: only {found} tiles of {size} x {size} pixels of {folder} do not touch each other: "
        f"choose -n {found} or fewer, or a smaller --size"
    )


# --- the layers ----------------------------------------------------------------------------------------------------


def tile_layer(candidates: Candidates, chosen: Sequence[Choice], pair: RasterPair, *, size: int) -> Any:
    """Return the chosen tiles as a GeoDataFrame, numbered from 1 from the top down.

    Its columns are tile, why, mean_probability, uncertainty, row and column of the first pixel, and done, which is
    empty.
    """
    geopandas, pandas, shapely = geo("geopandas"), geo("pandas"), geo("shapely")
    ordered = sorted(chosen, key=lambda choice: tuple(candidates.places[choice.number]))
    index = np.array([choice.number for choice in ordered])
    top, left = (candidates.places[index] * size).T
    boxes = shapely.box(left, top, left + size, top + size)
    fields = {
        "tile": np.arange(1, len(index) + 1),
        "why": [choice.why for choice in ordered],
        "mean_probability": candidates.mean[index],
        "uncertainty": candidates.uncertainty[index],
        "row": top,
        "column": left,
        "done": pandas.array([None] * len(index), dtype="boolean"),
    }
    return geopandas.GeoDataFrame(fields, geometry=to_map(boxes, pair.transform), crs=pair.crs.to_wkt())


def change_layer(polygons: Path, tiles: Any, pair: RasterPair, *, size: int) -> Any:
    """Return the parts of the predicted polygons inside the tiles as a GeoDataFrame of multipolygons.

    Every connected part is a feature of its own, so that it can be deleted alone. The columns are tile, and id and
    mean_probability of the predicted polygon.
    """
    geopandas, shapely = geo("geopandas"), geo("shapely")
    fields: dict[str, list[Any]] = {"tile": [], "id": [], "mean_probability": []}
    found: list[Outlines] = [np.array([], object)]
    for tile in tiles.itertuples():
        try:
            near = geopandas.read_file(polygons, bbox=tile.geometry.bounds, columns=["id", "mean_probability"])
        except (RuntimeError, ValueError) as error:  # pyogrio's errors
            raise UserError(f"{polygons} cannot be read ({error}): predict again") from error
        shapes = to_pixels(near.geometry.to_numpy(), pair.transform)
        box = shapely.box(tile.column, tile.row, tile.column + size, tile.row + size)
        parts, index = clip(shapes, box)
        found.append(parts)
        fields["tile"] += [tile.tile] * len(parts)
        for name in ("id", "mean_probability"):
            fields[name] += near[name].to_numpy()[index].tolist()
    typed = {
        "tile": np.array(fields["tile"], np.int64),
        "id": np.array(fields["id"], np.int64),
        "mean_probability": np.array(fields["mean_probability"], np.float64),
    }
    outlines = to_map(np.concatenate(found), pair.transform)
    return geopandas.GeoDataFrame(typed, geometry=[shapely.multipolygons([part]) for part in outlines], crs=tiles.crs)


def clip(shapes: Outlines, box: Any) -> tuple[Outlines, Numbers]:
    """Clip polygons (N,) in pixels to a box; return the connected parts, and for each the index of its polygon.

    Their corners are rounded first. Otherwise the clipped polygons would get spikes along the edges of the box, which
    make the polygons invalid when they are projected.
    """
    shapely = geo("shapely")
    rounded = shapely.set_precision(shapely.make_valid(shapes), PRECISION)
    inside = np.array([polygonal_parts(shape) for shape in shapely.intersection(rounded, box)], object)
    parts, index = shapely.get_parts(inside, return_index=True)
    large = shapely.area(parts) > SLIVER
    return parts[large], index[large]


def to_map(shapes: Outlines, transform: Any) -> Outlines:
    """Convert shapes (N,) in pixels to the reference system of a grid; `transform`: the grid's affine transform."""

    def convert(points: Values) -> Values:
        return np.stack(apply_affine(transform, points[:, 0], points[:, 1]), axis=1)

    return np.asarray(geo("shapely").transform(shapes, convert), object)


def wider(bounds: Any) -> tuple[float, float, float, float]:
    """Widen left, bottom, right and top by a margin."""
    left, bottom, right, top = map(float, bounds)
    x, y = MARGIN * (right - left), MARGIN * (top - bottom)
    return left - x, bottom - y, right + x, top + y


def write_files(folder: Path, tiles: Any, changes: Any, project: str) -> None:
    """Write both layers, the style and the project into a folder that exists."""
    try:
        changes.to_file(folder / LAYERS, driver="GPKG", layer=CHANGES, geometry_type="MultiPolygon")
        tiles.to_file(folder / LAYERS, driver="GPKG", layer=TILES, geometry_type="Polygon")
    except RuntimeError as error:  # pyogrio's errors are RuntimeErrors
        raise UserError(f"{LAYERS} cannot be written ({error}): is the disk full?") from error
    shutil.copy(STYLE, folder / STYLE.name)
    write_whole(folder / PROJECT, project.encode())


def tiles_command(metadata: dict[str, Any], layers: Path, size: int) -> list[str]:
    """Return the command that makes a training set from the corrected layers, reading the rasters as predict did."""
    command = ["python", "-m", "change", "tiles", metadata["before"], metadata["after"], str(layers)]
    command += ["--layer", CHANGES, "--within", str(layers), "--within_layer", TILES, "--size", str(size)]
    for name in READING:
        value = metadata.get(name)
        if value is True:
            command.append(f"--{name}")
        elif value not in (None, False, "auto"):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            command += [f"--{name}", text]
    return [*command, "-o", "DATA"]
