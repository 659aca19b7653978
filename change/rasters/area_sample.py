"""A stratified random sample of a finished scene, written for interpretation.

area_sample.gpkg   one point per sampled pixel, at its centre, with id, stratum, an empty reference, row, column, the
                   chip that shows it, and the sample that it belongs to
area_sample.json   how the sample was drawn; the estimate needs it
chips/             before and after around each point, with the pixel outlined
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.files import file_hash, write_folder, write_whole
from change.common.gdal import geo, limited_cache
from change.common.pictures import YELLOW, Image, save_png, side_by_side
from change.evaluation.area_estimate import LEAST, allocate, choose_size
from change.rasters.aligned_raster import AlignedRaster, Block
from change.rasters.grids import Values, apply_affine
from change.rasters.numbering import Numbers
from change.rasters.pixel_areas import pixel_areas
from change.rasters.result_folder import read_scene
from change.rasters.strata import NAMES, Strata, count_strata, draw_pixels

if TYPE_CHECKING:
    from change.rasters.raster import RasterPair

FOLDER, POINTS, DESIGN, CHIPS = "area", "area_sample.gpkg", "area_sample.json", "chips"
CHIP = 384  # side in pixels of each date in a chip


@dataclass(frozen=True)
class Plan:
    """How to draw a sample.

    Attributes:
        buffer: width of the buffer around change, in pixels; 0 leaves it out.
        expected: share of each stratum that is expected to be mapped correctly, in the order of `NAMES`.
        error: target standard error of the overall accuracy; it determines the number of points.
        samples: number of points, or None.
        minimum: least number of points in a stratum.
        seed: random seed.
        chip: side in pixels of the part of the scene that a chip shows; 0 writes no chips.
    """

    buffer: int
    expected: tuple[float, ...]
    error: float
    samples: int | None
    minimum: int
    seed: int
    chip: int


def write_sample(folder: Path, plan: Plan) -> dict[str, Any]:
    """Draw a sample of a finished scene and write it into its folder area.

    Returns:
        The content of area_sample.json.

    Raises:
        UserError: if the folder is not a finished scene, has a sample, or lacks the rasters for chips.
    """
    metadata = read_scene(folder, "mask.tif")
    out = folder / FOLDER
    if out.exists():
        raise UserError(f"{out} exists, and a sample is not overwritten: give it to --reference, or move it away")
    if not metadata["pixels"]["data"]:
        raise UserError(f"{folder} has no pixel with data at both dates: nothing can be sampled")
    with limited_cache(), contextlib.ExitStack() as stack:
        pair = stack.enter_context(contextlib.closing(open_scene(folder, metadata))) if plan.chip else None
        strata = count_strata(folder / "mask.tif", plan.buffer)
        design = draw_sample(strata, plan)
        write_folder(out, partial(write_files, design=design, mask=strata.mask, pair=pair, chip=plan.chip))
    return design


def draw_sample(strata: Strata, plan: Plan) -> dict[str, Any]:
    """Choose the size of a sample, draw it, and return the content of area_sample.json.

    Raises UserError if --samples is too small.
    """
    sizes = strata.sizes
    used = sum(size > 0 for size in sizes)
    total, minimum = plan.samples, plan.minimum
    if total is None:
        total = max(choose_size(sizes, plan.expected, plan.error), used * minimum)
    elif total < LEAST * used:
        raise UserError(f"--samples {total}: choose {LEAST * used} or more, {LEAST} for each of {used} strata")
    drawn = allocate(total, sizes, min(minimum, total // used))
    rows, columns, kinds = draw_pixels(strata, drawn, plan.seed)
    with geo("rasterio").open(strata.mask) as dataset:
        areas = pixel_areas(dataset.crs, dataset.transform, centre(rows), centre(columns))
    if not np.isfinite(areas).all():
        raise UserError(f"{strata.mask} has pixels outside the domain of its reference system: predict with --aoi")
    design = {
        "mask_sha256": file_hash(strata.mask),
        "seed": plan.seed,
        "buffer": plan.buffer,
        "strata": [
            {"name": name, "pixels": size, "points": count}
            for name, size, count in zip(NAMES, sizes, drawn, strict=True)
        ],
        "compared_m2": strata.compared_m2,
        "changed_m2": strata.changed_m2,
        "points": {
            "row": rows.tolist(),
            "column": columns.tolist(),
            "stratum": kinds.tolist(),
            "area_m2": areas.tolist(),
        },
    }
    return {"sample": hashlib.sha256(json.dumps(design).encode()).hexdigest()[:16], **design}


def centre(numbers: Numbers) -> Values:
    """Return the positions of the centres of rows or columns (n,) by their numbers."""
    return np.asarray(numbers + 0.5, np.float64)


def write_files(folder: Path, *, design: dict[str, Any], mask: Path, pair: RasterPair | None, chip: int) -> None:
    """Write the files of a sample into a folder that exists; `pair` is needed if `chip` is not 0."""
    geopandas = geo("geopandas")
    rows, columns = (np.array(design["points"][name], np.int64) for name in ("row", "column"))
    names = [f"{CHIPS}/{number:04d}.png" if pair else "" for number in range(1, len(rows) + 1)]
    with geo("rasterio").open(mask) as dataset:
        crs, transform = dataset.crs, dataset.transform
    fields = {
        "id": np.arange(1, len(rows) + 1),
        "stratum": [NAMES[kind] for kind in design["points"]["stratum"]],
        "reference": np.full(len(rows), None, object),
        "row": rows,
        "column": columns,
        "chip": names,
        "sample": design["sample"],
    }
    centres = geopandas.points_from_xy(*apply_affine(transform, centre(columns), centre(rows)))
    frame = geopandas.GeoDataFrame(fields, geometry=centres, crs=crs)
    try:
        frame.to_file(folder / POINTS, driver="GPKG", layer="area_sample")
    except RuntimeError as error:  # pyogrio's errors are RuntimeErrors
        raise UserError(f"{POINTS} cannot be written ({error}): is the disk full?") from error
    write_whole(folder / DESIGN, (json.dumps(design) + "\n").encode())
    if pair:
        (folder / CHIPS).mkdir()
        write_chips(pair, folder, names, rows=rows, columns=columns, side=chip)


# --- chips ---------------------------------------------------------------------------------------------------------


def open_scene(folder: Path, metadata: dict[str, Any]) -> RasterPair:
    """Open the rasters of a finished scene as `predict` did. Raises UserError if they are missing or have changed."""
    from change.rasters.raster import RasterPair  # here, because importing torch takes seconds

    paths = [Path(metadata[name]) for name in ("before", "after", "aoi") if metadata.get(name)]
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path}, from which {folder} was predicted, is missing: run this in the folder in which predict ran, "
                "or add --chip 0 to do without chips"
            )
    pair = RasterPair(
        paths[0],
        paths[1],
        bands=metadata["bands"],
        stretch=metadata["stretch"],
        assume_aligned=metadata["assume_aligned"],
        alpha=metadata["alpha"],
        aoi=paths[2] if metadata.get("aoi") else None,
        align=metadata.get("align", False),
    )
    place = [pair.height, pair.width, *list(pair.transform)[:6]]
    if place != [metadata["height"], metadata["width"], *metadata["transform"]]:
        pair.close()
        raise UserError(
            f"{paths[0]} and {paths[1]} have another grid than {folder}: predict again, or add --chip 0 to do without "
            "chips"
        )
    return pair


def write_chips(
    pair: RasterPair, folder: Path, names: list[str], *, rows: Numbers, columns: Numbers, side: int
) -> None:
    """Write one picture per point, before on the left and after on the right, with the pixel outlined.

    Args:
        pair: the rasters.
        folder: the names are relative to it.
        names: files to write, (n,).
        rows, columns: the pixels, (n,).
        side: side in pixels of the part of the scene that is shown.
    """
    for name, row, column in zip(names, rows.tolist(), columns.tolist(), strict=True):
        dates = [draw_chip(raster, pair, row=row, column=column, side=side) for raster in (pair.before, pair.after)]
        save_png(side_by_side(dates), folder / name)


def draw_chip(raster: AlignedRaster, pair: RasterPair, *, row: int, column: int, side: int) -> Image:
    """Draw the surroundings of a pixel as RGB (CHIP, CHIP, 3), black outside the scene."""
    top, left = row - side // 2, column - side // 2
    first, last = max(0, top), min(pair.height, top + side)
    begin, end = max(0, left), min(pair.width, left + side)
    block = Block(top=first, left=begin, height=last - first, width=end - begin)
    whole: NDArray[np.uint8] = np.zeros((side, side, 3), np.uint8)
    whole[first - top : last - top, begin - left : end - left] = raster.read(block)[0].transpose(1, 2, 0)
    smooth = cv2.INTER_AREA if side > CHIP else cv2.INTER_NEAREST
    chip = np.ascontiguousarray(cv2.resize(whole, (CHIP, CHIP), interpolation=smooth))
    scale = CHIP / side
    low = [round((side // 2) * scale) - 2] * 2
    high = [round((side // 2 + 1) * scale) + 1] * 2
    return np.asarray(cv2.rectangle(chip, low, high, YELLOW, 1), np.uint8)
