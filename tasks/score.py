"""Stage ``score``: one float16 score per pixel for the CLIP map and each cascade step, and their histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.metrics import N_BINS, ScoreHistogram
from cascade.storage.artefacts import ArraySpec, Artefact, Item
from cascade.storage.datasets import ImageRecord, mask_in_frame, read_mask
from cascade.storage.errors import DataError
from cascade.storage.keys import StageKey
from cascade.tasks import localise, prompt, refine
from cascade.tasks.execution.threads import on_every_core
from cascade.tasks.prompt import frame_size
from cascade.tasks.stage import Run, Stage, StageItem, config_of, worded_id

VERSION = 3
STEPS = ("clip", *refine.STEPS)
HISTOGRAMS = ("negatives", "positives", "regions")
_KEPT = slice(N_BINS // 2, N_BINS // 2 + 16_385)
"""The bins of 0 to 2: no fusion makes other scores (``cascade.fusion.fuse``)."""

_Scored = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def key(run: Run) -> StageKey:
    """Fusion and evaluation frame, and the artefacts that it reads."""
    upstream = {
        name: stage.key(run).digest for name, stage in (("localise", localise), ("prompt", prompt), ("refine", refine))
    }
    return StageKey("score", VERSION, config_of(run.experiment.score), upstream)


def item_id(run: Run, record: ImageRecord) -> str:
    """The identity of an image, its words and what is held to be true of it: mask digest, or label."""
    truth = record.mask_id or {0: "good", 1: "unmasked", None: "unknown"}[record.label]
    return f"{worded_id(run, record)}/{truth}"


def items(run: Run) -> list[StageItem]:
    """One item for each distinct image, words and ground truth."""
    entries = (StageItem(item_id(run, record), record) for record in run.manifest)
    return list({entry.id: entry for entry in entries}.values())


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``scores_<H>x<W>`` [4, H, W] float16, ``truth_<H>x<W>`` packed bits, and by step the three histograms.

    ``negatives`` and ``positives`` are counts and ``regions`` are positives weighted by 1/(size of their region), each
    [4, 16385] over the float16 values from 0 to 2 in ascending order.
    """
    sizes = {frame_size(run.experiment.score.frame, item.record) for item in items}
    specs = histogram_specs("uint32")
    for height, width in sorted(sizes):
        specs[f"scores_{height}x{width}"] = ArraySpec((len(STEPS), height, width), "float16")
        specs[f"truth_{height}x{width}"] = ArraySpec(((height * width + 7) // 8,), "uint8", compress=True)
    return specs


def histogram_specs(counts: str) -> dict[str, ArraySpec]:
    """The arrays of ``HISTOGRAMS``, with the dtype ``counts`` for those of whole pixels."""
    shape = (len(STEPS), _KEPT.stop - _KEPT.start)
    return {name: ArraySpec(shape, "float64" if name == "regions" else counts, compress=True) for name in HISTOGRAMS}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Fuse, count and store each image.

    The record holds ``frame``, ``truth`` (whether pixels could be compared), ``regions`` (connected parts of the mask),
    ``no_prompt``, ``clip_score``, and by step ``image_score``, ``max_score``, ``top_score``, ``mask_area`` (share of
    the frame), ``mask_iou`` and ``chosen``: which of three masks went on, ``None`` where there was no choice.
    """
    maps, prompts, masks = (run.artefact(stage.key(run)) for stage in (localise, prompt, refine))

    def scored(item: StageItem) -> _Scored:
        worded = worded_id(run, item.record)
        localised, refined = maps.read(worded), masks.read(worded)
        threshold = prompts.read(worded).record["threshold"]
        scores, segments = _scores(run, item.record, localised.arrays["logits"], threshold, refined)
        chosen = {"no_prompt": refined.record["no_prompt"], "chosen": [None, *_choices(refined.record)]}
        stored, record = _compared(run, item.record, scores, segments, localised.record["image_score"])
        return stored, record | chosen

    for item, (found, record) in on_every_core(items, scored):
        artefact.write(item.id, found, record)


def truth_in_frame(run: Run, record: ImageRecord) -> NDArray[np.bool_] | None:
    """The ground truth [H, W] in the evaluation frame; all zeros for a good image, ``None`` if it is not known."""
    size = frame_size(run.experiment.score.frame, record)
    if record.mask_path is not None:
        mask = read_mask(run.manifest.root / record.mask_path)
        if record.label == 1 and not mask.any():
            raise DataError(f"{record.mask_path}: empty mask of a defective image; mend or remove the pair")
        return mask_in_frame(mask, size)
    return np.zeros(size, dtype=bool) if record.label == 0 else None


def histograms(item: Item) -> list[ScoreHistogram]:
    """The histogram of each step, from an item with ``HISTOGRAMS`` and the record ``regions``."""
    found = []
    for index in range(len(STEPS)):
        whole = ScoreHistogram.empty()
        for name in HISTOGRAMS:
            getattr(whole, name)[_KEPT] = item.arrays[name][index]
        found.append(replace(whole, n_regions=item.record["regions"]))
    return found


def stored_histograms(scores: NDArray[np.float16], truth: NDArray[np.bool_]) -> tuple[dict[str, NDArray[Any]], int]:
    """The arrays of ``HISTOGRAMS`` of one image's scores [4, H, W] in [0, 2], and the number of its regions."""
    from cascade.metrics import region_weights, score_histogram

    weights, regions = region_weights(truth)
    counted = [score_histogram(own, truth, weights) for own in scores]
    kept = {name: np.stack([getattr(each, name)[_KEPT] for each in counted]) for name in HISTOGRAMS}
    if kept["negatives"].sum() + kept["positives"].sum() != scores.size:
        raise ValueError("scores below 0 or above 2 have no bin")
    return {name: own if name == "regions" else own.astype(np.uint32) for name, own in kept.items()}, regions


def _scores(
    run: Run, record: ImageRecord, grid_logits: NDArray[Any], threshold: float, refined: Item
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Scores and segmented pixels [4, H, W] of the CLIP map and the three steps."""
    import torch

    from cascade.backbones.sam.build import input_side
    from cascade.backbones.sam.image import input_frame
    from cascade.frames import logits_in_frame
    from cascade.fusion import FusionOptions, fuse, smooth
    from cascade.localisers.april_gan import anomaly_map

    config, embedding = run.experiment.score, run.experiment.embed
    options = FusionOptions(**config.model_dump(exclude={"frame", "image_score", "top_share"}))
    size = frame_size(config.frame, record)
    clip_map = anomaly_map(torch.from_numpy(grid_logits)[None], size)[0].numpy()
    smoothed = smooth(clip_map, options)
    scores, segments = [clip_map], [clip_map >= threshold]
    frame = input_frame((record.height, record.width), embedding.image, input_side(embedding.backbone))
    for index in range(len(refine.STEPS)):
        if refined.record["no_prompt"]:
            scores.append(fuse(smoothed, None, np.zeros(0, np.float32), 0, options))
            segments.append(np.zeros(size, dtype=bool))
            continue
        predicted_iou = np.array(refined.record["predicted_iou"][index], dtype=np.float32)
        used = [refined.record["chosen"][index]] if config.masks == "chosen" else list(range(len(predicted_iou)))
        low_res = torch.from_numpy(refined.arrays["logits"][index, used]).float()
        logits = logits_in_frame(low_res[None], frame, size)[0].numpy()
        chosen = used.index(refined.record["chosen"][index])
        scores.append(fuse(smoothed, logits, predicted_iou[used], chosen, options))
        segments.append(logits[chosen] > 0)
    return np.stack(scores).astype(np.float16), np.stack(segments)


def _compared(
    run: Run,
    image: ImageRecord,
    scores: NDArray[np.float16],
    segments: NDArray[np.bool_],
    clip_score: float,
) -> _Scored:
    """What is stored of an image: its scores, and how they compare with the truth."""
    truth = truth_in_frame(run, image)
    height, width = scores.shape[1:]
    config = run.experiment.score
    image_scores = {
        "clip": [clip_score] * len(scores),
        "max": [float(own.max()) for own in scores],
        "top": [top_mean(own, config.top_share) for own in scores],
    }
    image_scores["clip+top"] = [(clip_score + top) / 2 for top in image_scores["top"]]
    record: dict[str, Any] = {
        "frame": [height, width],
        "truth": truth is not None,
        "regions": 0,
        "image_score": image_scores[config.image_score],
        "clip_score": clip_score,
        "max_score": image_scores["max"],
        "top_score": image_scores["top"],
        "mask_area": [float(own.mean()) for own in segments],
        "mask_iou": None,
    }
    stored: dict[str, NDArray[Any]] = {f"scores_{height}x{width}": scores}
    if truth is not None:
        counted, record["regions"] = stored_histograms(scores, truth)
        stored |= counted
        stored[f"truth_{height}x{width}"] = np.packbits(truth)
        if truth.any():
            record["mask_iou"] = [float((own & truth).sum() / (own | truth).sum()) for own in segments]
    return stored, record


def top_mean(scores: NDArray[np.float16], share: float) -> float:
    """Mean of the largest scores [H, W]: of ``share`` of all, one at least."""
    count = max(1, round(share * scores.size))
    largest = np.partition(scores.reshape(-1).astype(np.float32), -count)[-count:]
    return float(largest.mean(dtype=np.float64))


def _choices(refined: Mapping[str, Any]) -> list[int | None]:
    """By step, the mask that was chosen among three; ``None`` without a prompt or a choice."""
    if refined["no_prompt"]:
        return [None] * len(refine.STEPS)
    steps = zip(refined["predicted_iou"], refined["chosen"], strict=True)
    return [chosen if len(candidates) > 1 else None for candidates, chosen in steps]


SCORE = Stage("score", key, items, arrays, compute)
