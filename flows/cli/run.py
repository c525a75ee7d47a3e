"""`cascade run` and `cascade demo`: one evaluation, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cascade.flows.cli.console import (
    announce_store,
    counted,
    make_console,
    plain,
    show_left_out,
    show_problems,
    show_prompts,
    show_results,
    spinner,
)
from cascade.flows.cli.options import (
    DatasetOption,
    DevicesOption,
    EngineOption,
    RunnerOption,
    SetOption,
    SkipBadOption,
    StoreOption,
    load_with_options,
    ready_engine,
)

if TYPE_CHECKING:
    from cascade.configs.schema import Experiment

DEMO_CATEGORIES = ("metal plate", "carpet", "pill", "wood")


def run(
    experiment: Annotated[str, typer.Argument(help="Preset (mini, paper, paper_strict, quality) or YAML file.")],
    dataset: DatasetOption = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tables; a new one under runs/ by default.")] = None,
    store: StoreOption = None,
    engine: EngineOption = None,
    runner: RunnerOption = None,
    devices: DevicesOption = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Test an adapter on its own training data, and mark every table.")
    ] = False,
    intervals: Annotated[
        bool, typer.Option("--ci", help="Add 95 % bootstrap intervals over images to the table.")
    ] = False,
    skip_bad: SkipBadOption = False,
) -> None:
    """Evaluate an experiment on a dataset; what the store has is not computed again."""
    loaded = load_with_options(experiment, dataset, settings, runner=runner, devices=devices)
    run_and_show(loaded, out, store, engine, allow_leak, intervals, skip_bad)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the photographs, the store, and a new folder of tables.")] = Path(
        "runs/demo"
    ),
    engine: EngineOption = None,
) -> None:
    """The whole pipeline on generated photographs with the mini models: no download, no GPU."""
    from cascade.flows.generate import generate_dataset
    from cascade.flows.run.folder import default_folder
    from cascade.storage.paths import require_writable

    require_writable(out)
    data = out / "data"
    with spinner("generating photographs"):
        generate_dataset(data, categories=DEMO_CATEGORIES, good=4, defective=8)
    demonstrated = load_with_options("mini", data, ["name=demo", "dataset.name=demo"])
    run_and_show(demonstrated, default_folder(out.parent, out.name), out / "store", engine, allow_leak=False)


def run_and_show(
    experiment: Experiment,
    out: Path | None,
    store: Path | None,
    asked: Literal["local", "prefect"] | None,
    allow_leak: bool,
    intervals: bool = False,
    skip_bad: bool = False,
) -> None:
    """Prepare, evaluate, write the folder of the run and its row of the history, and print its table."""
    from cascade.configs.settings import Settings
    from cascade.flows.engines.evaluate import plan
    from cascade.flows.run.folder import default_folder, require_unused
    from cascade.flows.run.history import remember_run
    from cascade.flows.run.prepare import prepare, require_metrics
    from cascade.flows.run.progress import RichReporter
    from cascade.flows.run.reading import remember_checked
    from cascade.flows.run.results import write_run
    from cascade.storage.datasets import SHOWN
    from cascade.storage.errors import PipelineError
    from cascade.tasks.tables.results import vanished_images

    machine, console = Settings(), make_console()
    folder = out or default_folder(machine.runs, experiment.name)
    require_unused(folder)
    engine = ready_engine(asked, [experiment], console)
    prepared = prepare(experiment, store or machine.store, machine, allow_leak=allow_leak, skip_bad=skip_bad)
    if intervals:
        require_metrics(prepared.run.manifest, "--ci")
    plan(prepared.run)  # refuses what could not run before anything is written
    announce_store(prepared.run.store, console)
    remember_checked(prepared.images, prepared.run.store)
    told = ", ".join(f"'{words}'" for words in dict.fromkeys(prepared.images.words.values()))
    console.print(f"CLIP is told: {plain(told)}", soft_wrap=True, highlight=False)
    show_problems(console, prepared.images.report.warnings)
    with RichReporter(console) as reporter:
        results = engine.evaluate(prepared.run, reporter)
    bounds = None
    if intervals:
        from cascade.tasks.tables.intervals import result_intervals

        with spinner("drawing images"):
            bounds = result_intervals(prepared.run)
    table = write_run(folder, prepared, results, engine.name, bounds)
    try:
        remember_run(machine.runs, folder)
    except (PipelineError, OSError) as error:
        console.print(f"[yellow]warning[/yellow] not in the history: {plain(str(error))}", soft_wrap=True)
    show_results(table, console)
    show_prompts(table, console)
    lost = vanished_images(prepared.run)
    if lost:
        names = ", ".join(record.path for record in lost[:SHOWN]) + ("" if len(lost) <= SHOWN else ", …")
        console.print(
            f"[yellow]warning[/yellow] in the frame of {experiment.score.frame} pixels (score.frame) nothing is left "
            f"of the defects of {counted(len(lost), 'image')}, whose pixels count as good: {plain(names)}",
            soft_wrap=True,
            highlight=False,
        )
    if prepared.leak:
        console.print(f"[red]not zero-shot:[/red] {plain(prepared.leak)}", soft_wrap=True)
    console.print(f"tables in {plain(str(folder))}", soft_wrap=True, highlight=False)
    if prepared.images.left_out:
        show_left_out(console, len(prepared.images.left_out), folder)
        raise typer.Exit(1)
