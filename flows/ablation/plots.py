"""Small multiples of an ablation: a figure for each metric, a panel for each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cascade.storage.atomic import replacing

_PANEL = (3.2, 2.8)  # inches
_LEGEND_ENTRIES = 12
_LABEL = 28  # characters


def write_plot(path: Path, wide: pd.DataFrame, metric: str) -> None:
    """Draw a pivot of :func:`cascade.tasks.tables.ablation.pivot` as PNG: its columns along x, a line for each row."""
    steps = list(wide.index.unique("step")) if "step" in wide.index.names else [None]
    width, height = _PANEL
    figure = Figure(figsize=(width * len(steps) + 1.5, height), layout="constrained")
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    for panel, step in zip(panels, steps, strict=True):
        _draw(
            panel, wide if step is None else wide[wide.index.get_level_values("step") == step].droplevel("step"), step
        )
    panels[0].set_ylabel(f"{metric.replace('_', ' ')}, %")
    handles, labels = panels[0].get_legend_handles_labels()
    if 1 < len(labels) <= _LEGEND_ENTRIES:
        figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def write_sensitivity(path: Path, directions: Mapping[str, pd.DataFrame], default: float) -> None:
    """Draw how a score depends on each direction of a grid as PNG, a panel for each.

    Args:
        path: of the file.
        directions: by what varies, a row for each value of it in order, named by it, with the ``best`` and the
            ``mean`` score over all else in the grid.
        default: score of the experiment as it was; a dashed line.
    """
    width, height = _PANEL
    figure = Figure(figsize=(width * len(directions) + 1.5, height + 0.8), layout="constrained")
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for panel, (name, scores) in zip(panels, directions.items(), strict=True):
        places = range(len(scores))
        for column, label in (("best", "best of the rest"), ("mean", "mean of the rest")):
            panel.plot(places, scores[column], marker="o", markersize=4, label=label)
        panel.axhline(default, linestyle="--", color="grey", label="as it was")
        panel.set_xticks(list(places), [_short(value) for value in scores.index], rotation=90, fontsize="x-small")
        panel.set_title(_short(name), fontsize="medium")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("pixel AP + F1-max")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def _draw(panel: Axes, lines: pd.DataFrame, step: str | None) -> None:
    places = range(len(lines.columns))
    for name, values in zip(lines.index, lines.to_numpy(), strict=True):
        label = ", ".join(_short(part) for part in name) if isinstance(name, tuple) else _short(name)
        panel.plot(places, 100 * values, marker="o", markersize=4, label=label)
    panel.set_xticks(list(places), [_short(column) for column in lines.columns])
    if len(lines.columns) > 4 or lines.columns.name in ("variant", "step"):
        panel.tick_params("x", rotation=90, labelsize="x-small")
    panel.set_xlabel(str(lines.columns.name).rpartition(".")[2])
    if step is not None:
        panel.set_title(step, fontsize="medium")
    panel.grid(alpha=0.3)


def _short(label: object) -> str:
    """The end of a label, where paths and names of variants differ."""
    text = str(label)
    return text if len(text) <= _LABEL else "…" + text[1 - _LABEL :]
