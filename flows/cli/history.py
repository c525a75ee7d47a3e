"""`cascade history`: every finished run, and how a metric went over time."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cascade.flows.cli.console import make_console, plain

_BAR = 40
_TERMINAL = "terminal"


def history(
    name: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    metric: Annotated[str, typer.Option(help="The mean to show; clip_<metric> is that of the CLIP map.")] = "pixel_ap",
    since: Annotated[datetime | None, typer.Option(help="Only runs from this date on (UTC).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the last runs.")] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png|terminal", help="Draw the metric over time.")] = None,
) -> None:
    """List finished runs, the oldest first."""
    import pandas as pd
    from rich.table import Table

    from cascade.configs.settings import Settings
    from cascade.flows.run.history import METRIC_COLUMNS, plot_history, read_history, select
    from cascade.storage.errors import ConfigError, nearest
    from cascade.tasks.tables.batch import COLUMN

    if metric not in METRIC_COLUMNS:
        raise ConfigError(f"no metric '{metric}'; {nearest(metric, METRIC_COLUMNS)}")
    if plot not in (None, _TERMINAL) and not plot.endswith(".png"):
        raise ConfigError(f"--plot {plot}: must be 'terminal' or the path of a .png file")
    rows = select(read_history(Settings().runs), name=name, dataset=dataset, since=since)
    rows = rows if limit is None else rows.tail(limit)
    console = make_console()
    if rows.empty:
        console.print("no runs")
        return
    if plot not in (None, _TERMINAL):
        plot_history(rows, metric, Path(plot))
        console.print(f"{metric} of {len(rows)} runs in {plain(plot)}", soft_wrap=True, highlight=False)
        return
    stages = [column for column in rows.columns if column.startswith("computed_")]
    batched = ["batch"] if rows.get(COLUMN, pd.Series(dtype=float)).gt(0).any() else []
    table = Table("time", "name", "dataset", "images", *batched, "computed", "seconds", metric, box=None)
    table.add_column("" if plot else "folder", overflow="fold")
    for row in rows.to_dict("records"):
        value = float(row[metric])
        shown = "" if pd.isna(value) else f"{100 * value:.2f}"
        last = ("" if pd.isna(value) else "█" * round(_BAR * value)) if plot else plain(row["folder"])
        computed = int(sum(row[stage] for stage in stages if not pd.isna(row[stage])))
        when = row["time"].strftime("%Y-%m-%d %H:%M")
        judged = (f"{row[COLUMN]:.0f}" if row[COLUMN] > 0 else "" for _ in batched)
        cells = (when, plain(row["name"]), plain(row["dataset"]), str(row["images"]), *judged, str(computed))
        table.add_row(*cells, f"{row['seconds']:.1f}", shown, last)
    console.print(table)
