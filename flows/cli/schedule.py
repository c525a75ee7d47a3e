"""`cascade reevaluate` and `cascade serve`: the same experiment again, now or on a schedule."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cascade.flows.cli.compare import AllowVanishedOption, MaxDropOption
from cascade.flows.cli.console import make_console, plain, show_left_out
from cascade.flows.cli.options import (
    DatasetOption,
    EngineOption,
    SetOption,
    SkipBadOption,
    StoreOption,
    load_with_options,
)

ExperimentArgument = Annotated[str, typer.Argument(help="Preset (mini, paper, paper_strict, quality) or YAML file.")]


def reevaluate(
    experiment: ExperimentArgument,
    dataset: DatasetOption = None,
    settings: SetOption = None,
    store: StoreOption = None,
    engine: EngineOption = None,
    max_drop: MaxDropOption = None,
    allow_vanished: AllowVanishedOption = False,
    skip_bad: SkipBadOption = False,
) -> None:
    """Run an experiment if anything has changed, and compare it with the baseline; exit code 1 if the gate closes."""
    from cascade.flows.cli.observers import CommandObserver
    from cascade.flows.watch import reevaluate as again
    from cascade.flows.watch.limits import parse_limits

    limits, console = parse_limits(max_drop or []), make_console()
    found = again(
        load_with_options(experiment, dataset, settings),
        store=store,
        engine=engine,
        limits=limits,
        allow_vanished=allow_vanished,
        skip_bad=skip_bad,
        observer=CommandObserver(console),
    )
    for line in found.warnings:
        console.print(f"[yellow]warning[/yellow] {plain(line)}", soft_wrap=True, highlight=False)
    for line in found.changes:
        console.print(f"changed since the last run: {plain(line)}", soft_wrap=True, highlight=False)
    for line in found.comparison.not_compared() if found.comparison is not None else ():
        console.print(plain(line), soft_wrap=True, highlight=False)
    console.print(plain(found.message), soft_wrap=True, highlight=False)
    skipped = found.run.description.get("skipped", 0)
    if skipped:
        show_left_out(console, skipped, found.run.folder)
    if found.state == "closed" or skipped:
        raise typer.Exit(1)


def serve(
    experiment: ExperimentArgument,
    cron: Annotated[str, typer.Option(help="When, as in crontab.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="Of the times in --cron.")] = "UTC",
    name: Annotated[str | None, typer.Option(help="Of the deployment; the experiment's by default.")] = None,
    dataset: DatasetOption = None,
    settings: SetOption = None,
    store: StoreOption = None,
    max_drop: MaxDropOption = None,
    allow_vanished: AllowVanishedOption = False,
) -> None:
    """Re-evaluate on a schedule, in this process, until Ctrl-C; one run at a time, overlapping slots are skipped."""
    from cascade.flows.engines.prefect_server import set_defaults
    from cascade.flows.watch.limits import parse_limits

    # refuses now what could not run at night
    limits = parse_limits(max_drop or [])
    loaded = load_with_options(experiment, dataset, settings)

    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")  # here, Prefect's lines are what there is to see
    set_defaults()
    from cascade.flows.watch.schedules import serve as serve_flow

    console = make_console()
    parameters = {
        "experiment": experiment,
        "dataset": None if dataset is None else str(dataset.resolve()),
        "settings": settings or [],
        "max_drop": limits,
        "store": None if store is None else str(store.resolve()),
        "allow_vanished": allow_vanished,
    }
    serve_flow(
        name or loaded.name,
        parameters,
        cron=cron,
        timezone=timezone,
        say=lambda line: console.print(plain(line), soft_wrap=True, highlight=False),
    )
