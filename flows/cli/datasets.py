"""`cascade datasets`: the datasets of the literature, and a descriptor of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade.flows.cli.console import counted, make_console, plain, spinner

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(help="Datasets: those of the literature, and your own.", no_args_is_help=True)


@app.command("ls")
def datasets_ls() -> None:
    """List the datasets of the literature with their layout, test images and licence."""
    from rich.table import Table

    from cascade.configs.datasets import known_datasets

    table = Table("name", "title", "layout", "categories", "good", "defective", "licence", box=None)
    for name, known in known_datasets().items():
        numbers = [_number(known.counts.good), _number(known.counts.defective)]
        table.add_row(name, known.title, known.layout, str(len(known.categories) or 1), *numbers, known.licence)
    make_console().print(table)


@app.command("describe")
def datasets_describe(
    name: Annotated[str, typer.Argument(help="A name that `cascade datasets ls` shows, or a descriptor of your own.")],
) -> None:
    """How a dataset lies on disk, its splits, how many images are expected, its licence and where it is."""
    from cascade.configs.datasets import load_descriptor

    known, console = load_descriptor(name), make_console()
    lines = [
        f"{known.title}: layout {known.layout}",
        *(f"  {path}" for path in known.tree),
        *(f"{ours}: {theirs}" for ours, theirs in known.splits.items()),
        f"licence: {known.licence or 'not stated'}",
        f"get: {known.get}" if known.get else "",
        f"folders: {', '.join(known.folders)}" if known.folders else "",
        f"adapter: trained on {known.auxiliary} ({', '.join(known.recipe)})",
        *(f"note: {note}" for note in known.notes),
    ]
    for line in filter(None, lines):
        console.print(plain(line), soft_wrap=True, highlight=False)
    rows = {**known.categories, "all": known.counts}
    console.print(_shown({label: (own.train, own.good, own.defective, None) for label, own in rows.items()}))


@app.command("init")
def datasets_init(
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    out: Annotated[Path | None, typer.Option(help="The descriptor; <folder>.yaml here by default.")] = None,
    layout: Annotated[str, typer.Option(help="As of `cascade check`.")] = "auto",
) -> None:
    """Write a descriptor of your own dataset: its layout, categories and numbers of images."""
    from cascade.flows.datasets import recognise, write_starter

    with spinner("listing images"):
        found = recognise(folder, layout)
    target = write_starter(found, out or Path(f"{folder.resolve().name}.yaml"))
    console = make_console()
    console.print(f"layout {found.layout}: {counted(len(found.tallies), 'category')}", highlight=False)
    console.print(
        _shown(
            {category: (own.train, own.good, own.defective, own.unlabelled) for category, own in found.tallies.items()}
        )
    )
    if found.known is not None:
        console.print(f"looks like {found.known}: cascade datasets describe {found.known}", highlight=False)
    lines = (
        f"descriptor in {target}",
        f"next: cascade check {folder} --descriptor {target}",
        f"      cascade run mini --dataset {folder}" + _chosen(layout),
    )
    for line in lines:
        console.print(plain(line), soft_wrap=True, highlight=False)


def _chosen(layout: str) -> str:
    return "" if layout == "auto" else f" --set dataset.layout={layout}"


def _shown(rows: dict[str, tuple[int | None, ...]]) -> Table:
    from rich.table import Table

    titles = ("train", "good", "defective", "not labelled")
    used = [number for number in range(len(titles)) if any(row[number] is not None for row in rows.values())]
    table = Table("category", *(titles[number] for number in used), box=None)
    for category, row in rows.items():
        table.add_row(plain(category), *(_number(row[number]) for number in used))
    return table


def _number(number: int | None) -> str:
    return "" if number is None else str(number)
