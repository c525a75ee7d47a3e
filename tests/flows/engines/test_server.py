"""A Prefect server as a person starts one: slots of a schedule, a worker, and the webhook of a gate that trips."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from filelock import FileLock

from cascade.flows.generate import generate_dataset
from cascade.flows.watch.baselines import accept
from tests.flows.conftest import Bench, Outcome

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prefect"), pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]
WAIT = 240
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Server:
    """A server, and what a command has to know to find it."""

    address: str
    environment: dict[str, str]
    folder: Path

    def ask(self, path: str, **content: Any) -> Any:
        """The answer; a server that says it is busy is asked again, as Prefect's own client does."""

        def answer() -> httpx.Response | None:
            answered = httpx.post(f"{self.address}/{path}", json=content, timeout=30)
            return None if answered.status_code == httpx.codes.SERVICE_UNAVAILABLE else answered

        return wait_for(answer, f"{path} is not answered").raise_for_status().json()

    def command(self, *words: str) -> str:
        """What a command prints that ends well."""
        ended = subprocess.run(
            [tool(words[0]), *words[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @contextmanager
    def running(self, *words: str, **more: str) -> Iterator[Path]:
        """A command that goes on until it is stopped, and the file that it writes to."""
        log = self.folder / f"{words[0]}-{words[1]}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [tool(words[0]), *words[1:]], cwd=self.folder, env=self.environment | more, stdout=output, stderr=output
            )
            try:
                yield log
            finally:
                process.terminate()
                try:
                    process.wait(120)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise

    def deployment(self, name: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            listed = self.ask("deployments/filter", deployments={"name": {"any_": [name]}})
            return listed[0] if listed else None

        return wait_for(found, f"no deployment {name}")

    def start(self, name: str, **parameters: Any) -> str:
        """The id of a run of a deployment that is due now."""
        deployment = self.deployment(name)
        started = self.ask(
            f"deployments/{deployment['id']}/create_flow_run", parameters=deployment["parameters"] | parameters
        )
        return str(started["id"])

    def at_work(self, name: str) -> str | None:
        """The id of a run that is running."""
        return next((each["id"] for each in self.runs(name) if each["state_type"] == "RUNNING"), None)

    def runs(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", deployments={"name": {"any_": [name]}})
        return found

    def ended(self, run: str) -> dict[str, Any]:
        """A run that has come to its end."""

        def final() -> dict[str, Any] | None:
            found: dict[str, Any] = httpx.get(f"{self.address}/flow_runs/{run}", timeout=30).json()
            return found if found["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") else None

        return wait_for(final, f"run {run} goes on")


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def wait_for(look: Callable[[], Answer | None], otherwise: str) -> Answer:
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if (found := look()) is not None:
            return found
        time.sleep(0.3)
    raise AssertionError(otherwise)


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`prefect server start` with all its services, on a port of its own."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CASCADE_"))}
    environment |= {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    server = Server(environment["PREFECT_API_URL"], environment, folder)

    def answers() -> bool | None:
        try:
            return httpx.get(f"{server.address}/health").is_success or None
        except httpx.HTTPError:
            return None

    with server.running("prefect", "server", "start", "--port", str(port)) as log:
        wait_for(answers, f"no server; see {log}")
        yield server


@pytest.fixture(scope="module")
def served(prefect: Server, finished: tuple[Bench, Outcome]) -> Iterator[Path]:
    """`cascade serve` on a run of which everything is in the store; what it prints."""
    store = shutil.copytree(finished[0].store, prefect.folder / "served")
    settings = [part for override in finished[0].overrides for part in ("--set", override)]
    arguments = ["--dataset", str(finished[0].dataset), "--store", str(store), *settings]
    with prefect.running("cascade", "serve", "mini", "--cron", "* * * * *", *arguments) as log:
        prefect.deployment("mini")
        yield log


@pytest.fixture(scope="module")
def slot(prefect: Server, served: Path) -> dict[str, Any]:
    """A run that nobody but the schedule has asked for, at its end; the schedule then pauses."""

    def over() -> dict[str, Any] | None:
        planned = (each for each in prefect.runs("mini") if each["auto_scheduled"] and each["end_time"])
        return next(planned, None)

    ended = wait_for(over, "no slot became a run")
    httpx.post(f"{prefect.address}/deployments/{prefect.deployment('mini')['id']}/pause_deployment").raise_for_status()
    wait_for(lambda: True if prefect.at_work("mini") is None else None, "a run goes on")
    return ended


def test_a_slot_of_the_schedule_starts_a_run(prefect: Server, served: Path, slot: dict[str, Any]) -> None:
    due, start, end = (datetime.fromisoformat(slot[f"{each}_time"]) for each in ("expected_start", "start", "end"))
    print(f"slot {due:%H:%M:%S}, started {start:%H:%M:%S.%f}, ended {end:%H:%M:%S.%f}: {slot['state_name']}")
    assert slot["state_type"] == "COMPLETED"
    assert due.second == 0
    assert due - timedelta(seconds=1) <= start <= min(end, due + timedelta(seconds=60))
    assert (prefect.folder / "runs" / "mini" / "latest" / "results.csv").is_file()


def test_serving_says_what_it_does_and_when(prefect: Server, served: Path, slot: dict[str, Any]) -> None:
    first, second = served.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith(f"serving reevaluate/mini on {prefect.address}: '* * * * *' UTC")
    assert datetime.strptime(second, "next slot: %Y-%m-%d %H:%M UTC")


def test_a_slot_that_overlaps_is_skipped(
    prefect: Server, slot: dict[str, Any], finished: tuple[Bench, Outcome]
) -> None:
    score = prefect.folder / "served" / finished[1].artefact("score").path.relative_to(finished[0].store)
    shutil.rmtree(score)

    with FileLock(score.with_suffix(".lock")):  # whoever has to compute scores waits for it
        busy = prefect.start("mini")
        assert wait_for(lambda: prefect.at_work("mini"), "no run started") == busy
        assert prefect.ended(prefect.start("mini"))["state_type"] == "CANCELLED"
        assert prefect.at_work("mini") == busy
    assert prefect.ended(busy)["state_type"] == "COMPLETED"


@pytest.fixture
def heard() -> Iterator[tuple[str, list[Any]]]:
    """The address of a webhook, and what it is sent."""
    said: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listener.server_port}/hook", said
    listener.shutdown()
    thread.join()
    listener.server_close()


def test_a_gate_that_trips_calls_the_webhook(
    prefect: Server, slot: dict[str, Any], heard: tuple[str, list[Any]]
) -> None:
    """As the head of docs/automation.yaml says."""
    address, said = heard
    text = (ROOT / "docs" / "automation.yaml").read_text(encoding="utf-8")
    register, save, inspect = (
        line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#     ")
    )
    prefect.command(*register.split())
    program = save.split('"')[1].replace("https://example.com/hook", address)
    subprocess.run([sys.executable, "-c", program], env=prefect.environment, cwd=prefect.folder, check=True)
    (block,) = (
        word
        for word in prefect.command(*inspect.partition("#")[0].split()).split()
        if word.count("-") == 4 and "─" not in word
    )
    (prefect.folder / "automation.yaml").write_text(text.replace("00000000-0000-0000-0000-000000000000", block))
    prefect.command("prefect", "automation", "create", "--from-file", "automation.yaml")

    accept(prefect.folder / "runs", (prefect.folder / "runs" / "mini" / "latest").resolve())
    assert prefect.ended(prefect.start("mini"))["state_name"] == "Unchanged"
    settings = prefect.deployment("mini")["parameters"]["settings"]
    fewer = prefect.ended(prefect.start("mini", settings=[*settings, "dataset.categories=[carpet]"]))
    assert fewer["state_type"] == "FAILED"
    (told,) = wait_for(lambda: said or None, "nobody called")
    assert told["experiment"] == f"mini-{Path(prefect.deployment('mini')['parameters']['dataset']).name}"
    assert told["reasons"]
    assert all(reason in fewer["state"]["message"] for reason in told["reasons"])


def test_the_deployments_run_on_a_worker_as_they_are_written(prefect: Server) -> None:
    """By the commands at the head of prefect.yaml, in a folder with nothing of this repository but that file."""
    generate_dataset(prefect.folder / "data" / "sample", categories=("carpet",), good=1, defective=1, size=96)
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    (prefect.folder / "prefect.yaml").write_text(text, encoding="utf-8")
    pool, deploy, worker = (
        line.removeprefix("#").split() for line in text.splitlines() if line.startswith("#     prefect")
    )
    prefect.command(*pool)
    prefect.command(*deploy)
    assert prefect.deployment("weekly-full")["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    with prefect.running(*worker, CASCADE_HOME=str(prefect.folder)):
        run = prefect.ended(prefect.start("nightly-mini"))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["state"]["message"].startswith("mini on sample: no baseline")
