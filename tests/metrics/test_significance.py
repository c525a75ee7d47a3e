from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from cascade.metrics import (
    Estimate,
    adjusted_p_values,
    bca_intervals,
    bins_of_scores,
    correctable,
    draw_weights,
    influences,
    left_out_weights,
    p_values,
    resampled_metrics,
    verdict,
)


def normal(mean: float, draws: int = 100_000) -> Estimate:
    """A statistic without bias and skewness, of standard error 1."""
    drawn = np.random.default_rng(0).normal(mean, 1, (draws, 1))
    return Estimate(np.array([mean]), drawn, np.array([[1.0], [-1.0]]))


def of_images(scores: np.ndarray, strata: np.ndarray, resamples: int, seed: int) -> Estimate:
    """AUROC, F1-max and AP of image scores, strata 0 and 1 being the labels."""
    drawn = draw_weights(strata, resamples, np.random.default_rng(seed))
    left = left_out_weights(strata)
    rows = resampled_metrics(bins_of_scores(scores, strata == 1), np.concatenate([drawn, left]))[:, :3]
    return Estimate(rows[0], rows[1 : len(drawn)], influences(rows[len(drawn) :], left, strata))


# Intervals


def test_an_interval_without_bias_and_skewness_is_the_percentile_interval() -> None:
    estimate = normal(3.0)
    ((low, high),) = bca_intervals(estimate, 0.9)
    assert (low, high) == pytest.approx(stats.norm.interval(0.9, 3, 1), abs=0.03)
    assert (low, high) == pytest.approx(np.quantile(estimate.drawn, [0.05, 0.95]), abs=0.02)


@pytest.mark.parametrize(("good", "defective"), [(12, 9), (40, 25)])
def test_intervals_agree_with_scipy_on_auroc(good: int, defective: int) -> None:
    """The same resamples, the bias and the jackknife of two samples: AUROC of image scores, some of them tied."""
    rng = np.random.default_rng(good)
    normal_scores, defect_scores = np.round(rng.normal(size=good), 1), np.round(rng.normal(1.2, 1, defective), 1)

    def auroc(normal: np.ndarray, defect: np.ndarray, axis: int = -1) -> np.ndarray:
        won = defect[..., :, None] - normal[..., None, :]
        return np.mean((won > 0) + 0.5 * (won == 0), axis=(-2, -1))

    expected = stats.bootstrap(
        (normal_scores, defect_scores), auroc, n_resamples=999, vectorized=True, method="BCa", rng=rng
    )
    strata = np.repeat([0, 1], [good, defective])
    left = left_out_weights(strata)
    pool = bins_of_scores(np.concatenate([normal_scores, defect_scores]), strata == 1)
    jackknife = resampled_metrics(pool, left)[:, :1]
    estimate = Estimate(
        resampled_metrics(pool, np.ones((1, strata.size)))[0, :1],
        expected.bootstrap_distribution[:, None],
        influences(jackknife, left, strata),
    )
    ((low, high),) = bca_intervals(estimate, 0.95)
    assert (low, high) == pytest.approx(
        (expected.confidence_interval.low, expected.confidence_interval.high), abs=1e-12
    )
    assert low != pytest.approx(np.quantile(estimate.drawn, 0.025), abs=1e-3)


def test_images_left_out_together_tell_the_same_skewness_as_one_by_one() -> None:
    """2,500 images in one stratum, the mean of a value of skewness 2: a is 2 / (6 sqrt N), 0.0067."""
    strata, found = np.zeros(2500, np.int64), []
    left = left_out_weights(strata)
    assert len(left) == 100
    assert (left.sum(axis=1) == 2475).all()
    assert ((left == 0).sum(axis=0) == 1).all()
    for seed in range(30):
        values = np.random.default_rng(seed).exponential(size=2500)
        influence = influences((left @ values / left.sum(axis=1))[:, None], left, strata)
        variance = (influence**2).sum()
        assert variance == pytest.approx(values.var() / 2500, rel=0.5)
        found.append((influence**3).sum() / (6 * variance**1.5))
    assert np.mean(found) == pytest.approx(2 / (6 * 50), abs=0.002)


def test_the_only_image_of_a_stratum_is_not_left_out() -> None:
    left = left_out_weights(np.array([0, 1, 1, 2]))
    assert left.tolist() == [[1, 0, 1, 1], [1, 1, 0, 1]]


def test_a_bias_that_resamples_can_not_correct_is_told_apart() -> None:
    drawn = np.random.default_rng(2).normal(size=(500, 5))
    drawn[:, 1] = 0.25
    drawn[3, 2] = np.nan
    estimate = Estimate(np.array([9.0, 0.25, 0.0, np.nan, -0.4]), drawn, np.zeros((2, 5)))
    assert correctable(estimate, 0.95).tolist() == [False, True, False, False, True]
    found = bca_intervals(estimate, 0.95)
    assert found[0] == pytest.approx(np.quantile(drawn[:, 0], [0.025, 0.975]))
    assert found[1].tolist() == [0.25, 0.25]
    assert np.isnan(found[[2, 3]]).all()
    assert found[4][0] < np.quantile(drawn[:, 4], 0.005)  # most draws lie above the value, so that it is too low
    assert np.isnan(p_values(estimate)).tolist() == [True, False, True, True, False]


def test_the_best_f1_of_a_mean_over_many_small_categories_can_not_be_corrected() -> None:
    """Each of 30 is the maximum over the thresholds of 10 images of each kind, and all err to the same side."""
    strata = np.repeat([0, 1], 10)
    rng = np.random.default_rng(0)
    many = [of_images(rng.normal(size=20) + strata, strata, 200, seed) for seed in range(30)]
    mean = Estimate(
        *(np.mean([getattr(each, name) for each in many], axis=0) for name in ("value", "drawn", "influence"))
    )
    assert correctable(mean, 0.95)[:2].tolist() == [True, False]


# P-values


def test_p_values_agree_with_the_normal_distribution() -> None:
    for z in (0.0, 1.0, 2.0, -2.5):
        assert p_values(normal(z))[0] == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)
    for value, expected in ((0.0, 1), (1.0, 0.02)):
        same = Estimate(np.array([value]), np.full((99, 1), value), np.zeros((1, 1)))
        assert p_values(same) == pytest.approx(expected)


def test_an_interval_has_zero_in_it_if_and_only_if_p_is_above_its_complement() -> None:
    """Differences of skewed, biased metrics of few images; p within 0.01 of the complement may fall on either side."""
    outcomes = set()
    for seed, level in product(range(40), (0.8, 0.95)):
        rng = np.random.default_rng(seed)
        strata = np.repeat([0, 1], [11, 13])
        first = rng.normal(size=24) + strata
        run, baseline = (of_images(each, strata, 999, seed) for each in (first - 0.6 * strata * rng.random(24), first))
        difference = run - baseline
        for (low, high), p in zip(bca_intervals(difference, level), p_values(difference), strict=True):
            if not np.isnan(low) and abs(p - (1 - level)) > 0.01:
                assert (low <= 0 <= high) == (p > 1 - level)
                outcomes.add(low <= 0 <= high)
    assert outcomes == {True, False}


def test_adjusted_p_values_keep_the_chance_of_any_false_alarm() -> None:
    """Independent columns without any difference: the smallest p is below 0.05 in about one of twenty tables."""
    rng = np.random.default_rng(1)
    smallest = []
    for _ in range(400):
        observed = rng.normal(size=15)
        smallest.append(adjusted_p_values(np.vstack([observed, observed + rng.normal(size=(400, 15))])).min())
    assert np.mean(np.array(smallest) < 0.05) == pytest.approx(0.05, abs=0.035)


def test_equal_columns_are_adjusted_for_one() -> None:
    drawn = np.random.default_rng(2).normal(2.0, 1, (2000, 1))
    alone = adjusted_p_values(np.vstack([[2.0], drawn]))
    copied = adjusted_p_values(np.repeat(np.vstack([[2.0], drawn]), 20, axis=1))
    assert copied == pytest.approx(np.repeat(alone, 20))
    assert alone[0] == pytest.approx(2 * stats.norm.sf(2), abs=0.02)
    assert adjusted_p_values(np.zeros((50, 3))) == pytest.approx(1)


# Verdicts


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (-0.154, 0.023, 0.01, "undecided"),  # AUPRO -5.6: no fall, and one beyond the margin, are both in it
        (-0.20, 0.03, 0.01, "undecided"),  # AUROC -8.4 within a wide interval
        (-0.004, 0.006, 0.01, "equal"),
        (-0.01, 0.01, 0.01, "equal"),
        (-0.0101, 0.004, 0.01, "undecided"),
        (-0.004, 0.0101, 0.01, "undecided"),
        (-0.0101, 0.004, 0.02, "equal"),
        (0.0, 0.0, 0.0, "equal"),
        (-0.004, 0.004, 0.0, "undecided"),
        (-0.03, -0.02, 0.01, "fell"),
        (-0.004, -0.001, 0.01, "fell"),  # a fall that does not matter is one: the gate asks for its size as well
        (0.001, 0.004, 0.01, "improved"),
        (0.02, 0.03, 0.01, "improved"),
        (np.nan, np.nan, 0.01, "undecided"),
    ],
)
def test_what_an_interval_allows_to_say(low: float, high: float, margin: float, expected: str) -> None:
    assert verdict(low, high, margin) == expected


def test_on_an_interval_that_is_not_sure_only_an_alarm_is_raised() -> None:
    assert verdict(-0.03, -0.02, 0.01, sure=False) == "fell"
    assert {verdict(low, high, 0.01, sure=False) for low, high in ((0.02, 0.03), (-0.001, 0.001), (-1, 1))} == {
        "undecided"
    }
