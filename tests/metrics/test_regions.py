from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import measure

from cascade.metrics import region_weights


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.eye(5, dtype=bool)
    weights, count = region_weights(mask)
    assert count == 1
    np.testing.assert_array_equal(weights, np.eye(5) / 5)


def test_every_region_weighs_one_whatever_its_size() -> None:
    mask = np.zeros((8, 9), dtype=bool)
    mask[0, 0] = True
    mask[3:6, 3:8] = True
    weights, count = region_weights(mask)
    assert count == 2
    assert weights[0, 0] == 1.0
    np.testing.assert_allclose(weights[3:6, 3:8], 1 / 15, rtol=0, atol=0)
    assert weights[~mask].sum() == 0.0


def test_a_normal_image_has_no_regions() -> None:
    weights, count = region_weights(np.zeros((4, 4), dtype=bool))
    assert count == 0
    assert weights.dtype == np.float64
    assert not weights.any()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_regions_are_those_of_scikit_image(mask: np.ndarray) -> None:
    weights, count = region_weights(mask)
    labels, expected = measure.label(mask, connectivity=2, return_num=True)
    assert count == expected
    for region in range(1, expected + 1):
        inside = labels == region
        np.testing.assert_array_equal(weights[inside], 1 / inside.sum())


def test_a_mask_that_is_not_boolean_is_refused() -> None:
    with pytest.raises(TypeError, match="bool"):
        region_weights(np.full((4, 4), 255, dtype=np.uint8))


def test_a_stack_of_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="one by one"):
        region_weights(np.zeros((2, 4, 4), dtype=bool))
