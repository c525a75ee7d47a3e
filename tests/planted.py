"""Runs whose scores are known: no network has seen them, and what differs between two of them was put there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cascade.configs.loader import load_experiment
from cascade.storage.artefacts import Artefact, Store
from cascade.storage.keys import StageKey, digest_of
from cascade.tasks.aggregate import METRICS
from cascade.tasks.score import histogram_specs, stored_histograms
from cascade.tasks.tables.comparison import Scored
from cascade.tasks.tables.intervals import ScoredImage

STEPS = ("clip", "points", "points+logits", "points+box+logits")
SIDE = 24
GOOD, DEFECTIVE = 10, 12
CATEGORIES = ("cap", "nut", "pin")


@dataclass(frozen=True, eq=False)
class PlantedImage:
    """An image that is nothing but its scores, float16, and the mask of its defect."""

    category: str
    name: str
    scores: np.ndarray
    mask: np.ndarray

    @property
    def label(self) -> int:
        return int(self.mask.any())


def planted_images(
    categories: Sequence[str] = CATEGORIES,
    *,
    seed: int = 0,
    weaker: Mapping[str, float] | None = None,
    jitter: int | None = None,
    good: int = GOOD,
    defective: int = DEFECTIVE,
) -> list[PlantedImage]:
    """Noise plus an effect inside a square; ``weaker`` takes some of the effect of a category away.

    ``jitter`` seeds a little noise on top, as between two equal runs with other seeds.
    """
    images = []
    for category in categories:
        rng = np.random.default_rng([seed, *category.encode()])
        shaken = np.random.default_rng([jitter or 0, *category.encode()])
        for number in range(good + defective):
            mask = np.zeros((SIDE, SIDE), bool)
            row, column = rng.integers(0, SIDE - 6, 2)
            mask[row : row + 6, column : column + 6] = number >= good
            values = rng.normal(size=mask.shape) + (2 + 0.5 * rng.normal() - (weaker or {}).get(category, 0)) * mask
            values += 0.05 * shaken.normal(size=mask.shape) if jitter is not None else 0
            images.append(PlantedImage(category, f"{category}/{number:02}", _half(values), mask))
    return images


def plant_scores(store: Path, images: Sequence[PlantedImage]) -> Scored:
    """A store that holds the histograms of ``images``, the same for every step."""
    key = StageKey("score", 1, {})
    artefact = Store(store).artefact(key)
    scored = tuple(_scored(image) for image in images)
    with artefact.writing([each.item for each in scored], histogram_specs("uint32", len(STEPS))):
        for image, each in zip(images, scored, strict=True):
            _write(artefact, each.item, image)
    return Scored(artefact, scored, STEPS)


def plant_run(folder: Path, images: Sequence[PlantedImage], **changes: Any) -> Path:
    """The folder of a finished run with its own store beside it; ``changes`` replace parts of ``run.json``."""
    store = folder.with_name(f"{folder.name}-store")
    scored = plant_scores(store, images)
    folder.mkdir(parents=True)
    experiment = load_experiment("mini", ["dataset.name=planted"]).model_dump(mode="json")
    config = {"sentences": ["a photo"]}
    keys = {name: StageKey(name, 1, config if name == "localise" else {}) for name in ("embed", "localise", "score")}
    description = {
        "finished": "2026-01-02T03:04:05+00:00",
        "engine": "local",
        "experiment": experiment,
        "dataset": {"name": "planted", "root": str(folder), "images": len(images), "categories": []},
        "store": str(store),
        "keys": {name: {"digest": key.digest} | key.components for name, key in keys.items()},
        "weights": {role: {"path": role, "sha256": digest_of(role)} for role in ("sam", "clip", "adapter")},
        "stages": [{"stage": name, "computed": 3, "seconds": 1.5} for name in keys],
        "versions": {"python": "3.11.0", "torch": "2.9.0"},
        "machine": "x86_64",
    } | changes
    rows = [
        {"category": each.category, "path": each.path, "image_id": each.image_id, "label": each.label}
        | {"item": each.item, "step": step, "mask_iou": 0.5 if each.label else None}
        for each in scored.images
        for step in STEPS
    ]
    pd.DataFrame(rows).astype({"label": "Int64"}).to_parquet(folder / "images.parquet")
    means = [{"category": "mean", "step": step} | dict.fromkeys(METRICS, 0.5) for step in STEPS]
    pd.DataFrame(means).to_parquet(folder / "results.parquet")
    (folder / "run.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def _half(values: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(1 - values))).astype(np.float16)


def _scored(image: PlantedImage) -> ScoredImage:
    image_id = digest_of([image.name, image.mask.tolist()])
    truth = digest_of(image.mask.tolist()) if image.label else "good"
    return ScoredImage(image.category, image_id, image.name, image.label, f"{image_id}/{image.category}/{truth}")


def _write(artefact: Artefact, item: str, image: PlantedImage) -> None:
    stored, regions = stored_histograms(np.stack([image.scores] * len(STEPS)), image.mask)
    record = {"truth": True, "regions": regions, "image_score": [float(image.scores.max())] * len(STEPS)}
    artefact.write(item, stored, record)
