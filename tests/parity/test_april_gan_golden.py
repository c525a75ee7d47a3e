"""APRIL-GAN's own code, stored: tokens, text features, maps, losses, gradients and optimiser steps."""

import json

import numpy as np
import open_clip
import pytest
import torch
import yaml

from cascade.backbones.clip.backbone import image_tensor, image_tokens, mean_text_feature
from cascade.backbones.clip.ensemble import PromptEnsemble
from cascade.configs.loader import PROMPTS
from cascade.localisers.patch_text import (
    anomaly_map,
    build_adapter,
    grid_logits,
    image_score,
    layer_maps,
    logit_margin,
)
from cascade.localisers.squares import squared
from cascade.losses import dice_loss, focal_loss, segmentation_loss
from tests.parity.rules import clip_weight, golden_clip, golden_files

LAYERS = (6, 12, 18, 24)


@pytest.fixture(scope="module", params=golden_files("clip", "aprilgan_*.npz"), ids=lambda path: path.stem)
def case(request):
    return np.load(request.param)


@pytest.fixture(scope="module")
def config(case):
    return json.loads(str(case["config_json"]))


@pytest.fixture(scope="module")
def model(case, config):
    return golden_clip(config, str(case["salt"]))


@pytest.fixture(scope="module")
def ensemble():
    data = yaml.safe_load((PROMPTS / "april_gan.yaml").read_text())
    return PromptEnsemble(tuple(data["normal"]), tuple(data["abnormal"]), tuple(data["templates"]))


@pytest.fixture(scope="module")
def text(model, case, ensemble):
    features = []
    for words in case["class_names"]:
        normal, abnormal = ensemble.sentences(str(words))
        features.append(torch.stack([mean_text_feature(model, normal), mean_text_feature(model, abnormal)], dim=1))
    return torch.stack(features)


@pytest.fixture(scope="module")
def tokens(model, case):
    return image_tokens(model, torch.from_numpy(case["image_tensor"]), LAYERS)


@pytest.fixture
def adapter(case, config):
    width, embed = config["vision_cfg"]["width"], config["embed_dim"]
    shapes = {f"fc.{i}.weight": (embed, width) for i in range(4)} | {f"fc.{i}.bias": (embed,) for i in range(4)}
    salt = str(case["salt"])
    return build_adapter({name: torch.from_numpy(clip_weight(name, shape, salt)) for name, shape in shapes.items()})


def test_sentences(case, ensemble):
    for index, words in enumerate(case["class_names"]):
        normal, abnormal = ensemble.sentences(str(words))
        assert [len(normal), len(abnormal)] == case["sentence_counts"][index].tolist() == [245, 175]
    first = {
        tuple(row) for row in open_clip.tokenize(ensemble.sentences(str(case["class_names"][0]))[0]).numpy().tolist()
    }
    assert {tuple(row) for row in case["tokens_normal_0"].tolist()} <= first


def test_preprocessing(case, config):
    side = int(config["image_size_run"])
    for index in range(2):
        tensor = image_tensor(squared(case[f"image_{index}_uint8"], side))
        np.testing.assert_allclose(tensor, case["image_tensor"][index], atol=1e-6)


def test_text_features(case, text):
    for index in range(2):
        np.testing.assert_allclose(text[index], case[f"text_features_{index}"], atol=1e-4)


def test_tokens_and_pooled_features(case, tokens):
    for layer, block in zip(LAYERS, tokens.blocks, strict=True):
        np.testing.assert_allclose(block, case[f"tokens_after_block_{layer}"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tokens.pooled, case["image_features_raw"], rtol=1e-4, atol=1e-4)


def test_maps_and_image_scores(case, tokens, text, adapter):
    with torch.inference_mode():
        logits = grid_logits(adapter, tokens.blocks, text)
        size = case["map_final"].shape[1:]
        maps = layer_maps(logits, size)
        whole, margin = anomaly_map(logits, size), logit_margin(logits, size)
    for index, layer in enumerate(LAYERS):
        flat = logits[:, index].flatten(2).transpose(1, 2)
        np.testing.assert_allclose(flat, case[f"logits_grid_{layer}"], atol=1e-3)
        np.testing.assert_allclose(maps[:, index], case[f"map_layer_{layer}"], atol=1e-4)
    np.testing.assert_allclose(4 * whole, case["map_final"], atol=1e-4)
    assert np.isfinite(margin.numpy()).all()
    np.testing.assert_allclose(image_score(tokens.pooled, text), case["image_score"], atol=1e-4)


def test_losses_gradients_and_three_adam_steps(case, tokens, text, adapter):
    blocks, text = [block.clone() for block in tokens.blocks], text.clone()
    mask = torch.from_numpy(case["mask_binary"])
    size = mask.shape[1:]
    optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-3, betas=(0.5, 0.999))

    losses = []
    for step in range(3):
        maps = layer_maps(grid_logits(adapter, blocks, text), size)
        loss = segmentation_loss(maps, mask)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            for index in range(4):
                two = torch.stack([1 - maps[:, index], maps[:, index]], dim=1).detach()
                assert float(focal_loss(two, mask)) == pytest.approx(float(case["focal_per_layer"][index]), rel=1e-4)
                assert float(dice_loss(maps[:, index].detach(), mask)) == pytest.approx(
                    float(case["dice_per_layer"][index]), rel=1e-4
                )
            for name, parameter in adapter.named_parameters():
                expected = case[f"grad.{name}"]
                atol = 1e-5 * float(np.abs(expected).max())
                np.testing.assert_allclose(parameter.grad, expected, rtol=1e-3, atol=atol)
        optimiser.step()

    expected = [case["loss_sum"], case["loss_sum_before_second_step"], case["loss_sum_before_third_step"]]
    np.testing.assert_allclose(losses, np.array(expected, dtype=np.float64), rtol=1e-4)
    for name, parameter in adapter.named_parameters():
        np.testing.assert_allclose(parameter.detach(), case[f"after_three_steps.{name}"], atol=6e-3)
