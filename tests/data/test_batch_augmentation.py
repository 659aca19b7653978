"""Whole batches augmented by torch: compared with OpenCV, which augments the same draws one by one."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from change.common.images import Image
from change.data.batch_augmentation import (
    CROP_COLUMNS,
    DEGRADATIONS,
    BatchColours,
    BatchCrop,
    BatchDegradations,
    as_row,
    nearest,
    weigh,
)
from change.data.degradation import Degradation, Degradations, degrade
from change.data.transforms import ColorJitter, Crop, Geometry, augment, draw_crop

CROP, SAMPLES = 32, 120
SIZES = ((45, 60), (64, 40), (50, 50))  # height and width
OFF = ColorJitter(0, 0, 0, 0)
TURNED = Geometry(1, 1, turned=True, swapped=True)
SHIFTED = Geometry(1, 1, turned=True, swapped=True, shift=9)
STRONG = ColorJitter(0.3, 0.3, 0.3, 0.05)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]


class Crops(NamedTuple):
    """Images (2, N, CROP, CROP, 3) and masks (N, CROP, CROP) of all samples."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]


def draw_picture(rng: np.random.Generator, height: int, width: int) -> Image:
    """Draw colours that change slowly, with some noise."""
    coarse = rng.integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.asarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255), np.uint8)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Image, Image, Image]]:
    """Draw pairs of several sizes, with masks of noise."""
    rng = np.random.default_rng(0)
    return [
        (draw_picture(rng, *size), draw_picture(rng, *size), rng.integers(0, 2, size, dtype=np.uint8)) for size in SIZES
    ]


def one_by_one(pairs: list[tuple[Image, Image, Image]], jitter: ColorJitter, geometry: Geometry) -> Crops:
    """Augment with OpenCV."""
    found = [
        augment(*pairs[seed % len(pairs)], CROP, jitter, np.random.default_rng(seed), geometry)
        for seed in range(SAMPLES)
    ]
    before, after, masks = (np.stack(arrays) for arrays in zip(*found, strict=True))
    return Crops(np.stack([before, after]), masks)


def in_batch(
    pairs: list[tuple[Image, Image, Image]], jitter: ColorJitter, geometry: Geometry, device: str = "cpu"
) -> Crops:
    """Augment the same draws with torch."""
    rows = []
    for seed in range(SAMPLES):
        rng, pair = np.random.default_rng(seed), seed % len(pairs)
        crop = draw_crop(*SIZES[pair], CROP, rng, geometry)
        rows.append(as_row(pair, crop, [jitter.draw(rng), jitter.draw(rng)], []))
    draws = torch.from_numpy(np.stack(rows)).to(device)
    images = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for pair in pairs for image in pair[:2]])).to(device)
    masks = torch.from_numpy(np.concatenate([mask.ravel() for _, _, mask in pairs])).to(device)
    areas = [height * width for height, width in SIZES]
    layout = torch.tensor([[0, areas[0], areas[0] + areas[1]], [width for _, width in SIZES], areas]).T.to(device)
    longest = max(min(size) for size in SIZES)
    cutter = BatchCrop(CROP, round(CROP / geometry.largest), min(round(CROP / geometry.smallest), longest)).to(device)
    cut, cut_masks = cutter(images, masks, layout, draws)
    if jitter.active:
        colours = torch.cat(draws[:, CROP_COLUMNS:DEGRADATIONS].chunk(2, dim=1))
        cut = BatchColours().to(device)(cut.flatten(0, 1), colours).view_as(cut)
    assert cut.dtype == cut_masks.dtype == torch.uint8
    return Crops(cut.cpu().numpy(), cut_masks.cpu().numpy())


def difference(found: Crops, expected: Crops) -> NDArray[np.int64]:
    """Return the differences of the images in levels; masks must be the same."""
    np.testing.assert_array_equal(found.masks, expected.masks)
    return np.asarray(np.abs(found.images.astype(np.int64) - expected.images), np.int64)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", [Geometry(), TURNED, SHIFTED], ids=["flips", "all symmetries", "shifts"])
def test_identical_without_scale_and_colours(
    pairs: list[tuple[Image, Image, Image]], geometry: Geometry, device: str
) -> None:
    found, expected = in_batch(pairs, OFF, geometry, device), one_by_one(pairs, OFF, geometry)
    assert found.images.tobytes() == expected.images.tobytes()
    assert found.masks.tobytes() == expected.masks.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scales", [(1, 2.5), (0.5, 1), (0.8, 1.25), (2, 2)])
def test_scale_within_one_level(
    pairs: list[tuple[Image, Image, Image]], scales: tuple[float, float], device: str
) -> None:
    geometry = Geometry(*scales, turned=True, swapped=True)
    error = difference(in_batch(pairs, OFF, geometry, device), one_by_one(pairs, OFF, geometry))
    assert np.max(error) <= 1
    # OpenCV averages areas with floating-point weights, but interpolates in fixed-point arithmetic.
    assert error.mean() < (0.001 if scales[1] == 1 else 0.15)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("jitter", "most", "mean"),
    [
        (ColorJitter(0.3, 0, 0, 0), 1, 0.001),
        (ColorJitter(0, 0.3, 0, 0), 1, 0.001),
        (ColorJitter(0, 0, 0, 0.5), 1, 0.001),
        (ColorJitter(0, 0, 0.3, 0), 8, 0.1),  # followed by a shift of the hue by 0, which rounds again
        (STRONG, 12, 0.1),
    ],
    ids=["brightness", "contrast", "hue", "saturation", "all"],
)
def test_colours(
    pairs: list[tuple[Image, Image, Image]], jitter: ColorJitter, most: int, mean: float, device: str
) -> None:
    error = difference(in_batch(pairs, jitter, TURNED, device), one_by_one(pairs, jitter, TURNED))
    assert np.max(error) <= most
    assert error.mean() < mean


@pytest.mark.parametrize("device", DEVICES)
def test_everything_together(pairs: list[tuple[Image, Image, Image]], device: str) -> None:
    """The augmentation of --recipe scratch: a level of difference before a shift of the hue can be several after it."""
    geometry = Geometry(0.8, 1.25, turned=True, swapped=True)
    expected = one_by_one(pairs, STRONG, geometry)
    error = difference(in_batch(pairs, STRONG, geometry, device), expected)
    assert np.max(error) <= 16
    assert error.mean() < 0.2
    assert (error > 2).mean() < 0.01
    other = difference(Crops(expected.images[::-1], expected.masks), expected)
    assert other.mean() > 20  # the dates differ, so the bounds above mean something


def test_order_of_the_changes(pairs: list[tuple[Image, Image, Image]]) -> None:
    """Each image has its own order. In another order, the results differ by more than rounding."""
    images = torch.from_numpy(np.stack([pairs[2][0]] * 24))
    orders = [torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist() for seed in range(24)]
    draws = torch.tensor([[1.4, 0.6, 1.5, 40, *order] for order in orders])
    found = BatchColours()(images, draws).numpy().astype(int)
    assert len({image.tobytes() for image in found}) == len({tuple(order) for order in orders}) > 12
    alone = BatchColours()(images[3:4], draws[3:4]).numpy()
    np.testing.assert_array_equal(alone[0], found[3])


PLAIN_COLOURS = np.eye(3, 4)
GREY_HAZE = np.column_stack([0.7 * np.tile([0.299, 0.587, 0.114], (3, 1)), [60, 70, 50]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("drawn", "most", "mean"),
    [
        (Degradation(PLAIN_COLOURS, 0, 0, 0), 0, 0),
        (Degradation(GREY_HAZE, 0, 0, 0), 1, 0.1),  # OpenCV multiplies by fractions of 1/1024
        (Degradation(PLAIN_COLOURS, 1.3, -1, 0), 1, 0.5),  # and blurs in fixed-point arithmetic
        (Degradation(PLAIN_COLOURS, 1, 1.5, 0), 3, 0.8),
        (Degradation(PLAIN_COLOURS, 0, 0, 90), 12, 1),
        (Degradation(PLAIN_COLOURS, 0, 0, 30), 30, 1),
        (Degradation(GREY_HAZE, 0.6, -1, 60), 20, 1.5),
    ],
    ids=["nothing", "colours", "blur", "sharpening", "JPEG 90", "JPEG 30", "all"],
)
def test_degradations(
    pairs: list[tuple[Image, Image, Image]], drawn: Degradation, most: int, mean: float, device: str
) -> None:
    """A batch is degraded as by OpenCV, within the stated levels; JPEG can round a frequency to another value."""
    images = [np.ascontiguousarray(pair[date][:40, :40]) for pair in pairs for date in range(2)]
    row = as_row(0, Crop(0, 0, 0, *[False] * 4), [], [drawn, None])[DEGRADATIONS:].reshape(2, -1)[:1]
    draws = torch.from_numpy(row.repeat(len(images), 0)).to(device)
    found = BatchDegradations().to(device)(torch.from_numpy(np.stack(images)).to(device), draws).cpu().numpy()
    expected = np.stack([degrade(image, drawn) for image in images])
    error = np.abs(found.astype(int) - expected)
    assert np.max(error) <= most
    assert error.mean() <= mean
    if drawn.quality or drawn.sigma or drawn.matrix is not PLAIN_COLOURS:
        assert np.abs(expected.astype(int) - np.stack(images)).mean() > 2 * mean


def test_each_image_is_degraded_by_its_own_draws(pairs: list[tuple[Image, Image, Image]]) -> None:
    rng = np.random.default_rng(0)
    drawn = [Degradations(0.5).draw(rng) for _ in range(40)]
    rows = [as_row(0, Crop(0, 0, 0, *[False] * 4), [], [one, None]) for one in drawn]
    draws = torch.from_numpy(np.stack(rows)[:, DEGRADATIONS : DEGRADATIONS + 15])
    images = torch.from_numpy(np.stack([pairs[2][0][:32, :32]] * len(drawn)))
    together = BatchDegradations()(images, draws).numpy()
    for i in range(len(drawn)):
        alone = BatchDegradations()(images[i : i + 1], draws[i : i + 1]).numpy()[0]
        assert np.abs(together[i].astype(int) - alone).max() <= 1
        assert np.abs(together[i].astype(int) - degrade(images[i].numpy(), drawn[i])).mean() < 1


@pytest.mark.parametrize(("side", "crop"), [(7, 32), (31, 32), (32, 32), (33, 32), (64, 32), (75, 32), (101, 32)])
def test_weights(side: int, crop: int) -> None:
    """The weights are those that OpenCV uses for lines of floating-point numbers; they add up to 1."""
    taps = max(2, -(-side // crop) + 1)
    pixels, weights = weigh(side, crop, taps)
    assert pixels.min() >= 0 and pixels.max() < side
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    line = np.random.default_rng(0).random((1, side), dtype=np.float32)
    square = line.repeat(side, 0)  # OpenCV averages areas only if both sides shrink
    resized = cv2.resize(square, (crop, crop), interpolation=cv2.INTER_AREA if side > crop else cv2.INTER_LINEAR)
    np.testing.assert_allclose((line[0][pixels] * weights).sum(1), resized[0], atol=1e-4)


@pytest.mark.parametrize("side", [5, 31, 32, 33, 50, 64, 77])
def test_nearest_pixels_of_masks(side: int) -> None:
    mask = np.random.default_rng(side).integers(0, 2, (side, side), dtype=np.uint8)
    expected = cv2.resize(mask, (CROP, CROP), interpolation=cv2.INTER_NEAREST_EXACT)
    pixels = nearest(side, CROP)
    np.testing.assert_array_equal(mask[pixels][:, pixels], expected)
