"""The pictures of a scene: preview.png, and report.html with the scene and its largest changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.gdal import geo
from change.common.logs import versions
from change.common.pictures import YELLOW, Image, outline, outlined_panel, save_png
from change.evaluation.report import ImageCase, photo, write_report
from change.rasters.aligned_raster import Block
from change.rasters.alignment import Alignment
from change.rasters.area import inside_area
from change.rasters.class_layer import describe_classes
from change.rasters.findings import describe_findings, format_area
from change.rasters.grids import apply_affine, project
from change.rasters.numbering import Changes, Numbers, strips
from change.rasters.places import format_length, ground_size, is_on_earth, wgs84
from change.rasters.raster import RasterPair
from change.rasters.rows import RowReader

LISTED = 12  # maximum number of changes that are listed
CHIP = 384  # longest side in pixels of a chip as shown
SMALLEST_CHIP, LARGEST_CHIP = 64, 1024  # sides in pixels of the part of the scene that a chip shows
AROUND = 1.6  # side of a chip in relation to that of its change
WHITE = (255, 255, 255)
SCALE_BAR, CHIP_SCALE_BAR = 0.25, 0.5  # maximum length of a scale bar in relation to the scene or to a chip


@dataclass(frozen=True)
class Found:
    """The changes that were found in a scene.

    Attributes:
        path: the raster of a finished `Numbering`.
        changes: the measures of its changes.
        highest: the level that stands for probability 1.
        order: the numbers of the changes to show (N,), the largest first.
        areas: their areas in square metres (N,); None if they are not known.
        classes: the names of the classes of all changes, by number; None without classes.
    """

    path: Path
    changes: Changes
    highest: int
    order: Numbers
    areas: NDArray[np.float64] | None
    classes: NDArray[Any] | None = None

    def is_shown(self) -> NDArray[np.bool_]:
        """Return for every number whether its change is shown."""
        shown = np.zeros(len(self.changes.pixels), np.bool_)
        shown[self.order] = True
        return shown


def write_pictures(rows: RowReader, found: Found, *, folder: Path, metadata: dict[str, Any]) -> None:
    """Write preview.png and report.html.

    Args:
        rows: the reader of the scene, after all rows were read.
        found: its changes.
        folder: for the files.
        metadata: content of metadata.json, with the numbers of pixels and polygons.
    """
    pair = rows.pair
    before, after = mark_area(pair, rows.overviews)
    shown = found.is_shown()
    changed = shrink_changes(found.path, shown, before.shape[:2])
    save_png(outlined_panel(before, after, changed), folder / "preview.png")
    size = ground_size(pair.crs, pair.transform, column=pair.width / 2, row=pair.height / 2)
    side = size[0] if size and not pair.fault else None
    listed = [list_change(pair, found, shown, index, side) for index in range(min(LISTED, len(found.order)))]
    name = "The whole scene" if pair.area is None else "The area of interest and its surroundings"
    data = max(1, metadata["pixels"]["data"])
    result = {
        "title": f"Change from {Path(metadata['before']).stem} to {Path(metadata['after']).stem}",
        "summary": summarise(metadata, math.sqrt(size[0] * size[1]) if size and side else None),
        "warnings": metadata["warnings"],
        "scene": {
            "has_area": pair.area is not None,
            "scale": scale_bar(pair.width, side, SCALE_BAR),
            "found": describe_list(len(found.order), metadata),
            "changes": listed,
            "about": describe_making(metadata, pair.alignment),
        },
    }
    row = {"image": name, "predicted_share": metadata["pixels"]["changed"] / data}
    case = ImageCase(name, before=before, after=after, changed=changed, mask=None)
    write_report(folder / "report.html", result, [row], [case])


def mark_area(pair: RasterPair, overviews: Sequence[Image]) -> list[Image]:
    """Outline the area of interest, if there is one, in overviews (h, w, 3) of the scene."""
    if pair.area is None:
        return list(overviews)
    height, width = overviews[0].shape[:2]
    a, b, c, d, e, f = tuple(pair.transform)[:6]  # multiplied here, because affine uses * only before version 3
    across, down = pair.width / width, pair.height / height
    reduced = geo("rasterio.transform").Affine(a * across, b * down, c, d * across, e * down, f)
    inside = inside_area(pair.area, reduced, first=0, last=height, width=width)
    return [outline(overview, inside, WHITE) for overview in overviews]


def shrink_changes(numbers: Path, shown: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Shrink the changes that are `shown` (N,), by their numbers, to a mask of `shape` (h, w).

    A pixel is changed if any pixel of its area is, so no change is lost.
    """
    small = np.zeros(shape, np.bool_)
    with geo("rasterio").open(numbers) as dataset:
        for row, window in strips(dataset):
            y, x = np.nonzero(shown[dataset.read(1, window=window)])
            small[(y + row) * shape[0] // dataset.height, x * shape[1] // dataset.width] = True
    return small


# --- the largest changes -------------------------------------------------------------------------------------------


def list_change(
    pair: RasterPair, found: Found, shown: NDArray[np.bool_], index: int, side: float | None
) -> dict[str, Any]:
    """Describe a change for the report, with chips of both dates in which it is outlined.

    Args:
        pair: the rasters.
        found: their changes.
        shown: which of them are shown, bool (N,), by number.
        index: the one to describe, as an index of `found.order`.
        side: width of a pixel on the ground in metres, or None.
    """
    changes, number = found.changes, int(found.order[index])
    pixels = int(changes.pixels[number])
    block = chip_block(changes, number, pair.height, pair.width)
    scale = CHIP / max(block.height, block.width)
    size = max(1, round(block.width * scale)), max(1, round(block.height * scale))
    window = geo("rasterio.windows").Window(
        col_off=block.left, row_off=block.top, width=block.width, height=block.height
    )
    with geo("rasterio").open(found.path) as dataset:
        numbers = dataset.read(1, window=window)
    own = resize_mask(numbers == number, size)
    others = resize_mask(shown[numbers], size)
    chips = {}
    for date, raster in (("before", pair.before), ("after", pair.after)):
        image = np.ascontiguousarray(raster.read(block)[0].transpose(1, 2, 0))
        chip = np.asarray(
            cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8
        )
        chips[date] = photo(outline(outline(chip, others, WHITE), own, YELLOW, 2), size)
    return {
        "id": number,
        **({} if found.classes is None else {"kind": str(found.classes[number])}),
        "area": None if found.areas is None else format_area(float(found.areas[index])),
        "pixels": pixels,
        "mean": f"{changes.total[number] / pixels / found.highest:.2f}",
        "max": f"{changes.highest[number] / found.highest:.2f}",
        "place": place_of(pair, changes, number),
        "width": size[0],
        "height": size[1],
        "scale": scale_bar(block.width, side, CHIP_SCALE_BAR),
        **chips,
    }


def chip_block(changes: Changes, number: int, height: int, width: int) -> Block:
    """Choose the square around a change that its chip shows, inside a scene of `height` x `width` pixels."""
    top, left = int(changes.top[number]), int(changes.left[number])
    bottom, right = int(changes.bottom[number]), int(changes.right[number])
    side = round(min(max(AROUND * max(bottom - top, right - left), SMALLEST_CHIP), LARGEST_CHIP))
    tall, wide = min(side, height), min(side, width)
    return Block(
        top=min(max(0, (top + bottom - tall) // 2), height - tall),
        left=min(max(0, (left + right - wide) // 2), width - wide),
        height=tall,
        width=wide,
    )


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask to `size` (width, height); a pixel of the result is True if any pixel of its area is."""
    shrinks = mask.shape[0] > size[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=kind) > 0)


def place_of(pair: RasterPair, changes: Changes, number: int) -> str:
    """Return latitude and longitude of the centre of a change as text; without a place on earth, row and column."""
    row, column = (
        float(total[number]) / float(changes.pixels[number]) + 0.5 for total in (changes.rows, changes.columns)
    )
    if pair.fault or not is_on_earth(pair.crs):
        return f"row {row:.0f}, column {column:.0f}"
    x, y = apply_affine(pair.transform, np.array([column]), np.array([row]))
    longitude, latitude, _ = project(pair.crs, wgs84(), x, y)
    return f"{latitude[0]:.5f}, {longitude[0]:.5f}"


# --- text ----------------------------------------------------------------------------------------------------------


def scale_bar(pixels: int, side: float | None, most: float) -> dict[str, Any]:
    """Choose a scale bar for a picture that is `pixels` wide.

    Args:
        pixels: width of the picture in pixels of the scene.
        side: width of a pixel on the ground in metres; None gives a bar in pixels.
        most: its maximum length as a share of the picture.

    Returns:
        Its length as a share of the picture, and its label.
    """
    whole = pixels * (side or 1.0)
    power = 10.0 ** math.floor(math.log10(whole * most))
    length = max(step for step in (1, 2, 5) if step * power <= whole * most) * power
    unit, shown = ("m", length) if length < 1000 else ("km", length / 1000)
    if side is None:
        unit, shown = "pixels", length
    return {"share": length / whole, "label": f"{shown:,g} {unit}"}


def summarise(metadata: dict[str, Any], side: float | None) -> str:
    """Describe the scene and what was found in one line; `side` is that of a pixel in metres, if it is known."""
    size = f"{metadata['width']:,} x {metadata['height']:,} pixels"
    parts = [f"{size} of {format_length(side)}" if side else size, describe_findings(metadata)]
    dates = [metadata["before_date"], metadata["after_date"]]
    if all(dates):
        parts.insert(0, " to ".join(date.partition("T")[0] for date in dates))
    return " · ".join(parts)


def describe_list(count: int, metadata: dict[str, Any]) -> str:
    """Describe the list of changes; `count` is the number of changes that are shown."""
    if not count:
        return ""
    kind = "polygons" if "polygons" in metadata else "connected changes"
    which = f"The {LISTED} largest of {count:,} {kind}" if count > LISTED else f"All {kind}, the largest first"
    ids = " Each is numbered by its attribute id." if "polygons" in metadata else ""
    return f"{which}.{ids} Each one is outlined in yellow, the others near it in white."


def describe_making(metadata: dict[str, Any], alignment: Alignment | None) -> dict[str, dict[str, Any]]:
    """Collect titled tables that describe how the result was made."""
    classes = {"Classes": describe_classes(metadata["classes"])} if "classes" in metadata else {}
    checkpoint, pixels = metadata["checkpoint"], metadata["min_pixels"]
    resolution = checkpoint.get("resolution")
    dates = {}
    for date in ("before", "after"):
        look, ends = metadata["look"][date], metadata["stretched"][date]
        dates[date.capitalize()] = {
            "file": metadata[date],
            "date": metadata[f"{date}_date"],
            "pixels": " x ".join(dict.fromkeys(format_length(side) for side in look["pixel_m"] or [])),
            "bands": join(look["bands"]),
            "levels": f"{join(ends['low'])} to {join(ends['high'])}",
            "no_data": f"{look['no_data']:.1%}",
        }
    names = ("threshold", "tile", "overlap", "precision", "device", "aoi", "simplify", "crs")
    prediction = {name: metadata[name] for name in names if metadata.get(name)}
    if "polygons" in metadata:
        prediction["smallest_polygon"] = f"{pixels} pixels" if pixels else format_area(metadata["min_area"])
        if metadata["outlines"] != "pixels":
            prediction["outlines"] = metadata["outlines"]
    aligned = {} if alignment is None else {"Alignment": alignment.summary()}
    return {
        **dates,
        **aligned,
        **classes,
        "Prediction": prediction,
        "Checkpoint": {
            "file": checkpoint.get("path"),
            "sha256": checkpoint.get("sha256"),
            "trained_on": f"{resolution[0]:g} to {resolution[1]:g} m per pixel" if resolution else "",
        },
        "Versions": versions(),
    }


def join(values: Iterable[float]) -> str:
    """Join numbers with commas, without duplicates."""
    return ", ".join(dict.fromkeys(f"{value:.6g}" for value in values))
