"""`cascade ablate`: a grid of experiments that costs only what is new in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade.flows.cli.console import announce_store, counted, make_console, models_note, per_cent, plain
from cascade.flows.cli.options import (
    DatasetOption,
    DevicesOption,
    EngineOption,
    RunnerOption,
    SetOption,
    StoreOption,
    as_overrides,
    ready_engine,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from cascade.flows.ablation.plan import PlannedKey
    from cascade.flows.ablation.state import Ablation
    from cascade.flows.ablation.variants import Candidates
    from cascade.flows.engines.choice import Engine

_SHOWN_METRICS = ("pixel_auroc", "pixel_f1max", "pixel_ap", "pixel_aupro")


def ablate(
    grid: Annotated[
        str | None,
        typer.Argument(help="Preset (table2, table3, thresholds, spacing, fusion, backbones) or YAML file."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Preset or YAML file that the grid varies; mini by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is cached and what would be computed; write nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the ablation of this folder; it knows grid, experiment and store.")
    ] = None,
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
) -> None:
    """Evaluate every variant of a grid; a stage that several variants share runs once."""
    from cascade.configs.grid import expand, load_grid
    from cascade.configs.settings import Settings
    from cascade.flows.ablation.state import new_ablation, read_ablation
    from cascade.flows.ablation.variants import prepare_variants
    from cascade.flows.run.folder import default_folder, link_latest, require_unused
    from cascade.storage.errors import ConfigError

    machine, console = Settings(), make_console()
    if resume is not None:
        if grid or experiment or dataset or settings or out or store or runner or devices or allow_leak:
            raise ConfigError(
                "--resume: the folder knows grid, dataset, settings and store; give nothing else but --engine"
            )
        folder, ablation = resume, read_ablation(resume)
    elif grid is None:
        raise ConfigError("no grid; give a preset or a YAML file, or --resume DIR")
    else:
        loaded = load_grid(grid)
        given = as_overrides(dataset and dataset.resolve(), settings, runner=runner, devices=devices)
        variants = expand(loaded, experiment or "mini", given)
        ablation = new_ablation(loaded, variants, store or machine.store, allow_leak=allow_leak)
        folder = out or default_folder(machine.runs, loaded.name)
        require_unused(folder)
    if dry_run:
        show_plan(ablation, prepare_variants(ablation, machine), machine.runs, console)
        return
    chosen = ready_engine(engine, [each.experiment for each in ablation.variants], console)
    candidates = prepare_variants(ablation, machine)
    ablation, table = carry_out(ablation, candidates, folder, chosen, console)
    link_latest(folder)
    if table is not None:
        show_ablation(ablation, table, console)
    console.print(f"tables in {plain(str(folder))}", soft_wrap=True, highlight=False)
    failed = [each for each in ablation.variants if each.state == "failed"]
    for each in failed:
        console.print(f"[red]failed[/red] {plain(each.name)}: {plain(str(each.error))}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def carry_out(
    ablation: Ablation, candidates: Candidates, folder: Path, engine: Engine, console: Console
) -> tuple[Ablation, pd.DataFrame | None]:
    """Run what is not in the store, and write the folder."""
    from cascade.flows.ablation.outputs import finished_table, write_failures, write_plots, write_tables
    from cascade.flows.ablation.state import VariantState, write_ablation
    from cascade.flows.ablation.variants import run_ablation
    from cascade.flows.engines.evaluate import Executor
    from cascade.flows.run.prepare import Prepared
    from cascade.flows.run.progress import RichReporter
    from cascade.flows.run.reading import remember_checked

    ready = [each for each in candidates.values() if isinstance(each, Prepared)]
    for line in dict.fromkeys(line for each in ready for line in each.warnings):
        console.print(f"[yellow]warning[/yellow] {plain(line)}", soft_wrap=True, highlight=False)
    write_ablation(folder, ablation)
    announce_store(ablation.store, console)
    for each in {id(each.run.manifest): each for each in ready}.values():
        remember_checked(each.images, each.run.store)

    def announce(variant: VariantState) -> None:
        console.print(f"[bold]{plain(variant.name)}[/bold]", soft_wrap=True, highlight=False)

    with RichReporter(console) as reporter:

        def work(execute: Executor) -> Ablation:
            return run_ablation(
                ablation, candidates, execute, reporter, announce, lambda state: write_ablation(folder, state)
            )

        try:
            runtime = max((each.run.experiment.runtime for each in ready), key=lambda own: own.workers)
            parameters = {"grid": ablation.name, "variants": [each.changes for each in ablation.variants]}
            ended = engine.work_on("ablate", ablation.name, parameters, runtime, work)
        except KeyboardInterrupt:
            console.print(f"cascade ablate --resume {folder} goes on from here", soft_wrap=True, highlight=False)
            raise
    table = finished_table(ended, candidates)
    if table is not None:
        write_tables(folder, ended, table)
        write_plots(folder, ended, table)
    write_failures(folder, ended)
    return ended, table


def show_plan(ablation: Ablation, candidates: Candidates, runs: Path, console: Console) -> None:
    """A tree: stage, its distinct keys, and what each would cost."""
    from itertools import groupby

    from rich.tree import Tree

    from cascade.flows.ablation.plan import plan_keys
    from cascade.flows.ablation.timings import past_rates
    from cascade.flows.run.prepare import Prepared

    ready = {name: each.run for name, each in candidates.items() if isinstance(each, Prepared)}
    planned = plan_keys(ready, past_rates(runs))
    tree = Tree(f"{plain(ablation.name)}: {counted(len(ablation.variants), 'variant')}")
    for stage, group in groupby(planned, key=lambda each: each.stage):
        keys = list(group)
        branch = tree.add(f"[bold]{stage}[/bold]  {counted(len(keys), 'key')}: {_cost(keys)}")
        for key in keys if len(keys) > 1 else ():
            branch.add(f"{key.key[:12]}  {_cost([key])}  [dim]{plain(_who(key.variants))}[/dim]")
    tree.add(f"[bold]all[/bold]  {_cost(planned)}")
    console.print(tree, highlight=False, soft_wrap=True)
    for name, each in candidates.items():
        if not isinstance(each, Prepared):
            console.print(f"[red]cannot run[/red] {plain(name)}: {plain(str(each))}", highlight=False, soft_wrap=True)


def show_ablation(ablation: Ablation, table: pd.DataFrame, console: Console) -> None:
    """The means in per cent, the best of each step in bold, published numbers in brackets; then what failed."""
    from rich.table import Table

    from cascade.flows.ablation.outputs import published_table
    from cascade.tasks.aggregate import MEAN
    from cascade.tasks.score import STEPS

    means = table[table["category"] == MEAN]
    several = means["variant"].nunique() > 1
    if several:
        means = means[means["step"] == STEPS[-1]]
    published = published_table(ablation, table)
    beside = _beside(published)
    shown = Table("dataset", "variant", "step", *(name.replace("_", "\n") for name in _SHOWN_METRICS), box=None)
    for row in means.to_dict("records"):
        cells = []
        for name in _SHOWN_METRICS:
            cell = f"[bold]{per_cent(row[name])}[/bold]" if several and row[f"best_{name}"] else per_cent(row[name])
            value = beside.get((row["dataset"], row["variant"], row["step"], name))
            cells.append(cell if value is None else f"{cell} ({value:.1f})")
        shown.add_row(plain(row["dataset"]), plain(row["variant"]), row["step"], *cells)
    console.print(shown)
    if published is not None and len(published):
        datasets = " and ".join(dict.fromkeys(published["published_on"]))
        console.print(f"in brackets: published on {datasets}", highlight=False)
        done = [each.experiment for each in ablation.variants if each.state == "done"]
        if note := models_note(done):
            console.print(f"[yellow]{note}[/yellow]", soft_wrap=True, highlight=False)


def _beside(published: pd.DataFrame | None) -> dict[tuple[str, str, str, str], float]:
    """The published value beside a mean of ours; of several datasets the one that is ours, else the first."""
    if published is None:
        return {}
    ours_first = published.sort_values("difference", na_position="last", kind="stable", key=lambda each: each.isna())
    keys = ours_first.drop_duplicates(["dataset", "variant", "step", "metric"])
    return {
        (row["dataset"], row["variant"], row["step"], row["metric"]): row["published"]
        for row in keys.to_dict("records")
    }


def _cost(keys: Sequence[PlannedKey]) -> str:
    """Cached and missing items, bytes and minutes."""
    items, missing = sum(key.items for key in keys), sum(key.missing for key in keys)
    cached = f"{items - missing} of {items} cached"
    if not missing:
        return f"[green]{cached}[/green]"
    nbytes = sum(key.nbytes for key in keys)
    timed = [key.seconds for key in keys if key.seconds is not None]
    if not timed:
        time = "no timing yet"
    else:
        time = f"{'' if len(timed) == len(keys) else 'at least '}{sum(timed) / 60:.1f} min"
    return f"{cached}, [cyan]{missing} to compute[/cyan], at most {nbytes / 1e6:.1f} MB, {time}"


def _who(variants: Sequence[str]) -> str:
    return variants[0] if len(variants) == 1 else f"{variants[0]} and {len(variants) - 1} more"
