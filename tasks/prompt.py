"""Stage ``prompt``: PPG, point prompts from the anomaly map and SAM's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade.configs.schema import Frame, PromptConfig
from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import ImageRecord
from cascade.storage.keys import StageKey
from cascade.tasks import embed, localise
from cascade.tasks.execution.threads import on_every_core, read_ahead
from cascade.tasks.stage import Run, Stage, StageItem, config_of, worded_items

if TYPE_CHECKING:
    from cascade.prompts.ppg import PromptOptions

VERSION = 2


def key(run: Run) -> StageKey:
    """Every choice of PPG, and the two artefacts that it reads."""
    upstream = {"embed": embed.key(run).digest, "localise": localise.key(run).digest}
    return StageKey("prompt", VERSION, config_of(run.experiment.prompt), upstream)


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """None: a few points fit in the ledger."""
    return {}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Find the points of each image and record them in pixels of the original image.

    The record holds ``threshold``, ``frame`` (height, width) and ``sets``; a set holds ``points`` [[x, y], ...] in
    original pixels, ``labels``, ``values``, ``box`` of the dilated S_a (prompt frame), ``area`` and ``empty_ring``.
    """
    import torch

    from cascade.backbones.sam.build import input_side
    from cascade.backbones.sam.image import input_frame
    from cascade.frames import scale_points
    from cascade.localisers.april_gan import anomaly_map, logit_margin
    from cascade.prompts.ppg import generate_prompts

    config = run.experiment.prompt
    options = prompt_options(config)
    side = input_side(run.experiment.embed.backbone)
    maps, embeddings = run.artefact(localise.key(run)), run.artefact(embed.key(run))

    def read(item: StageItem) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        embedding = embeddings.read(item.record.image_id)
        return maps.read(item.id).arrays["logits"], embedding.arrays["embedding"]

    def find(entry: tuple[StageItem, tuple[NDArray[np.float32], NDArray[np.float16]]]) -> dict[str, Any]:
        record, (own_logits, own_embedding) = entry[0].record, entry[1]
        image_size, size = (record.height, record.width), frame_size(config.frame, record)
        logits, embedding = torch.from_numpy(own_logits)[None], torch.from_numpy(own_embedding).float()
        frame = input_frame(image_size, run.experiment.embed.image, side)
        prompts = generate_prompts(
            anomaly_map(logits, size)[0].numpy(), logit_margin(logits, size)[0].numpy(), embedding, frame, options
        )
        sets = [
            {
                "points": scale_points(own.points, size, image_size).tolist(),
                "labels": own.labels.tolist(),
                "values": np.round(own.values, 7).tolist(),
                "box": own.box.tolist(),
                "area": own.area,
                "empty_ring": own.empty_ring,
            }
            for own in prompts.sets
        ]
        return {"threshold": prompts.threshold, "frame": list(size), "sets": sets}

    for (item, _), record in on_every_core(read_ahead(items, read), find):
        artefact.write(item.id, {}, record)


def frame_size(frame: Frame, record: ImageRecord) -> tuple[int, int]:
    """(height, width) of a square frame, or of the image itself for ``native``."""
    return (record.height, record.width) if frame == "native" else (frame, frame)


def prompt_options(config: PromptConfig) -> PromptOptions:
    """The options of PPG from their nested configuration."""
    from cascade.prompts.ppg import PromptOptions

    flat = config.model_dump(exclude={"frame", "threshold", "spacing", "dilation"})
    for section, prefix in (
        (config.threshold, "threshold_"),
        (config.spacing, "spacing_"),
        (config.dilation, "dilation_"),
    ):
        flat |= {name if name == "min_area" else prefix + name: value for name, value in section.model_dump().items()}
    return PromptOptions(**flat)


PROMPT = Stage("prompt", key, worded_items, arrays, compute)
