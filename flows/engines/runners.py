"""Where the tasks of a flow run: threads of this process, other processes, or a Dask or Ray cluster."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from cascade.configs.schema import RuntimeConfig
from cascade.storage.errors import ConfigError

_EXTRAS = {"dask": "prefect_dask", "ray": "prefect_ray"}


def make_runner(runtime: RuntimeConfig) -> TaskRunner[Any]:
    """Prefect's task runner for ``runtime.runner`` with ``runtime.workers`` workers.

    Without ``runtime.cluster`` Dask and Ray start workers on this machine, one task at a time in each.

    Raises:
        ConfigError: the extra that brings the runner is not installed.
    """
    extra = _EXTRAS.get(runtime.runner)
    if extra is not None and find_spec(extra) is None:
        raise ConfigError(
            f"runtime.runner '{runtime.runner}' needs an extra: pip install 'clip-sam-cascade[{runtime.runner}]'"
        )
    if runtime.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=runtime.workers, initializer=_leave_interrupts_to_the_flow)
    if runtime.runner == "dask":
        from prefect_dask import DaskTaskRunner

        local = {"n_workers": runtime.workers, "threads_per_worker": 1, "dashboard_address": None}
        where = {"address": runtime.cluster} if runtime.cluster is not None else {"cluster_kwargs": local}
        dask: TaskRunner[Any] = DaskTaskRunner(**where)
        return dask
    if runtime.runner == "ray":
        from prefect_ray import RayTaskRunner

        own = {"num_cpus": runtime.workers, "include_dashboard": False}
        ray: TaskRunner[Any] = RayTaskRunner(address=runtime.cluster, init_kwargs=None if runtime.cluster else own)
        return ray
    return ThreadPoolTaskRunner(max_workers=runtime.workers)


def _leave_interrupts_to_the_flow() -> None:
    """Ctrl-C reaches workers as well, whatever they are at; the flow hears of it and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def hidden_main() -> Iterator[None]:
    """Worker processes start without the program that started them.

    Python would run that program's file again in each of them: a script that does not guard against it would start over
    there, and one that was read from standard input has no file. Tasks need nothing of it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def workers_ended() -> Iterator[None]:
    """Worker processes that were started inside do not work on after Ctrl-C; what they have written is kept."""
    before = multiprocessing.active_children()
    try:
        yield
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            if worker not in before:
                worker.terminate()
        raise
