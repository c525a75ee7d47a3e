"""`cascade run` and `cascade demo`: evaluations, and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade.flows.cli.console import make_console, plain, show_left_out, show_prompts, show_results, spinner
from cascade.flows.cli.options import (
    DatasetOption,
    DevicesOption,
    EngineOption,
    RunnerOption,
    SetOption,
    SkipBadOption,
    StoreOption,
    load_with_options,
)

if TYPE_CHECKING:
    from cascade.configs.schema import Experiment
    from cascade.flows.engines.choice import EngineName
    from cascade.flows.run import Evaluation


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
    out: Annotated[
        Path, typer.Option(help="Folder of the generated photographs, the store, and new folders of tables.")
    ] = Path("runs/demo"),
    engine: EngineOption = None,
) -> None:
    """Both mini presets on photographs of defects and on generated ones: no download, no GPU."""
    from cascade.flows.demo import demonstrations, write_generated
    from cascade.flows.run.folder import default_folder
    from cascade.flows.run.pictures import write_pictures

    console = make_console()
    with spinner("generating photographs"):
        generated = write_generated(out)
    pictures = []
    for name, experiment in demonstrations(generated):
        console.print(f"\n[bold]{name}[/bold]")
        found = run_and_show(experiment, default_folder(out, name), out / "store", engine, allow_leak=False)
        pictures.append(write_pictures(found.prepared.run, found.folder / "pictures.png"))
    console.print("\nwhat was found, beside the truth:")
    for path in pictures:
        console.print(f"  {plain(str(path))}", soft_wrap=True, highlight=False)


def run_and_show(
    experiment: Experiment,
    out: Path | None,
    store: Path | None,
    engine: EngineName | None,
    allow_leak: bool,
    intervals: bool = False,
    skip_bad: bool = False,
) -> Evaluation:
    """Evaluate an experiment and print its table, and what has to be known beside it."""
    from cascade.flows.cli.observers import RunObserver
    from cascade.flows.run import run_experiment

    console = make_console()
    found = run_experiment(
        experiment,
        store=store,
        out=out,
        engine=engine,
        allow_leak=allow_leak,
        intervals=intervals,
        skip_bad=skip_bad,
        observer=RunObserver(console),
    )
    show_results(found.table, console)
    show_prompts(found.table, console)
    for line in found.warnings:
        console.print(f"[yellow]warning[/yellow] {plain(line)}", soft_wrap=True, highlight=False)
    if found.leak:
        console.print(f"[red]not zero-shot:[/red] {plain(found.leak)}", soft_wrap=True)
    console.print(f"tables in {plain(str(found.folder))}", soft_wrap=True, highlight=False)
    if found.left_out:
        show_left_out(console, found.left_out, found.folder)
        raise typer.Exit(1)
    return found
