"""`cascade calibrate`: what is chosen, on which categories, and that a run and a segmenter use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cascade import Segmenter
from cascade.configs.loader import load_experiment
from cascade.flows.cli.observers import AblationObserver
from cascade.flows.generate import generate_dataset
from cascade.metrics import best_f1_thresholds, quantile_threshold
from tests.flows.conftest import OVERRIDES, SIZE, Bench, Cli, save_adapter

CATEGORIES = ("carpet", "metal plate", "screw", "tile")
GRID = {"axes": {"grid": {"prompt.positives": [1, 3], "score.weight": [0.3, 0.8]}}}
KEYS = {"prompt.positives", "score.weight"}


@pytest.fixture(scope="module")
def auxiliary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four categories of two good and two defective images."""
    folder = tmp_path_factory.mktemp("data") / "auxiliary"
    generate_dataset(folder, categories=CATEGORIES, good=2, defective=2, size=SIZE, seed=7)
    return folder


@pytest.fixture
def arguments(tmp_path: Path, auxiliary: Path, weights: tuple[str, ...]) -> list[str]:
    """``cascade calibrate`` with a small grid, less ``--out``."""
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID), encoding="utf-8")
    settings = [part for each in (*OVERRIDES, *weights) for part in ("--set", each)]
    places = ["--grid", str(tmp_path / "grid.yaml"), "--store", str(tmp_path / "store"), "--engine", "local"]
    return ["calibrate", "mini", "--dataset", str(auxiliary), *places, *settings]


def said(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    return read


def adapter_of(path: Path, **training: Any) -> list[str]:
    return ["--set", f"localise.adapter={save_adapter(path / 'own.safetensors', training)}"]


# What is written, and what uses it


def test_what_is_chosen_is_used_by_a_run_and_a_segmenter(
    cli: Cli, arguments: list[str], tmp_path: Path, dataset: Path
) -> None:
    out = tmp_path / "out"
    done = cli(*arguments, "--out", out, "--set", "refine.batch_size=1")
    assert done.code == 0, done.err
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    grid, found = pd.read_csv(out / "grid.csv"), said(out)
    assert len(grid) == 4
    assert set(grid.columns) >= KEYS
    assert grid["default"].sum() == grid["chosen"].sum() == 1
    default = grid[grid["default"]].iloc[0]
    assert (default["prompt.positives"], default["score.weight"]) == (3, 0.3)
    chosen = grid[grid["chosen"]].iloc[0]
    assert chosen["score"] == pytest.approx(grid["score"].max())
    assert chosen["score"] == pytest.approx(chosen["pixel_ap"] + chosen["pixel_f1max"])
    table = pd.read_csv(out / "ablation" / "results.csv")
    means = table[(table["category"] == "mean") & (table["step"] == chosen["step"])].set_index("variant")
    assert means["pixel_ap"].to_dict() == pytest.approx(grid.set_index("variant")["pixel_ap"].to_dict())

    (low, high), note = found["operating"]["threshold_interval"], found["operating"]["note"]
    assert low <= found["operating"]["threshold"] <= high
    assert note == "few images"
    assert "few images: an interval needs" in done.out
    threshold, path = found["operating"]["threshold"], out / "calibrated.yaml"
    experiment = load_experiment(str(path))
    assert experiment.score.operating_threshold == threshold
    assert (experiment.prompt.positives, experiment.score.weight) == (
        chosen["prompt.positives"],
        chosen["score.weight"],
    )
    assert experiment.dataset.path is None
    assert experiment.prompt.frame == SIZE  # what --set said holds on

    ran = cli("run", path, "--dataset", dataset, "--store", tmp_path / "store", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    last = images[images["step"] == images["step"].iloc[-1]].set_index("path")
    assert (last["defective"] == (last["image_score"] >= threshold)).all()
    assert images.groupby("path")["defective"].nunique().eq(1).all()
    words = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["dataset"]["words"]
    segmenter = Segmenter.from_preset(str(path), device="cpu")
    for name, row in last.iterrows():
        prediction = segmenter.predict(dataset / str(name), object_name=words[row["category"]])
        assert prediction.score == row["image_score"]
        assert prediction.defective is bool(row["defective"])


def test_without_an_operating_threshold_nobody_decides(bench: Bench, tmp_path: Path) -> None:
    from cascade.tasks.tables.results import images_table

    outcome = bench.run()
    assert "defective" not in images_table(outcome.prepared.run)
    low, high = (bench.run(f"score.operating_threshold={value}") for value in (0.0, 3.0))
    assert low.computed == high.computed == {}, "a decision is part of no key"
    assert images_table(low.prepared.run)["defective"].all()
    assert not images_table(high.prepared.run)["defective"].any()
    path = next(bench.dataset.rglob("*.png"))
    segmenter = Segmenter.from_preset("mini", device="cpu", settings=bench.overrides)
    assert segmenter.predict(path).defective is None


def test_a_calibration_that_was_stopped_goes_on(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = tmp_path / "out", []

    def stop(self: AblationObserver, name: str) -> None:
        told.append(name)
        if len(told) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AblationObserver, "variant", stop)
        assert cli(*arguments, "--out", out).code == 130
    assert [path.name for path in out.iterdir()] == ["ablation"]
    assert "another calibration" in cli(*arguments, "--out", out, "--set", "score.gain=one").refusal()
    assert cli(*arguments, "--out", out).code == 0
    assert len(pd.read_csv(out / "grid.csv")) == 4
    assert "holds files already" in cli(*arguments, "--out", out).refusal()


def test_a_tie_leaves_the_experiment_as_it_is(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """Without a refiner neither key changes anything; the experiment itself is none of this grid."""
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"axes": {"grid": {"score.weight": [0.2, 0.8]}}}))
    out = tmp_path / "out"
    done = cli(*arguments, "--out", out, "--set", "refine.method=none", "--good-quantile", "0.5")
    assert done.code == 0, done.err
    grid = pd.read_csv(out / "grid.csv")
    assert list(grid["variant"]) == ["base", "weight=0.2", "weight=0.8"]
    assert list(grid["chosen"]) == list(grid["default"]) == [True, False, False]
    found = said(out)
    assert found["operating"]["threshold_interval"] is None
    assert found["operating"]["false_alarms"] <= 0.5
    assert load_experiment(str(out / "calibrated.yaml")).score.weight == 0.3


# On which categories


def test_all_categories_are_used_unless_the_adapter_knows_some(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    trained = adapter_of(tmp_path, dataset="auxiliary", categories=["carpet", "tile"])
    assert cli(*arguments, "--out", tmp_path / "all").code == 0
    assert said(tmp_path / "all")["categories"] == sorted(each.replace(" ", "_") for each in CATEGORIES)
    assert cli(*arguments, "--out", tmp_path / "rest", *trained).code == 0
    assert said(tmp_path / "rest")["categories"] == ["metal_plate", "screw"]
    ran_on = pd.read_csv(tmp_path / "rest" / "ablation" / "results.csv")["category"]
    assert set(ran_on) == {"metal_plate", "screw", "mean"}


def test_the_draw_depends_on_the_seed_alone(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three categories that the adapter never saw, two are drawn."""
    from cascade.configs.settings import Settings
    from cascade.flows import calibrate
    from cascade.flows.run.prepare import prepare

    path = arguments[arguments.index("--dataset") + 1]
    adapter = adapter_of(tmp_path, dataset="auxiliary", categories=["carpet"])[1]
    experiment = load_experiment("mini", [*OVERRIDES, f"dataset.path={path}", adapter])
    prepared = prepare(experiment, tmp_path / "store", Settings(weights=tmp_path), allow_leak=True)
    draws = [calibrate.held_out_categories(prepared, 0.2, seed) for seed in range(10)]
    assert draws == [calibrate.held_out_categories(prepared, 0.2, seed) for seed in range(10)]
    assert {len(each) for each in draws} == {2}
    assert len(set(draws)) == 3
    assert not any("carpet" in each for each in draws)
    assert len(calibrate.held_out_categories(prepared, 1.0, 0)) == 3


# What is refused, before anything is written


def test_what_cannot_be_calibrated_on_is_one_line(
    cli: Cli, arguments: list[str], tmp_path: Path, auxiliary: Path
) -> None:
    out = ["--out", tmp_path / "out"]

    def refusal(*more: object) -> str:
        line = cli(*arguments, *out, *more).refusal()
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "store").exists()
        return line

    assert "1 category, and a choice needs 2" in refusal("--set", "dataset.categories=[carpet]")
    every = adapter_of(tmp_path, dataset="auxiliary", categories=[each.replace(" ", "_") for each in CATEGORIES])
    assert "--train held_out=0.2" in refusal(*every)
    three = adapter_of(tmp_path, dataset="auxiliary", categories=["carpet", "screw", "tile"])
    assert "1 of the 1 categories unknown to the adapter (metal_plate)" in refusal(*three)
    assert "must be above 0" in refusal("--holdout", 0)
    assert "must be above 0" in refusal("--good-quantile", 1.5)
    assert "varies this key" in refusal("--set", "score.weight=0.4")
    tested = tmp_path / "tested.yaml"
    tested.write_text(yaml.safe_dump({"extends": "mini", "dataset": {"path": str(auxiliary)}}))
    assert "calibrate on other data" in cli("calibrate", tested, "--dataset", auxiliary, *out).refusal()


def test_a_folder_that_holds_files_is_refused(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "holds files already" in cli(*arguments, "--out", tmp_path / "out").refusal()


@pytest.mark.parametrize(("kind", "line"), [("good", "no good image"), ("defective", "with defective images")])
def test_both_kinds_of_images_are_needed(cli: Cli, arguments: list[str], tmp_path: Path, kind: str, line: str) -> None:
    folder = tmp_path / "aux"
    generate_dataset(
        folder,
        categories=CATEGORIES[:2],
        good=0 if kind == "good" else 2,
        defective=2 if kind == "good" else 0,
        size=SIZE,
    )
    arguments[arguments.index("--dataset") + 1] = str(folder)
    assert line in cli(*arguments, "--out", tmp_path / "out").refusal()


def test_images_without_labels_are_refused(cli: Cli, arguments: list[str], tmp_path: Path, auxiliary: Path) -> None:
    folder = tmp_path / "aux"
    for category in ("carpet", "screw"):
        (folder / category).mkdir(parents=True)
        for path in (auxiliary / category / "test" / "good").glob("*.png"):
            (folder / category / path.name).write_bytes(path.read_bytes())
    arguments[arguments.index("--dataset") + 1] = str(folder)
    assert "no image has a label" in cli(*arguments, "--out", tmp_path / "out").refusal()


# The thresholds


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12).filter(
        lambda images: any(label for _, label in images)
    )
)
def test_no_threshold_has_a_better_f1(images: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([score / 4 for score, _ in images]), np.array([label for _, label in images])
    (threshold,) = best_f1_thresholds(scores, labels, np.ones((1, len(images))))
    others = [f1_score(labels, scores >= other) for other in np.unique(scores)]
    assert f1_score(labels, scores >= threshold) == pytest.approx(max(others))


def test_a_weighted_sample_is_the_sample_repeated() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 20, 30) / 4, rng.random(30) < 0.4
    weights = rng.integers(0, 3, (5, 30)).astype(np.float64)
    found = best_f1_thresholds(scores, labels, weights)
    for row, threshold in zip(weights.astype(int), found, strict=True):
        own_scores, own_labels = np.repeat(scores, row), np.repeat(labels, row)
        best = max(f1_score(own_labels, own_scores >= other) for other in np.unique(own_scores))
        assert f1_score(own_labels, own_scores >= threshold) == pytest.approx(best)


def test_a_threshold_lies_between_the_scores_that_it_parts() -> None:
    scores, labels = np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True])
    assert best_f1_thresholds(scores, labels, np.ones((1, 4))) == pytest.approx([0.4])
    assert best_f1_thresholds(scores, np.ones(4, bool), np.ones((1, 4))) == [0.1]
    assert quantile_threshold(scores, 0.5) == pytest.approx(0.4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=20), st.sampled_from([0.05, 0.5, 0.7, 0.95, 1.0]))
def test_a_quantile_leaves_its_share_of_good_images_below(scores: list[int], quantile: float) -> None:
    good = np.array(scores) / 4
    threshold = quantile_threshold(good, quantile)
    assert (good < threshold).mean() >= quantile - 1e-9
    fewer = good[good < threshold].max()
    assert (good < fewer).mean() < quantile, "a lower threshold would do"
