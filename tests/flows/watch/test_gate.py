"""The gate of ``compare``, ``reevaluate`` and ``serve``, as it is met on the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cascade.storage.datasets import load_manifest
from tests.flows.conftest import Bench, Cli, files_of
from tests.planted import STEPS, PlantedImage, plant_run, planted_images


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on planted scores; tests do not write into it."""
    return plant_run(tmp_path_factory.mktemp("gate") / "baseline", planted_images())


# Options are checked before all work


@pytest.mark.usefixtures("no_networks")
@pytest.mark.parametrize("command", ["compare", "reevaluate", "serve"])
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["pixel_app=0.1"], ["'pixel_app'", "did you mean 'pixel_ap'"]),
        (["pixel_ap"], ["pixel_ap:", "metric=fraction"]),
        (["pixel_ap=a lot"], ["pixel_ap=a lot", "metric=fraction"]),
        (["pixel_ap=-0.01"], ["pixel_ap=-0.01", "from 0 to 1"]),
        (["pixel_ap=nan"], ["pixel_ap=nan", "from 0 to 1"]),
        (["pixel_ap=2"], ["pixel_ap=2", "from 0 to 1"]),
        (["pixel_ap=0.02", "pixel_ap=0.2"], ["pixel_ap=0.2", "each metric once"]),
    ],
)
def test_a_wrong_limit_is_refused_before_all_work(
    cli: Cli, empty: Bench, baseline: Path, tmp_path: Path, command: str, given: list[str], parts: list[str]
) -> None:
    data = ["--dataset", empty.dataset, "--store", empty.store]
    arguments = {
        "compare": [baseline, baseline, "--out", tmp_path / "out"],
        "reevaluate": ["mini", *data, "--engine", "local"],
        "serve": ["mini", *data],
    }
    options = [part for each in given for part in ("--max-drop", each)]
    result = cli(command, *arguments[command], *options)
    assert result.code == 2
    message = result.refusal()
    assert all(part in message for part in ("max-drop", *parts)), message
    assert files_of(tmp_path) == {}


# Data without labels


@pytest.fixture(params=["no labels", "good only", "defective without masks"])
def no_metrics(request: pytest.FixtureRequest, empty: Bench, tmp_path: Path) -> Bench:
    """A copy of the images in a table with labels that allow no metric."""
    shutil.copytree(empty.dataset, tmp_path / "data")
    listed = load_manifest(tmp_path / "data").to_frame()[["path", "category", "label"]]
    if request.param == "good only":
        listed = listed[listed["label"] == 0]
    elif request.param == "no labels":
        listed = listed.drop(columns="label")
    else:
        listed["label"] = 1
    listed.to_csv(tmp_path / "data" / "listed.csv", index=False)
    return replace(empty, dataset=tmp_path / "data" / "listed.csv")


@pytest.mark.usefixtures("no_networks")
@pytest.mark.parametrize(
    "command",
    [["run", "mini", "--ci"], ["reevaluate", "mini"], ["ablate", "table2"], ["ablate", "table2", "--dry-run"]],
)
def test_what_needs_metrics_refuses_data_that_allow_none_before_all_work(
    cli: Cli, no_metrics: Bench, tmp_path: Path, command: list[str]
) -> None:
    before = files_of(tmp_path)
    _, _, *options = no_metrics.arguments()
    options = options[: options.index("--set")]  # the shipped networks; none is loaded
    result = cli(*command, *options)
    assert result.code == 2
    assert "none is defined" in result.refusal()
    assert files_of(tmp_path) == before


def test_a_run_without_metrics_is_neither_compared_nor_accepted(cli: Cli, no_metrics: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli(*no_metrics.arguments(), "--out", run).code == 0
    before = files_of(tmp_path)
    for arguments in (["compare", run, run], ["baseline", "set", run]):
        result = cli(*arguments)
        assert result.code == 2
        assert "this run has none" in result.refusal()
    assert files_of(tmp_path) == before


def test_reproducing_a_table_lists_data_without_metrics_as_missing(cli: Cli, empty: Bench, tmp_path: Path) -> None:
    for good in empty.dataset.glob("*/test/good"):
        shutil.copytree(good, tmp_path / "sets" / "mvtec" / good.parts[-3] / "test" / "good")
    root = ["--dataset-root", tmp_path / "sets", "--experiment", "mini", "--engine", "local"]
    result = cli("reproduce", "table3", *root, "--out", tmp_path / "out")
    assert result.code == 2
    assert "missing MVTec-AD: " in result.out
    assert "none is defined" in result.out
    assert not (tmp_path / "out").exists()


def test_of_partly_labelled_data_what_is_defined_is_compared_and_the_rest_is_named(
    cli: Cli, own_data: Bench, tmp_path: Path
) -> None:
    listed = own_data.prepare().run.manifest.to_frame()
    listed.loc[listed["category"] == "carpet", ["label", "defect", "mask_path"]] = None
    listed.to_csv(own_data.dataset / "listed.csv", index=False)
    partly, run = replace(own_data, dataset=own_data.dataset / "listed.csv"), tmp_path / "run"
    result = cli(*partly.arguments(), "--ci", "--out", run)
    assert result.code == 0
    assert "carpet: no labels" in result.out
    assert cli("baseline", "set", run).code == 0
    result = cli("compare", run, "baseline")
    assert result.code == 0
    assert "not compared: carpet: labels or masks are missing" in result.out
    assert "not compared: carpet" in (run / "comparison.md").read_text(encoding="utf-8")


# What vanishes


def without(*names: str) -> list[PlantedImage]:
    """The planted images without those whose names begin with one of ``names``."""
    return [image for image in planted_images() if not image.name.startswith(names)]


DEFECTIVE = tuple(f"nut/{number:02}" for number in range(10, 22))
GOOD = tuple(f"nut/{number:02}" for number in range(10))


@pytest.mark.parametrize(
    ("gone", "reasons"),
    [
        (("pin",), ["pin: none of the baseline's 22 images is in the run"]),
        (
            ("pin", "cap"),
            [f"{category}: none of the baseline's 22 images is in the run" for category in ("cap", "pin")],
        ),
        (DEFECTIVE, ["nut: none of the baseline's 12 defective images is in the run"]),
        (GOOD, ["nut: none of the baseline's 10 good images is in the run"]),
    ],
)
def test_what_vanishes_closes_the_gate_unless_allowed(
    cli: Cli, baseline: Path, tmp_path: Path, gone: tuple[str, ...], reasons: list[str]
) -> None:
    run = plant_run(tmp_path / "run", without(*gone))
    result = cli("compare", run, baseline)
    assert result.code == 1
    closed = [line.removeprefix("gate closed ") for line in result.out.splitlines() if line.startswith("gate closed")]
    assert closed == [f"vanished: {reason}" for reason in reasons]
    gate = (run / "comparison.md").read_text(encoding="utf-8").partition("## Gate")[2].partition("##")[0]
    assert all(reason in gate for reason in reasons)
    allowed = cli("compare", run, baseline, "--allow-vanished")
    assert allowed.code == 0
    assert all(f"vanished: {reason}" in allowed.out for reason in reasons)


def test_some_lost_images_are_counted_and_the_gate_stays_open(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", without("nut/00", "nut/12", "nut/13"))
    result = cli("compare", run, baseline)
    assert result.code == 0
    lost = "3 of the baseline's 22 images (2 of 12 defective, 1 of 10 good) are not in the run"
    assert f"vanished: nut: {lost}" in result.out


def test_replaced_images_are_lost_images(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    other = [replace(image, name=f"{image.name}-new") for image in planted_images(("nut",), seed=1)]
    run = plant_run(tmp_path / "run", [*without("nut"), *other])
    result = cli("compare", run, baseline)
    assert result.code == 1
    assert "gate closed vanished: nut: none of the baseline's 22 images is in the run" in result.out
    assert "not compared: 22 images that only the run has" in result.out


def test_without_any_shared_image_the_gate_is_closed_whatever_is_allowed(
    cli: Cli, baseline: Path, tmp_path: Path
) -> None:
    run = plant_run(tmp_path / "run", planted_images(("rod",)))
    result = cli("compare", run, baseline, "--allow-vanished")
    assert result.code == 1
    assert "gate closed nothing was compared" in result.out
    assert {line.split()[-1] for line in result.out.splitlines() if line.split()[:1] == ["rod"]} == {"appeared"}


def test_a_metric_that_vanishes_closes_the_gate(cli: Cli, own_data: Bench, tmp_path: Path) -> None:
    """A defective image whose mask is gone takes the pixel metrics of its category along."""
    listed = own_data.prepare().run.manifest.to_frame()
    for name in ("before", "after"):
        if name == "after":
            listed.loc[listed.query("category == 'carpet' and label == 1").index[0], "mask_path"] = None
        listed.to_csv(own_data.dataset / "listed.csv", index=False)
        run = replace(own_data, dataset=own_data.dataset / "listed.csv").arguments()
        assert cli(*run, "--out", tmp_path / name).code == 0
    result = cli("compare", tmp_path / "after", tmp_path / "before")
    assert result.code == 1
    (line,) = [line for line in result.out.splitlines() if line.startswith("gate closed")]
    assert line == (
        "gate closed vanished: carpet: pixel_auroc, pixel_f1max, pixel_ap, pixel_aupro: in the baseline, not in the run"
    )
    assert cli("compare", tmp_path / "after", tmp_path / "before", "--allow-vanished").code == 0


def test_a_step_that_vanishes_closes_the_gate(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images())
    results = pd.read_parquet(run / "results.parquet")
    results[results["step"] != STEPS[1]].to_parquet(run / "results.parquet")
    result = cli("compare", run, baseline)
    assert result.code == 1
    assert f"gate closed vanished: step '{STEPS[1]}' is not in the run" in result.out
    refused = cli("compare", run, baseline, "--step", STEPS[1])
    assert refused.code == 2
    assert f"no step '{STEPS[1]}' to compare" in refused.refusal()


@pytest.mark.timeout(600)
def test_a_reevaluation_notices_categories_that_are_gone(cli: Cli, own_data: Bench, tmp_path: Path) -> None:
    arguments = ["reevaluate", *own_data.arguments()[1:]]
    assert cli(*arguments).code == 0
    (run,) = (path.parent for path in (tmp_path / "runs" / "mini").glob("2*/run.json"))
    assert cli("baseline", "set", run).code == 0
    shutil.rmtree(own_data.dataset / "carpet")
    result = cli(*arguments)
    assert result.code == 1
    assert "carpet: none of the baseline's 4 images is in the run" in result.out.splitlines()[-1]
    allowed = cli(*arguments, "--allow-vanished")
    assert allowed.code == 0
    assert "vanished: carpet: none of the baseline's 4 images is in the run" in allowed.out


# Runs that cannot be compared


def test_runs_of_different_evaluation_frames_are_not_compared(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    for frame in (96, 80):
        assert cli(*bench.arguments(f"score.frame={frame}"), "--out", tmp_path / f"{frame}").code == 0
    before = files_of(tmp_path)
    result = cli("compare", tmp_path / "80", tmp_path / "96")
    assert result.code == 2
    assert "score.frame is 80 here and 96 in" in result.refusal()
    assert files_of(tmp_path) == before


@pytest.mark.usefixtures("no_networks")
def test_a_reevaluation_in_another_frame_is_refused_before_all_work(cli: Cli, empty: Bench, tmp_path: Path) -> None:
    named = json.loads((plant_run(tmp_path / "run", planted_images()) / "run.json").read_text(encoding="utf-8"))
    named["dataset"]["name"] = empty.dataset.name
    (tmp_path / "run" / "run.json").write_text(json.dumps(named), encoding="utf-8")
    assert cli("baseline", "set", tmp_path / "run").code == 0
    before = files_of(tmp_path)
    result = cli("reevaluate", *empty.arguments()[1:])
    assert result.code == 2
    assert "score.frame is 96 here and" in result.refusal()
    assert files_of(tmp_path) == before


# What is said of a difference


def verdicts(out: str, category: str) -> dict[str, str]:
    """The verdict of each metric in the printed rows of a category."""
    rows = [line.split() for line in out.splitlines() if line.split()[:1] == [category]]
    return {row[1]: row[-1] for row in rows}


def test_a_gate_that_opens_says_what_is_undecided(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(jitter=1))
    open_gate = cli("compare", run, baseline, "--max-drop", "pixel_ap=0.0001")
    assert open_gate.code == 0
    found = verdicts(open_gate.out, "mean")
    assert (found["pixel_auroc"], found["pixel_ap"]) == ("equal", "undecided")
    (line,) = [line for line in open_gate.out.splitlines() if line.startswith("gate open")]
    assert "no metric is known to have fallen by more than its limit; " in line
    assert "differences are undecided" in line
    assert "equal: it lies within the limit of a fall on both sides (±0.0001 or ±0.01)" in open_gate.out
    assert f"Passed: {line.removeprefix('gate open: ')}." in (run / "comparison.md").read_text(encoding="utf-8")
    itself = cli("compare", baseline, baseline, "--out", tmp_path / "itself")
    assert set(verdicts(itself.out, "mean").values()) == {"equal"}
    assert "undecided" not in next(line for line in itself.out.splitlines() if line.startswith("gate open"))


def test_few_images_have_words_for_an_interval(cli: Cli, tmp_path: Path) -> None:
    few = {"good": 4, "defective": 6}
    before = plant_run(tmp_path / "before", planted_images(**few))
    run = plant_run(tmp_path / "run", planted_images(weaker={"nut": 0.3}, **few))
    result = cli("compare", run, before)
    assert result.code == 1
    (row,) = [line for line in result.out.splitlines() if line.split()[:2] == ["nut", "pixel_ap"]]
    assert row.split()[-3:] == ["few", "images", "fell"]
    assert "few images: an interval needs 10 defective images, for image metrics 10 good ones too" in result.out
    assert "few images, so that no interval is given" in result.out
    written = pd.read_csv(run / "comparison.csv").query("category == 'nut' and metric == 'pixel_ap'")
    assert written[["low", "high", "p_value"]].isna().all(axis=None)
    assert written["note"].tolist() == ["few images"]


def test_a_table_with_intervals_has_words_where_images_are_few(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    result = cli(*bench.arguments(), "--ci", "--out", tmp_path / "run")
    assert result.code == 0
    assert result.out.count("few images") > 7
    assert "few images: an interval needs 10 defective images" in result.out
    written = pd.read_csv(tmp_path / "run" / "results.csv")
    assert set(written["pixel_ap_note"]) == {"few images"}
    assert written[["pixel_ap_low", "pixel_ap_high"]].isna().all(axis=None)
    described = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert described["intervals"] == {"method": "BCa", "level": 0.95, "resamples": 1000}


def test_a_difference_of_other_masks_or_image_scores_says_so_beside_the_number(
    cli: Cli, own_data: Bench, tmp_path: Path
) -> None:
    for name, rule in (("before", "clip"), ("after", "max")):
        assert cli(*own_data.arguments(f"score.image_score={rule}"), "--out", tmp_path / name).code == 0
        mask = min((own_data.dataset / "carpet" / "ground_truth").rglob("*.png"))
        redrawn = np.zeros((96, 96), np.uint8)
        redrawn[10:40, 10:40] = 255
        Image.fromarray(redrawn).save(mask)
    cli("compare", tmp_path / "after", tmp_path / "before")
    table = pd.read_csv(tmp_path / "after" / "comparison.csv").fillna({"remark": ""}).set_index(["category", "metric"])
    masks, rule = "1 of 4 images have another ground truth", "image scores by clip → by max"
    assert table.loc[("carpet", "pixel_ap"), "remark"] == masks
    assert table.loc[("carpet", "image_ap"), "remark"] == f"{masks}; {rule}"
    assert table.loc[("metal_plate", "pixel_ap"), "remark"] == ""
    assert table.loc[("metal_plate", "image_ap"), "remark"] == rule


def test_a_fall_of_another_measurement_closes_the_gate_with_a_word(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    experiment = json.loads((baseline / "run.json").read_text(encoding="utf-8"))["experiment"]
    before = experiment["score"]["image_score"]
    experiment["score"]["image_score"] = "another"
    run = plant_run(tmp_path / "run", planted_images(weaker={"nut": 2.0}), experiment=experiment)
    reasons = [line for line in cli("compare", run, baseline).out.splitlines() if line.startswith("gate closed nut")]
    words = f"; image scores by {before} → by another)"
    assert {line.partition("_")[0]: line.endswith(words) for line in reasons} == {
        "gate closed nut: pixel": False,
        "gate closed nut: image": True,
    }


def test_a_run_that_is_not_zero_shot_is_compared_with_a_word(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(), leak="layers were trained on these images")
    result = cli("compare", run, baseline)
    assert "the run is not zero-shot: layers were trained on these images" in result.out


def test_serving_hands_limits_and_allowance_to_the_flow(
    cli: Cli, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "cascade.flows.watch.schedules.serve", lambda name, parameters, **when: given.append(parameters)
    )
    arguments = ["serve", "mini", "--dataset", bench.dataset, "--max-drop", "pixel_ap=0.02"]
    assert cli(*arguments).code == cli(*arguments, "--allow-vanished").code == 0
    assert [each["max_drop"] for each in given] == [{"pixel_ap": 0.02}] * 2
    assert [each["allow_vanished"] for each in given] == [False, True]
    assert set(given[0]) <= set(reevaluate_flow_parameters())


def reevaluate_flow_parameters() -> list[str]:
    from inspect import signature

    from cascade.flows.watch.schedules import reevaluate_flow

    return list(signature(reevaluate_flow.fn).parameters)
