"""Measure how far two dates are shifted against each other, in many windows, to a fraction of a pixel.

Each window is compared by phase correlation: the whole pixels come from the peak of the cross-power spectrum's inverse
transform, the rest from the plane that fits its phases at low frequencies best. Pixels without data have no weight. A
window counts if its peak stands out from noise and if its shift agrees with the median of the windows around it.

Shifts are in pixels: a point at column c and row r of before lies at column c + x and row r + y of after.
Sources: Kuglin and Hines, "The Phase Correlation Image Alignment Method", 1975; Stone et al., "A Fast Direct
Fourier-Based Algorithm for Subpixel Registration of Images", 2001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 128  # side of the windows in pixels
REACH = 32  # largest shift that is looked for, in pixels
ROUNDS = 3  # most times that the window of after is moved by the whole pixels found so far
COVERED = 0.5  # share of a window that must hold data at both dates
CUTOFF = 0.25  # cycles per pixel: phases at higher frequencies are noise, or may have wrapped around
SPREAD = 0.12  # cycles per pixel: standard deviation of the weight of frequencies in the search for the peak
COARSE = 0.02  # the same for low frequencies, which are left out: light and large fields correlate by chance
CERTAIN = 8.0  # standard deviations of noise that a peak must reach
NEAR = 2  # windows in each direction whose median a shift is compared with
TOLERANCE = 1.0, 4.0  # bounds, in pixels, of the limit on a shift's difference from this median
STEPS = 10  # of Newton's method
SUPPORT = 3  # windows that must agree

Floats = NDArray[np.float64]


class Measured(NamedTuple):
    """A shift in pixels, and its peak in standard deviations of noise; 0 if it was not measured."""

    x: float
    y: float
    certainty: float


@dataclass(frozen=True)
class ShiftField:
    """Shifts on a regular grid of windows.

    Attributes:
        columns, rows: centres of the windows in pixels, (w,) and (h,).
        x, y: the shift of each window in pixels (h, w), NaN where it was not measured.
        kept: bool (h, w), the windows that were measured and agree with their surroundings.
    """

    columns: Floats
    rows: Floats
    x: Floats
    y: Floats
    kept: NDArray[np.bool_]

    def median(self) -> tuple[float, float] | None:
        """Return the median shift x and y of the windows that are kept, or None if there are none."""
        if not self.kept.any():
            return None
        return float(np.median(self.x[self.kept])), float(np.median(self.y[self.kept]))


def measure_field(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    before_data: NDArray[np.bool_],
    after_data: NDArray[np.bool_],
    *,
    side: int = SIDE,
    step: int = SIDE,
    reach: int = REACH,
) -> ShiftField:
    """Measure the local shifts between two dates.

    Args:
        before, after: RGB (H, W, 3) of one size, at least `side` pixels high and wide.
        before_data, after_data: bool (H, W), where each holds data.
        side: side of the windows in pixels.
        step: distance between windows in pixels.
        reach: largest shift that is looked for, in pixels; at most a quarter of `side` is reliable.

    Returns:
        The shifts; windows without enough data, without structure or without a clear peak are not measured.
    """
    greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in (before, after)]
    height, width = before_data.shape
    tops, lefts = (np.arange(0, length - side + 1, step) for length in (height, width))
    found = np.full((len(tops), len(lefts), 2), np.nan)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            measured = measure_window(
                (greys[0], before_data), (greys[1], after_data), top=int(top), left=int(left), side=side, reach=reach
            )
            if measured.certainty >= CERTAIN:
                found[i, j] = measured.x, measured.y
    x, y = found[..., 0], found[..., 1]
    return ShiftField(lefts + side / 2, tops + side / 2, x, y, agreeing(x, y))


def measure_window(
    before: tuple[Floats, NDArray[np.bool_]],
    after: tuple[Floats, NDArray[np.bool_]],
    *,
    top: int,
    left: int,
    side: int,
    reach: int,
) -> Measured:
    """Measure the shift in one window.

    Args:
        before, after: grey levels (H, W), and where they hold data, bool (H, W).
        top, left: first row and column of the window.
        side: its side in pixels.
        reach: largest shift that is looked for, in pixels.
    """
    first, first_data = crop(*before, top=top, left=left, side=side)
    columns = rows = 0
    for _ in range(ROUNDS):
        second, second_data = crop(*after, top=top + rows, left=left + columns, side=side)
        spectrum, weight = cross_spectrum(first, second, first_data & second_data)
        if spectrum is None:
            return Measured(0.0, 0.0, 0.0)
        more_columns, more_rows, certainty = find_peak(spectrum, columns, rows, reach)
        if not (more_columns or more_rows):
            break
        columns, rows = columns + more_columns, rows + more_rows
    else:
        return Measured(float(columns), float(rows), 0.0)  # the peak moves with the window
    x, y = refine_peak(spectrum, weight)
    return Measured(columns + x, rows + y, certainty)


def crop(grey: Floats, data: NDArray[np.bool_], *, top: int, left: int, side: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Cut a square out of an image, without data where it reaches beyond the border."""
    square, inside = np.zeros((side, side)), np.zeros((side, side), np.bool_)
    height, width = grey.shape
    rows = slice(max(0, top), min(height, top + side))
    columns = slice(max(0, left), min(width, left + side))
    if rows.stop > rows.start and columns.stop > columns.start:
        target = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        square[target], inside[target] = grey[rows, columns], data[rows, columns]
    return square, inside


def cross_spectrum(
    first: Floats, second: Floats, data: NDArray[np.bool_]
) -> tuple[NDArray[np.complex128] | None, Floats]:
    """Return the cross-power spectrum of two squares (s, s), of magnitude 1, and its magnitude before that.

    The squares fade out towards their border and towards pixels without data. The spectrum is None if too few pixels
    hold data, or if one of the squares has no structure.
    """
    side = len(data)
    nothing = np.zeros((side, side))
    if data.mean() < COVERED:
        return None, nothing
    hann = np.hanning(side + 2)[1:-1]
    depth = cv2.distanceTransform(data.astype(np.uint8), cv2.DIST_L2, 3).astype(np.float64)
    weight = np.outer(hann, hann) * np.clip(depth / (side / 8), 0, 1)
    spectra = []
    for square in (first, second):
        flat = (square - np.average(square, weights=weight)) * weight
        if flat.std() < 1e-3:
            return None, nothing
        spectra.append(np.fft.fft2(flat))
    product = np.conj(spectra[0]) * spectra[1]
    magnitude = np.abs(product)
    return product / np.maximum(magnitude, 1e-12), magnitude


def find_peak(spectrum: NDArray[np.complex128], columns: int, rows: int, reach: int) -> tuple[int, int, float]:
    """Find the peak of phase correlation.

    Args:
        spectrum: cross-power spectrum (s, s).
        columns, rows: the shift that was already undone.
        reach: largest shift, together with these, in pixels.

    Returns:
        Columns and rows from here to the peak, and its height in standard deviations of noise.
    """
    side = len(spectrum)
    frequency = np.fft.fftfreq(side)
    squared = np.add.outer(frequency**2, frequency**2)
    passed = np.exp(-squared / (2 * SPREAD**2)) - np.exp(-squared / (2 * COARSE**2))
    plane = np.fft.ifft2(spectrum * passed).real * side**2
    offsets = np.fft.fftfreq(side, 1 / side).astype(int)
    allowed = (np.abs(offsets + rows) <= reach)[:, None] & (np.abs(offsets + columns) <= reach)
    row, column = np.unravel_index(np.argmax(np.where(allowed, plane, -np.inf)), plane.shape)
    noise = max(1.4826 * float(np.median(np.abs(plane))), 1e-12)
    return int(offsets[column]), int(offsets[row]), float(plane[row, column] / noise)


def refine_peak(spectrum: NDArray[np.complex128], magnitude: Floats) -> tuple[float, float]:
    """Find the peak near 0 to a fraction of a pixel: the plane that fits the phases of a spectrum (s, s) best.

    Newton's method maximises the sum of the cosines of the residual phases. A least-squares fit of the phases
    themselves would be pulled to 0 by noise, because phases wrap around.

    Returns:
        The shift x and y, at most 1 each.
    """
    frequency = np.fft.fftfreq(len(spectrum))
    down, across = np.meshgrid(frequency, frequency, indexing="ij")
    used = (np.hypot(across, down) < CUTOFF) & (np.hypot(across, down) > 0)
    slopes = -2 * np.pi * np.stack((across[used], down[used]), axis=1)
    weight = magnitude[used] ** 0.75  # strong frequencies have less noise, but must not dominate
    values = spectrum[used]
    shift = np.zeros(2)
    for _ in range(STEPS):
        rest = np.angle(values * np.exp(-1j * slopes @ shift))
        curvature = (slopes * (weight * np.cos(rest))[:, None]).T @ slopes
        if np.linalg.eigvalsh(curvature)[0] <= 0:
            break
        step = np.linalg.solve(curvature, slopes.T @ (weight * np.sin(rest)))
        shift = np.clip(shift + np.clip(step, -0.5, 0.5), -1, 1)
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
