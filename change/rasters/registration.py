"""Measure how far two dates are shifted against each other, in many windows, to a fraction of a pixel.

The gradients of each window are compared by phase correlation: the whole pixels come from the peak of the cross-power
spectrum's inverse transform, the rest from the plane that fits its phases at low frequencies best. Edges change less
between the dates than brightness does. Pixels without data are filled and have no weight. A window counts if its peak
stands out from noise and if its shift agrees with the median of the windows around it.

Shifts are in pixels: a point at column c and row r of before lies at column c + x and row r + y of after.
Sources: Kuglin and Hines, "The Phase Correlation Image Alignment Method", 1975; Stone et al., "A Fast Direct
Fourier-Based Algorithm for Subpixel Registration of Images", 2001; Fitch et al., "Orientation Correlation", 2002.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.images import nearest_data

REACH = 4  # the largest shift along an axis that is looked for is this part of the side of a window
ROUNDS = 3  # most times that the window of after is moved by the whole pixels found so far
COVERED = 0.5  # share of a window that must hold data at both dates
CUTOFF = 0.25  # cycles per pixel: phases at higher frequencies are noise, or may have wrapped around
BLUR = 1.5  # pixels: standard deviation of the Gaussian that is applied before gradients are taken
LONG = 3.0  # medians: gradients that are much longer than this have almost the same weight
GAP = 9  # pixels: gaps in the data that are narrower are filled
STRUCTURE = 1e-3  # least standard deviation of the lengths of gradients in a window that is not flat
SPREAD = 0.12  # cycles per pixel: standard deviation of the weight of frequencies in the search for the peak
COARSE = 0.02  # the same for low frequencies, which are left out: light and large fields correlate by chance
CERTAIN = 8.0  # standard deviations of noise that a peak must reach
NEAR = 2  # windows in each direction whose median a shift is compared with
TOLERANCE = 1.0, 4.0  # bounds, in pixels, of the limit on a shift's difference from this median
STEPS = 10  # of Newton's method
SUPPORT = 3  # windows that must agree

NO_DATA, FLAT, UNCLEAR = "no data", "flat", "unclear"  # why a window was not measured

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]


class Square(NamedTuple):
    """A square part of one date: grey levels (s, s), and where they hold data, bool (s, s)."""

    grey: Floats
    data: NDArray[np.bool_]

    def part(self, top: int, left: int, side: int) -> Square:
        """Cut a smaller square out."""
        inside = np.s_[top : top + side, left : left + side]
        return Square(self.grey[inside], self.data[inside])

    def filled(self) -> Square:
        """Give pixels without data the level of the nearest pixel with data: its edges have no gradients then."""
        if self.data.all() or not self.data.any():
            return self
        grey = self.grey.copy()
        grey[~self.data] = grey[nearest_data(self.data)]
        return Square(grey, self.data)


Read = Callable[[int, int, int], Square]
"""Reads the square of a date from its first row, first column and side; without data where it leaves the image."""


class Measured(NamedTuple):
    """A shift in pixels; if it was not measured, `fault` says why."""

    x: float
    y: float
    fault: str = ""


@dataclass(frozen=True)
class ShiftField:
    """Shifts on a regular grid of windows.

    Attributes:
        columns, rows: centres of the windows in pixels, (w,) and (h,).
        x, y: the shift of each window in pixels (h, w), NaN where it was not measured.
        kept: bool (h, w), the windows that were measured and agree with their surroundings.
        faults: number of windows that were not measured, for each reason.
    """

    columns: Floats
    rows: Floats
    x: Floats
    y: Floats
    kept: NDArray[np.bool_]
    faults: Counter[str]

    def median(self) -> tuple[float, float] | None:
        """Return the median shift x and y of the windows that are kept, or None if there are none."""
        if not self.kept.any():
            return None
        return float(np.median(self.x[self.kept])), float(np.median(self.y[self.kept]))


def measure_field(
    before: Read, after: Read, *, tops: NDArray[np.int64], lefts: NDArray[np.int64], side: int
) -> ShiftField:
    """Measure the local shifts between two dates.

    Args:
        before, after: read squares of them on one grid.
        tops: first rows of the windows (h,).
        lefts: first columns of the windows (w,).
        side: side of the windows in pixels.

    Returns:
        The shifts; windows without enough data, without structure or without a clear peak are not measured.
    """
    reach = side // REACH
    x, y = np.full((2, len(tops), len(lefts)), np.nan)
    faults: Counter[str] = Counter()
    for i, top in enumerate(tops.tolist()):
        for j, left in enumerate(lefts.tolist()):
            first = before(top, left, side)
            second = after(top - reach, left - reach, side + 2 * reach)
            measured = measure_window(first, second)
            if measured.fault:
                faults[measured.fault] += 1
            else:
                x[i, j], y[i, j] = measured.x, measured.y
    columns, rows = (starts.astype(np.float64) + side / 2 for starts in (lefts, tops))
    return ShiftField(columns, rows, x, y, agreeing(x, y), faults)


def measure_window(first: Square, second: Square) -> Measured:
    """Measure the shift in one window.

    Args:
        first: the window before, of s pixels.
        second: the same place after, with a margin of s / `REACH` pixels around it.
    """
    side = len(first.grey)
    reach = side // REACH
    columns = rows = 0
    first, second = first.filled(), second.filled()
    for _ in range(ROUNDS):
        moved = second.part(reach + rows, reach + columns, side)
        data = first.data & moved.data
        if data.mean() < COVERED:
            return Measured(0.0, 0.0, NO_DATA)
        weight = fade(data)
        gradients = [gradient(square.grey) for square in (first, moved)]
        if any(np.abs(found[weight > 0]).std() < STRUCTURE for found in gradients):
            return Measured(0.0, 0.0, FLAT)
        spectrum = cross_spectrum(*(shorten(found) * weight for found in gradients))
        more_columns, more_rows, certainty = find_peak(spectrum, columns, rows, reach)
        if not (more_columns or more_rows):
            break
        columns, rows = columns + more_columns, rows + more_rows
    else:
        certainty = 0.0  # the peak moves with the window
    if certainty < CERTAIN:
        return Measured(0.0, 0.0, UNCLEAR)
    x, y = refine_peak(cross_spectrum(*(found * weight for found in gradients)))
    return Measured(columns + x, rows + y)


def fade(data: NDArray[np.bool_]) -> Floats:
    """Return weights (s, s) that fall to 0 towards the border of a square and towards areas without data.

    Narrow gaps do not count: their pattern in the weights would be measured instead of the ground.
    """
    side = len(data)
    hann = np.hanning(side + 2)[1:-1]
    closed = cv2.morphologyEx(data.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((GAP, GAP), np.uint8))
    depth = cv2.distanceTransform(closed, cv2.DIST_L2, 3).astype(np.float64)
    return np.asarray(np.outer(hann, hann) * np.clip(depth / (side / 8), 0, 1))


def gradient(grey: Floats) -> Complex:
    """Return the gradient of grey levels (s, s), as complex numbers: the change along x, and i times that along y."""
    smooth = cv2.GaussianBlur(grey, (0, 0), BLUR)
    return np.asarray(cv2.Sobel(smooth, cv2.CV_64F, 1, 0) + 1j * cv2.Sobel(smooth, cv2.CV_64F, 0, 1))


def shorten(gradients: Complex) -> Complex:
    """Shorten long gradients (s, s) to less than 1, so that a few strong edges do not dominate."""
    length = np.abs(gradients)
    return np.asarray(gradients / (length + LONG * np.median(length) + STRUCTURE))


def cross_spectrum(first: Complex, second: Complex) -> Complex:
    """Return the cross-power spectrum of two squares (s, s)."""
    return np.asarray(np.conj(np.fft.fft2(first)) * np.fft.fft2(second))


def find_peak(spectrum: Complex, columns: int, rows: int, reach: int) -> tuple[int, int, float]:
    """Find the peak of phase correlation.

    Args:
        spectrum: cross-power spectrum (s, s); only its phases are used.
        columns, rows: the shift that was already undone.
        reach: largest shift along an axis, together with these, in pixels.

    Returns:
        Columns and rows from here to the peak, and its height in standard deviations of noise.
    """
    side = len(spectrum)
    frequency = np.fft.fftfreq(side)
    squared = np.add.outer(frequency**2, frequency**2)
    passed = np.exp(-squared / (2 * SPREAD**2)) - np.exp(-squared / (2 * COARSE**2))
    plane = np.fft.ifft2(phases(spectrum) * passed).real * side**2
    offsets = np.fft.fftfreq(side, 1 / side).astype(int)
    allowed = (np.abs(offsets + rows) <= reach)[:, None] & (np.abs(offsets + columns) <= reach)
    row, column = np.unravel_index(np.argmax(np.where(allowed, plane, -np.inf)), plane.shape)
    noise = max(1.4826 * float(np.median(np.abs(plane))), 1e-12)
    return int(offsets[column]), int(offsets[row]), float(plane[row, column] / noise)


def phases(spectrum: Complex) -> Complex:
    """Scale a spectrum (s, s) to magnitude 1."""
    return np.asarray(spectrum / np.maximum(np.abs(spectrum), 1e-12))


def refine_peak(spectrum: Complex) -> tuple[float, float]:
    """Find the peak near 0 to a fraction of a pixel: the plane that fits the phases of a spectrum (s, s) best.

    Newton's method maximises the sum of the cosines of the residual phases, weighted by the magnitudes. A least-squares
    fit of the phases themselves would be pulled to 0 by noise, because phases wrap around.

    Returns:
        The shift x and y, at most 1 each.
    """
    frequency = np.fft.fftfreq(len(spectrum))
    down, across = np.meshgrid(frequency, frequency, indexing="ij")
    used = (np.hypot(across, down) < CUTOFF) & (np.hypot(across, down) > 0)
    slopes = -2 * np.pi * np.stack((across[used], down[used]), axis=1)
    weight, values = np.abs(spectrum[used]), spectrum[used]
    shift = np.zeros(2)
    for _ in range(STEPS):
        rest = np.angle(values * np.exp(-1j * slopes @ shift))
        curvature = (slopes * (weight * np.cos(rest))[:, None]).T @ slopes
        if np.linalg.eigvalsh(curvature)[0] <= 0:
            break
        step = np.linalg.solve(curvature, slopes.T @ (weight * np.sin(rest)))
        shift = np.clip(shift + np.clip(step, -0.5, 0.5), -1, 1)
        if np.abs(step).max() < 1e-3:
            break
    return float(shift[0]), float(shift[1])


def agreeing(x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Find the shifts (h, w) that agree with the median of the windows around them; NaN never does.

    A shift may differ from it by three robust standard deviations of its surroundings, within the limits of
    `TOLERANCE`, and `SUPPORT` windows there, itself included, must lie as near to it: one window proves nothing.
    """
    kept = np.zeros(x.shape, np.bool_)
    for i, j in np.argwhere(np.isfinite(x)):
        near = np.s_[max(0, i - NEAR) : i + NEAR + 1, max(0, j - NEAR) : j + NEAR + 1]
        around = np.stack((x[near].ravel(), y[near].ravel()))
        around = around[:, np.isfinite(around[0])]
        middle = np.median(around, axis=1)[:, None]
        own = np.array([[x[i, j]], [y[i, j]]])
        limit = np.clip(3 * 1.4826 * np.median(np.hypot(*(around - middle))), *TOLERANCE)
        agree = np.hypot(*(around - own)) <= limit
        kept[i, j] = np.hypot(*(own - middle)).item() <= limit and agree.sum() >= SUPPORT
    return kept
