"""Two maps in one: the mean of what two methods say of an image, and the first alone where a batch is too small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cascade import Segmenter
from cascade.configs.loader import load_experiment
from cascade.configs.localisers import Fused, Localiser, Mutual, TrainedClip
from cascade.configs.settings import Settings
from cascade.flows.generate import generate_dataset
from cascade.flows.run.prepare import prepare
from cascade.tasks.localise import Maps
from cascade.tasks.stage import localised_id
from tests.flows.conftest import Cli

COMMON = ("refine.method=none", "score.frame=64", "runtime.device=cpu")
WEIGHT = 0.3
FUSED = (
    "localise.method=fused",
    "localise.batch.image_side=128",
    "localise.batch.share=0.5",
    f"localise.weight={WEIGHT}",
)
ALONE = ("localise.method=april_gan",)
BATCH = ("localise.method=mutual", "localise.image_side=128", "localise.share=0.5")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Nine images of one category and five of another, and a store that the tests share."""
    folder = tmp_path_factory.mktemp("fused")
    generate_dataset(folder / "data", categories=("carpet",), good=5, defective=4, size=96, seed=5)
    generate_dataset(folder / "data", categories=("tile",), good=3, defective=2, size=96, seed=5)
    return folder / "data", folder / "store"


def settings(*groups: tuple[str, ...]) -> list[str]:
    return [part for group in groups for each in group for part in ("--set", each)]


def maps(places: tuple[Path, Path], method: tuple[str, ...], category: str) -> dict[str, np.ndarray]:
    """By path, the map of each image of a category after a run."""
    data = [f"dataset.path={places[0]}", f"dataset.categories=[{category}]"]
    run = prepare(load_experiment("mini", [*data, *method, *COMMON]), places[1], Settings()).run
    return {record.path: Maps(run).of(localised_id(run, record), (64, 64)).values for record in run.manifest}


@pytest.fixture
def run_all(cli: Cli, places: tuple[Path, Path]) -> dict[str, pd.DataFrame]:
    """The tables of images of the three methods; mutual scoring has the one category that is large enough."""
    found = {}
    for name, method in (("fused", FUSED), ("alone", ALONE), ("batch", BATCH)):
        chosen = settings(method, COMMON, ("dataset.categories=[carpet]",) if name == "batch" else ())
        done = cli("run", "mini", "--dataset", places[0], "--store", places[1], "--out", name, *chosen)
        assert done.code == 0, done.err
        if name == "fused":
            assert (
                "tile: 5 different images are too few to judge each other (8 needed); each is judged alone" in done.out
            )
            assert "batch: images judged each other (carpet 9, tile alone)" in done.out
            assert "CLIP is told: 'carpet', 'tile'" in done.out
        found[name] = pd.read_parquet(Path(name) / "images.parquet").set_index("path")
    return found


def test_it_is_the_weighted_mean_of_both_or_the_first_alone(
    run_all: dict[str, pd.DataFrame], places: tuple[Path, Path]
) -> None:
    both, alone, batch = (maps(places, method, "carpet") for method in (FUSED, ALONE, BATCH))
    for path in both:
        assert np.allclose(both[path], (1 - WEIGHT) * alone[path] + WEIGHT * batch[path], atol=2e-3)
        assert not np.allclose(both[path], alone[path], atol=0.02)
    both, alone = (maps(places, method, "tile") for method in (FUSED, ALONE))
    for path in both:
        assert np.allclose(both[path], alone[path], atol=2e-3)

    results = pd.read_csv("fused/results.csv").set_index("category")
    assert results["n_batch"].to_dict() == {"carpet": 9, "tile": 0, "mean": 9}
    scores = {name: table["clip_score"] for name, table in run_all.items()}
    carpet = scores["batch"].index
    expected = (1 - WEIGHT) * scores["alone"][carpet] + WEIGHT * scores["batch"]
    assert np.allclose(scores["fused"][carpet], expected, atol=1e-3)
    tile = scores["fused"].index.difference(carpet)
    assert np.allclose(scores["fused"][tile], scores["alone"][tile], atol=1e-3)


def test_options_of_the_batch_are_part_of_what_is_kept(cli: Cli, places: tuple[Path, Path]) -> None:
    common = ["run", "mini", "--dataset", places[0], "--store", places[1], *settings(FUSED, COMMON)]
    assert cli(*common, "--out", "one").code == 0
    again = cli(*common, "--out", "two")
    assert "miss" not in again.out
    other = cli(*common, "--set", "localise.batch.share=1.0", "--out", "three")
    assert other.code == 0
    one, three = (pd.read_parquet(Path(name) / "images.parquet").set_index("path") for name in ("one", "three"))
    changed = ~np.isclose(one["max_score"], three["max_score"], atol=1e-6)
    assert changed[one["category"] == "carpet"].any()
    assert not changed[one["category"] == "tile"].any()


def test_a_segmenter_has_the_numbers_of_a_run(run_all: dict[str, pd.DataFrame], places: tuple[Path, Path]) -> None:
    segmenter = Segmenter.from_preset("mini", settings=[*FUSED, *COMMON], device="cpu")
    for category in ("carpet", "tile"):
        images = run_all["fused"].query("category == @category")
        found = segmenter.predict_batch([places[0] / path for path in images.index], category)
        assert np.allclose([each.score for each in found], images["image_score"], atol=2e-3)
        assert np.allclose([each.map.max() for each in found], images["max_score"], atol=2e-3)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("localise.batch.image_side=100", "localise.batch.image_side 100: must be a multiple"),
        ("localise.batch.backbone=resnet18", "localise.batch.backbone: 'resnet18' of timm has no weights here"),
        ("localise.weight=1.5", "localise.weight"),
        ("localise.keep=logits", "localise.keep"),
    ],
)
def test_what_cannot_work_is_refused(cli: Cli, places: tuple[Path, Path], setting: str, line: str) -> None:
    refused = cli("run", "mini", "--dataset", places[0], *settings(FUSED, COMMON), "--set", setting)
    assert line in refused.refusal()


def test_linear_layers_are_trained_alone(cli: Cli, places: tuple[Path, Path]) -> None:
    refused = cli(
        "train",
        "april_gan",
        "--dataset",
        places[0],
        "--experiment",
        "paper",
        *settings(FUSED),
        "--out",
        "a.safetensors",
    )
    assert "localise.method is 'fused'; this trains april_gan" in refused.refusal()


def test_a_method_of_the_same_kind_keeps_what_a_preset_says_of_the_other() -> None:
    mini = load_experiment("mini").localise
    for found in (load_experiment("mini", ["localise.method=fused"]).localise, load_experiment("mini_batch").localise):
        assert isinstance(found, Fused)
        for name in set(TrainedClip.model_fields) - set(Localiser.model_fields):
            assert getattr(found, name) == getattr(mini, name), name
    assert load_experiment("mini", ["localise.method=mutual"]).localise == Mutual()
    assert load_experiment("mini_batch", ["localise.method=mutual"]).localise == Mutual()
