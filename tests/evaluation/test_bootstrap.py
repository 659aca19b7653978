"""Intervals against direct loops, and how often they contain the known score of a population."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

import change.evaluation.bootstrap
from change.evaluation.bootstrap import (
    SCORES,
    bootstrap,
    bootstrap_runs,
    bounds,
    paired_difference,
    pool,
    scores,
    smallest_visible,
    tail,
)
from change.evaluation.metrics import Counts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def draw_counts(*shape: int, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(0, 500, (*shape, 4))


def pooled(counts: Ints) -> Counts:
    return sum((Counts(*row) for row in counts.tolist()), Counts())


def by_hand(tp: int, fp: int, fn: int, tn: int) -> dict[str, float]:
    """Compute the scores from exact fractions."""
    ratios = {
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "oa": (tp + tn, tp + fp + fn + tn),
    }
    return {name: float(Fraction(part, whole)) if whole else math.nan for name, (part, whole) in ratios.items()}


def test_scores() -> None:
    """They equal exact fractions to the last bit, for arrays and for single counts."""
    counts = np.random.default_rng(1).integers(0, 4, (500, 4)) * 10**9
    result = scores(counts)
    assert tuple(result) == SCORES
    for index, row in enumerate(counts.tolist()):
        expected = by_hand(*row)
        found = {name: values[index] for name, values in result.items()}
        assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert Counts(*row).scores() == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert np.isnan(result["f1"]).any() and scores(counts[:6].reshape(2, 3, 4))["oa"].shape == (2, 3)


def test_pool() -> None:
    counts = draw_counts(5)
    units = ["b", "a", "b", "c", "a"]
    assert np.array_equal(pool(counts, units), [counts[1] + counts[4], counts[0] + counts[2], counts[3]])
    order = [3, 0, 4, 2, 1]
    assert np.array_equal(pool(counts[order], [units[i] for i in order]), pool(counts, units))


def direct_bounds(values: list[float], units: int, level: float) -> tuple[float, float]:
    share = tail(level, units)
    return float(np.quantile(values, share)), float(np.quantile(values, 1 - share))


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_bootstrap_against_a_loop(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """The draws do not depend on how many are made at once."""
    monkeypatch.setattr(change.evaluation.bootstrap, "CHUNK", chunk)
    counts = draw_counts(40)
    result = bootstrap(counts, resamples=50, seed=3, level=0.9)
    rng = np.random.default_rng(3)
    drawn = [pooled(counts[rng.integers(40, size=40)]) for _ in range(50)]
    for name in SCORES:
        low, high = direct_bounds([each.scores()[name] for each in drawn], 40, 0.9)
        assert (result.low[name], result.high[name]) == pytest.approx((low, high), rel=1e-14)
    assert (result.units, result.too_few, result.level, result.resamples, result.seed) == (40, False, 0.9, 50, 3)
    assert bootstrap(counts, 50, 3, 0.9) == result != bootstrap(counts, 50, 4, 0.9)


@pytest.mark.parametrize(("runs_a", "runs_b"), [(1, 1), (3, 2)])
def test_paired_difference_against_a_loop(runs_a: int, runs_b: int) -> None:
    a, b = draw_counts(runs_a, 35, seed=1), draw_counts(runs_b, 35, seed=2)
    result = paired_difference(a, b, resamples=60, seed=5)
    rng = np.random.default_rng(5)
    units = [rng.integers(35, size=35) for _ in range(60)]
    picked = [rng.integers(len(side), size=(max(1, len(side) - 1), 60)) for side in (a, b)]
    for name in SCORES:
        differences = []
        for r in range(60):
            means = [
                np.mean([pooled(side[run][units[r]]).scores()[name] for run in runs[:, r]])
                for side, runs in zip((a, b), picked, strict=True)
            ]
            differences.append(float(means[1] - means[0]))
        low, high = direct_bounds(differences, 35, 0.95)
        assert (result.low[name], result.high[name]) == pytest.approx((low, high), abs=1e-14)
        means = [np.mean([pooled(run).scores()[name] for run in side]) for side in (a, b)]
        assert (result.a[name], result.b[name]) == pytest.approx(tuple(means))
        assert result.difference[name] == pytest.approx(means[1] - means[0])
        assert result.significant(name) == (not low <= 0 <= high)


def test_runs_of_one_system() -> None:
    """One run gives the intervals of that run; several give those of the difference from a system without errors."""
    counts = draw_counts(3, 40)
    assert bootstrap_runs(counts[:1], 200) == bootstrap(counts[0], 200)
    tp, fp, fn, tn = np.moveaxis(counts[:1], -1, 0)
    perfect = np.stack((tp + fn, 0 * fp, 0 * fn, tn + fp), axis=-1)
    found, expected = bootstrap_runs(counts, 200), paired_difference(perfect, counts, 200)
    for name in SCORES:
        assert found.low[name] == pytest.approx(1 + expected.low[name], abs=1e-12)
        assert found.high[name] == pytest.approx(1 + expected.high[name], abs=1e-12)
    assert found.units == 40 and found.low["f1"] < scores(counts.sum(1))["f1"].mean() < found.high["f1"]


def test_the_same_units_on_both_sides() -> None:
    """The difference of two systems that err alike is certain, even if the score of each is not."""
    a = draw_counts(1, 60)
    b = a + np.array([0, 3, 0, -3])
    result, alone = paired_difference(a, b), bootstrap(a[0])
    assert result.significant("precision") and result.high["precision"] < 0
    assert result.high["precision"] - result.low["precision"] < 0.1 * (alone.high["precision"] - alone.low["precision"])
    assert result.difference["recall"] == result.low["recall"] == result.high["recall"] == 0
    assert not result.significant("recall")


@pytest.mark.parametrize(("image_sd", "run_sd", "runs"), [(0.5, 1.0, 3), (0.0, 1.0, 5), (1.0, 0.2, 1)])
def test_smallest_visible_difference(image_sd: float, run_sd: float, runs: int) -> None:
    """In simulated comparisons, four of five find such a difference, and one of 40 finds it where there is none."""
    rng = np.random.default_rng(0)
    sides = rng.normal(0, run_sd, (2, 40_000, runs)).mean(2)
    noise = sides[1] - sides[0] + rng.normal(0, image_sd, 40_000)
    visible, reach = smallest_visible(image_sd, run_sd, runs), 1.96 * noise.std()
    assert np.mean(visible + noise - reach > 0) == pytest.approx(0.8, abs=0.01)
    assert np.mean(noise - reach > 0) == pytest.approx(0.025, abs=0.004)


def test_undefined_scores() -> None:
    """A score needs only some resamples to define it; a score without any, or a single unit, has no interval."""
    counts = np.zeros((3, 4), np.int64)
    counts[:, 3], counts[0, 0] = 10, 5
    result = bootstrap(counts, 200)
    assert result.low["f1"] == result.high["f1"] == 1 and result.low["oa"] == 1
    counts[0, 0] = 0
    assert math.isnan(bootstrap(counts, 200).low["f1"])
    single = bootstrap(draw_counts(1), 200)
    assert math.isnan(single.low["f1"]) and single.too_few
    assert json.loads(json.dumps(single.as_dict(), allow_nan=False))["f1"] == [None, None]
    assert not paired_difference(draw_counts(1, 1), draw_counts(1, 1, seed=1), 200).significant("f1")


@pytest.mark.parametrize(("free", "t"), [(4, 2.7764), (14, 2.1448), (29, 2.0452), (499, 1.9647)])
def test_tail_is_that_of_student(free: int, t: float) -> None:
    """Values of t from a printed table; erfc for the normal distribution."""
    expected = math.erfc(math.sqrt((free + 1) / free) * t / math.sqrt(2)) / 2
    assert tail(0.95, free + 1) == pytest.approx(expected, rel=0.05 if free == 4 else 0.002)
    assert bounds({"f1": np.arange(1001.0)}, 0.95, free + 1)[0]["f1"] == pytest.approx(1000 * tail(0.95, free + 1))


# --- how often the intervals contain the truth ---------------------------------------------------------------------


class Population:
    """Tiles in groups of one to eight.

    Each group has a share of change and rates of misses and false alarms. Its tiles and the tested systems vary a
    little around them.
    """

    pixels = 65536

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def draw(self, groups: int, systems: list[tuple[float, float]]) -> tuple[Ints, Ints]:
        """Draw counts (systems, tiles, 4) and the group of each tile.

        A system is the pair of numbers that it adds to the logits of its rates of misses and false alarms.
        """
        group = np.repeat(np.arange(groups), self.rng.integers(1, 9, groups))
        effects = np.array([1.2, 1.0, 1.0]) * self.rng.normal(size=(groups, 3))[group]
        share, miss, false = (np.array([-3, -1, -4.5]) + effects + 0.6 * self.rng.normal(size=effects.shape)).T
        true = self.rng.binomial(self.pixels, logistic(share))
        counts = []
        for more_misses, more_false in systems:
            own = 0.4 * self.rng.normal(size=(groups, 2))[group]
            fn = self.rng.binomial(true, logistic(miss + own[:, 0] + more_misses))
            fp = self.rng.binomial(self.pixels - true, logistic(false + own[:, 1] + more_false))
            counts.append(np.stack((true - fn, fp, fn, self.pixels - true - fp), axis=1))
        return np.stack(counts), group


def logistic(x: Floats) -> Floats:
    """Round, because the last bits of exp differ between processors and would change the draws."""
    return np.round(1 / (1 + np.exp(-x)), 6)


def true_f1(groups: int = 300_000) -> float:
    """Score a population so large that its error, about 0.0005, is small beside that of 500 groups, 0.011."""
    counts, _ = Population(0).draw(groups, [(0, 0)])
    return float(scores(counts.sum(1))["f1"][0])


def coverage(
    groups: int, repetitions: int, truth: float, by_group: bool = True, seed: int = 1, resamples: int = 400
) -> tuple[float, float]:
    """Return how often the 95% interval of F1 contains the truth, as a share of the repetitions.

    The second value is how often the interval of the difference of two equally good systems contains 0. Intervals are
    over groups or, without `by_group`, over images.
    """
    population = Population(seed)
    held = held_difference = 0
    for _ in range(repetitions):
        counts, group = population.draw(groups, [(0, 0), (0, 0)])
        if by_group:
            names = group.astype(str).tolist()
            counts = np.stack([pool(side, names) for side in counts])
        interval = bootstrap(counts[0], resamples)
        held += interval.low["f1"] <= truth <= interval.high["f1"]
        held_difference += not paired_difference(counts[:1], counts[1:], resamples).significant("f1")
    return held / repetitions, held_difference / repetitions


@pytest.fixture(scope="module")
def truth() -> float:
    return true_f1()


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "repetitions", "slack"), [(500, 1500, 0.02), (30, 500, 0.04), (15, 500, 0.05)])
def test_coverage(truth: float, groups: int, repetitions: int, slack: float) -> None:
    """The Monte Carlo error of a share near 0.95 is 0.006 at 500 groups, else 0.01."""
    single, difference = coverage(groups, repetitions, truth)
    assert abs(single - 0.95) <= slack
    assert abs(difference - 0.95) <= slack + 0.01


def test_coverage_over_images_is_too_low(truth: float) -> None:
    """This is why groups are resampled."""
    assert max(coverage(200, 100, truth, by_group=False)) < 0.85
