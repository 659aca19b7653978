"""Degrade an image of a training sample, to imitate differences between sensors, seasons and archives.

Images are uint8 RGB (H, W, 3). `change.data.batch_augmentation` does the same for a whole batch on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.images import LUMA, Image

KERNEL = 7  # side of the Gaussian kernel
GAIN, OFFSET = 0.15, 15.0  # colour cast: largest change of a channel's gain, largest offset in levels
HAZE = (0.1, 0.5)  # share of the light that is haze
WHITES = (180.0, 255.0)  # level of the haze
BLUR = (0.5, 1.5)  # standard deviation in pixels
SHARPEN = (0.3, 1.5)  # factor of the details that are added
QUALITY = (30, 90)  # JPEG quality


class Degradation(NamedTuple):
    """The random draws for one image.

    Attributes:
        matrix: A 3x4 matrix that maps a pixel's (red, green, blue, 1) to its new colour.
        sigma: Standard deviation of the Gaussian, in pixels; 0 if the image is neither blurred nor sharpened.
        details: Factor of the details that are added; details are the image minus the blurred image. -1 blurs.
        quality: Quality of the JPEG compression, 1 to 100; 0 for none.
    """

    matrix: NDArray[np.float64]
    sigma: float
    details: float
    quality: int


@dataclass(frozen=True)
class Degradations:
    """Draws degradations: a colour cast, haze, grey, blur or sharpening, and JPEG, each with probability `share`.

    Raises ValueError if `share` is not 0 to 1.
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError("the probability must be 0 to 1")

    def draw(self, rng: np.random.Generator) -> Degradation | None:
        """Draw the degradations of one image. If `share` is 0, return None and draw no random numbers."""
        if not self.share:
            return None
        cast, haze, grey, focus, jpeg = (rng.random(5) < self.share).tolist()
        colours, constant = np.eye(3), np.zeros(3)
        if grey:
            colours = np.tile(LUMA, (3, 1))
        if cast:
            gains = rng.uniform(1 - GAIN, 1 + GAIN, 3)
            colours, constant = gains[:, None] * colours, rng.uniform(-OFFSET, OFFSET, 3)
        if haze:
            part, white = rng.uniform(*HAZE), rng.uniform(*WHITES)
            colours, constant = (1 - part) * colours, (1 - part) * constant + part * white
        sigma = details = 0.0
        if focus and rng.random() < 0.5:
            sigma, details = rng.uniform(*BLUR), -1.0
        elif focus:
            sigma, details = 1.0, rng.uniform(*SHARPEN)
        quality = int(rng.integers(QUALITY[0], QUALITY[1] + 1)) if jpeg else 0
        return Degradation(np.column_stack([colours, constant]), sigma, details, quality)


NO_DEGRADATION = Degradations()


def degrade(image: Image, drawn: Degradation | None) -> Image:
    """Apply what was drawn to an image (H, W, 3)."""
    if drawn is None:
        return image
    image = np.asarray(cv2.transform(image, drawn.matrix), np.uint8)
    if drawn.sigma:
        smooth = cv2.GaussianBlur(image, (KERNEL, KERNEL), drawn.sigma)
        image = np.asarray(cv2.addWeighted(image, 1 + drawn.details, smooth, -drawn.details, 0), np.uint8)
    if drawn.quality:
        image = compress(image, drawn.quality)
    return image


def compress(image: Image, quality: int) -> Image:
    """Compress an image as JPEG with full resolution of colour, and decode it."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
