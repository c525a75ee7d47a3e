from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cascade.metrics import adjusted_p_values, p_value, percentile_intervals


def test_intervals_hold_their_share_of_the_resamples() -> None:
    drawn = np.random.default_rng(0).normal([0.0, 3.0], [1.0, 2.0], (100_000, 2))
    found = percentile_intervals(np.column_stack([drawn, np.full(len(drawn), np.nan)]), 0.9)
    expected = [stats.norm.interval(0.9, mean, error) for mean, error in ((0, 1), (3, 2))]
    assert found[:2] == pytest.approx(np.array(expected), abs=0.05)
    assert np.isnan(found[2]).all()


def test_p_values_agree_with_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    for z in (0.0, 1.0, 2.0, -2.5):
        assert p_value(rng.normal(z, 1, 100_000)) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)
    assert p_value(np.zeros(99)) == 1
    assert p_value(np.ones(99)) == 0.02


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
