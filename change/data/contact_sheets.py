"""Sheets of pictures for the eye to judge what `change.data.check` found: a file a kind, a row a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from change.change_dataloader import Pair
from change.common.errors import UserError
from change.common.files import write_whole
from change.common.images import Image, read_image, read_levels

ROWS, SIDE, GAP, CAPTION = 12, 256, 6, 22  # findings a sheet; pixels


@dataclass(frozen=True)
class Row:
    """A finding: its text and at most two pairs. `join`: the side of the first at which the second continues it."""

    text: str
    pairs: Sequence[Pair]
    join: str = ""
    checkered: bool = False


def write_sheets(folder: Path, rows: Mapping[str, Sequence[Row]]) -> list[Path]:
    """Write FOLDER/KIND.jpg for each kind, of at most ROWS findings spread over all of them; return the paths."""
    written = []
    for kind, every in rows.items():
        chosen = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, ROWS).round().astype(int))]
        drawn = [draw(row) for row in chosen]
        width = max(picture.shape[1] for picture in drawn)
        sheet = np.concatenate([pad(picture, width) for picture in drawn])
        path = folder / f"{kind.replace(' ', '_')}.jpg"
        write_whole(path, cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        written.append(path)
    return written


def draw(row: Row) -> Image:
    """A caption above before and after of each pair, joined at the border where there is one, else with the masks."""
    shots = [shots_of(pair) for pair in row.pairs]
    if row.join and len(shots) == 2:
        axis = 1 if row.join in ("right", "left") else 0
        order = shots if row.join in ("right", "bottom") else shots[::-1]
        pictures = [np.concatenate([fit(order[0][d], order[1][d], axis), order[1][d]], axis) for d in (0, 1)]
    else:
        pictures = [picture for shot in shots for picture in shot]
        if row.checkered:
            pictures.append(checkered(*shots[0][:2]))
    height = max(picture.shape[0] for picture in pictures)
    pieces = [np.concatenate([p, np.full((height - len(p), p.shape[1], 3), 255, np.uint8)]) for p in pictures]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    line = np.concatenate([piece for picture in pieces for piece in (picture, gap)], axis=1)
    text = row.text.encode("ascii", "replace").decode()
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    line = pad(line, width + 2 * GAP)
    caption = np.full((CAPTION, line.shape[1], 3), 255, np.uint8)
    cv2.putText(caption, text, (2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, line, np.full((GAP, line.shape[1], 3), 255, np.uint8)])


def shots_of(pair: Pair) -> list[Image]:
    """Before, after and, where it can be read, the mask with its levels spread to 0..255; SIDE pixels at most."""
    pictures = [read_image(pair.before), read_image(pair.after)]
    if pair.mask:
        try:
            levels, _ = read_levels(pair.mask)
            grey = (levels / max(1, int(np.max(levels))) * 255).astype(np.uint8)
            pictures.append(np.repeat(grey[..., None], 3, axis=2))
        except UserError:
            pass
    scale = min(1.0, SIDE / max(pictures[0].shape[:2]))
    return [
        np.asarray(cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8) for p in pictures
    ]


def fit(picture: Image, other: Image, axis: int) -> Image:
    """Cut or fill with white so that two pictures can be joined along `axis`."""
    length = other.shape[1 - axis]
    picture = picture[:length] if axis else picture[:, :length]
    lacking = length - picture.shape[1 - axis]
    widths = [(0, lacking), (0, 0), (0, 0)] if axis else [(0, 0), (0, lacking), (0, 0)]
    return np.pad(picture, widths, constant_values=255)


def checkered(before: Image, after: Image) -> Image:
    """Before and after in turn, in squares: lines break where the dates are shifted."""
    rows, columns = np.indices(before.shape[:2]) // (SIDE // 8)
    return np.asarray(np.where(((rows + columns) % 2 == 0)[..., None], before, after), np.uint8)


def pad(picture: Image, width: int) -> Image:
    """Fill with white on the right."""
    return np.pad(picture, [(0, 0), (0, max(0, width - picture.shape[1])), (0, 0)], constant_values=255)
