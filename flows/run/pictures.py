"""What a run found, as one picture: photograph, map, mask of the last step, truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cascade.storage.atomic import replacing
from cascade.storage.datasets import read_image
from cascade.tasks.score import SCORE, Pixels, pixels_of, truth_in_frame
from cascade.tasks.stage import Run, StageItem

DEFECTIVE, GOOD = 3, 1
"""Images of each category that are shown, the first in order of path."""

_PANEL = 2.2  # inches
_FOUND, _TRUE = (0.95, 0.1, 0.1), (0.1, 0.75, 0.2)
_SHARE = 0.6
"""Of the colour, where a mask lies over a photograph."""


def write_pictures(run: Run, path: Path) -> Path:
    """Write the sheet of a finished run as PNG, and return its path."""
    with replacing(path) as part:
        sheet_of(run).savefig(part, dpi=100, format="png")
    return path


def sheet_of(run: Run) -> Figure:
    """A row for each of a few images of a finished run, in the evaluation frame, shown with the photograph's sides.

    A map's colours go from the smallest to the largest score that the maps of its category have on the sheet.
    """
    items, pixels = list(_shown(run)), pixels_of(run)
    found = {item.id: pixels(item) for item in items}
    columns = ("photograph", f"map ({run.steps[0]})", f"mask ({run.steps[-1]})", "truth")
    figure = Figure(figsize=(_PANEL * len(columns) + 1.2, _PANEL * len(items) + 0.4), layout="constrained")
    panels = figure.subplots(len(items), len(columns), squeeze=False)
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title, fontsize="medium")
    for row, item in zip(panels, items, strict=True):
        maps = [found[each.id].scores[0] for each in items if each.record.category == item.record.category]
        _draw(row, run, item, found[item.id], (min(map(np.min, maps)), max(map(np.max, maps))))
    return figure


def _shown(run: Run) -> Iterator[StageItem]:
    items = sorted(SCORE.items(run), key=lambda item: item.record.path)
    for category in run.manifest.categories:
        mine = [item for item in items if item.record.category == category]
        good = [item for item in mine if item.record.label == 0]
        yield from [item for item in mine if item not in good][:DEFECTIVE]
        yield from good[:GOOD]


def _draw(row: NDArray[np.object_], run: Run, item: StageItem, found: Pixels, limits: tuple[float, float]) -> None:
    record, (height, width) = item.record, found.scores.shape[1:]
    photograph = Image.fromarray(read_image(run.image_path(record), record.white))
    framed = np.array(photograph.resize((width, height), Image.Resampling.BICUBIC))
    row[0].imshow(framed)
    row[1].imshow(found.scores[0].astype(np.float32), cmap="inferno", vmin=limits[0], vmax=limits[1])
    _tint(row[2], framed, found.segments[-1], _FOUND)
    truth = truth_in_frame(run, record)
    if truth is not None:
        _tint(row[3], framed, truth, _TRUE)
    else:
        row[3].text(0.5, 0.5, "not known", ha="center", va="center", transform=row[3].transAxes)
    score = SCORE.artefact(run).record(item.id)["image_score"][-1]
    name = f"{record.defect or 'not labelled'} {Path(record.path).stem}"
    row[0].set_ylabel(f"{record.category}\n{name}\nscore {score:.2f}", parse_math=False)
    for panel in row:
        panel.set(xticks=[], yticks=[], aspect="auto", box_aspect=record.height / record.width)


def _tint(panel: Axes, photograph: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[float, ...]) -> None:
    """A photograph in grey with a mask in colour over it."""
    grey = photograph.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    panel.imshow(np.where(mask[..., None], (1 - _SHARE) * grey + _SHARE * np.array(colour), grey))
