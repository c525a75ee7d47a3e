"""Tensors are counted as arrays are, wherever they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade.metrics import region_weights, score_histogram
from cascade.metrics.tensors import tensor_histogram
from tests.metrics.test_histogram import FINITE, assert_same

DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.mark.parametrize("given", [False, True])
def test_every_finite_score_is_counted_as_in_an_array(device: str, given: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.permutation(np.concatenate([FINITE, FINITE[:7]])).reshape(-1, 45)
    mask = rng.random(scores.shape) < 0.1
    weight = region_weights(mask)[0] if given else None
    found = tensor_histogram(
        torch.from_numpy(scores).to(device),
        torch.from_numpy(mask).to(device),
        None if weight is None else torch.from_numpy(weight).to(device),
    )
    assert_same(found, score_histogram(scores, mask))
    assert found.n_regions > 100


def test_an_image_without_a_defect_counts_as_in_an_array(device: str) -> None:
    scores = torch.rand(20, 30, generator=torch.Generator().manual_seed(1)).half().to(device)
    mask = torch.zeros(20, 30, dtype=torch.bool, device=device)
    assert_same(tensor_histogram(scores, mask), score_histogram(scores.cpu().numpy(), mask.cpu().numpy()))


def test_memory_layout_does_not_matter(device: str) -> None:
    scores = torch.rand(20, 30, generator=torch.Generator().manual_seed(1)).half().to(device)
    mask = scores > 0.7
    assert_same(tensor_histogram(scores.T, mask.T), score_histogram(scores.T.cpu().numpy(), mask.T.cpu().numpy()))


def test_what_an_array_may_not_be_a_tensor_may_not_be(device: str) -> None:
    scores, mask = torch.zeros(3, 4, device=device).half(), torch.zeros(3, 4, device=device).bool()
    with pytest.raises(TypeError, match=r"not torch\.float32"):
        tensor_histogram(scores.float(), mask)
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        tensor_histogram(scores, mask.byte())
    with pytest.raises(ValueError, match="do not match"):
        tensor_histogram(scores, mask.T)
    with pytest.raises(ValueError, match="not to a number of regions"):
        tensor_histogram(scores, ~mask, torch.full((3, 4), 0.125, device=device).double())
    scores[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 scores are NaN or infinite"):
        tensor_histogram(scores, mask)
