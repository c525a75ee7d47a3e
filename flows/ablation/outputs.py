"""The folder of an ablation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cascade.configs.datasets import known_datasets
from cascade.configs.published import load_published
from cascade.flows.ablation.plots import write_plot
from cascade.flows.ablation.state import Ablation
from cascade.flows.ablation.variants import Candidates
from cascade.flows.run.prepare import Prepared
from cascade.storage.atomic import replacing
from cascade.tasks.aggregate import MEAN, METRICS
from cascade.tasks.tables.ablation import FinishedVariant, ablation_table, beside_published, pivot
from cascade.tasks.tables.results import results_table


def finished_table(ablation: Ablation, candidates: Candidates) -> pd.DataFrame | None:
    """The tidy table of the variants that are done; ``None`` if there is none."""
    finished = []
    for variant in ablation.variants:
        candidate = candidates[variant.name]
        if variant.state == "done" and isinstance(candidate, Prepared):
            results = results_table(candidate.run, leak=candidate.leak is not None)
            finished.append(FinishedVariant(variant.name, variant.experiment, results))
    return ablation_table(finished, ablation.keys) if finished else None


def published_table(ablation: Ablation, table: pd.DataFrame) -> pd.DataFrame | None:
    """The means beside the published numbers of the grid; ``None`` if there are none."""
    if ablation.published is None:
        return None
    experiments = {variant.name: variant.experiment for variant in ablation.variants}
    return beside_published(table, experiments, load_published(ablation.published), known_datasets())


def write_tables(folder: Path, ablation: Ablation, table: pd.DataFrame) -> None:
    """Write ``results`` (CSV and parquet), ``pivot_<metric>.csv`` and ``published.csv``."""
    with replacing(folder / "results.parquet") as path:
        table.to_parquet(path, index=False)
    tables = {"results": table}
    for metric in _defined(table):
        tables[f"pivot_{metric}"] = pivot(table, ablation.keys, metric).reset_index()
    published = published_table(ablation, table)
    if published is not None:
        tables["published"] = published
    for name, each in tables.items():
        with replacing(folder / f"{name}.csv") as path:
            each.to_csv(path, index=False)


def write_failures(folder: Path, ablation: Ablation) -> None:
    """Write ``failures.csv``: variant and error of those that failed; no file if none did."""
    failed = [(each.name, each.error) for each in ablation.variants if each.state == "failed"]
    if not failed:
        (folder / "failures.csv").unlink(missing_ok=True)
        return
    with replacing(folder / "failures.csv") as path:
        pd.DataFrame(failed, columns=["variant", "error"]).to_csv(path, index=False)


def write_plots(folder: Path, ablation: Ablation, table: pd.DataFrame) -> None:
    """Write ``plot_<metric>.png``."""
    for metric in _defined(table):
        write_plot(folder / f"plot_{metric}.png", pivot(table, ablation.keys, metric), metric)


def _defined(table: pd.DataFrame) -> list[str]:
    """The metrics that have a mean anywhere."""
    means = table[table["category"] == MEAN]
    return [metric for metric in METRICS if means[metric].notna().any()]
