"""Histograms over distinct scores: all that AUROC, AP, F1-max and AUPRO need to know about the pixels.

These metrics depend on the scores only through how many normal and anomalous pixels have each value. A float16 has
65,536 bit patterns, so three arrays of that length hold the pooled pixels of any number of images without loss. They
add, in any order and across processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cascade.metrics.regions import region_weights

N_BINS = 1 << 16
"""Bins of a float16 histogram."""

_Count = TypeVar("_Count", np.int64, np.float64)
_NEGATIVE_ZERO = 0x8000
# Among non-negative floats the bit pattern grows with the value, among negative ones it falls.
_PATTERN_OF_BIN = np.concatenate([np.arange(0xFFFF, 0x7FFF, -1), np.arange(0x8000)]).astype(np.uint16)
_NOT_FINITE = (_PATTERN_OF_BIN & 0x7C00) == 0x7C00


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Pixel counts per distinct score, in ascending order of the score.

    Attributes:
        negatives: int64 [B], normal pixels with the score of each bin.
        positives: int64 [B], anomalous pixels with that score.
        regions: float64 [B], anomalous pixels weighted by 1 / (pixels of their region), see ``region_weights``. It
            sums to ``n_regions`` up to rounding.
        n_regions: number of regions. 0 where regions mean nothing (image-level scores).
    """

    negatives: NDArray[np.int64]
    positives: NDArray[np.int64]
    regions: NDArray[np.float64]
    n_regions: int

    @classmethod
    def empty(cls) -> ScoreHistogram:
        """The float16 histogram of no pixels: the start of a sum."""
        return cls(np.zeros(N_BINS, np.int64), np.zeros(N_BINS, np.int64), np.zeros(N_BINS), 0)

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """The histogram of both sets of pixels together.

        The counts do not depend on the order of a sum; ``regions`` does in its last bits.

        Raises:
            ValueError: a histogram is not over the float16 bins. Those of ``distinct_histogram`` have bins of their
                own, which mean different scores in different histograms.
        """
        if self.negatives.size != N_BINS or other.negatives.size != N_BINS:
            raise ValueError(
                f"only float16 histograms ({N_BINS} bins) add, these have {self.negatives.size} and "
                f"{other.negatives.size} bins; pool the scores before calling distinct_histogram"
            )
        return ScoreHistogram(
            self.negatives + other.negatives,
            self.positives + other.positives,
            self.regions + other.regions,
            self.n_regions + other.n_regions,
        )


def bin_values() -> NDArray[np.float16]:
    """The score of each bin, float16 [65536], ascending.

    NaN and infinities sit at both ends and -0.0 has a place before 0.0; these bins are always empty.
    """
    return _PATTERN_OF_BIN.view(np.float16)


def score_histogram(
    scores: NDArray[np.float16],
    mask: NDArray[np.bool_],
    region_weight: NDArray[np.float64] | None = None,
) -> ScoreHistogram:
    """Count the pixels of one image over the 65,536 float16 bins.

    Args:
        scores: float16 [H, W], finite, any sign; higher is more anomalous. -0.0 counts as 0.0.
        mask: bool [H, W], True where the pixel is anomalous.
        region_weight: float64 [H, W] of ``region_weights(mask)``; computed here when None. Pass it when several maps
            are scored against one mask.

    Returns:
        A histogram that adds to those of other images.

    Raises:
        TypeError: ``scores`` is not float16 or ``mask`` is not bool.
        ValueError: shapes differ, a score is NaN or infinite, or the weights of the mask do not sum to an integer.
    """
    if scores.dtype != np.float16:
        raise TypeError(f"scores have to be float16, not {scores.dtype}; cast them, or use distinct_histogram")
    _check_pair(scores, mask)
    if region_weight is None:
        region_weight, _ = region_weights(mask)
    patterns = np.ascontiguousarray(scores).view(np.uint16)
    anomalous = patterns[mask]
    weight = _weights_inside(region_weight, mask)
    return histogram_of_counts(
        everything=np.bincount(patterns.ravel(), minlength=N_BINS).astype(np.int64, copy=False),
        positives=np.bincount(anomalous, minlength=N_BINS).astype(np.int64, copy=False),
        regions=np.bincount(anomalous, weights=weight, minlength=N_BINS).astype(np.float64, copy=False),
        weight=float(weight.sum()),
    )


def histogram_of_counts(
    everything: NDArray[np.int64], positives: NDArray[np.int64], regions: NDArray[np.float64], weight: float
) -> ScoreHistogram:
    """A histogram from counts [65536] by bit pattern, of all pixels, of the anomalous ones, and of these by ``weight``.

    Raises:
        ValueError: a score is NaN or infinite, or ``weight``, the sum of all weights, is no integer.
    """
    everything, positives = _ordered(everything), _ordered(positives)
    if everything[_NOT_FINITE].any():
        raise ValueError(f"{int(everything[_NOT_FINITE].sum())} scores are NaN or infinite; they have no rank")
    return ScoreHistogram(everything - positives, positives, _ordered(regions), _whole(weight))


def distinct_histogram(
    scores: NDArray[np.floating],
    labels: NDArray[np.bool_],
    region_weight: NDArray[np.float64] | None = None,
) -> ScoreHistogram:
    """Count scores of any float type over bins that are their own distinct values.

    Args:
        scores: float [...], finite; higher is more anomalous.
        labels: bool, of the same shape, True where anomalous.
        region_weight: float64 of the same shape, from ``region_weights`` of each image. None leaves the histogram
            without regions, and its AUPRO undefined.

    Returns:
        A histogram with one bin per distinct score, ascending. It does not add to another one.

    Raises:
        TypeError: ``labels`` is not bool.
        ValueError: shapes differ, a score is NaN or infinite, or the weights do not sum to an integer.
    """
    _check_pair(scores, labels)
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite; they have no rank")
    weight = np.zeros(int(labels.sum())) if region_weight is None else _weights_inside(region_weight, labels)
    values, bins = np.unique(scores, return_inverse=True)
    bins = bins.reshape(scores.shape)
    anomalous = bins[labels]
    return ScoreHistogram(
        negatives=np.bincount(bins[~labels], minlength=values.size).astype(np.int64),
        positives=np.bincount(anomalous, minlength=values.size).astype(np.int64),
        regions=np.bincount(anomalous, weights=weight, minlength=values.size).astype(np.float64),
        n_regions=_whole(float(weight.sum())),
    )


def _ordered(by_pattern: NDArray[_Count]) -> NDArray[_Count]:
    """Counts per bit pattern, rearranged to ascending score with both zeros in one bin."""
    by_pattern[0] += by_pattern[_NEGATIVE_ZERO]
    by_pattern[_NEGATIVE_ZERO] = 0
    return np.concatenate([by_pattern[: _NEGATIVE_ZERO - 1 : -1], by_pattern[:_NEGATIVE_ZERO]])


def _check_pair(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> None:
    if labels.dtype != np.bool_:
        raise TypeError(f"a mask has to be bool, not {labels.dtype}; compare it with the value that marks anomalies")
    if scores.shape != labels.shape:
        raise ValueError(f"scores of shape {scores.shape} do not match a mask of shape {labels.shape}")


def _weights_inside(region_weight: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    if region_weight.shape != mask.shape:
        raise ValueError(f"region weights of shape {region_weight.shape} do not match a mask of shape {mask.shape}")
    return region_weight[mask]


def _whole(total: float) -> int:
    """The number of regions that the weights of all their pixels sum to."""
    if abs(total - round(total)) > 1e-6:
        raise ValueError(f"region weights sum to {total}, not to a number of regions; take them from region_weights")
    return round(total)
