"""Training of the linear layers: what is cached, what is learnt, and what an adapter says about itself."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cascade.configs.loader import load_experiment
from cascade.configs.schema import TrainConfig
from cascade.flows.generate import generate_dataset
from cascade.flows.run import Observer
from cascade.flows.run.prepare import find_leak
from cascade.flows.run.reading import read_images
from cascade.flows.train import train_april_gan
from cascade.localisers.patch_text import anomaly_map, build_adapter, grid_logits
from cascade.storage.datasets import read_image
from cascade.storage.errors import ConfigError, DataError, WeightsError
from cascade.storage.weights import LocatedWeights, file_sha256
from cascade.tasks.tokens import TOKENS
from cascade.tasks.training import april_gan as training
from tests.tiny import mini_clip_state


class Quiet(Observer):
    def finished(self, result):
        self.result = result

    def damaged(self, error):
        raise error


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aux") / "aux"
    generate_dataset(folder, categories=["nut", "wood"], good=2, defective=4, size=96)
    return folder


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory):
    """The mini CLIP with random weights and the standard names."""
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(mini_clip_state(), path)
    return path


@pytest.fixture
def experiment(dataset, clip_weights):
    return load_experiment(
        "mini", [f"dataset.path={dataset}", f"localise.weights={clip_weights}", "localise.image_side=128"]
    )


def _train(experiment, tmp_path, config, store=None, name="adapter"):
    losses, quiet = [], Quiet()
    out = tmp_path / f"{name}.safetensors"
    train_april_gan(experiment, config, out, store=store or tmp_path / "store", observer=quiet, on_epoch=losses.append)
    return out, [epoch.loss for epoch in losses], quiet.result


def test_loss_falls_and_tokens_are_cached(experiment, tmp_path):
    out, losses, first = _train(experiment, tmp_path, TrainConfig(epochs=6, batch_size=4))
    assert losses[-1] < losses[0]
    assert (first.stage, first.computed) == ("tokens", 12)
    again, same, second = _train(experiment, tmp_path, TrainConfig(epochs=6, batch_size=4), name="again")
    assert (second.hits, second.computed) == (12, 0)
    assert same == losses
    assert again.read_bytes() == out.read_bytes()


def test_one_epoch_equals_a_training_loop_by_hand(experiment, tmp_path, clip_weights):
    """Adam on focal + Dice over the cached tokens, in the seeded order; written out with plain torch."""
    from cascade.localisers.patch_text import LinearAdapter, layer_maps
    from cascade.losses import segmentation_loss
    from cascade.tasks.stage import Run
    from cascade.tasks.words import text_features

    out, _, _ = _train(experiment, tmp_path, TrainConfig(epochs=1, batch_size=5, learning_rate=0.01))
    located = LocatedWeights(clip_weights, file_sha256(clip_weights), "path")
    run = Run(experiment, read_images(experiment, tmp_path).manifest, tmp_path / "store", {"clip": located})
    tokens = TOKENS.artefact(run)
    texts = text_features(run, {"nut", "wood"})
    torch.manual_seed(111)
    adapter = LinearAdapter(2, 64, 128)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=0.01, betas=(0.5, 0.999))
    order = np.random.default_rng(111).permutation(12)
    size = (experiment.localise.image_side,) * 2
    for start in range(0, 12, 5):
        chosen = [run.manifest.records[index] for index in order[start : start + 5]]
        blocks = torch.stack([torch.from_numpy(tokens.read(r.image_id).arrays["tokens_128"]).float() for r in chosen])
        masks = np.stack([training.mask_in_frame(training._mask(run, r), size) for r in chosen])
        text = torch.stack([texts[r.category] for r in chosen]).clone()
        loss = segmentation_loss(
            layer_maps(grid_logits(adapter, blocks.unbind(1), text), size), torch.from_numpy(masks)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, adapter.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_goes_on_from_another_adapter_and_remembers_it(experiment, tmp_path, dataset):
    first, losses, _ = _train(experiment, tmp_path, TrainConfig(epochs=6, batch_size=4))
    kept = first.rename(tmp_path / "first.safetensors")
    second, more, _ = _train(experiment, tmp_path, TrainConfig(epochs=1, batch_size=4, start=str(kept)))
    assert more[0] < losses[0]
    assert file_sha256(kept) != file_sha256(second)

    generate_dataset(tmp_path / "other", categories=["tile"], good=1, defective=2, size=96)
    elsewhere = load_experiment(
        "mini", [f"dataset.path={tmp_path / 'other'}", f"localise.weights={experiment.localise.weights}"]
    )
    third, _, _ = _train(elsewhere, tmp_path, TrainConfig(epochs=1, batch_size=4, start=str(second)), name="third")
    manifest = read_images(experiment, tmp_path).manifest
    assert "was trained on 12 of the 12 images" in find_leak(
        experiment, manifest, LocatedWeights(third, file_sha256(third), "path")
    )


def test_a_start_that_does_not_exist_is_named(experiment, tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        _train(experiment, tmp_path, TrainConfig(epochs=1, start=str(tmp_path / "nowhere.safetensors")))


def test_mosaics_are_made_of_one_category(experiment, tmp_path):
    """A 2 x 2 canvas of the category's own images, masks alike."""
    from cascade.tasks.stage import Run

    run = Run(experiment, read_images(experiment, tmp_path).manifest, tmp_path, {})
    image, mask = training._mosaic(run, "nut", np.random.default_rng(1))
    assert image.shape == (192, 192, 3)
    assert mask.shape == (192, 192)
    own = [record for record in run.manifest if record.category == "nut"]
    pictures = {record.path: read_image(run.image_path(record)) for record in own}
    for top in (0, 96):
        for left in (0, 96):
            quarter = image[top : top + 96, left : left + 96]
            (path,) = [path for path, picture in pictures.items() if np.array_equal(picture, quarter)]
            (record,) = [record for record in own if record.path == path]
            np.testing.assert_array_equal(mask[top : top + 96, left : left + 96], training._mask(run, record))


@pytest.mark.slow
def test_mosaics_change_the_training(experiment, tmp_path):
    plain, _, _ = _train(experiment, tmp_path, TrainConfig(epochs=1, batch_size=6))
    before = plain.read_bytes()
    mosaic, _, _ = _train(experiment, tmp_path, TrainConfig(epochs=1, batch_size=6, mosaic=1.0), name="mosaic")
    assert mosaic.read_bytes() != before


def test_an_adapter_knows_what_it_was_trained_on(experiment, tmp_path):
    out, _, _ = _train(experiment, tmp_path, TrainConfig(epochs=1))
    with safe_open(out, framework="numpy") as file:
        said = json.loads(file.metadata()["training"])
    manifest = read_images(experiment, tmp_path).manifest
    assert said["image_ids"] == sorted({record.image_id for record in manifest})
    assert (said["dataset"], said["categories"]) == ("aux", ["nut", "wood"])
    located = LocatedWeights(out, file_sha256(out), "path")
    assert "12 of the 12 images" in find_leak(experiment, manifest, located)
    adapter = build_adapter(load_file(out))
    logits = grid_logits(adapter, [torch.randn(1, 1 + 9, 64)] * 2, torch.randn(1, 128, 2))
    assert anomaly_map(logits, (30, 30)).shape == (1, 30, 30)


def test_a_foreign_adapter_is_judged_by_what_the_configuration_says(dataset, tmp_path):
    path = tmp_path / "visa_pretrained.pth"
    torch.save({"trainable_linearlayer": {"fc.0.weight": torch.zeros(1, 1), "fc.0.bias": torch.zeros(1)}}, path)
    located = LocatedWeights(path, file_sha256(path), "path")
    silent = load_experiment("mini", [f"dataset.path={dataset}"])
    assert find_leak(silent, read_images(silent, tmp_path).manifest, located) is None
    told = load_experiment("mini", [f"dataset.path={dataset}", "localise.adapter_trained_on=[AUX]"])
    assert "aux" in find_leak(told, read_images(told, tmp_path).manifest, located)


def test_authors_checkpoint_layout_is_loaded(tmp_path):
    from cascade.tasks.execution.checkpoints import read_state

    state = {f"fc.{i}.weight": torch.randn(6, 5) for i in range(4)} | {f"fc.{i}.bias": torch.randn(6) for i in range(4)}
    path = tmp_path / "mvtec_pretrained.pth"
    torch.save({"trainable_linearlayer": state}, path)
    adapter = build_adapter(read_state(path, file_sha256(path)))
    torch.testing.assert_close(adapter.fc[2].weight.detach(), state["fc.2.weight"])


def test_training_needs_defective_images_with_masks(dataset, clip_weights, tmp_path):
    good = tmp_path / "good"
    generate_dataset(good, categories=["nut"], good=2, defective=0, size=96)
    experiment = load_experiment("mini", [f"dataset.path={good}", f"localise.weights={clip_weights}"])
    with pytest.raises(DataError, match="needs defective images"):
        _train(experiment, tmp_path, TrainConfig(epochs=1))


def test_output_name(experiment, tmp_path):
    with pytest.raises(ConfigError, match="safetensors"):
        train_april_gan(experiment, TrainConfig(), tmp_path / "a.pth", store=tmp_path)
