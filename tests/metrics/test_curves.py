from __future__ import annotations

import math
from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from cascade.metrics import (
    ScoreHistogram,
    aupro,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    region_weights,
    score_histogram,
    summary,
)

SHAPE = (9, 11)
few_values = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 3.0])
many_values = st.floats(-8, 8, width=16)
score_maps = hnp.arrays(np.float16, SHAPE, elements=few_values) | hnp.arrays(
    np.float16, SHAPE, elements=many_values, fill=st.nothing()
)
masks = hnp.arrays(bool, SHAPE) | st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random(SHAPE) < 0.2
)


def mixed(mask: np.ndarray) -> bool:
    return bool(mask.any() and not mask.all())


def slow_aupro(scores: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """The definition read aloud: every threshold, every region, one trapezoid after the other."""
    regions = []
    for index, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(index, labels == label) for label in range(1, count + 1)]
    normal = np.concatenate([s[~m] for s, m in zip(scores, masks, strict=True)]).astype(np.float64)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for s in scores for v in s.ravel()}, reverse=True):
        recalls = [(scores[i][region].astype(np.float64) >= threshold).mean() for i, region in regions]
        points.append(((normal >= threshold).mean(), math.fsum(recalls) / len(recalls)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            return (area + (limit - x0) * (y0 + y1) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@settings(max_examples=150, deadline=None)
@given(score_maps, masks)
def test_ranking_metrics_equal_scikit_learn(scores: np.ndarray, mask: np.ndarray) -> None:
    if not mixed(mask):
        return
    histogram = score_histogram(scores, mask)
    labels, flat = mask.ravel(), scores.ravel().astype(np.float64)
    assert auroc(histogram) == pytest.approx(roc_auc_score(labels, flat), abs=1e-12)
    assert average_precision(histogram) == pytest.approx(average_precision_score(labels, flat), abs=1e-12)
    precision, recall, _ = precision_recall_curve(labels, flat)
    with np.errstate(invalid="ignore"):
        best = np.nanmax(2 * precision * recall / (precision + recall))
    assert f1_max(histogram) == pytest.approx(best, abs=1e-12)


def test_ranking_metrics_equal_scikit_learn_on_a_large_pool() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((500, 700)) < 0.03
    scores = (1 / (1 + np.exp(-rng.normal(size=mask.shape) - 1.5 * mask))).astype(np.float16)
    histogram = score_histogram(scores, mask)
    labels, flat = mask.ravel(), scores.ravel().astype(np.float64)
    assert auroc(histogram) == pytest.approx(roc_auc_score(labels, flat), abs=1e-12)
    assert average_precision(histogram) == pytest.approx(average_precision_score(labels, flat), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(score_maps, masks), min_size=1, max_size=3), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_aupro_equals_the_sum_over_thresholds_and_regions(
    images: list[tuple[np.ndarray, np.ndarray]], limit: float
) -> None:
    total = sum((score_histogram(*image) for image in images), ScoreHistogram.empty())
    if total.positives.sum() == 0 or total.negatives.sum() == 0:
        assert math.isnan(aupro(total, limit))
        return
    direct = slow_aupro([s for s, _ in images], [m for _, m in images], limit)
    assert aupro(total, limit) == pytest.approx(direct, abs=1e-12)


def test_aupro_interpolates_at_the_limit() -> None:
    """The region and half of the normal pixels share the highest score: the first segment is slanted."""
    mask = np.array([[True, False, False]])
    half_found = np.array([[0.5, 0.5, 0.0]], dtype=np.float16)
    # (0, 0) → (0.5, 1): at 0.25 the recall is 0.5, the triangle's area 0.0625.
    assert aupro(score_histogram(half_found, mask), limit=0.25) == pytest.approx(0.25, abs=1e-15)
    # (0.5, 1) lies on the limit itself.
    assert aupro(score_histogram(half_found, mask), limit=0.5) == pytest.approx(0.5, abs=1e-15)


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[0, 0] = True
    mask[5:15, 5:15] = True
    only_small, only_large = np.zeros((2, 20, 20), dtype=np.float16)
    only_small[0, 0] = 1
    only_large[5:15, 5:15] = 1
    found = [aupro(score_histogram(scores, mask)) for scores in (only_small, only_large)]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, math.nan])
def test_aupro_refuses_a_limit_that_is_no_rate(limit: float) -> None:
    with pytest.raises(ValueError, match="false-positive rate"):
        aupro(ScoreHistogram.empty(), limit)


def test_a_perfect_map_scores_one() -> None:
    mask = np.random.default_rng(4).random((64, 64)) < 0.1
    assert astuple(summary(score_histogram(mask.astype(np.float16), mask))) == (1.0, 1.0, 1.0, 1.0)


def test_a_constant_map_scores_chance() -> None:
    mask = np.random.default_rng(5).random((64, 64)) < 0.1
    prevalence = mask.mean()
    metrics = summary(score_histogram(np.full((64, 64), -2, dtype=np.float16), mask))
    assert metrics.auroc == 0.5
    assert metrics.f1_max == pytest.approx(2 * prevalence / (1 + prevalence), abs=1e-15)
    assert metrics.average_precision == pytest.approx(prevalence, abs=1e-15)
    # The curve is the diagonal: a mean height of limit / 2.
    assert metrics.aupro == pytest.approx(0.15, abs=1e-15)


def test_a_random_map_scores_chance() -> None:
    rng = np.random.default_rng(6)
    mask = np.zeros((400, 400), dtype=bool)
    mask[50:150, 60:200] = True
    mask[250:390, 250:300] = True
    metrics = summary(score_histogram(rng.random(mask.shape).astype(np.float16), mask))
    assert metrics.auroc == pytest.approx(0.5, abs=0.01)
    assert metrics.average_precision == pytest.approx(mask.mean(), abs=0.01)
    assert metrics.aupro == pytest.approx(0.15, abs=0.01)


def test_an_inverted_map_has_the_complementary_auroc() -> None:
    rng = np.random.default_rng(7)
    mask = rng.random((32, 32)) < 0.2
    scores = np.round(rng.normal(size=mask.shape), 1).astype(np.float16)
    assert auroc(score_histogram(scores, mask)) + auroc(score_histogram(-scores, mask)) == pytest.approx(1, abs=1e-15)


def test_metrics_without_positives_are_undefined() -> None:
    histogram = score_histogram(np.ones((4, 4), dtype=np.float16), np.zeros((4, 4), dtype=bool))
    assert all(math.isnan(value) for value in astuple(summary(histogram)))


def test_metrics_of_nothing_are_undefined() -> None:
    assert all(math.isnan(value) for value in astuple(summary(ScoreHistogram.empty())))


def test_without_negatives_only_precision_is_defined() -> None:
    scores = np.arange(16, dtype=np.float16).reshape(4, 4)
    metrics = summary(score_histogram(scores, np.ones((4, 4), dtype=bool)))
    assert math.isnan(metrics.auroc)
    assert math.isnan(metrics.aupro)
    assert metrics.average_precision == metrics.f1_max == 1.0


def test_counts_beyond_int64_pairs_stay_exact() -> None:
    """Twice the number of pairs does not fit into int64 at the size of a large benchmark."""
    many = 2**32
    histogram = ScoreHistogram(
        negatives=np.array([3 * many, many]), positives=np.array([many, 3 * many]), regions=np.zeros(2), n_regions=0
    )
    assert auroc(histogram) == (9 + 0.5 * (3 + 3)) / 16
    assert f1_max(histogram) == 6 / 8


def test_regions_of_the_mask_are_the_default_weights() -> None:
    rng = np.random.default_rng(8)
    mask = rng.random((32, 32)) < 0.2
    scores = rng.random((32, 32)).astype(np.float16)
    given_weights = score_histogram(scores, mask, region_weights(mask)[0])
    assert aupro(score_histogram(scores, mask)) == aupro(given_weights)


def test_image_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(9)
    labels = rng.random(200) < 0.6
    scores = np.round(rng.normal(size=200) + labels, 1)
    metrics = image_metrics(scores, labels)
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics.f1_max == pytest.approx(np.max(2 * precision * recall / (precision + recall)), abs=1e-12)
