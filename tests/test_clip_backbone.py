"""The vision tower against open_clip's own, which keeps its tokens batch first."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cascade.backbones.clip.backbone import build_clip, image_tokens
from tests.tiny import SMALL_CLIP

SIDE, IMAGES = 64, 3
LAYERS = (2, 8)


@pytest.fixture(scope="module")
def theirs():
    config = SMALL_CLIP
    torch.manual_seed(0)
    vision = config["vision_cfg"] | {"image_size": SIDE}
    return open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"]).eval(), config


@pytest.fixture(scope="module")
def ours(theirs):
    model, config = theirs
    return build_clip(config, model.state_dict(), SIDE, quick_gelu=False)


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 0.1)])
def test_tokens_are_those_of_open_clip(theirs, ours, bf16, tolerance):
    images = torch.randn(IMAGES, 3, SIDE, SIDE)
    tokens = image_tokens(ours, images, LAYERS, bf16=bf16)
    plain = image_tokens(theirs[0], images, LAYERS)
    for own, other in zip((*tokens.blocks, tokens.pooled), (*plain.blocks, plain.pooled), strict=True):
        assert own.dtype == torch.float32
        assert own.is_contiguous()
        torch.testing.assert_close(own, other, rtol=0, atol=tolerance)


def test_a_tower_with_another_attention_stays_as_it_is(theirs):
    config = theirs[1]
    vision = config["vision_cfg"] | {"image_size": SIDE, "qk_norm": True}
    torch.manual_seed(1)
    plain = open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"]).eval()
    own = build_clip(config | {"vision_cfg": vision}, plain.state_dict(), SIDE, quick_gelu=False)
    images = torch.randn(IMAGES, 3, SIDE, SIDE)
    torch.testing.assert_close(image_tokens(own, images, LAYERS).blocks, image_tokens(plain, images, LAYERS).blocks)


def products_of_every_token(model, images):
    """Batched matrix products that have one product for each token of an image."""
    tokens = 1 + (SIDE // model.visual.patch_size[0]) ** 2
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        image_tokens(model, images, LAYERS, bf16=True)
    return [event for event in record.events() if event.name == "aten::bmm" and event.input_shapes[0][0] == tokens]


def test_bf16_multiplies_no_weight_for_every_token(theirs, ours):
    images = torch.randn(IMAGES, 3, SIDE, SIDE)
    assert products_of_every_token(theirs[0].requires_grad_(False), images)  # what is to be avoided
    assert not products_of_every_token(ours, images)
