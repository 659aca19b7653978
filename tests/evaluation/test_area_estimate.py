"""Area and accuracy from a stratified sample: a published example, and samples of maps whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from change.evaluation.area_estimate import Accuracy, allocate, choose_size, estimate_accuracy, stratified_ratio

# Table 8 of Olofsson et al. 2014: deforestation, forest gain, stable forest, stable non-forest; rows are the map.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = [200_000, 150_000, 3_200_000, 6_450_000]
HECTARES = sum(PIXELS) * 30 * 30 / 10_000


def published() -> Accuracy:
    """Estimate from one sampled pixel per count; the strata are the classes of the map."""
    mapped, reference = (np.repeat(axis.ravel(), COUNTS.ravel()) for axis in np.indices(COUNTS.shape))
    areas = np.full(len(mapped), 900.0)
    return estimate_accuracy(mapped, reference, mapped, sizes=PIXELS, areas=areas, classes=4)


def test_published_areas() -> None:
    """Olofsson et al. 2014 report 21,158 +- 6,158 ha of deforestation, of which 18,000 ha are on the map."""
    found = published()
    area = found.shares[0].times(HECTARES)
    assert HECTARES * PIXELS[0] / sum(PIXELS) == 18_000
    assert (round(area.value), round(area.half_width)) == (21_158, 6_158)
    assert [round(share.times(HECTARES).value) for share in found.shares] == [21_158, 11_686, 285_770, 581_386]


def test_published_accuracies() -> None:
    found = published()
    assert (round(found.overall.value, 2), round(found.overall.half_width, 2)) == (0.95, 0.02)
    assert round(found.users[0].value, 2) == 0.88 and round(found.producers[0].value, 2) == 0.75
    assert np.array_equal(found.counts, COUNTS)
    rows = np.array(PIXELS) / sum(PIXELS) / COUNTS.sum(1)
    assert np.allclose(found.proportions, COUNTS * rows[:, None])


def test_variances_of_the_paper() -> None:
    """Equations 6 and 7 of the paper, for strata that are the map's classes, give the same standard errors."""
    found = published()
    drawn, pixels = COUNTS.sum(1), np.array(PIXELS)
    shares = COUNTS / drawn[:, None]
    spread = pixels[:, None] ** 2 * shares * (1 - shares) / (drawn[:, None] - 1)
    totals = (pixels[:, None] * shares).sum(0)
    for kind in range(4):
        users = shares[kind, kind]
        producers = pixels[kind] * users / totals[kind]
        others = spread[:, kind].sum() - spread[kind, kind]
        variance = ((1 - producers) ** 2 * spread[kind, kind] + producers**2 * others) / totals[kind] ** 2
        assert found.users[kind].error == pytest.approx(np.sqrt(users * (1 - users) / (drawn[kind] - 1)))
        assert found.producers[kind].value == pytest.approx(producers)
        assert found.producers[kind].error == pytest.approx(np.sqrt(variance))


def test_published_sample_size() -> None:
    """The same paper plans 641 pixels for a standard error of 0.01."""
    assert choose_size(PIXELS, [0.7, 0.6, 0.9, 0.95], 0.01) == 641


def test_small_populations_need_fewer() -> None:
    """A scene of 1,000 pixels never needs more than these."""
    assert choose_size([100, 900], [0.5, 0.5], 1e-6) == 1000


@pytest.mark.parametrize(
    ("total", "sizes", "minimum", "expected"),
    [
        (641, PIXELS, 75, [75, 75, 162, 329]),
        (100, [500, 500], 10, [50, 50]),
        (100, [7, 900], 50, [7, 93]),
        (30, [10, 10, 10_000], 10, [10, 10, 10]),
        (100, [0, 900], 50, [0, 100]),
        (100, [3, 5], 50, [3, 5]),
    ],
)
def test_allocation(total: int, sizes: list[int], minimum: int, expected: list[int]) -> None:
    assert allocate(total, sizes, minimum) == expected


def test_a_complete_sample_has_no_error() -> None:
    """If every pixel is sampled, the estimates are the truth, also for pixels of unequal area."""
    rng = np.random.default_rng(0)
    mapped, reference, strata = rng.integers(0, 2, (3, 400))
    areas = rng.uniform(1, 2, 400)
    sizes = np.bincount(strata).tolist()
    found = estimate_accuracy(mapped, reference, strata, sizes=sizes, areas=areas, classes=2)
    assert found.overall.value == pytest.approx(areas[mapped == reference].sum() / areas.sum())
    assert found.users[1].value == pytest.approx(
        areas[(mapped == 1) & (reference == 1)].sum() / areas[mapped == 1].sum()
    )
    assert found.shares[1].value == pytest.approx(areas[reference == 1].sum() / areas.sum())
    assert found.overall.error == found.users[1].error == found.shares[1].error == 0


def test_undefined() -> None:
    """Without a pixel that is mapped as change, its user's accuracy is not defined."""
    zero = np.zeros(10, np.int64)
    found = estimate_accuracy(zero, zero, zero, sizes=[100], areas=np.ones(10), classes=2)
    assert np.isnan(found.users[1].value) and np.isnan(found.producers[1].error)
    assert found.shares[1].value == 0 and found.overall.value == 1


def test_too_few_pixels() -> None:
    with pytest.raises(ValueError, match="stratum 1 has 1 sampled pixels of 9"):
        stratified_ratio(np.ones(3), np.ones(3), np.array([0, 0, 1]), [9, 9])


# Pixels by stratum (no change, change, buffer), and how many of them have really changed.
POPULATION = [900_000, 40_000, 60_000]
CHANGED = [27_000, 32_000, 12_000]


@pytest.mark.parametrize("sampled", [[300, 100, 100], [600, 75, 75]])
def test_intervals_cover_the_truth(sampled: list[int]) -> None:
    """In 93 to 97 of 100 samples, the 95% interval of the changed share holds the true one; the mean is unbiased."""
    rng = np.random.default_rng(1)
    strata = np.repeat(np.arange(3), sampled)
    mapped = (strata == 1).astype(np.int64)
    truths = {
        "share": sum(CHANGED) / sum(POPULATION),
        "users": CHANGED[1] / POPULATION[1],
        "producers": CHANGED[1] / sum(CHANGED),
    }
    values: dict[str, list[float]] = {name: [] for name in truths}
    covered = dict.fromkeys(truths, 0)
    repetitions = 400
    hits = rng.hypergeometric(CHANGED, np.subtract(POPULATION, CHANGED), sampled, (repetitions, 3))
    for row in hits:
        reference = np.concatenate([np.arange(n) < hit for n, hit in zip(sampled, row, strict=True)]).astype(np.int64)
        changed = (reference == 1).astype(np.float64)
        right = changed * mapped
        for name, (above, below) in {
            "share": (changed, np.ones(len(strata))),
            "users": (right, mapped.astype(np.float64)),
            "producers": (right, changed),
        }.items():
            found = stratified_ratio(above, below, strata, POPULATION)
            values[name].append(found.value)
            covered[name] += abs(found.value - truths[name]) <= found.half_width
    assert np.mean(values["share"]) == pytest.approx(truths["share"], rel=0.02)
    assert 0.93 <= covered["share"] / repetitions <= 0.97, covered
    assert 0.92 <= covered["users"] / repetitions <= 0.98, covered
    assert 0.92 <= covered["producers"] / repetitions <= 0.98, covered
