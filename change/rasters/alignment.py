"""Align two dates: measure their local shifts in windows, and make a smooth field that is undone while after is read.

The number of windows has a limit and each is read by itself, so scenes may have any size.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from change.rasters.places import ground_size
from change.rasters.registration import FLAT, NO_DATA, REACH, SUPPORT, UNCLEAR, Read, ShiftField, Square, measure_field
from change.rasters.shift_grid import ReadBlock, smooth_grid

if TYPE_CHECKING:
    from change.rasters.raster import RasterPair

SMALL, LARGE = 128, 256  # sides of the windows in pixels; scenes of at least 2 * LARGE on each side have large ones
MOST = 16  # maximum number of windows along each side of the scene
FEW = 4  # the same if the shift is only measured for a warning
KEPT = 0.05  # share of the windows with data that must agree
LEFT = 1.0  # pixels: a larger residual is a warning
UNALIGNED = "--align has no effect"
REASONS = {
    NO_DATA: "too little of the scene holds data at both dates",
    FLAT: "the images show too little structure, as water does",
    UNCLEAR: "no shift of at most {reach} pixels is clear, so the dates are shifted further or differ too much",
}


@dataclass(frozen=True)
class Alignment:
    """What was measured and undone.

    Attributes:
        measured: the shifts that the field is made from; None if the scene is too small.
        unseen: the shifts in windows halfway between the first ones; None if there is no field. Along a side with fewer
            than `FEW` windows they are the same windows, so the residual is optimistic.
        residual: what the field of the first windows leaves of the shifts in `unseen`.
        pixel: width and height of a pixel on the ground in metres; None if they are not known.
        fault: why there is no field; empty if there is one.
        applied: whether the field is undone.
    """

    measured: ShiftField | None
    unseen: ShiftField | None
    residual: ShiftField | None
    pixel: tuple[float, float] | None
    fault: str
    applied: bool

    def warnings(self) -> list[str]:
        """Return warnings, one sentence each."""
        if self.fault:
            return [f"{UNALIGNED}: {self.fault}"]
        left = self.lengths(self.residual)
        if left is None:
            return ["--align: the residual cannot be measured, because too few windows agree: look at the report"]
        if self.applied and left["pixels"] > LEFT:
            return [f"--align: a median shift of {left['pixels']:.1f} pixels remains: expect false changes"]
        return []

    def notes(self) -> list[str]:
        """Return what was undone and what is left, in one line."""
        return [] if self.fault else [f"--align: {join(self.summary())}"]

    def summary(self) -> dict[str, str]:
        """Return a table for the report: which windows were used, the shift that was undone, and what is left."""
        if self.measured is None or self.fault:
            return {"result": f"not aligned: {self.fault}"}
        shift = self.measured.median()
        assert shift is not None
        undone, left = self.lengths(self.measured), self.lengths(self.residual)
        return {
            "result": "aligned" if self.applied else "not aligned, because the correction would not reduce the shifts",
            "windows": f"{int(self.measured.kept.sum())} of {self.measured.kept.size} agree",
            "median_shift": f"{shift[0]:+.2f} columns, {shift[1]:+.2f} rows",
            "length_of_the_shift": describe_lengths(undone),
            "in_check_windows": describe_lengths(self.lengths(self.unseen)),
            "residual_there": describe_lengths(left),
        }

    def lengths(self, field: ShiftField | None) -> dict[str, float] | None:
        """Return the median and largest length of the shifts that are kept, in pixels and, if possible, in metres."""
        if field is None or not field.kept.any():
            return None
        shifts = np.stack((field.x[field.kept], field.y[field.kept]))
        pixels = np.hypot(*shifts)
        found = {"pixels": float(np.median(pixels)), "largest_pixels": float(pixels.max())}
        if self.pixel:
            metres = np.hypot(*(shifts * np.array(self.pixel)[:, None]))
            found |= {"metres": float(np.median(metres)), "largest_metres": float(metres.max())}
        return {name: round(value, 3) for name, value in found.items()} | {"windows": int(field.kept.sum())}

    def metadata(self) -> dict[str, Any]:
        """Return the entry of metadata.json: the field, its windows, and the residual."""
        found: dict[str, Any] = {"applied": self.applied, "fault": self.fault}
        if self.measured is not None:
            found |= {
                "columns": self.measured.columns.tolist(),
                "rows": self.measured.rows.tolist(),
                "x": listed(self.measured.x),
                "y": listed(self.measured.y),
                "kept": self.measured.kept.astype(int).tolist(),
                "not_measured": dict(self.measured.faults),
                "shift": self.lengths(self.measured),
                "unseen": self.lengths(self.unseen),
                "residual": self.lengths(self.residual),
            }
        return found


def align_dates(pair: RasterPair) -> Alignment:
    """Measure the shifts of an open pair, and set `pair.after.shifts` so that they are undone.

    Nothing is undone if the shifts cannot be measured, or if the field of the first windows does not make the shifts in
    the windows between them shorter: then only the noise of the measurement was found. The field that is undone is made
    from up to twice as many windows per side, at most `MOST`, which gives a smaller error.
    """
    pixel = None
    if not pair.fault:
        pixel = ground_size(pair.crs, pair.transform, column=pair.width / 2, row=pair.height / 2)
    side = choose_side(pair)
    if not side:
        fault = f"the scene has {pair.width} x {pair.height} pixels, too few for {SUPPORT} windows of {SMALL} x {SMALL}"
        return Alignment(None, None, None, pixel, fault, applied=False)
    measure = partial(measure_field, *(reader(raster.read_beyond) for raster in (pair.before, pair.after)), side=side)
    tops, lefts = (spread(length, side, MOST) for length in (pair.height, pair.width))
    measured = measure(tops=tops, lefts=lefts)
    if not enough_agree(measured):
        return Alignment(measured, None, None, pixel, explain(measured, side // REACH), applied=False)
    unseen = measure(tops=between(tops), lefts=between(lefts))
    x, y = smooth_grid(measured).at(unseen.rows - 0.5, unseen.columns - 0.5)
    residual = replace(unseen, x=unseen.x - x, y=unseen.y - y)
    found, left = (np.hypot(field.x, field.y)[field.kept] for field in (unseen, residual))
    applied = not len(left) or bool(np.median(left) < np.median(found))
    if applied:
        tops, lefts = (spread(length, side, MOST, overlap=0.75) for length in (pair.height, pair.width))
        if (len(tops), len(lefts)) != measured.kept.shape:
            dense = measure(tops=tops, lefts=lefts)
            measured = dense if enough_agree(dense) else measured
        pair.after.shifts = smooth_grid(measured)
    return Alignment(measured, unseen, residual, pixel, "", applied)


def enough_agree(field: ShiftField) -> bool:
    """Return whether enough of the windows with data agree."""
    return bool(field.kept.sum() > KEPT * (field.kept.size - field.faults[NO_DATA]))


def measure_few(pair: RasterPair) -> ShiftField | None:
    """Measure the shifts of an open pair in a few windows; None if the scene is too small."""
    side = choose_side(pair)
    if not side:
        return None
    tops, lefts = (spread(length, side, FEW) for length in (pair.height, pair.width))
    dates = (reader(raster.read_beyond) for raster in (pair.before, pair.after))
    return measure_field(*dates, tops=tops, lefts=lefts, side=side)


def choose_side(pair: RasterPair) -> int:
    """Choose the side of the windows in pixels: large windows are measured better; 0 if the scene is too small."""
    shorter = min(pair.height, pair.width)
    if shorter >= 2 * LARGE:
        return LARGE
    if shorter < SMALL:
        return 0
    windows = len(spread(pair.height, SMALL, MOST)) * len(spread(pair.width, SMALL, MOST))
    return SMALL if windows >= SUPPORT else 0


def spread(length: int, side: int, most: int, overlap: float = 0.5) -> NDArray[np.int64]:
    """Spread at most `most` windows evenly along a side of the scene; neighbours overlap by `overlap` or less.

    Returns:
        Their first pixels.
    """
    count = min(most, int((length - side) / (side * (1 - overlap))) + 1)
    return np.asarray(np.linspace(0, length - side, count).round(), np.int64)


def between(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions halfway between windows, or those of the windows themselves if there are few."""
    return starts if len(starts) < FEW else np.asarray((starts[1:] + starts[:-1]) // 2, np.int64)


def reader(read: ReadBlock) -> Read:
    """Return what reads grey squares of a date, from what reads blocks of it."""

    def read_square(top: int, left: int, side: int) -> Square:
        image, data = read(top, left, side, side)
        grey = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
        return Square(grey.astype(np.float64), data)

    return read_square


def explain(measured: ShiftField, reach: int) -> str:
    """Say why too few windows agree: the most frequent reason. Shifts that disagree count as unclear.

    `reach`: the largest shift that was looked for, in pixels.
    """
    disagreeing = int((np.isfinite(measured.x) & ~measured.kept).sum())
    reason = (measured.faults + Counter({UNCLEAR: disagreeing})).most_common(1)[0][0]
    return f"{REASONS[reason].format(reach=reach)} ({int(measured.kept.sum())} of {measured.kept.size} windows agree)"


def describe_lengths(lengths: dict[str, float] | None) -> str:
    """Describe what `Alignment.lengths` returns, such as "0.05 pixels (0.02 m) in the median, 0.31 pixels at most"."""
    if lengths is None:
        return "not measured"
    metres = f" ({lengths['metres']:.3g} m)" if "metres" in lengths else ""
    largest = f" ({lengths['largest_metres']:.3g} m)" if "metres" in lengths else ""
    return (
        f"{lengths['pixels']:.2f} pixels{metres} in the median, {lengths['largest_pixels']:.2f} pixels{largest} at most"
    )


def join(table: dict[str, str]) -> str:
    """Join the rows of a table to one line."""
    return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in table.items())


def listed(values: NDArray[np.float64]) -> list[list[float | None]]:
    """Convert shifts (h, w) to lists, with None for NaN, which JSON does not know."""
    return [[None if np.isnan(value) else round(value, 3) for value in row] for row in values.tolist()]
