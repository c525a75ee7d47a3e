"""AnomalyCLIP's own code, stored: text features, features of the path of values, maps, losses, gradients and a step."""

import json

import numpy as np
import pytest
import torch

from cascade.backbones.clip.backbone import image_tensor
from cascade.backbones.clip.dpam import value_features
from cascade.localisers.anomaly_clip import AnomalyClip
from cascade.localisers.learned_prompts import (
    build_prompts,
    cosine_logits,
    known_features,
    layer_probabilities,
    on_grid,
    prompts_loss,
)
from cascade.localisers.squares import squared
from cascade.losses import dice_loss, focal_loss, glocal_loss
from tests.parity.rules import clip_weight, golden_clip, golden_files

CLEAN, LAST = (6, 12, 18, 24), (24,)
VARIANTS = {"l6_12_18_24": CLEAN, "l24": LAST}


@pytest.fixture(scope="module", params=golden_files("clip", "anomalyclip_*.npz"), ids=lambda path: path.stem)
def case(request):
    return np.load(request.param)


@pytest.fixture(scope="module")
def config(case):
    return json.loads(str(case["config_json"]))


@pytest.fixture(scope="module")
def model(case, config):
    return golden_clip(config, str(case["salt"]), positions="bilinear")


@pytest.fixture
def prompts(case, config):
    width, salt = config["text_cfg"]["width"], str(case["salt"])
    shapes = dict.fromkeys(("ctx_pos", "ctx_neg"), (1, 1, config["n_ctx"], width))
    shapes |= {f"compound_prompts_text.{i}": (config["t_n_ctx"], width) for i in range(config["depth"] - 1)}
    return build_prompts({name: torch.from_numpy(clip_weight(name, shape, salt)) for name, shape in shapes.items()})


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, case, model):
    layers = VARIANTS[request.param]
    return request.param, layers, value_features(model, torch.from_numpy(case["image_tensor"]), layers)


def test_preprocessing(case, config):
    for index in range(2):
        if f"image_{index}_uint8" in case:
            tensor = image_tensor(squared(case[f"image_{index}_uint8"], int(config["image_size_run"])))
            np.testing.assert_allclose(tensor, case["image_tensor"][index], atol=1e-6)


def test_text_features(case, model, prompts):
    with torch.inference_mode():
        embedded, _ = prompts.embedded(model)
        raw = prompts.features(model)
    if "prompts_first_20_positions" in case:
        np.testing.assert_allclose(embedded[:, :20], case["prompts_first_20_positions"], atol=1e-6)
    np.testing.assert_allclose(raw, case["text_features_raw"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(known_features(prompts, model).T, case["text_features"], atol=1e-4)


def test_features(case, variant):
    name, layers, found = variant
    for layer, block in zip(layers, found.blocks, strict=True):
        np.testing.assert_allclose(block, case[f"{name}.patch_feature_{layer}"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.pooled, case[f"{name}.image_feature_raw"], rtol=1e-4, atol=1e-4)


def test_older_code_returned_the_last_layer_four_times(case, model):
    found = value_features(model, torch.from_numpy(case["image_tensor"]), LAST)
    for layer in CLEAN:
        if (kept := f"aliased_l6_12_18_24.patch_feature_{layer}") in case:
            np.testing.assert_allclose(found.blocks[0], case[kept], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        4 * case["l24.map_after_gaussian"], case["aliased_l6_12_18_24.map_after_gaussian"], atol=1e-5
    )


def test_probabilities_maps_and_image_scores(case, variant, model, prompts):
    name, layers, found = variant
    texts = known_features(prompts, model)
    tokens = torch.stack(found.blocks, dim=1)
    probabilities = cosine_logits(tokens, texts).softmax(dim=-1).transpose(0, 1)
    np.testing.assert_allclose(probabilities, case[f"{name}.patch_probabilities"], atol=1e-4)
    scores = cosine_logits(found.pooled, texts).softmax(dim=-1)[:, 1]
    np.testing.assert_allclose(scores, case[f"{name}.image_score"], atol=1e-4)

    logits = on_grid(cosine_logits(tokens[:, :, 1:], texts)).numpy()
    size = case["mask_binary"].shape[1:]
    for sigma, kept in ((0.0, "map_before_gaussian"), (4.0, "map_after_gaussian")):
        if f"{name}.{kept}" not in case:
            continue
        localiser = AnomalyClip(sides=(size[0],), layers=layers, precision="fp32", sigma=sigma)
        for index in range(2):
            found_map = localiser.map_of({"logits": logits[index]}, size)
            np.testing.assert_allclose(len(layers) * found_map.values, case[f"{name}.{kept}"][index], atol=1e-4)
            assert np.isfinite(found_map.ranking).all()
            if layers == LAST and (aliased := f"aliased_l6_12_18_24.{kept}") in case:
                older = case[aliased][index]
                np.testing.assert_allclose(4 * found_map.values, older, atol=2e-4)


def test_losses(case, variant, model, prompts):
    name, layers, found = variant
    texts, mask = known_features(prompts, model), torch.from_numpy(case["mask_binary"]).bool()
    logits = on_grid(cosine_logits(torch.stack(found.blocks, dim=1)[:, :, 1:], texts))
    maps = layer_probabilities(logits, tuple(mask.shape[1:]))
    for index in range(len(layers)):
        own = maps[:, index]
        terms = [focal_loss(own, mask), dice_loss(own[:, 1], mask), dice_loss(own[:, 0], ~mask)]
        np.testing.assert_allclose(terms, case[f"{name}.loss_terms_focal_diceabn_dicenorm"][index], rtol=1e-4)
    whole = glocal_loss(cosine_logits(found.pooled, texts), maps, mask)
    expected = float(case[f"{name}.loss_pixel_x4"]) + float(case[f"{name}.loss_image_ce"])
    assert float(whole) == pytest.approx(expected, rel=1e-4)
    if layers == LAST:
        whole = glocal_loss(cosine_logits(found.pooled, texts), maps.expand(-1, 4, -1, -1, -1), mask)
        older = float(case["aliased_l6_12_18_24.loss_pixel_x4"]) + float(case[f"{name}.loss_image_ce"])
        assert float(whole) == pytest.approx(older, rel=1e-4)


def test_gradients_and_a_step(case, model, prompts):
    found = value_features(model, torch.from_numpy(case["image_tensor"]), LAST)
    cells, pooled = found.blocks[0][:, None, 1:].clone(), found.pooled.clone()
    prompts.requires_grad_(True)
    optimiser = torch.optim.Adam(prompts.parameters(), lr=1e-3, betas=(0.5, 0.999))
    loss = prompts_loss(prompts, model, cells, pooled, torch.from_numpy(case["mask_binary"]).bool())
    loss.backward()
    for name, parameter in prompts.named_parameters():
        expected = case[f"grad_l24.{name}"]
        # gradients of the deeper vectors are rounded to half precision, one way or the other
        of_largest = 2**-11 if name.startswith("compound") else 1e-5
        atol = of_largest * float(np.abs(expected).max())
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-3, atol=atol)
    optimiser.step()
    for name, parameter in prompts.named_parameters():
        apart = np.abs(parameter.detach().numpy() - case[f"after_step_l24.{name}"])
        assert (apart < 1e-4).mean() > 0.98, name
        assert apart.max() < 2.1e-3  # a step goes by the sign, which is chance where the gradient is near 0
    assert all(parameter.grad is None for parameter in model.parameters())
