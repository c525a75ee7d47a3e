"""The gate of ``compare``, ``reevaluate`` and ``serve``, as it is met on the command line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cascade.storage.datasets import load_manifest
from tests.flows.conftest import Bench, Cli, files_of
from tests.planted import plant_run, planted_images


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
