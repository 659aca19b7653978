"""Local shifts between two dates are measured to a fraction of a pixel, and wrong ones are left out."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from change.rasters.registration import FLAT, NO_DATA, Read, ShiftField, Square, agreeing, measure_field
from change.rasters.shift_grid import smooth_grid

HEIGHT, WIDTH = 400, 520
MARGIN = 40
SIDE = 128


def ground(seed: int = 0) -> NDArray[np.float32]:
    """Draw rectangles on clouds, with a margin that shifted copies are cut from."""
    draw = np.random.default_rng(seed)
    image = draw.normal(size=(HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN, 3)).astype(np.float32)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 6), np.float32) * 300 + 120
    for _ in range(300):
        x, y = draw.integers(0, image.shape[1]), draw.integers(0, image.shape[0])
        image[y : y + draw.integers(4, 20), x : x + draw.integers(4, 20)] = draw.uniform(30, 220, 3)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.8), np.float32)


def view(image: NDArray[np.float32], x: float, y: float, noise: int = 0) -> NDArray[np.uint8]:
    """Cut out what a camera sees if everything has moved by x and y pixels; the Fourier shift is exact."""
    down, across = np.meshgrid(np.fft.fftfreq(image.shape[0]), np.fft.fftfreq(image.shape[1]), indexing="ij")
    phase = np.exp(-2j * np.pi * (across * x + down * y))[..., None]
    moved = np.fft.ifft2(np.fft.fft2(image, axes=(0, 1)) * phase, axes=(0, 1)).real
    moved = moved[MARGIN:-MARGIN, MARGIN:-MARGIN]
    if noise:
        moved = moved * 0.8 + 20 + np.random.default_rng(noise).normal(0, 6, moved.shape)
    return np.asarray(np.clip(np.round(moved), 0, 255), np.uint8)


def reader(image: NDArray[np.uint8], data: NDArray[np.bool_]) -> Read:
    """Return what reads squares of an image, without data beyond its border."""
    margin = SIDE
    grey = np.pad(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64), margin)
    inside = np.pad(data, margin)
    return lambda top, left, side: Square(grey, inside).part(top + margin, left + margin, side)


def measure(before: NDArray[np.uint8], after: NDArray[np.uint8], data: NDArray[np.bool_] | None = None) -> ShiftField:
    """Measure the shifts in windows side by side; `data`: where both hold data, by default everywhere."""
    data = np.ones(before.shape[:2], np.bool_) if data is None else data
    tops, lefts = (np.arange(0, length - SIDE + 1, SIDE) for length in before.shape[:2])
    return measure_field(reader(before, data), reader(after, data), tops=tops, lefts=lefts, side=SIDE)


def errors(field: ShiftField, x: float, y: float) -> NDArray[np.float64]:
    return np.asarray(np.hypot(field.x - x, field.y - y)[field.kept])


SHIFTS = [(0, 0), (1, 0), (0, -3), (8, -8), (-15, 15), (0.25, 0), (0.5, -0.25), (0.5, 0.5), (3.5, -8.25)]


@pytest.mark.parametrize(("x", "y"), SHIFTS)
def test_known_shifts(x: float, y: float) -> None:
    """With another exposure and noise, every window is within a tenth of a pixel."""
    image = ground()
    field = measure(view(image, 0, 0), view(image, x, y, noise=1))
    assert field.kept.all() and field.kept.shape == (3, 4)
    assert errors(field, x, y).max() < 0.1 and field.median() == pytest.approx((x, y), abs=0.03)
    assert field.columns.tolist() == [64, 192, 320, 448] and field.rows.tolist() == [64, 192, 320]


def test_no_data() -> None:
    """The border of the data does not pull the shift to 0, and windows with little data are not measured."""
    image = ground()
    before, after = view(image, 0, 0), view(image, 3.25, -2.5)
    data = np.ones((HEIGHT, WIDTH), np.bool_)
    data[:, :150] = data[100:160, 200:260] = False
    before[~data] = after[~data] = 0
    field = measure(before, after, data)
    assert np.isnan(field.x[:, 0]).all() and field.kept[:, 1:].all() and field.faults == {NO_DATA: 3}
    assert errors(field, 3.25, -2.5).max() < 0.2


def test_change_and_other_images() -> None:
    """A part that changed is an outlier or not measured; unrelated and flat images have no shift."""
    image = ground()
    before, after = view(image, 0, 0), view(image, 2, 1, noise=1)
    other = np.random.default_rng(5).integers(0, 256, before.shape, dtype=np.uint8)
    after[128:256, 128:256] = other[128:256, 128:256]
    field = measure(before, after)
    assert not field.kept[1, 1] and field.kept.sum() == 11 and errors(field, 2, 1).max() < 0.1
    assert measure(before, other).median() is None
    assert measure(before, view(ground(6), 0, 0)).kept.mean() <= 0.25
    flat = measure(np.full_like(before, 90), np.full_like(before, 90))
    assert np.isnan(flat.x).all() and flat.median() is None and flat.faults == {FLAT: 12}


def test_a_smooth_warp_is_kept() -> None:
    """Outliers are judged by the windows around them, so a shift may grow across the scene."""
    x = np.tile(np.linspace(0, 6, 9), (7, 1))
    y = np.zeros_like(x)
    x[3, 4] += 5
    x[0, 0] = y[0, 0] = np.nan
    kept = agreeing(x, y)
    assert not kept[3, 4] and not kept[0, 0] and kept[:, 1:-1].sum() == 7 * 7 - 1


def field_of(x: NDArray[np.float64], y: NDArray[np.float64], kept: NDArray[np.bool_]) -> ShiftField:
    """Return shifts that were measured in windows of 256 pixels, 128 apart."""
    columns, rows = (128.0 * np.arange(1, length + 1) for length in (x.shape[1], x.shape[0]))
    return ShiftField(columns, rows, x, y, kept, Counter())


@pytest.mark.parametrize("kept", ["one", "two", "row"])
def test_few_windows(kept: str) -> None:
    """One window, two, or some in a line give a finite field that passes near them."""
    mask = np.zeros((4, 5), np.bool_)
    for place in {"one": [(2, 3)], "two": [(0, 1), (2, 4)], "row": [(1, 0), (1, 2), (1, 3)]}[kept]:
        mask[place] = True
    grid = smooth_grid(field_of(np.where(mask, 3.0, np.nan), np.where(mask, -2.0, np.nan), mask))
    assert np.allclose(grid.x, 3) and np.allclose(grid.y, -2)


def test_one_row_of_windows() -> None:
    """Noise in the only row of windows does not grow towards the borders beside it."""
    x = np.random.default_rng(0).normal(2, 0.2, (1, 9))
    grid = smooth_grid(field_of(x, -x, np.ones((1, 9), np.bool_)))
    assert grid.x.shape == (3, 11) and np.abs(grid.x - 2).max() < 0.5 and np.allclose(grid.x[0], grid.x[2])


def test_gaps_are_bridged() -> None:
    """Where no window is kept, a bent field goes on as it does around the gap, up to the borders of the scene."""
    rows, columns = np.mgrid[:7, :7].astype(np.float64)
    x, y = 3 * np.sin((columns + 2) / 3), rows * 0.5 - columns * 0.3
    kept = np.ones((7, 7), np.bool_)
    kept[2:5, 2:5] = False
    grid = smooth_grid(field_of(np.where(kept, x, np.nan), np.where(kept, y, np.nan), kept))
    assert grid.columns[0] == 0 and grid.columns[-1] == 8 * 128
    assert np.abs(grid.y[1:-1, 1:-1] - y).max() < 0.1 and np.abs(grid.x[1:-1, 1:-1] - x).max() < 0.6


def test_scattered_pixels_without_data() -> None:
    """Their pattern, which does not move with the ground, is not measured."""
    image = ground()
    before, after = view(image, 0, 0), view(image, 3, -2, noise=1)
    scattered = np.random.default_rng(3).random((2, *before.shape[:2])) < 0.01
    striped = np.zeros(before.shape[:2], np.bool_)
    striped[::20] = True
    for first, second in (scattered, (striped, striped)):
        tops, lefts = (np.arange(0, length - SIDE + 1, SIDE) for length in before.shape[:2])
        dates = (
            reader(np.where(missing[..., None], 0, date).astype(np.uint8), ~missing)
            for date, missing in ((before, first), (after, second))
        )
        field = measure_field(*dates, tops=tops, lefts=lefts, side=SIDE)
        assert field.kept.all() and field.median() == pytest.approx((3, -2), abs=0.1)


def test_a_corner() -> None:
    """Noise in a few windows does not grow to long shifts at the other end of the scene."""
    kept = np.zeros((16, 16), np.bool_)
    kept[:4, :4] = True
    x = np.where(kept, np.random.default_rng(1).normal(2, 0.5, kept.shape), np.nan)
    grid = smooth_grid(field_of(x, x, kept))
    assert np.nanmin(x) - 1 <= grid.x.min() and grid.x.max() <= np.nanmax(x) + 1
