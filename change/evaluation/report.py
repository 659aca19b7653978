"""The report of an evaluation: one HTML file that holds its pictures, its scores and how they came about.

report.html is the page. What it shows is put into it as JSON, which its script lays out as text, never as markup.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from change.common.files import write_whole
from change.common.pictures import BLUE, GREEN, RED, Image

BEST, WORST = 6, 12  # images shown large
SIDE = 768  # pixels, at most, of their longer side
QUALITIES, PHOTO_BYTES = (85, 70, 55, 40), 300_000  # of a JPEG: the first quality that keeps it as small as that
YELLOW = (255, 210, 0)  # predicted change where the truth is not known
NUMBERS = ("predicted_share", "tp", "fp", "fn", "tn", "precision", "recall", "f1", "iou", "oa")


@dataclass(frozen=True)
class ImageCase:
    """An image shown large: its name in images.csv, RGB (H, W, 3) at both dates, bool (H, W) prediction and truth."""

    name: str
    before: Image
    after: Image
    changed: NDArray[np.bool_]
    mask: NDArray[np.bool_] | None


def choose_cases(rows: Sequence[Mapping[str, Any]], best: int = BEST, worst: int = WORST) -> list[str]:
    """Names of the images to show, of the rows of images.csv: those of the most wrong pixels, the worst first, then
    those of the highest F1 that hold change, the best first; no name twice.

    Without labels: those of the largest predicted share.
    """
    images = [image_of(row) for row in rows]
    if all(image["tp"] is None for image in images):
        images.sort(key=lambda image: -(image["predicted_share"] or 0))
        return [image["image"] for image in images[: best + worst]]
    wrong = sorted((image for image in images if errors(image)), key=lambda image: -errors(image))
    names = [image["image"] for image in wrong[:worst]]
    right = [image for image in images if image["tp"] + image["fn"] and image["image"] not in names]
    right.sort(key=lambda image: -image["f1"])
    return names + [image["image"] for image in right[:best]]


def errors(image: Mapping[str, Any]) -> float:
    """Its wrong pixels."""
    return float(image["fp"] + image["fn"])


def image_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of images.csv, whose values may be text, for the page: numbers, or None where undefined or absent."""
    numbers = {name: number(row.get(name)) for name in NUMBERS}
    trained = str(row.get("trained_on")) == "True"
    return {"image": str(row["image"]), "group": str(row.get("group") or ""), "trained_on": trained, **numbers}


def number(value: Any) -> float | None:
    """A number, or None for nothing and for NaN."""
    return None if value is None or value == "" or math.isnan(float(value)) else float(value)


def write_report(
    path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], cases: Iterable[ImageCase]
) -> None:
    """Write the page: `result` as in metrics.json, any part of which may be missing, `rows` as in images.csv, `cases`
    in any order.

    An image shown takes about 0.3 MB, 1 MB at most. Raises UserError where it cannot be written.
    """
    order, worst = choose_cases(rows), choose_cases(rows, best=0)
    pictures = [{**pictures_of(case), "worst": case.name in worst} for case in cases]
    pictures.sort(key=lambda case: order.index(case["name"]) if case["name"] in order else len(order))
    page = {
        "result": result,
        "rows": [image_of(row) for row in rows],
        "cases": pictures,
        "colors": {"tp": GREEN, "fn": RED, "fp": BLUE, "predicted": YELLOW},
    }
    # Without "<" no text in it can end the script element.
    data = json.dumps(page, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    write_whole(path, template.replace("__DATA__", data).encode())


def pictures_of(case: ImageCase) -> dict[str, Any]:
    """A case for the page: its pictures as data: URIs of one size."""
    height, width = case.changed.shape
    scale = min(1, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return {
        "name": case.name,
        "labelled": case.mask is not None,
        "width": size[0],
        "height": size[1],
        "before": photo(case.before, size),
        "after": photo(case.after, size),
        "overlay": overlay(case.changed, case.mask, size),
    }


def photo(picture: Image, size: tuple[int, int]) -> str:
    """RGB (H, W, 3) -> data: URI of a JPEG of `size` (width, height)."""
    small = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., ::-1])
    for quality in QUALITIES:
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= PHOTO_BYTES:
            break
    return data_uri("jpeg", data)


def overlay(changed: NDArray[np.bool_], mask: NDArray[np.bool_] | None, size: tuple[int, int]) -> str:
    """Bool (H, W) each -> data: URI of a PNG of `size`: FN, FP and TP in their colours, or without a mask the predicted
    change; the rest is transparent.

    A cell takes the colour that covers most of it, however little that is: no object is too small to be seen.
    """
    kinds, colors, alpha = [changed], [YELLOW], [128]
    if mask is not None:
        kinds, colors = [~changed & mask, changed & ~mask, changed & mask], [RED, BLUE, GREEN]
        alpha = [160, 160, 80]  # what is wrong stands out, what is right lets the ground through
    shares = np.stack([cv2.resize(kind.astype(np.float32), size, interpolation=cv2.INTER_AREA) for kind in kinds])
    picture = PIL.Image.fromarray(np.where(shares.any(0), 1 + shares.argmax(0), 0).astype(np.uint8))
    picture.putpalette([0, 0, 0, *(value for color in colors for value in color)])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes([0, *alpha]), optimize=True)
    return data_uri("png", file.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """An image file as a data: URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
