"""Contact sheets of what `change.data.check` found: one file per kind of finding, one row per finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from change.change_dataloader import Pair, read_images
from change.common.bands import Channels
from change.common.errors import UserError
from change.common.files import write_whole
from change.common.images import Image
from change.data.mask_levels import read_levels

ROWS = 12  # findings per sheet
SIDE = 256  # longest side of a picture, in pixels
GAP = 6  # pixels between pictures
CAPTION = 22  # height of a caption, in pixels


@dataclass(frozen=True)
class Row:
    """A finding to draw.

    Attributes:
        text: The caption.
        pairs: At most two pairs.
        join: The side of the first pair on which the second continues it, or "".
        checkered: Whether to add a checkerboard of before and after.
    """

    text: str
    pairs: Sequence[Pair]
    join: str = ""
    checkered: bool = False


def write_sheets(folder: Path, rows: Mapping[str, Sequence[Row]], channels: Channels | None = None) -> list[Path]:
    """Write FOLDER/KIND.jpg for each kind of finding; return the paths.

    A sheet has at most ROWS rows, spread evenly over all findings of its kind.

    `channels`: the bands of the images; None for 8-bit RGB.
    """
    written = []
    for kind, every in rows.items():
        chosen = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, ROWS).round().astype(int))]
        drawn = [draw(row, channels) for row in chosen]
        width = max(picture.shape[1] for picture in drawn)
        sheet = np.concatenate([pad(picture, width) for picture in drawn])
        path = folder / f"{kind.replace(' ', '_')}.jpg"
        write_whole(path, cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        written.append(path)
    return written


def draw(row: Row, channels: Channels | None) -> Image:
    """Draw a caption, and below it each pair: joined if one continues the other, else with the masks."""
    shots = [load_pictures(pair, channels) for pair in row.pairs]
    if row.join and len(shots) == 2:
        axis = 1 if row.join in ("right", "left") else 0
        first, second = shots if row.join in ("right", "bottom") else shots[::-1]
        pictures = [np.concatenate([fit(first[date], second[date], axis), second[date]], axis) for date in (0, 1)]
    else:
        pictures = [picture for shot in shots for picture in shot]
        if row.checkered:
            pictures.append(checkerboard(*shots[0][:2]))
    height = max(picture.shape[0] for picture in pictures)
    pieces = [np.concatenate([p, np.full((height - len(p), p.shape[1], 3), 255, np.uint8)]) for p in pictures]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    line = np.concatenate([piece for picture in pieces for piece in (picture, gap)], axis=1)
    return add_caption(row.text, line)


def add_caption(text: str, line: Image) -> Image:
    """Put a caption above a picture, and a gap below it."""
    text = text.encode("ascii", "replace").decode()
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    line = pad(line, width + 2 * GAP)
    caption = np.full((CAPTION, line.shape[1], 3), 255, np.uint8)
    cv2.putText(caption, text, (2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, line, np.full((GAP, line.shape[1], 3), 255, np.uint8)])


def load_pictures(pair: Pair, channels: Channels | None) -> list[Image]:
    """Load before, after and the mask, reduced to at most SIDE pixels.

    The mask's levels are stretched to 0..255. A mask that cannot be read is left out.
    """
    pictures = list(read_images(pair, None if channels is None else channels.bands))
    if channels is not None:
        pictures = [channels.picture(levels) for levels in pictures]
    if pair.mask:
        try:
            levels = read_levels(pair.mask).pixels
            grey = (levels / max(1, int(np.max(levels))) * 255).astype(np.uint8)
            pictures.append(np.repeat(grey[..., None], 3, axis=2))
        except UserError:
            pass
    scale = min(1.0, SIDE / max(pictures[0].shape[:2]))
    return [
        np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        for picture in pictures
    ]


def fit(picture: Image, other: Image, axis: int) -> Image:
    """Cut a picture, or fill it with white, so that it can be joined to the other along `axis`."""
    length = other.shape[1 - axis]
    picture = picture[:length] if axis else picture[:, :length]
    lacking = length - picture.shape[1 - axis]
    widths = [(0, lacking), (0, 0), (0, 0)] if axis else [(0, 0), (0, lacking), (0, 0)]
    return np.pad(picture, widths, constant_values=255)


def checkerboard(before: Image, after: Image) -> Image:
    """Show before and after in alternate squares: lines break if the dates are shifted."""
    rows, columns = np.indices(before.shape[:2]) // (SIDE // 8)
    return np.asarray(np.where(((rows + columns) % 2 == 0)[..., None], before, after), np.uint8)


def pad(picture: Image, width: int) -> Image:
    """Fill a picture with white on the right, to at least `width` pixels."""
    return np.pad(picture, [(0, 0), (0, max(0, width - picture.shape[1])), (0, 0)], constant_values=255)
