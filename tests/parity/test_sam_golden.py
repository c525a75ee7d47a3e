"""Our encoder path and batched decoder against stored outputs of the official predictor."""

import zlib
from functools import partial

import numpy as np
import pytest
import torch

from cascade.backbones.sam.absorbed import AbsorbedDecoder
from cascade.backbones.sam.decoder import decode
from cascade.backbones.sam.image import embed, input_frame, normalise, to_input
from cascade.frames import InputFrame, logits_in_frame, scale_points
from cascade.refiners.cps import Cps
from cascade.refiners.passes import run_cascade
from cascade.refiners.persam import PerSam
from cascade.refiners.protocol import Row
from tests.parity.rules import formula_embedding, golden_files, golden_sam, sam_image

FILES = golden_files("sam")


@pytest.fixture(scope="module")
def sam():
    return golden_sam()


@pytest.fixture(scope="module", params=["plain", "absorbed"])
def decoder(sam, request):
    return AbsorbedDecoder(sam) if request.param == "absorbed" else partial(decode, sam)


def _embedding(sam, case):
    if str(case["case"]).startswith(("formula", "empty_step2_formula")):
        return torch.from_numpy(formula_embedding(int(case["image_seed"])))
    height, width = case["original_size"].tolist()
    grey = (height, width) == (777, 333)
    image = sam_image(int(case["image_seed"]), height, width, 1 if grey else 3)
    assert zlib.crc32(image.tobytes()) == int(case["image_crc32"])
    scaled = to_input(image, "padded", 1024, 518)
    assert zlib.crc32(np.ascontiguousarray(scaled).tobytes()) == int(case["resized_crc32"])
    embedding = embed(sam, normalise(torch.from_numpy(scaled), sam)[None])
    np.testing.assert_allclose(embedding[0, :8, :8, :8], case["emb_corner"], atol=2e-5)
    np.testing.assert_allclose(embedding[0, ::16, 4::8, 4::8], case["emb_sub"], atol=2e-5)
    return embedding


def test_weight_rule(sam):
    crc = 0
    for name in sorted(state := sam.state_dict()):
        crc = zlib.crc32(np.ascontiguousarray(state[name].numpy()).tobytes(), crc)
    assert crc == 2423860859


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_three_steps_equal_the_official_predictor(sam, decoder, path):
    case = np.load(path)
    size = tuple(case["original_size"].tolist())
    frame = input_frame(size, "padded", 1024)
    assert frame == InputFrame(1024, tuple(case["input_size"].tolist()))
    embedding = _embedding(sam, case)
    points = torch.from_numpy(scale_points(case["points"], size, frame.size)).float()[None]
    labels = torch.from_numpy(case["labels"])[None]
    options = Cps(tuple(case["multimask"].tolist()), "iou", "chosen", "mask", 0.0, "previous")
    full = np.array([0, 0, size[1] - 1, size[0] - 1], dtype=np.float64)

    result = run_cascade(decoder, embedding, points, labels, [Row(frame, size, full)], options)[0]

    empty = "s3nobox_best" in case
    assert result.box_fallback == empty
    for number, step in enumerate(result.steps[: 2 if empty else 3], start=1):
        _compare(case, f"s{number}_", step.logits, step.predicted_iou, step.chosen, frame, size)
    if not empty:
        np.testing.assert_array_equal(result.steps[2].boxes[0], case["s3_box"])
        return
    fed = torch.from_numpy(result.steps[1].logits[result.steps[1].chosen])[None, None]
    box = torch.from_numpy(scale_points(full, size, frame.size)).float().reshape(1, 4)
    for prefix, boxes in (("s3nobox_", None), ("s3fullbox_", box)):
        third = decoder(embedding, points, labels, boxes=boxes, mask_input=fed, multimask=options.multimask[2])
        iou = third.predicted_iou[0].numpy()
        _compare(case, prefix, third.low_res_logits[0].numpy(), iou, int(iou.argmax()), frame, size)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.endswith("ftt")], ids=lambda path: path.stem)
def test_persam_is_the_cascade_with_one_mask_first(sam, path):
    case = np.load(path)
    size = tuple(case["original_size"].tolist())
    frame = input_frame(size, "padded", 1024)
    points = torch.from_numpy(scale_points(case["points"], size, frame.size)).float()[None]
    labels = torch.from_numpy(case["labels"])[None]
    row = Row(frame, size, np.array([0, 0, size[1] - 1, size[0] - 1], dtype=np.float64))
    result = PerSam().refine(partial(decode, sam), _embedding(sam, case), points, labels, [row])[0]
    assert [len(step.logits) for step in result.steps] == [1, 3, 3]
    for number, step in enumerate(result.steps[: 2 if result.box_fallback else 3], start=1):
        _compare(case, f"s{number}_", step.logits, step.predicted_iou, step.chosen, frame, size)
    if not result.box_fallback:
        np.testing.assert_array_equal(result.steps[2].boxes[0], case["s3_box"])


def _compare(case, prefix, logits, predicted_iou, chosen, frame, size):
    np.testing.assert_allclose(predicted_iou, case[prefix + "iou"], atol=1e-5)
    assert chosen == int(case[prefix + "best"])
    np.testing.assert_allclose(logits[chosen], case[prefix + "logits_best"], atol=1e-4)
    np.testing.assert_allclose(logits[:, 4::8, 4::8], case[prefix + "logits_sub"], atol=1e-4)
    mask = logits_in_frame(torch.from_numpy(logits[chosen])[None, None], frame, size)[0, 0].numpy() > 0
    expected = np.unpackbits(case[prefix + "mask_bits"], count=mask.size).reshape(mask.shape).astype(bool)
    assert (mask != expected).sum() <= int(case[prefix + "near_zero"][0])
