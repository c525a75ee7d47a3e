"""Runs without a configured server get one of their own, which comes up early and goes with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.flows.conftest import Cli

pytestmark = pytest.mark.xdist_group("prefect")

ASK = """
import sys
from cascade.flows.prefect_server import prefect_server, start_ahead
start_ahead()
with prefect_server():
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        client.hello().raise_for_status()
        print(str(client.api_url))
assert "prefect.server.api.server" not in sys.modules
"""

LEAVE = """
from cascade.flows.prefect_server import _start, prefect_server, start_ahead
start_ahead()
print(_start()[0].wait(timeout=60))
with prefect_server():
    from prefect.settings import PREFECT_API_URL
    print(PREFECT_API_URL.value())
"""


KILLED = """
import os, signal, sys
from pathlib import Path
from cascade.flows.prefect_server import _start
Path(sys.argv[1]).write_text(str(_start()[0].pid))
os.kill(os.getpid(), signal.SIGKILL)
"""


def without_server(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {"PREFECT_HOME": str(home)}


def python(code: str, home: Path, **more: str) -> list[str]:
    """The lines that a new process prints, which has no server unless ``more`` names one."""
    command = [sys.executable, "-c", code]
    environment = without_server(home) | more
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_the_server_is_not_loaded_here_and_ends_with_the_process(tmp_path: Path) -> None:
    (address,) = python(ASK, tmp_path)
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}health")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes as Linux shows them")
def test_the_server_of_a_process_that_was_killed_ends_too(tmp_path: Path) -> None:
    # With pipes for its output this would wait for the server, which inherits them.
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "pid")], env=without_server(tmp_path))
    assert killed.returncode == -signal.SIGKILL
    server = int((tmp_path / "pid").read_text())
    shown = Path(f"/proc/{server}/cmdline")
    for _ in range(300):
        if not shown.exists() or not shown.read_bytes():  # gone, or waiting for someone to notice
            return
        time.sleep(0.1)
    os.kill(server, signal.SIGKILL)
    pytest.fail("the server goes on")


def test_a_configured_server_is_left_alone(tmp_path: Path) -> None:
    configured = "http://127.0.0.1:9/api"
    assert python(LEAVE, tmp_path, PREFECT_API_URL=configured) == ["0", configured]
    assert not (tmp_path / "prefect.db").exists()


def test_a_server_that_does_not_come_up_is_left_to_prefect(server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL

    from cascade.flows import prefect_server

    gone = subprocess.Popen([sys.executable, "-c", ""])
    monkeypatch.setattr(prefect_server, "server_is_ours", lambda: True)
    monkeypatch.setattr(prefect_server, "_start", lambda: (gone, "http://127.0.0.1:9/api"))
    before = PREFECT_API_URL.value()
    with prefect_server.prefect_server():
        assert PREFECT_API_URL.value() == before


def test_the_workers_of_a_cluster_are_not_sent_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL

    from cascade.flows import prefect_server

    monkeypatch.setattr(prefect_server, "server_is_ours", lambda: True)
    monkeypatch.setattr(prefect_server, "_start", lambda: pytest.fail("started one"))
    before = PREFECT_API_URL.value()
    with prefect_server.prefect_server("tcp://scheduler:8786"):
        assert PREFECT_API_URL.value() == before


@pytest.mark.parametrize("command", [("run", "mini"), ("ablate", "table2")])
def test_it_starts_while_images_are_checked(cli: Cli, started_ahead: list[bool], command: tuple[str, str]) -> None:
    assert cli(*command, "--dataset", "nowhere", "--engine", "local").code
    cluster = ("--runner", "dask", "--set", "runtime.cluster=tcp://scheduler:8786")
    assert cli(*command, "--dataset", "nowhere", *cluster).code
    assert not started_ahead
    assert cli(*command, "--dataset", "nowhere").code
    assert started_ahead == [True]
