"""`cascade reproduce`: the paper's tables from what this machine has."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascade.flows.cli.console import make_console, models_note, plain
from cascade.flows.cli.options import EngineOption, SetOption, StoreOption

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from cascade.configs.published import PublishedRow, PublishedTable

_TITLES = {
    "pixel_auroc": "AUROC",
    "pixel_f1max": "F1-max",
    "pixel_ap": "AP",
    "pixel_pro": "PRO",
    "image_auroc": "image AUROC",
    "image_f1max": "image F1-max",
    "image_ap": "image AP",
}
_COLOURS = {"equal": "green", "improved": "green", "fell": "red", "undecided": "yellow"}


def reproduce(
    table: Annotated[
        str, typer.Argument(help="table1, table2 or table3 of the paper; or zero_shot, numbers that are only shown.")
    ],
    dataset_root: Annotated[
        Path, typer.Option(help="Folder in which the datasets lie by their usual names: mvtec, visa, ...")
    ] = Path("datasets"),
    experiment: Annotated[str, typer.Option(help="Preset or YAML file.")] = "paper",
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="Linear layers for one dataset, e.g. mvtec=visa.safetensors; may be repeated."),
    ] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tables; a new one under runs/ by default.")] = None,
    store: StoreOption = None,
    engine: EngineOption = None,
) -> None:
    """Print ours, the paper's and the difference; say what is missing, and how to get it.

    Exit code 0 if something ran and nothing failed, 1 if a variant failed, 2 if nothing could run. A table that nothing
    here computes is shown as it is published.
    """
    from cascade.configs.published import load_published, published_names
    from cascade.configs.settings import Settings
    from cascade.flows.ablation.reproduce import TABLES, NothingToReproduce, plan_reproduction, run_reproduction
    from cascade.flows.cli.observers import AblationObserver
    from cascade.tasks.tables.batch import blocks
    from cascade.tasks.tables.intervals import explained
    from cascade.tasks.tables.reproduction import MARGIN

    machine, console = Settings(), make_console()
    if table in published_names() and table not in TABLES:
        _show_published(console, load_published(table))
        return
    planned = plan_reproduction(
        table, experiment, settings or [], dataset_root, adapters or [], store or machine.store, machine
    )
    try:
        found = run_reproduction(planned, out=out, engine=engine, settings=machine, observer=AblationObserver(console))
    except NothingToReproduce:
        _print_lines("missing", "red", planned.missing)
        raise typer.Exit(2) from None
    for block in blocks(found.table):
        if block["n_batch"].gt(0).any():
            console.print("batch: images judged each other; the paper judges each alone")
        console.print(_shown(block))
    verdicts = (
        "fell, improved: the interval of the difference is on one side of 0; "
        f"equal: it lies within ±{MARGIN:g}; else undecided"
    )
    for line in (verdicts, *explained(found.table["note"].dropna())):
        console.print(f"[dim]{line}[/dim]", soft_wrap=True, highlight=False)
    console.print(
        f"paper: {planned.published.source}; frame of its pixels: {planned.published.frame}",
        soft_wrap=True,
        highlight=False,
    )
    console.print("published since, and by methods that see all test images: cascade reproduce zero_shot")
    used = [run.experiment for part in found.parts.values() for run in part.runs.values()]
    if note := models_note(used):
        _print_lines("note", "yellow", [note])
    _print_lines("note", "yellow", planned.notes)
    _print_lines("missing", "red", planned.missing)
    console.print(f"tables in {plain(str(found.folder))}", soft_wrap=True, highlight=False)
    _print_lines("failed", "red", [f"{plain(each.name)}: {each.error}" for each in found.failed])
    if found.failed:
        raise typer.Exit(1)


def _show_published(console: Console, published: PublishedTable) -> None:
    """The numbers alone, methods that see all test images in a block of their own, and where each stands."""
    blocks = {
        "each image is judged alone": published.rows,
        "transductive: all test images of a category are seen before one is judged": published.transductive,
    }
    console.print(plain(published.title), soft_wrap=True, highlight=False)
    for title, rows in blocks.items():
        if rows:
            console.print(f"\n{title}", soft_wrap=True, highlight=False)
            console.print(_published(published, rows))
    notes = {f"{row.method}: {row.note}": None for row in (*published.rows, *published.transductive) if row.note}
    _print_lines("note", "yellow", list(notes))
    for name, where in (published.sources or {"": published.source}).items():
        console.print(plain(f"source {name}: {where}".replace(" :", ":")), soft_wrap=True, highlight=False)


def _published(published: PublishedTable, rows: Sequence[PublishedRow]) -> Table:
    from rich.table import Table

    metrics = [name for name in _TITLES if any(name in row.values for row in rows)]
    shown = Table("method", "dataset", *(_TITLES[name] for name in metrics), "frame", "source", box=None)
    for row in rows:
        values = (f"{row.values[name]:.1f}" if name in row.values else "" for name in metrics)
        shown.add_row(plain(row.method), row.dataset, *values, row.frame or published.frame, row.source or "")
    return shown


def _print_lines(word: str, colour: str, lines: tuple[str, ...] | list[str]) -> None:
    console = make_console()
    for line in lines:
        console.print(f"[{colour}]{word}[/{colour}] {plain(line)}", soft_wrap=True, highlight=False)


def _shown(compared: pd.DataFrame) -> Table:
    from rich.table import Table

    batch = ["batch"] if compared["n_batch"].gt(0).any() else []
    titles = ("method", "dataset", "step", "metric", "ours", "paper", "difference", "95 % interval", "")
    shown = Table(*titles, *batch, box=None)
    for row in compared.to_dict("records"):
        known = row["ours"] == row["ours"]
        colour = _COLOURS.get(row["verdict"], "dim")
        shown.add_row(
            " ".join(filter(None, (row["method"], plain(row["variant"])))),
            row["dataset"],
            row["step"],
            row["metric"],
            f"{row['ours']:.1f}" if known else "",
            f"{row['published']:.1f}",
            f"{row['difference']:+.1f}" if known else "",
            _interval(row) if known else "",
            f"[{colour}]{row['verdict']}[/{colour}]",
            *(f"{row['n_batch']:.0f}" for _ in batch),
        )
    return shown


def _interval(row: Mapping[Hashable, Any]) -> str:
    return str(row["note"] or f"{row['difference_low']:+.1f} to {row['difference_high']:+.1f}")
