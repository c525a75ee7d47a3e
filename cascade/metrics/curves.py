"""The metrics, read off a histogram of scores.

Sweeping the threshold from the highest score to the lowest, TP and FP are the cumulated positives and negatives; one
point of each curve per distinct score, ties included together. Counts stay integers until the last division, so a
result is rounded once per point and not once per pixel.

A metric whose definition divides by zero is NaN: all of them without positives, AUROC and AUPRO also without negatives,
AUPRO also without regions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.metrics.histogram import ScoreHistogram, distinct_histogram


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel-level metrics as fractions in [0, 1]; NaN where undefined."""

    auroc: float
    f1_max: float
    average_precision: float
    aupro: float


@dataclass(frozen=True)
class ImageMetrics:
    """Image-level metrics as fractions in [0, 1]; NaN where undefined."""

    auroc: float
    f1_max: float
    average_precision: float


def auroc(histogram: ScoreHistogram) -> float:
    """Area under the ROC curve: P(anomalous score > normal score) + P(equal) / 2.

    The Mann-Whitney form of the trapezoidal area (Hanley & McNeil, Radiology 1982), equal to
    ``sklearn.metrics.roc_auc_score``. NaN without positives or without negatives.
    """
    tp, fp = _sweep(histogram)
    if not tp.size or tp[-1] == 0 or fp[-1] == 0:
        return math.nan
    false_alarms = np.diff(fp, prepend=0)
    hits_counted_twice = tp + np.concatenate([[0], tp[:-1]])
    # Python integers: twice the number of pairs leaves int64 at some 2e9 positives against as many negatives.
    won_twice = int(np.dot(false_alarms.astype(object), hits_counted_twice.astype(object)))
    return won_twice / (2 * int(tp[-1]) * int(fp[-1]))


def average_precision(histogram: ScoreHistogram) -> float:
    """Average precision: sum over thresholds of (R_i - R_(i-1)) P_i.

    The step-wise sum of ``sklearn.metrics.average_precision_score``, not the trapezoidal area under the
    precision-recall curve, which is larger. NaN without positives.
    """
    tp, fp = _sweep(histogram)
    if not tp.size or tp[-1] == 0:
        return math.nan
    gained = np.diff(tp, prepend=0)
    return float(np.sum(gained * (tp / (tp + fp))) / tp[-1])


def f1_max(histogram: ScoreHistogram) -> float:
    """Largest F1 = 2 TP / (2 TP + FP + FN) over all thresholds. NaN without positives."""
    tp, fp = _sweep(histogram)
    if not tp.size or tp[-1] == 0:
        return math.nan
    return float(np.max(2 * tp / (tp + fp + tp[-1])))


def aupro(histogram: ScoreHistogram, limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate of ``limit``, divided by ``limit``.

    The curve is the mean over all regions of their recall against FP / (all normal pixels of all images): the
    per-region overlap of Bergmann et al. (IJCV 2021). It starts at (0, 0), has a point per distinct score, and
    is integrated by the trapezoid rule with linear interpolation at ``limit``.

    Published numbers often come from another recipe: 200 equally spaced thresholds, and the observed span of
    false-positive rates stretched to [0, 1]. On saturated maps it is far off this area.

    Args:
        histogram: with regions.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        A fraction in [0, 1]; NaN without regions or without negatives.

    Raises:
        ValueError: ``limit`` is outside (0, 1].
    """
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"the limit of the false-positive rate has to be in (0, 1], not {limit}")
    occupied = _occupied(histogram)
    recall = np.cumsum(histogram.regions[occupied][::-1])
    fp = np.cumsum(histogram.negatives[occupied][::-1])
    if histogram.n_regions == 0 or fp[-1] == 0:
        return math.nan
    # The last sum is n_regions up to rounding; dividing by it makes the curve end at 1 exactly.
    recall = np.concatenate([[0.0], recall / recall[-1]])
    fpr = np.concatenate([[0.0], fp / fp[-1]])
    inside = int(np.searchsorted(fpr, limit, side="right"))
    if inside < fpr.size:
        run = (limit - fpr[inside - 1]) / (fpr[inside] - fpr[inside - 1])
        at_limit = recall[inside - 1] + run * (recall[inside] - recall[inside - 1])
        fpr = np.append(fpr[:inside], limit)
        recall = np.append(recall[:inside], at_limit)
    return float(np.trapezoid(recall, fpr) / limit)


def summary(histogram: ScoreHistogram) -> PixelMetrics:
    """All pixel metrics of a histogram, AUPRO with its usual limit of 0.3."""
    return PixelMetrics(
        auroc=auroc(histogram),
        f1_max=f1_max(histogram),
        average_precision=average_precision(histogram),
        aupro=aupro(histogram),
    )


def image_metrics(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> ImageMetrics:
    """Image-level metrics, through the same definitions as the pixel ones.

    Args:
        scores: float64 [N], one score per image; higher is more anomalous.
        labels: bool [N], True for an anomalous image.

    Raises:
        TypeError: ``labels`` is not bool.
        ValueError: shapes differ, or a score is NaN or infinite.
    """
    histogram = distinct_histogram(scores, labels)
    return ImageMetrics(
        auroc=auroc(histogram), f1_max=f1_max(histogram), average_precision=average_precision(histogram)
    )


def _occupied(histogram: ScoreHistogram) -> NDArray[np.bool_]:
    return (histogram.negatives + histogram.positives) > 0


def _sweep(histogram: ScoreHistogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """TP and FP, int64 [T], with the threshold at each occurring score, from the highest to the lowest."""
    occupied = _occupied(histogram)
    tp = np.cumsum(histogram.positives[occupied][::-1], dtype=np.int64)
    fp = np.cumsum(histogram.negatives[occupied][::-1], dtype=np.int64)
    return tp, fp
