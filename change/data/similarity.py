"""Compare images: find copies, tiles that continue each other, and shifts between the dates.

Each of N images or pairs is compared with every other, by matrix products. The thresholds were set on CLCD (tiles of
512 pixels), LEVIR-CD (1024) and MS-HS-BCD (256), where correct links score far above chance.

Shapes: images are uint8 RGB (H, W, 3).
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
Profiles = tuple[Floats, Floats]  # of edges before and after, (N, L, 3) each

THUMB = 64  # side of a thumbnail
COARSE = 16  # side at which thumbnails are compared first
# Two images are copies if their correlations at COARSE and at THUMB exceed these. Different images of one region reach
# 0.77 and 0.69.
SAME_COARSE = 0.9
SAME_FINE = 0.8
FLAT = 2.0  # grey levels: images and edges that vary less are not compared
SIDES = ("right", "left", "bottom", "top")
SIDES_THAT_MEET = (  # the first two if tiles continue each other, the others if one was cut from the other
    ("right", "left"),
    ("bottom", "top"),
    ("right", "right"),
    ("left", "left"),
    ("bottom", "bottom"),
    ("top", "top"),
)
LONGEST_EDGE = 1024  # pixels: longer edges are averaged down
SHORTEST_EDGE = 64  # pixels: shorter edges are not compared
SMOOTH = 48  # pixels: slower changes along an edge occur in many tiles, and are removed
SHIFT_SIDE = 256  # longest side at which the shift between the dates is measured
GAIN = 0.03  # the correlation of outlines must grow by at least this when a shift is undone


class Link(NamedTuple):
    """Two pairs that meet: side `side` of pair `first` and side `other` of pair `second`.

    `score` is the correlation of the edges, averaged over both dates.
    """

    first: int
    second: int
    side: str
    other: str
    score: float


class EdgeGroup(NamedTuple):
    """The edges of equal length L on one side of N pairs.

    `pairs` holds the numbers of the pairs, `profiles` the edges before and after as returned by `profiles`, (N, L, 3)
    each, and `joined` both dates as returned by `join_dates`, (N, 6 L).
    """

    length: int
    pairs: list[int]
    profiles: Profiles
    joined: Floats


class Shift(NamedTuple):
    """The offset of the second date from the first in pixels, with a confidence of 0 to 1; below 0.05 it is chance."""

    x: float
    y: float
    confidence: float


def thumbnail(image: Image) -> Image:
    """Reduce (H, W, 3) to (64, 64, 3); each pixel is the mean of its area."""
    return np.asarray(cv2.resize(image, (THUMB, THUMB), interpolation=cv2.INTER_AREA), np.uint8)


def edges(image: Image) -> list[Image]:
    """Return the outermost pixels on each of SIDES, (L, 3) each, from top to bottom or from left to right."""
    lines = [image[:, -1], image[:, 0], image[-1], image[0]]
    return [shorten(line) if len(line) > LONGEST_EDGE else line.copy() for line in lines]


def shorten(line: Image) -> Image:
    """Reduce (L, 3) to at most LONGEST_EDGE pixels; each is the mean of the same number of pixels."""
    factor = -(-len(line) // LONGEST_EDGE)
    size = (1, len(line) // factor)
    return np.asarray(cv2.resize(line[:, None], size, interpolation=cv2.INTER_AREA), np.uint8)[:, 0]


def shift(before: Image, after: Image) -> Shift:
    """Measure the shift between two dates by phase correlation, to a fraction of a pixel of the reduced images.

    The confidence is 0 if undoing the shift does not bring outlines closer together, because leaning towers and moving
    shadows also cause peaks. Source: Kuglin and Hines, "The Phase Correlation Image Alignment Method", 1975.
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
    """Return the smoothed strength of the gradient, less the mean of its surroundings: (H, W) -> (H, W)."""
    strength = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return np.asarray(cv2.GaussianBlur(strength, (0, 0), 1) - cv2.blur(strength, (21, 21)), np.float32)


def correlation(a: Floats, b: Floats) -> float:
    """Return the correlation of two arrays whose means are about 0."""
    return float((a * b).sum() / max(1e-6, float(np.sqrt((a * a).sum() * (b * b).sum()))))


def opponent(colours: Floats) -> Floats:
    """Convert RGB (..., 3) to grey, red - green, blue - green, in which pixels and tiles differ more than in RGB."""
    red, green, blue = np.moveaxis(colours, -1, 0)
    return np.asarray(np.stack((colours.mean(-1), 2 * (red - green), 2 * (blue - green)), axis=-1), np.float32)


def unit(rows: Floats) -> Floats:
    """Scale rows (N, D) to length 1. Rows whose root mean square is below FLAT become 0, so that they match nothing."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = length < FLAT * np.sqrt(rows.shape[1])
    return np.asarray(np.where(flat, 0, rows / np.maximum(length, 1e-6)), np.float32)


# --- copies of images ---------------------------------------------------------------------------------------


def average_areas(thumbs: Image, side: int) -> Floats:
    """Average (N, 64, 64, 3) down to (N, side, side, 3), in opponent colours."""
    size = (side, side)
    return opponent(np.stack([cv2.resize(t.astype(np.float32), size, interpolation=cv2.INTER_AREA) for t in thumbs]))


def describe(areas: Floats) -> Floats:
    """Turn the results of `average_areas` into vectors (N, D) whose dot products are the correlations of the images."""
    colours = areas.reshape(len(areas), -1, 3)
    return unit(np.asarray(colours - colours.mean(1, keepdims=True), np.float32).reshape(len(areas), -1))


def symmetries(areas: Floats) -> Iterator[tuple[str, Floats]]:
    """Yield the eight symmetries of (N, S, S, 3), with their names. Turns are counter-clockwise, after the flip."""
    for flip, flipped in (("", areas), ("flipped ", areas[:, :, ::-1])):
        for turns in range(4):
            turn = f"turned {90 * turns} degrees" if turns else ""
            yield f"{flip}{turn}".strip() or "as it is", np.rot90(flipped, turns, (1, 2))


def find_copies(thumbs: Image) -> list[tuple[int, int, str]]:
    """Find every two of N thumbnails (N, 64, 64, 3) that show the same image.

    Returns their numbers, and the name of the symmetry that turns the first into the second.
    """
    areas = average_areas(thumbs, COARSE)
    coarse = describe(areas)
    found: dict[tuple[int, int], str] = {}
    for name, turned in symmetries(areas):
        rows = describe(turned)
        for start in range(0, len(rows), 1024):
            scores = rows[start : start + 1024] @ coarse.T
            for row, second in np.argwhere(scores > SAME_COARSE).tolist():
                first = start + row
                if first < second and (first, second) not in found:
                    fine = average_areas(thumbs[[first, second]], THUMB)
                    one = dict(symmetries(fine[:1]))[name]
                    if float((describe(one) @ describe(fine[1:]).T)[0, 0]) > SAME_FINE:
                        found[first, second] = name
    return [(*pair, name) for pair, name in sorted(found.items())]


# --- tiles that continue each other --------------------------------------------------------------------------------


def profiles(lines: Image) -> Floats:
    """Convert edges (N, L, 3) to opponent colours, and remove what changes slowly along them."""
    count, length, _ = lines.shape
    rows = np.ascontiguousarray(opponent(lines.astype(np.float32)).transpose(0, 2, 1).reshape(-1, length))
    rows -= cv2.blur(rows, (SMOOTH, 1)).reshape(rows.shape)
    rows -= rows.mean(1, keepdims=True)
    return np.asarray(rows.reshape(count, 3, length).transpose(0, 2, 1), np.float32, order="C")


def join_dates(before: Floats, after: Floats) -> Floats:
    """Join the profiles of both dates, (N, L, 3) each, to (N, 6 L).

    The dot product of two rows is the mean of the correlations at both dates.
    """
    count = len(before)
    both = [unit(profile.reshape(count, -1)) for profile in (before, after)]
    return np.asarray(np.concatenate(both, axis=1) / np.sqrt(2), np.float32)


def least_correlation(length: int, side: str, other: str) -> float:
    """Return the correlation above which two edges of `length` pixels are linked.

    Chance correlations fall with the square root of the length. Edges on opposite sides hold neighbouring pixels, which
    are only similar. Edges on the same side hold the same pixels or have nothing in common, so their limit is higher.
    """
    return max(0.8 if side == other else 0.45, 7.4 / float(np.sqrt(length)))


def find_links(before: Sequence[Sequence[Image]], after: Sequence[Sequence[Image]]) -> list[Link]:
    """Find the pairs that continue each other, or share an edge because one was cut from the other.

    Edges of equal length are compared as a whole. A shorter edge is compared with every part of a longer one.

    Args:
        before: The `edges` of N pairs before.
        after: The `edges` of the same pairs after.

    Returns:
        The best link of every two pairs that meet, sorted.
    """
    found: list[Link] = []
    edges_on = {side: group_by_length(before, after, side) for side in SIDES}
    for side, other in SIDES_THAT_MEET:
        for a in edges_on[side]:
            for b in edges_on[other]:
                if a.length == b.length:
                    found += link_equal_edges(a, b, side, other)
                elif a.length < b.length:
                    found += link_partial_edges(a, b, side, other)
                elif side != other:
                    found += link_partial_edges(b, a, other, side)
    best: dict[tuple[int, int], Link] = {}
    for link in found:
        key = (min(link[:2]), max(link[:2]))
        if key not in best or best[key].score < link.score:
            best[key] = link
    return sorted(best.values())


def group_by_length(before: Sequence[Sequence[Image]], after: Sequence[Sequence[Image]], side: str) -> list[EdgeGroup]:
    """Group the edges of one side by their length."""
    number = SIDES.index(side)
    members: dict[int, list[int]] = defaultdict(list)
    for index, lines in enumerate(before):
        if len(lines[number]) >= SHORTEST_EDGE:
            members[len(lines[number])].append(index)
    groups = []
    for length, pairs in members.items():
        dates = profiles(stack(before, pairs, number)), profiles(stack(after, pairs, number))
        groups.append(EdgeGroup(length, pairs, dates, join_dates(*dates)))
    return groups


def stack(lines: Sequence[Sequence[Image]], rows: Iterable[int], side: int) -> Image:
    """Stack edges of one length into one array (N, L, 3)."""
    return np.stack([lines[row][side] for row in rows])


def link_equal_edges(a: EdgeGroup, b: EdgeGroup, side: str, other: str) -> Iterator[Link]:
    """Yield links between the edges `a` on one side and the edges `b` of the same length on the other."""
    for start in range(0, len(a.pairs), 512):
        scores = a.joined[start : start + 512] @ b.joined.T
        for row, column in np.argwhere(scores > least_correlation(a.length, side, other)).tolist():
            first, second = a.pairs[start + row], b.pairs[column]
            if first < second or (first > second and side != other):
                yield Link(first, second, side, other, float(scores[row, column]))


def link_partial_edges(short: EdgeGroup, long: EdgeGroup, side: str, other: str) -> Iterator[Link]:
    """Yield links between each shorter edge on one side and the best place along each longer edge on the other."""
    for row, first in enumerate(short.pairs):
        scores = np.zeros((len(long.pairs), long.length - short.length + 1), np.float32)
        for short_profiles, long_profiles in zip(short.profiles, long.profiles, strict=True):
            if unit(short_profiles[row].reshape(1, -1)).any():
                template = short_profiles[row][None]
                scores += np.nan_to_num(cv2.matchTemplate(long_profiles, template, cv2.TM_CCOEFF_NORMED)) / 2
        for column in np.flatnonzero(scores.max(1) > least_correlation(short.length, side, other)).tolist():
            second = long.pairs[column]
            if first != second:
                yield Link(first, second, side, other, float(scores[column].max()))
