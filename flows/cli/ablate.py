"""`cascade ablate`: a grid of experiments that costs only what is new in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade.flows.cli.console import counted, make_console, models_note, per_cent, plain
from cascade.flows.cli.options import (
    DatasetOption,
    DevicesOption,
    EngineOption,
    RunnerOption,
    SetOption,
    StoreOption,
    as_overrides,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from cascade.flows.ablation.plan import AblationPlan, PlannedKey
    from cascade.flows.ablation.state import Ablation

_SHOWN_METRICS = ("pixel_auroc", "pixel_f1max", "pixel_ap", "pixel_aupro")


def ablate(
    grid: Annotated[
        str | None,
        typer.Argument(help="Preset (table2, table3, thresholds, spacing, fusion, backbones, calibrate) or YAML file."),
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
    from cascade.flows.ablation import define_ablation, plan_ablation, resume_ablation, run_ablation
    from cascade.flows.ablation.state import read_ablation
    from cascade.flows.cli.observers import AblationObserver
    from cascade.storage.errors import ConfigError

    console = make_console()
    if resume is not None:
        if grid or experiment or dataset or settings or out or store or runner or devices or allow_leak:
            raise ConfigError(
                "--resume: the folder knows grid, dataset, settings and store; give nothing else but --engine"
            )
        ablation = read_ablation(resume)
    elif grid is None:
        raise ConfigError("no grid; give a preset or a YAML file, or --resume DIR")
    else:
        given = as_overrides(dataset and dataset.resolve(), settings, runner=runner, devices=devices)
        ablation = define_ablation(grid, experiment or "mini", given, store=store, allow_leak=allow_leak)
    if dry_run:
        show_plan(ablation, plan_ablation(ablation), console)
        return
    if resume is not None:
        found = resume_ablation(resume, engine=engine, observer=AblationObserver(console))
    else:
        found = run_ablation(ablation, out=out, engine=engine, observer=AblationObserver(console))
    if found.table is not None:
        show_ablation(found.ablation, found.table, console)
    console.print(f"tables in {plain(str(found.folder))}", soft_wrap=True, highlight=False)
    for each in found.failed:
        console.print(f"[red]failed[/red] {plain(each.name)}: {plain(str(each.error))}", soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)


def show_plan(ablation: Ablation, plan: AblationPlan, console: Console) -> None:
    """A tree: stage, its distinct keys, and what each would cost."""
    from itertools import groupby

    from rich.tree import Tree

    tree = Tree(f"{plain(ablation.name)}: {counted(len(ablation.variants), 'variant')}")
    for stage, group in groupby(plan.keys, key=lambda each: each.stage):
        keys = list(group)
        branch = tree.add(f"[bold]{stage}[/bold]  {counted(len(keys), 'key')}: {_cost(keys)}")
        for key in keys if len(keys) > 1 else ():
            branch.add(f"{key.key[:12]}  {_cost([key])}  [dim]{plain(_who(key.variants))}[/dim]")
    tree.add(f"[bold]all[/bold]  {_cost(plan.keys)}")
    console.print(tree, highlight=False, soft_wrap=True)
    for name, error in plan.refused.items():
        console.print(f"[red]cannot run[/red] {plain(name)}: {plain(str(error))}", highlight=False, soft_wrap=True)


def show_ablation(ablation: Ablation, table: pd.DataFrame, console: Console) -> None:
    """The means in per cent, the best of each step in bold, published numbers in brackets; batches in a block apart."""
    from rich.table import Table

    from cascade.flows.ablation.outputs import published_table
    from cascade.tasks.aggregate import MEAN
    from cascade.tasks.tables.batch import COLUMN, blocks

    means = table[table["category"] == MEAN]
    several = means["variant"].nunique() > 1
    if several:
        means = means.drop_duplicates(["dataset", "variant"], keep="last")
    published = published_table(ablation, table)
    beside = _beside(published)
    for block in blocks(means):
        batch = ["batch"] if COLUMN in block and block[COLUMN].any() else []
        shown = Table(
            "dataset", "variant", "step", *(name.replace("_", "\n") for name in _SHOWN_METRICS), *batch, box=None
        )
        for row in block.to_dict("records"):
            cells = []
            for name in _SHOWN_METRICS:
                cell = f"[bold]{per_cent(row[name])}[/bold]" if several and row[f"best_{name}"] else per_cent(row[name])
                value = beside.get((row["dataset"], row["variant"], row["step"], name))
                cells.append(cell if value is None else f"{cell} ({value:.1f})")
            cells += [str(row[COLUMN]) for _ in batch]
            shown.add_row(plain(row["dataset"]), plain(row["variant"]), row["step"], *cells)
        if batch:
            console.print("batch: images judged each other; not to be held against results of single images")
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
