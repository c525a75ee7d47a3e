"""AF-CLIP's own code, stored: text features, token sets, maps, losses, gradients and a step."""

import json

import numpy as np
import pytest
import torch

from cascade.backbones.clip.backbone import image_tensor, image_tokens, projected
from cascade.localisers.af_clip import AfClip
from cascade.localisers.learned_prompts import on_grid
from cascade.localisers.neighbour_tokens import (
    NEIGHBOURHOODS,
    AfAdapter,
    af_loss,
    averaged,
    build_af_adapter,
    grid_target,
    known_texts,
    summed_logits,
)
from cascade.localisers.squares import squared
from cascade.losses import binary_focal_loss, patch_alignment_loss
from tests.parity.rules import clip_weight, golden_clip, golden_files

LAYERS = (6, 12, 18, 24)


@pytest.fixture(scope="module", params=golden_files("clip", "afclip_*.npz"), ids=lambda path: path.stem)
def case(request):
    return np.load(request.param)


@pytest.fixture(scope="module")
def config(case):
    return json.loads(str(case["config_json"]))


@pytest.fixture(scope="module")
def model(case, config):
    return golden_clip(config, str(case["salt"]), positions="bilinear")


@pytest.fixture(scope="module")
def adapter(case, config):
    own = AfAdapter(config["vision_cfg"]["width"], config["text_cfg"]["width"], config["prompt_len"])
    shapes = {name: tuple(value.shape) for name, value in own.state_dict().items()}
    salt = str(case["salt"])
    return build_af_adapter({name: torch.from_numpy(clip_weight(name, shape, salt)) for name, shape in shapes.items()})


@pytest.fixture(scope="module")
def blocks(case, model):
    return image_tokens(model, torch.from_numpy(case["image_tensor"]), LAYERS).blocks


@pytest.fixture(scope="module")
def sets(adapter, model, blocks):
    with torch.inference_mode():
        return adapter.token_sets(model, blocks)


def test_preprocessing(case, config):
    for index in range(2):
        if f"image_{index}_uint8" in case:
            tensor = image_tensor(squared(case[f"image_{index}_uint8"], int(config["image_size_run"])))
            np.testing.assert_allclose(tensor, case["image_tensor"][index], atol=1e-6)


def test_text_features(case, model, adapter):
    with torch.inference_mode():
        raw = adapter.text_features(model)
    np.testing.assert_allclose(raw, case["text_features_raw"], rtol=1e-4, atol=1e-4)


def test_tokens_with_their_neighbours(case, blocks, adapter):
    compared = 0
    for layer, tokens in zip(LAYERS, blocks, strict=True):
        if f"tokens_after_block_{layer}" in case:
            np.testing.assert_allclose(tokens, case[f"tokens_after_block_{layer}"], rtol=1e-4, atol=1e-4)
        for side in NEIGHBOURHOODS:
            if (kept := f"aggregated_layer{layer}_r{side}") in case:
                np.testing.assert_allclose(averaged(tokens, side), case[kept], rtol=1e-4, atol=1e-4)
                compared += 1
            if (kept := f"adapter_output_layer{layer}_r{side}") in case:
                with torch.inference_mode():
                    adapted = adapter.adaptor(averaged(tokens, side))
                np.testing.assert_allclose(adapted, case[kept], rtol=1e-4, atol=1e-4)
                compared += 1
    assert compared > 1


def test_token_sets(case, model, blocks, adapter):
    with torch.inference_mode():
        raw = [
            projected(model, adapter.adaptor(averaged(tokens, side))) for tokens in blocks for side in NEIGHBOURHOODS
        ]
    np.testing.assert_allclose(torch.stack(raw), case["projected_tokens_12"], rtol=1e-4, atol=1e-4)


def test_maps_and_image_scores(case, model, adapter, sets):
    logits = summed_logits(sets, known_texts(adapter, model))
    np.testing.assert_allclose(logits, case["score_sum_before_softmax"], atol=1e-3)
    np.testing.assert_allclose(logits[:, 0].softmax(dim=-1)[:, 1], case["image_score"], atol=1e-4)
    cells = on_grid(logits[:, 1:])
    np.testing.assert_allclose(cells.softmax(dim=1)[:, 1:], case["map_grid"], atol=1e-4)
    size = case["map_after_gaussian"].shape[1:]
    for sigma, kept in ((0.0, "map_before_gaussian"), (4.0, "map_after_gaussian")):
        if kept not in case:
            continue
        localiser = AfClip(sides=(size[0],), layers=LAYERS, precision="fp32", sigma=sigma)
        for index in range(2):
            found = localiser.map_of({"logits": cells[index].numpy()}, size)
            np.testing.assert_allclose(found.values, case[kept][index], atol=1e-4)
            assert np.isfinite(found.ranking).all()


def test_losses(case, sets):
    target = grid_target(torch.from_numpy(case["mask_tensor_bicubic"])[:, 0], case["mask_grid"].shape[-1])
    np.testing.assert_array_equal(target[:, None], case["mask_grid"])
    image = binary_focal_loss(torch.from_numpy(case["image_score"]), torch.from_numpy(case["labels"]))
    assert float(image) == pytest.approx(float(case["loss_focal_cls"]), rel=1e-4)
    cells = torch.from_numpy(case["map_grid"])[:, 0]
    assert float(binary_focal_loss(cells, target)) == pytest.approx(float(case["loss_focal_mask"]), rel=1e-4)
    alignment = torch.stack([patch_alignment_loss(each[:, 1:], target.flatten(1)) for each in sets])
    # differences of means near 1, in float32
    np.testing.assert_allclose(alignment, case["loss_patch_alignment_per_token_set"], rtol=1e-4, atol=1e-6)
    assert float(alignment.max()) > 1e-4


def test_gradients_and_a_step(case, model, adapter, blocks):
    masks = torch.from_numpy(case["mask_tensor_bicubic"])[:, 0]
    adapter = build_af_adapter(adapter.state_dict()).requires_grad_(True)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-4, betas=(0.5, 0.999))
    loss = af_loss(adapter, model, [tokens.clone() for tokens in blocks], masks)
    assert float(loss.detach()) == pytest.approx(float(case["loss_total"]), rel=1e-4)
    loss.backward()
    clean = "grad_if_mask_not_overwritten."
    checked = 0
    for name, parameter in adapter.named_parameters():
        if clean + name in case:
            expected = case[clean + name]
            atol = 1e-5 * float(np.abs(expected).max())
            np.testing.assert_allclose(parameter.grad, expected, rtol=1e-3, atol=atol, err_msg=name)
            checked += 1
    assert checked >= 4
    optimiser.step()
    for name, parameter in adapter.named_parameters():
        if f"after_step.{name}" in case:  # the sign of theirs and of the clean gradient is nearly always one
            apart = np.abs(parameter.detach().numpy() - case[f"after_step.{name}"])
            assert (apart < 1e-5).mean() > 0.97, name
            assert apart.max() < 2.1e-4
    assert all(parameter.grad is None for parameter in model.parameters())
