"""Threads, processes, Dask and Ray do the same work, and none of it is lost with a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.flows.cli.options import load_with_options
from cascade.flows.evaluate import STAGES
from cascade.storage.errors import ConfigError
from cascade.tasks.aggregate import table_rows
from tests.flows.conftest import Bench, Outcome, Recorder

pytestmark = pytest.mark.xdist_group("prefect")
SHARDS = ("runtime.shard_size=2", "runtime.workers=2")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, finished: tuple[Bench, Outcome]) -> Outcome:
    """One process, one thread, the same shards: networks may round differently in batches of another size."""
    bench = replace(finished[0], store=tmp_path_factory.mktemp("reference") / "store")
    return bench.run(SHARDS[0])


def run(bench: Bench, *more: str) -> Outcome:
    from cascade.flows.prefect_engine import evaluate_on_prefect

    prepared, recorder = bench.prepare(*more), Recorder()
    return Outcome(prepared, evaluate_on_prefect(prepared.run, recorder), recorder)


def assert_same(ours: Outcome, theirs: Outcome) -> None:
    """The same items, every array byte for byte, the same tables, and no worker's ledger left behind."""
    assert table_rows(ours.prepared.run) == table_rows(theirs.prepared.run)
    for stage in STAGES:
        own, other = ours.artefact(stage.name), theirs.artefact(stage.name)
        assert own.done() == other.done()
        assert [path.name for path in own.path.glob("ledger*")] == ["ledger.jsonl"]
        for item in own.done():
            left, right = own.read(item).arrays, other.read(item).arrays
            assert all(np.array_equal(left[name], right[name]) for name in right)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("runner", ["processes", "dask", "ray"])
def test_every_runner_leaves_what_one_process_leaves(runner: str, empty: Bench, reference: Outcome) -> None:
    outcome = run(empty, f"runtime.runner={runner}", *SHARDS)
    assert outcome.computed == reference.computed
    assert outcome.recorder.writes == reference.recorder.writes
    assert_same(outcome, reference)


@pytest.mark.usefixtures("server")
def test_a_killed_worker_loses_nothing(empty: Bench, reference: Outcome) -> None:
    import psutil

    killed: list[int] = []

    def kill_one() -> None:
        """Once the first embedding is there, the process that wrote it."""
        for _ in range(1200):
            if any((empty.store / "embed").glob("*/ledger.*.jsonl")):
                workers = [
                    each
                    for each in psutil.Process().children(recursive=True)
                    if any("dask" in word or "spawn_main" in word for word in each.cmdline())
                ]
                victim = max(workers, key=lambda each: each.cpu_times().user)
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcome = run(empty, "runtime.runner=dask", *SHARDS)
    killer.join()
    assert killed
    assert_same(outcome, reference)


def test_other_processes_need_the_prefect_engine() -> None:
    with pytest.raises(ConfigError, match="needs --engine prefect"):
        load_with_options("mini", None, None, engine="local", runner="processes")


def test_options_become_the_runtime() -> None:
    runtime = load_with_options("mini", None, None, runner="ray", devices="cuda:0,cuda:1").runtime
    assert (runtime.runner, runtime.devices) == ("ray", ("cuda:0", "cuda:1"))


def test_several_devices_need_processes(empty: Bench) -> None:
    with pytest.raises(ConfigError, match="need worker processes"):
        empty.prepare("runtime.devices=[cpu, cpu]")


def test_a_worker_takes_the_device_with_the_fewest_workers(tmp_path: Path) -> None:
    from cascade.tasks.devices import claim

    devices = ("cuda:0", "cuda:1")
    claims = [claim(devices, tmp_path) for _ in range(4)]
    assert [device for device, _ in claims] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    claims[1][1].release()
    assert claim(devices, tmp_path)[0] == "cuda:1"


@pytest.mark.usefixtures("server")
def test_workers_with_devices_of_their_own(empty: Bench, reference: Outcome) -> None:
    outcome = run(empty, "runtime.runner=processes", "runtime.devices=[cpu, cpu]", *SHARDS)
    assert_same(outcome, reference)


def test_an_extra_that_is_missing_is_named(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade.flows import runners

    monkeypatch.setattr(runners, "find_spec", lambda name: None)
    runtime = empty.prepare("runtime.runner=ray").run.experiment.runtime
    with pytest.raises(ConfigError, match=r"pip install 'clip-sam-cascade\[ray\]'"):
        runners.make_runner(runtime)
