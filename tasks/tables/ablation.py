"""The tables of an ablation: tidy, pivoted, and beside published numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cascade.configs.datasets import KnownDataset
from cascade.configs.grid import value_at
from cascade.configs.published import PublishedTable, is_row_of
from cascade.configs.schema import Experiment
from cascade.tasks.aggregate import MEAN, METRICS
from cascade.tasks.tables.batch import COLUMN as BATCH

_GROUP = ["dataset", "category", "step"]
_PUBLISHED_COLUMNS = (
    "method",
    "dataset",
    "variant",
    "step",
    "metric",
    "published_on",
    "published",
    "ours",
    "difference",
    "sam",
    "clip",
)


@dataclass(frozen=True)
class FinishedVariant:
    """A variant and its table of results."""

    name: str
    experiment: Experiment
    results: pd.DataFrame


def ablation_table(variants: Sequence[FinishedVariant], keys: Sequence[str]) -> pd.DataFrame:
    """All rows of all variants: ``variant``, a column for each varied key, and the columns of a run's results.

    A key's column holds the value that the variant's experiment has, set by the grid or not. ``best_<metric>`` is true
    where a variant has the highest value among all variants in the same dataset, category and step; where some judged
    images in batches (``n_batch``), among those that did, or among those that did not.
    """
    columns = {key: _column([value_at(each.experiment, key) for each in variants]) for key in keys}
    tables = []
    for number, each in enumerate(variants):
        own = {"variant": each.name} | {key: values[number] for key, values in columns.items()}
        tables.append(pd.DataFrame([own]).merge(each.results, how="cross"))
    table = pd.concat(tables, ignore_index=True)
    if "leak" in table:
        table["leak"] = table["leak"].eq(True)
    rivals: list[Any] = list(_GROUP)
    if BATCH in table:
        table[BATCH] = table[BATCH].fillna(0).astype(int)
        rivals.append(table[BATCH] > 0)
    highest = table.groupby(rivals)[list(METRICS)].transform("max")
    return table.assign(**{f"best_{name}": table[name].eq(highest[name]) for name in METRICS})


def pivot(table: pd.DataFrame, keys: Sequence[str], metric: str) -> pd.DataFrame:
    """Means over the categories of one metric, in the grid's order; the index begins with ``dataset``.

    If the variants are a full product of their keys, the last key's values are the columns, and ``step`` and the other
    keys the index; else the variants are the columns. A single variant has its steps as columns. Where images judged
    each other, ``n_batch`` is in the index, and these rows follow all others.
    """
    means = table[table["category"] == MEAN]
    lead = ["dataset"]
    if BATCH in means:
        means, lead = means.sort_values(BATCH, key=lambda counts: counts > 0, kind="stable"), ["dataset", BATCH]
    if means["variant"].nunique() == 1:
        index, column = [*lead, "variant"], "step"
    elif keys and math.prod(means[key].nunique(dropna=False) for key in keys) == means["variant"].nunique():
        index, column = [*lead, "step", *keys[:-1]], keys[-1]
    else:
        index, column = [*lead, "step"], "variant"
    wide = means.pivot(index=index, columns=column, values=metric)
    rows = pd.MultiIndex.from_frame(means[index].drop_duplicates())
    return wide.reindex(index=rows, columns=pd.Index(means[column].drop_duplicates(), name=column))


def beside_published(
    table: pd.DataFrame,
    experiments: Mapping[str, Experiment],
    published: PublishedTable,
    datasets: Mapping[str, KnownDataset],
) -> pd.DataFrame:
    """Our means beside the published values of the same variant and step, in per cent.

    Columns ``method, dataset, variant, step, metric, published_on, published, ours, difference, sam, clip``.
    ``dataset`` is ours; ``difference`` is missing where it is not the published one. ``n_batch`` is there if it is in
    the table: the published methods judge each image alone.
    """
    batch = [BATCH] if BATCH in table else []
    rows: list[dict[str, Any]] = []
    for mean in table[table["category"] == MEAN].to_dict("records"):
        experiment = experiments[mean["variant"]]
        for row in published.rows:
            if row.step != mean["step"] or not is_row_of(row, experiment):
                continue
            known = datasets[row.dataset]
            for metric, value in row.values.items():
                ours = 100 * mean[metric]
                same = mean["dataset"].lower() in known.folders
                rows.append(
                    {
                        "method": row.method,
                        "dataset": mean["dataset"],
                        "variant": mean["variant"],
                        "step": row.step,
                        "metric": metric,
                        "published_on": known.title,
                        "published": value,
                        "ours": ours,
                        "difference": ours - value if same else math.nan,
                        "sam": experiment.embed.backbone,
                        "clip": getattr(experiment.localise, "backbone", None),
                        **{name: mean[name] for name in batch},
                    }
                )
    return pd.DataFrame(rows, columns=[*_PUBLISHED_COLUMNS, *batch])


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one kind as they are, anything else as JSON text, so that the column can be written to parquet."""
    for kinds in ((bool,), (int, float), (str,)):
        if all(isinstance(value, kinds) and isinstance(value, bool) == (kinds == (bool,)) for value in values):
            return list(values)
    return [value if isinstance(value, str) else json.dumps(value) for value in values]
