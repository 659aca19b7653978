"""What two images have in common: one image twice, tiles that continue each other, dates that are shifted.

Shapes: images uint8 RGB (H, W, 3). N images or pairs are compared all with all, as matrix products. Thresholds were
set on CLCD (512), LEVIR-CD (1024) and MS-HS-BCD (256), where the correct links are far from chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.images import Image

Floats = NDArray[np.float32]

THUMB, COARSE = 64, 16  # sides of the thumbnails that tell images apart: kept, and compared first
SAME_COARSE, SAME_FINE = 0.9, 0.8  # correlation at either; other images of one region reach 0.77 and 0.69
FLAT = 2.0  # grey levels: an image or edge that varies less says nothing
SIDES = ("right", "left", "bottom", "top")
OPPOSITE = {"right": "left", "left": "right", "bottom": "top", "top": "bottom"}
LONGEST_EDGE = 1024  # longer ones are averaged down
SHORTEST_EDGE = 64
SMOOTH = 48  # pixels: slower changes along an edge are common to many tiles and left out
SHIFT_SIDE = 256  # longest side at which the shift between the dates is measured
GAIN = 0.03  # by how much the outlines' correlation grows, at least, when a shift is undone


class Link(NamedTuple):
    """Pairs `first` and `second` meet: `first`'s side `side` with `second`'s `other`. `score`: mean correlation."""

    first: int
    second: int
    side: str
    other: str
    score: float


class Shift(NamedTuple):
    """How far the second date lies from the first, in pixels; `confidence`: 0 (none) to 1, below 0.05 it is chance."""

    x: float
    y: float
    confidence: float


def thumbnail(image: Image) -> Image:
    """(H, W, 3) -> (64, 64, 3), each pixel the mean of its area."""
    return np.asarray(cv2.resize(image, (THUMB, THUMB), interpolation=cv2.INTER_AREA), np.uint8)


def edges(image: Image) -> list[Image]:
    """The outermost pixels of the four SIDES, (L, 3) each, from the top or from the left."""
    lines = [image[:, -1], image[:, 0], image[-1], image[0]]
    return [shorten(line) if len(line) > LONGEST_EDGE else line.copy() for line in lines]


def shorten(line: Image) -> Image:
    """(L, 3) -> at most LONGEST_EDGE of them, each the mean of as many."""
    factor = -(-len(line) // LONGEST_EDGE)
    size = (1, len(line) // factor)
    return np.asarray(cv2.resize(line[:, None], size, interpolation=cv2.INTER_AREA), np.uint8)[:, 0]


def shift(before: Image, after: Image) -> Shift:
    """Phase correlation of the two dates (Kuglin and Hines, 1975), to a fraction of a pixel of the reduced images.

    Without confidence where outlines do not lie on each other better after the shift than before it: leaning towers
    and moved shadows have peaks of their own.
    """
    scale = min(1.0, SHIFT_SIDE / max(before.shape[:2]))
    size = (max(1, round(before.shape[1] * scale)), max(1, round(before.shape[0] * scale)))
    grey = [
        np.asarray(cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY), np.float32)
        for image in (before, after)
    ]
    if min(size) < 32 or min(float(part.std()) for part in grey) < FLAT:
        return Shift(0.0, 0.0, 0.0)
    window = cv2.createHanningWindow(size, cv2.CV_32F)
    (x, y), response = cv2.phaseCorrelate(grey[0] - grey[0].mean(), grey[1] - grey[1].mean(), window)
    margin = int(max(abs(x), abs(y))) + 1
    if margin > 1:
        first, second = (outlines(part) for part in grey)
        move = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
        moved = np.asarray(cv2.warpAffine(second, move, size), np.float32)
        inner = np.s_[margin:-margin, margin:-margin]
        if 2 * margin + 16 > min(size) or (
            correlation(first[inner], moved[inner]) < correlation(first[inner], second[inner]) + GAIN
        ):
            response = 0.0
    return Shift(x / scale, y / scale, min(1.0, max(0.0, response)))


def outlines(grey: Floats) -> Floats:
    """Strength of the gradient, smoothed, less its surroundings': (H, W) -> (H, W)."""
    strength = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return np.asarray(cv2.GaussianBlur(strength, (0, 0), 1) - cv2.blur(strength, (21, 21)), np.float32)


def correlation(a: Floats, b: Floats) -> float:
    """Of two arrays whose means are about 0."""
    return float((a * b).sum() / max(1e-6, float(np.sqrt((a * a).sum() * (b * b).sum()))))


def opponent(colours: Floats) -> Floats:
    """RGB (..., 3) -> grey, red - green, blue - green: less alike from pixel to pixel, and from tile to tile."""
    red, green, blue = np.moveaxis(colours, -1, 0)
    return np.stack((colours.mean(-1), 2 * (red - green), 2 * (blue - green)), axis=-1).astype(np.float32)


def unit(rows: Floats) -> Floats:
    """(N, D) -> rows of length 1, of zeros where a row's root mean square is below FLAT: it then matches nothing."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = length < FLAT * np.sqrt(rows.shape[1])
    return np.asarray(np.where(flat, 0, rows / np.maximum(length, 1e-6)), np.float32)


# --- one image twice -----------------------------------------------------------------------------------------------


def cells(thumbs: Image, side: int) -> Floats:
    """(N, 64, 64, 3) -> (N, side, side, 3): means of areas, in opponent colours."""
    size = (side, side)
    return opponent(np.stack([cv2.resize(t.astype(np.float32), size, interpolation=cv2.INTER_AREA) for t in thumbs]))


def describe(areas: Floats) -> Floats:
    """`cells` -> vectors (N, D) whose products are the images' correlations."""
    colours = areas.reshape(len(areas), -1, 3)
    return unit(np.asarray(colours - colours.mean(1, keepdims=True), np.float32).reshape(len(areas), -1))


def symmetries(areas: Floats) -> Iterator[tuple[str, Floats]]:
    """The eight ways to lay a square: name, (N, S, S, 3). Turns are counter-clockwise, after the flip."""
    for flip, laid in (("", areas), ("flipped ", areas[:, :, ::-1])):
        for turns in range(4):
            name = f"{flip}{f'turned {90 * turns} degrees' if turns else ''}".strip()
            yield name or "as it is", np.rot90(laid, turns, (1, 2))


def alike(thumbs: Image) -> list[tuple[int, int, str]]:
    """Thumbnails (N, 64, 64, 3) -> first, second, how the first is laid, of every two that show the same image."""
    areas = cells(thumbs, COARSE)
    coarse = describe(areas)
    found: dict[tuple[int, int], str] = {}
    for name, laid in symmetries(areas):
        rows = describe(laid)
        for start in range(0, len(rows), 1024):
            scores = rows[start : start + 1024] @ coarse.T
            for row, second in np.argwhere(scores > SAME_COARSE).tolist():
                first = start + row
                if first < second and (first, second) not in found:
                    fine = cells(thumbs[[first, second]], THUMB)
                    one = dict(symmetries(fine[:1]))[name]
                    if float((describe(one) @ describe(fine[1:]).T)[0, 0]) > SAME_FINE:
                        found[first, second] = name
    return [(*pair, name) for pair, name in sorted(found.items())]


# --- tiles that continue each other --------------------------------------------------------------------------------


def profiles(lines: Image) -> Floats:
    """Edges (N, L, 3) -> (N, L, 3) in opponent colours, without what changes slowly along them."""
    count, length, _ = lines.shape
    rows = np.ascontiguousarray(opponent(lines.astype(np.float32)).transpose(0, 2, 1).reshape(-1, length))
    rows -= cv2.blur(rows, (SMOOTH, 1)).reshape(rows.shape)
    rows -= rows.mean(1, keepdims=True)
    return np.asarray(rows.reshape(count, 3, length).transpose(0, 2, 1), np.float32, order="C")


def joined(before: Floats, after: Floats) -> Floats:
    """Profiles of both dates, (N, L, 3) each -> (N, 6 L) whose product is the mean of the dates' correlations."""
    count = len(before)
    both = [unit(profile.reshape(count, -1)) for profile in (before, after)]
    return np.asarray(np.concatenate(both, axis=1) / np.sqrt(2), np.float32)


def least(length: int, side: str, other: str) -> float:
    """The correlation from which edges of `length` pixels meet: chance falls with the root of the length.

    Neighbouring pixels continue each other; two edges on the same side are the same pixels or nothing.
    """
    return max(0.8 if side == other else 0.45, 7.4 / float(np.sqrt(length)))


def links(before: Sequence[Sequence[Image]], after: Sequence[Sequence[Image]]) -> list[Link]:
    """The `edges` of N pairs' two dates -> which pairs continue each other, or share an edge (one cut from the other).

    Edges of equal length are compared whole, a shorter one with every part of the longer ones.
    """
    found: list[Link] = []
    sides = {side: by_length(before, after, side) for side in SIDES}
    for side, other in (("right", "left"), ("bottom", "top"), *((side, side) for side in SIDES)):
        for length, (rows, profile, whole) in sides[side].items():
            for width, (columns, candidates, others) in sides[other].items():
                if length == width:
                    found += equal_edges(rows, whole, columns, others, side, other, length)
                elif length < width:
                    found += partial_edges(rows, profile, columns, candidates, side, other)
                elif side != other:
                    found += partial_edges(columns, candidates, rows, profile, other, side)
    best: dict[tuple[int, int], Link] = {}
    for link in found:
        key = (min(link[:2]), max(link[:2]))
        if key not in best or best[key].score < link.score:
            best[key] = link
    return sorted(best.values())


Profiles = tuple[Floats, Floats]


def by_length(
    before: Sequence[Sequence[Image]], after: Sequence[Sequence[Image]], side: str
) -> dict[int, tuple[list[int], Profiles, Floats]]:
    """One side's edges by their length: the pairs' numbers, their profiles at both dates, (N, L, 3) each, `joined`."""
    number = SIDES.index(side)
    members: dict[int, list[int]] = defaultdict(list)
    for index, lines in enumerate(before):
        if len(lines[number]) >= SHORTEST_EDGE:
            members[len(lines[number])].append(index)
    found = {}
    for length, rows in members.items():
        dates = profiles(stack(before, rows, number)), profiles(stack(after, rows, number))
        found[length] = rows, dates, joined(*dates)
    return found


def stack(lines: Sequence[Sequence[Image]], rows: Iterable[int], side: int) -> Image:
    """Edges of one length as one array (N, L, 3)."""
    return np.stack([lines[row][side] for row in rows])


def equal_edges(
    rows: list[int], a: Floats, columns: list[int], b: Floats, side: str, other: str, length: int
) -> Iterator[Link]:
    """Links between edges of one length, from `joined` profiles (N, D) and (M, D)."""
    for start in range(0, len(rows), 512):
        scores = a[start : start + 512] @ b.T
        for row, column in np.argwhere(scores > least(length, side, other)).tolist():
            first, second = rows[start + row], columns[column]
            if first < second or (first > second and side != other):
                yield Link(first, second, side, other, float(scores[row, column]))


def partial_edges(
    short: list[int], lines: Profiles, long: list[int], candidates: Profiles, side: str, other: str
) -> Iterator[Link]:
    """Links between each shorter edge and the best place along each longer one."""
    length, width = lines[0].shape[1], candidates[0].shape[1]
    for row, first in enumerate(short):
        scores = np.zeros((len(long), width - length + 1), np.float32)
        for date in (0, 1):
            if unit(lines[date][row].reshape(1, -1)).any():
                template = lines[date][row][None]
                scores += np.nan_to_num(cv2.matchTemplate(candidates[date], template, cv2.TM_CCOEFF_NORMED)) / 2
        for column in np.flatnonzero(scores.max(1) > least(length, side, other)).tolist():
            if first != long[column]:
                yield Link(first, long[column], side, other, float(scores[column].max()))
