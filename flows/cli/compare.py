"""`cascade compare` and `cascade baseline`: a run against another one, and the run that is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade.flows.cli.console import make_console, plain, spinner

if TYPE_CHECKING:
    from rich.console import Console

    from cascade.flows.watch.comparison import Comparison

app = typer.Typer(help="The accepted run of each experiment and dataset.", no_args_is_help=True)
ACCEPTED = "baseline"
MaxDropOption = Annotated[
    list[str] | None,
    typer.Option("--max-drop", help="How far a metric may fall, e.g. pixel_ap=0.02; 0.01 for all by default."),
]
AllowVanishedOption = Annotated[
    bool, typer.Option("--allow-vanished", help="Pass though categories, metrics or images of the baseline are gone.")
]
_WORST = 3


def compare(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    baseline: Annotated[
        str, typer.Argument(metavar="BASELINE", help="Folder of the run before, or 'baseline' for the accepted one.")
    ],
    max_drop: MaxDropOption = None,
    allow_vanished: AllowVanishedOption = False,
    level: Annotated[float, typer.Option("--ci", help="Level of the intervals.")] = 0.95,
    step: Annotated[str | None, typer.Option(help="Step to compare; the last by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of comparison.md and .csv; RUN by default.")] = None,
) -> None:
    """Compare two runs on the images they share; exit code 1 if a metric fell by more than its limit, or vanished."""
    from cascade.configs.settings import Settings
    from cascade.flows.watch.baselines import baseline_of
    from cascade.flows.watch.compare import compare_runs
    from cascade.flows.watch.comparison import write_comparison
    from cascade.flows.watch.limits import parse_limits

    limits = parse_limits(max_drop or [])
    other = baseline_of(Settings().runs, run_folder) if baseline == ACCEPTED else Path(baseline)
    with spinner("drawing images"):
        comparison = compare_runs(run_folder, other, limits, allow_vanished=allow_vanished, step=step, level=level)
    write_comparison(comparison, out or run_folder)
    console = make_console()
    _show(comparison, console)
    console.print(f"comparison.md and comparison.csv in {plain(str(out or run_folder))}", soft_wrap=True)
    if comparison.reasons:
        raise typer.Exit(1)


@app.command("set")
def baseline_set(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
) -> None:
    """Accept a run: `cascade compare RUN baseline` holds later runs of its experiment and dataset against it."""
    from cascade.configs.settings import Settings
    from cascade.flows.watch.baselines import accept

    accepted = accept(Settings().runs, run_folder)
    make_console().print(
        plain(f"{accepted.experiment} on {accepted.dataset}: {accepted.folder}"), soft_wrap=True, highlight=False
    )


@app.command("show")
def baseline_show() -> None:
    """List the accepted runs."""
    from rich.table import Table

    from cascade.configs.settings import Settings
    from cascade.flows.watch.baselines import baselines

    table = Table("experiment", "dataset", "accepted", "folder", box=None)
    for each in baselines(Settings().runs):
        table.add_row(*map(plain, (each.experiment, each.dataset, each.accepted, each.folder)))
    make_console().print(table)


def _show(comparison: Comparison, console: Console) -> None:
    """The mean and every row that changed, in per cent, then what made the runs differ and whether the gate opens."""
    from rich.table import Table

    from cascade.tasks.aggregate import MEAN

    colours = {"fell": "red", "vanished": "red", "improved": "green", "undecided": "yellow"}
    titles = (
        "category",
        "metric",
        "baseline",
        "run",
        "difference",
        f"{100 * comparison.level:g} % interval",
        "verdict",
        "",
    )
    table = Table(*titles, box=None)
    hidden = {"equal": 0, "undecided": 0}
    for row in comparison.table.to_dict("records"):
        if row["category"] != MEAN and row["verdict"] in hidden:
            hidden[row["verdict"]] += 1
            continue
        values = [_percent(row[name]) for name in ("baseline", "run", "difference")]
        interval = row["note"] or " to ".join(filter(None, (_percent(row[name]) for name in ("low", "high"))))
        colour = colours.get(row["verdict"], "default")
        verdict = f"[{colour}]{row['verdict']}[/{colour}]"
        table.add_row(plain(row["category"]), row["metric"], *values, interval, verdict, row["remark"])
    console.print(f"step {comparison.step}")
    console.print(table)
    counts = " and ".join(f"{count} {verdict}" for verdict, count in hidden.items())
    console.print(f"not shown: {counts} differences of single categories; comparison.md has them", soft_wrap=True)
    for line in comparison.legend():
        console.print(f"[dim]{line}[/dim]", soft_wrap=True, highlight=False)
    for line in (*comparison.batches(), *comparison.notes()):
        console.print(plain(line), soft_wrap=True, highlight=False)
    for row in comparison.worst.head(_WORST).to_dict("records"):
        change = f"pixel AP {row['baseline']:.3f} → {row['run']:.3f}"
        console.print(f"lost most {plain(row['path'])}: {change}", soft_wrap=True, highlight=False)
    if not comparison.reasons:
        console.print(f"gate open: {comparison.passed}", soft_wrap=True, highlight=False)
    for line in comparison.reasons:
        console.print(f"[red]gate closed[/red] {plain(line)}", soft_wrap=True, highlight=False)


def _percent(value: float) -> str:
    import math

    return "" if math.isnan(value) else f"{100 * value:.2f}"
