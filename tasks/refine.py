"""Stage ``refine``: a refiner's steps for each set of point prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade.refiners.merging import ImageMasks, merge_sets
from cascade.refiners.protocol import Refined, Row
from cascade.storage.artefacts import ArraySpec, Artefact, Item
from cascade.tasks.embed import EMBED
from cascade.tasks.execution.threads import Write, batches, on_every_core, read_ahead, written_behind
from cascade.tasks.localise import Maps
from cascade.tasks.prompt import PROMPT
from cascade.tasks.stage import Run, Stage, StageItem, config_of, localised_items, refines, require_finite

if TYPE_CHECKING:
    from cascade.frames import InputFrame


@dataclass(frozen=True)
class _Job:
    """One set of prompts of one image."""

    item: StageItem
    number: int
    prompts: Mapping[str, Any]
    frame: tuple[int, int]


def config(run: Run) -> dict[str, Any]:
    """Every choice of the refiner. CPS goes without its name, as when it was the only one, so that its keys stay."""
    options = config_of(run.experiment.refine)
    return {name: value for name, value in options.items() if (name, value) != ("method", "cps")}


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``logits`` [steps, masks, 4·grid, 4·grid] float16; a step with fewer masks fills the first."""
    from cascade.backbones.sam.build import embedding_shape

    side = 4 * embedding_shape(run.experiment.embed.backbone)[-1]
    return {"logits": ArraySpec((len(run.refiner.STEPS), run.refiner.MASKS, side, side), "float16")}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Refine a batch of sets of equally many points at a time, and store every step.

    A matrix product may round differently in a batch of another size, so batches are those of the whole shard, whatever
    of it is in the store: a run that was stopped and goes on leaves the same bytes as one that was not.

    The record holds ``no_prompt`` alone for an image without prompt (and no array is written); else also
    ``box_fallback``, ``empty_ring`` and, by step, ``predicted_iou``, ``chosen`` and ``boxes`` (prompt frame).
    """
    prompts = PROMPT.artefact(run)
    wanted = {item.id for item in items}
    jobs: list[_Job] = []
    for item in localised_items(run):
        record = prompts.read(item.id).record
        if not record["sets"] and item.id in wanted:
            artefact.write(item.id, {}, {"no_prompt": True})
        for number, each in enumerate(record["sets"]):
            jobs.append(_Job(item, number, each, (record["frame"][0], record["frame"][1])))

    sets_of = Counter(job.item.id for job in jobs)
    finished: dict[str, list[tuple[_Job, Refined]]] = defaultdict(list)
    with written_behind(artefact) as write:
        for job, refined in _refined(run, jobs, wanted):
            if job.item.id not in wanted:
                continue
            parts = finished[job.item.id]
            parts.append((job, refined))
            if len(parts) == sets_of[job.item.id]:
                _store(run, write, job.item, finished.pop(job.item.id))


def masks_of(item: Item) -> ImageMasks | None:
    """What the artefact holds of an image; ``None`` if it got no prompt."""
    if item.record["no_prompt"]:
        return None
    names = ("predicted_iou", "chosen", "boxes", "box_fallback")
    return ImageMasks(item.arrays["logits"], **{name: item.record[name] for name in names})


def _refined(run: Run, jobs: Sequence[_Job], wanted: Collection[str]) -> Iterator[tuple[_Job, Refined]]:
    """Each job of a batch that has a wanted item, with what became of it.

    Rows of a batch have equally many points, so nothing is padded.
    """
    import torch

    from cascade.frames import scale_points
    from cascade.tasks.execution.networks import decoder_of, device_of

    if not jobs:
        return
    size = getattr(run.experiment.refine, "batch_size", 1)
    decode, device = decoder_of(run.experiment, run.weights), device_of(run.experiment.runtime)
    embeddings, maps = EMBED.artefact(run), Maps(run) if run.refiner.needs_map else None

    def refine(batch: Sequence[tuple[_Job, NDArray[np.float16]]]) -> list[Refined]:
        rows = [_row(run, job, maps) for job, _ in batch]
        points = [
            scale_points(
                np.array(job.prompts["points"]), (job.item.record.height, job.item.record.width), row.frame.size
            )
            for (job, _), row in zip(batch, rows, strict=True)
        ]
        return run.refiner.refine(
            decode,
            torch.from_numpy(np.stack([embedding for _, embedding in batch])).to(device).float(),
            torch.from_numpy(np.stack(points)).float().to(device),
            torch.tensor([job.prompts["labels"] for job, _ in batch], device=device),
            rows,
        )

    buckets: dict[int, list[_Job]] = defaultdict(list)
    for job in jobs:
        buckets[len(job.prompts["labels"])].append(job)

    def read_batches() -> Iterator[list[tuple[_Job, NDArray[np.float16]]]]:
        for _, bucket in sorted(buckets.items()):
            whole = list(batches(bucket, size))
            jobs_to_do = [job for batch in whole if any(each.item.id in wanted for each in batch) for job in batch]
            read = read_ahead(jobs_to_do, lambda job: embeddings.read(job.item.record.image_id).arrays["embedding"])
            yield from batches(read, size)

    for batch, refined in on_every_core(read_batches(), refine, device):
        yield from zip([job for job, _ in batch], refined, strict=True)


def input_frame_of(run: Run, item: StageItem) -> InputFrame:
    """Where an image lies in the input of the run's SAM."""
    from cascade.backbones.sam.build import input_side
    from cascade.backbones.sam.image import input_frame

    embed = run.experiment.embed
    return input_frame((item.record.height, item.record.width), embed.image, input_side(embed.backbone))


def _row(run: Run, job: _Job, maps: Maps | None) -> Row:
    from cascade.backbones.sam.build import embedding_shape
    from cascade.frames import grid_coverage

    frame, anomaly = input_frame_of(run, job.item), None
    if maps is not None:
        side = 4 * embedding_shape(run.experiment.embed.backbone)[-1]
        anomaly = grid_coverage(maps.of(job.item.id, job.frame).values, frame, side)
    return Row(frame, job.frame, np.array(job.prompts["box"]), anomaly)


def _store(run: Run, write: Write, item: StageItem, parts: Sequence[tuple[_Job, Refined]]) -> None:
    """Write one image's steps, its sets of prompts merged."""
    parts = sorted(parts, key=lambda part: part[0].number)
    masks = merge_sets([refined for _, refined in parts], run.refiner.MASKS)
    require_finite("refine", item.record, masks.logits)
    record = {
        "no_prompt": False,
        "box_fallback": masks.box_fallback,
        "empty_ring": any(job.prompts["empty_ring"] for job, _ in parts),
        "predicted_iou": masks.predicted_iou,
        "chosen": masks.chosen,
        "boxes": masks.boxes,
    }
    write(item.id, {"logits": masks.logits}, record)


REFINE = Stage(
    name="refine",
    version=lambda run: run.refiner.VERSION,
    config=config,
    upstream=(EMBED, PROMPT),
    roles=lambda run: ("sam",),
    items=localised_items,
    arrays=arrays,
    compute=compute,
    applies=refines,
)
