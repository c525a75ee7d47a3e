"""A schedule that re-evaluates: nothing new is nothing to do, and a number that falls raises its hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.baselines import accept
from cascade.flows.evaluate import evaluate
from cascade.flows.generate import generate_dataset
from cascade.flows.history import read_history
from cascade.flows.local_engine import execute_locally
from cascade.flows.reevaluate import Reevaluation, reevaluate
from cascade.storage.errors import StageError
from tests.flows.conftest import Recorder, save_adapter, save_scene

pytestmark = pytest.mark.xdist_group("prefect")
WAIT = 240

FELL = r"\b(metal_plate|tile|mean): pixel_\w+ fell by 0\.\d+ "
"""What a report of a fall names: the category or the mean, the metric and by how much. Which rows are sure of their
fall is up to the weights."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories on which the mini models find most of the damage."""
    folder = tmp_path_factory.mktemp("nightly") / "data"
    generate_dataset(folder, categories=("metal plate", "tile"), good=2, defective=6, size=256, seed=3)
    return folder


@pytest.fixture
def nightly(photographs: Path, tmp_path: Path) -> Callable[..., Reevaluation]:
    """One night after another, with the local engine."""
    machine = Settings(runs=tmp_path / "runs")

    def night(*changes: str) -> Reevaluation:
        experiment = load_experiment("mini", [f"dataset.path={photographs}", *changes])
        return reevaluate(
            experiment,
            tmp_path / "store",
            machine,
            lambda run, reporter: evaluate(run, execute_locally, reporter),
            Recorder(),
            engine="local",
        )

    return night


@pytest.fixture
def worse(tmp_path: Path) -> str:
    """A configuration with linear layers that were never trained."""
    return f"localise.adapter={save_adapter(tmp_path / 'random.safetensors')}"


def test_night_after_night(nightly: Callable[..., Reevaluation], worse: str, tmp_path: Path) -> None:
    first = nightly()
    assert (first.state, first.changes) == ("no baseline", ())
    assert f"cascade baseline set {first.run.folder}" in first.message
    accept(tmp_path / "runs", first.run.folder)

    second = nightly()
    assert (second.state, second.run.folder) == ("unchanged", first.run.folder)
    assert len(read_history(tmp_path / "runs")) == 1

    harmless = nightly("refine.box_padding=0.01")
    assert harmless.run.folder != first.run.folder
    assert harmless.changes == ("config refine.box_padding: 0.0 → 0.01",)

    fallen = nightly(worse)
    assert fallen.state == "closed"
    assert re.search(FELL, fallen.message)
    assert any(line.startswith("weights adapter: ") for line in fallen.changes)
    assert fallen.message in fallen.markdown()

    again = nightly(worse)
    assert (again.state, again.run.folder) == ("closed", fallen.run.folder)


def test_a_new_image_is_run_and_named(nightly: Callable[..., Reevaluation], photographs: Path) -> None:
    nightly()
    path = save_scene(photographs / "tile" / "test" / "good" / "0900.png", seed=9, size=256, category="tile")
    try:
        found = nightly()
    finally:
        path.unlink()
    assert found.changes == ("image tile/test/good/0900.png: only in the run",)


def test_a_night_that_overlaps_is_skipped(nightly: Callable[..., Reevaluation], tmp_path: Path) -> None:
    (tmp_path / "runs" / "mini").mkdir(parents=True)
    with (
        FileLock(tmp_path / "runs" / "mini" / "reevaluate.lock"),
        pytest.raises(StageError, match="still at work; this one is skipped"),
    ):
        nightly()


# On a Prefect server


@pytest.fixture
def served(server: None, photographs: Path, tmp_path: Path) -> Iterator[None]:
    """``cascade serve`` as a person starts it, on the server of the tests."""
    from prefect.settings import get_current_settings

    environment = os.environ | {
        "PREFECT_API_URL": str(get_current_settings().api.url),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "CASCADE_RUNS": str(tmp_path / "runs"),
    }
    command = [
        sys.executable,
        "-c",
        "from cascade.flows.cli import main; main()",
        "serve",
        "mini",
        "--cron",
        "0 2 1 1 *",
    ]
    command += ["--dataset", str(photographs), "--store", str(tmp_path / "store")]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        yield
        process.terminate()
        try:
            process.wait(120)
        finally:
            process.kill()


def scheduled_run(**parameters: Any) -> Any:
    """The final state of a run of the deployment that is scheduled for now."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        end = time.monotonic() + WAIT
        while True:
            try:
                deployment = client.read_deployment_by_name("reevaluate/mini")
                break
            except ObjectNotFound:
                assert time.monotonic() < end, "cascade serve made no deployment"
                time.sleep(0.5)
        flow_run = client.create_flow_run_from_deployment(deployment.id, parameters=deployment.parameters | parameters)
        while time.monotonic() < end:
            state = client.read_flow_run(flow_run.id).state
            if state is not None and state.is_final():
                return state
            time.sleep(0.5)
    raise AssertionError("the scheduled run did not end")


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("served")
def test_a_schedule_writes_its_table_then_finds_nothing_to_do_then_fails(worse: str, tmp_path: Path) -> None:
    first = scheduled_run()
    assert first.is_completed(), (first.message, (tmp_path / "serve.log").read_text()[-2000:])
    (folder,) = (path.parent for path in (tmp_path / "runs" / "mini").glob("2*/results.csv"))
    accept(tmp_path / "runs", folder)

    second = scheduled_run()
    assert (second.name, len(list((tmp_path / "runs" / "mini").glob("2*/results.csv")))) == ("Unchanged", 1)

    third = scheduled_run(settings=[worse])
    assert third.is_failed()
    assert re.search(FELL, third.message)


def test_serving_without_a_server_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from cascade.flows.schedules import serve
    from cascade.storage.errors import ConfigError

    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigError, match="prefect server start"),
    ):
        serve("nightly", {}, cron="0 2 * * *", timezone="UTC")
