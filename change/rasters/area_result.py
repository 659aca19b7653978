"""Accuracy and the area of change from a sample that was interpreted: area.json, a table, a section of the report."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from change.common.errors import UserError, list_names
from change.common.files import file_hash, write_whole
from change.common.gdal import geo
from change.evaluation.area_estimate import Accuracy, Estimate, estimate_accuracy
from change.evaluation.report import read_page, write_page
from change.rasters.area_sample import DESIGN, FOLDER, POINTS
from change.rasters.grids import apply_affine
from change.rasters.numbering import Numbers
from change.rasters.result_folder import read_scene
from change.rasters.strata import CHANGE

RESULT = "area.json"
CLASSES = ("no change", "change")
VALUES = {"no change": 0, "0": 0, "change": 1, "1": 1}
HECTARE = 10_000.0  # square metres
RULE_OF_THREE = 3  # with no case among n, the share is below 3 / n with a confidence of 95%
SHOWN = 10  # ids that an error lists
REDRAW = "keep the points as they were drawn, or move the folder away and draw a sample again"


def estimate_area(folder: Path, reference: Path) -> dict[str, Any]:
    """Estimate from a sample that was filled in, and write area.json.

    Args:
        folder: a finished scene with a sample.
        reference: the filled-in layer; a bare file name is also looked up in the sample's folder.

    Returns:
        The content of area.json; the report of the scene gets a section about it.

    Raises:
        UserError: if the folder is not a finished scene, the sample is missing or of another scene, or the layer is
            incomplete or mistyped.
    """
    read_scene(folder, "mask.tif")
    design = read_design(folder)
    if not reference.exists() and reference.name == str(reference):
        reference = folder / FOLDER / reference
    true = read_reference(reference, folder / "mask.tif", design)
    points = design["points"]
    kinds = np.array(points["stratum"], np.int64)
    accuracy = estimate_accuracy(
        (kinds == CHANGE).astype(np.int64),
        true,
        kinds,
        sizes=[part["pixels"] for part in design["strata"]],
        areas=np.array(points["area_m2"], np.float64),
        classes=len(CLASSES),
    )
    result = summarise(design, accuracy) | {"notes": find_notes(design, kinds, true)}
    write_whole(folder / FOLDER / RESULT, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    add_to_report(folder / "report.html", result)
    return result


def read_design(folder: Path) -> dict[str, Any]:
    """Read area_sample.json. Raises UserError if it is missing, damaged, or of another mask."""
    path = folder / FOLDER / DESIGN
    if not path.is_file():
        raise UserError(f"no file {path}: draw a sample first, with python -m change area {folder}")
    try:
        design: dict[str, Any] = json.loads(path.read_bytes())
        digest = design["mask_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}): restore it, or draw a sample again") from error
    if digest != file_hash(folder / "mask.tif"):
        raise UserError(f"{folder / 'mask.tif'} has changed since {path} was drawn: draw a sample of the new mask")
    return design


# --- the filled-in layer -------------------------------------------------------------------------------------------


def read_reference(path: Path, mask: Path, design: dict[str, Any]) -> Numbers:
    """Read the true classes of the sampled pixels, (n,), in the order of their ids.

    Raises UserError if the layer is not the whole sample, or if a reference is missing or mistyped.
    """
    frame = read_points(path)
    others = set(frame["sample"]) - {design["sample"]}
    if others:
        raise UserError(
            f"{path} belongs to another scene or seed (its field sample holds {list_names(sorted(map(str, others)))}, "
            f"not {design['sample']}): give the {POINTS} of this scene"
        )
    count = len(design["points"]["row"])
    ids = frame["id"].tolist()
    repeated = sorted(number for number, times in Counter(ids).items() if times > 1)
    for what, found in (
        ("lacks the points", sorted(set(range(1, count + 1)) - set(ids))),
        ("has added points", sorted(set(ids) - set(range(1, count + 1)), key=str)),
        ("has more than one point with the ids", repeated),
    ):
        if found:
            raise UserError(f"{path} {what} {list_names(found, SHOWN)}: {REDRAW}")
    frame = frame.sort_values("id", ignore_index=True)
    check_places(frame, path, mask, design)
    texts = [as_text(value) for value in frame["reference"]]
    wrong = [f"{text!r} (id {number})" for number, text in enumerate(texts, start=1) if text and text not in VALUES]
    if wrong:
        raise UserError(f"{path}: reference {list_names(wrong)} is not known: use change or no change, or 1 or 0")
    missing = [number for number, text in enumerate(texts, start=1) if not text]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {count} references are missing, ids {list_names(missing, SHOWN)}: fill in "
            "change or no change"
        )
    return np.array([VALUES[text] for text in texts], np.int64)


def read_points(path: Path) -> Any:
    """Read the layer of a sample as a GeoDataFrame. Raises UserError if it cannot be read or lacks a field."""
    if not path.is_file():
        raise UserError(f"no file {path}: give the filled-in {POINTS}")
    try:
        frame = geo("geopandas").read_file(path)
    except (RuntimeError, ValueError) as error:  # pyogrio's errors
        raise UserError(f"{path} cannot be read as a vector file ({error}): check the file") from error
    missing = [name for name in ("id", "reference", "sample", "geometry") if name not in frame]
    if missing:
        raise UserError(f"{path} has no field {', '.join(missing)}: give the filled-in {POINTS}")
    return frame


def check_places(frame: Any, path: Path, mask: Path, design: dict[str, Any]) -> None:
    """Raise UserError if points, in the order of their ids, have no place or are not in the pixels that were drawn."""
    rows, columns = (np.array(design["points"][name], np.float64) + 0.5 for name in ("row", "column"))
    with geo("rasterio").open(mask) as dataset:
        crs, transform = dataset.crs.to_wkt(), dataset.transform
    if frame.crs is None:
        raise UserError(f"{path} has no coordinate reference system: give the {POINTS} that was written")
    placed = frame.geometry.to_crs(crs)
    found = apply_affine(~transform, placed.x.to_numpy(), placed.y.to_numpy())
    near = (np.abs(found[0] - columns) < 1) & (np.abs(found[1] - rows) < 1)
    if not near.all():
        raise UserError(f"{path} has moved points, ids {list_names(np.flatnonzero(~near) + 1, SHOWN)}: {REDRAW}")


def as_text(value: Any) -> str:
    """Return a value of the field reference as lower-case text; empty if it is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).lower().split())


# --- the result ----------------------------------------------------------------------------------------------------


def summarise(design: dict[str, Any], accuracy: Accuracy) -> dict[str, Any]:
    """Return the content of area.json, without notes."""
    whole = design["compared_m2"] / HECTARE
    return {
        "sample": design["sample"],
        "seed": design["seed"],
        "buffer": design["buffer"],
        "strata": design["strata"],
        "classes": list(CLASSES),
        "counts": accuracy.counts.tolist(),
        "proportions": accuracy.proportions.tolist(),
        "overall_accuracy": interval(accuracy.overall, 1),
        "users_accuracy": intervals(accuracy.users, 1),
        "producers_accuracy": intervals(accuracy.producers, 1),
        "compared_ha": whole,
        "area_ha": intervals([share.times(whole) for share in accuracy.shares], whole),
        "biased_pixel_count_ha": design["changed_m2"] / HECTARE,
    }


def intervals(estimates: list[Estimate], most: float) -> dict[str, dict[str, float | None]]:
    """Describe one estimate per class."""
    return {name: interval(estimate, most) for name, estimate in zip(CLASSES, estimates, strict=True)}


def interval(estimate: Estimate, most: float) -> dict[str, float | None]:
    """Describe an estimate with its 95% interval, cut to 0 and `most`; None if it is not defined."""
    if math.isnan(estimate.value):
        return dict.fromkeys(("value", "plus_minus", "low", "high"))
    return {
        "value": estimate.value,
        "plus_minus": estimate.half_width,
        "low": max(0.0, estimate.value - estimate.half_width),
        "high": min(most, estimate.value + estimate.half_width),
    }


def find_notes(design: dict[str, Any], kinds: Numbers, true: Numbers) -> list[str]:
    """Return one line per stratum whose points show no missed change, because the interval then includes none."""
    notes = []
    pixels = sum(part["pixels"] for part in design["strata"])
    for index, part in enumerate(design["strata"]):
        own = true[kinds == index]
        if index == CHANGE or own.any() or len(own) in (0, part["pixels"]):
            continue
        area = design["compared_m2"] / HECTARE * part["pixels"] / pixels * min(1, RULE_OF_THREE / len(own))
        notes.append(
            f"none of the {len(own)} points in stratum {part['name']} has changed: up to {area:,.2f} ha of change may "
            "be missed there, which the interval does not include; a sample with more points narrows this"
        )
    return notes


def describe_result(result: dict[str, Any]) -> str:
    """Return the table for the terminal."""
    lines = [f"{'share of the area':<22}" + "".join(f"{f'true {name}':>16}" for name in CLASSES) + f"{'points':>9}"]
    for name, shares, counts in zip(CLASSES, result["proportions"], result["counts"], strict=True):
        cells = "".join(f"{100 * share:>15.3f}%" for share in shares)
        lines.append(f"{f'mapped {name}':<22}{cells}{sum(counts):>9}")
    lines.append("")
    lines += [f"{name:<32}{value}" for name, value in describe_values(result).items()]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"]), ""])


def describe_values(result: dict[str, Any]) -> dict[str, str]:
    """Describe accuracies and areas, with their 95% intervals, in words."""
    found = {"overall accuracy": percent(result["overall_accuracy"])}
    for kind, name in (("users", "user's"), ("producers", "producer's")):
        for label in reversed(CLASSES):
            found[f"{name} accuracy, {label}"] = percent(result[f"{kind}_accuracy"][label])
    area = result["area_ha"]["change"]
    found["area of change"] = (
        f"{area['value']:,.2f} ha +- {area['plus_minus']:,.2f} ha (95%: {area['low']:,.2f} to {area['high']:,.2f} ha)"
    )
    found["pixel count, biased"] = f"{result['biased_pixel_count_ha']:,.2f} ha mapped as change"
    found["area compared"] = f"{result['compared_ha']:,.2f} ha"
    return found


def add_to_report(path: Path, result: dict[str, Any]) -> None:
    """Write the section about the area in the report of the scene, if it has a report; replace an earlier section."""
    page = read_page(path)
    if page is None or not page.get("result", {}).get("scene"):
        return
    rows = zip(CLASSES, result["proportions"], strict=True)
    page["result"]["scene"]["area"] = {
        "estimates": describe_values(result),
        "columns": list(CLASSES),
        "shares": [[name, *(f"{100 * share:.3f}%" for share in shares)] for name, shares in rows],
        "notes": result["notes"],
    }
    write_page(path, page)


def percent(share: dict[str, float | None]) -> str:
    """Format a share with its 95% interval; a dash if it is not defined."""
    if share["value"] is None or share["plus_minus"] is None:
        return "-"
    return f"{100 * share['value']:.1f}% +- {100 * share['plus_minus']:.1f}%"
