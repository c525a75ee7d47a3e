"""A server of Prefect's for a run where none is configured, and Prefect's settings for such a run.

Prefect would start one as well, but late: it imports the server into the process that only talks to it, and starts
another process then. Here that process starts while images are still being checked, with a home of its own that goes
with it: nothing that lies in the user's, however old, new or damaged, is in its way.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cascade.flows.engines.prefect_address import profiles_file
from cascade.storage.errors import ConfigError, StageError


@cache
def _home() -> Path:
    """A folder for Prefect's own files that goes with this process."""
    home = Path(tempfile.mkdtemp(prefix="cascade-prefect-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
}
"""Prefect's settings for this process and those that it starts, where the user has none."""

_FOR_ONE_RUN = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "0",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
}
"""What Prefect itself tells a server that it starts: no web pages, no services that only a lasting server needs. And no
list of block types, which nobody will look at; and why it ended, which we shall say."""

_PATIENCE = 5.0
"""Seconds for a configured server to answer."""


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[bytes]
    log: Path
    address: str


def set_defaults() -> None:
    """Give Prefect our defaults. It reads them from the environment when it is imported, so this comes before that."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        Path.home()
    except RuntimeError:  # without one Prefect cannot even be imported
        os.environ["HOME"] = str(_home())


def server_is_ours() -> bool:
    """Whether no server is configured, so that one is started for this process and ends with it."""
    from prefect.settings import PREFECT_API_URL

    return not PREFECT_API_URL.value()


def start_ahead() -> None:
    """Let a server of our own start while something else is done first."""
    _start()


def require_answer() -> None:
    """Raise ``ConfigError`` if the configured server does not answer."""
    set_defaults()
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": _PATIENCE}) as client,
    ):
        fault = client.api_healthcheck()
    status = fault.response.status_code if isinstance(fault, httpx.HTTPStatusError) else None
    # one that lets nobody in unasked is there all the same
    if fault is not None and status not in (401, 403):
        reason = f"status {status}" if status else str(fault).partition("\n")[0] or type(fault).__name__
        raise ConfigError(
            f"PREFECT_API_URL {PREFECT_API_URL.value()}: no Prefect server answers ({reason}); "
            "start it with `prefect server start`, unset PREFECT_API_URL, or use --engine local"
        )


@cache
def _start() -> _Server:
    """A process that becomes a server."""
    set_defaults()
    home, log = _home(), _home() / "server.log"
    profiles = profiles_file()
    own = {"PREFECT_HOME": str(home)} | ({"PREFECT_PROFILES_PATH": str(profiles)} if profiles else {})
    if "prefect" not in sys.modules:  # it will look for its home when it is imported
        os.environ.update(own)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cascade.flows.engines.prefect_server", str(port), str(os.getpid()), str(home)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | own | _FOR_ONE_RUN,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the run, which still has to tell the server how it ended
        )
    server = _Server(process, log, f"http://127.0.0.1:{port}/api")
    atexit.register(_stop, process)
    return server


@contextmanager
def prefect_server() -> Iterator[None]:
    """The configured server, or one of our own that lasts as long as this process.

    Raises:
        StageError: ours does not come up.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if not server_is_ours():
        yield
        return
    server = _start()
    _wait_for(server)
    with temporary_settings({PREFECT_API_URL: server.address}):
        yield


def _wait_for(server: _Server) -> None:
    """Return when the server can be asked."""
    import httpx
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    patience = time.monotonic() + seconds
    while server.process.poll() is None:
        try:
            httpx.get(f"{server.address}/health", timeout=10).raise_for_status()
            return
        except httpx.HTTPError:
            if time.monotonic() > patience:
                raise StageError(f"Prefect's server does not answer after {seconds:g} s; use --engine local") from None
            time.sleep(0.05)
    reason = _reason(server.log.read_text(encoding="utf-8", errors="replace"))
    raise StageError(f"Prefect's server cannot start ({reason}); use --engine local, or set PREFECT_API_URL to another")


def _reason(log: str) -> str:
    """The last exception in a log, without its traceback; else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|NotFound)\b", line)]
    return (named or lines or ["it says nothing"])[-1]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(port: int, parent: int, home: Path) -> None:
    threading.Thread(target=_end_with, args=(parent, home), daemon=True).start()
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


def _end_with(parent: int, home: Path) -> None:
    """A process that was killed could neither stop its server nor clear up after it."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(home, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
