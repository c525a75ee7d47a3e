"""Which engine runs the stages; every use case asks here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from cascade.configs.schema import RuntimeConfig
from cascade.flows.engines.evaluate import Executor, Reporter, StageResult, evaluate
from cascade.flows.engines.local import execute_locally
from cascade.flows.engines.prefect_address import configured_server
from cascade.flows.engines.prefect_server import set_defaults
from cascade.storage.errors import ConfigError
from cascade.tasks.stage import Run

EngineName = Literal["prefect", "local"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Engine:
    """What runs stages. Prefect is imported when it is first needed, and never for the local engine.

    Attributes:
        name: as in ``run.json``.
        server: the Prefect server that is configured; without one, Prefect gets one for the time of this process.
    """

    name: EngineName
    server: str | None = None

    def get_ready(self) -> None:
        """Let a server of our own start while something else is done, or see whether the configured one answers.

        Raises:
            ConfigError: it does not answer.
        """
        if self.name == "prefect":
            from cascade.flows.engines import prefect_server

            if self.server is None:
                prefect_server.start_ahead()
            else:
                prefect_server.require_answer()

    def evaluate(self, run: Run, reporter: Reporter) -> Sequence[StageResult]:
        """Run all stages of a run that has been planned."""
        if self.name == "local":
            return evaluate(run, execute_locally, reporter)
        set_defaults()
        from cascade.flows.engines.prefect_flow import evaluate_on_prefect

        return evaluate_on_prefect(run, reporter)

    def work_on(
        self,
        name: str,
        run_name: str,
        parameters: Mapping[str, Any],
        runtime: RuntimeConfig,
        work: Callable[[Executor], Result],
    ) -> Result:
        """What ``work`` returns, given what executes a stage; on Prefect all of it is one flow run of that name."""
        if self.name == "local":
            return work(execute_locally)
        set_defaults()
        from cascade.flows.engines.prefect_flow import execute_on_prefect, run_as_flow

        return run_as_flow(name, run_name, parameters, runtime, lambda: work(execute_on_prefect))


def choose_engine(asked: EngineName | None, runtimes: Iterable[RuntimeConfig]) -> Engine:
    """The engine that was asked for; else Prefect where a server of it is configured or a runner needs it.

    Raises:
        ConfigError: the local engine is asked for other processes, or a cluster has no server to report to.
    """
    server = configured_server()
    runtimes = tuple(runtimes)
    runner = next((each.runner for each in runtimes if each.runner != "threads"), None)
    if asked == "local" and runner is not None:
        raise ConfigError(f"runtime.runner '{runner}' needs --engine prefect")
    if server is None and any(each.cluster is not None for each in runtimes):
        raise ConfigError(
            "runtime.cluster: its machines need one Prefect server to report to; start one that they all reach, "
            "and set PREFECT_API_URL to its address"
        )
    return Engine(asked or ("local" if runner is None and server is None else "prefect"), server)


def ready_engine(
    asked: Engine | EngineName | None, runtimes: Iterable[RuntimeConfig], on_choice: Callable[[Engine], None]
) -> Engine:
    """The engine that was given, which is ready; else the one to choose, told to ``on_choice`` before it gets ready.

    Raises:
        ConfigError: see :func:`choose_engine` and :meth:`Engine.get_ready`.
    """
    if isinstance(asked, Engine):
        return asked
    engine = choose_engine(asked, runtimes)
    on_choice(engine)
    engine.get_ready()
    return engine
