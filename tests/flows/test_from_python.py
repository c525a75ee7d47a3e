"""What the commands do, done by a program of somebody else's."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.ablation import define_ablation, resume_ablation, run_ablation
from cascade.flows.engines import evaluate
from cascade.flows.engines.choice import Engine
from cascade.flows.engines.evaluate import StagePlan, StageResult
from cascade.flows.generate import generate_dataset
from cascade.flows.run import Evaluation, Observer, run_experiment
from cascade.flows.run.history import read_history
from cascade.flows.run.prepare import Prepared
from cascade.flows.watch import compare_runs
from cascade.storage.errors import ConfigError, LeakError
from cascade.tasks.refine import REFINE
from tests.flows.conftest import Bench, files_of, flip_chunk, save_adapter

ROOT = Path(__file__).parents[2]
STAGES = ("embed", "tokens", "localise", "prompt", "refine", "score", "tally", "aggregate")


def run(bench: Bench, folder: Path, *changes: str, observer: Observer | None = None, **options: bool) -> Evaluation:
    experiment = load_experiment("mini", [f"dataset.path={bench.dataset}", *bench.overrides, *changes])
    machine = Settings(store=bench.store, runs=folder / "runs")
    return run_experiment(experiment, engine="local", settings=machine, observer=observer, **options)


def test_the_example_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    (section,) = re.findall(r"## From Python\n(.*?)\n## ", (ROOT / "README.md").read_text("utf-8"), re.S)
    program = "".join(re.findall(r"```python\n(.*?)```", section, re.S))
    assert program.count("import") >= 5
    generate_dataset(tmp_path / "photos", categories=("metal plate",), good=2, defective=2, size=96)
    shutil.copy(next((tmp_path / "photos").rglob("test/*/*.png")), tmp_path / "plate.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "PREFECT_"))}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "points+box+logits" in ended.stdout
    assert len(list((tmp_path / "runs" / "mini").glob("2*/run.json"))) == 2
    assert (tmp_path / "runs" / "fusion" / "latest" / "results.csv").is_file()
    assert "runs/mini/" in ended.stdout
    assert "['clip', 'points', 'points+logits', 'points+box+logits']" in ended.stdout


@pytest.mark.usefixtures("no_networks")
def test_a_run_is_its_table_its_folder_and_a_row_of_the_history(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = run(bench, tmp_path), run(bench, tmp_path, "score.weight=0.25")
    assert first.folder.parent == tmp_path / "runs" / "mini"
    assert [result.stage for result in first.results] == list(STAGES)
    assert list(read_history(tmp_path / "runs")["folder"]) == [str(first.folder), str(second.folder)]
    comparison = compare_runs(second.folder, first.folder)
    assert "config score.weight: 0.3 → 0.25" in comparison.notes()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("no_networks")
def test_a_run_is_planned_once_before_its_stages(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[str] = []
    real = evaluate.plan_stage
    monkeypatch.setattr(evaluate, "plan_stage", lambda run, stage: (planned.append(stage.name), real(run, stage))[1])
    run(bench, tmp_path)
    assert planned == [*STAGES, *STAGES]  # the whole, then each stage as it begins


@pytest.mark.usefixtures("no_networks")
def test_what_cannot_run_raises_and_writes_nothing(bench: Bench, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "leak.safetensors", {"dataset": "tiny", "categories": ["carpet"]})
    before = files_of(tmp_path)
    with pytest.raises(LeakError, match="trained on category 'carpet'"):
        run(bench, tmp_path, f"localise.adapter={adapter}")
    with pytest.raises(ConfigError, match="no dataset at"):
        run(bench, tmp_path, "dataset.path=nowhere")
    assert files_of(tmp_path) == before


def test_a_test_that_is_not_fair_and_images_left_out_are_remarks(own_data: Bench, tmp_path: Path) -> None:
    (own_data.dataset / "carpet" / "test" / "good" / "0000.png").write_bytes(b"no image")
    adapter = save_adapter(tmp_path / "leak.safetensors", {"dataset": "tiny", "categories": ["carpet"]})
    found = run(own_data, tmp_path, f"localise.adapter={adapter}", allow_leak=True, skip_bad=True)
    assert found.left_out == 1
    assert found.remarks == (
        f"not zero-shot: {found.leak}",
        f"1 image left out, listed with reasons in {found.folder / 'skipped.csv'}",
    )


class Listening(Observer):
    """Remembers what it is told, in order."""

    def __init__(self, store: Path) -> None:
        self.store, self.heard = store, list[str]()

    def engine(self, engine: Engine) -> None:
        self.heard.append(f"engine {engine.name}")

    def begins(self, prepared: Sequence[Prepared], folder: Path) -> None:
        self.heard.append(f"begins {len(prepared)}, store {self.store.exists()}, folder {folder.exists()}")

    def variant(self, name: str) -> None:
        self.heard.append(name)

    def started(self, plan: StagePlan) -> Callable[[], None]:
        return lambda: self.heard.append(plan.stage.name)

    def finished(self, result: StageResult) -> None:
        self.heard.append(f"{result.stage} ends")

    def ended(self, folder: Path, remarks: Sequence[str]) -> None:
        self.heard.append(f"ended {len(remarks)}, {(folder / 'results.csv').is_file()}")


def test_an_observer_is_told_everything_in_order(empty: Bench, tmp_path: Path) -> None:
    listening = Listening(empty.store)
    run(empty, tmp_path, observer=listening)
    counts = dict.fromkeys(STAGES, 8) | {"tally": 2, "aggregate": 1}
    stages = [line for name in STAGES for line in (*[name] * counts[name], f"{name} ends")]
    assert listening.heard == ["engine local", "begins 1, store False, folder False", *stages, "ended 0, True"]


def test_without_an_observer_the_logger_is_told(
    own_data: Bench,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (own_data.dataset / "carpet").rename(own_data.dataset / "photos")
    first = own_data.run()
    item = next(each.id for each in REFINE.items(first.prepared.run) if each.record.category == "metal_plate")
    flip_chunk(first.artefact("refine"), "logits", item)
    shutil.rmtree(first.artefact("score").path)
    with caplog.at_level(logging.INFO, "cascade"):
        found = run(own_data, tmp_path)
    said = [f"{record.levelname} {record.getMessage()}" for record in caplog.records if record.name == "cascade"]
    assert said[0].startswith("WARNING photos: CLIP is told 'photos', the name of the folder, which says nothing")
    assert [line.startswith("WARNING damaged: ") and item in line for line in said].count(True) == 1
    assert any(line.startswith("INFO refine    miss 1 of 8 computed in ") for line in said)
    assert said[-1] == f"INFO tables in {found.folder}"
    assert capsys.readouterr().out == ""


def test_an_ablation_is_run_and_resumed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("axes: {grid: {score.weight: [0.2, 0.8]}}", encoding="utf-8")
    given = [f"dataset.path={bench.dataset}", *bench.overrides]
    machine = Settings(store=bench.store, runs=tmp_path / "runs")
    ablation = define_ablation(str(tmp_path / "grid.yaml"), "mini", given, settings=machine)
    listening = Listening(bench.store)
    found = run_ablation(ablation, engine="local", settings=machine, observer=listening)
    names = [variant.name for variant in ablation.variants]
    assert [line for line in listening.heard if line in names] == names
    assert listening.heard[0] == "engine local"
    assert (found.failed, found.remarks) == ((), ())
    assert found.table is not None
    assert set(found.table["score.weight"]) == {0.2, 0.8}
    assert list(found.runs) == names
    with pytest.raises(ConfigError, match="holds an ablation already"):
        run_ablation(ablation, out=found.folder, engine="local", settings=machine)
    again = resume_ablation(found.folder, engine="local", settings=machine)
    assert again.table is not None
    assert again.table.equals(found.table)
