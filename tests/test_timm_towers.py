"""Models of open_clip whose image tower is one of timm's: against open_clip and timm themselves; which can be read."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from cascade.backbones.clip.backbone import (
    build_clip,
    compile_blocks,
    image_tensor,
    image_tokens,
    model_names,
    normalisation,
    sentence_features,
    unreadable,
    wordless,
)
from cascade.backbones.clip.timm_tower import plain_towers, refused_side, tower_of
from cascade.backbones.features.timm_network import Unsuitable
from tests.tiny import SMALL_CLIP, SMALL_TIMM_CLIP

TEXT = {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "class token": SMALL_TIMM_CLIP,
    "rotary positions, pooled by attention": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None},
        "text_cfg": TEXT | {"context_length": 32},
    },
    "a register and no class token, a bias of the logits": {
        "embed_dim": 96,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": TEXT | {"context_length": 64, "pool_type": "last", "no_causal_mask": True},
    },
    "a linear projection, open_clip's own text tower": {
        "embed_dim": 48,
        "vision_cfg": {"timm_model_name": "test_vit4", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT | {"context_length": 77},
    },
}
NATIVE = {"vit_pe_core_tiny_patch16_384": 384}
LAYERS = (1, 4)
PER_KIND = (
    "EVA01-g-14",
    "EVA02-L-14-336",
    "MobileCLIP-B",
    "PE-Core-L-14-336",
    "PE-Core-bigG-14-448",
    "ViT-SO400M-14-SigLIP2-378",
    "ViTamin-S",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
)


def drawn(config: dict[str, Any]) -> Any:
    """open_clip's own model with random weights."""
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    given = {name: deepcopy(config[name]) for name in ("embed_dim", "vision_cfg", "text_cfg")}
    model = kind(**given, init_logit_bias=config.get("init_logit_bias")).eval().requires_grad_(False)
    for value in model.parameters():
        value.add_(torch.randn_like(value), alpha=0.02)  # some begin as zeros or ones
    return model


@pytest.fixture(scope="module", params=TOWERS)
def pair(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    config = TOWERS[request.param]
    return config, drawn(config)


@pytest.mark.parametrize("larger", [0, 64])
@torch.inference_mode()
def test_tokens_and_features_are_those_of_timm_and_open_clip(pair: tuple[dict[str, Any], Any], larger: int) -> None:
    config, theirs = pair
    side = NATIVE.get(config["vision_cfg"]["timm_model_name"], 160) + larger
    ours = build_clip(config, theirs.state_dict(), side, quick_gelu=False)
    theirs = deepcopy(theirs)
    theirs.visual.set_input_size((side, side))
    trunk, images = theirs.visual.trunk, torch.randn(2, 3, side, side)

    found = image_tokens(ours, images, LAYERS)
    torch.testing.assert_close(found.pooled, theirs.encode_image(images), atol=1e-5, rtol=1e-5)
    numbers = [layer - 1 for layer in LAYERS]
    levels = trunk.forward_intermediates(
        images, indices=numbers, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    for own, (patches, prefix) in zip(found.blocks, levels, strict=True):
        first = patches.mean(dim=1) if trunk.cls_token is None else prefix[:, 0]
        assert own.shape == (2, 1 + (side // 16) ** 2, trunk.embed_dim)
        torch.testing.assert_close(own[:, 0], first, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own[:, 1:], patches, atol=1e-5, rtol=1e-5)

    sentences = ["a photo of a damaged bottle", "a photo of a perfect bottle"]
    ids = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])(sentences)
    torch.testing.assert_close(sentence_features(ours, sentences), theirs.encode_text(ids))
    assert tower_of(config) == (trunk.embed_dim, len(trunk.blocks), 16)


@torch.inference_mode()
def test_weights_with_the_older_names_of_a_text_tower_are_read() -> None:
    """As open_clip named it before it had a module of its own."""
    theirs = drawn(SMALL_TIMM_CLIP)
    state = {name.removeprefix("text."): value for name, value in theirs.state_dict().items()}
    ours = build_clip(SMALL_TIMM_CLIP, state, 160, quick_gelu=False)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_weights_that_do_not_fit_are_refused() -> None:
    state = drawn(SMALL_TIMM_CLIP).state_dict()
    with pytest.raises(ValueError, match="extra"):
        build_clip(SMALL_TIMM_CLIP, state | {"extra": torch.zeros(1)}, 160, quick_gelu=False)
    with pytest.raises(ValueError, match="no multiple of the patch side 16"):
        build_clip(SMALL_TIMM_CLIP, state, 150, quick_gelu=False)


@pytest.mark.parametrize("config", [SMALL_TIMM_CLIP, SMALL_CLIP], ids=["timm", "own"])
@torch.inference_mode()
def test_a_model_trained_on_images_normalised_otherwise_sees_them_so(config: dict[str, Any]) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.125)
    state = drawn(config).state_dict()
    square = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    plain = torch.from_numpy(square).permute(2, 0, 1)[None] / 255
    wanted = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    as_trained = image_tokens(build_clip(config, state, 160, quick_gelu=False), wanted, LAYERS)
    changing = build_clip(config, state, 160, quick_gelu=False, normalised=(mean, std))
    found = image_tokens(changing, image_tensor(square)[None], LAYERS)
    for own, other in zip((*found.blocks, found.pooled), (*as_trained.blocks, as_trained.pooled), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)
    assert changing.state_dict().keys() == state.keys()


def test_normalisation_is_that_of_the_tag() -> None:
    clip, half = normalisation("ViT-L-14", "openai"), ((0.5,) * 3, (0.5,) * 3)
    assert clip != half
    assert normalisation("ViT-L-14", "laion2b_s32b_b82k") == half
    assert normalisation("PE-Core-L-14-336", "meta") == half
    assert normalisation("PE-Core-L-14-336", "openai") == half  # no tag of this model: all that it has agree
    assert normalisation("ViT-L-14", "mine") == clip  # those of this model do not
    assert normalisation("MobileCLIP-B", "datacompdr") == ((0.0,) * 3, (1.0,) * 3)
    assert normalisation("small", "openai") == clip


def test_blocks_of_timm_are_compiled() -> None:
    model = build_clip(SMALL_TIMM_CLIP, drawn(SMALL_TIMM_CLIP).state_dict(), 160, quick_gelu=False)
    compile_blocks(model)
    blocks = model.visual.trunk.blocks  # type: ignore[union-attr]
    assert all(block._compiled_call_impl is not None for block in blocks)  # type: ignore[union-attr]


def configs() -> dict[str, dict[str, Any]]:
    return {name: open_clip.get_model_config(name) for name in open_clip.list_models()}


def test_which_models_can_be_read() -> None:
    names = set(model_names())
    assert {"PE-Core-L-14-336", "PE-Core-bigG-14-448", "EVA02-L-14-336", "MobileCLIP-B", "ViT-L-14-336"} <= names
    refused = {name: unreadable(config) for name, config in configs().items() if name not in names}
    assert refused["RN50"] == "its image tower is a ResNet, which has no blocks of tokens"
    for name in ("convnext_base", "swin_base_patch4_window7_224", "MobileCLIP-S1"):
        assert "has no row of equal blocks of tokens" in str(refused[name])
    assert refused["nllb-clip-base-siglip"] == "its text tower would have to be downloaded from a hub"
    assert refused["coca_ViT-L-14"] == "its text tower has a form of its own"
    mute = {name for name, reason in refused.items() if reason is None}
    assert {"ViT-B-16-SigLIP2", "ViT-SO400M-14-SigLIP", "ViT-L-14-CLIPA"} <= mute
    assert all(wordless(open_clip.get_model_config(name)) for name in mute)


def test_a_tower_that_is_not_read_has_no_row_of_equal_blocks() -> None:
    names = {config["vision_cfg"].get("timm_model_name") for config in configs().values()} - {None}
    assert names - plain_towers()
    for name in names - plain_towers():
        with pytest.raises(Unsuitable, match="stages of several sizes"):
            tower_of({"vision_cfg": {"timm_model_name": name}})


@pytest.mark.parametrize("name", PER_KIND)
@torch.inference_mode()
def test_a_model_of_each_kind_is_built_at_another_side(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no autocast: shapes alone."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: nullcontext())
    config = open_clip.get_model_config(name)
    width, depth, patch = tower_of(config)
    side = patch * 20
    with torch.device("meta"):
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        given = {part: config[part] for part in ("embed_dim", "vision_cfg", "text_cfg")}
        state = kind(**given, init_logit_bias=config.get("init_logit_bias")).state_dict()
        model = build_clip(config, state, side, quick_gelu=False, normalised=normalisation(name, "openai"))
        found = image_tokens(model, torch.empty(1, 3, side, side), (1, depth))
    assert [tuple(block.shape) for block in found.blocks] == [(1, 401, width)] * 2
    assert found.pooled.shape == (1, config["embed_dim"])
    assert refused_side(config["vision_cfg"]["timm_model_name"], side) is None
