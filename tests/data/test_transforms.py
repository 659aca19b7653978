"""Augmentation: colours are compared with torchvision, geometry with coordinates that are stored in the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

from change.common.images import Image
from change.data.degradation import Degradations, degrade
from change.data.transforms import (
    ColorJitter,
    Geometry,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
    crop_pair,
)

OFF = ColorJitter(0, 0, 0, 0)
CROP, HEIGHT, WIDTH = 8, 12, 20


@pytest.fixture
def smooth() -> Image:
    """Draw a colourful image without noise, 48 x 64."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC), np.uint8)


def error_to_torchvision(ours: Image, image: Image, operation: str, amount: float) -> NDArray[np.int64]:
    """Return the absolute differences to torchvision's adjust_`operation` of `image`, in levels."""
    theirs: torch.Tensor = getattr(functional, f"adjust_{operation}")(torch.from_numpy(image).permute(2, 0, 1), amount)
    expected = theirs.permute(1, 2, 0).numpy().astype(np.int64)
    return np.asarray(np.abs(ours.astype(np.int64) - expected), np.int64)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.55, 0.95, 1.0, 1.1, 1.7])
@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation], ids=lambda f: f.__name__)
def test_blends_match_torchvision(smooth: Image, adjust: Callable[[Image, float], Image], factor: float) -> None:
    operation = getattr(adjust, "__name__", "").removeprefix("adjust_")
    assert np.max(error_to_torchvision(adjust(smooth, factor), smooth, operation, factor)) <= 1  # rounding


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.07, 0.3])
def test_hue_matches_torchvision(smooth: Image, turns: float) -> None:
    error = error_to_torchvision(adjust_hue(smooth, turns), smooth, "hue", turns)
    assert error.mean() < 1.5  # a step of 8-bit hue is up to 6 levels of a channel
    assert np.max(error) <= 8


def draw_coordinates(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Augment pixels that hold their own coordinates; return the rows and columns (CROP, CROP) of the crop.

    Before holds (y, x, 0), after (x, y, 7), the mask their exclusive or; the three must agree.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    before, after, mask = augment(
        np.dstack([y, x, 0 * x]), np.dstack([x, y, 0 * x + 7]), y ^ x, crop=CROP, jitter=OFF, rng=rng
    )
    assert before.shape == after.shape == (CROP, CROP, 3)
    rows, columns, _ = np.moveaxis(before, 2, 0)
    np.testing.assert_array_equal(after, np.dstack([columns, rows, 0 * rows + 7]))
    np.testing.assert_array_equal(mask, rows ^ columns)
    return rows.astype(np.int64), columns.astype(np.int64)


def test_one_geometry_for_both_dates_and_mask() -> None:
    rng = np.random.default_rng(0)
    corners: set[tuple[int, int]] = set()
    flips: Counter[tuple[int, int]] = Counter()
    for _ in range(1000):
        rows, columns = draw_coordinates(rng)
        step_y, step_x = int(rows[1, 0] - rows[0, 0]), int(columns[0, 1] - columns[0, 0])
        top, left = int(np.min(rows)), int(np.min(columns))
        crop_y, crop_x = np.mgrid[top : top + CROP, left : left + CROP]  # the pixels are those of one crop
        np.testing.assert_array_equal(rows, crop_y[::step_y])
        np.testing.assert_array_equal(columns, crop_x[:, ::step_x])
        corners.add((top, left))
        flips[step_y, step_x] += 1
    assert corners == {(top, left) for top in range(HEIGHT - CROP + 1) for left in range(WIDTH - CROP + 1)}
    assert set(flips) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
    assert all(abs(count - 250) < 70 for count in flips.values()), flips  # five standard deviations


def test_all_symmetries_and_exchanged_dates() -> None:
    """All eight symmetries and both orders of the dates are equally frequent; the mask is turned along."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    first, second = np.dstack([y, x, 0 * x]), np.dstack([y, x, 0 * x + 7])
    rng, seen = np.random.default_rng(0), Counter[tuple[int, ...]]()
    for _ in range(2000):
        before, after, mask = crop_pair(first, second, y ^ x, CROP, rng, Geometry(turned=True, swapped=True))
        rows, columns = before[..., 0].astype(int), before[..., 1].astype(int)
        np.testing.assert_array_equal(mask, rows ^ columns)
        np.testing.assert_array_equal(before[..., :2], after[..., :2])
        steps = (rows[1, 0] - rows[0, 0], rows[0, 1] - rows[0, 0], columns[1, 0] - columns[0, 0])
        kind = (*steps, columns[0, 1] - columns[0, 0], int(before[0, 0, 2]))
        seen[tuple(map(int, kind))] += 1
        assert {int(before[0, 0, 2]), int(after[0, 0, 2])} == {0, 7}
    assert len(seen) == 16
    assert all(abs(count - 125) < 56 for count in seen.values()), seen  # five standard deviations


def test_shift() -> None:
    """In half of the crops, one date is shifted by up to `shift` pixels, and never beyond the image."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    image, mask = np.dstack([y, x, 0 * x]), y ^ x
    rng, seen = np.random.default_rng(0), Counter[tuple[int, ...]]()
    for _ in range(2000):
        before, after, cut = crop_pair(image, image, mask, CROP, rng, Geometry(shift=2))
        moved = [date.astype(int)[..., :2] for date in (before, after)]
        still = [np.array_equal(date[..., 0] ^ date[..., 1], cut) for date in moved]
        assert any(still)
        shift = np.unique((moved[1] - moved[0]).reshape(-1, 2), axis=0)
        assert len(shift) == 1
        down, across = map(int, shift[0])
        seen[down, across, still[0], still[1]] += 1
    assert {key[:2] for key in seen} == {(down, across) for down in range(-2, 3) for across in range(-2, 3)}
    unshifted = seen[0, 0, True, True]
    assert 1000 < unshifted < 1300  # half, and shifts that are drawn as 0 or limited to 0 by the border
    by_date = [sum(count for key, count in seen.items() if not key[2 + date]) for date in range(2)]
    assert abs(by_date[0] - by_date[1]) < 150


def test_unchanged() -> None:
    """In a quarter of the crops, both dates show one of the two, shifted or not, and the mask is empty."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    first, second, mask = np.dstack([y, x, 0 * x]), np.dstack([y, x, 0 * x + 7]), np.ones_like(y)
    rng, seen = np.random.default_rng(0), Counter[tuple[int, ...]]()
    for _ in range(2000):
        before, after, cut = crop_pair(first, second, mask, CROP, rng, Geometry(shift=1, unchanged=0.25))
        assert len(np.unique(cut)) == 1
        seen[int(before[0, 0, 2]), int(after[0, 0, 2]), int(cut[0, 0])] += 1
    assert set(seen) == {(0, 7, 1), (0, 0, 0), (7, 7, 0)}
    assert abs(seen[0, 7, 1] - 1500) < 97 and abs(seen[0, 0, 0] - seen[7, 7, 0]) < 112  # five standard deviations
    with pytest.raises(ValueError, match="probability"):
        Geometry(unchanged=1.5)


def test_draws_do_not_depend_on_what_is_off(smooth: Image) -> None:
    """Without shift and degradations, no random number is drawn for them."""
    rng, same = np.random.default_rng(0), np.random.default_rng(0)
    mask = (smooth[..., 0] > 127).astype(np.uint8)
    crops = augment(smooth, smooth, mask, 32, ColorJitter(), rng)
    more = augment(smooth, smooth, mask, 32, ColorJitter(), same, Geometry(shift=0), Degradations(0))
    assert rng.random() == same.random()
    assert all(np.array_equal(a, b) for a, b in zip(crops, more, strict=True))


def test_degradations_are_drawn_for_each_date(smooth: Image) -> None:
    """The dates differ afterwards; with a small probability most images stay as they are."""
    rng, mask = np.random.default_rng(0), (smooth[..., 0] > 127).astype(np.uint8)
    before, after, same_mask = augment(smooth, smooth, mask, 32, OFF, rng, degradations=Degradations(1))
    assert not np.array_equal(before, after) and set(np.unique(same_mask)) <= {0, 1}
    untouched = [np.array_equal(degrade(smooth, Degradations(0.05).draw(rng)), smooth) for _ in range(200)]
    assert 130 < sum(untouched) < 180  # 0.95 ** 5 is 0.77
    with pytest.raises(ValueError, match="0 to 1"):
        Degradations(1.5)


def test_scale() -> None:
    """Steps between neighbours follow the drawn scales, limited by the image; the mask stays in place."""
    y, x = np.mgrid[:160, :160].astype(np.uint8)
    image, mask = np.dstack([y, x, 0 * x]), (x >= 80).astype(np.uint8)
    rng, steps = np.random.default_rng(0), []
    for _ in range(200):
        before, after, cut = crop_pair(image, image, mask, 64, rng, Geometry(0.25, 2))
        assert before.shape == (64, 64, 3) and cut.shape == (64, 64) and set(np.unique(cut)) <= {0, 1}
        np.testing.assert_array_equal(before, after)
        steps.append(float(np.abs(np.diff(before[..., 1].astype(int), axis=1)).mean()))
        step = steps[-1]
        assert np.abs(before[..., 1].astype(int) - 79.5)[cut != (before[..., 1] >= 80)].max(initial=0) <= step + 1
    enlarged, _, _ = crop_pair(image, image, mask, 64, rng, Geometry(2, 2))
    assert np.abs(np.diff(enlarged[..., 1].astype(int), axis=1)).mean() == pytest.approx(0.5, abs=0.03)
    assert 0.45 < min(steps) < 0.6 and 2.3 < max(steps) <= 2.55  # 160 / 64: the image's side
    assert 0.25 < np.mean(np.array(steps) < 1) < 0.42  # one of three doublings


def test_crop_of_the_whole_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    cut, _, _ = augment(image, image, image[..., 0], crop=9, jitter=OFF, rng=np.random.default_rng(1))
    assert any(np.array_equal(cut, image[::y, ::x]) for y in (1, -1) for x in (1, -1))


def test_jitter_is_drawn_for_each_date(smooth: Image) -> None:
    mask = (smooth[..., 0] > 99).astype(np.uint8)
    plain = augment(smooth, smooth, mask, 32, OFF, np.random.default_rng(3))
    before, after, same_mask = augment(smooth, smooth, mask, 32, ColorJitter(), np.random.default_rng(3))
    np.testing.assert_array_equal(plain[0], plain[1])
    np.testing.assert_array_equal(plain[2], same_mask)
    assert len({image.tobytes() for image in (before, after, plain[0])}) == 3


def test_a_seed_decides_everything(smooth: Image) -> None:
    draws = [
        augment(smooth, smooth, smooth[..., 0], 16, ColorJitter(), np.random.default_rng(seed)) for seed in (5, 5, 6)
    ]
    first, again, other = (b"".join(array.tobytes() for array in draw) for draw in draws)
    assert first == again != other


def test_jitter_range_and_order(smooth: Image) -> None:
    rng = np.random.default_rng(0)
    levels = [int(ColorJitter(0.2, 0, 0, 0)(np.full((1, 1, 3), 100, np.uint8), rng)[0, 0, 0]) for _ in range(300)]
    assert 79 <= min(levels) < 84  # 100 * (1 +- 0.2), less 1 where a factor rounds down
    assert 116 < max(levels) <= 120
    black = [np.max(ColorJitter(3, 0, 0, 0)(smooth, rng)) == 0 for _ in range(50)]
    assert not any(black)  # a negative factor would be cut to 0 and is not drawn
    contrast_last, contrast_first = (
        adjust_contrast(adjust_brightness(smooth, 1.4), 0.6),
        adjust_brightness(adjust_contrast(smooth, 0.6), 1.4),
    )
    assert (contrast_last != contrast_first).any()


@pytest.mark.parametrize("settings", [(-0.1, 0, 0, 0), (0, 0, -1, 0), (0, 0, 0, 0.6)])
def test_jitter_refuses_values_out_of_range(settings: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"hue 0 to 0\.5"):
        ColorJitter(*settings)
