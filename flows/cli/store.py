"""`cascade store`: the artefacts that runs have left."""

from __future__ import annotations

import typer

from cascade.flows.cli.console import make_console, plain
from cascade.flows.cli.options import StoreOption

app = typer.Typer(help="The artefacts that runs have left.", no_args_is_help=True)


@app.command("ls")
def store_ls(store: StoreOption = None) -> None:
    """List the artefacts: stage, key, finished items, size and configuration."""
    from rich.table import Table

    from cascade.configs.settings import Settings
    from cascade.storage.artefacts import Store

    table = Table("stage", "key", "items", "MB", "configuration", box=None)
    for artefact in Store(store or Settings().store).stored():
        shown = {name: value for name, value in artefact.key.config.items() if name != "sentences"}
        table.add_row(
            artefact.key.stage,
            artefact.path.name[:12],
            str(len(artefact.done())),
            f"{artefact.nbytes() / 1e6:.1f}",
            plain(", ".join(f"{name}={value}" for name, value in shown.items())),
        )
    make_console().print(table)
