"""anomalib's WinCLIP, stored: windows, features, scores and the map, zero-shot."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cascade.backbones.clip.backbone import sentence_features
from cascade.backbones.clip.windows import window_cells, window_features
from cascade.localisers.winclip import WinClip, abnormal_probability, cell_scores, grid_map, score_map
from cascade.tasks.ensembles import load_ensemble
from tests.parity.rules import golden_clip, golden_files


@pytest.fixture(scope="module", params=golden_files("clip", "winclip_*.npz"), ids=lambda path: path.stem)
def case(request):
    return np.load(request.param)


@pytest.fixture(scope="module")
def config(case):
    return json.loads(str(case["config_json"]))


@pytest.fixture(scope="module")
def model(case, config):
    return golden_clip(config, str(case["salt"]))


@pytest.fixture(scope="module")
def found(model, case, config):
    return window_features(model, torch.from_numpy(case["image_tensor"])[:2], config["scales"])


@pytest.fixture(scope="module")
def method(config):
    return WinClip((int(config["image_size_run"]),), tuple(config["scales"]), "fp32")


@pytest.fixture(scope="module")
def texts(case, model, method):
    both = load_ensemble("winclip").sentences(str(case["class_name"]))
    return torch.stack([method.text_feature(sentence_features(model, each)) for each in both], dim=1)


def test_sentences(case):
    normal, abnormal = load_ensemble("winclip").sentences(str(case["class_name"]))
    assert [len(normal), len(abnormal)] == case["sentence_counts"].tolist() == [147, 84]
    normal, abnormal = load_ensemble("winclip_22").sentences(str(case["class_name"]))
    assert [len(normal), len(abnormal)] == [154, 88]
    assert len({*normal, *abnormal}) == 154 + 88


def test_windows(case, config):
    grid = int(config["image_size_run"]) // config["vision_cfg"]["patch_size"]
    for scale in config["scales"]:
        np.testing.assert_array_equal(window_cells(grid, scale).T, case[f"window_masks_scale{scale}"])
    assert [window_cells(15, scale).shape for scale in (2, 3)] == [(196, 4), (169, 9)]


def test_text_features(case, texts):
    raw = torch.from_numpy(case["text_embeddings_unnormalised_mean"])
    np.testing.assert_allclose(texts.T, torch.nn.functional.normalize(raw, dim=1), atol=1e-4)


def test_features_of_windows_and_of_the_image(case, config, found):
    np.testing.assert_allclose(found.pooled, case["image_embeddings"], rtol=1e-4, atol=1e-4)
    for scale, windows in zip(config["scales"], found.windows, strict=True):
        np.testing.assert_allclose(windows, case[f"window_embeddings_scale{scale}"], rtol=1e-4, atol=1e-4)
    across = case["wrong_axis_with_open_clip_3.3.window_embeddings_scale2"]
    assert np.abs(found.windows[0].numpy() - across).max() > 0.1


def test_windows_one_at_a_time_are_the_same(monkeypatch, model, case, config, found):
    monkeypatch.setattr("cascade.backbones.clip.windows._CELLS_AT_ONCE", 1)
    alone = window_features(model, torch.from_numpy(case["image_tensor"])[:1], config["scales"])
    for one, all_together in zip(alone.windows, found.windows, strict=True):
        np.testing.assert_allclose(one, all_together[:1], rtol=1e-4, atol=1e-5)


def test_scores_and_map(case, config, found, texts, method):
    both = texts.expand(2, -1, -1)
    whole = abnormal_probability(found.pooled[:, None], both)
    np.testing.assert_allclose(whole[:, 0], case["image_scores"], atol=1e-4)
    np.testing.assert_allclose(whole[:, 0], case["zero_shot_pred_score"], atol=1e-4)
    grid = case["multi_scale_scores"].shape[1]
    for scale, windows in zip(config["scales"], found.windows, strict=True):
        scores = abnormal_probability(windows, both)
        np.testing.assert_allclose(scores, case[f"window_scores_scale{scale}"], atol=1e-4)
        np.testing.assert_allclose(cell_scores(scores, grid, scale), case[f"patch_scores_scale{scale}"], atol=1e-4)

    looks = {"pooled": found.pooled}
    looks |= {f"windows_{scale}": each for scale, each in zip(config["scales"], found.windows, strict=True)}
    networks = SimpleNamespace(clip_config=config)
    kept, image_scores = method.compare(networks, looks, both)
    np.testing.assert_allclose(image_scores, case["zero_shot_pred_score"], atol=1e-4)
    np.testing.assert_allclose(grid_map(torch.from_numpy(kept["scores"])), case["multi_scale_scores"], atol=1e-4)
    size = case["zero_shot_map"].shape[1:]
    np.testing.assert_allclose(score_map(torch.from_numpy(kept["scores"]), size), case["zero_shot_map"], atol=1e-4)
    for image in range(2):
        values = method.map_of({"scores": kept["scores"][image]}, size).values
        np.testing.assert_allclose(values, case["zero_shot_map"][image], atol=1e-4)


def test_preprocessing_is_within_a_step_of_8_bits_but_at_edges(case, method):
    """Anomalib's tensors are not clamped, and ours are of 8 bits."""
    from cascade.localisers.squares import squared

    (side,) = method.sides
    for index in [each for each in range(3) if f"image_{each}_uint8" in case]:
        (ours,) = method.inputs([squared(case[f"image_{index}_uint8"], side)])
        apart = np.abs(ours.numpy() - case["image_tensor"][index])
        assert np.quantile(apart, 0.9) < 1 / 255 / 0.26
