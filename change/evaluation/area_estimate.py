"""Accuracy and area from a stratified random sample of pixels whose true class was interpreted.

Sample sizes and the presentation follow Olofsson et al. 2014, "Good practices for estimating area and assessing
accuracy of land change", Remote Sensing of Environment 148, 42-57. The strata may differ from the classes of the map,
for example if there is a buffer around change. So every figure is a ratio of two totals, as in Stehman 2014,
"Estimating area and map accuracy for stratified random sampling when the strata are different from the map classes",
International Journal of Remote Sensing 35(13), 4923-4939. If strata and map classes are the same, this gives the
estimates of Olofsson et al.

The estimates are design-based: only the choice of the pixels is random. Classes and strata are numbered from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.96  # quantile of the normal distribution for 95% intervals
LEAST = 2  # pixels that a stratum needs for a variance
Values = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """An estimate and its standard error; both are NaN if it is not defined."""

    value: float
    error: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95% interval."""
        return Z * self.error

    def times(self, factor: float) -> Estimate:
        """Multiply by a number without error, such as the whole area."""
        return Estimate(self.value * factor, self.error * factor)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy and area shares of a map with K classes, estimated from a sample.

    Attributes:
        counts: sampled pixels by map class (rows) and reference class (columns), (K, K).
        proportions: the same as estimated shares of the whole area, (K, K).
        overall: overall accuracy, 0 to 1.
        users: user's accuracy of every class.
        producers: producer's accuracy of every class.
        shares: share of the whole area that each reference class covers.
    """

    counts: Numbers
    proportions: Values
    overall: Estimate
    users: list[Estimate]
    producers: list[Estimate]
    shares: list[Estimate]


def estimate_accuracy(
    mapped: Numbers, reference: Numbers, strata: Numbers, *, sizes: Sequence[int], areas: Values, classes: int
) -> Accuracy:
    """Estimate accuracy and area shares.

    Args:
        mapped: class of every sampled pixel on the map, (n,).
        reference: its true class, (n,).
        strata: its stratum, (n,).
        sizes: number of pixels in each stratum, sampled or not.
        areas: area of every sampled pixel, (n,), in any unit; equal values if all pixels have the same area.
        classes: number of classes, K.

    Raises:
        ValueError: if a stratum has too few sampled pixels, as `stratified_ratio` says.
    """

    def ratio(numerator: NDArray[np.bool_], denominator: NDArray[np.bool_]) -> Estimate:
        return stratified_ratio(areas * numerator, areas * denominator, strata, sizes)

    every = np.ones(len(mapped), np.bool_)
    right = mapped == reference
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (mapped, reference), 1)
    proportions = np.zeros((classes, classes))
    for row in range(classes):
        for column in range(classes):
            proportions[row, column] = ratio((mapped == row) & (reference == column), every).value
    return Accuracy(
        counts=counts,
        proportions=proportions,
        overall=ratio(right, every),
        users=[ratio(right & (mapped == kind), mapped == kind) for kind in range(classes)],
        producers=[ratio(right & (reference == kind), reference == kind) for kind in range(classes)],
        shares=[ratio(reference == kind, every) for kind in range(classes)],
    )


def stratified_ratio(numerator: Values, denominator: Values, strata: Numbers, sizes: Sequence[int]) -> Estimate:
    """Estimate the ratio of two totals over all pixels with the combined ratio estimator.

    Args:
        numerator: value of every sampled pixel, (n,).
        denominator: its other value, (n,).
        strata: its stratum, (n,).
        sizes: number of pixels in each stratum.

    Returns:
        The ratio; NaN if the denominator is 0 for every sampled pixel. As in Olofsson et al., its variance has no
        correction for finite populations, so it is a little too large if a large share of a stratum is sampled. Only a
        stratum that is sampled completely adds no variance.

    Raises:
        ValueError: if a stratum that is not sampled completely has fewer than `LEAST` sampled pixels.
    """
    members = [np.flatnonzero(strata == index) for index in range(len(sizes))]
    for index, (own, size) in enumerate(zip(members, sizes, strict=True)):
        if len(own) < min(LEAST, size):
            raise ValueError(f"stratum {index} has {len(own)} sampled pixels of {size}")
    used = [(own, size) for own, size in zip(members, sizes, strict=True) if size]
    above = sum(size * float(numerator[own].mean()) for own, size in used)
    below = sum(size * float(denominator[own].mean()) for own, size in used)
    if not below:
        return Estimate(math.nan, math.nan)
    ratio = above / below
    variance = 0.0
    for own, size in used:
        if len(own) < size:
            residual = numerator[own] - ratio * denominator[own]
            variance += size**2 * float(residual.var(ddof=1)) / len(own)
    return Estimate(ratio, math.sqrt(variance) / below)


def choose_size(sizes: Sequence[int], expected: Sequence[float], error: float) -> int:
    """Choose the number of pixels to sample, equation 13 of Olofsson et al. 2014 (Cochran 1977, equation 5.25).

    Args:
        sizes: number of pixels in each stratum.
        expected: share of each stratum that is expected to be mapped correctly, 0 to 1.
        error: target standard error of the overall accuracy, above 0.
    """
    weights = np.asarray(sizes, np.float64) / sum(sizes)
    variances = np.asarray(expected, np.float64) * (1 - np.asarray(expected, np.float64))
    above = float((weights * np.sqrt(variances)).sum()) ** 2
    below = error**2 + float((weights * variances).sum()) / sum(sizes)
    return math.ceil(round(above / below, 6))


def allocate(total: int, sizes: Sequence[int], minimum: int) -> list[int]:
    """Distribute a sample over strata in proportion to their sizes, but with a minimum for rare ones.

    Args:
        total: number of pixels to sample.
        sizes: number of pixels in each stratum.
        minimum: least number in each stratum; `total` must suffice for it.

    Returns:
        Numbers of pixels, never more than a stratum holds; their sum is `total` unless strata are too small.
    """
    found = [0] * len(sizes)
    proportional = list(range(len(sizes)))
    left = total
    while proportional:
        pixels = sum(sizes[index] for index in proportional)
        rare = [index for index in proportional if left * sizes[index] < minimum * pixels]
        for index in rare:
            found[index] = min(minimum, sizes[index])
        if not rare:
            shares = {index: left * sizes[index] // pixels if pixels else 0 for index in proportional}
            largest = max(proportional, key=lambda index: sizes[index])
            shares[largest] += left - sum(shares.values())
            for index, share in shares.items():
                found[index] = min(share, sizes[index])
            break
        left -= sum(found[index] for index in rare)
        proportional = [index for index in proportional if index not in rare]
    return found
