"""A schedule that re-evaluates: nothing new is nothing to do, and a number that falls raises its hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.generate import generate_dataset
from cascade.flows.run.history import read_history
from cascade.flows.watch import Reevaluation, reevaluate
from cascade.flows.watch.baselines import accept
from cascade.storage.errors import StageError
from tests.flows.conftest import Cli, Recorder, save_adapter, save_scene

pytestmark = pytest.mark.xdist_group("prefect")

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
        return reevaluate(experiment, store=tmp_path / "store", engine="local", settings=machine, observer=Recorder())

    return night


@pytest.fixture
def worse(tmp_path: Path) -> str:
    """A configuration with linear layers that were never trained."""
    return f"localise.adapter={save_adapter(tmp_path / 'random.safetensors')}"


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("given", "server", "says"),
    [
        ((), None, "start one with `prefect server start`"),
        ((), "http://127.0.0.1:9/api", "no Prefect server answers"),
        (("--cron", "61 * * * *"), "http://127.0.0.1:9/api", "--cron '61 * * * *' --timezone 'UTC': no such times"),
        (("--timezone", "Mars"), "http://127.0.0.1:9/api", "--cron '0 2 * * *' --timezone 'Mars': no such times"),
    ],
)
def test_what_cannot_be_served_is_refused(
    given: tuple[str, ...], server: str | None, says: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    if server is not None:
        monkeypatch.setenv("PREFECT_API_URL", server)
    with temporary_settings({PREFECT_API_URL: server}):
        refused = cli("serve", "mini", *given)
    assert says in refused.refusal()
    assert refused.code == 2


def test_a_server_that_plans_nothing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from cascade.flows.watch import schedules

    monkeypatch.setattr(schedules, "_SCHEDULER_TAKES", timedelta(0))
    said: list[str] = []
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        schedules._say_next_slot("mini", "UTC", said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: the server has planned no run")
