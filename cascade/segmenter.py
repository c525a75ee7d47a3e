"""The picture for images in memory: no store, no manifest.

    >>> from cascade import Segmenter
    >>> segmenter = Segmenter.from_preset("mini", device="cpu")
    >>> prediction = segmenter.predict(photograph, object_name="carpet")
    >>> prediction.map.shape, prediction.mask.dtype.name
    ((518, 518), 'bool')
    >>> 0 <= prediction.score <= 1
    True

It calls the same functions as the stages of a run, and rounds where the store does, so its numbers are those of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cascade.localisers.squares import squared

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

    from cascade.backbones.sam.decoder import Decoder
    from cascade.backbones.sam.image import ImageMode
    from cascade.configs.schema import Experiment
    from cascade.frames import InputFrame, Size
    from cascade.fusion import FusionOptions
    from cascade.localisers.protocol import AnomalyMap, Localiser, Networks
    from cascade.prompts.image import ImagePrompts
    from cascade.prompts.ppg import PromptOptions
    from cascade.refiners.merging import ImageMasks
    from cascade.refiners.protocol import Refined, Refiner
    from cascade.scoring import ImageScoreRule

Photograph: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PredictedStep:
    """The map, or one step of the refiner.

    Attributes:
        map: [H, W] float16, one score per pixel in the evaluation frame.
        mask: [H, W] bool, what is segmented: the map from the threshold on, or the mask that the step chose.
        score: of the image.
    """

    map: NDArray[np.float16]
    mask: NDArray[np.bool_]
    score: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is wrong with one image.

    Attributes:
        score: of the image, larger is worse; that of the last step.
        defective: whether this score reaches ``score.operating_threshold``; ``None`` if the experiment has none.
        map: [H, W] float16, one score per pixel in the evaluation frame (``score.frame``, by default 518 x 518, which
            spans the image); that of the last step.
        mask: [H, W] bool, what the last step segments.
        threshold: from which on a pixel of the localiser's map counts as extremely anomalous, and is segmented.
        points: [n, 3] float64, x and y in pixels of the image, and 1 for a positive, 0 for a negative point.
        box: (x0, y0, x1, y1) in pixels of the image, the last that was given as a prompt; ``None`` if none was.
        steps: by name, the localiser's map first.
        size: (height, width) of the image.
    """

    score: float
    defective: bool | None
    map: NDArray[np.float16]
    mask: NDArray[np.bool_]
    threshold: float
    points: NDArray[np.float64]
    box: tuple[float, float, float, float] | None
    steps: Mapping[str, PredictedStep]
    size: Size

    def mask_of_image(self) -> NDArray[np.bool_]:
        """The mask in pixels of the image, [height, width], by nearest neighbour."""
        import cv2

        height, width = self.size
        resized = cv2.resize(self.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        return np.asarray(resized, np.bool_)


@dataclass(frozen=True)
class SamParts:
    """SAM, how it is shown an image, and how prompts come from it and go into it.

    Attributes:
        sam: the network.
        decode: its decoder.
        mode: how an image is given to it (A2).
        square_side: of the square image of mode ``square``.
        bf16: whether the encoder runs under autocast to bfloat16.
        fused: whether its attention is one call.
        batch: most sets of prompts in one pass.
    """

    sam: Sam
    decode: Decoder
    mode: ImageMode
    square_side: int
    bf16: bool
    fused: bool
    batch: int


@dataclass(frozen=True)
class Parts:
    """All that a segmenter is made of.

    Attributes:
        localiser: says where something is wrong.
        networks: of the localiser.
        kept: whether what the localiser sees is rounded as the store would.
        texts: the text features [D, 2] of words; ``None`` if the localiser takes no words.
        refiner: says how far it reaches.
        sam: ``None`` if the refiner has no steps.
        prompt_frame: (height, width) of the frame of map and prompts, for an image of a size.
        prompts: the options of PPG.
        score_frame: the evaluation frame for an image of a size.
        fusion: the options of the fusion.
        image_score: which of the image scores is meant.
        top_share: share of the pixels that are the top.
        operating_threshold: image score from which on an image is defective; ``None`` for no decision.
    """

    localiser: Localiser
    networks: Networks
    kept: bool
    texts: Callable[[str], torch.Tensor] | None
    refiner: Refiner
    sam: SamParts | None
    prompt_frame: Callable[[Size], Size]
    prompts: PromptOptions
    score_frame: Callable[[Size], Size]
    fusion: FusionOptions
    image_score: ImageScoreRule
    top_share: float
    operating_threshold: float | None


class Segmenter:
    """An experiment whose networks are loaded, for images in memory."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @classmethod
    def from_preset(cls, preset: str, *, device: str = "auto", settings: Sequence[str] = ()) -> Segmenter:
        """The segmenter of a preset or YAML file.

        Args:
            preset: such as ``mini``.
            device: ``auto``, ``cpu`` or ``cuda``.
            settings: changes as ``key=value``, as for ``cascade run --set``.

        Raises:
            ConfigError: there is no such preset, key or value.
            WeightsError: a checkpoint is missing or damaged.
        """
        from cascade.configs.loader import load_experiment

        return cls.from_experiment(load_experiment(preset, [f"runtime.device={device}", *settings]))

    @classmethod
    def from_experiment(cls, experiment: Experiment) -> Segmenter:
        """The segmenter of an experiment; its networks are loaded now. Raises as :meth:`from_preset`."""
        from cascade.tasks.execution.parts import parts_of

        return cls(parts_of(experiment))

    def predict(self, image: Photograph, object_name: str = "object") -> Prediction:
        """Segment one image.

        Args:
            image: a path, a PIL image, or [H, W, 3] uint8 in RGB.
            object_name: what it shows, in words.

        Raises:
            DataError: the image cannot be read.
            ValueError: it is no such array, or the localiser needs a batch.
        """
        return self.predict_batch([image], object_name)[0]

    def predict_batch(self, images: Sequence[Photograph], object_name: str = "object") -> list[Prediction]:
        """Segment images of one kind of object; a localiser that looks at batches compares them with each other.

        If they are too few for that, each is judged alone, or a ``ValueError`` says so where the localiser cannot.
        """
        photographs = [_pixels(image) for image in images]
        looks = [self._look(each) for each in photographs]
        texts = self._parts.texts(object_name)[None] if self._parts.texts is not None else None
        judges = {
            number: self._parts.localiser.judge({name: values[0] for name, values in looks[number].items()})
            for number in self._batch(photographs)
        }
        found, scores = [], []
        for number, look in enumerate(looks):
            others = [judge for each, judge in judges.items() if each != number]
            arrays, own = self._parts.localiser.compare(self._parts.networks, look, texts, others)
            found.append({name: values[0] for name, values in arrays.items()})
            scores.append(float(own[0]))
        known = self._rescored(list(judges), found, scores) if self._parts.localiser.rescores else scores
        return [self._finish(*each) for each in zip(photographs, found, known, strict=True)]

    def _rescored(
        self, batch: Sequence[int], found: Sequence[Mapping[str, NDArray[Any]]], scores: Sequence[float]
    ) -> list[float]:
        """The scores once all are known: of the batch, and of any other image beside those of the batch."""
        if not batch:
            return list(scores)

        def of(numbers: Sequence[int]) -> list[float]:
            own = np.array([scores[number] for number in numbers], np.float32)
            arrays = {name: np.stack([found[number][name] for number in numbers]) for name in found[0]}
            return [float(each) for each in self._parts.localiser.rescore(own, arrays)]

        known = dict(zip(batch, of(batch), strict=True))
        return [known[number] if number in known else of([*batch, number])[-1] for number in range(len(scores))]

    def _batch(self, photographs: Sequence[NDArray[np.uint8]]) -> list[int]:
        """The images that judge the others, if that is the localiser's way; drawn by their digests, each once."""
        localiser = self._parts.localiser
        if localiser.SCOPE != "batch":
            return []
        by_digest = {sha256(each.tobytes()).hexdigest(): number for number, each in enumerate(photographs)}
        if len(by_digest) < localiser.MIN_BATCH:
            if localiser.ALONE:
                return []
            raise ValueError(
                f"{len(by_digest)} different images cannot judge each other; give predict_batch {localiser.MIN_BATCH} "
                f"or more, or use a preset that looks at one image, such as mini"
            )
        return [by_digest[digest] for digest in sorted(by_digest)[: localiser.references]]

    def _look(self, photograph: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """What the localiser sees, [1, ...] by name, rounded as the store would if it is kept there."""
        import torch

        localiser, networks = self._parts.localiser, self._parts.networks
        inputs = localiser.inputs([squared(photograph, side) for side in localiser.sides])
        look = localiser.look(networks, [each[None].to(networks.device) for each in inputs])
        if not self._parts.kept:
            return look
        dtypes = {name: getattr(torch, kept.dtype) for name, kept in localiser.look_arrays(networks).items()}
        return {name: values.to(dtypes[name]).float() for name, values in look.items()}

    def _finish(
        self, photograph: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]], localiser_score: float
    ) -> Prediction:
        from cascade.frames import InputFrame
        from cascade.prompts.ppg import extreme_threshold
        from cascade.scoring import image_scores, pixel_scores

        parts, size = self._parts, (photograph.shape[0], photograph.shape[1])

        def map_of(frame: Size) -> AnomalyMap:
            return parts.localiser.map_of(arrays, frame)

        values = map_of(parts.score_frame(size)).values
        prompts, masks, frame = None, None, InputFrame(1, (1, 1))
        if parts.sam is None:
            threshold = extreme_threshold(values, parts.prompts)
        else:
            frame = _input_frame(parts.sam, size)
            prompts, masks = self._refine(parts.sam, photograph, map_of(parts.prompt_frame(size)), frame)
            threshold = prompts.threshold
        steps = (parts.localiser.STEP, *parts.refiner.STEPS)
        scores, segments = pixel_scores(values, threshold, masks, len(steps) - 1, frame, parts.fusion)
        of_image = image_scores(scores, localiser_score, parts.top_share)[parts.image_score]
        predicted = {step: PredictedStep(*each) for step, *each in zip(steps, scores, segments, of_image, strict=True)}
        last, limit = predicted[steps[-1]], parts.operating_threshold
        return Prediction(
            score=last.score,
            defective=None if limit is None else bool(last.score >= limit),
            map=last.map,
            mask=last.mask,
            threshold=threshold,
            points=_points(prompts),
            box=_box(prompts, masks, size),
            steps=predicted,
            size=size,
        )

    def _refine(
        self, sam: SamParts, photograph: NDArray[np.uint8], anomaly: AnomalyMap, frame: InputFrame
    ) -> tuple[ImagePrompts, ImageMasks | None]:
        """The prompts of an image, and what the refiner makes of them."""
        import torch

        from cascade.backbones.sam.image import embed, normalise, to_input
        from cascade.prompts.image import image_prompts
        from cascade.refiners.merging import merge_sets

        side = sam.sam.image_encoder.img_size
        pixels = torch.from_numpy(to_input(photograph, sam.mode, side, sam.square_side))
        embedding = embed(sam.sam, normalise(pixels, sam.sam)[None], bf16=sam.bf16, fused=sam.fused).half()
        size = (photograph.shape[0], photograph.shape[1])
        prompts = image_prompts(anomaly, embedding[0].cpu().float(), size, frame, self._parts.prompts)
        if not prompts.sets:
            return prompts, None
        refined = self._refined(sam, prompts, embedding.float(), anomaly, frame, size)
        return prompts, merge_sets(refined, self._parts.refiner.MASKS)

    def _refined(
        self,
        sam: SamParts,
        prompts: ImagePrompts,
        embedding: torch.Tensor,
        anomaly: AnomalyMap,
        frame: InputFrame,
        size: Size,
    ) -> list[Refined]:
        """Every set of prompts refined, those of equally many points together, in order."""
        import torch

        from cascade.frames import grid_coverage, scale_points
        from cascade.refiners.protocol import Row

        coverage = None
        if self._parts.refiner.needs_map:
            coverage = grid_coverage(anomaly.values, frame, 4 * embedding.shape[-1])
        done: dict[int, Refined] = {}
        for count in sorted({len(each.labels) for each in prompts.sets}):
            numbers = [number for number, each in enumerate(prompts.sets) if len(each.labels) == count]
            for start in range(0, len(numbers), sam.batch):
                chosen = numbers[start : start + sam.batch]
                sets = [prompts.sets[number] for number in chosen]
                points = np.stack([scale_points(np.array(each.points), size, frame.size) for each in sets])
                prompt_frame = (prompts.frame[0], prompts.frame[1])
                rows = [Row(frame, prompt_frame, np.array(each.box), coverage) for each in sets]
                refined = self._parts.refiner.refine(
                    sam.decode,
                    embedding.expand(len(sets), -1, -1, -1),
                    torch.from_numpy(points).float().to(embedding.device),
                    torch.tensor([each.labels for each in sets], device=embedding.device),
                    rows,
                )
                done |= dict(zip(chosen, refined, strict=True))
        return [done[number] for number in sorted(done)]


def _input_frame(sam: SamParts, size: Size) -> InputFrame:
    from cascade.backbones.sam.image import input_frame

    return input_frame(size, sam.mode, sam.sam.image_encoder.img_size)


def _pixels(image: Photograph) -> NDArray[np.uint8]:
    """An image [H, W, 3] uint8 in RGB, turned as its EXIF says."""
    if isinstance(image, str | Path):
        from cascade.storage.datasets import read_image

        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image has to be [H, W, 3] uint8 in RGB, not {list(image.shape)} {image.dtype}")
        return image
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _points(prompts: ImagePrompts | None) -> NDArray[np.float64]:
    rows = [
        (*point, label)
        for each in (prompts.sets if prompts else ())
        for point, label in zip(each.points, each.labels, strict=True)
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _box(
    prompts: ImagePrompts | None, masks: ImageMasks | None, size: Size
) -> tuple[float, float, float, float] | None:
    from cascade.frames import scale_points

    given = [box for boxes in masks.boxes for box in boxes] if masks is not None else []
    if not given or prompts is None:
        return None
    frame = (prompts.frame[0], prompts.frame[1])
    (x0, y0), (x1, y1) = scale_points(np.array(given[-1]).reshape(2, 2), frame, size).tolist()
    return x0, y0, x1, y1
