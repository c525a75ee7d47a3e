from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from cascade.metrics import (
    Estimate,
    OccupiedBins,
    ScoreHistogram,
    bca_intervals,
    bins_of_scores,
    draw_weights,
    image_metrics,
    influences,
    left_out_weights,
    resampled_metrics,
    score_histogram,
    summary,
)

SHAPE = (12, 14)


def generated(rng: np.random.Generator, images: int, values: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score maps of at most ``values`` distinct scores, and masks, some of them empty."""
    masks = [rng.random(SHAPE) < share for share in rng.choice([0.0, 0.02, 0.3], images)]
    scores = [np.round((rng.normal(size=SHAPE) + 1.5 * mask) * values / 6) / values for mask in masks]
    return [own.astype(np.float16) for own in scores], masks


def occupied(histogram: ScoreHistogram) -> OccupiedBins:
    return OccupiedBins.of(histogram.negatives, histogram.positives, histogram.regions)


def summed(histograms: list[ScoreHistogram], weights: np.ndarray) -> ScoreHistogram:
    """The histogram of each image as often as it was drawn, added up one by one."""
    total = ScoreHistogram.empty()
    for histogram, times in zip(histograms, weights.astype(int), strict=True):
        for _ in range(times):
            total = total + histogram
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([2, 10, 1000]))
def test_every_resample_has_the_metrics_of_its_pooled_histogram(seed: int, images: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    histograms = [score_histogram(*each) for each in zip(*generated(rng, images, values), strict=True)]
    weights = rng.integers(0, 4, (3, images)).astype(float)
    found = resampled_metrics([occupied(each) for each in histograms], weights)
    expected = [astuple(summary(summed(histograms, row))) for row in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_many_thresholds_and_many_false_alarms_change_nothing() -> None:
    """More thresholds than fit in one part, and resamples that reach the limit of AUPRO at different ones."""
    rng = np.random.default_rng(3)
    shape, histograms = (90, 100), []
    for offset in np.linspace(-0.5, 0.5, 9):
        mask = rng.random(shape) < 0.3
        scores = (1 / (1 + np.exp(-rng.normal(size=shape) - 0.7 * mask - offset))).astype(np.float16)
        histograms.append(score_histogram(scores, mask))
    weights = draw_weights(np.zeros(9, np.int64), 40, rng)
    assert np.unique(np.concatenate([np.flatnonzero(each.positives) for each in histograms])).size > 1500
    found = resampled_metrics([occupied(each) for each in histograms], weights)
    np.testing.assert_allclose(found, [astuple(summary(summed(histograms, row))) for row in weights], atol=1e-12)


def test_resampled_pixels_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    scores, masks = generated(rng, 8, 50)
    weights = draw_weights(np.array([int(mask.any()) for mask in masks]), 30, rng)
    found = resampled_metrics([occupied(score_histogram(*each)) for each in zip(scores, masks, strict=True)], weights)
    for row, (auroc, f1, precision, _) in zip(weights.astype(int), found, strict=True):
        drawn = np.repeat(np.arange(8), row)
        values = np.concatenate([scores[index].ravel() for index in drawn]).astype(float)
        truth = np.concatenate([masks[index].ravel() for index in drawn])
        ahead, recall, _ = precision_recall_curve(truth, values)
        assert auroc == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(truth, values), abs=1e-12)
        assert f1 == pytest.approx(np.max(2 * ahead * recall / np.maximum(ahead + recall, 1e-300)), abs=1e-12)


def test_resampled_image_scores_agree_with_the_metrics_of_repeated_images() -> None:
    rng = np.random.default_rng(6)
    labels = rng.random(30) < 0.6
    scores = np.round(rng.normal(size=30) + labels, 1)
    weights = draw_weights(labels.astype(np.int64), 25, rng)
    found = resampled_metrics(bins_of_scores(scores, labels), weights)
    for row, own in zip(weights.astype(int), found, strict=True):
        assert own[:3] == pytest.approx(astuple(image_metrics(np.repeat(scores, row), np.repeat(labels, row))))
        assert np.isnan(own[3])


def test_a_resample_keeps_the_size_of_each_stratum() -> None:
    strata = np.array([0, 1, 1, 0, 1, 2])
    weights = draw_weights(strata, 200, np.random.default_rng(0))
    assert (weights[0] == 1).all()
    for stratum, size in ((0, 2), (1, 3), (2, 1)):
        assert (weights[:, strata == stratum].sum(axis=1) == size).all()
    # three images drawn three times: an image is missing with probability (2/3)^3
    assert (weights[1:, strata == 1] == 0).mean() == pytest.approx(8 / 27, abs=0.06)


@pytest.mark.parametrize("anomalous", [True, False])
def test_metrics_that_the_pool_does_not_have_are_nan(anomalous: bool) -> None:
    histogram = score_histogram(np.ones(SHAPE, np.float16), np.full(SHAPE, anomalous))
    found = resampled_metrics([occupied(histogram)], np.ones((2, 1)))
    np.testing.assert_array_equal(found, [astuple(summary(histogram))] * 2)


Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def simulated(rng: np.random.Generator, count: int, defective: bool) -> Parts:
    """Images of 400 pixels that differ in difficulty: counts of normal and anomalous pixels [count, bins], and the
    highest score of each."""
    edges = np.linspace(-4, 6, 41)
    shift, effect = 0.4 * rng.normal(size=(count, 1)), 1.5 + 0.6 * rng.normal(size=(count, 1))
    n_anomalous = 40 if defective else 0
    values = shift + rng.normal(size=(count, 400))
    values[:, :n_anomalous] += effect
    places = np.digitize(values, edges)
    rows = np.repeat(np.arange(count)[:, None], 400, 1)
    anomalous = np.broadcast_to(np.arange(400) < n_anomalous, places.shape).astype(int)
    counts = np.zeros((2, count, edges.size + 1), np.int64)
    np.add.at(counts, (anomalous, rows, places), 1)
    return counts[0], counts[1], values.max(axis=1)


def true_metrics(rng: np.random.Generator, good: int, defective: int) -> np.ndarray:
    """The limit of a very large pool with so many good images to each defective one, [7]."""
    many = [simulated(rng, 12000, False), simulated(rng, 12000 * defective // good, True)]
    negatives, positives = (sum(each[part].sum(axis=0) for each in many) for part in range(2))
    (pixels,) = resampled_metrics([OccupiedBins.of(negatives, positives, positives / 40)], np.ones((1, 1)))
    labels = np.repeat([False, True], [len(each[2]) for each in many])
    return np.array([*pixels, *astuple(image_metrics(np.concatenate([each[2] for each in many]), labels))])


def simulated_estimate(rng: np.random.Generator, good: int, defective: int, resamples: int) -> Estimate:
    """All metrics of a small test set, resampled as a table is."""
    parts = [simulated(rng, good, False), simulated(rng, defective, True)]
    strata = np.repeat([0, 1], [good, defective])
    drawn, left = draw_weights(strata, resamples, rng), left_out_weights(strata)
    weights = np.concatenate([drawn, left])
    pool = [OccupiedBins.of(*each, each[1] / 40) for part in parts for each in zip(part[0], part[1], strict=True)]
    images = bins_of_scores(np.concatenate([part[2] for part in parts]), strata == 1)
    rows = np.concatenate([resampled_metrics(pool, weights), resampled_metrics(images, weights)[:, :3]], axis=1)
    return Estimate(rows[0], rows[1 : len(drawn)], influences(rows[len(drawn) :], left, strata))


IMAGE_F1 = 5
"""A maximum over few distinct scores is biased the most, and bias corrected or not it is the least sure."""


@pytest.mark.parametrize(("good", "defective", "least", "least_f1"), [(40, 60, 0.90, 0.80), (10, 10, 0.86, 0.70)])
def test_an_interval_covers_the_truth_more_often_than_percentiles_do(
    good: int, defective: int, least: float, least_f1: float
) -> None:
    rng = np.random.default_rng(11)
    truth, draws = true_metrics(rng, good, defective), 200
    covered, by_percentiles = np.zeros(7), np.zeros(7)
    for _ in range(draws):
        estimate = simulated_estimate(rng, good, defective, 400)
        for counts, bounds in (
            (covered, bca_intervals(estimate, 0.95).T),
            (by_percentiles, np.quantile(estimate.drawn, [0.025, 0.975], axis=0)),
        ):
            counts += (bounds[0] <= truth + 1e-12) & (truth <= bounds[1] + 1e-12)
    wanted = np.full(7, least)
    wanted[IMAGE_F1] = least_f1
    assert (covered / draws >= wanted).all(), covered / draws
    assert (covered / draws <= 0.99).all(), covered / draws
    # as good as percentiles where these are unbiased, and far better where they are not
    assert (covered >= by_percentiles - 0.03 * draws).all(), (covered / draws, by_percentiles / draws)
    assert covered[IMAGE_F1] > by_percentiles[IMAGE_F1] + 0.1 * draws
