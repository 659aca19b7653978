"""Augment a training sample: geometry is drawn once for before, after and mask, colours separately for each date.

Shapes: images are uint8 RGB (H, W, 3) of 0..255, or levels of one type (H, W, C), masks uint8 (H, W) of 0 and 1, or of
the values of classes. All random numbers come from the generator that is passed in, none from a global one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.images import LUMA, Image
from change.data.degradation import NO_DEGRADATION, Degradations, degrade

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # numbers of the colour changes
MOST_CHANNELS = 4  # the most channels that OpenCV resizes and transposes


class Colours(NamedTuple):
    """The colour changes that were drawn for one image.

    Attributes:
        amounts: The factors of brightness, contrast and saturation, 0 or more, and the shift of the hue in turns.
        order: The numbers of the four changes, in the order in which they are applied.
    """

    amounts: tuple[float, float, float, float]
    order: tuple[int, ...]


@dataclass(frozen=True)
class ColorJitter:
    """Ranges of the colour changes, as in torchvision's ColorJitter.

    For a field with value x, the factor of brightness, contrast or saturation is drawn from 1 - x to 1 + x (but not
    below 0), and the shift of the hue from -x to x turns (x is at most 0.5). The changes are applied in random order.
    Raises ValueError for values out of range.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.1
    hue: float = 0.1

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError("brightness, contrast and saturation must be 0 or more, hue 0 to 0.5")

    @property
    def active(self) -> bool:
        """Whether anything can change."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def draw(self, rng: np.random.Generator) -> Colours | None:
        """Draw the changes of one image. If nothing can change, return None and draw no random numbers."""
        if not self.active:
            return None
        brightness, contrast, saturation = (
            rng.uniform(max(0.0, 1 - spread), 1 + spread)
            for spread in (self.brightness, self.contrast, self.saturation)
        )
        hue = rng.uniform(-self.hue, self.hue)
        return Colours((brightness, contrast, saturation, hue), tuple(rng.permutation(4).tolist()))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Draw changes and apply them to an image (H, W, 3)."""
        colours = self.draw(rng)
        if colours is None:
            return image
        for change in colours.order:
            image = ADJUST[change](image, colours.amounts[change])
        return image


def adjust_brightness(image: Image, factor: float) -> Image:
    """Multiply by `factor`: 0 gives black, 1 the image."""
    return np.asarray(cv2.convertScaleAbs(image, alpha=factor), np.uint8)


def adjust_contrast(image: Image, factor: float) -> Image:
    """Blend with the image's mean grey: a factor of 0 gives that grey, 1 the image."""
    grey = float(LUMA @ cv2.mean(image)[:3])
    return blend(image, factor, np.zeros((3, 3)), grey)


def adjust_saturation(image: Image, factor: float) -> Image:
    """Blend with the grey image: a factor of 0 gives grey, 1 the image."""
    return blend(image, factor, np.tile(LUMA, (3, 1)), 0.0)


def blend(image: Image, factor: float, matrix: NDArray[np.float64], constant: float) -> Image:
    """Blend with `matrix` (3, 3) times the image plus `constant`, in one pass."""
    shift = (1 - factor) * constant - 1 / 3  # torchvision rounds down: stay within one level of it
    whole = np.column_stack([factor * np.eye(3) + (1 - factor) * matrix, np.full(3, shift)])
    return np.asarray(cv2.transform(image, whole), np.uint8)


def adjust_hue(image: Image, turns: float) -> Image:
    """Shift the hue by `turns` (1 is the full circle), in steps of 1/256."""
    hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), np.uint8)
    step = np.array([hue_step(turns), 0, 0], np.uint8)  # after 255, the hue begins at 0 again
    hsv.reshape(len(hsv), -1)[:] += np.tile(step, hsv.shape[1])  # four times as fast as adding to every third byte
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def hue_step(turns: float) -> int:
    """Convert a shift of the hue in turns to steps of 1/256, 0 to 255."""
    return round(turns * 256) % 256


# By the numbers of the changes.
ADJUST: tuple[Callable[[Image, float], Image], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


@dataclass(frozen=True)
class BandJitter:
    """Random gain and offset of each band, for images that are not RGB.

    A gain is drawn from 1 - `gain` to 1 + `gain`, but not below 0, and an offset from -`offset` to `offset` standard
    deviations of the band.

    Attributes:
        gain: 0 or more.
        offset: 0 or more.
        std: The standard deviation of each band.
    """

    gain: float
    offset: float
    std: tuple[float, ...]

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Draw changes and apply them to levels (H, W, C); returns float32."""
        gains = rng.uniform(max(0.0, 1 - self.gain), 1 + self.gain, len(self.std))
        offsets = rng.uniform(-self.offset, self.offset, len(self.std)) * self.std
        return image.astype(np.float32) * gains.astype(np.float32) + offsets.astype(np.float32)


@dataclass(frozen=True)
class Geometry:
    """Further changes of a crop, in addition to a random position and random flips.

    The crop is enlarged by a factor from `smallest` to `largest`, drawn uniformly on a logarithmic scale and limited by
    the image's size. If `turned`, all eight symmetries are drawn. If `swapped`, the dates are exchanged with
    probability 1/2, and mask value v then becomes `opposites[v]`, unless `opposites` is empty. With probability 1/2,
    one of the dates is shifted by up to `shift` pixels along each axis; the mask stays where it is. With probability
    `unchanged`, both dates show the same image, one of the two, and the mask is empty. Raises ValueError for values out
    of range.
    """

    smallest: float = 1.0
    largest: float = 1.0
    turned: bool = False
    swapped: bool = False
    shift: int = 0
    opposites: tuple[int, ...] = ()
    unchanged: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= self.largest:
            raise ValueError("scales must be above 0, the smaller one first")
        if self.shift < 0:
            raise ValueError("the shift must be 0 or more")
        if not 0 <= self.unchanged <= 1:
            raise ValueError("the probability must be 0 to 1")


PLAIN = Geometry()


class Crop(NamedTuple):
    """The square that was drawn for one sample, and what happens to it.

    The square is cut out, resized to the crop, transposed if `turn`, and then flipped.

    Attributes:
        top: First row of the square in the image.
        left: First column.
        side: Rows and columns of the square, before it is resized.
        flip_x: Whether left and right are exchanged.
        flip_y: Whether top and bottom are exchanged.
        turn: Whether rows and columns are exchanged.
        swap: Whether the dates are exchanged.
        down_before, across_before, down_after, across_after: Rows and columns by which the square of a date is shifted,
            after the exchange.
        copied: Whether the second date is replaced by the first one, after the exchange, and the mask emptied.
    """

    top: int
    left: int
    side: int
    flip_x: bool
    flip_y: bool
    turn: bool
    swap: bool
    down_before: int = 0
    across_before: int = 0
    down_after: int = 0
    across_after: int = 0
    copied: bool = False


def draw_crop(height: int, width: int, crop: int, rng: np.random.Generator, geometry: Geometry = PLAIN) -> Crop:
    """Draw the square of a sample from an image of `height` rows and `width` columns, both at least `crop`."""
    side = crop
    if (geometry.smallest, geometry.largest) != (1, 1):
        scale = np.exp(rng.uniform(np.log(geometry.smallest), np.log(geometry.largest)))
        side = max(1, min(round(crop / scale), height, width))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    flip_x, flip_y = (rng.random(2) < 0.5).tolist()
    turn = geometry.turned and rng.random() < 0.5
    swap = geometry.swapped and rng.random() < 0.5
    copied = geometry.unchanged > 0 and rng.random() < geometry.unchanged
    if copied:
        swap = rng.random() < 0.5
    plain = Crop(top, left, side, flip_x, flip_y, turn, swap, copied=copied)
    if not geometry.shift or rng.random() < 0.5:
        return plain
    down, across = rng.integers(-geometry.shift, geometry.shift + 1, 2).tolist()
    down, across = max(-top, min(down, height - side - top)), max(-left, min(across, width - side - left))
    if rng.random() < 0.5:
        return plain._replace(down_before=down, across_before=across)
    return plain._replace(down_after=down, across_after=across)


def crop_pair(
    before: Image, after: Image, mask: Image, crop: int, rng: np.random.Generator, geometry: Geometry = PLAIN
) -> tuple[Image, Image, Image]:
    """Cut a random square out of all three, and flip it along each axis with probability 1/2.

    Args:
        before: Image (H, W, C).
        after: Image (H, W, C).
        mask: Mask (H, W).
        crop: Side of the result in pixels, at most H and W.
        rng: Source of all random numbers.
        geometry: How the square is scaled, turned, swapped and shifted, and whether the dates differ.

    Returns:
        Two images (crop, crop, C) and a mask (crop, crop), contiguous in memory.
    """
    height, width = mask.shape
    drawn = draw_crop(height, width, crop, rng, geometry)
    side, flip_x, flip_y = drawn.side, drawn.flip_x, drawn.flip_y
    if drawn.swap:
        before, after = after, before
    if drawn.copied:
        after, mask = before, np.zeros_like(mask)

    def cut(array: Image, down: int = 0, across: int = 0) -> Image:
        top, left = drawn.top + down, drawn.left + across
        piece = array[top : top + side, left : left + side]
        if side != crop:
            if array.ndim == 2:  # a mask
                interpolation = cv2.INTER_NEAREST_EXACT
            else:
                interpolation = cv2.INTER_AREA if side > crop else cv2.INTER_LINEAR
            piece = resize(piece, crop, interpolation)
        if piece.ndim == 3 and piece.shape[2] > MOST_CHANNELS:  # OpenCV cannot transpose it
            turned = piece.swapaxes(0, 1) if drawn.turn else piece
            return np.ascontiguousarray(turned[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
        if drawn.turn:
            piece = np.asarray(cv2.transpose(piece), piece.dtype)
        if not (flip_x or flip_y):
            return np.ascontiguousarray(piece)
        flip_code = -1 if flip_x and flip_y else int(flip_x)  # OpenCV: -1 is both axes, 1 is x, 0 is y
        return np.asarray(cv2.flip(piece, flip_code), piece.dtype).reshape(piece.shape)  # faster than numpy

    cut_mask = cut(mask)
    if drawn.swap and geometry.opposites:
        cut_mask = np.array(geometry.opposites, np.uint8)[cut_mask]
    return (
        cut(before, drawn.down_before, drawn.across_before),
        cut(after, drawn.down_after, drawn.across_after),
        cut_mask,
    )


def resize(image: Image, side: int, interpolation: int) -> Image:
    """Resize an image (H, W, C) or a mask (H, W) to a square."""
    if image.ndim == 3 and image.shape[2] > MOST_CHANNELS:
        parts = [image[..., first : first + MOST_CHANNELS] for first in range(0, image.shape[2], MOST_CHANNELS)]
        return np.concatenate([resize(np.ascontiguousarray(part), side, interpolation) for part in parts], axis=2)
    resized = np.asarray(cv2.resize(image, (side, side), interpolation=interpolation), image.dtype)
    return resized.reshape(side, side, *image.shape[2:])  # OpenCV drops the axis of a single channel


def augment(
    before: Image,
    after: Image,
    mask: Image,
    crop: int,
    jitter: ColorJitter | BandJitter,
    rng: np.random.Generator,
    geometry: Geometry = PLAIN,
    degradations: Degradations = NO_DEGRADATION,
) -> tuple[Image, Image, Image]:
    """Crop as `crop_pair` does, then change the colours of each date, then degrade each date."""
    before, after, mask = crop_pair(before, after, mask, crop, rng, geometry)
    before, after = jitter(before, rng), jitter(after, rng)
    return degrade(before, degradations.draw(rng)), degrade(after, degradations.draw(rng)), mask
