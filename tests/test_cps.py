"""The cascade's open choices; its arithmetic is compared with the official predictor in tests/parity."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from skimage import measure

from cascade.backbones.sam.decoder import Decoded, decode
from cascade.frames import InputFrame, logits_in_frame, mask_box
from cascade.refiners.cps import Cps
from cascade.refiners.passes import run_cascade
from cascade.refiners.protocol import Row
from tests.tiny import tiny_sam

DEFAULT = Cps((True, True, True), "iou", "chosen", "mask", 0.0, "previous")
FRAME, SIZE = InputFrame(64, (64, 48)), (80, 60)
RING = np.array([5.0, 6.0, 20.0, 30.0])


@pytest.fixture(scope="module")
def decoder():
    return partial(decode, tiny_sam())


def _inputs(rows, points=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, 32, 4, 4, generator=generator)
    coordinates = torch.rand(rows, points, 2, generator=generator) * 48
    return embeddings, coordinates, torch.tensor([[1, 0] * (points // 2)] * rows)


def test_rows_do_not_see_each_other(decoder):
    embeddings, points, labels = _inputs(5)
    rows = [Row(FRAME, SIZE, RING)] * 5
    together = run_cascade(decoder, embeddings, points, labels, rows, DEFAULT)
    for index in range(5):
        own = slice(index, index + 1)
        (alone,) = run_cascade(decoder, embeddings[own], points[own], labels[own], rows[:1], DEFAULT)
        for a, b in zip(together[index].steps, alone.steps, strict=True):
            np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
            assert a.chosen == b.chosen


def _with_second_mask(decoder, mask_logits, first=None):
    """A decoder that returns a given second mask, and optionally a given first one, and the list of its calls."""
    calls = []

    def fake(embeddings, points, labels, *, boxes=None, mask_input=None, multimask=True):
        calls.append({"boxes": boxes, "mask_input": mask_input, "multimask": multimask})
        decoded = decoder(embeddings, points, labels, boxes=boxes, mask_input=mask_input, multimask=multimask)
        given = {1: first, 2: mask_logits}.get(len(calls))
        if given is None:
            return decoded
        return Decoded(given.expand_as(decoded.low_res_logits).clone(), decoded.predicted_iou)

    return fake, calls


def _blob(*boxes):
    logits = torch.full((16, 16), -5.0)
    for top, left, bottom, right in boxes:
        logits[top:bottom, left:right] = 5.0
    return logits


def test_box_of_the_second_mask_and_logits_of_the_chosen(decoder):
    second = _blob((4, 4, 8, 10))
    fake, calls = _with_second_mask(decoder, second)
    embeddings, points, labels = _inputs(1)
    (result,) = run_cascade(fake, embeddings, points, labels, [Row(FRAME, SIZE, RING)], DEFAULT)
    expected = mask_box((logits_in_frame(second[None, None], FRAME, SIZE)[0, 0] > 0).numpy())
    np.testing.assert_array_equal(result.steps[2].boxes[0], expected)
    scaled = expected * np.array([48 / 60, 64 / 80] * 2)
    np.testing.assert_allclose(calls[2]["boxes"][0], scaled, rtol=1e-6)
    torch.testing.assert_close(calls[2]["mask_input"][0, 0], second)
    assert not result.box_fallback


def test_padding_grows_the_box_within_the_frame(decoder):
    fake, _ = _with_second_mask(decoder, _blob((4, 4, 8, 10)))
    embeddings, points, labels = _inputs(1)
    row = Row(FRAME, SIZE, RING)
    (plain,) = run_cascade(fake, embeddings, points, labels, [row], DEFAULT)
    fake, _ = _with_second_mask(decoder, _blob((4, 4, 8, 10)))
    (grown,) = run_cascade(fake, embeddings, points, labels, [row], replace(DEFAULT, box_padding=1.0))
    x0, y0, x1, y1 = plain.steps[2].boxes[0]
    width, height = x1 - x0, y1 - y0
    expected = np.clip([x0 - width, y0 - height, x1 + width, y1 + height], 0, [59, 79, 59, 79])
    np.testing.assert_allclose(grown.steps[2].boxes[0], expected)


def _parts(mask):
    """Boxes (x0, y0, x1, y1), last pixels included, and areas of the 8-connected parts, by scikit-image."""
    found = measure.regionprops(measure.label(mask, connectivity=2))
    limits = [each.bbox for each in found]
    return [[x0, y0, x1 - 1, y1 - 1] for y0, x0, y1, x1 in limits], [each.area for each in found]


def test_parts_that_touch_at_a_corner_are_one(decoder):
    second = _blob((1, 1, 4, 4), (4, 4, 9, 9), (12, 1, 14, 12))
    fake, _ = _with_second_mask(decoder, second)
    row = Row(InputFrame(64, (64, 64)), (16, 16), RING)  # a pixel of the mask is one of the frame
    (each,) = run_cascade(fake, *_inputs(1), [row], replace(DEFAULT, box="components"))
    boxes, areas = _parts((second > 0).numpy())
    assert len(boxes) == 2
    np.testing.assert_array_equal(each.steps[2].boxes, boxes)
    fake, _ = _with_second_mask(decoder, second)
    (largest,) = run_cascade(fake, *_inputs(1), [row], replace(DEFAULT, box="largest"))
    np.testing.assert_array_equal(largest.steps[2].boxes, [boxes[int(np.argmax(areas))]])


def test_largest_part_and_one_box_for_each_part(decoder):
    second = _blob((1, 1, 4, 4), (8, 5, 14, 11))
    mask = (logits_in_frame(second[None, None], FRAME, SIZE)[0, 0] > 0).numpy()
    boxes, areas = _parts(mask)
    assert areas[0] < areas[1]
    embeddings, points, labels = _inputs(2)
    rows = [Row(FRAME, SIZE, RING)] * 2

    fake, _ = _with_second_mask(decoder, second)
    largest = run_cascade(fake, embeddings, points, labels, rows, replace(DEFAULT, box="largest"))
    np.testing.assert_array_equal(largest[1].steps[2].boxes, [boxes[1]])

    fake, calls = _with_second_mask(decoder, second)
    each = run_cascade(fake, embeddings, points, labels, rows, replace(DEFAULT, box="components"))
    np.testing.assert_array_equal(each[0].steps[2].boxes, boxes)
    assert len(calls[2]["boxes"]) == 4
    fed = second[None, None].expand(1, 1, 16, 16)
    alone = [
        decoder(
            embeddings[:1],
            points[:1],
            labels[:1],
            boxes=torch.from_numpy(np.array(box) * np.array([48 / 60, 64 / 80] * 2)).float()[None],
            mask_input=fed,
        ).low_res_logits[0]
        for box in boxes
    ]
    np.testing.assert_allclose(each[0].steps[2].logits, torch.maximum(*alone), atol=1e-4)


def test_empty_second_mask_falls_back_on_the_first(decoder):
    """A13: the first mask's box and logits."""
    first = _blob((2, 3, 9, 9))
    fake, calls = _with_second_mask(decoder, torch.full((16, 16), -1.0), first)
    embeddings, points, labels = _inputs(1)
    (result,) = run_cascade(fake, embeddings, points, labels, [Row(FRAME, SIZE, RING)], DEFAULT)
    assert result.box_fallback
    expected = mask_box((logits_in_frame(first[None, None], FRAME, SIZE)[0, 0] > 0).numpy())
    np.testing.assert_array_equal(result.steps[2].boxes[0], expected)
    torch.testing.assert_close(calls[2]["mask_input"][0, 0], first)


def test_two_empty_masks_fall_back_on_the_ring(decoder):
    """A13: the box of the dilated S_a, and the second logits."""
    second = torch.full((16, 16), -1.0)
    fake, calls = _with_second_mask(decoder, second, torch.full((16, 16), -2.0))
    embeddings, points, labels = _inputs(1)
    (result,) = run_cascade(fake, embeddings, points, labels, [Row(FRAME, SIZE, RING)], DEFAULT)
    assert result.box_fallback
    np.testing.assert_array_equal(result.steps[2].boxes[0], RING)
    torch.testing.assert_close(calls[2]["mask_input"][0, 0], second)


def test_skipping_keeps_the_second_step(decoder):
    fake, calls = _with_second_mask(decoder, torch.full((16, 16), -1.0))
    embeddings, points, labels = _inputs(1)
    (result,) = run_cascade(fake, embeddings, points, labels, [Row(FRAME, SIZE, RING)], replace(DEFAULT, empty="skip"))
    assert len(calls) == 2
    assert result.box_fallback
    assert result.steps[2] is result.steps[1]


def test_multimask_setting_of_each_step(decoder):
    fake, calls = _with_second_mask(decoder, None)
    embeddings, points, labels = _inputs(1)
    options = replace(DEFAULT, multimask=(False, True, False))
    (result,) = run_cascade(fake, embeddings, points, labels, [Row(FRAME, SIZE, RING)], options)
    assert [call["multimask"] for call in calls] == [False, True, False]
    assert [len(step.logits) for step in result.steps] == [1, 3, 1]


def test_mean_feedback(decoder):
    fake, calls = _with_second_mask(decoder, None)
    embeddings, points, labels = _inputs(2)
    rows = [Row(FRAME, SIZE, RING)] * 2
    result = run_cascade(fake, embeddings, points, labels, rows, replace(DEFAULT, feedback="mean"))
    fed = calls[1]["mask_input"][:, 0].numpy()
    np.testing.assert_allclose(fed, [each.steps[0].logits.mean(axis=0) for each in result], atol=1e-6)


def test_agreement_chooses_the_mask_that_fits_the_map(decoder):
    embeddings, points, labels = _inputs(3, seed=5)
    plain = run_cascade(decoder, embeddings, points, labels, [Row(FRAME, SIZE, RING)] * 3, DEFAULT)
    for wanted in range(3):
        rows = [Row(FRAME, SIZE, RING, (each.steps[0].logits[wanted] > 0).astype(float)) for each in plain]
        chosen = run_cascade(decoder, embeddings, points, labels, rows, replace(DEFAULT, choice="agreement"))
        for each, row in zip(chosen, rows, strict=True):
            overlaps = [
                ((mask > 0) & (row.map > 0)).sum() / max(1, ((mask > 0) | (row.map > 0)).sum())
                for mask in each.steps[0].logits
            ]
            assert overlaps[each.steps[0].chosen] == max(overlaps)
    with pytest.raises(ValueError, match="needs the anomaly map"):
        run_cascade(
            decoder, embeddings, points, labels, [Row(FRAME, SIZE, RING)] * 3, replace(DEFAULT, choice="agreement")
        )


def test_rows_of_one_batch_fall_back_each_on_its_own(decoder):
    """A13 in a batch: a drawn second mask, an empty one after a drawn first, and two empty ones."""
    nothing = torch.full((16, 16), -1.0)
    seconds = torch.stack([_blob((4, 4, 8, 10)), nothing, nothing])[:, None]
    firsts = torch.stack([_blob((1, 1, 4, 4)), _blob((2, 3, 9, 9)), nothing])[:, None]
    fake, calls = _with_second_mask(decoder, seconds, firsts)
    embeddings, points, labels = _inputs(3)
    results = run_cascade(fake, embeddings, points, labels, [Row(FRAME, SIZE, RING)] * 3, DEFAULT)
    drawn = [
        mask_box((logits_in_frame(logits[None], FRAME, SIZE)[0, 0] > 0).numpy()) for logits in (seconds[0], firsts[1])
    ]
    for result, expected in zip(results, [*drawn, RING], strict=True):
        np.testing.assert_array_equal(result.steps[2].boxes, [expected])
    assert [result.box_fallback for result in results] == [False, True, True]
    torch.testing.assert_close(calls[2]["mask_input"], torch.stack([seconds[0], firsts[1], seconds[2]]))


def test_prompt_frames_of_a_batch_may_differ(decoder):
    second = _blob((4, 4, 8, 10))
    embeddings, points, labels = _inputs(2)
    rows = [Row(FRAME, SIZE, RING), Row(InputFrame(64, (32, 64)), (50, 100), RING)]
    fake, calls = _with_second_mask(decoder, second)
    results = run_cascade(fake, embeddings, points, labels, rows, replace(DEFAULT, box_padding=0.1))
    for index, row in enumerate(rows):
        fake, own = _with_second_mask(decoder, second)
        part = slice(index, index + 1)
        (alone,) = run_cascade(
            fake, embeddings[part], points[part], labels[part], [row], replace(DEFAULT, box_padding=0.1)
        )
        np.testing.assert_array_equal(results[index].steps[2].boxes, alone.steps[2].boxes)
        torch.testing.assert_close(calls[2]["boxes"][part], own[2]["boxes"])
