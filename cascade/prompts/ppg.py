"""PPG, co-feature point prompt generation (equations 1 to 8).

    R_a = S_a ⊗ Map_a                  (1)   S_a: pixels of the CLIP map over a threshold
    P_h = Top_k(R_a)                   (2)   positive points
    N_a = dilate(S_a) − S_a            (3)   the ring
    F   = Enc_I(img)                   (4)   SAM's image embedding
    F_a = F ⊗ S_a,  F_n = F ⊗ N_a      (5)
    Map_s = Similarity(F_a, F_n)       (6)   cosine
    P_l = Lowest_k(Map_s)              (7)   negative points
    P   = concat(P_h, P_l)             (8)

Source: Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts", section 3.1.
What the paper leaves open is an option (A3 to A9, A14), and so is what another refiner than CPS asks for. Every ranking
breaks ties the same way on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cascade.frames import Box, InputFrame, grid_coverage, mask_box, sample_grid

_SHAPES = {"ellipse": cv2.MORPH_ELLIPSE, "rectangle": cv2.MORPH_RECT, "cross": cv2.MORPH_CROSS}
_PAIRS_AT_ONCE = 4_000_000
_LITERAL_FRAME = 1024.0
_ROUNDING = 1e-9
"""A cell covered by less is not covered: edges of pixels and cells that coincide differ by rounding."""


@dataclass(frozen=True)
class PromptOptions:
    """The open choices, each explained beside its field in the configuration schema, and what a refiner may fix.

    Attributes:
        negatives_from: where negative points are looked for: in the ring N_a, or anywhere outside S_a.
        box_of: whose box goes with the points: that of the dilated S_a, or of S_a itself.
    """

    threshold_rule: Literal["max", "absolute", "relative", "quantile"]
    threshold_absolute: float
    threshold_relative: float
    threshold_quantile: float
    min_area: int
    positives: int
    negatives: int
    spacing_rule: Literal["rank", "radius", "distance"]
    spacing_rank: int
    spacing_radius: float
    spacing_distance: float
    dilation_shape: Literal["ellipse", "rectangle", "cross"]
    dilation_size: int
    similarity: Literal["prototype", "max", "mean"]
    prototype_weight: Literal["area", "area_score"]
    prototype_features: Literal["raw", "unit"]
    features: Literal["cell", "pixel"]
    ring_limit: float | None
    grouping: Literal["image", "component"]
    negatives_from: Literal["ring", "image"] = "ring"
    box_of: Literal["dilated", "region"] = "dilated"


@dataclass(frozen=True)
class PointPrompts:
    """One set of point prompts.

    Attributes:
        points: [n, 2] float64 (x, y) in pixels of the prompt frame, positives first.
        labels: [n] int64, 1 positive, 0 negative.
        values: [n] float64, the map's score at a positive point, the cosine similarity at a negative one.
        box: [4] float64, box of S_a in the prompt frame, dilated or not.
        area: pixels of S_a.
        empty_ring: no pixel was left for negative points.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    values: NDArray[np.float64]
    box: Box
    area: int
    empty_ring: bool


@dataclass(frozen=True)
class Prompts:
    """All prompts of one image.

    Attributes:
        threshold: the value that S_a had to reach.
        sets: one set, or one for each component; empty if S_a is smaller than ``min_area`` (``no_prompt``), which it
            never is with the relative threshold.
    """

    threshold: float
    sets: tuple[PointPrompts, ...]


def generate_prompts(
    anomaly_map: NDArray[np.float32],
    margin: NDArray[np.float32],
    embedding: torch.Tensor,
    frame: InputFrame,
    options: PromptOptions,
) -> Prompts:
    """Point prompts of one image.

    Args:
        anomaly_map: [H, W] in [0, 1], Map_a in the prompt frame.
        margin: [H, W], any finer ranking of the same pixels; it breaks ties where the map is saturated (A6).
        embedding: [C, grid, grid] float32, SAM's features of the same image.
        frame: where the image lies in SAM's input.
        options: the open choices.
    """
    threshold = extreme_threshold(anomaly_map, options)
    extreme = anomaly_map >= threshold
    if int(extreme.sum()) < options.min_area:
        return Prompts(threshold, ())
    sets = tuple(
        _prompts_of_region(region, anomaly_map, margin, embedding.float(), frame, threshold, options)
        for region in _regions(extreme, options)
    )
    return Prompts(threshold, sets)


def dilation_kernel(shape: str, size: int) -> NDArray[np.uint8]:
    """The structuring element [size, size] of equation 3, as OpenCV draws it."""
    kernel: NDArray[np.uint8] = cv2.getStructuringElement(_SHAPES[shape], (size, size)).astype(np.uint8)
    return kernel


def extreme_threshold(anomaly_map: NDArray[np.float32], options: PromptOptions) -> float:
    """The value that a pixel of a map [H, W] has to reach to be extremely anomalous, in S_a (A3)."""
    relative = options.threshold_relative * float(anomaly_map.max())
    if options.threshold_rule == "absolute":
        return options.threshold_absolute
    if options.threshold_rule == "relative":
        # a peak narrower than min_area is no reason to leave the image without prompt
        count = min(options.min_area, anomaly_map.size)
        return min(relative, float(np.partition(anomaly_map, -count, axis=None)[-count]))
    if options.threshold_rule == "quantile":
        return float(np.quantile(anomaly_map, options.threshold_quantile))
    return max(options.threshold_absolute, relative)


def _regions(extreme: NDArray[np.bool_], options: PromptOptions) -> Iterator[NDArray[np.bool_]]:
    """S_a itself, or its 8-connected components of at least ``min_area`` pixels, the whole if none is that large."""
    if options.grouping == "component":
        count, parts, statistics, _ = cv2.connectedComponentsWithStats(extreme.astype(np.uint8), connectivity=8)
        kept = [part for part in range(1, count) if statistics[part, cv2.CC_STAT_AREA] >= options.min_area]
        if kept:
            yield from (parts == part for part in kept)
            return
    yield extreme


def _prompts_of_region(
    region: NDArray[np.bool_],
    anomaly_map: NDArray[np.float32],
    margin: NDArray[np.float32],
    embedding: torch.Tensor,
    frame: InputFrame,
    threshold: float,
    options: PromptOptions,
) -> PointPrompts:
    kernel = dilation_kernel(options.dilation_shape, options.dilation_size)
    dilated = cv2.dilate(region.astype(np.uint8), kernel) > 0
    around = dilated if options.negatives_from == "ring" else np.ones_like(dilated)
    ring = around & ~(anomaly_map >= threshold)
    if options.ring_limit is not None:
        ring &= anomaly_map < options.ring_limit * threshold

    rows, columns = np.nonzero(region)
    order = np.lexsort((-margin[region], -anomaly_map[region]))
    positive = order[_spaced(np.stack([columns[order], rows[order]], 1), options.positives, region.shape, options)]
    found = PointPrompts(
        points=np.stack([columns[positive], rows[positive]], axis=1).astype(np.float64),
        labels=np.ones(len(positive), dtype=np.int64),
        values=anomaly_map[rows[positive], columns[positive]].astype(np.float64),
        box=mask_box(dilated if options.box_of == "dilated" else region),
        area=int(region.sum()),
        empty_ring=not ring.any(),
    )
    if found.empty_ring or options.negatives == 0:
        return found

    rows, columns = np.nonzero(ring)
    similarity = _similarity(region, ring, anomaly_map, embedding, frame, options)
    order = np.argsort(similarity, kind="stable")
    negative = order[_spaced(np.stack([columns[order], rows[order]], 1), options.negatives, region.shape, options)]
    return replace(
        found,
        points=np.concatenate([found.points, np.stack([columns[negative], rows[negative]], axis=1)]),
        labels=np.concatenate([found.labels, np.zeros(len(negative), dtype=np.int64)]),
        values=np.concatenate([found.values, similarity[negative].astype(np.float64)]),
    )


def _similarity(
    region: NDArray[np.bool_],
    ring: NDArray[np.bool_],
    anomaly_map: NDArray[np.float32],
    embedding: torch.Tensor,
    frame: InputFrame,
    options: PromptOptions,
) -> NDArray[np.float32]:
    """[n] cosine similarity of every ring pixel, in row-major order, to the features of S_a (equation 6, A7, A8)."""
    grid = embedding.shape[-1]
    directions = functional.normalize(embedding, dim=0)
    raw = options.similarity == "prototype" and options.prototype_features == "raw"
    source = embedding if raw else directions
    scores = region * anomaly_map if options.prototype_weight == "area_score" else region
    if options.features == "pixel":
        anomalous = sample_grid(source, region, frame)
        anomalous = anomalous if raw else functional.normalize(anomalous, dim=0)
        weight = torch.from_numpy(scores[region])
        queries = functional.normalize(sample_grid(directions, ring, frame), dim=0)
    else:
        covered = torch.from_numpy(grid_coverage(region, frame, grid).reshape(-1) > _ROUNDING)
        weight = torch.from_numpy(grid_coverage(scores, frame, grid)).reshape(-1)[covered]
        anomalous = source.reshape(source.shape[0], -1)[:, covered]
        queries = directions.reshape(directions.shape[0], -1)
    weight = weight.to(directions.dtype)

    if options.similarity == "prototype":
        prototype = functional.normalize((anomalous * weight).sum(dim=1), dim=0)
        similarity = prototype @ queries
    elif options.similarity == "mean":
        similarity = anomalous.mean(dim=1) @ queries
    else:
        step = max(1, _PAIRS_AT_ONCE // anomalous.shape[1])
        similarity = torch.cat([(anomalous.T @ part).amax(dim=0) for part in torch.split(queries, step, dim=1)])
    if options.features == "cell":
        similarity = sample_grid(similarity.reshape(1, grid, grid), ring, frame)[0]
    return similarity.cpu().numpy().astype(np.float32)


def _spaced(ranked: NDArray[np.int64], count: int, shape: tuple[int, ...], options: PromptOptions) -> NDArray[np.int64]:
    """Ranks of at most ``count`` candidates that are spaced apart, best first (A5).

    Args:
        ranked: [n, 2] (x, y) of the candidates, best first.
        count: points wanted; fewer are returned if the spacing does not allow them.
        shape: (height, width) of the prompt frame.
        options: the reading of "spaced".
    """
    if options.spacing_rule == "rank":
        enough = len(ranked) > options.spacing_rank * (count - 1)
        stride = options.spacing_rank if enough else max(1, len(ranked) // count)
        return np.arange(0, len(ranked), stride)[:count]
    if options.spacing_rule == "radius":
        scale, apart = np.ones(2), options.spacing_radius
    else:
        scale, apart = np.array([_LITERAL_FRAME / shape[1], _LITERAL_FRAME / shape[0]]), options.spacing_distance
    places = ranked * scale
    free = np.ones(len(ranked), dtype=bool)
    kept: list[int] = []
    while len(kept) < count and free.any():
        best = int(free.argmax())
        kept.append(best)
        free &= np.hypot(*(places - places[best]).T) >= max(apart, np.finfo(float).tiny)
        free[best] = False
    return np.array(kept, dtype=np.int64)
