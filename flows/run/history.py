"""Every finished run as a row of one table in the folder of the runs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from cascade.flows.run.results import read_finished
from cascade.storage.atomic import replacing
from cascade.storage.errors import ConfigError, DataError, nearest
from cascade.storage.keys import digest_of
from cascade.tasks.aggregate import MEAN, METRICS
from cascade.tasks.tables.batch import COLUMN as BATCH

FILE_NAME = "history.parquet"
_LOCK_SECONDS = 60
METRIC_COLUMNS = (*METRICS, *(f"clip_{metric}" for metric in METRICS))
"""The mean of each metric: of the last step, and of the map."""


def remember_run(runs: Path, run_folder: Path) -> None:
    """Append a finished run to the history; whoever appends at the same time waits.

    A folder that is written to again is a row again: the table says what was run when.

    Raises:
        DataError: the folder is not a finished run, or the history cannot be read.
        OSError: the history cannot be written, or its lock is held for a minute.
    """
    row = pd.DataFrame([_row(run_folder)])
    runs.mkdir(parents=True, exist_ok=True)
    with FileLock(runs / f"{FILE_NAME}.lock", timeout=_LOCK_SECONDS):
        before = read_history(runs)
        table = row if before.empty else pd.concat([before, row], ignore_index=True)
        with replacing(runs / FILE_NAME) as path:
            table.to_parquet(path, index=False)


def read_history(runs: Path) -> pd.DataFrame:
    """All rows, in the order in which runs finished; empty if there is none.

    Columns: ``time`` (UTC), ``name``, ``dataset``, ``folder``, ``engine``, ``seconds``, ``images``, ``n_batch`` (how
    many of them judged each other), one ``computed_<stage>`` for each stage, ``METRIC_COLUMNS``, and ``config`` and
    ``weights``, sha256 of the configuration (less how the run was carried out) and of the checkpoints.

    Raises ``DataError`` if the file is damaged.
    """
    path = runs / FILE_NAME
    if not path.exists():
        return pd.DataFrame({"time": pd.Series(dtype="datetime64[us, UTC]")})
    try:
        return pd.read_parquet(path).sort_values("time", kind="stable", ignore_index=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); move it away, and a new one is begun") from error


def select(
    history: pd.DataFrame, *, name: str | None = None, dataset: str | None = None, since: datetime | None = None
) -> pd.DataFrame:
    """The runs of an experiment, on a dataset, not before a time (UTC if it names no zone).

    Raises ``ConfigError`` if the history has no such name or dataset.
    """
    for column, wanted in (("name", name), ("dataset", dataset)):
        if wanted is None or history.empty:
            continue
        if wanted not in set(history[column]):
            raise ConfigError(
                f"no run with {column} '{wanted}' in the history; {nearest(wanted, set(history[column]))}"
            )
        history = history[history[column] == wanted]
    if since is not None:
        start = pd.Timestamp(since)
        history = history[history["time"] >= (start.tz_localize("UTC") if start.tzinfo is None else start)]
    return history


def plot_history(history: pd.DataFrame, metric: str, path: Path) -> None:
    """Draw a metric over time as PNG, a line for each experiment and dataset."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (name, dataset), rows in history.groupby(["name", "dataset"]):
        axes.plot(rows["time"], 100 * rows[metric], marker="o", markersize=4, label=f"{name} on {dataset}")
    axes.set_ylabel(f"{metric.replace('_', ' ')}, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.autofmt_xdate()
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def _row(run_folder: Path) -> dict[str, Any]:
    run = read_finished(run_folder)
    described, results = run.description, run.results()
    means = results[results["category"] == MEAN]
    first, last = means.iloc[0], means.iloc[-1]
    experiment = {name: value for name, value in described["experiment"].items() if name != "runtime"}
    return {
        "time": pd.Timestamp(described["finished"]).tz_convert("UTC").as_unit("us"),
        "name": run.experiment,
        "dataset": run.dataset,
        "folder": str(run_folder.resolve()),
        "engine": described["engine"],
        "seconds": float(sum(stage["seconds"] for stage in described["stages"])),
        "images": described["dataset"]["images"],
        BATCH: int(last.get(BATCH, 0)),
        **{f"computed_{stage['stage']}": stage["computed"] for stage in described["stages"]},
        **{metric: last[metric] for metric in METRICS},
        **{f"clip_{metric}": first[metric] for metric in METRICS},
        "config": digest_of(experiment),
        "weights": digest_of({role: each["sha256"] for role, each in described["weights"].items()}),
    }
