"""`cascade weights`: which checkpoints are here, and how to get the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from cascade.flows.cli.console import make_console, plain, spinner

app = typer.Typer(help="Checkpoints: what is here, and how to get the rest.", no_args_is_help=True)


@app.command("ls")
def weights_ls(
    verify: Annotated[bool, typer.Option("--verify", help="Read and hash every file.")] = False,
) -> None:
    """List the registered checkpoints and whether they are on this machine."""
    from rich.table import Table

    from cascade.configs.settings import Settings
    from cascade.storage.weights import weights_table

    table = Table("name", "state", "MB", "license", "path", box=None)
    for row in weights_table(Settings().weights, verify=verify):
        size = "" if row.size is None else f"{row.size / 1e6:.1f}"
        table.add_row(row.name, row.state, size, row.license, plain(str(row.path)))
    make_console().print(table)


@app.command("fetch")
def weights_fetch(name: Annotated[str, typer.Argument(help="A name that `cascade weights ls` shows.")]) -> None:
    """Download a checkpoint and keep it only if its digest is the pinned one."""
    from cascade.configs.settings import Settings
    from cascade.storage.weights import fetch

    machine = Settings()
    with spinner(f"fetching {name}"):
        path = fetch(name, folder=machine.weights, base_url=machine.weights_url)
    make_console().print(f"{path} verified", soft_wrap=True)
