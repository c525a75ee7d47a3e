"""Training of a localiser's own weights: what is cached, what is learnt, and what an adapter says about itself."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
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
from cascade.flows.train import train_method
from cascade.localisers.patch_text import anomaly_map, build_adapter, grid_logits
from cascade.storage.datasets import mask_in_frame, read_image
from cascade.storage.errors import ConfigError, DataError, WeightsError
from cascade.storage.weights import LocatedWeights, file_sha256
from cascade.tasks.tokens import TOKENS
from cascade.tasks.training.method_examples import Examples, mask_of, mosaic_of
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
    train_method(experiment, config, out, store=store or tmp_path / "store", observer=quiet, on_epoch=losses.append)
    return out, [epoch.loss for epoch in losses], quiet.result


def test_loss_falls_and_tokens_are_cached(experiment, tmp_path):
    out, losses, first = _train(experiment, tmp_path, TrainConfig(epochs=6, batch_size=4))
    assert losses[-1] < losses[0]
    assert (first.stage, first.computed) == ("tokens", 12)
    again, same, second = _train(experiment, tmp_path, TrainConfig(epochs=6, batch_size=4), name="again")
    assert (second.hits, second.computed) == (12, 0)
    assert same == losses
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_one_epoch_equals_a_training_loop_by_hand(experiment, tmp_path, clip_weights, optimiser):
    """Focal + Dice over the cached tokens, in the seeded order; written out with plain torch.

    Adam as APRIL-GAN has it, and AdamW with everything else, along half a cosine of three steps.
    """
    from cascade.localisers.patch_text import LinearAdapter, layer_maps
    from cascade.losses import segmentation_loss
    from cascade.tasks.stage import Run
    from cascade.tasks.words import text_features

    other = {"optimiser": "adamw", "betas": (0.9, 0.99), "weight_decay": 0.5, "schedule": "cosine"}
    changes = other if optimiser == "adamw" else {}
    out, _, _ = _train(experiment, tmp_path, TrainConfig(epochs=1, batch_size=5, learning_rate=0.01, **changes))
    located = LocatedWeights(clip_weights, file_sha256(clip_weights), "path")
    run = Run(experiment, read_images(experiment, tmp_path).manifest, tmp_path / "store", {"clip": located})
    tokens = TOKENS.artefact(run)
    texts = text_features(run, {"nut", "wood"})
    torch.manual_seed(111)
    adapter = LinearAdapter(2, 64, 128)
    steps = torch.optim.Adam(adapter.parameters(), lr=0.01, betas=(0.5, 0.999))
    if optimiser == "adamw":
        steps = torch.optim.AdamW(adapter.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.5)
    order = np.random.default_rng(111).permutation(12)
    size = (experiment.localise.image_side,) * 2
    for start in range(0, 12, 5):
        chosen = [run.manifest.records[index] for index in order[start : start + 5]]
        blocks = torch.stack([torch.from_numpy(tokens.read(r.image_id).arrays["tokens_128"]).float() for r in chosen])
        masks = np.stack([mask_in_frame(mask_of(run, r), size) for r in chosen])
        text = torch.stack([texts[r.category] for r in chosen]).clone()
        loss = segmentation_loss(
            layer_maps(grid_logits(adapter, blocks.unbind(1), text), size), torch.from_numpy(masks)
        )
        if optimiser == "adamw":
            steps.param_groups[0]["lr"] = 0.01 * (1.0, 0.75, 0.25)[start // 5]  # cosines of 0, 60 and 120 degrees
        steps.zero_grad()
        loss.backward()
        steps.step()
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, adapter.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_goes_on_from_another_adapter_and_remembers_it(experiment, tmp_path, dataset):
    first, losses, _ = _train(experiment, tmp_path, TrainConfig(epochs=6, batch_size=4))
    kept = first.rename(tmp_path / "first.safetensors")
    recipe = TrainConfig(epochs=1, batch_size=4, start=str(kept))
    second, more, _ = _train(experiment, tmp_path, recipe, name="second")
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
    examples = Examples(run, None, None, mosaic=1.0)
    nut = next(record for record in run.manifest if record.category == "nut")
    image, mask = mosaic_of(run, examples.draw(nut, np.random.default_rng(1)))
    assert image.shape == (192, 192, 3)
    assert mask.shape == (192, 192)
    own = [record for record in run.manifest if record.category == "nut"]
    pictures = {record.path: read_image(run.image_path(record)) for record in own}
    for top in (0, 96):
        for left in (0, 96):
            quarter = image[top : top + 96, left : left + 96]
            (path,) = [path for path, picture in pictures.items() if np.array_equal(picture, quarter)]
            (record,) = [record for record in own if record.path == path]
            np.testing.assert_array_equal(mask[top : top + 96, left : left + 96], mask_of(run, record))


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
        train_method(experiment, TrainConfig(), tmp_path / "a.pth", store=tmp_path)


class Killed(BaseException):
    """What no handler of errors stops."""


def _killed_after(epoch_to_die):
    def on_epoch(epoch):
        if epoch.number == epoch_to_die:
            raise Killed

    return on_epoch


def test_a_killed_training_goes_on_to_the_same_bytes(experiment, tmp_path):
    """With mosaics and a falling learning rate, which both depend on where the training stands."""
    recipe = TrainConfig(epochs=3, batch_size=5, mosaic=0.4, schedule="cosine", optimiser="adamw", weight_decay=0.1)
    whole, losses, _ = _train(experiment, tmp_path, recipe, name="whole")
    out, checkpoint = tmp_path / "killed.safetensors", tmp_path / "killed.checkpoint.pt"
    with pytest.raises(Killed):
        train_method(experiment, recipe, out, store=tmp_path / "store", observer=Quiet(), on_epoch=_killed_after(2))
    assert checkpoint.exists()
    assert not out.exists()
    with pytest.raises(ConfigError, match=r"killed\.checkpoint\.pt: was left by a training with another recipe"):
        _train(experiment, tmp_path, recipe.model_copy(update={"seed": 1}), name="killed")
    _, rest, _ = _train(experiment, tmp_path, recipe, name="killed")
    assert rest == losses[2:]
    assert out.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()
    again, _, _ = _train(experiment, tmp_path, recipe.model_copy(update={"schedule": "constant"}), name="again")
    assert load_file(again)["fc.0.weight"].ne(load_file(whole)["fc.0.weight"]).any()


def test_a_damaged_checkpoint_is_named(experiment, tmp_path):
    (tmp_path / "adapter.checkpoint.pt").write_bytes(b"half of it")
    with pytest.raises(WeightsError, match=r"adapter\.checkpoint\.pt: damaged"):
        _train(experiment, tmp_path, TrainConfig(epochs=1))


def test_held_out_categories_are_judged_and_not_learned_from(experiment, tmp_path, dataset, clip_weights):
    """The weights are those of the other category alone, and the numbers those of a run of the one held out."""
    from cascade.flows.run.experiment import run_experiment

    recipe = TrainConfig(epochs=2, batch_size=4, held_out=0.5)
    epochs = []
    out = tmp_path / "split.safetensors"
    train_method(experiment, recipe, out, store=tmp_path / "store", observer=Quiet(), on_epoch=epochs.append)
    with safe_open(out, framework="numpy") as file:
        said = json.loads(file.metadata()["training"])
    (learned,) = said["categories"]
    (judged,) = {"nut", "wood"} - {learned}
    assert said["held_out"] == [{"pixel_ap": e.pixel_ap, "pixel_f1max": e.pixel_f1max} for e in epochs]
    assert len(said["image_ids"]) == 6

    settings = [f"dataset.path={dataset}", f"localise.weights={clip_weights}", "localise.image_side=128"]
    alone = load_experiment("mini", [*settings, f"dataset.categories=[{learned}]"])
    other, _, _ = _train(alone, tmp_path, TrainConfig(epochs=2, batch_size=4), name="alone")
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, load_file(other)[name], rtol=0, atol=0)

    tested = [f"dataset.categories=[{judged}]", f"localise.adapter={out}", "refine.method=none", "score.frame=128"]
    found = run_experiment(
        load_experiment("mini", [*settings, *tested]), store=tmp_path / "store", out=tmp_path / "run"
    )
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    row = table[(table["category"] == judged) & (table["step"] == "clip")].iloc[0]
    assert found is not None
    assert epochs[-1].pixel_ap == pytest.approx(row["pixel_ap"], abs=1e-3)
    assert epochs[-1].pixel_f1max == pytest.approx(row["pixel_f1max"], abs=1e-3)


def test_one_category_cannot_be_held_out_and_learned_from(experiment, tmp_path):
    one = experiment.model_copy(update={"dataset": experiment.dataset.model_copy(update={"categories": ("nut",)})})
    with pytest.raises(DataError, match=r"held_out=0\.2 holds whole categories out, and only 'nut'"):
        _train(one, tmp_path, TrainConfig(held_out=0.2))


def test_only_what_is_trained_moves(experiment, tmp_path, clip_weights):
    """CLIP is the same object in memory before and after, with the same bits; the linear layers are not."""
    from cascade.tasks.execution.networks import networks_of

    located = LocatedWeights(clip_weights, file_sha256(clip_weights), "path")
    clip = networks_of(experiment, {"clip": located}).clip(128)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    first, _, _ = _train(experiment, tmp_path, TrainConfig(epochs=1, mosaic=0.5), name="one")
    second, _, _ = _train(experiment, tmp_path, TrainConfig(epochs=2, mosaic=0.5), name="two")
    assert clip is networks_of(experiment, {"clip": located}).clip(128)
    for name, value in clip.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(value.grad is None for value in clip.parameters())
    for name, value in load_file(first).items():
        assert not torch.equal(value, load_file(second)[name]), name


def test_a_card_stands_beside_the_weights(experiment, tmp_path, clip_weights):
    out, losses, _ = _train(experiment, tmp_path, TrainConfig(epochs=2, batch_size=4))
    card = out.with_suffix(".md").read_text()
    counts = "| nut | 2 | 4 |\n| wood | 2 | 4 |"
    for part in (file_sha256(out), file_sha256(clip_weights), counts, f"| 2 | {losses[1]:.4f} |", "batch_size 4"):
        assert part in card, part
    out.unlink()
    with pytest.raises(ConfigError, match=r"adapter\.md: is there already"):
        _train(experiment, tmp_path, TrainConfig(epochs=1))


def test_weights_of_another_method_are_refused(experiment, tmp_path, dataset):
    from cascade.flows.run.experiment import run_experiment

    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other, metadata={"training": json.dumps({"method": "winclip"})})
    chosen = load_experiment("mini", [f"dataset.path={dataset}", f"localise.adapter={other}"])
    with pytest.raises(WeightsError, match="was trained as winclip, not as april_gan"):
        run_experiment(chosen, store=tmp_path / "store", out=tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, dataset, clip_weights):
    """The same command under torchrun; shares of 3 and 2 images, and one batch of which one process has none."""
    command = ["-c", "from cascade.flows.cli import main; main()", "train", "april_gan", "--dataset", str(dataset)]
    options = [f"localise.weights={clip_weights}", "localise.image_side=128"]
    command += [part for each in options for part in ("--set", each)]
    recipe = ["epochs=2", "batch_size=5", "mosaic=0.3", "held_out=0.5", "seed=3"]
    command += [part for each in recipe for part in ("--train", each)]
    found = {}
    for size in (1, 2):
        place = [*command, "--store", str(tmp_path / f"store{size}"), "--out", str(tmp_path / f"{size}.safetensors")]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable]
        launched = [sys.executable, *(launcher if size == 2 else []), *place]
        ended = subprocess.run(launched, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("epoch 2 of 2") == 1
        found[size] = load_file(tmp_path / f"{size}.safetensors")
    for name, value in found[1].items():
        torch.testing.assert_close(value, found[2][name], rtol=1e-4, atol=1e-5)
