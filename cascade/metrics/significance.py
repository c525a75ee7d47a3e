"""What resamples say about a value or a difference: intervals and p-values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def percentile_intervals(resampled: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Percentile interval of each column of resampled values [R, M]: [M, 2], low and high; NaN for a column of NaN.

    Args:
        resampled: float64 [R, M].
        level: share of the resamples inside, in (0, 1).
    """
    return np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0).T


def p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided bootstrap p of resampled differences [R]: twice the smaller share on either side of 0.

    The sample itself counts as one resample, so that p is never 0 (Davison & Hinkley 1997, section 4.2).
    """
    tails = (differences <= 0).sum(), (differences >= 0).sum()
    return float(min(1.0, 2 * (min(tails) + 1) / (differences.size + 1)))


def adjusted_p_values(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided p of each column among all of them, [K]: how often the largest deviation of any is as large.

    Deviations are in standard errors, resample by resample, so that correlated metrics do not count twice: the
    single-step maximum of Westfall & Young (1993). The chance that any of K differences that are not there gets a p
    below 0.05 is then about 0.05.

    Args:
        differences: float64 [1 + R, K], those of the sample first.
    """
    observed, drawn = differences[0], differences[1:]
    error = drawn.std(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation, largest = np.nan_to_num([abs(observed) / error]), np.nan_to_num(abs(drawn - observed) / error)
    exceeded = (largest.max(axis=1, initial=0.0)[:, None] >= deviation).sum(axis=0)
    p: NDArray[np.float64] = (1 + exceeded) / (1 + len(drawn))
    return p
