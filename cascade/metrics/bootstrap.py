"""The metrics of many resamples of the images, from per-image histograms; no pixel is read again.

A resample draws images with replacement, so its pooled histogram is a sum of the images' histograms, each as often as
its image was drawn: one row of a matrix of weights times the matrix of counts.

Only scores that some anomalous pixel has are needed as thresholds. Between two of them no positive is gained, whatever
is drawn, so that AP gains nothing there, F1 only falls, and the curves of AUROC and AUPRO are level: the normal pixels
in between are one number. This merges nothing that could be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEFT_OUT = 100  # groups of a stratum; more would tell no more of the skewness and cost as much as resamples
_THRESHOLDS_AT_ONCE = 256  # matrices of 1,000 resamples stay in the processor's cache


@dataclass(frozen=True, eq=False)
class OccupiedBins:
    """The bins of one image that hold pixels, ascending.

    Attributes:
        bins: int32 [K], places on a scale of scores that all images share.
        negatives: int64 [K], normal pixels.
        positives: int64 [K], anomalous pixels.
        regions: float64 [K], anomalous pixels weighted by 1 / (pixels of their region).
    """

    bins: NDArray[np.int32]
    negatives: NDArray[np.int64]
    positives: NDArray[np.int64]
    regions: NDArray[np.float64]

    @classmethod
    def of(cls, negatives: NDArray[Any], positives: NDArray[Any], regions: NDArray[np.float64]) -> OccupiedBins:
        """The occupied bins of a histogram: counts [B] of any integer type, and float64 [B]."""
        bins = np.flatnonzero(negatives + positives).astype(np.int32)
        return cls(bins, negatives[bins].astype(np.int64), positives[bins].astype(np.int64), regions[bins])

    def same(self, other: OccupiedBins) -> bool:
        """Whether both hold the same pixels."""
        return all(np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))


def bins_of_scores(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> list[OccupiedBins]:
    """One image-level score and label for each image, as images of a single pixel without regions."""
    _, ranks = np.unique(scores, return_inverse=True)
    return [
        OccupiedBins(
            np.array([rank], np.int32), np.array([not label], np.int64), np.array([label], np.int64), np.zeros(1)
        )
        for rank, label in zip(ranks, labels, strict=True)
    ]


def draw_weights(strata: NDArray[np.int64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each image is drawn: the sample itself in row 0, then ``resamples`` draws with replacement.

    Each stratum keeps its number of images. With good and defective images as strata no resample is without one of
    them, so that every metric which the sample has, every resample has; and their numbers were chosen by whoever made
    the test set, so they are no part of what is uncertain.

    Args:
        strata: int64 [N], the stratum of each image.
        resamples: number of draws.
        rng: source of randomness; equal generators draw the same.

    Returns:
        float64 [1 + resamples, N], whole numbers.
    """
    weights = np.ones((1 + resamples, strata.size))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        weights[1:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), resamples)
    return weights


def left_out_weights(strata: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sample less one image, for each image: a jackknife within strata.

    Of a stratum of more than 100 images several are left out together; the only image of a stratum stays.

    Args:
        strata: int64 [N], the stratum of each image.

    Returns:
        float64 [J, N], 0 for what is left out and 1 for the rest.
    """
    rows = []
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        groups = min(members.size, _LEFT_OUT)
        kept = np.ones((groups if groups > 1 else 0, strata.size))
        for group, row in enumerate(kept):
            row[members[group::groups]] = 0
        rows.append(kept)
    return np.concatenate(rows)


def influences(
    values: NDArray[np.float64], left_out: NDArray[np.float64], strata: NDArray[np.int64]
) -> NDArray[np.float64]:
    """How much the left-out images move statistics, so that the sum of squares is their variance: float64 [J, M].

    Args:
        values: float64 [J, M], the statistics of the sample without them.
        left_out: from :func:`left_out_weights`.
        strata: int64 [N], the stratum of each image.
    """
    own = strata[left_out.argmin(axis=1)]
    found = np.empty_like(values)
    for stratum in np.unique(own):
        rows, size = own == stratum, np.sum(strata == stratum)
        gone = (left_out[rows] == 0).sum(axis=1)[:, None]
        found[rows] = (1 - gone / size) * (np.average(values[rows], axis=0, weights=gone[:, 0]) - values[rows])
    return found


def resampled_metrics(
    images: Sequence[OccupiedBins], weights: NDArray[np.float64], limit: float = 0.3
) -> NDArray[np.float64]:
    """AUROC, F1-max, AP and AUPRO of weighted images, as ``summary`` gives them for the weighted sum of histograms.

    Args:
        images: N images on one scale of bins.
        weights: float64 [R, N], whole numbers: how often each image counts.
        limit: of AUPRO's false-positive rate, in (0, 1].

    Returns:
        float64 [R, 4] in [0, 1], in the order of ``PixelMetrics``; NaN where ``summary`` has NaN. Counts are exact
        up to 2^53; the results differ from ``summary`` in their last bits only. Memory grows as 32 N T + 16 N^2 bytes
        with T scores of positives: 0.1 GB for 200 images, 2 GB for 5,000.
    """
    counts = _Counts.of(images)
    found, regions, normal = (
        weights @ each for each in (counts.positives.sum(axis=1), counts.regions.sum(axis=1), counts.normal)
    )
    sums = _sweep(counts, weights, found, limit * normal)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.stack(
            [
                1 - sums.beaten / (found * normal),
                sums.best,
                sums.precision / found,
                sums.area / (limit * normal * regions),
            ],
            axis=1,
        )
    result[found == 0] = np.nan
    return result


@dataclass(frozen=True, eq=False)
class _Counts:
    """Counts [N, T] over the thresholds that any image's positives have, from the highest to the lowest.

    ``negatives`` holds normal pixels from each threshold up to the one before, ``ties`` those with exactly its score.
    """

    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]
    ties: NDArray[np.float64]
    regions: NDArray[np.float64]
    normal: NDArray[np.float64]  # [N], all negatives, those below the lowest threshold too

    @classmethod
    def of(cls, images: Sequence[OccupiedBins]) -> _Counts:
        rows = np.repeat(np.arange(len(images)), [each.bins.size for each in images])
        bins, negatives, positives, regions = (
            np.concatenate([getattr(each, name) for each in images])
            for name in ("bins", "negatives", "positives", "regions")
        )
        is_threshold = np.zeros(bins.max(initial=0) + 1, dtype=bool)
        is_threshold[bins[positives > 0]] = True
        size = int(is_threshold.sum())
        # of each bin: the first threshold, from the highest down, that is not above it; none for the lowest bins
        column = size - np.cumsum(is_threshold)

        def matrix(values: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
            place = rows[chosen] * size + column[bins[chosen]]
            flat = np.bincount(place, values[chosen], len(images) * size).astype(np.float64)
            return flat.reshape(len(images), size)

        anomalous = positives > 0
        return cls(
            positives=matrix(positives, anomalous),
            negatives=matrix(negatives, column[bins] < size),
            ties=matrix(negatives, is_threshold[bins]),
            regions=matrix(regions, anomalous),
            normal=np.array([each.negatives.sum() for each in images], np.float64),
        )


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a sweep over the thresholds adds up; float64 [R] each.

    Attributes:
        best: largest F1.
        precision: positives gained at a threshold times precision there.
        beaten: pairs of an anomalous and a normal pixel in the wrong order, ties as halves.
        area: regions found, integrated over false alarms up to the limit.
    """

    best: NDArray[np.float64]
    precision: NDArray[np.float64]
    beaten: NDArray[np.float64]
    area: NDArray[np.float64]


def _sweep(
    counts: _Counts, weights: NDArray[np.float64], found: NDArray[np.float64], limit: NDArray[np.float64]
) -> _Sums:
    """Lower the threshold from the highest score to the lowest, some thresholds at a time.

    Pairs of pixels belong to pairs of images, so one matrix [N, N] gives ``beaten`` of every resample. The same is true
    of ``area`` as long as no resample has reached its limit, and no area is left when all have.
    """
    defective = np.flatnonzero(counts.positives.any(axis=1))
    positives, regions, drawn = counts.positives[defective], counts.regions[defective], weights[:, defective]
    best, precision, area = (np.zeros(len(weights)) for _ in range(3))
    beaten, above = np.zeros((2, len(defective), len(counts.normal)))
    reached = np.zeros(len(defective))
    hits, alarms = np.zeros((len(defective), 1)), np.zeros((len(counts.normal), 1))
    tp_before, fp_before = np.zeros((len(weights), 1)), np.zeros(len(weights))
    for start in range(0, positives.shape[1], _THRESHOLDS_AT_ONCE):
        part = slice(start, start + _THRESHOLDS_AT_ONCE)
        own_positives, own_regions = positives[:, part], regions[:, part]
        own_hits = np.cumsum(own_positives, axis=1) + hits
        own_alarms = np.cumsum(counts.negatives[:, part], axis=1) + alarms
        half_ties = counts.ties[:, part] / 2
        tp, fp = drawn @ own_hits, weights @ own_alarms
        alarmed = np.maximum(tp + fp, 1)  # never 0 where a positive is gained
        precision += np.einsum("rt,rt->r", np.diff(tp, axis=1, prepend=tp_before), tp / alarmed)
        np.maximum(best, np.max(2 * tp / (alarmed + found[:, None]), axis=1), out=best)
        beaten += own_positives @ (own_alarms - half_ties).T
        if (fp[:, -1] <= limit).all():
            above += own_regions @ (own_alarms - half_ties).T
            reached += own_regions.sum(axis=1)
        elif (fp_before < limit).any():
            area += _area(fp - weights @ (2 * half_ties), fp, drawn @ own_regions, limit)
        hits, alarms, tp_before, fp_before = own_hits[:, -1:], own_alarms[:, -1:], tp[:, -1:], fp[:, -1]
    return _Sums(
        best=best,
        precision=precision,
        beaten=_of_pairs(drawn, beaten, weights),
        area=area + limit * (drawn @ reached) - _of_pairs(drawn, above, weights),
    )


def _area(
    start: NDArray[np.float64], end: NDArray[np.float64], gained: NDArray[np.float64], limit: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area below recalls ``gained`` while false alarms grow from ``start`` to ``end``, all [R, T].

    A gain adds the mean of max(limit - u, 0) over u in [start, end]: the trapezoid rule with linear interpolation at
    the limit.
    """
    left, left_after = np.maximum(limit[:, None] - start, 0), np.maximum(limit[:, None] - end, 0)
    height = (left + left_after) / 2
    cut = np.nonzero((left > 0) & (left_after == 0))
    height[cut] *= left[cut] / (end - start)[cut]
    area: NDArray[np.float64] = np.einsum("rt,rt->r", gained, height)
    return area


def _of_pairs(
    rows: NDArray[np.float64], pairs: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The quadratic form of each resample's weights, float64 [R]."""
    total: NDArray[np.float64] = np.einsum("rn,rn->r", rows @ pairs, columns)
    return total
