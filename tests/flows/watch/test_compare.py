from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cascade.flows.watch.compare import compare_runs
from cascade.storage.errors import ConfigError, DataError
from cascade.storage.keys import digest_of
from tests.flows.conftest import Bench, Cli, files_of, flip_chunk
from tests.planted import DEFECTIVE, PlantedImage, plant_run, planted_images

FAST = {"resamples": 200}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on planted scores; tests do not write into it."""
    return plant_run(tmp_path_factory.mktemp("planted") / "baseline", planted_images())


def described(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return content


def notes(run: Path, baseline: Path) -> list[str]:
    return compare_runs(run, baseline, **FAST).notes()


# The gate


def test_a_fall_of_two_points_closes_the_gate_and_names_the_category(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(weaker={"nut": 0.055}))
    table = compare_runs(run, baseline, **FAST).table.set_index(["category", "metric"])
    assert table.loc[("nut", "pixel_ap"), "difference"] == pytest.approx(-0.02, abs=0.004)
    result = cli("compare", run, baseline)
    assert result.code == 1
    assert "gate closed nut: pixel_ap fell by 0.0" in result.out
    assert not any(f"gate closed {other}" in result.out for other in ("cap", "pin"))
    text = (run / "comparison.md").read_text(encoding="utf-8")
    assert "- nut: pixel_ap fell by" in text.partition("## What made")[0]
    written = pd.read_csv(run / "comparison.csv").set_index(["category", "metric"])
    assert written.loc[("nut", "pixel_ap"), "verdict"] == "fell"
    assert cli("compare", run, baseline, *allowing(0.05)).code == 0


def allowing(limit: float) -> list[str]:
    from cascade.tasks.aggregate import METRICS

    return [part for metric in METRICS for part in ("--max-drop", f"{metric}={limit}")]


def test_an_equal_run_with_another_seed_passes(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(jitter=1))
    result = cli("compare", run, baseline, "--out", tmp_path / "report")
    assert (result.code, result.err) == (0, "")
    assert "gate closed" not in result.out
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"comparison.md", "comparison.csv"}
    assert "Passed" in (tmp_path / "report" / "comparison.md").read_text(encoding="utf-8")
    assert not (run / "comparison.md").exists()


def test_a_tighter_limit_closes_the_gate(baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(weaker=dict.fromkeys(("cap", "nut", "pin"), 0.02)))
    assert not compare_runs(run, baseline, **FAST).regressions
    (line,) = [
        line for line in compare_runs(run, baseline, {"pixel_ap": 0.005}, **FAST).regressions if line.startswith("mean")
    ]
    assert "pixel_ap" in line
    assert "limit 0.005" in line


def test_an_improvement_passes(baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(weaker={"nut": 0.2}))
    comparison = compare_runs(baseline, run, **FAST)
    assert comparison.regressions == []
    assert set(comparison.table.query("category == 'nut' and metric == 'pixel_ap'")["verdict"]) == {"improved"}


# What made the runs differ


def test_equal_runs_differ_in_nothing(baseline: Path) -> None:
    assert notes(baseline, baseline) == [
        "nothing: same images, masks, weights, configuration, stage versions and libraries"
    ]


def test_every_kind_of_change_is_named(baseline: Path, tmp_path: Path) -> None:
    before = described(baseline)
    changed = json.loads(json.dumps({name: before[name] for name in ("experiment", "weights", "keys", "versions")}))
    changed["experiment"]["score"]["weight"] = 0.25
    changed["experiment"]["runtime"]["workers"] = 8
    changed["weights"]["clip"]["sha256"] = digest_of("another")
    changed["keys"]["embed"]["version"] = 2
    changed["keys"]["localise"]["config"]["sentences"] = ["a picture"]
    changed["versions"]["torch"] = "2.10.0"
    images = planted_images()
    other = PlantedImage("cap", "cap/00", images[0].scores, np.ones((25, 25), bool)[:24, :24])
    run = plant_run(tmp_path / "run", [other, *images[1:]], **changed)
    found = notes(run, baseline)
    assert found[0].startswith("image cap/00: ")
    assert f"weights clip: {digest_of('clip')[:12]}… → {digest_of('another')[:12]}…" in found
    assert "config score.weight: 0.3 → 0.25" in found
    assert any(line.startswith("config localise.sentences: ") for line in found)
    assert "stage version embed: 1 → 2" in found
    assert 'library torch: "2.9.0" → "2.10.0"' in found
    assert not any("workers" in line for line in found)


def test_a_redrawn_mask_is_named(own_data: Bench, cli: Cli, tmp_path: Path) -> None:
    from PIL import Image

    assert cli(*own_data.arguments(), "--out", tmp_path / "before").code == 0
    mask = sorted((own_data.dataset / "carpet" / "ground_truth").rglob("*.png"))[0]
    redrawn = np.zeros((96, 96), np.uint8)
    redrawn[10:40, 10:40] = 255
    Image.fromarray(redrawn).save(mask)
    assert cli(*own_data.arguments(), "--out", tmp_path / "after").code == 0
    image = mask.relative_to(own_data.dataset).as_posix().replace("ground_truth", "test").replace("_mask", "")
    (line,) = notes(tmp_path / "after", tmp_path / "before")
    assert line.startswith(f"mask {image}: ")


def test_the_images_that_lost_most_are_shown_with_their_masks(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(weaker={"nut": 0.3}))
    worst = compare_runs(run, baseline, **FAST).worst
    first = worst.at[0, "path"]
    assert f"lost most {first}: pixel AP" in cli("compare", run, baseline).out
    assert f"| nut | {first} |" in (run / "comparison.md").read_text(encoding="utf-8")
    assert set(worst["category"]) == {"nut"}
    assert worst["difference"].is_monotonic_increasing
    assert (worst[["iou_run", "iou_baseline"]] == 0.5).all(axis=None)
    assert len(worst) == DEFECTIVE


# Real runs


def test_a_changed_setting_of_a_real_run_is_found_in_its_tables(bench: Bench, cli: Cli, tmp_path: Path) -> None:
    for name, change in (("before", "score.weight=0.5"), ("after", "score.weight=0.25")):
        assert cli(*bench.arguments(change), "--out", tmp_path / name).code == 0
    comparison = compare_runs(tmp_path / "after", tmp_path / "before", step="points", **FAST)
    assert comparison.notes() == ["config score.weight: 0.5 → 0.25"]
    found = comparison.table.set_index(["category", "metric"])
    for column, name in (("run", "after"), ("baseline", "before")):
        results = pd.read_csv(tmp_path / name / "results.csv").query("step == 'points'").set_index("category")
        for category, metric in found.index:
            assert found.loc[(category, metric), column] == pytest.approx(results.loc[category, metric], abs=1e-12)


def test_scores_that_are_gone_can_be_restored_with_the_command_given(bench: Bench, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli(*bench.arguments("score.weight=0.25"), "--out", run).code == 0
    before = files_of(run)
    shutil.rmtree(bench.store / "score")
    line = cli("compare", run, run)
    assert line.code == 2
    command = line.refusal().partition("`")[2].rpartition("`")[0]
    assert files_of(run) == before
    assert cli(*shlex.split(command)[1:], "--engine", "local").code == 0
    assert cli("compare", run, run).code == 0


def test_damaged_scores_are_reported(bench: Bench, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli(*bench.arguments(), "--out", run).code == 0
    (artefact,) = [each for each in bench.run().stored() if each.key.stage == "score"]
    flip_chunk(artefact, "regions", next(iter(artefact.done())))
    assert "damaged" in cli("compare", run, run).refusal()


# Refusals


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--ci", "95"], ["between 0 and 1"]),
        (["--ci", "nan"], ["between 0 and 1"]),
        (["--step", "clp"], ["'clp'", "did you mean 'clip'"]),
    ],
)
def test_a_wrong_option_is_refused(cli: Cli, baseline: Path, arguments: list[str], parts: list[str]) -> None:
    before = files_of(baseline.parent)
    result = cli("compare", baseline, baseline, *arguments)
    assert result.code == 2
    message = result.refusal()
    assert all(part in message for part in parts), message
    assert files_of(baseline.parent) == before


@pytest.mark.parametrize("content", [None, "", "{}", '{"keys": {"score": {}}, "store": "x"}', "[1]", "no versions"])
def test_a_folder_that_is_no_run_is_refused(cli: Cli, baseline: Path, tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "odd"
    if content == "no versions":
        content = json.dumps({name: value for name, value in described(baseline).items() if name != "versions"})
    if content is not None:
        folder.mkdir()
        (folder / "run.json").write_text(content, encoding="utf-8")
    for pair in ((folder, baseline), (baseline, folder)):
        result = cli("compare", *pair, "--out", tmp_path / "out")
        assert result.code == 2
        assert "not the folder of a finished run" in result.refusal()
    assert not (tmp_path / "out").exists()


def test_a_run_without_its_images_is_refused(baseline: Path, tmp_path: Path) -> None:
    shutil.copytree(baseline, tmp_path / "run")
    (tmp_path / "run" / "images.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"images\.parquet"):
        compare_runs(tmp_path / "run", baseline)


# Baselines


def test_the_accepted_run_is_what_later_runs_are_compared_with(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run", planted_images(weaker={"nut": 0.2}))
    refusal = cli("compare", run, "baseline")
    assert refusal.code == 2
    assert "cascade baseline set" in refusal.refusal()
    assert cli("baseline", "set", baseline).code == 0
    shown = cli("baseline", "show")
    assert str(baseline) in shown.out
    assert "planted" in shown.out
    assert cli("compare", run, "baseline").code == 1
    assert cli("baseline", "set", run).code == 0
    assert str(baseline) not in cli("baseline", "show").out
    assert cli("compare", run, "baseline").code == 0


def test_each_experiment_and_dataset_has_a_baseline_of_its_own(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    from cascade.flows.watch.baselines import accept, baseline_of

    other = plant_run(tmp_path / "other", planted_images(("cap",)), dataset={"name": "elsewhere"})
    for folder in (baseline, other):
        accept(tmp_path / "runs", folder)
    assert baseline_of(tmp_path / "runs", baseline) == baseline
    assert baseline_of(tmp_path / "runs", other) == other
    with pytest.raises(ConfigError, match="cascade baseline set"):
        baseline_of(tmp_path / "empty", other)


def test_what_is_no_run_is_not_accepted(cli: Cli, tmp_path: Path) -> None:
    assert cli("baseline", "set", tmp_path / "nothing").code == 2
    assert not (tmp_path / "runs").exists()


def test_a_damaged_list_of_baselines_is_one_line(cli: Cli, baseline: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "baselines.json").write_text('[{"a": 1}]', encoding="utf-8")
    for arguments in (["baseline", "show"], ["baseline", "set", baseline], ["compare", baseline, "baseline"]):
        result = cli(*arguments)
        assert result.code == 2
        assert "baselines.json" in result.refusal()
