"""Stage ``aggregate``: the table, by category and mean, from histograms alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cascade.metrics import ImageMetrics, PixelMetrics, image_metrics, summary
from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import MEAN as MEAN
from cascade.storage.datasets import ImageRecord
from cascade.storage.errors import StageError
from cascade.storage.keys import digest_of
from cascade.tasks import score, tally
from cascade.tasks.score import SCORE
from cascade.tasks.stage import Run, Stage, StageItem, no_roles, refines
from cascade.tasks.tally import TALLY

VERSION = 3
PIXEL_METRICS = ("pixel_auroc", "pixel_f1max", "pixel_ap", "pixel_aupro")
IMAGE_METRICS = ("image_auroc", "image_f1max", "image_ap")
METRICS = (*PIXEL_METRICS, *IMAGE_METRICS)
IMAGE_SCORES = ("clip_score", "max_score", "top_score")
MASKS = 3
CHECKS = (
    "good_prompted",
    *(f"image_auroc_{name}" for name in IMAGE_SCORES),
    *(f"mask_{number}" for number in range(1, MASKS + 1)),
)
"""What a reader needs to trust a row, beside the metrics: the share of good images that got a prompt, image AUROC by
each image score there is, and how often each of SAM's three masks was chosen, as a share of the choices."""
COUNTS = ("n_images", "n_anomalous", "n_no_prompt", "n_no_prompt_anomalous")


def items(run: Run) -> list[StageItem]:
    """One item: the set of all images with their categories and labels."""
    members = [[score.item_id(run, record), record.category, record.label] for record in run.manifest]
    return [StageItem(digest_of(members), run.manifest.records[0])]


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """None: the table is the record."""
    return {}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Write ``rows``: one for each category and step, then one mean for each step; ``None`` where undefined."""
    scores = SCORE.artefact(run)
    rows: list[dict[str, Any]] = []
    for category in run.manifest.categories:
        records = [record for record in run.manifest if record.category == category]
        rows += _category_rows(run, scores, category, records)
    rows += [_mean_row(step, [row for row in rows if row["step"] == step]) for step in run.steps]
    (item,) = items
    artefact.write(item.id, {}, {"rows": rows})


def table_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of a finished run."""
    (item,) = items(run)
    rows: list[dict[str, Any]] = AGGREGATE.artefact(run).read(item.id).record["rows"]
    return rows


def definable(records: Sequence[ImageRecord]) -> tuple[str, ...]:
    """The metrics that the labels and masks of one category allow, before a pixel of them is read.

    Pixels need a defective image, and the mask of each; images need both kinds.
    """
    known = [record for record in records if record.label is not None]
    labels = {record.label for record in known}
    masked = 1 in labels and all(record.label == 0 or record.mask_path is not None for record in known)
    return (*(PIXEL_METRICS if masked else ()), *(IMAGE_METRICS if len(labels) == 2 else ()))


def _category_rows(run: Run, scores: Artefact, category: str, records: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """One row for each step.

    Pixels count only if the truth of every image with a known label is known; otherwise good images alone would be
    compared and the cells stay empty.
    """
    totals = tally.category_totals(run, category)
    every = [scores.record(score.item_id(run, record)) for record in records]
    known = [(own, bool(record.label)) for own, record in zip(every, records, strict=True) if record.label is not None]
    labels = [label for _, label in known]
    complete = all(own["truth"] for own, _ in known)
    good = [own for own, label in known if not label]
    unprompted = {
        "n_no_prompt": sum(own["no_prompt"] for own in every),
        "n_no_prompt_anomalous": sum(own["no_prompt"] for own, label in known if label),
    }
    prompted: dict[str, float | None] = {"good_prompted": None}
    if good and refines(run):
        prompted = {"good_prompted": 1 - float(np.mean([each["no_prompt"] for each in good]))}
    rows = []
    for index, step in enumerate(run.steps):
        usable = complete and bool(totals[index].positives.any()) and bool(totals[index].negatives.any())
        both = len(set(labels)) == 2
        metrics = _cells(
            summary(totals[index]) if usable else None,
            _by_image("image_score", index, known) if both else None,
        )
        aurocs = {f"image_auroc_{name}": _by_image(name, index, known).auroc if both else None for name in IMAGE_SCORES}
        counts = {"n_images": len(records), "n_anomalous": sum(labels)} | unprompted
        masks = _mask_shares([own["chosen"][index] for own in every])
        rows.append({"category": category, "step": step, **counts, **metrics, **prompted, **aurocs, **masks})
    return rows


def _by_image(name: str, index: int, known: Sequence[tuple[Mapping[str, Any], bool]]) -> ImageMetrics:
    """The image metrics of one step by one of the image scores in the records."""
    values = [own[name] if name == "clip_score" else own[name][index] for own, _ in known]
    return image_metrics(np.array(values), np.array([label for _, label in known]))


def _mask_shares(chosen: Sequence[int | None]) -> dict[str, float | None]:
    made = [each for each in chosen if each is not None]
    return {f"mask_{each + 1}": made.count(each) / len(made) if made else None for each in range(MASKS)}


def _cells(pixel: PixelMetrics | None, image: ImageMetrics | None) -> dict[str, float | None]:
    values: list[float | None] = [None] * len(METRICS)
    if pixel is not None:
        values[:4] = [pixel.auroc, pixel.f1_max, pixel.average_precision, pixel.aupro]
    if image is not None:
        values[4:] = [image.auroc, image.f1_max, image.average_precision]
    for name, value in zip(METRICS, values, strict=True):
        if value is not None and not -1e-9 <= value <= 1 + 1e-9:
            raise StageError(f"aggregate: {name} is {value}, outside [0, 1]; this is a defect of the program")
    return {
        name: None if value is None or math.isnan(value) else float(value)
        for name, value in zip(METRICS, values, strict=True)
    }


def _mean_row(step: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Unweighted mean over the categories that have a value, the field's convention."""
    means: dict[str, Any] = {}
    for name in (*METRICS, *CHECKS):
        values = [row[name] for row in rows if row[name] is not None]
        means[name] = float(np.mean(values)) if values else None
    counts = {name: sum(row[name] for row in rows) for name in COUNTS}
    return {"category": MEAN, "step": step} | counts | means


AGGREGATE = Stage(
    name="aggregate",
    version=lambda run: VERSION,
    config=lambda run: {},  # the scores and their sums, and nothing else; the images are the item's identity
    upstream=(SCORE, TALLY),
    roles=no_roles,
    items=items,
    arrays=arrays,
    compute=compute,
    records=lambda run, items: run.manifest.records,
    central=True,
)
