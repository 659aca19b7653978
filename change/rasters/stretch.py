"""Stretching the levels of a raster to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError

UNCHANGED = (0, 0, 0), (255, 255, 255)
FENCE = 3  # interquartile ranges


@dataclass(frozen=True)
class Stretch:
    """The levels of each band that become 0 (`low`) and 255 (`high`), three numbers each.

    `odd` is the largest share of odd levels in a band, which percentiles leave out; see `inside_fences`.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    odd: float = 0.0

    def apply(self, levels: NDArray[Any]) -> NDArray[np.uint8]:
        """Stretch levels (3, h, W) of any type to uint8 (3, h, W)."""
        if levels.dtype == np.uint8 and (self.low, self.high) == UNCHANGED:
            return levels
        low = np.array(self.low, np.float32)[:, None, None]
        high = np.array(self.high, np.float32)[:, None, None]
        with np.errstate(over="ignore", invalid="ignore"):  # nodata may be the largest float, or NaN
            scaled = (levels.astype(np.float32) - low) * (255 / np.maximum(high - low, 1e-12))
            return np.asarray(np.clip(np.nan_to_num(scaled) + 0.5, 0, 255), np.uint8)


def choose_stretch(text: str, levels: NDArray[Any], valid: NDArray[np.bool_]) -> Stretch:
    """Choose the stretch of a raster from a sample of its pixels.

    Args:
        text: "none" keeps the levels as they are; "P,Q" turns the P-th percentile of each band into 0 and the Q-th
            into 255, without the levels outside of `inside_fences`.
        levels: any type (3, h, W), the sample.
        valid: bool (3, h, W), False for nodata.

    Raises:
        UserError: for any other text.
    """
    if text == "none":
        return Stretch(*UNCHANGED)
    low, high = read_percentiles(text)
    ends, odd = [], 0.0
    for band, is_valid in zip(levels, valid, strict=True):
        found = band[is_valid] if is_valid.any() else np.zeros(1)
        inside = inside_fences(found)
        ends.append(np.percentile(found[inside], (low, high)).tolist())
        odd = max(odd, 1 - float(inside.mean()))
    return Stretch(tuple(end[0] for end in ends), tuple(end[1] for end in ends), odd)


def inside_fences(levels: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the levels (N,) within three interquartile ranges of the quartiles; the others are odd.

    Clouds and undeclared nodata are far outside, and a few percent of them would determine a percentile. All levels
    count if the quartiles are equal. Source: Tukey, "Exploratory Data Analysis", 1977 (outer fences).
    """
    first, third = np.percentile(levels, (25, 75)).tolist()
    reach = FENCE * (third - first)
    if not reach:
        return np.ones(levels.shape, np.bool_)
    return np.asarray((levels >= first - reach) & (levels <= third + reach), np.bool_)


def check_8_bit_levels(levels: NDArray[Any], path: Path, kind: str) -> None:
    """Raise UserError if levels (N,) of type `kind` are not 0 to 255: the network would see black or white."""
    outside = float(((levels < 0) | (levels > 255)).mean())
    if outside > 0.5 or levels.max() <= 1:
        raise UserError(
            f"--stretch none: the levels of {path} ({kind}, {levels.min():.6g} to {levels.max():.6g}) are not 0 to "
            "255; leave it out, or give two percentiles such as 2,98"
        )


def read_percentiles(text: str) -> tuple[float, float]:
    """Read "P,Q", with 0 <= P < Q <= 100. Raises UserError for any other text."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = np.nan
    if not 0 <= low < high <= 100:
        raise UserError(f"--stretch {text}: choose auto, none, or two percentiles such as 2,98")
    return low, high
