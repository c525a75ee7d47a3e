from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Bench, Cli, Outcome, Recorder, files_of, flip_chunk

pytestmark = pytest.mark.xdist_group("prefect")


def run(bench: Bench, *more: str) -> Outcome:
    from cascade.flows.engines.prefect_flow import evaluate_on_prefect

    prepared, recorder = bench.prepare(*more), Recorder()
    return Outcome(prepared, evaluate_on_prefect(prepared.run, recorder), recorder)


def last_task_runs(expected: int) -> list[Any]:
    """The task runs of the newest flow run; the server learns of them and of their ends a little after they end."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (newest,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        for _ in range(200):
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[newest.id])))
            if len(runs) >= expected and all(each.state and each.state.is_final() for each in runs):
                break
            time.sleep(0.1)
        return runs


@pytest.fixture(scope="session")
def on_prefect(
    server: None, tmp_path_factory: pytest.TempPathFactory, finished: tuple[Bench, Outcome]
) -> tuple[Bench, Outcome]:
    """The finished run once more, on Prefect; its references to this store are in Prefect's cache."""
    bench = replace(finished[0], store=tmp_path_factory.mktemp("on_prefect") / "store")
    return bench, run(bench)


def test_both_engines_write_the_same_bytes(on_prefect: tuple[Bench, Outcome], finished: tuple[Bench, Outcome]) -> None:
    ours, theirs = files_of(on_prefect[0].store), files_of(finished[0].store)
    assert set(ours) == set(theirs)
    assert [path for path in ours if ours[path] != theirs[path]] == []
    assert on_prefect[1].computed == finished[1].computed


@pytest.mark.usefixtures("no_networks")
def test_a_second_run_takes_every_task_from_the_cache(on_prefect: tuple[Bench, Outcome]) -> None:
    bench, _ = on_prefect
    before = files_of(bench.store)
    outcome = run(bench)
    assert outcome.computed == {}
    task_runs = last_task_runs(expected=8)
    assert Counter(each.state_name for each in task_runs) == {"Cached": 8}
    assert {each.name.split("-")[0] for each in task_runs} == {
        "embed",
        "tokens",
        "localise",
        "prompt",
        "refine",
        "score",
        "tally",
        "aggregate",
    }
    assert files_of(bench.store) == before


def test_a_task_for_each_shard(on_prefect: tuple[Bench, Outcome]) -> None:
    outcome = run(on_prefect[0], "runtime.shard_size=3", "runtime.workers=2")
    assert outcome.computed == {}
    assert len(last_task_runs(expected=6 * 3 + 2)) == 6 * 3 + 2


def test_a_reference_that_the_store_no_longer_holds_is_computed_again(on_prefect: tuple[Bench, Outcome]) -> None:
    bench, first = on_prefect
    before = files_of(bench.store)
    shutil.rmtree(first.artefact("refine").path)
    outcome = run(bench)
    assert outcome.computed == {"refine": 8}
    assert files_of(bench.store) == before


def test_damage_is_mended_through_prefect_too(on_prefect: tuple[Bench, Outcome]) -> None:
    bench, _ = on_prefect
    cached = run(bench)
    shutil.rmtree(cached.artefact("score").path)
    item = sorted(cached.artefact("refine").done())[2]
    flip_chunk(cached.artefact("refine"), "logits", item)
    outcome = run(bench)
    assert [error.item for error in outcome.recorder.damage] == [item]
    assert outcome.recorder.writes["refine"] == 1
    assert outcome.recorder.writes["embed"] == 0


def test_a_failing_stage_raises_its_own_error(on_prefect: tuple[Bench, Outcome], tmp_path: Path) -> None:
    from cascade.storage.errors import WeightsError
    from tests.flows.conftest import save_adapter

    bench, _ = on_prefect
    with pytest.raises(WeightsError, match="layers"):
        run(bench, f"localise.adapter={save_adapter(tmp_path / 'short.safetensors', layers=3)}")


@pytest.mark.usefixtures("server")
def test_an_ablation_is_one_flow_run(bench: Bench, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stages are task runs by shard, those that variants share once, and its table is that of the other engine."""
    from prefect.client.orchestration import get_client

    def flow_runs() -> int:
        with get_client(sync_client=True) as client:
            return len(client.read_flow_runs())

    monkeypatch.setattr("cascade.flows.ablation.outputs.write_plots", lambda *arguments: None)
    (tmp_path / "grid.yaml").write_text("axes: {grid: {score.weight: [0.2, 0.8]}}", encoding="utf-8")
    given = [part for part in bench.arguments()[2:] if part not in ("--engine", "local")]
    before = flow_runs()
    assert (
        cli("ablate", tmp_path / "grid.yaml", *given, "--engine", "prefect", "--out", tmp_path / "on_prefect").code == 0
    )
    assert flow_runs() == before + 1
    names = Counter(each.name.split("-")[0] for each in last_task_runs(expected=10))
    assert names == dict.fromkeys(("embed", "tokens", "localise", "prompt", "refine"), 1) | dict.fromkeys(
        ("score", "tally", "aggregate"), 2
    )
    other = [*given, "--engine", "local", "--out", tmp_path / "local"]
    assert cli("ablate", tmp_path / "grid.yaml", *other).code == 0
    ours, theirs = (tmp_path / name / "results.csv" for name in ("on_prefect", "local"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_results_hold_references_only(on_prefect: tuple[Bench, Outcome]) -> None:
    results = [path for path in (on_prefect[0].store / "prefect-results").rglob("*") if path.is_file()]
    assert results
    assert max(path.stat().st_size for path in results) < 4000


@pytest.mark.parametrize("ours", [False, True])
def test_heartbeats_go_to_a_server_that_outlives_the_run(
    server: None, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

    from cascade.configs.schema import RuntimeConfig
    from cascade.flows.engines import prefect_flow

    if ours:
        monkeypatch.setattr(prefect_flow, "server_is_ours", lambda: True)
    seconds = prefect_flow.run_as_flow("beats", "beats", {}, RuntimeConfig(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value)
    assert seconds == (None if ours else PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value())
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() is not None
