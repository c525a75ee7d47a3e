"""What trained weights say of themselves: in the file, to refuse an unfair test, and in a card beside it, to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cascade.configs.schema import TrainConfig
from cascade.storage.keys import digest_of
from cascade.tasks.execution.adapters import adapter_training
from cascade.tasks.stage import Run
from cascade.tasks.tokens import TOKENS

_OPTIONS = ("tower", "backbone", "layers", "image_side", "activation", "aliased")
"""Options without which the weights mean nothing."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        number: counted from 1.
        loss: mean over its batches.
        pixel_ap: of the map on the categories that are held out, a mean in [0, 1]; ``None`` if none is.
        pixel_f1max: likewise.
    """

    number: int
    loss: float
    pixel_ap: float | None = None
    pixel_f1max: float | None = None


def checkpoint_of(out: Path) -> Path:
    """Where a training that is not finished keeps its state: beside ``out``."""
    return out.with_suffix(".checkpoint.pt")


def card_of(out: Path) -> Path:
    """Where the model card of a file of weights is: beside it."""
    return out.with_suffix(".md")


def identity(run: Run, config: TrainConfig, processes: int) -> str:
    """Digest of all that the weights of a training depend on."""
    images = [[record.image_id, record.mask_id, run.words(record)] for record in run.manifest]
    return digest_of(
        {
            "recipe": config.model_dump(mode="json"),
            "options": run.experiment.localise.key_options(),
            "tokens": TOKENS.key(run).digest,
            "weights": {role: located.sha256 for role, located in run.weights.items()},
            "images": images,
            "version": run.localiser.VERSION,
            "processes": processes,
        }
    )


def training_of(run: Run, config: TrainConfig, epochs: Sequence[Epoch], trained: str) -> dict[str, Any]:
    """What the file says: enough to refuse an unfair test.

    Args:
        run: its manifest holds the images that were learned from, without those held out.
        config: the recipe.
        epochs: every epoch.
        trained: role of the weights; a checkpoint of it is what the training started from.
    """
    localise = run.experiment.localise
    said: dict[str, Any] = {
        "method": localise.method,
        "dataset": run.manifest.name,
        "categories": list(run.manifest.categories),
        "image_ids": sorted({record.digest for record in run.manifest}),
        "recipe": config.model_dump(mode="json"),
        "loss": [epoch.loss for epoch in epochs],
    }
    for name in _OPTIONS:
        if (value := getattr(localise, name, None)) is not None:
            said[name] = list(value) if isinstance(value, tuple) else value
    for role, located in run.weights.items():
        if role == trained:
            said["start"] = adapter_training(located)
        else:
            said[f"{role}_sha256"] = located.sha256
    if any(epoch.pixel_ap is not None for epoch in epochs):
        said["held_out"] = [{"pixel_ap": epoch.pixel_ap, "pixel_f1max": epoch.pixel_f1max} for epoch in epochs]
    return said


def card(
    training: Mapping[str, Any], run: Run, weights: Mapping[str, int], sha256: str, held_out: Sequence[str]
) -> str:
    """The model card, in Markdown.

    Args:
        training: what the file says.
        run: as of ``training_of``.
        weights: numbers of values by the name of each trained tensor.
        sha256: of the file.
        held_out: categories on which every epoch was validated.
    """
    recipe = ", ".join(f"{name} {value}" for name, value in training["recipe"].items() if value is not None)
    frozen = [f"- {role}: sha256 `{located.sha256}`" for role, located in run.weights.items()]
    options = ", ".join(f"{name} {training[name]}" for name in _OPTIONS if name in training)
    counts = Counter((record.category, bool(record.label)) for record in run.manifest)
    rows = [f"| {each} | {counts[each, False]} | {counts[each, True]} |" for each in run.manifest.categories]
    validation = training.get("held_out", [])
    found = [f" {own['pixel_ap']:.4f} | {own['pixel_f1max']:.4f} |" for own in validation] or [""] * len(
        training["loss"]
    )
    losses = enumerate(zip(training["loss"], found, strict=True), 1)
    curve = [f"| {number} | {loss:.4f} |{own}" for number, (loss, own) in losses]
    lines = [
        f"# {training['method']}, trained on {training['dataset']}",
        "",
        f"Weights of `localise.method={training['method']}`: {sum(weights.values())} values in {len(weights)} tensors, "
        f"written by clip-sam-cascade {version('clip-sam-cascade')}.",
        f"sha256 of the file: `{sha256}`. Options: {options}.",
        "",
        "## Data",
        "",
        f"Dataset {training['dataset']}, {len(training['image_ids'])} different images. A test on one of them, or on "
        "one of these categories of this dataset, is refused.",
        "",
        "| category | good | defective |",
        "|---|---|---|",
        *rows,
        "",
        "## Recipe",
        "",
        f"{recipe}.",
        "",
        "## Frozen parts, and what the training started from",
        "",
        *frozen,
        "",
        "## Loss" if not validation else "## Loss, and the map on what was held out",
        "",
        *(
            [f"Held out: {', '.join(held_out)}. Means over categories, in the frame of the input.", ""]
            if held_out
            else []
        ),
        "| epoch | loss |" + (" pixel AP | pixel F1-max |" if validation else ""),
        "|---|---|" + ("---|---|" if validation else ""),
        *curve,
    ]
    return "\n".join(lines) + "\n"
