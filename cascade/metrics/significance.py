"""What resamples say about a value or a difference: intervals, p-values and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are used: a cached run uses none
from numpy.typing import NDArray

_ROUNDING = 1e-9
"""Resamples that differ by less are equal; sums in another order differ in their last bits."""

_LARGEST_BIAS = 0.5
"""In standard errors: with less than 31 % of the resamples on one side, twice it is not to be corrected away."""

Verdict = Literal["improved", "fell", "equal", "undecided"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """M statistics of a sample of images, and how they vary with the images.

    Attributes:
        value: float64 [M], of the sample.
        drawn: float64 [R, M], of its resamples.
        influence: float64 [J, M], how much each image moves them; see ``cascade.metrics.influences``.
    """

    value: NDArray[np.float64]
    drawn: NDArray[np.float64]
    influence: NDArray[np.float64]

    def where(self, chosen: NDArray[np.bool_]) -> Estimate:
        """The same, undefined where not ``chosen`` [M]."""
        kept = [np.where(chosen, own, np.nan) for own in (self.value, self.drawn, self.influence)]
        return Estimate(*kept)

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference from another estimate on the same draws."""
        return Estimate(self.value - other.value, self.drawn - other.drawn, self.influence - other.influence)


def bca_intervals(estimate: Estimate, level: float) -> NDArray[np.float64]:
    """Bias-corrected accelerated bootstrap interval of each statistic (Efron 1987): [M, 2], low and high.

    The bias is read off the share of resamples below the sample's value, the acceleration off the jackknife within
    strata (Efron & Tibshirani 1993, section 14.3). A statistic that is not :func:`correctable` has its percentile
    interval, and NaN if it is undefined in the sample or in a resample.

    Args:
        estimate: M statistics.
        level: of the interval, in (0, 1).
    """
    z = _limits(level)
    bias, acceleration = _bias(estimate), _acceleration(estimate)
    able = correctable(estimate, level)
    intervals = np.empty((estimate.value.size, 2))
    for column, (z0, a) in enumerate(zip(bias, acceleration, strict=True)):
        corrected = z0 + (z0 + z) / (1 - a * (z0 + z)) if able[column] else z
        intervals[column] = np.quantile(estimate.drawn[:, column], scipy.special.ndtr(corrected))
    intervals[np.isnan(estimate.value)] = np.nan
    return intervals


def correctable(estimate: Estimate, level: float) -> NDArray[np.bool_]:
    """Whether the bias of each statistic is one that resamples can correct, [M].

    Not if it is more than half a standard error, when the sample itself is as far off and more: in simulations the
    best F1 of image scores, a maximum over few thresholds, whose intervals over means of small categories then hold the
    truth in less than a quarter of the cases.
    """
    bias, acceleration = _bias(estimate), _acceleration(estimate)
    able = (abs(bias) <= _LARGEST_BIAS) & np.isfinite(estimate.drawn).all(axis=0)
    for z in _limits(level):
        able[able] = acceleration[able] * (bias[able] + z) < 1
    return able


def p_values(estimate: Estimate) -> NDArray[np.float64]:
    """Two-sided p of each statistic against 0, float64 [M]: 1 - level of the BCa interval that just ends there.

    So an interval has 0 in it if and only if p is above 1 - level. The sample itself counts as one resample, so that p
    is never 0 (Davison & Hinkley 1997, section 4.2). NaN where a statistic is not :func:`correctable`.
    """
    size = len(estimate.drawn) + 1
    below, above = (
        np.minimum(1 + (side <= _ROUNDING).sum(axis=0), size - 1) / size for side in (estimate.drawn, -estimate.drawn)
    )
    bias, acceleration = _bias(estimate), _acceleration(estimate)
    with np.errstate(invalid="ignore"):
        tails = [
            scipy.special.ndtr(_level_at(below, bias, acceleration)),
            1 - scipy.special.ndtr(_level_at(1 - above, bias, acceleration)),
        ]
    p = np.minimum(1, 2 * np.minimum(*tails))
    able = (abs(bias) <= _LARGEST_BIAS) & np.isfinite(estimate.drawn).all(axis=0)
    return np.where(able, p, np.nan)


def verdict(low: float, high: float, margin: float, *, sure: bool = True) -> Verdict:
    """What the interval of a difference allows to say.

    ``fell`` and ``improved`` if it lies on one side of 0; ``equal`` if it has 0 in it and reaches nowhere beyond the
    margin, which is a test of equivalence (two one-sided tests, Schuirmann 1987); else ``undecided``: no difference and
    one beyond the margin are both in it. The interval decides; p-values are read off the same resamples.

    Args:
        low: lower end of the interval; NaN if there is none.
        high: upper end.
        margin: the largest difference that does not matter.
        sure: whether the interval is one to rely on. If not, only a fall is called by its name: an alarm may be false,
            a claim may not.
    """
    if high < -_ROUNDING:
        return "fell"
    if sure and low > _ROUNDING:
        return "improved"
    if sure and -margin <= low and high <= margin:
        return "equal"
    return "undecided"


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


def _limits(level: float) -> NDArray[np.float64]:
    """The normal quantiles of a two-sided interval, [2]."""
    limits: NDArray[np.float64] = scipy.special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    return limits


def _bias(estimate: Estimate) -> NDArray[np.float64]:
    """z0, [M]: infinite where all resamples lie on one side of the value."""
    below = (estimate.drawn < estimate.value - _ROUNDING).mean(axis=0)
    not_above = (estimate.drawn <= estimate.value + _ROUNDING).mean(axis=0)
    bias: NDArray[np.float64] = scipy.special.ndtri((below + not_above) / 2)
    return bias


def _acceleration(estimate: Estimate) -> NDArray[np.float64]:
    """a, [M]; 0 where no image moves the statistic."""
    cubes, squares = (estimate.influence**3).sum(axis=0), (estimate.influence**2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squares > 0, cubes / (6 * squares**1.5), 0.0)


def _level_at(
    share: NDArray[np.float64], bias: NDArray[np.float64], acceleration: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The normal quantile of the BCa end point that has this share of the resamples below it."""
    shift = scipy.special.ndtri(share) - bias
    slope = 1 + acceleration * shift
    with np.errstate(invalid="ignore", divide="ignore"):
        level: NDArray[np.float64] = np.where(slope > 0, shift / slope, np.copysign(np.inf, shift)) - bias
    return level
