"""Re-evaluation as a scheduled Prefect flow: an artifact, an event, and a state that says whether the gate tripped.

This imports Prefect, so ``cascade.flows.engines.prefect_server.set_defaults`` is called before, unless Prefect itself
asks for the flow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any
from zoneinfo import ZoneInfo

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, State, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.schedules import Cron
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType

from cascade.configs.loader import as_override, load_experiment
from cascade.flows.engines.choice import Engine
from cascade.flows.engines.prefect_address import configured_server
from cascade.flows.engines.prefect_server import require_answer
from cascade.flows.run.progress import LogReporter
from cascade.flows.watch.reevaluation import Reevaluation, reevaluate
from cascade.storage.errors import ConfigError
from cascade.storage.paths import expanded

REGRESSION = "cascade.regression.detected"
"""The event of a gate that tripped; automations may call a webhook on it."""

_SCHEDULER_TAKES = timedelta(seconds=90)
"""A server that is at work has planned the runs of a new schedule by then; it looks once a minute."""

ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
"""A slot that comes while the one before is still running is skipped."""


@flow(name="reevaluate", flow_run_name="{experiment}")
def reevaluate_flow(
    experiment: str = "mini",
    dataset: str | None = None,
    settings: list[str] | None = None,
    max_drop: dict[str, float] | None = None,
    store: str | None = None,
    allow_vanished: bool = False,
) -> State[Any]:
    """Run an experiment, publish a report, and fail with the reason if a metric fell.

    Args:
        experiment: preset or YAML file.
        dataset: folder of images, dataset root or table; the experiment's own when absent.
        settings: changes as for ``cascade run --set``.
        max_drop: how far each metric may fall, for example ``{"pixel_ap": 0.02}``.
        store: folder of the artefacts; ``CASCADE_STORE`` when absent.
        allow_vanished: whether categories, metrics and images of the baseline may be missing.

    Returns:
        ``Failed`` with one line for each metric that fell and all that vanished; ``Completed`` named ``Unchanged`` if
        there was nothing to do; else ``Completed``.
    """
    own = [] if dataset is None else [as_override("dataset.path", dataset)]
    loaded = load_experiment(experiment, [*own, *(settings or [])])
    found = reevaluate(
        loaded,
        store=None if store is None else expanded(store),
        engine=Engine("prefect", configured_server()),  # it runs this flow, so it is ready
        limits=max_drop,
        allow_vanished=allow_vanished,
        observer=LogReporter(get_run_logger()),
    )
    _publish(found)
    if found.state == "closed":
        return Failed(message=found.message)
    return Completed(message=found.message, name="Unchanged" if found.state == "unchanged" else None)


def serve(name: str, parameters: dict[str, Any], *, cron: str, timezone: str, say: Callable[[str], None]) -> None:
    """Offer the flow to the Prefect server on a schedule and run it in child processes, until interrupted.

    A slot is skipped by the limit on the deployment. The runner itself must have room for a second run: one that comes
    while it is full would wait, and start late.

    Args:
        name: of the deployment.
        parameters: of the flow.
        cron: when, as in crontab.
        timezone: of these times.
        say: shows a line to whoever started it.

    Raises:
        ConfigError: there is no such time, the server does not answer, or none is configured; one that Prefect starts
            by itself keeps no schedules.
    """
    server = configured_server()
    if server is None:
        raise ConfigError(
            "schedules need a Prefect server: start one with `prefect server start`, "
            "and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        CronSchedule(cron=cron, timezone=timezone)  # looks at both, which Cron does not
    except ValueError as error:
        raise ConfigError(
            f"--cron '{cron}' --timezone '{timezone}': no such times; give five fields as in crontab, for example "
            "'0 2 * * *', and a name such as Europe/Berlin"
        ) from error
    require_answer()
    say(f"serving {reevaluate_flow.name}/{name} on {server}: '{cron}' {timezone}, one run at a time; Ctrl-C ends it")
    Thread(target=_say_next_slot, args=(name, timezone, say), daemon=True).start()
    reevaluate_flow.serve(
        name=name,
        schedule=Cron(cron, timezone=timezone),
        parameters=parameters,
        global_limit=ONE_AT_A_TIME,
        print_starting_message=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _say_next_slot(name: str, timezone: str, say: Callable[[str], None]) -> None:
    """Say when the next run is due as soon as the server knows; if it never does, nothing will ever run."""
    ours = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    waiting = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    begin = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        while datetime.now(UTC) - begin < _SCHEDULER_TAKES:
            runs = client.read_flow_runs(deployment_filter=ours, flow_run_filter=waiting)
            due = [each.expected_start_time for each in runs if each.expected_start_time is not None]
            if due:
                say(f"next slot: {min(due).astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M %Z}")
                return
            time.sleep(1)
    say("warning: the server has planned no run: its scheduler is not at work, so no slot will start one; see its log")


def _publish(found: Reevaluation) -> None:
    """The report as an artifact, and an event if the gate tripped; neither may fail the run."""
    name = f"{found.run.experiment}-{found.run.dataset}".lower()
    try:
        key = "reevaluate-" + "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)
        create_markdown_artifact(key=key, markdown=found.markdown(), description=found.message)
        if found.state == "closed" and found.comparison is not None:
            emit_event(
                REGRESSION,
                resource={"prefect.resource.id": f"cascade.experiment.{name}", "prefect.resource.name": name},
                payload={"reasons": found.comparison.reasons, "folder": str(found.run.folder)},
            )
    except Exception as error:  # whatever the server says, the report is on disk
        get_run_logger().warning("no artifact or event: %s", error)
