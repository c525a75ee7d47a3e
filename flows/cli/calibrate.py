"""`cascade calibrate`: settings and an operating threshold, chosen on data that is neither trained nor tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascade.flows.cli.console import counted, make_console, per_cent, plain
from cascade.flows.cli.options import EngineOption, SetOption, StoreOption


def calibrate(
    experiment: Annotated[str, typer.Argument(help="Preset or YAML file.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="An auxiliary dataset; not the one that will be tested.")],
    holdout: Annotated[
        float, typer.Option(help="Share of its categories, if the adapter was trained on others of them.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the draw of these categories.")] = 0,
    grid: Annotated[str, typer.Option(help="What is chosen from: a preset or YAML file.")] = "calibrate",
    good_quantile: Annotated[
        float | None, typer.Option(help="Share of the good images below the operating threshold; else the best F1.")
    ] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; one under runs/ by default.")] = None,
    store: StoreOption = None,
    engine: EngineOption = None,
) -> None:
    """Choose settings and an operating threshold on an auxiliary dataset; the adapter's own categories are left out."""
    from cascade.flows.calibrate import calibrate as choose
    from cascade.flows.cli.observers import AblationObserver
    from cascade.tasks.tables.intervals import explained

    console = make_console()
    found = choose(
        experiment,
        dataset,
        settings or (),
        holdout=holdout,
        seed=seed,
        grid=grid,
        good_quantile=good_quantile,
        out=out,
        store=store,
        engine=engine,
        observer=AblationObserver(console),
    )

    def say(line: str) -> None:
        console.print(plain(line), soft_wrap=True, highlight=False)

    shown = {"as it was": found.grid[found.grid["default"]], "chosen": found.grid[found.grid["chosen"]]}
    say(f"on {counted(len(found.categories), 'category')}: {', '.join(found.categories)}")
    for title, rows in shown.items():
        for row in rows.to_dict("records"):
            own = f"pixel AP {per_cent(row['pixel_ap'])}, F1-max {per_cent(row['pixel_f1max'])}"
            say(f"{title}: {row['variant']}: {own}")
    at = found.operating
    say(f"operating threshold {at.threshold:.4f}: {at.rule}")
    if at.threshold_interval is not None and at.f1_interval is not None:
        (low, high), (worst, best) = at.threshold_interval, at.f1_interval
        say(f"95 % intervals: threshold {low:.4f} to {high:.4f}, best F1 {per_cent(worst)} to {per_cent(best)}")
    for line in explained([at.note] if at.note else []):
        say(line)
    for each in found.ablation.failed:
        console.print(f"[red]failed[/red] {plain(each.name)}: {plain(str(each.error))}", soft_wrap=True)
    say(f"use it: cascade run {found.folder / 'calibrated.yaml'}")
    if found.ablation.failed:
        raise typer.Exit(1)
