"""Networks that ``torch.compile`` made give what the plain ones give."""

from __future__ import annotations

import os
import shutil

import open_clip
import pytest
import torch

from cascade.backbones.clip.backbone import build_clip, compile_blocks, image_tokens
from cascade.backbones.sam.absorbed import AbsorbedDecoder
from cascade.backbones.sam.image import embed
from tests.tiny import SMALL_CLIP, tiny_sam

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_the_encoder(bf16):
    sam = tiny_sam()
    inputs = torch.randn(2, 3, 64, 64)
    plain, compiled = (embed(sam, inputs, bf16=bf16, compiled=each) for each in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=0.05 if bf16 else 1e-5)
    assert not torch.equal(embed(sam, inputs + 1, bf16=bf16, compiled=True), compiled)


@pytest.mark.slow
def test_the_decoder():
    sam = tiny_sam()
    prompts = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]).expand(2, -1), "mask_input": torch.randn(2, 1, 16, 16)}
    embeddings, points, labels = torch.randn(2, 32, 4, 4), 64 * torch.rand(2, 3, 2), torch.ones(2, 3)
    plain, compiled = (
        AbsorbedDecoder(sam, compiled=each)(embeddings, points, labels, **prompts) for each in (False, True)
    )
    torch.testing.assert_close(compiled.low_res_logits, plain.low_res_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(compiled.predicted_iou, plain.predicted_iou, rtol=0, atol=1e-5)


def test_clip():
    config = SMALL_CLIP
    torch.manual_seed(0)
    state = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).state_dict()
    plain, compiled = (build_clip(config, state, 64, quick_gelu=False) for _ in range(2))
    compile_blocks(compiled)
    images = torch.randn(2, 3, 64, 64)
    for own, theirs in zip(*(image_tokens(each, images, (2, 8)).blocks for each in (compiled, plain)), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-4)
