"""Training of the small SAM: clicks, boxes, fed-back masks and the cascade's own points, on a frozen trunk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from cascade.backbones.sam.build import build_sam, trunk_of
from cascade.backbones.sam.pyramid import CELL
from cascade.tasks.execution.networks import trunk_state
from cascade.tasks.training.cascade_prompts import draw_options, ppg_points, simulated_map
from cascade.tasks.training.sam_examples import Example, View, augment, make_example
from cascade.tasks.training.sam_objective import Trainee, affinity_loss, best_mask, coarse_target, decode, total_loss
from cascade.tasks.training.scene_pool import VALIDATION_SEEDS, ScenePool, training_seed
from cascade.tasks.training.session import (
    Log,
    Progress,
    Session,
    export,
    learning_rate,
    load_checkpoint,
    optimiser,
    save_checkpoint,
    scene_workers,
    training_device,
)
from cascade.tasks.training.simulated_prompts import boxes_of, correction, first_points, jittered

PEAK_RATE = 1.5e-3

TARGETS = 4
"""Masks asked for per window; half as many per whole input, and where there are three passes."""

LIKENESS, EARLY = 0.2, 0.55
"""Shares of the time before which only the embedding learns, and before ``LATER``. An embedding in which what belongs
together looks alike is learned without prompts, at half the cost, and it is what the decoder's start asks for."""

LATER = 0.5
"""Share of the later steps with three passes; of the early ones a fifth of that. Three passes with their gradient cost
three times as much as one, and what the encoder learns comes from the number of images."""

CASCADED = 0.4
"""Share of the steps with three passes whose points come from PPG, with all damage as the target where there is any."""

EARLY_CELLS, LATE_CELLS = 24, 32
"""Side in cells of the windows; of the small ones almost twice as many are seen in the same time."""

WHOLE = 0.15
"""Share of the later steps on whole inputs."""

PASS_WEIGHTS = (0.5, 0.5, 1.5)
"""Weights of the losses when there are three passes: the last mask is the one that counts, and its gradient goes back
through all."""

CLICKS = 0.1
"""Share of the steps with three passes in which a later one gets a click on an error; the cascade gives none."""

BOXES = 0.85
"""Share of the steps with three passes in which the last one gets a box. It is drawn around the pass before, as the
cascade draws it: a box around the target, here, teaches a trust that the cascade's box does not deserve."""

COLUMNS = (
    "step",
    "minutes",
    "images",
    "loss",
    "iou_1",
    "iou_2",
    "iou_3",
    *(f"val_{kind}_iou_{level}" for kind in ("damage", "region") for level in (1, 2, 3)),
)


def inputs_of(images: NDArray[np.uint8], device: str) -> Tensor:
    """Float ``[B, 3, S, S]`` in [−1, 1] of uint8 RGB ``[B, S, S, 3]``."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def decoder_passes(
    rng: np.random.Generator,
    trainee: Trainee,
    views: Sequence[View],
    corner: tuple[int, int],
    device: str,
    *,
    passes: int,
    cascaded: bool,
) -> tuple[Tensor, list[float]]:
    """Loss over ``passes`` decoder passes, one or three, and the mean IoU of each; prompt kinds are drawn per batch.

    When ``cascaded``, the points are PPG's on a simulated map, and the passes follow each other as in the cascade.
    """
    masks = np.concatenate([view.targets for view in views])
    sam, side = trainee.sam, masks.shape[1]
    embeddings = trainee.embed(inputs_of(np.stack([view.image for view in views]), device))
    low = 4 * embeddings.shape[-1]
    segments = coarse_target(torch.from_numpy(masks).to(device), low)
    target = segments
    rows = embeddings.repeat_interleave(len(masks) // len(embeddings), dim=0)
    box: Tensor | None = None
    if cascaded:
        masks = np.concatenate([_cascade_targets(view) for view in views])
        maps = [simulated_map(rng, mask) for mask in masks]
        points, labels = ppg_points(rng, maps, rows.detach(), draw_options(rng))
        target = coarse_target(torch.from_numpy(masks & _hit(masks, points, labels)).to(device), low)
    elif rng.random() < 0.1:
        box = jittered(rng, boxes_of(masks, side), side).to(device)
        points, labels = torch.zeros(len(masks), 0, 2), torch.zeros(len(masks), 0)
    elif rng.random() < 0.6:
        points, labels = first_points(rng, masks, 1, 0)
    else:
        negatives = 0 if rng.random() < 0.25 else int(rng.integers(1, 6))
        points, labels = first_points(rng, masks, int(rng.integers(1, 6)), negatives)
    losses, ious = [], []
    fed: Tensor | None = None
    clicks = not cascaded and rng.random() < CLICKS
    for level, weight in enumerate((1.0,) if passes == 1 else PASS_WEIGHTS):
        if level and clicks and fed is not None:
            more, kind = correction(rng, fed, target, side)
            points, labels = torch.cat([points, more], dim=1), torch.cat([labels, kind], dim=1)
        if level == 2 and fed is not None and box is None and (cascaded or rng.random() < BOXES):
            box = boxes_of((fed[:, 0] > 0).cpu().numpy(), side).to(device)
        logits, predicted = decode(sam, rows, (points.to(device), labels.to(device)), box, fed, corner)
        loss, iou = total_loss(logits, predicted, target)
        losses.append(weight * loss)
        ious.append(float(iou.mean()))
        fed = best_mask(logits, predicted)
    dense = _dense_loss(rng, trainee, embeddings, segments.reshape(len(views), -1, low, low))
    return torch.stack(losses).sum() + dense, ious


def embedding_loss(rng: np.random.Generator, trainee: Trainee, views: Sequence[View], device: str) -> Tensor:
    """What the embedding itself shall show of the targets, without any prompt."""
    embeddings = trainee.embed(inputs_of(np.stack([view.image for view in views]), device))
    low = 4 * embeddings.shape[-1]
    masks = torch.from_numpy(np.stack([view.targets for view in views])).to(device)
    return _dense_loss(
        rng, trainee, embeddings, coarse_target(masks.flatten(0, 1), low).reshape(*masks.shape[:2], low, low)
    )


def _dense_loss(rng: np.random.Generator, trainee: Trainee, embeddings: Tensor, targets: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return trainee.outline_loss(embeddings, targets) + affinity_loss(embeddings, targets, generator)


def _cascade_targets(view: View) -> NDArray[np.bool_]:
    """For each target the damage as a whole, where there is any; else the target itself."""
    if view.damage is not None and view.damage.any():
        return np.repeat(view.damage[None], len(view.targets), axis=0)
    return view.targets


def _hit(masks: NDArray[np.bool_], points: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """``[B, 1, 1]``: whether a positive point lies on the mask, or within a cell of it."""
    hit = []
    for mask, own, kinds in zip(masks, points.numpy().astype(int), labels.numpy() > 0, strict=True):
        near = cv2.dilate(mask.astype(np.uint8), np.ones((CELL + 1, CELL + 1), np.uint8))
        hit.append(bool(near[own[kinds, 1], own[kinds, 0]].any()))
    return np.array(hit)[:, None, None]


def held_out_examples(count: int, size: int, folder: Path | None) -> list[Example]:
    """``count`` examples of each kind in turn, on pictures that no training takes, that show something wanted."""
    examples = (make_example(seed, size, folder, held_out=True) for seed in VALIDATION_SEEDS)
    wanted = (example for example in examples if any(mask.mean() > 0.002 for mask in _wanted(example)))
    return [example for example, _ in zip(wanted, range(count), strict=False)]


def _wanted(example: Example) -> list[NDArray[np.bool_]]:
    return [example.mask(index) for index in range(example.count - example.wanted, example.count)]


@torch.no_grad()
def validate(sam: Sam, examples: Sequence[Example], device: str) -> dict[str, float]:
    """Mean IoU of held-out damage and regions after one central click, then with fed-back logits, then with a box too.

    Of each example the middle one by area of the wanted masks over 0.2 % of the image is asked for.
    """
    sam.eval()
    found: dict[str, list[list[float]]] = {"damage": [], "region": []}
    for example in examples:
        masks = sorted((mask for mask in _wanted(example) if mask.mean() > 0.002), key=lambda mask: int(mask.sum()))
        mask = masks[len(masks) // 2]
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        points = torch.tensor([[[float(x), float(y)]]], device=device), torch.ones(1, 1, device=device)
        embedding = sam.image_encoder(inputs_of(example.image[None], device))
        target = coarse_target(torch.from_numpy(mask[None]).to(device), 4 * embedding.shape[-1])
        fed: Tensor | None = None
        box: Tensor | None = None
        ious = []
        for level in range(3):
            if level == 2 and fed is not None:
                box = boxes_of((fed[:, 0] > 0).cpu().numpy(), len(mask)).to(device)
            logits, predicted = decode(sam, embedding, points, box, fed)
            ious.append(float(total_loss(logits, predicted, target)[1].mean()))
            fed = best_mask(logits, predicted)
        found["damage" if example.damage else "region"].append(ious)
    sam.train()
    means = {kind: np.mean(ious, axis=0) for kind, ious in found.items() if ious}
    return {f"val_{kind}_iou_{level + 1}": float(own[level]) for kind, own in means.items() for level in range(3)}


def pretrain_sam(
    out: Path,
    *,
    minutes: float,
    seed: int = 0,
    pictures: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batch: int = 4,
    max_steps: int | None = None,
    validation_examples: int = 48,
) -> dict[str, Any]:
    """Trains the small SAM on generated images and real surfaces, and exports it.

    A run that was killed continues from ``out/checkpoint.pt`` when it is called again with the same folder.

    Args:
        out: folder for ``checkpoint.pt``, ``log.csv`` and ``mini_sam.safetensors`` (fp16, without the trunk).
        minutes: training time over all sessions; the learning rate follows it.
        seed: of weights, scenes and prompts.
        pictures: folder with pictures of surfaces, beside those that packages ship.
        threads: torch threads; as found when None.
        progress: called after every logged step.
        device: the GPU if there is one, or a choice.
        batch: windows per step, of which there are twice as many without prompts; a step on whole inputs has one.
        max_steps: stop this session after so many steps even if time is left.
        validation_examples: held-out examples per validation.

    Returns:
        The facts written beside the weights: data, seeds, steps, minutes, metrics.

    Raises:
        ConfigError: the folder holds a run with another seed, or there is no such device.
    """
    place = training_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    trunk = trunk_of("mini")
    assert trunk is not None
    sam = build_sam("mini", trunk_state(trunk))
    side = sam.image_encoder.img_size
    grid = side // CELL
    trainee = Trainee(sam).to(place).train()
    optimizer = optimiser(trainee, PEAK_RATE)
    run = load_checkpoint(out / "checkpoint.pt", trainee, optimizer, seed) or Session(next_seed=training_seed(seed))
    log = Log(out / "log.csv", COLUMNS, progress)
    rng = np.random.default_rng([seed, run.step])
    held_out = held_out_examples(validation_examples, side, pictures)
    steps, metrics, last_save, last_check = 0, {}, time.monotonic(), time.monotonic()
    recent: list[list[float]] = []
    pool = ScenePool(
        partial(make_example, size=side, folder=pictures),
        run.next_seed,
        reuse=12,
        capacity=3000,
        warm=12 * batch,
        workers=scene_workers(place),
    )
    with pool:
        started, before = time.monotonic(), run.seconds
        while run.seconds < minutes * 60 and (max_steps is None or steps < max_steps):
            done = run.seconds / (minutes * 60)
            prompted, late = done >= LIKENESS, done >= EARLY
            passes = 3 if prompted and rng.random() < (LATER if late else LATER / 5) else 1
            cascaded = passes == 3 and rng.random() < CASCADED
            whole = late and rng.random() < WHOLE
            cells = grid if whole else LATE_CELLS if late else EARLY_CELLS
            corner = (int(rng.integers(grid - cells + 1)), int(rng.integers(grid - cells + 1)))
            count = 1 if whole else batch if prompted else 2 * batch
            targets = TARGETS // 2 if whole or passes == 3 else TARGETS
            views = [augment(rng, own, targets, cells * CELL) for own in pool.draw(rng, count)]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(PEAK_RATE, done)
            with torch.autocast(place, torch.bfloat16, enabled=place == "cuda"):
                if prompted:
                    loss, ious = decoder_passes(rng, trainee, views, corner, place, passes=passes, cascaded=cascaded)
                else:
                    loss, ious = embedding_loss(rng, trainee, views, place), []
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            optimizer.step()
            recent.append([loss.item(), *ious, *[np.nan] * (3 - len(ious))])
            steps, run.step, run.images = steps + 1, run.step + 1, run.images + count
            run.seconds, run.next_seed = before + time.monotonic() - started, pool.next_seed
            if run.step % 100 == 0:
                row = {"step": run.step, "minutes": run.seconds / 60, "images": run.images}
                drawn = zip(("loss", "iou_1", "iou_2", "iou_3"), np.transpose(recent), strict=True)
                row |= {name: float(np.nanmean(own)) for name, own in drawn if not np.isnan(own).all()}
                recent.clear()
                if time.monotonic() - last_check > 900:
                    metrics = validate(sam, held_out, place)
                    row |= metrics
                    last_check = time.monotonic()
                log.row(row)
            if time.monotonic() - last_save > 180:
                save_checkpoint(out / "checkpoint.pt", trainee, optimizer, run, seed)
                last_save = time.monotonic()
        waited = pool.waited
    save_checkpoint(out / "checkpoint.pt", trainee, optimizer, run, seed)
    metrics = validate(sam, held_out, place)
    log.row({"step": run.step, "minutes": run.seconds / 60, "images": run.images, **metrics})
    return _export(out, sam, run, seed, metrics | {"seconds_waited_for_scenes": waited})


def _export(out: Path, sam: Sam, run: Session, seed: int, more: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "data": "generated scenes and patchworks (cascade.synthesis), many on pictures of real surfaces; regions and "
        "cut-outs of such pictures; no inspection photographs",
        "seed": seed,
        "first_scene_seed": training_seed(seed) * 16,
        "last_scene_seed": run.next_seed * 16 - 1,
        "steps": run.step,
        "images": run.images,
        "minutes": round(run.seconds / 60, 2),
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in more.items()},
    }
    export(out / "mini_sam.safetensors", sam.state_dict(), facts)
    return facts
