"""The report of an evaluation: one HTML file with pictures, scores and the protocol.

report.html is the page. Its content is inserted as JSON, and its script shows it as text, never as markup.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.files import write_whole
from change.common.pictures import BLUE, GREEN, RED, YELLOW, Image

TEMPLATE = Path(__file__).with_name("report.html")
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
BEST, WORST = 6, 12  # number of images shown large
SIDE = 768  # longest side of these images in pixels
QUALITIES = (85, 70, 55, 40)  # JPEG qualities; the first that keeps the file below PHOTO_BYTES is used
PHOTO_BYTES = 300_000
NUMBERS = ("predicted_share", "tp", "fp", "fn", "tn", "precision", "recall", "f1", "iou", "oa")


@dataclass(frozen=True)
class ImageCase:
    """An image that is shown large.

    Attributes:
        name: its name in images.csv.
        before: RGB (H, W, 3).
        after: RGB (H, W, 3).
        changed: predicted change, bool (H, W).
        mask: true change, bool (H, W), if it is known.
    """

    name: str
    before: Image
    after: Image
    changed: NDArray[np.bool_]
    mask: NDArray[np.bool_] | None


def choose_cases(rows: Sequence[Mapping[str, Any]], best: int = BEST, worst: int = WORST) -> list[str]:
    """Choose the images that are shown large.

    These are the images with the most wrong pixels, the worst first, then the images with change that have the highest
    F1, the best first. Without labels, they are the images with the largest predicted share.

    Args:
        rows: rows of images.csv.
        best: number of images with the highest F1.
        worst: number of images with the most wrong pixels.

    Returns:
        Names of images, each once.
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
    """Return the number of wrong pixels."""
    return float(image["fp"] + image["fn"])


def image_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of images.csv, whose values may be text; numbers that are undefined or missing are None."""
    numbers = {name: number(row.get(name)) for name in NUMBERS}
    trained = str(row.get("trained_on")) == "True"
    return {"image": str(row["image"]), "group": str(row.get("group") or ""), "trained_on": trained, **numbers}


def number(value: Any) -> float | None:
    """Convert text or a number to float, and an empty value or NaN to None."""
    return None if value is None or value == "" or math.isnan(float(value)) else float(value)


def read_template() -> str:
    """Read the page. Raises UserError if it is missing; call this before long work that ends with a report."""
    try:
        return TEMPLATE.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{TEMPLATE} cannot be read ({error.strerror or error}): it comes with PRX-Change; install it again or "
            "restore it with git"
        ) from error


def write_report(
    path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], cases: Iterable[ImageCase]
) -> None:
    """Write the report. Each image that is shown large takes about 0.3 MB, at most 1 MB.

    Args:
        path: file to write.
        result: content of metrics.json; any part of it may be missing.
        rows: rows of images.csv.
        cases: images that are shown large, in any order.

    Raises:
        UserError: if the file cannot be written, or its template is missing.
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
    write_page(path, page)


def write_page(path: Path, page: Mapping[str, Any]) -> None:
    """Write a report from what its script reads. Raises UserError as `write_report` does."""
    # Without "<", no text can end the script element.
    data = json.dumps(page, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    write_whole(path, read_template().replace("__DATA__", data).encode())


def read_page(path: Path) -> dict[str, Any] | None:
    """Read what the script of a report reads; None if the file is missing or is not a report."""
    try:
        found = DATA.search(path.read_text(encoding="utf-8"))
        page = json.loads(found[1]) if found else None
    except (OSError, ValueError):
        return None
    return page if isinstance(page, dict) else None


def pictures_of(case: ImageCase) -> dict[str, Any]:
    """Convert a case for the page: its pictures become data URIs of one size."""
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
    """Convert RGB (H, W, 3) to the data URI of a JPEG file of `size` (width, height)."""
    small = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., ::-1])
    for quality in QUALITIES:
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= PHOTO_BYTES:
            break
    return data_uri("jpeg", data)


def overlay(changed: NDArray[np.bool_], mask: NDArray[np.bool_] | None, size: tuple[int, int]) -> str:
    """Draw errors, or the predicted change if there is no mask, on a transparent background.

    Each pixel of the result takes the colour that covers the largest part of its area, even if most of that area has no
    colour. This keeps small objects visible.

    Args:
        changed: predicted change, bool (H, W).
        mask: true change, bool (H, W), if it is known.
        size: width and height of the picture.

    Returns:
        The data URI of a PNG file.
    """
    kinds, colors, alpha = [changed], [YELLOW], [128]
    if mask is not None:
        kinds, colors = [~changed & mask, changed & ~mask, changed & mask], [RED, BLUE, GREEN]
        alpha = [160, 160, 80]  # errors stand out; correct pixels are more transparent
    shares = np.stack([cv2.resize(kind.astype(np.float32), size, interpolation=cv2.INTER_AREA) for kind in kinds])
    picture = PIL.Image.fromarray(np.where(shares.any(0), 1 + shares.argmax(0), 0).astype(np.uint8))
    picture.putpalette([0, 0, 0, *(value for color in colors for value in color)])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes([0, *alpha]), optimize=True)
    return data_uri("png", file.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """Convert an image file to a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
