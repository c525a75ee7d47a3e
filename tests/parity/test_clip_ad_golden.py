"""CLIP-AD's own code, stored: SDP, SDP+ and representative vectors; CLIP Surgery's features and similarity."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from cascade.backbones.clip.backbone import sentence_features
from cascade.backbones.clip.dual_path import dual_path, stage_starts
from cascade.localisers.patch_text import build_adapter, layer_maps
from cascade.localisers.representative import representative
from cascade.localisers.sdp import Sdp
from cascade.localisers.sdp_plus import SdpPlus
from cascade.localisers.surgery import feature_surgery
from cascade.tasks.ensembles import load_ensemble
from tests.parity.rules import clip_weight, golden_clip, golden_files

LAYERS = (3, 6, 9, 12)


def files(pattern):
    return {"params": golden_files("clip", pattern), "ids": lambda path: path.stem, "scope": "module"}


@pytest.fixture(**files("clipad_sdp_*.npz"))
def case(request):
    return np.load(request.param)


@pytest.fixture(scope="module")
def config(case):
    return json.loads(str(case["config_json"]))


@pytest.fixture(scope="module")
def model(case, config):
    return golden_clip(config, str(case["salt"]))


@pytest.fixture(scope="module")
def options(config):
    visa = config.get("rep_dataset") == "visa"
    return {
        "sides": (int(config["image_size_run"]),),
        "layers": LAYERS,
        "aliased": True,
        "representative": config.get("rep_vec", "mean"),
        "dbscan_eps": 1.5 if visa else 0.5,
        "dbscan_min_samples": 25 if visa else 15,
        "sigma": 8.0,
        "precision": "fp32",
    }


@pytest.fixture(scope="module")
def networks(model, config):
    return SimpleNamespace(clip=lambda side: model, clip_config=config, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def paths(case, model):
    images = torch.from_numpy(case["image_tensor"])
    return dual_path(model, images, LAYERS, fresh=stage_starts(12), aliased=True)


@pytest.fixture(scope="module")
def texts(case, model, options):
    method, found = Sdp(**options), []
    for words in case["class_names"]:
        both = load_ensemble("clip_ad").sentences(str(words))
        assert [len(each) for each in both] == [198, 220]
        found.append(torch.stack([method.text_feature(sentence_features(model, each)) for each in both], dim=1))
    return torch.stack(found)


def test_text_features(case, texts):
    for index, found in enumerate(texts):
        np.testing.assert_allclose(found, case[f"text_features_{index}"], atol=1e-4)


def test_both_paths(case, model, paths):
    for index, layer in enumerate(LAYERS):
        kept = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(paths.surgery[index], case[f"surgery_tokens_{layer}"], **kept)
        np.testing.assert_allclose(paths.ordinary[index], case[f"ori_tokens_as_returned_{layer}"], **kept)
    images = torch.from_numpy(case["image_tensor"])
    clean = dual_path(model, images, LAYERS, fresh=stage_starts(12))
    for index, layer in enumerate(LAYERS):
        name = f"clean_ori_path_after_block_{layer}"
        if name in case:
            np.testing.assert_allclose(clean.ordinary[index], case[name], rtol=1e-4, atol=1e-4)
    assert (clean.ordinary[0] - paths.ordinary[0]).abs().max() > 0.1
    assert torch.equal(clean.ordinary[3], paths.ordinary[3])
    assert torch.equal(clean.surgery[0][:, 1:], paths.surgery[0][:, 1:])
    assert (clean.surgery[0][:, 0] - paths.surgery[0][:, 0]).abs().max() > 0.1


def test_feature_surgery(case, paths, texts):
    layers = [feature_surgery(functional.normalize(own, dim=-1), texts) for own in paths.surgery]
    np.testing.assert_allclose(torch.stack(layers).sum(dim=0), case["surgery_similarity_sum"], atol=1e-6)


def test_sdp_from_images_to_map_and_score(case, options, networks, texts):
    method = Sdp(**options)
    looks = method.look(networks, [torch.from_numpy(case["image_tensor"])])
    kept, scores = method.compare(networks, looks, texts)
    np.testing.assert_allclose(scores, case["sdp_text_prob"], atol=1e-4)
    size = case["sdp_map_gaussian8"].shape[1:]
    for index, expected in enumerate(case["sdp_map_gaussian8"]):
        found = method.map_of({"similarity": kept["similarity"][index]}, size)
        np.testing.assert_allclose(found.ranking, expected, atol=1e-6)
        order = np.argsort(expected, axis=None)
        assert (np.diff(found.values.ravel()[order]) > -1e-5).all()
        assert found.values.min() > 0
        assert found.values.max() < 1


@pytest.fixture
def adapter(case, config):
    width, embed, salt = config["vision_cfg"]["width"], config["embed_dim"], str(case["salt"])
    shapes = {f"fc.{i}.weight": (embed, width) for i in range(4)} | {f"fc.{i}.bias": (embed,) for i in range(4)}
    return build_adapter({name: torch.from_numpy(clip_weight(name, shape, salt)) for name, shape in shapes.items()})


def test_sdp_plus_from_images_to_map_and_score(case, options, networks, texts, adapter):
    networks = SimpleNamespace(**vars(networks), trained=lambda role, build, fault: adapter)
    method = SdpPlus(**options)
    kept, scores = method.compare(networks, method.look(networks, [torch.from_numpy(case["image_tensor"])]), texts)
    np.testing.assert_allclose(scores, case["sdp_text_prob"], atol=1e-4)
    for index, layer in enumerate(LAYERS):
        flat = kept["logits"][:, index].reshape(len(scores), 2, -1).transpose(0, 2, 1)
        np.testing.assert_allclose(flat, case[f"plus_logits_grid_{layer}"], atol=1e-3)
    size = case["plus_map_gaussian8"].shape[1:]
    for index, expected in enumerate(case["plus_map_gaussian8"]):
        found = method.map_of({name: each[index] for name, each in kept.items()}, size)
        np.testing.assert_allclose(found.ranking, expected, atol=1e-4)
        np.testing.assert_allclose(found.values, (expected / 4 + 0.25) / 1.5, atol=1e-4)


def test_sdp_plus_on_clean_tokens_gives_other_logits(case, options, networks, texts, adapter):
    networks = SimpleNamespace(**vars(networks), trained=lambda role, build, fault: adapter)
    method = SdpPlus(**options | {"aliased": False})
    kept, _ = method.compare(networks, method.look(networks, [torch.from_numpy(case["image_tensor"])]), texts)
    flat = kept["logits"].reshape(*kept["logits"].shape[:3], -1).swapaxes(2, 3)
    assert np.abs(flat[:, 0] - case["plus_logits_grid_3"]).max() > 0.1
    np.testing.assert_allclose(flat[:, 3], case["plus_logits_grid_12"], atol=1e-3)
    maps = layer_maps(torch.from_numpy(kept["logits"]), case["plus_map_gaussian8"].shape[1:]).sum(dim=1)
    np.testing.assert_allclose(maps, case["plus_linear_map_sum_if_clean_tokens"], atol=1e-4)


def test_losses_and_gradients_of_the_linear_layers(case, options, networks, paths, texts, adapter):
    masks = torch.from_numpy(case["mask_binary"])
    method = SdpPlus(**options)
    tokens = torch.stack(paths.ordinary, dim=1).clone()
    loss = method.loss(adapter, networks, {"tokens": tokens}, texts.clone(), masks)
    assert float(loss.detach()) == pytest.approx(float(case["loss_sum"]), rel=1e-4)
    assert float(case["loss_sum"]) == pytest.approx(float(case["focal_per_layer"].sum() + case["dice_per_layer"].sum()))
    loss.backward()
    for name, parameter in adapter.named_parameters():
        if f"grad.{name}" in case:
            expected = case[f"grad.{name}"]
            np.testing.assert_allclose(parameter.grad, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(**files("clipad_rvs_*.npz"))
def vectors(request):
    return np.load(request.param)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("mean", {"rule": "mean"}),
        ("pca", {"rule": "pca"}),
        ("kde", {"rule": "kde"}),
        ("mean_shift", {"rule": "mean_shift"}),
        ("dbscan_eps0.5_min15", {"rule": "dbscan", "eps": 0.5, "min_samples": 15}),
        ("dbscan_eps1.5_min25", {"rule": "dbscan", "eps": 1.5, "min_samples": 25}),
    ],
)
def test_representative_vectors(vectors, name, chosen):
    expected = vectors[f"rep_{name}"]
    for column, kind in enumerate(("normal", "abnormal")):
        found = representative(torch.from_numpy(vectors[f"embeddings_{kind}"]), **chosen)
        rounding = 0 if str(vectors[f"rep_{name}_dtype"]).endswith("32") else 1e-3  # one step of a float16
        np.testing.assert_allclose(found, expected[:, column], rtol=rounding, atol=1e-4)


def test_sentences(vectors):
    both = load_ensemble("clip_ad").sentences(str(vectors["class_name"]))
    assert [len(each) for each in both] == vectors["sentence_counts"].tolist() == [198, 220]
    for kind, sentences in zip(("normal", "abnormal"), both, strict=True):
        digest = hashlib.sha256("\n".join(sentences).encode()).hexdigest()
        assert digest == str(vectors[f"sentences_sha256_{kind}"])


def test_without_a_cluster_dbscan_says_so():
    with pytest.raises(ValueError, match=r"dbscan finds no cluster among 5 sentences with dbscan_eps=0.5"):
        representative(torch.eye(5), "dbscan", 0.5, 15)


@pytest.fixture(**files("clip_surgery_*.npz"))
def surgery(request):
    return np.load(request.param)


def test_clip_surgery(surgery):
    config = json.loads(str(surgery["config_json"]))
    model = golden_clip(config, str(surgery["salt"]), positions="bilinear")
    depth = config["vision_cfg"]["layers"]
    images = torch.from_numpy(surgery["image_tensor"])
    (features,) = dual_path(model, images, (depth,), branch=depth - 6).surgery
    np.testing.assert_allclose(features, surgery["image_features_raw"], rtol=1e-4, atol=1e-4)
    texts = torch.from_numpy(surgery["text_features"]).T.expand(len(images), -1, -1)
    similarity = feature_surgery(functional.normalize(features, dim=-1), texts, sharpness=2.0)
    np.testing.assert_allclose(similarity, surgery["similarity_surgery"], atol=1e-6)
