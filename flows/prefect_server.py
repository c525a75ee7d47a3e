"""A server of Prefect's for a run where none is configured, and Prefect's settings for such a run.

Prefect would start one as well, but late: it imports the server into the process that only talks to it, and starts
another process then. Here that process can start while images are still being checked. If it does not come up, starting
one is left to Prefect.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

# Read by Prefect when it is imported, which is why nothing of it is imported above. A user's own setting wins.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")

_FOR_ONE_RUN = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect itself tells a server that it starts: no web pages, no services that only a lasting server needs."""


def server_is_ours() -> bool:
    """Whether no server is configured, so that one is started for this process and ends with it."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() is None


def start_ahead() -> None:
    """Let a server start while something else is done first.

    Without Prefect in this process only the server's own can see whether one is configured; it then ends at once.
    """
    if "prefect" not in sys.modules or server_is_ours():
        _start()


@cache
def _start() -> tuple[subprocess.Popen[bytes], str]:
    """A process that becomes a server, unless one is configured, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cascade.flows.prefect_server", str(port), str(os.getpid())]
    process = subprocess.Popen(command, env=os.environ | _FOR_ONE_RUN)
    atexit.register(_stop, process)
    return process, f"http://127.0.0.1:{port}/api"


@contextmanager
def prefect_server(cluster: str | None = None) -> Iterator[None]:
    """The configured server, or one of our own that lasts as long as this process.

    The workers of a ``cluster`` take over these settings, and would look for our own server on their machines; there
    it is left to Prefect, which starts one where it needs one.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    own = _start() if server_is_ours() and cluster is None else None
    with temporary_settings({PREFECT_API_URL: own[1]}) if own and _answers(*own) else nullcontext():
        yield


def _answers(process: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server can be asked; whether it can."""
    import httpx
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    patience = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    while process.poll() is None and time.monotonic() < patience:
        try:
            httpx.get(f"{address}/health", timeout=10).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return True
    _stop(process)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(port: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before it serves ends it without a traceback
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import uvicorn

    if server_is_ours():
        uvicorn.run(
            "prefect.server.api.server:create_app",
            factory=True,
            host="127.0.0.1",
            port=port,
            log_level="error",
            lifespan="on",
        )


def _end_with(parent: int) -> None:
    """A process that was killed could not stop its server."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
