"""The networks that come with the package do the real job on photographs that they were not trained on."""

from __future__ import annotations

import pytest

from configs.loader import load_experiment
from configs.settings import Settings
from flows.evaluate import evaluate
from flows.generate import generate_dataset
from flows.local_engine import execute_locally
from flows.prepare import prepare
from tasks.tables import images_table, results_table
from tasks.train_april_gan import adapter_training
from tests.flows.conftest import Recorder

CATEGORIES = ("bean", "carpet", "grid", "label", "metal plate", "pill", "tile", "wood")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    generate_dataset(folder / "data", categories=CATEGORIES, good=1, defective=4, size=384, seed=7)
    experiment = load_experiment("mini", [f"dataset.path={folder / 'data'}"])
    prepared = prepare(experiment, folder / "store", Settings())
    evaluate(prepared.run, execute_locally, Recorder())
    return prepared


def test_the_clip_map_finds_defects(prepared):
    results = results_table(prepared.run).set_index(["category", "step"])
    assert results.loc[("mean", "clip"), "pixel_auroc"] > 0.75


def test_the_cascade_does_not_lose_what_the_map_found(prepared):
    results = results_table(prepared.run).set_index(["category", "step"])
    last, first = results.loc[("mean", "points+box+logits")], results.loc[("mean", "clip")]
    assert last["pixel_auroc"] > first["pixel_auroc"] - 0.01
    assert last["pixel_ap"] > first["pixel_ap"]


def test_points_land_and_masks_are_drawn(prepared):
    images = images_table(prepared.run)
    last = images[(images["step"] == "points+box+logits") & (images["label"] == 1)]
    assert (~last["no_prompt"]).mean() > 0.5
    assert last["mask_area"][~last["no_prompt"]].between(1e-4, 0.9).mean() > 0.9


def test_the_shipped_adapter_says_what_it_was_trained_on(prepared):
    assert adapter_training(prepared.run.weights["adapter"])["dataset"] == "generated scenes"
