"""The tables of a finished run, from the records in the store: results, images and points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cascade.configs.schema import Frame
from cascade.storage.datasets import MEAN, ImageRecord
from cascade.tasks import score
from cascade.tasks.aggregate import CHECKS, COUNTS, METRICS, table_rows
from cascade.tasks.prompt import PROMPT
from cascade.tasks.refine import REFINE
from cascade.tasks.score import SCORE
from cascade.tasks.stage import Run, localised_id, refines
from cascade.tasks.tables.batch import COLUMN as BATCH

RESULT_COLUMNS = (
    "dataset",
    "category",
    "localiser",
    "refiner",
    "step",
    "frame",
    *COUNTS,
    *METRICS,
    *CHECKS,
)
_POINT_COLUMNS = ("dataset", "category", "path", "image_id", "set", "x", "y", "label", "value")


def vanished_images(run: Run) -> list[ImageRecord]:
    """The defective images of a finished run whose defects leave no pixel in the evaluation frame."""
    scores = SCORE.artefact(run)
    return [record for record in run.manifest if _vanished(record, scores.record(score.item_id(run, record)))]


def results_table(
    run: Run, *, leak: bool = False, intervals: pd.DataFrame | None = None, skipped: Counter[str] | None = None
) -> pd.DataFrame:
    """One row for each category and step, and one mean for each step; undefined metrics are missing.

    With the ``intervals`` of ``cascade.tasks.tables.intervals`` each metric gets columns ``<metric>_low``,
    ``<metric>_high`` and ``<metric>_note``. Some are added only where there is something to say: ``leak`` if the
    adapter was trained on what it was tested on, ``n_vanished`` if defects leave no pixel in the evaluation frame,
    ``n_skipped`` if images were left out, which ``skipped`` counts by category, and ``n_batch``, the images that judge
    the others, if the localiser looks at batches: such rows are transductive, and not to be held against those of
    single images. It is 0 in a category whose images were judged alone.
    """
    constant = {
        "dataset": run.manifest.name,
        "localiser": run.experiment.localise.method,
        "refiner": run.experiment.refine.method,
        "frame": _frame(run.experiment.score.frame),
    }
    table = pd.DataFrame([constant | row for row in table_rows(run)], columns=list(RESULT_COLUMNS))
    table = table.astype(dict.fromkeys((*METRICS, *CHECKS), "float64"))
    if intervals is not None:
        parts = ("low", "high", "note")
        for part in parts:
            wide = intervals.pivot(index=["category", "step"], columns="metric", values=part)
            table = table.join(wide.add_suffix(f"_{part}"), on=["category", "step"])
        table = table[[*RESULT_COLUMNS, *(f"{metric}_{part}" for metric in METRICS for part in parts)]]
    lost = Counter(record.category for record in vanished_images(run))
    batch = Counter({category: len(each.images) for category, each in run.batches.items()})
    for name, counts in (("n_vanished", lost), ("n_skipped", skipped or Counter()), (BATCH, batch)):
        if counts or (name == BATCH and run.localiser.SCOPE == "batch"):
            table[name] = [counts.total() if own == MEAN else counts[own] for own in table["category"]]
    return _marked(table, leak)


def images_table(run: Run, *, leak: bool = False) -> pd.DataFrame:
    """One row for each image and step.

    ``mask_area`` is the segmented share of the evaluation frame: S_a for the map's row, the chosen mask for a step.
    ``mask_iou`` compares it with the ground truth of a defective image, ``mask`` says which of three masks was chosen.
    ``image_score`` is one of ``clip_score``, ``max_score`` and ``top_score``. ``vanished``
    says that the defects leave no pixel in that frame. ``item`` names the image in the store. With
    ``score.operating_threshold`` there is ``defective``: whether the image's score after the last step reaches it.
    """
    scores, limit = SCORE.artefact(run), run.experiment.score.operating_threshold
    prompts, refined = (PROMPT.artefact(run), REFINE.artefact(run)) if refines(run) else (None, None)
    rows: list[dict[str, Any]] = []
    for record in run.manifest:
        name, item = localised_id(run, record), score.item_id(run, record)
        scored = scores.record(item)
        points = prompts.record(name) if prompts is not None else _unprompted(scored)
        masks = refined.record(name) if refined is not None else {"no_prompt": False}
        common = {
            "dataset": run.manifest.name,
            "category": record.category,
            "defect": record.defect,
            "path": record.path,
            "image_id": record.image_id,
            "label": record.label,
            "threshold": points["threshold"],
            "extreme_area": sum(each["area"] for each in points["sets"]),
            "n_positive": sum(sum(each["labels"]) for each in points["sets"]),
            "n_negative": sum(len(each["labels"]) - sum(each["labels"]) for each in points["sets"]),
            "no_prompt": masks["no_prompt"],
            "box_fallback": masks.get("box_fallback", False),
            "empty_ring": masks.get("empty_ring", False),
            "vanished": _vanished(record, scored),
            "item": item,
        }
        if limit is not None:
            common["defective"] = scored["image_score"][-1] >= limit
        for index, step in enumerate(run.steps):
            rows.append(
                common
                | {
                    "step": step,
                    "image_score": scored["image_score"][index],
                    "clip_score": scored["clip_score"],
                    "max_score": scored["max_score"][index],
                    "top_score": scored["top_score"][index],
                    "mask_area": scored["mask_area"][index],
                    "mask_iou": scored["mask_iou"][index] if scored["mask_iou"] else None,
                    "predicted_iou": _predicted_iou(masks, index),
                    "mask": None if scored["chosen"][index] is None else scored["chosen"][index] + 1,
                    "box": _box(masks, index),
                }
            )
    numbers = {"label": "Int64", "mask_iou": "float64", "predicted_iou": "float64", "mask": "Int64"}
    table = pd.DataFrame(rows).astype(numbers)
    return _marked(table, leak)


def points_table(run: Run, *, leak: bool = False) -> pd.DataFrame:
    """One row for each point prompt: x and y in pixels of the original image, label 1 positive or 0 negative.

    ``value`` is the map's score at a positive point and the cosine similarity at a negative one.
    """
    prompts = PROMPT.artefact(run)
    rows: list[dict[str, Any]] = []
    for record in run.manifest if refines(run) else ():
        for number, each in enumerate(prompts.record(localised_id(run, record))["sets"]):
            common = {
                "dataset": run.manifest.name,
                "category": record.category,
                "path": record.path,
                "image_id": record.image_id,
                "set": number,
            }
            for (x, y), label, value in zip(each["points"], each["labels"], each["values"], strict=True):
                rows.append(common | {"x": x, "y": y, "label": label, "value": value})
    table = pd.DataFrame(rows, columns=list(_POINT_COLUMNS))
    numbers = {"set": "int64", "x": "float64", "y": "float64", "label": "int64", "value": "float64"}
    return _marked(table.astype(numbers), leak)


def _unprompted(scored: Mapping[str, Any]) -> dict[str, Any]:
    """What stands for the prompts of a run that makes none: where its map was cut, and the pixels above."""
    height, width = scored["frame"]
    area = round(scored["mask_area"][0] * height * width)
    return {"threshold": scored["threshold"], "sets": [{"area": area, "labels": []}]}


def _frame(side: Frame) -> str:
    """``518x518`` or ``native``: words alone, so that a CSV file is read as the parquet file is."""
    return side if isinstance(side, str) else f"{side}x{side}"


def _vanished(record: ImageRecord, scored: Mapping[str, Any]) -> bool:
    return record.label == 1 and scored["truth"] and not scored["regions"]


def _marked(table: pd.DataFrame, leak: bool) -> pd.DataFrame:
    return table.assign(leak=True) if leak else table


def _predicted_iou(masks: Any, index: int) -> float | None:
    if index == 0 or masks["no_prompt"]:
        return None
    return float(masks["predicted_iou"][index - 1][masks["chosen"][index - 1]])


def _box(masks: Any, index: int) -> str | None:
    """Boxes in the prompt frame as text, ``x0 y0 x1 y1`` separated by ``;``."""
    if index == 0 or masks["no_prompt"] or not masks["boxes"][index - 1]:
        return None
    return ";".join(" ".join(f"{value:g}" for value in box) for box in masks["boxes"][index - 1])
