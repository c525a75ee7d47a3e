"""Stage ``prompt``: PPG, point prompts from the anomaly map and SAM's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade.configs.schema import Frame, PromptConfig
from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import ImageRecord
from cascade.tasks.embed import EMBED
from cascade.tasks.execution.threads import on_every_core, read_ahead
from cascade.tasks.localise import LOCALISE, Maps
from cascade.tasks.stage import Run, Stage, StageItem, config_of, localised_items, no_roles, refines

if TYPE_CHECKING:
    from cascade.prompts.image import ImagePrompts
    from cascade.prompts.ppg import PromptOptions

VERSION = 2


def config(run: Run) -> dict[str, Any]:
    """Every choice of PPG, less those that the refiner's own leave without effect."""
    fixed = run.refiner.PROMPTS
    asked = {name: value for name, value in fixed.items() if name in PromptConfig.model_fields}
    return config_of(run.experiment.prompt.model_copy(update=asked)) | dict(fixed)


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """None: a few points fit in the ledger."""
    return {}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Find the points of each image; the record is an ``ImagePrompts`` of ``cascade.prompts.image`` as plain data."""
    import torch

    from cascade.backbones.sam.build import input_side
    from cascade.backbones.sam.image import input_frame
    from cascade.prompts.image import image_prompts

    config, embed = run.experiment.prompt, run.experiment.embed
    options, side = prompt_options(config, run.refiner.PROMPTS), input_side(embed.backbone)
    maps, embeddings = Maps(run), EMBED.artefact(run)

    def read(item: StageItem) -> NDArray[np.float16]:
        return embeddings.read(item.record.image_id).arrays["embedding"]

    def find(entry: tuple[StageItem, NDArray[np.float16]]) -> ImagePrompts:
        item, embedding = entry
        image_size = (item.record.height, item.record.width)
        return image_prompts(
            maps.of(item.id, frame_size(config.frame, item.record)),
            torch.from_numpy(embedding).float(),
            image_size,
            input_frame(image_size, embed.image, side),
            options,
        )

    for (item, _), prompts in on_every_core(read_ahead(items, read), find):
        artefact.write(item.id, {}, asdict(prompts))


def frame_size(frame: Frame, record: ImageRecord) -> tuple[int, int]:
    """(height, width) of a square frame, or of the image itself for ``native``."""
    return (record.height, record.width) if frame == "native" else (frame, frame)


def prompt_options(config: PromptConfig, fixed: Mapping[str, Any] = MappingProxyType({})) -> PromptOptions:
    """The options of PPG from their nested configuration, and those that a refiner fixes."""
    from cascade.prompts.ppg import PromptOptions

    flat = config.model_dump(exclude={"frame", "threshold", "spacing", "dilation"})
    for section, prefix in (
        (config.threshold, "threshold_"),
        (config.spacing, "spacing_"),
        (config.dilation, "dilation_"),
    ):
        flat |= {name if name == "min_area" else prefix + name: value for name, value in section.model_dump().items()}
    return PromptOptions(**(flat | dict(fixed)))


PROMPT = Stage(
    name="prompt",
    version=lambda run: VERSION,
    config=config,
    upstream=(EMBED, LOCALISE),
    roles=no_roles,
    items=localised_items,
    arrays=arrays,
    compute=compute,
    applies=refines,
)
