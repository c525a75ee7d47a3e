"""A published table beside ours, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cascade.configs.grid import variant_name
from cascade.configs.published import PublishedRow, PublishedTable, is_row_of
from cascade.metrics import verdict
from cascade.tasks.aggregate import MEAN
from cascade.tasks.stage import Run
from cascade.tasks.tables.intervals import NEGLIGIBLE, result_intervals

COLUMNS = (
    "method",
    "dataset",
    "variant",
    "step",
    "metric",
    "ours",
    "low",
    "high",
    "published",
    "difference",
    "difference_low",
    "difference_high",
    "note",
    "verdict",
    "images",
    "n_batch",
    "sam",
    "clip",
)
MARGIN = 100 * NEGLIGIBLE
"""Per cent, within which ours and a published value are equal."""


def reproduction_table(published: PublishedTable, runs: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """One row for each published number, in per cent and in the order of the source.

    ``low`` and ``high`` hold the 95 % interval of our value over images, ``difference`` is ours less the published one,
    with the same interval; ``note`` says why there is none. ``verdict`` is that of ``cascade.metrics.verdict`` on the
    difference, with ``MARGIN``; or ``missing`` if ours could not be computed, ``other method`` if it is not ours to
    compute. ``n_batch`` counts the images that judged each other; 0 where each was judged alone, as in the paper.

    Args:
        published: the table.
        runs: finished runs by dataset, as the table calls it, and variant.
    """
    measured = {
        (dataset, variant): result_intervals(run) for dataset, own in runs.items() for variant, run in own.items()
    }
    rows: list[dict[str, Any]] = []
    for row in published.rows:
        found = _run_of(row, runs.get(row.dataset, {}))
        for metric, value in row.values.items():
            cell: dict[str, Any] = {
                "method": row.method,
                "dataset": row.dataset,
                "variant": variant_name(row.changes, list(row.changes)) if row.changes else "",
                "step": row.step or "",
                "metric": metric,
                "published": value,
                "verdict": "missing" if row.step else "other method",
            }
            if found is not None:
                variant, run = found
                cell |= _ours(measured[row.dataset, variant], row.step, metric, value)
                cell |= {
                    "images": len(run.manifest),
                    "n_batch": sum(len(batch.images) for batch in run.batches.values()),
                    "sam": run.experiment.embed.backbone,
                    "clip": getattr(run.experiment.localise, "backbone", None),
                }
            rows.append(cell)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _run_of(row: PublishedRow, runs: Mapping[str, Run]) -> tuple[str, Run] | None:
    if row.step is None:
        return None
    return next(((variant, run) for variant, run in runs.items() if is_row_of(row, run.experiment)), None)


def _ours(intervals: pd.DataFrame, step: str | None, metric: str, published: float) -> dict[str, Any]:
    of = (intervals["category"] == MEAN) & (intervals["step"] == step) & (intervals["metric"] == metric)
    (cell,) = intervals[of].to_dict("records")
    ours, low, high = (100 * cell[name] for name in ("value", "low", "high"))
    if math.isnan(ours):
        return {}
    return {
        "ours": ours,
        "low": low,
        "high": high,
        "difference": ours - published,
        "difference_low": low - published,
        "difference_high": high - published,
        "note": cell["note"],
        "verdict": verdict(low - published, high - published, MARGIN),
    }
