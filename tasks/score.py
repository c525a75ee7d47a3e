"""Stage ``score``: one float16 score per pixel for the CLIP map and each cascade step, and their histograms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade.configs.schema import ScoreConfig
from cascade.metrics import N_BINS, ScoreHistogram
from cascade.storage.artefacts import ArraySpec, Artefact, Item
from cascade.storage.datasets import ImageRecord, mask_in_frame, read_mask
from cascade.storage.errors import DataError
from cascade.tasks.execution.threads import on_every_core
from cascade.tasks.localise import LOCALISE, Maps
from cascade.tasks.prompt import PROMPT, frame_size, prompt_options
from cascade.tasks.refine import REFINE, input_frame_of, masks_of
from cascade.tasks.stage import Run, Stage, StageItem, config_of, localised_id, no_roles, refines

if TYPE_CHECKING:
    from cascade.fusion import FusionOptions
    from cascade.refiners.merging import ImageMasks

VERSION = 3
HISTOGRAMS = ("negatives", "positives", "regions")
_KEPT = slice(N_BINS // 2, N_BINS // 2 + 16_385)
"""The bins of 0 to 2: no fusion makes other scores (``cascade.fusion.fuse``)."""

_Scored = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def config(run: Run) -> dict[str, Any]:
    """Fusion and evaluation frame; without a refiner also where the map is cut, for which there is no prompt then."""
    options = config_of(run.experiment.score)
    return options if refines(run) else options | {"threshold": run.experiment.prompt.threshold.in_force()}


def item_id(run: Run, record: ImageRecord) -> str:
    """The identity of an image, its words and what is held to be true of it: mask digest, or label."""
    truth = record.mask_id or {0: "good", 1: "unmasked", None: "unknown"}[record.label]
    return f"{localised_id(run, record)}/{truth}"


def items(run: Run) -> list[StageItem]:
    """One item for each distinct image, words and ground truth."""
    entries = (StageItem(item_id(run, record), record) for record in run.manifest)
    return list({entry.id: entry for entry in entries}.values())


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``scores_<H>x<W>`` [steps, H, W] float16, ``truth_<H>x<W>`` packed bits, and by step the three histograms.

    ``negatives`` and ``positives`` are counts and ``regions`` are positives weighted by 1/(size of their region), each
    [steps, 16385] over the float16 values from 0 to 2 in ascending order. The map is the first step.
    """
    sizes = {frame_size(run.experiment.score.frame, item.record) for item in items}
    steps = len(run.steps)
    specs = histogram_specs("uint32", steps)
    for height, width in sorted(sizes):
        specs[f"scores_{height}x{width}"] = ArraySpec((steps, height, width), "float16")
        specs[f"truth_{height}x{width}"] = ArraySpec(((height * width + 7) // 8,), "uint8", compress=True)
    return specs


def histogram_specs(counts: str, steps: int) -> dict[str, ArraySpec]:
    """The arrays of ``HISTOGRAMS``, with the dtype ``counts`` for those of whole pixels."""
    shape = (steps, _KEPT.stop - _KEPT.start)
    return {name: ArraySpec(shape, "float64" if name == "regions" else counts, compress=True) for name in HISTOGRAMS}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Fuse, count and store each image.

    The record holds ``frame``, ``truth`` (whether pixels could be compared), ``regions`` (connected parts of the
    mask), ``no_prompt``, ``clip_score`` (the localiser's own), and by step ``image_score``, ``max_score``,
    ``top_score``, ``mask_area`` (share of the frame), ``mask_iou`` and ``chosen``: which of several masks went on,
    ``None`` where there was no choice. Without a refiner it holds ``threshold``, where the map was cut.
    """
    maps, pixels = Maps(run), pixels_of(run)

    def scored(item: StageItem) -> _Scored:
        found, steps = pixels(item), len(run.refiner.STEPS)
        score = maps.image_score(item.record)
        stored, record = _compared(run, item.record, found.scores, found.segments, score)
        no_prompt = refines(run) and found.masks is None
        record |= {"no_prompt": no_prompt, "chosen": [None, *_choices(found.masks, steps)]}
        return stored, record if refines(run) else record | {"threshold": found.threshold}

    for item, (arrays, record) in on_every_core(items, scored):
        artefact.write(item.id, arrays, record)


@dataclass(frozen=True, eq=False)
class Pixels:
    """What a run says of an image's pixels.

    Attributes:
        scores: [1 + steps, H, W] float16 in the evaluation frame, the map first.
        segments: [1 + steps, H, W] bool, what is segmented.
        threshold: from which on a pixel of the map counts as extremely anomalous.
        masks: of the refiner; ``None`` without one, or without a prompt.
    """

    scores: NDArray[np.float16]
    segments: NDArray[np.bool_]
    threshold: float
    masks: ImageMasks | None


def pixels_of(run: Run) -> Callable[[StageItem], Pixels]:
    """What fuses an item's map with its masks; the stages before have to be finished."""
    from cascade.prompts.ppg import extreme_threshold
    from cascade.scoring import pixel_scores

    maps, config = Maps(run), run.experiment.score
    prompts, refined = PROMPT.artefact(run), REFINE.artefact(run) if refines(run) else None
    fusion, cut = fusion_options(config), prompt_options(run.experiment.prompt)

    def fused(item: StageItem) -> Pixels:
        name, steps = localised_id(run, item.record), len(run.refiner.STEPS)
        values = maps.of(name, frame_size(config.frame, item.record)).values
        if refined is None:
            threshold, masks = extreme_threshold(values, cut), None
        else:
            threshold, masks = prompts.read(name).record["threshold"], masks_of(refined.read(name))
        scores, segments = pixel_scores(values, threshold, masks, steps, input_frame_of(run, item), fusion)
        return Pixels(scores, segments, threshold, masks)

    return fused


def fusion_options(config: ScoreConfig) -> FusionOptions:
    """The options of the fusion from their configuration."""
    from cascade.fusion import FusionOptions

    return FusionOptions(**config.model_dump(exclude={"frame", "image_score", "top_share", "operating_threshold"}))


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
    for index in range(len(item.arrays[HISTOGRAMS[0]])):
        whole = ScoreHistogram.empty()
        for name in HISTOGRAMS:
            getattr(whole, name)[_KEPT] = item.arrays[name][index]
        found.append(replace(whole, n_regions=item.record["regions"]))
    return found


def stored_histograms(scores: NDArray[np.float16], truth: NDArray[np.bool_]) -> tuple[dict[str, NDArray[Any]], int]:
    """The arrays of ``HISTOGRAMS`` of one image's scores [steps, H, W] in [0, 2], and the number of its regions."""
    from cascade.metrics import region_weights, score_histogram

    weights, regions = region_weights(truth)
    counted = [score_histogram(own, truth, weights) for own in scores]
    kept = {name: np.stack([getattr(each, name)[_KEPT] for each in counted]) for name in HISTOGRAMS}
    if kept["negatives"].sum() + kept["positives"].sum() != scores.size:
        raise ValueError("scores below 0 or above 2 have no bin")
    return {name: own if name == "regions" else own.astype(np.uint32) for name, own in kept.items()}, regions


def _compared(
    run: Run,
    image: ImageRecord,
    scores: NDArray[np.float16],
    segments: NDArray[np.bool_],
    localiser_score: float,
) -> _Scored:
    """What is stored of an image: its scores, and how they compare with the truth."""
    from cascade.scoring import image_scores

    truth = truth_in_frame(run, image)
    height, width = scores.shape[1:]
    config = run.experiment.score
    by_rule = image_scores(scores, localiser_score, config.top_share)
    record: dict[str, Any] = {
        "frame": [height, width],
        "truth": truth is not None,
        "regions": 0,
        "image_score": by_rule[config.image_score],
        "clip_score": localiser_score,
        "max_score": by_rule["max"],
        "top_score": by_rule["top"],
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


def _choices(masks: ImageMasks | None, steps: int) -> list[int | None]:
    """By step, the mask that was chosen among several; ``None`` without a prompt or a choice."""
    if masks is None:
        return [None] * steps
    every = zip(masks.predicted_iou, masks.chosen, strict=True)
    return [chosen if len(candidates) > 1 else None for candidates, chosen in every]


SCORE = Stage(
    name="score",
    version=lambda run: VERSION,
    config=config,
    upstream=(LOCALISE, PROMPT, REFINE),
    roles=no_roles,
    items=items,
    arrays=arrays,
    compute=compute,
)
