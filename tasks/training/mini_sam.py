"""Training of the small SAM: clicks, boxes, fed-back masks and the cascade's own points on generated scenes."""

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

from cascade.backbones.sam.build import PATCH, build_sam
from cascade.storage.errors import ConfigError
from cascade.storage.weights import LocatedWeights
from cascade.tasks.execution.checkpoints import load_state, read_state
from cascade.tasks.training.cascade_prompts import MapDrawer, draw_options, ppg_points
from cascade.tasks.training.sam_examples import Example, View, augment, make_example, make_mixed
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

PEAK_RATE, RESTART_RATE = 6e-4, 4e-4
"""Learning rates from random weights and from trained ones, which a higher one spoils."""

TARGETS = 4
"""Masks asked for per image."""

WINDOWED = 0.6
"""Share of the time spent on windows of half the side alone, of which four cost as much as one whole input."""

WHOLE = 0.5
"""Share of the later steps with clicks that are on whole inputs."""

SINGLE, SINGLE_LATER = 0.85, 0.2
"""Share of the steps with clicks that stop after the first pass, at first and later. Three passes with their gradient
cost five times as much as one, and what the encoder learns comes from the number of images."""

PASS_WEIGHTS = (0.4, 0.4, 1.6)
"""Weights of the losses when there are three passes: the last mask is the one that counts, and its gradient goes back
through all."""

CASCADED = 0.12
"""Share of the later steps whose points come from PPG, on whole inputs and with all damage as the target."""

CLICKS = 0.2
"""Share of the steps with three passes in which a later one gets a click on an error; the cascade gives none."""

BOXES = 0.75
"""Share of the steps with clicks and three passes in which the last one gets a box. It is drawn around the pass before,
as the cascade draws it: a box around the target, here, teaches a trust that the cascade's box does not deserve."""

COLUMNS = ("step", "minutes", "images", "loss", "iou_1", "iou_2", "iou_3", "val_iou_1", "val_iou_2", "val_iou_3")


def normalised_inputs(sam: Sam, images: NDArray[np.uint8], device: str) -> Tensor:
    """SAM's normalised float ``[B, 3, S, S]`` of uint8 RGB ``[B, S, S, 3]``."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    normalised: Tensor = (pixels - sam.pixel_mean) / sam.pixel_std
    return normalised


def decoder_passes(
    rng: np.random.Generator,
    trainee: Trainee,
    views: Sequence[View],
    corner: tuple[int, int],
    drawer: MapDrawer | None,
    device: str,
    *,
    single: bool = False,
) -> tuple[Tensor, list[float]]:
    """Loss over three decoder passes, or a ``single`` one, and the mean IoU of each; prompt kinds are drawn per batch.

    With a ``drawer`` the points are PPG's, and the passes follow each other as in the cascade.
    """
    masks = np.concatenate([view.targets for view in views])
    sam, side = trainee.sam, masks.shape[1]
    images = np.stack([view.image for view in views])
    embeddings = trainee.embed(normalised_inputs(sam, images, device), corner)
    low = 4 * embeddings.shape[-1]
    segments = coarse_target(torch.from_numpy(masks).to(device), low)
    target = segments
    rows = embeddings.repeat_interleave(len(masks) // len(embeddings), dim=0)
    box: Tensor | None = None
    if drawer is not None:
        damage = np.repeat(np.stack([view.damage for view in views]), TARGETS, axis=0)
        target = coarse_target(torch.from_numpy(damage).to(device), low)
        maps = drawer(rng, images, [view.category for view in views], TARGETS)
        points, labels = ppg_points(rng, maps, rows.detach(), draw_options(rng))
    elif rng.random() < 0.15:
        box = jittered(rng, boxes_of(masks, side), side).to(device)
        points, labels = torch.zeros(len(masks), 0, 2), torch.zeros(len(masks), 0)
    elif rng.random() < 0.5:
        points, labels = first_points(rng, masks, 1, 0)
    else:
        negatives = 0 if rng.random() < 0.25 else int(rng.integers(1, 6))
        points, labels = first_points(rng, masks, int(rng.integers(1, 6)), negatives)
    losses, ious = [], []
    fed: Tensor | None = None
    clicks = drawer is None and rng.random() < CLICKS
    weights = (1.0,) if single else PASS_WEIGHTS
    for level, weight in enumerate(weights):
        if level and clicks and fed is not None:
            more, kind = correction(rng, fed, target, side)
            points, labels = torch.cat([points, more], dim=1), torch.cat([labels, kind], dim=1)
        if level == 2 and fed is not None and box is None and (drawer is not None or rng.random() < BOXES):
            box = boxes_of((fed[:, 0] > 0).cpu().numpy(), side).to(device)
        logits, predicted = decode(sam, rows, (points.to(device), labels.to(device)), box, fed, corner)
        loss, iou = total_loss(logits, predicted, target)
        losses.append(weight * loss)
        ious.append(float(iou.mean()))
        fed = best_mask(logits, predicted)
    grouped = segments.reshape(len(views), -1, low, low)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    dense = trainee.outline_loss(embeddings, grouped) + affinity_loss(embeddings, grouped, generator)
    return torch.stack(losses).sum() + dense, ious


@torch.no_grad()
def validate(sam: Sam, scenes: int, device: str) -> dict[str, float]:
    """Mean IoU on held-out defects after one central click, then with fed-back logits, then with a box too."""
    sam.eval()
    side = sam.image_encoder.img_size
    totals = np.zeros(3)
    used = 0
    for index in range(scenes):
        example = make_example(VALIDATION_SEEDS[index], side)
        if not example.defects:
            continue
        mask = example.mask(example.count - example.defects)
        depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        points = torch.tensor([[[float(x), float(y)]]], device=device), torch.ones(1, 1, device=device)
        fed: Tensor | None = None
        box: Tensor | None = None
        with torch.autocast(device, torch.bfloat16):
            embedding = sam.image_encoder(normalised_inputs(sam, example.image[None], device))
        target = coarse_target(torch.from_numpy(mask[None]).to(device), 4 * embedding.shape[-1])
        for level in range(3):
            if level == 2 and fed is not None:
                box = boxes_of((fed[:, 0] > 0).cpu().numpy(), side).to(device)
            logits, predicted = decode(sam, embedding.float(), points, box, fed)
            _, iou = total_loss(logits, predicted, target)
            totals[level] += float(iou.mean())
            fed = best_mask(logits, predicted)
        used += 1
    sam.train()
    return {f"val_iou_{level + 1}": float(totals[level]) / max(1, used) for level in range(3)}


def pretrain_sam(
    out: Path,
    *,
    minutes: float,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batch: int = 2,
    max_steps: int | None = None,
    network: Sam | None = None,
    start: LocatedWeights | None = None,
    validation_scenes: int = 64,
) -> dict[str, Any]:
    """Trains the small SAM on generated scenes and exports it.

    A run that was killed continues from ``out/checkpoint.pt`` when it is called again with the same folder.

    Args:
        out: folder for ``checkpoint.pt``, ``log.csv`` and ``mini_sam.safetensors`` (official names, fp16).
        minutes: training time over all sessions; the learning rate follows it.
        seed: of weights, scenes and prompts.
        threads: torch threads; as found when None.
        progress: called after every logged step.
        device: the GPU if there is one, or a choice; bfloat16 autocast on both.
        batch: whole images per step, or a quarter of the windows; each has ``TARGETS`` prompt sets.
        max_steps: stop this session after so many steps even if time is left.
        network: a Sam with random weights; ``build_sam("mini")`` when None.
        start: weights of such a network to start from instead; a run that continues may leave them out.
        validation_scenes: held-out scenes per validation.

    Returns:
        The facts written beside the weights: data, seeds, steps, minutes, metrics.

    Raises:
        ConfigError: the folder holds a run with another seed or another start, or there is no such device.
        WeightsError: ``start`` holds another network.
    """
    place = training_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    sam = build_sam("mini") if network is None else network
    side = sam.image_encoder.img_size
    grid = side // PATCH
    trainee = Trainee(sam).to(place).train()
    if start is not None:
        load_state(sam, read_state(start.path, start.sha256), start.path, "the mini SAM")
    optimizer = optimiser(trainee, PEAK_RATE)
    run = load_checkpoint(out / "checkpoint.pt", trainee, optimizer, seed) or Session(
        next_seed=training_seed(seed), start_sha256="" if start is None else start.sha256
    )
    if start is not None and run.start_sha256 != start.sha256:
        raise ConfigError(f"{out / 'checkpoint.pt'} did not start from {start.path}; use another folder")
    peak = RESTART_RATE if run.start_sha256 else PEAK_RATE
    log = Log(out / "log.csv", COLUMNS, progress)
    rng = np.random.default_rng([seed, run.step])
    started_from = {"start_sha256": run.start_sha256} if run.start_sha256 else {}
    steps, metrics, last_save, last_check = 0, {}, time.monotonic(), time.monotonic() - 500
    recent: list[list[float]] = []
    drawer: MapDrawer | None = None
    pool = ScenePool(
        partial(make_mixed, size=side),
        run.next_seed,
        reuse=10,
        capacity=3000,
        warm=24 * batch,
        workers=scene_workers(place),
    )
    with pool:
        started, before = time.monotonic(), run.seconds
        while run.seconds < minutes * 60 and (max_steps is None or steps < max_steps):
            late = run.seconds >= WINDOWED * minutes * 60
            cascaded = late and rng.random() < CASCADED
            cells = grid if cascaded or (late and rng.random() < WHOLE) else grid // 2
            corner = (int(rng.integers(grid - cells + 1)), int(rng.integers(grid - cells + 1)))
            count = batch * (grid // cells) ** 2
            views = [augment(rng, own, TARGETS, cells * PATCH) for own in _drawn(pool, rng, count, scenes=cascaded)]
            drawer = (drawer or MapDrawer(place)) if cascaded else drawer
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(peak, run.seconds / (minutes * 60))
            single = not cascaded and rng.random() < (SINGLE_LATER if late else SINGLE)
            with torch.autocast(place, torch.bfloat16):
                loss, ious = decoder_passes(
                    rng, trainee, views, corner, drawer if cascaded else None, place, single=single
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            optimizer.step()
            recent.append([loss.item(), *ious, *[np.nan] * (3 - len(ious))])
            steps, run.step, run.images = steps + 1, run.step + 1, run.images + count
            run.seconds, run.next_seed = before + time.monotonic() - started, pool.next_seed
            if run.step % 40 == 0:
                row = {"step": run.step, "minutes": run.seconds / 60, "images": run.images}
                drawn = zip(("loss", "iou_1", "iou_2", "iou_3"), np.transpose(recent), strict=True)
                row |= {name: float(np.nanmean(own)) for name, own in drawn if not np.isnan(own).all()}
                recent.clear()
                if time.monotonic() - last_check > 600:
                    metrics = validate(sam, validation_scenes, place)
                    row |= metrics
                    last_check = time.monotonic()
                log.row(row)
            if time.monotonic() - last_save > 180:
                save_checkpoint(out / "checkpoint.pt", trainee, optimizer, run, seed)
                _export(out, sam, run, seed, started_from | metrics)
                last_save = time.monotonic()
        waited = pool.waited
    save_checkpoint(out / "checkpoint.pt", trainee, optimizer, run, seed)
    metrics = validate(sam, validation_scenes, place)
    log.row({"step": run.step, "minutes": run.seconds / 60, "images": run.images, **metrics})
    return _export(out, sam, run, seed, started_from | metrics | {"seconds_waited_for_scenes": waited})


def _drawn(pool: ScenePool[Example], rng: np.random.Generator, count: int, *, scenes: bool) -> list[Example]:
    """``count`` examples, only ``scenes`` if CLIP has to look at them."""
    drawn: list[Example] = []
    while len(drawn) < count:
        drawn += [example for example in pool.draw(rng, count) if example.category or not scenes]
    return drawn[:count]


def _export(out: Path, sam: Sam, run: Session, seed: int, more: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "data": "generated scenes (cascade.synthesis), no photographs",
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
