"""Threads, processes, Dask and Ray do the same work, and none of it is lost with a worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.flows.cli.options import load_with_options
from cascade.flows.engines.evaluate import STAGES
from cascade.storage.errors import ConfigError
from cascade.tasks.aggregate import table_rows
from cascade.tasks.stage import Run
from tests.flows.conftest import Bench, Cli, Outcome, Recorder

pytestmark = pytest.mark.xdist_group("prefect")
SHARDS = ("runtime.shard_size=2", "runtime.workers=2")
WAIT = 180
UNGUARDED = "import sys; from cascade.flows.cli import main; sys.argv[0] = 'cascade'; main()"
"""A program without ``if __name__ == "__main__"``, which a process started by it must not run again."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, finished: tuple[Bench, Outcome]) -> Outcome:
    """One process, one thread, the same shards: networks may round differently in batches of another size."""
    bench = replace(finished[0], store=tmp_path_factory.mktemp("reference") / "store")
    return bench.run(SHARDS[0])


def run(bench: Bench, *more: str) -> Outcome:
    from cascade.flows.engines.prefect_flow import evaluate_on_prefect

    prepared, recorder = bench.prepare(*more), Recorder()
    return Outcome(prepared, evaluate_on_prefect(prepared.run, recorder), recorder)


def assert_same(ours: Run, theirs: Run) -> None:
    """The same items, every array byte for byte, the same tables, and no worker's ledger left behind."""
    assert table_rows(ours) == table_rows(theirs)
    for stage in STAGES:
        own, other = ours.artefact(stage.key(ours)), theirs.artefact(stage.key(theirs))
        assert own.done() == other.done()
        assert [path.name for path in own.path.glob("ledger*")] == ["ledger.jsonl"]
        for item in own.done():
            left, right = own.read(item).arrays, other.read(item).arrays
            assert all(np.array_equal(left[name], right[name]) for name in right)


def in_words(bench: Bench, *more: object) -> list[str]:
    """Arguments of a command that leave its engine to the runner."""
    given = [part for part in bench.arguments()[2:] if part not in ("--engine", "local")]
    shards = [part for setting in SHARDS for part in ("--set", setting)]
    return [*given, *shards, *map(str, more)]


DOORS = {
    "processes": [str(Path(sys.executable).with_name("cascade"))],
    "dask": [sys.executable, "unguarded.py"],
    "ray": [sys.executable, "-c", UNGUARDED],
}
"""Three ways to start a command, one for each runner."""


def ends_well(command: Sequence[str], folder: Path, text: str = "") -> None:
    from prefect.settings import get_current_settings

    environment = os.environ | {
        "PREFECT_API_URL": str(get_current_settings().api.url),
        "CASCADE_RUNS": str(folder / "runs"),
    }
    ended = subprocess.run(
        command, cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=WAIT
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "runner",
    ["processes", pytest.param("dask", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)],
)
def test_every_runner_leaves_what_one_process_leaves(
    runner: str, empty: Bench, reference: Outcome, tmp_path: Path
) -> None:
    (tmp_path / "unguarded.py").write_text(UNGUARDED, encoding="utf-8")
    devices = ("--devices", "cpu,cpu") if runner == "processes" else ()
    arguments = in_words(empty, "--runner", runner, "--out", tmp_path / "out", *devices)
    ends_well([*DOORS[runner], "run", "mini", *arguments], tmp_path)
    stages = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["stages"]
    assert {each["stage"]: each["computed"] for each in stages} == reference.computed
    assert_same(empty.prepare(SHARDS[0]).run, reference.prepared.run)


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_an_ablation_in_processes_of_a_program_from_standard_input(bench: Bench, tmp_path: Path, cli: Cli) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("axes: {grid: {score.weight: [0.2, 0.8]}}", encoding="utf-8")
    copy = replace(bench, store=shutil.copytree(bench.store, tmp_path / "copy"))
    arguments = in_words(bench, "--runner", "processes", "--out", tmp_path / "ours", "--set", "runtime.workers=1")
    ends_well([sys.executable, "-", "ablate", str(grid), *arguments], tmp_path, UNGUARDED)
    assert cli("ablate", grid, *copy.arguments(SHARDS[0])[2:], "--out", tmp_path / "theirs").code == 0
    assert (tmp_path / "ours" / "results.csv").read_bytes() == (tmp_path / "theirs" / "results.csv").read_bytes()


def test_worker_processes_are_not_told_of_the_program_that_started_them() -> None:
    from multiprocessing.spawn import get_preparation_data

    from cascade.flows.engines.runners import hidden_main

    main = sys.modules["__main__"]
    with hidden_main():
        told = get_preparation_data("worker")
    assert not {"init_main_from_name", "init_main_from_path"} & set(told)
    assert sys.modules["__main__"] is main


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_killed_worker_loses_nothing(empty: Bench, reference: Outcome) -> None:
    import psutil

    killed: list[int] = []

    def kill_one() -> None:
        """Once the first embedding is there, the process that wrote it."""
        for _ in range(6000):
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
    assert outcome.recorder.writes == reference.recorder.writes
    assert_same(outcome.prepared.run, reference.prepared.run)


def test_options_become_the_runtime() -> None:
    runtime = load_with_options("mini", None, None, runner="ray", devices="cuda:0,cuda:1").runtime
    assert (runtime.runner, runtime.devices) == ("ray", ("cuda:0", "cuda:1"))


def test_several_devices_need_processes(empty: Bench) -> None:
    with pytest.raises(ConfigError, match="need worker processes"):
        empty.prepare("runtime.devices=[cpu, cpu]")


def test_a_worker_takes_the_device_with_the_fewest_workers(tmp_path: Path) -> None:
    from cascade.tasks.execution.devices import claim

    devices = ("cuda:0", "cuda:1")
    claims = [claim(devices, tmp_path) for _ in range(4)]
    assert [device for device, _ in claims] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    claims[1][1].release()
    assert claim(devices, tmp_path)[0] == "cuda:1"


def test_an_extra_that_is_missing_is_named(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade.flows.engines import runners

    monkeypatch.setattr(runners, "find_spec", lambda name: None)
    runtime = empty.prepare("runtime.runner=ray").run.experiment.runtime
    with pytest.raises(ConfigError, match=r"pip install 'clip-sam-cascade\[ray\]'"):
        runners.make_runner(runtime)
