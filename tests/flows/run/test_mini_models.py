"""The networks that come with the package do the real job on photographs that they were not trained on."""

from __future__ import annotations

import pytest

from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import evaluate
from cascade.flows.engines.local import execute_locally
from cascade.flows.generate import generate_dataset
from cascade.flows.run.prepare import prepare
from cascade.tasks.execution.adapters import adapter_training
from cascade.tasks.tables.results import images_table, results_table
from tests.flows.conftest import Recorder

CATEGORIES = (
    "bean",
    "bottle",
    "bracket",
    "carpet",
    "fabric",
    "grid",
    "label",
    "leather",
    "metal plate",
    "pill",
    "tile",
    "wood",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    generate_dataset(folder / "data", categories=CATEGORIES, good=1, defective=5, size=448, seed=7)
    experiment = load_experiment("mini", [f"dataset.path={folder / 'data'}"])
    prepared = prepare(experiment, folder / "store", Settings())
    evaluate(prepared.run, execute_locally, Recorder())
    return prepared


@pytest.fixture(scope="module")
def means(prepared):
    results = results_table(prepared.run).set_index(["category", "step"])
    return results.loc["mean"]


def test_the_clip_map_finds_defects(means):
    assert means.loc["clip", "pixel_auroc"] > 0.9
    assert means.loc["clip", "pixel_ap"] > 0.5
    assert means.loc["clip", "image_auroc"] > 0.8


@pytest.mark.parametrize(("metric", "margin"), [("pixel_f1max", 0.01), ("pixel_ap", 0.02)])
def test_the_last_step_is_better_than_the_map(means, metric, margin):
    assert means.loc["points+box+logits", metric] > means.loc["clip", metric] + margin


@pytest.mark.parametrize("metric", ["pixel_f1max", "pixel_ap"])
def test_the_last_step_keeps_what_the_first_drew(means, metric):
    """It gains next to nothing (MODEL_CARD.md of the mini SAM)."""
    assert means.loc["points+box+logits", metric] > means.loc["points", metric] - 0.005


def test_the_cascade_does_not_lose_what_the_map_found(means):
    assert means.loc["points+box+logits", "pixel_auroc"] > means.loc["clip", "pixel_auroc"] - 0.01


@pytest.mark.parametrize("step", ["points", "points+logits", "points+box+logits"])
def test_predicted_iou_ranks_the_masks(prepared, step):
    images = images_table(prepared.run)
    drawn = images[(images["step"] == step) & (images["label"] == 1) & ~images["no_prompt"]]
    assert drawn["predicted_iou"].corr(drawn["mask_iou"], method="spearman") > 0.3


def test_points_land_and_masks_are_drawn(prepared):
    images = images_table(prepared.run)
    last = images[(images["step"] == "points+box+logits") & (images["label"] == 1)]
    assert (~last["no_prompt"]).mean() > 0.5
    assert last["mask_area"][~last["no_prompt"]].between(1e-4, 0.9).mean() > 0.9


def test_the_shipped_adapter_says_what_it_was_trained_on(prepared):
    assert adapter_training(prepared.run.weights["adapter"])["dataset"] == "generated scenes"
