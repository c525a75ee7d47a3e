"""Our encoder path and our batched cascade against the official predictor, with the same random weights."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT

from cascade.backbones.sam import absorbed
from cascade.backbones.sam.absorbed import AbsorbedDecoder
from cascade.backbones.sam.build import build_sam
from cascade.backbones.sam.decoder import decode
from cascade.backbones.sam.encoder import encode
from cascade.backbones.sam.image import embed, input_frame, normalise, to_input
from cascade.frames import logits_in_frame, mask_box, scale_points
from cascade.refiners.cps import Cps
from cascade.refiners.passes import run_cascade
from cascade.refiners.protocol import Row
from tests.parity.rules import sam_image

SIZES = {"square": (120, 120), "landscape": (90, 160), "portrait": (150, 60)}


@pytest.fixture(scope="module")
def predictor():
    """Random weights whose masks are neither empty nor full."""
    torch.manual_seed(3)
    sam = build_sam("mini")
    with torch.no_grad():
        for name, value in sam.mask_decoder.named_parameters():
            if "hypernetworks" in name and name.endswith("2.weight"):
                value.mul_(8)
    return SamPredictor(sam)


def _images(seed):
    return {name: sam_image(seed + index, *size, 3) for index, (name, size) in enumerate(SIZES.items())}


def _official_cascade(predictor, image, points, labels, multimask):
    """Three calls of ``SamPredictor.predict`` as in PerSAM's cascade."""
    predictor.set_image(image)
    steps, fed, box = [], None, None
    for number in range(3):
        if number == 2:
            box = mask_box(steps[1][0][steps[1][3]])
        masks, iou, logits = predictor.predict(
            point_coords=points,
            point_labels=labels,
            box=box,
            mask_input=fed,
            multimask_output=multimask[number],
        )
        best = int(iou.argmax())
        fed = logits[best : best + 1]
        steps.append((masks, iou, logits, best, box))
    return steps


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", SIZES)
def test_encoder_path(predictor, shape, fused):
    image = _images(10)[shape]
    predictor.set_image(image)
    sam = predictor.model
    ours = embed(sam, normalise(torch.from_numpy(to_input(image, "padded", 512, 518)), sam)[None], fused=fused)
    torch.testing.assert_close(ours, predictor.features, rtol=0, atol=1e-5 if fused else 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_fused_attention_has_relative_positions_windows_and_padding(monkeypatch, bias):
    """An encoder as published: relative positions of both axes, and windows that do not divide the grid."""
    monkeypatch.setattr("cascade.backbones.sam.encoder._without_bias", lambda tokens: not bias)
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=160, embed_dim=32, depth=3, num_heads=4, out_chans=16, use_rel_pos=True, window_size=4,
        global_attn_indexes=(1,),
    ).eval()  # fmt: skip
    with torch.inference_mode():
        for name, value in encoder.named_parameters():
            if "pos" in name:
                value.normal_()
        inputs = torch.randn(2, 3, 160, 160)
        expected = encoder(inputs)
        torch.testing.assert_close(encode(encoder, inputs), expected, rtol=0, atol=1e-5)
        for block in encoder.blocks:
            block.attn.rel_pos_w.zero_()
        assert (encode(encoder, inputs) - expected).abs().max() > 1e-2


def test_no_fused_kernel_refuses_the_channels_of_positions(monkeypatch):
    """On a GPU bfloat16 needs a multiple of eight; a window of 14 adds 28 to the 64 of a head."""
    monkeypatch.setattr("cascade.backbones.sam.encoder._without_bias", lambda tokens: True)
    channels = []

    def attend(query, key, value, **options):
        channels.append((query.shape[-1], key.shape[-1]))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

    monkeypatch.setattr(
        "cascade.backbones.sam.encoder.functional",
        SimpleNamespace(**vars(torch.nn.functional) | {"scaled_dot_product_attention": attend}),
    )
    encoder = ImageEncoderViT(
        img_size=320, embed_dim=64, depth=2, num_heads=1, out_chans=16, use_rel_pos=True, window_size=14,
        global_attn_indexes=(1,),
    ).eval()  # fmt: skip
    with torch.inference_mode():
        encode(encoder, torch.randn(1, 3, 320, 320))
    assert channels == [(96, 96), (104, 104)]


@pytest.mark.parametrize("multimask", [(True, True, True), (False, True, True)], ids=["paper", "persam"])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("kind", ["plain", "absorbed"])
def test_batched_cascade(predictor, k, multimask, kind):
    """One batch of images of three shapes; masks identical but where a logit is zero, low-res logits within 1e-4."""
    sam = predictor.model
    decoder = AbsorbedDecoder(sam) if kind == "absorbed" else partial(decode, sam)
    images, rng = _images(20 + k), np.random.default_rng(k)
    labels = np.array([1] * k + [0] * k)
    points = {name: rng.uniform(0, 1, (2 * k, 2)) * [size[1] - 1, size[0] - 1] for name, size in SIZES.items()}
    expected = {name: _official_cascade(predictor, images[name], points[name], labels, multimask) for name in SIZES}

    frames = {name: input_frame(size, "padded", 512) for name, size in SIZES.items()}
    embeddings = torch.cat(
        [
            embed(sam, normalise(torch.from_numpy(to_input(image, "padded", 512, 518)), sam)[None])
            for image in images.values()
        ]
    )
    batch = np.stack([scale_points(points[name], size, frames[name].size) for name, size in SIZES.items()])
    results = run_cascade(
        decoder,
        embeddings,
        torch.from_numpy(batch).float(),
        torch.from_numpy(labels).expand(len(SIZES), -1),
        [Row(frames[name], size, np.zeros(4)) for name, size in SIZES.items()],
        Cps(multimask, "iou", "chosen", "mask", 0.0, "previous"),
    )

    for name, result in zip(SIZES, results, strict=True):
        assert not result.box_fallback
        for ours, (masks, iou, logits, best, box) in zip(result.steps, expected[name], strict=True):
            np.testing.assert_allclose(ours.logits, logits, atol=1e-4)
            np.testing.assert_allclose(ours.predicted_iou, iou, atol=1e-5)
            assert ours.chosen == best
            if box is not None:
                np.testing.assert_array_equal(ours.boxes[0], box)
            full = logits_in_frame(torch.from_numpy(ours.logits)[None], frames[name], SIZES[name])[0].numpy()
            assert np.abs(full[(full > 0) != masks]).max(initial=0) < 1e-5


@pytest.mark.parametrize("strip", [None, 300, 4096], ids=["as on a GPU", "uneven strips", "longer than the grid"])
def test_strips_of_cells_give_the_official_logits(predictor, monkeypatch, strip):
    sam = predictor.model
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(2, 64, 64, 64, generator=generator)
    points = torch.rand(2, 4, 2, generator=generator) * 512
    fed = torch.randn(2, 1, 256, 256, generator=generator)
    boxes = torch.tensor([[10.0, 20, 300, 400], [0, 0, 511, 511]])
    if strip is None:
        monkeypatch.setattr(absorbed, "_strips", lambda cells: [(slice(None), slice(None))])
    else:
        monkeypatch.setattr(absorbed, "_STRIP", strip)
    labels = torch.tensor([1, 1, 0, 0])
    ours = AbsorbedDecoder(sam)(embeddings, points, labels.expand(2, -1), boxes=boxes, mask_input=fed)
    predictor.original_size = predictor.input_size = (512, 512)
    predictor.is_image_set = True
    for row in range(2):
        predictor.features = embeddings[row : row + 1]
        _, iou, logits = predictor.predict(points[row].numpy(), labels.numpy(), boxes[row].numpy(), fed[row].numpy())
        np.testing.assert_allclose(ours.low_res_logits[row], logits, atol=1e-4)
        np.testing.assert_allclose(ours.predicted_iou[row], iou, atol=1e-5)


def test_bf16_is_close_to_the_official_logits(predictor):
    """Both orders of multiplication; bfloat16 has eight bits, so a few per cent of the logits' spread."""
    sam = predictor.model
    embeddings = torch.randn(2, 64, 64, 64, generator=torch.Generator().manual_seed(2))
    points, labels = torch.tensor([[[100.0, 200.0], [400.0, 90.0]]] * 2), torch.tensor([[1, 0]] * 2)
    exact = decode(sam, embeddings, points, labels).low_res_logits
    for decoder in (AbsorbedDecoder(sam, bf16=True), partial(decode, sam, bf16=True)):
        rounded = decoder(embeddings, points, labels).low_res_logits
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.12 * exact.std()
