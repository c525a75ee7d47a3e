from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cascade.flows.run.history import read_history, remember_run
from cascade.tasks.aggregate import METRICS
from tests.flows.conftest import Bench, Cli
from tests.planted import plant_run, planted_images


def finished_at(folder: Path, time: str, *, name: str = "mini", dataset: str = "planted") -> Path:
    """A run of one small category that says when it finished."""
    return plant_run(
        folder,
        planted_images(("cap",))[-2:],
        finished=time,
        experiment={"name": name},
        dataset={"name": dataset, "images": 2},
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The default folder of the runs of the ``cli`` fixture, with a history of four."""
    times = ("2026-01-02", "2026-02-02", "2026-03-02", "2026-04-02")
    settings = ({}, {"name": "paper"}, {"dataset": "VisA"}, {})
    for number in (2, 0, 1, 3):  # remembered in another order than finished
        folder = finished_at(tmp_path / f"run{number}", f"{times[number]}T12:00:00+00:00", **settings[number])
        remember_run(tmp_path / "runs", folder)
    return tmp_path / "runs"


# Appends a run twenty times, from when every process is ready.
APPEND = """
import os, sys, time
from pathlib import Path
from cascade.flows.run.history import remember_run
runs, folder, go = map(Path, sys.argv[1:])
go.with_suffix(f".{os.getpid()}").touch()
while not go.exists():
    time.sleep(0.001)
for _ in range(20):
    remember_run(runs, folder)
"""


def listed(text: str) -> list[str]:
    """The names of the run folders in a listing, in order."""
    return [line.split()[-1].rpartition("/")[2] for line in text.splitlines()[1:]]


def test_a_run_is_a_row_with_what_it_found_and_what_it_cost(bench: Bench, cli: Cli, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / "run"
    assert cli(*bench.arguments("score.weight=0.25", "name=mine"), "--out", outside).code == 0
    assert cli(*bench.arguments("name=mine")).code == 0
    history = read_history(tmp_path / "runs")
    assert list(history["name"]) == ["mine", "mine"]
    assert history.at[0, "folder"] == str(outside)
    assert Path(history.at[1, "folder"]).parent == tmp_path / "runs" / "mine"
    first = history.iloc[0]
    assert (first["dataset"], first["engine"], first["images"]) == ("tiny", "local", 8)
    assert (first["computed_embed"], first["computed_score"], first["computed_aggregate"]) == (0, 8, 1)
    assert history.at[1, "computed_score"] == 0
    results = pd.read_csv(outside / "results.csv").query("category == 'mean'").set_index("step")
    for metric in METRICS:
        assert first[metric] == pytest.approx(results.at["points+box+logits", metric])
        assert first[f"clip_{metric}"] == pytest.approx(results.at["clip", metric])
    assert history["config"].nunique() == 2
    assert history["weights"].nunique() == 1
    assert str(outside) in cli("history").out


def test_appends_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    folders = [finished_at(tmp_path / f"run{number}", "2026-01-02T00:00:00+00:00") for number in range(2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", APPEND, tmp_path / "runs", folder, tmp_path / "go"])
        for folder in folders
    ]
    while len(list(tmp_path.glob("go.*"))) < 2:
        time.sleep(0.05)
    (tmp_path / "go").touch()
    assert [process.wait() for process in processes] == [0, 0]
    assert read_history(tmp_path / "runs")["folder"].value_counts().to_dict() == {str(each): 20 for each in folders}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["run0", "run1", "run2", "run3"]),
        (["--name", "mini"], ["run0", "run2", "run3"]),
        (["--dataset", "VisA"], ["run2"]),
        (["--since", "2026-02-15"], ["run2", "run3"]),
        (["--limit", "2"], ["run2", "run3"]),
        (["--name", "mini", "--dataset", "planted", "--limit", "1"], ["run3"]),
    ],
)
def test_runs_are_filtered(cli: Cli, runs: Path, filters: list[str], expected: list[str]) -> None:
    assert listed(cli("history", *filters).out) == expected


def test_a_metric_is_drawn_over_time(cli: Cli, runs: Path, tmp_path: Path) -> None:
    out = cli("history", "--metric", "clip_pixel_aupro", "--plot", "terminal").out
    bars = [line.count("█") for line in out.splitlines()[1:]]
    assert bars == [20] * 4  # half of forty
    pytest.importorskip("matplotlib")
    assert cli("history", "--plot", tmp_path / "plot.png").code == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_there_may_be_no_run_yet(cli: Cli) -> None:
    result = cli("history", "--name", "mini")
    assert (result.code, result.out.strip()) == (0, "no runs")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--metric", "pixel_app"], "did you mean"),
        (["--name", "minni"], "did you mean 'mini'"),
        (["--dataset", "visa"], "did you mean 'VisA'"),
        (["--plot", "plot.svg"], ".png"),
    ],
)
def test_a_wrong_filter_is_refused(cli: Cli, runs: Path, arguments: list[str], part: str) -> None:
    result = cli("history", *arguments)
    assert result.code == 2
    assert part in result.refusal()


def test_a_history_that_cannot_be_read_does_not_cost_a_run(bench: Bench, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "history.parquet").write_bytes(b"not a table")
    result = cli(*bench.arguments(), "--out", tmp_path / "run")
    assert result.code == 0
    assert "warning not in the history" in result.out
    assert (tmp_path / "run" / "run.json").is_file()
    assert (tmp_path / "runs" / "history.parquet").read_bytes() == b"not a table"
    assert "history.parquet" in cli("history").refusal()
