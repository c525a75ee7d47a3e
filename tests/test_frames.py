import numpy as np
import pytest
import torch
from torch.nn import functional

from cascade.backbones.sam.image import input_frame
from cascade.frames import (
    InputFrame,
    boxes_above_zero,
    grid_coverage,
    logits_in_frame,
    mask_box,
    sample_grid,
    scale_points,
)


def test_points_follow_the_ratio_of_the_sizes():
    points = scale_points(np.array([[10.0, 20.0]]), (100, 200), (50, 400))
    np.testing.assert_array_equal(points, [[20.0, 10.0]])


def test_there_and_back_again():
    points = np.random.default_rng(0).uniform(0, 300, (50, 2))
    back = scale_points(scale_points(points, (333, 777), (518, 518)), (518, 518), (333, 777))
    np.testing.assert_allclose(back, points, rtol=1e-13)


@pytest.mark.parametrize(
    ("size", "inside"), [((300, 500), (614, 1024)), ((777, 333), (1024, 439)), ((9, 9), (1024, 1024))]
)
def test_padded_frame_has_the_official_size(size, inside):
    assert input_frame(size, "padded", 1024) == InputFrame(1024, inside)
    assert input_frame(size, "square", 1024) == InputFrame(1024, (1024, 1024))


@pytest.mark.parametrize("inside", [(64, 64), (64, 40), (24, 64)])
def test_sampling_equals_upsampling_and_reading(inside):
    """Against the long way: the grid to the input, the padding cut off, to the frame, then the pixel."""
    values = torch.randn(3, 8, 8, dtype=torch.float64)
    frame = InputFrame(64, inside)
    mask = np.random.default_rng(1).random((inside[0], inside[1])) > 0.7
    square = functional.interpolate(values[None], (64, 64), mode="bilinear", align_corners=False)[0]
    expected = square[:, : inside[0], : inside[1]][:, torch.from_numpy(mask)]
    torch.testing.assert_close(sample_grid(values, mask, frame), expected)


def test_coverage_is_exact_area():
    """Pixels counted one by one on a frame that divides evenly; and the total area on one that does not."""
    mask = np.random.default_rng(2).random((32, 32)) > 0.5
    expected = mask.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(grid_coverage(mask, InputFrame(64, (64, 64)), 8), expected)
    odd = np.random.default_rng(3).random((37, 51))
    coverage = grid_coverage(odd, InputFrame(64, (40, 64)), 8)
    np.testing.assert_allclose(coverage.mean(), odd.mean() * 40 / 64)
    assert not coverage[5:].any()


def test_logits_reach_the_frame_as_in_sam():
    from tests.tiny import tiny_sam

    logits = torch.randn(2, 3, 16, 16)
    expected = tiny_sam().postprocess_masks(logits, (64, 40), (99, 61))
    torch.testing.assert_close(logits_in_frame(logits, InputFrame(64, (64, 40)), (99, 61)), expected)


def test_box_has_inclusive_indices():
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:5, 7:9] = True
    np.testing.assert_array_equal(mask_box(mask), [7, 2, 8, 4])


def test_boxes_of_a_batch_are_those_of_each_mask():
    logits = np.random.default_rng(1).standard_normal((200, 7, 11)).astype(np.float32) - 2.2
    logits[0], logits[1, 3, 4] = -1, 1
    boxes, drawn = boxes_above_zero(torch.from_numpy(logits))
    assert not drawn[0]
    for own, box, any_pixel in zip(logits > 0, boxes.numpy(), drawn, strict=True):
        assert own.any() == any_pixel
        if any_pixel:
            np.testing.assert_array_equal(box, mask_box(own))


def test_a_frame_of_the_size_of_the_input_is_not_sampled_again():
    logits = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    square = functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        logits_in_frame(logits, InputFrame(64, (64, 48)), (64, 48)), square[..., :48], rtol=0, atol=0
    )
