"""Stage ``refine``: CPS, three passes of SAM's decoder for each set of point prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.keys import StageKey
from cascade.tasks import embed, localise, prompt
from cascade.tasks.execution.shards import shards_of
from cascade.tasks.execution.threads import Write, batches, on_every_core, read_ahead, written_behind
from cascade.tasks.stage import Run, Stage, StageItem, config_of, require_finite, worded_items

if TYPE_CHECKING:
    from cascade.refiners.cps import Cascade, Row

VERSION = 2
STEPS = ("points", "points+logits", "points+box+logits")
_MASKS = 3


@dataclass(frozen=True)
class _Job:
    """One set of prompts of one image."""

    item: StageItem
    number: int
    prompts: Mapping[str, Any]
    frame: tuple[int, int]


def key(run: Run) -> StageKey:
    """Every choice of CPS, the decoder's weights, and the artefacts that it reads."""
    upstream = {"embed": embed.key(run).digest, "prompt": prompt.key(run).digest}
    config = config_of(run.experiment.refine)
    return StageKey("refine", VERSION, config, upstream, weights={"sam": run.weights["sam"].sha256})


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``logits`` [3 steps, 3 masks, 4·grid, 4·grid] float16; a step with one mask fills the first."""
    from cascade.backbones.sam.build import embedding_shape

    side = 4 * embedding_shape(run.experiment.embed.backbone)[-1]
    return {"logits": ArraySpec((len(STEPS), _MASKS, side, side), "float16")}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Run the cascade, a batch of equally many points at a time, and store every step.

    A matrix product may round differently in a batch of another size, so batches are those of the whole shard, whatever
    of it is in the store: a run that was stopped and goes on leaves the same bytes as one that was not.

    The record holds ``no_prompt`` alone for an image without prompt (and no array is written); else also
    ``box_fallback``, ``empty_ring`` and, by step, ``predicted_iou``, ``chosen`` and ``boxes`` (prompt frame).
    """
    prompts = run.artefact(prompt.key(run))
    wanted = {item.id for item in items}
    jobs: list[_Job] = []
    for item in _shards_with(run, wanted):
        record = prompts.read(item.id).record
        if not record["sets"] and item.id in wanted:
            artefact.write(item.id, {}, {"no_prompt": True})
        for number, own in enumerate(record["sets"]):
            jobs.append(_Job(item, number, own, (record["frame"][0], record["frame"][1])))

    sets_of = Counter(job.item.id for job in jobs)
    finished: dict[str, list[tuple[_Job, Cascade]]] = defaultdict(list)
    with written_behind(artefact) as write:
        for job, cascade in _cascades(run, jobs, wanted):
            if job.item.id not in wanted:
                continue
            own = finished[job.item.id]
            own.append((job, cascade))
            if len(own) == sets_of[job.item.id]:
                _store(write, job.item, finished.pop(job.item.id))


def _shards_with(run: Run, wanted: Collection[str]) -> list[StageItem]:
    """All items of the shards that hold those wanted."""
    shards = shards_of(worded_items(run), run.experiment.runtime.shard_size)
    return [item for shard in shards if any(each.id in wanted for each in shard) for item in shard]


def _cascades(run: Run, jobs: Sequence[_Job], wanted: Collection[str]) -> Iterator[tuple[_Job, Cascade]]:
    """Each job of a batch that has a wanted item, with its cascade.

    Rows of a batch have equally many points, so nothing is padded.
    """
    import torch

    from cascade.frames import scale_points
    from cascade.refiners.cps import CascadeOptions, run_cascade
    from cascade.tasks.execution.networks import decoder_of, device_of

    if not jobs:
        return
    config = run.experiment.refine
    options = CascadeOptions(**config.model_dump(exclude={"decoder", "precision", "batch_size"}))
    decode, device = decoder_of(run), device_of(run)
    embeddings = run.artefact(embed.key(run))

    def cascaded(batch: Sequence[tuple[_Job, NDArray[np.float16]]]) -> list[Cascade]:
        rows = [_row(run, job, options.choice == "agreement") for job, _ in batch]
        points = [
            scale_points(
                np.array(job.prompts["points"]), (job.item.record.height, job.item.record.width), row.frame.size
            )
            for (job, _), row in zip(batch, rows, strict=True)
        ]
        return run_cascade(
            decode,
            torch.from_numpy(np.stack([embedding for _, embedding in batch])).to(device).float(),
            torch.from_numpy(np.stack(points)).float().to(device),
            torch.tensor([job.prompts["labels"] for job, _ in batch], device=device),
            rows,
            options,
        )

    buckets: dict[int, list[_Job]] = defaultdict(list)
    for job in jobs:
        buckets[len(job.prompts["labels"])].append(job)

    def read_batches() -> Iterator[list[tuple[_Job, NDArray[np.float16]]]]:
        for _, bucket in sorted(buckets.items()):
            whole = list(batches(bucket, config.batch_size))
            jobs_to_do = [job for batch in whole if any(each.item.id in wanted for each in batch) for job in batch]
            read = read_ahead(jobs_to_do, lambda job: embeddings.read(job.item.record.image_id).arrays["embedding"])
            yield from batches(read, config.batch_size)

    for batch, cascades in on_every_core(read_batches(), cascaded, device):
        yield from zip([job for job, _ in batch], cascades, strict=True)


def _row(run: Run, job: _Job, with_map: bool) -> Row:
    from cascade.backbones.sam.build import embedding_shape, input_side
    from cascade.backbones.sam.image import input_frame
    from cascade.frames import grid_coverage
    from cascade.refiners.cps import Row

    record, backbone = job.item.record, run.experiment.embed.backbone
    frame = input_frame((record.height, record.width), run.experiment.embed.image, input_side(backbone))
    anomaly = None
    if with_map:
        import torch

        from cascade.localisers.april_gan import anomaly_map

        logits = run.artefact(localise.key(run)).read(job.item.id).arrays["logits"]
        whole = anomaly_map(torch.from_numpy(logits)[None], job.frame)[0].numpy()
        anomaly = grid_coverage(whole, frame, 4 * embedding_shape(backbone)[-1])
    return Row(frame, job.frame, np.array(job.prompts["box"]), anomaly)


def _store(write: Write, item: StageItem, parts: Sequence[tuple[_Job, Cascade]]) -> None:
    """Write one image's three steps; several sets of prompts are merged by the maximum of their chosen masks (A14)."""
    parts = sorted(parts, key=lambda part: part[0].number)
    steps = []
    for index in range(len(STEPS)):
        own = [cascade.steps[index] for _, cascade in parts]
        if len(own) == 1:
            logits, predicted_iou, chosen = own[0].logits, own[0].predicted_iou, own[0].chosen
        else:
            logits = np.max([step.logits[step.chosen] for step in own], axis=0)[None]
            predicted_iou = np.mean([step.predicted_iou[[step.chosen]] for step in own], axis=0)
            chosen = 0
        boxes = [box.tolist() for step in own for box in step.boxes]
        steps.append((logits, [float(value) for value in predicted_iou], chosen, boxes))

    stored = np.zeros((len(STEPS), _MASKS, *steps[0][0].shape[1:]), dtype=np.float16)
    for index, (logits, *_) in enumerate(steps):
        stored[index, : len(logits)] = logits
    require_finite("refine", item.record, stored)
    record = {
        "no_prompt": False,
        "box_fallback": any(cascade.box_fallback for _, cascade in parts),
        "empty_ring": any(job.prompts["empty_ring"] for job, _ in parts),
        "predicted_iou": [step[1] for step in steps],
        "chosen": [step[2] for step in steps],
        "boxes": [step[3] for step in steps],
    }
    write(item.id, {"logits": stored}, record)


REFINE = Stage("refine", key, worded_items, arrays, compute)
