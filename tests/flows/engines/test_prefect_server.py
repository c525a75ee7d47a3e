"""Runs without a configured server get one of their own, which comes up early and goes with them."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from cascade.flows.engines.evaluate import plan
from tests.flows.conftest import Bench, Cli

pytestmark = pytest.mark.xdist_group("prefect")

ASK = """
import os, sys
from cascade.flows.engines.prefect_server import prefect_server, start_ahead
start_ahead()
with prefect_server():
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        client.hello().raise_for_status()
        print(str(client.api_url), os.environ["PREFECT_HOME"])
assert "prefect.server.api.server" not in sys.modules
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from cascade.flows.engines.prefect_server import _start
Path(sys.argv[1]).write_text(f"{_start().process.pid} {_start().log.parent}")
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
    (line,) = python(ASK, tmp_path)
    address, home = line.split()
    assert address.startswith("http://127.0.0.1:")
    assert home != str(tmp_path)
    assert not Path(home).exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}health")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes as Linux shows them")
def test_the_server_of_a_process_that_was_killed_ends_too(tmp_path: Path) -> None:
    # With pipes for its output this would wait for the server, which inherits them.
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "pid")], env=without_server(tmp_path))
    assert killed.returncode == -signal.SIGKILL
    number, home = (tmp_path / "pid").read_text().split()
    server = int(number)
    shown = Path(f"/proc/{server}/cmdline")
    for _ in range(300):
        if not shown.exists() or not shown.read_bytes():  # gone, or waiting for someone to notice
            assert not Path(home).exists()
            return
        time.sleep(0.1)
    os.kill(server, signal.SIGKILL)
    pytest.fail("the server goes on")


def test_importing_sets_nothing_of_prefects_nor_a_home() -> None:
    """Libraries set variables of their own."""
    program = (
        "import os\n"
        "def ours(): return {name: os.environ[name] for name in os.environ if name[:4] in ('PREF', 'DO_N', 'HOME')}\n"
        "before = ours()\n"
        "import cascade.flows.cli, cascade.flows.engines.prefect_flow, cascade.flows.watch.schedules\n"
        "assert ours() == before, ours()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def later_database(path: Path) -> None:
    """A database that a version of Prefect made which this one does not know."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
        database.commit()


def test_neither_prefects_home_nor_the_users_is_needed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, in which nothing can be read or written", encoding="utf-8")
    homeless = "import pwd; pwd.getpwuid = lambda user: {}[user]; import os; del os.environ['HOME']\n"
    ended = command(bench, tmp_path / "home", program=homeless + PROGRAM)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "starting Prefect, a server for this run ...\n" in ended.stdout


def test_a_server_that_cannot_start_says_why_in_one_line(bench: Bench, tmp_path: Path) -> None:
    later_database(tmp_path / "later.db")
    begin = time.monotonic()
    database = f"sqlite+aiosqlite:///{tmp_path}/later.db"
    ended = command(bench, tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=database)
    assert ended.returncode == 5
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: Prefect's server cannot start (")
    assert "Can't locate revision" in line
    assert "--engine local" in line
    assert time.monotonic() - begin < 60  # some seconds on a machine that does nothing else


PROGRAM = "from cascade.flows.cli import main; main()"


def command(bench: Bench, home: Path, program: str = PROGRAM, **more: str) -> subprocess.CompletedProcess[str]:
    """`cascade run --engine prefect` of a finished run, without a server."""
    arguments = ["prefect" if part == "local" else part for part in bench.arguments()]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments, "--out", "out"],
        cwd=bench.store.parent,
        env=without_server(home) | more,
        capture_output=True,
        text=True,
        timeout=180,
    )


def slowly_written(folder: Path) -> dict[str, str]:
    """Variables with which every process takes half a second to write an item, so that a signal comes in time."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "from cascade.storage.artefacts import Artefact\n"
        "write = Artefact.write\n"
        "def slowly(*arguments):\n"
        "    time.sleep(0.5)\n"
        "    write(*arguments)\n"
        "Artefact.write = slowly\n",
        encoding="utf-8",
    )
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_ctrl_c_ends_a_run_soon_and_keeps_what_is_finished(runner: str, empty: Bench, tmp_path: Path) -> None:
    """At a terminal it reaches every process of the command."""
    given = ("runtime.shard_size=2", f"runtime.runner={runner}", "runtime.workers=2")
    arguments = ["prefect" if part == "local" else part for part in empty.arguments(*given)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        env=without_server(tmp_path / "home") | slowly_written(tmp_path / "slow"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(1200):
        if any(path.stat().st_size for path in (empty.store / "embed").glob("*/ledger*.jsonl")):
            break
        time.sleep(0.1)
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - begin < 60  # under 15 on a machine that does nothing else
    assert process.returncode == 130
    assert "stopped; finished items are kept" in said
    assert "Traceback" not in said
    embed = plan(empty.prepare().run)[0]
    assert embed.missing < len(embed.items)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("run", "mini"), ("ablate", "table2"), ("reevaluate", "mini")])
def test_it_starts_while_images_are_checked(
    cli: Cli, started_ahead: list[bool], words: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert cli(*words, "--dataset", "nowhere", "--engine", "local").code
    assert not started_ahead
    assert cli(*words, "--dataset", "nowhere", "--engine", "prefect").code
    assert started_ahead == [True]
