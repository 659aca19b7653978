"""The five scores, and bootstrap intervals of them and of their differences.

Whole units are resampled. A unit is a group of connected tiles, or a single image if it belongs to no group. Tiles of
one place share their ground, their season and their errors, so intervals over single tiles would be too narrow. This
module reads no files and imports neither torch nor the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SCORES = ("precision", "recall", "f1", "iou", "oa")
TOO_FEW = 30  # with fewer units, an interval is only a rough guide
RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
CHUNK = 1 << 22  # number of draws made at once, about 100 MB


def scores(counts: NDArray[np.number[Any]]) -> dict[str, Floats]:
    """Compute the five scores from pixel counts.

    Args:
        counts: TP, FP, FN, TN, (..., 4), with sums below 2 ** 53.

    Returns:
        The scores by name, in the order of `SCORES`, each float64 (...), 0 to 1. Precision, recall, F1 and IoU are of
        the changed class; oa is the overall accuracy. A score whose denominator is 0 is undefined: NaN.
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    parts = {
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "oa": (tp + tn, tp + fp + fn + tn),
    }
    return {
        name: np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
        for name, (part, whole) in parts.items()
    }


def pool(counts: Ints, units: Sequence[str]) -> Ints:
    """Sum the counts of images over units.

    Args:
        counts: int64 (N, 4).
        units: the unit of each image.

    Returns:
        int64 (U, 4), sorted by the names of the units.
    """
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    pooled = np.zeros((len(names), 4), np.int64)
    np.add.at(pooled, unit, counts)
    return pooled


@dataclass(frozen=True)
class Intervals:
    """The bounds of every score. They are NaN if the score is undefined or if there is only one unit."""

    low: dict[str, float]
    high: dict[str, float]
    units: int
    level: float
    resamples: int
    seed: int

    @property
    def too_few(self) -> bool:
        """Whether there are too few units for reliable intervals."""
        return self.units < TOO_FEW

    def as_dict(self) -> dict[str, Any]:
        """Return the intervals for JSON: the bounds of each score as a pair, with None for NaN."""
        return {
            **{name: [or_none(self.low[name]), or_none(self.high[name])] for name in self.low},
            "units": self.units,
            "too_few": self.too_few,
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Difference(Intervals):
    """The scores of two sides, each the mean over its runs, and the bounds of B - A."""

    a: dict[str, float]
    b: dict[str, float]

    @property
    def difference(self) -> dict[str, float]:
        """B - A for each score."""
        return {name: self.b[name] - self.a[name] for name in self.a}

    def significant(self, name: str) -> bool:
        """Return whether the interval of a score's difference excludes 0."""
        return self.low[name] > 0 or self.high[name] < 0


def bootstrap(counts: Ints, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL) -> Intervals:
    """Compute intervals of pooled scores by drawing whole units with replacement.

    These are expanded percentile intervals (see `tail`). The table shows in percent (+- 0.5) how often 95% intervals of
    F1 contain the true F1 of the population simulated in tests/evaluation/test_bootstrap.py:

        groups         500  100   30   15
        expanded        94   94   92   92
        percentile      95   94   91   89
        BCa             94   93   89   86
        studentised     95   95   93   92

    Studentised intervals are hardly better. Expanded ones are also defined for scores of 0 and 1, stay within 0 to 1,
    and work for differences of several runs. Resamples in which a score is undefined are ignored for its interval.

    Args:
        counts: counts of the units, int64 (U, 4), U at least 1.
        resamples: number of resamples.
        seed: seed of the draws.
        level: level of confidence, 0 to 1.
    """
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([weights @ counts for weights in draw_units(len(counts), resamples, rng)])
    low, high = bounds(scores(drawn), level, len(counts))
    return Intervals(low=low, high=high, units=len(counts), level=level, resamples=resamples, seed=seed)


def bootstrap_runs(counts: Ints, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL) -> Intervals:
    """Compute intervals of the mean pooled scores of several runs (training seeds) of one system.

    Units and runs are drawn as in `paired_difference`. With one run, the result is that of `bootstrap`.

    Args:
        counts: counts of the runs on the same units, int64 (S, U, 4).
        resamples: number of resamples.
        seed: seed of the draws.
        level: level of confidence, 0 to 1.
    """
    rng = np.random.default_rng(seed)
    runs, units = counts.shape[:2]
    drawn = np.concatenate([weights @ counts for weights in draw_units(units, resamples, rng)], axis=1)
    picked = rng.integers(runs, size=(max(1, runs - 1), resamples))
    means = {name: np.take_along_axis(values, picked, 0).mean(0) for name, values in scores(drawn).items()}
    low, high = bounds(means, level, units)
    return Intervals(low=low, high=high, units=units, level=level, resamples=resamples, seed=seed)


def paired_difference(
    a: Ints, b: Ints, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> Difference:
    """Compute the mean pooled score of the runs in `b` minus that of the runs in `a`, with intervals.

    The same units are resampled for both sides. If a side has S > 1 runs (training seeds), S - 1 of them are drawn with
    replacement, for each side separately. Drawing S would make the variance too small by a factor of (S - 1) / S (Rao
    and Wu, JASA 83, 1988). With a single run, the interval covers the variation between images but not between training
    seeds. With two runs per side that differ widely, it is still too narrow: with 500 groups it contains the true
    difference in 80 of 100 cases (90 with three runs, 93 with five). With few groups it is too wide (98 and more).

    Args:
        a: counts of the runs of one side, int64 (S_a, U, 4).
        b: counts of the runs of the other side on the same units, int64 (S_b, U, 4).
        resamples: number of resamples.
        seed: seed of the draws.
        level: level of confidence, 0 to 1.
    """
    rng = np.random.default_rng(seed)
    runs, units = np.concatenate((a, b)), a.shape[1]
    drawn = np.concatenate([weights @ runs for weights in draw_units(units, resamples, rng)], axis=1)
    picked = [rng.integers(side, size=(max(1, side - 1), resamples)) for side in (len(a), len(b))]
    differences = {
        name: np.take_along_axis(values[len(a) :], picked[1], 0).mean(0)
        - np.take_along_axis(values[: len(a)], picked[0], 0).mean(0)
        for name, values in scores(drawn).items()
    }
    low, high = bounds(differences, level, units)
    means = [{name: float(v.mean()) for name, v in scores(side.sum(1)).items()} for side in (a, b)]
    return Difference(
        low=low, high=high, units=units, level=level, resamples=resamples, seed=seed, a=means[0], b=means[1]
    )


def smallest_visible(image_sd: float, run_sd: float, runs: int, level: float = LEVEL, power: float = 0.8) -> float:
    """Compute the smallest true difference of two systems that a comparison finds in a share `power` of all cases.

    It is found if the interval excludes 0. With z for quantiles of the normal distribution, the difference is
    (z(0.5 + level / 2) + z(power)) * sqrt(image_sd ** 2 + 2 * run_sd ** 2 / runs). With few runs it is optimistic,
    because the normal distribution stands for Student's t.

    Source: Bloom, Minimum Detectable Effects, Evaluation Review 19, 1995.

    Args:
        image_sd: standard deviation of the difference that more runs do not reduce: over samples of images.
        run_sd: standard deviation of the score of one run: over seeds.
        runs: number of runs (training seeds) per system.
        level: level of confidence of the interval, 0 to 1.
        power: share of the cases, 0 to 1.

    Returns:
        The difference, in the unit of the standard deviations.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2) + NormalDist().inv_cdf(power)
    return z * math.sqrt(image_sd**2 + 2 * run_sd**2 / runs)


def draw_units(units: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Draw units with replacement and yield how often each was drawn.

    Yields:
        float64 (n, U), `resamples` rows in total, each of which sums to U. Matrix products with it are exact, because
        pixel counts add up to less than 2 ** 53.
    """
    rows = max(1, CHUNK // units)
    for start in range(0, resamples, rows):
        n = min(rows, resamples - start)
        drawn = rng.integers(units, size=(n, units)) + units * np.arange(n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units).astype(np.float64)


def bounds(drawn: dict[str, Floats], level: float, units: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the lower and the upper bound of each score, from its values (R,) on the resamples."""
    low, high = {}, {}
    for name, values in drawn.items():
        defined = values[~np.isnan(values)]
        if units > 1 and defined.size:
            share = tail(level, units)
            low[name], high[name] = map(float, np.quantile(defined, (share, 1 - share)))
        else:
            low[name] = high[name] = math.nan
    return low, high


def tail(level: float, units: int) -> float:
    """Return the share of resamples beyond each bound.

    It is less than (1 - level) / 2, because a sample of few units varies less than the population it was drawn from. It
    is the tail of the normal distribution beyond sqrt(U / (U - 1)) t, with Student's t for U - 1 degrees of freedom.

    Sources: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015; t by
    expansion 26.7.5 of Abramowitz and Stegun.
    """
    z, free = NormalDist().inv_cdf(0.5 + level / 2), units - 1
    t = (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )
    return NormalDist().cdf(-math.sqrt(units / free) * t)


def or_none(value: float) -> float | None:
    """Return None for NaN, which JSON cannot hold."""
    return None if math.isnan(value) else value
