from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade.metrics import (
    ScoreHistogram,
    bin_values,
    distinct_histogram,
    region_weights,
    score_histogram,
    summary,
)

FINITE = np.concatenate([np.arange(0x7C00), np.arange(0x8000, 0xFC00)]).astype(np.uint16).view(np.float16)
# Drawn by position, since hypothesis filters NaN and infinity out of floats, at times too many of them.
finite_half = st.integers(0, FINITE.size - 1).map(lambda index: float(FINITE[index]))


def random_image(rng: np.random.Generator, shape: tuple[int, int] = (24, 31)) -> tuple[np.ndarray, np.ndarray]:
    mask = rng.random(shape) < 0.15
    scores = (rng.normal(size=shape) + mask).astype(np.float16)
    return scores, mask


def assert_same(left: ScoreHistogram, right: ScoreHistogram) -> None:
    np.testing.assert_array_equal(left.negatives, right.negatives)
    np.testing.assert_array_equal(left.positives, right.positives)
    np.testing.assert_allclose(left.regions, right.regions, rtol=1e-12, atol=1e-15)
    assert left.n_regions == right.n_regions
    for name in ("negatives", "positives", "regions"):
        assert getattr(left, name).dtype == getattr(right, name).dtype


def test_bins_ascend_over_every_finite_float16() -> None:
    values = bin_values()
    finite = values[np.isfinite(values)].astype(np.float64)
    assert finite.size == 2 * 31 * 1024
    assert (np.diff(finite) >= 0).all()
    assert np.count_nonzero(np.diff(finite) == 0) == 1  # -0.0 and 0.0


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float16, (4, 5), elements=finite_half), hnp.arrays(bool, (4, 5)))
def test_every_pixel_is_in_the_bin_of_its_score(scores: np.ndarray, mask: np.ndarray) -> None:
    histogram = score_histogram(scores, mask)
    values = bin_values()
    np.testing.assert_array_equal(np.repeat(values, histogram.positives), np.sort(scores[mask]))
    np.testing.assert_array_equal(np.repeat(values, histogram.negatives), np.sort(scores[~mask]))


def test_region_counts_hold_the_share_of_each_region() -> None:
    mask = np.array([[True, False, True], [True, False, False]])
    scores = np.array([[0.5, 0.5, 0.25], [0.25, 0.5, -1.0]], dtype=np.float16)
    histogram = score_histogram(scores, mask)
    occupied = histogram.regions > 0
    np.testing.assert_array_equal(bin_values()[occupied], np.array([0.25, 0.5], dtype=np.float16))
    np.testing.assert_array_equal(histogram.regions[occupied], [1.5, 0.5])
    assert histogram.n_regions == 2


def test_both_zeros_share_a_bin() -> None:
    scores = np.array([[0.0, -0.0]], dtype=np.float16)
    histogram = score_histogram(scores, np.array([[True, False]]))
    np.testing.assert_array_equal(np.flatnonzero(histogram.positives), np.flatnonzero(histogram.negatives))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("anomalous", [False, True])
def test_scores_without_a_rank_are_refused(value: float, anomalous: bool) -> None:
    scores = np.array([[0.5, value]], dtype=np.float16)
    mask = np.full((1, 2), anomalous)
    with pytest.raises(ValueError, match="1 scores are NaN or infinite"):
        score_histogram(scores, mask)
    with pytest.raises(ValueError, match="1 scores are NaN or infinite"):
        distinct_histogram(scores, mask)


def test_wrong_types_and_shapes_are_refused() -> None:
    scores = np.zeros((3, 4), dtype=np.float16)
    mask = np.zeros((3, 4), dtype=bool)
    with pytest.raises(TypeError, match="float16, not float32"):
        score_histogram(scores.astype(np.float32), mask)
    with pytest.raises(TypeError, match="bool, not uint8"):
        score_histogram(scores, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="do not match a mask"):
        score_histogram(scores, mask.T)
    with pytest.raises(ValueError, match="region weights of shape"):
        score_histogram(scores, mask, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not to a number of regions"):
        score_histogram(scores, ~mask, np.full((3, 4), 0.125))


def test_histograms_add_to_that_of_the_pooled_images() -> None:
    rng = np.random.default_rng(0)
    images = [random_image(rng) for _ in range(5)]
    # A column of normal pixels keeps regions of neighbouring images apart.
    gap = np.zeros((24, 1), dtype=bool)
    masks = np.hstack([np.hstack([mask, gap]) for _, mask in images])
    scores = np.hstack([np.hstack([score, gap.astype(np.float16)]) for score, _ in images])
    gaps = score_histogram(np.zeros((24, 5), dtype=np.float16), np.zeros((24, 5), dtype=bool))
    total = reduce(add, (score_histogram(*image) for image in images), gaps)
    assert_same(total, score_histogram(scores, masks))
    backwards = reduce(add, (score_histogram(*image) for image in reversed(images)), gaps)
    assert_same(total, backwards)


def test_the_empty_histogram_is_neutral() -> None:
    one = score_histogram(*random_image(np.random.default_rng(1)))
    assert_same(ScoreHistogram.empty() + one, one)
    assert ScoreHistogram.empty().n_regions == 0


def test_histograms_over_distinct_scores_do_not_add() -> None:
    scores, mask = random_image(np.random.default_rng(2))
    with pytest.raises(ValueError, match="only float16 histograms"):
        distinct_histogram(scores, mask) + distinct_histogram(scores, mask)


def test_memory_layout_does_not_matter() -> None:
    scores, mask = random_image(np.random.default_rng(3), (20, 20))
    assert_same(score_histogram(scores.T, mask.T), score_histogram(scores.T.copy(), mask.T.copy()))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float16, (6, 7), elements=finite_half), hnp.arrays(bool, (6, 7)))
def test_distinct_bins_decide_the_same_metrics(scores: np.ndarray, mask: np.ndarray) -> None:
    weights, count = region_weights(mask)
    fixed = score_histogram(scores, mask, weights)
    distinct = distinct_histogram(scores.astype(np.float64), mask, weights)
    assert distinct.n_regions == fixed.n_regions == count
    assert distinct.positives.dtype == distinct.negatives.dtype == np.int64
    np.testing.assert_allclose(
        np.array(list(vars(summary(fixed)).values())), np.array(list(vars(summary(distinct)).values())), rtol=1e-12
    )
