"""Mutual scoring: the images of a category judge each other, without words and without training.

A cell of an image is normal if most other images have a cell like it. Transductive: a result belongs to the batch, and
another batch gives another one.

Source: Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the
Unlabeled Images", ICLR 2024, and its public code (``_LNAMD.py``, ``_MSM.py``), on the levels of a frozen network of
features, which may be the blocks of a vision transformer. ``descriptors``, ``reference_cells`` and ``zero`` are not of
MuSc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.protocol import AnomalyMap, Kept, Localiser, Networks

if TYPE_CHECKING:
    import torch

    from cascade.frames import Size

LEVELS = ("level_", "layer_")
"""How the names of what is seen begin."""

_LARGEST = 2.0
"""Distance of two unit vectors that point away from each other."""


@dataclass(frozen=True)
class Mutual(Localiser):
    """Distances of cells to their nearest cells in other images.

    Attributes:
        sides: of the square input in pixels, one.
        strides: of the levels that are compared.
        layers: the levels that are compared, counted from 1, in place of those of ``strides``.
        grid: cells along a side to which finer levels are pooled, while coarser ones keep their own; those of the
            coarsest if ``None``.
        neighbourhoods: r, odd; a cell is averaged with its r x r neighbourhood.
        descriptors: a distance for each r, or one of the mean of a cell's unit vectors over all r.
        reference_cells: of the images that judge, every cell or every second, as on a chessboard.
        zero: distances as they are, or less the median of the image and 0 below.
        share: of the other images, the nearest, over which distances are averaged.
        rscin: how many most similar images an image's score is averaged over; see :func:`rscin`. Not at
            all if empty.
        references: most images that judge another.
    """

    VERSION = 2
    ROLES = ("features",)
    SCOPE = "batch"
    MIN_BATCH = 8

    sides: tuple[int, ...]
    strides: tuple[int, ...]
    layers: tuple[int, ...] | None
    grid: int | None
    neighbourhoods: tuple[int, ...]
    descriptors: Literal["each", "mean"]
    reference_cells: Literal["all", "half"]
    zero: Literal["none", "median"]
    share: float
    rscin: tuple[int, ...]
    references: int

    def inputs(self, squares: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """[3, side, side] float32 in [−1, 1]."""
        import torch

        return [torch.from_numpy(square).permute(2, 0, 1).float() / 127.5 - 1 for square in squares]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """[B, C, side, side] by level, each normalised over an image.

        A level is called ``level_<stride>``, or ``layer_<number>`` where ``layers`` are chosen.
        """
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            chosen, sides = self._chosen(networks), self._sides(networks)
            found = {}
            levels = networks.features()(inputs[0], list(chosen.values()))
            for name, level in zip(chosen, levels, strict=True):
                normed = functional.layer_norm(level, level.shape[1:])
                found[name] = functional.adaptive_avg_pool2d(normed, sides[name])
        return found

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """The levels as float16."""
        channels, sides = networks.features().channels, self._sides(networks)
        return {
            name: Kept((channels[level], sides[name], sides[name]), "float16")
            for name, level in self._chosen(networks).items()
        }

    def judge(self, look: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """``look`` itself, or [cells, C] by level if each level has one descriptor."""
        if self.descriptors == "each":
            return look
        return {name: self._reference(level[None], self.neighbourhoods) for name, level in look.items()}

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``distance`` [1, side, side] float32 in [0, 1], of one image to the ``others``; its largest is the score.

        With ``rscin`` also ``pooled`` [1, C], the mean of the deepest level that is compared.
        """
        import torch

        nearest = max(1, int(self.share * len(others)))
        side = max(level.shape[-1] for level in looks.values())
        total = torch.zeros((1, 1, side, side), device=networks.device)
        sets = [self.neighbourhoods] if self.descriptors == "mean" else [(r,) for r in self.neighbourhoods]
        with torch.inference_mode():
            for name, level in looks.items():
                for own in sets:
                    cells = _cells(level, own)
                    judges = (
                        each[name] if self.descriptors == "mean" else self._reference(each[name][None], own)
                        for each in others
                    )
                    distances = torch.stack([_to_nearest(cells, judge) for judge in judges])
                    mean = distances.sort(dim=0).values[:nearest].mean(dim=0)
                    total = total + _resized(mean.reshape(1, 1, *level.shape[2:]), (side, side))
            distance = total[:, 0] / (len(looks) * len(sets) * _LARGEST)
            if self.zero == "median":
                distance = (distance - distance.median()).clamp(min=0)
        values = distance.cpu().numpy()
        found = {"distance": values}
        if self.rscin:
            found["pooled"] = looks[self._deepest()].mean(dim=(2, 3)).float().cpu().numpy()
        return found, values.max(axis=(1, 2))

    @property
    def rescores(self) -> bool:
        """With ``rscin``."""
        return bool(self.rscin)

    def rescore(self, scores: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.floating[Any]]:
        """MuSc's RsCIN, with ``pooled`` in place of a class token."""
        return rscin(scores, arrays["pooled"], self.rscin)

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``distance`` [side, side] float32, on the grid of the finest level that is compared; ``pooled`` [C]."""
        kept = {"distance": Kept((max(self._sides(networks).values()),) * 2, "float32")}
        if self.rscin:
            kept["pooled"] = Kept((networks.features().channels[self._chosen(networks)[self._deepest()]],), "float32")
        return kept

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The distances, bilinearly with aligned corners."""
        import torch

        values = _resized(torch.from_numpy(arrays["distance"])[None, None], size)[0, 0].numpy()
        return AnomalyMap(values, values)

    def _reference(self, level: torch.Tensor, neighbourhoods: Sequence[int]) -> torch.Tensor:
        """[n, C] unit vectors of [1, C, side, side], against which other images are held."""
        cells = _cells(level, neighbourhoods)
        if self.reference_cells == "all":
            return cells
        side = level.shape[-1]
        return cells.reshape(side, side, -1)[_chessboard(side)]

    def _chosen(self, networks: Networks) -> dict[str, int]:
        """The levels that are compared, by name; of several levels of a stride, the last."""
        if self.layers is not None:
            return {f"layer_{number}": number - 1 for number in self.layers}
        last = {stride: level for level, stride in enumerate(networks.features().strides)}
        return {f"level_{stride}": last[stride] for stride in self.strides}

    def _deepest(self) -> str:
        return f"layer_{max(self.layers)}" if self.layers is not None else f"level_{max(self.strides)}"

    def _sides(self, networks: Networks) -> dict[str, int]:
        """Cells along a side, by level."""
        strides = networks.features().strides
        own = {name: self.sides[0] // strides[level] for name, level in self._chosen(networks).items()}
        finest = self.grid or min(own.values())
        return {name: min(finest, side) for name, side in own.items()}


def _cells(level: torch.Tensor, neighbourhoods: Sequence[int]) -> torch.Tensor:
    """[side², C] unit vectors of [1, C, side, side]: the mean of each r x r neighbourhood, zeros beyond the edge.

    Of several r, the mean of their unit vectors is one again.
    """
    from torch.nn import functional

    vectors = [
        functional.normalize(functional.avg_pool2d(level, r, stride=1, padding=r // 2)[0].flatten(1).T, dim=1)
        for r in neighbourhoods
    ]
    return vectors[0] if len(vectors) == 1 else functional.normalize(sum(vectors[1:], vectors[0]), dim=1)


def _chessboard(side: int) -> torch.Tensor:
    """Every second cell, bool [side, side]."""
    import torch

    rows = torch.arange(side)
    return (rows[:, None] + rows) % 2 == 0


def _resized(grid: torch.Tensor, size: Size) -> torch.Tensor:
    from torch.nn import functional

    return functional.interpolate(grid, size, mode="bilinear", align_corners=True)


def _to_nearest(cells: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """[n] Euclidean distance of each unit vector to the nearest of the others."""
    cosine = (cells @ others.T).amax(dim=1)
    return (2 - 2 * cosine).clamp(min=0).sqrt()


def rscin(
    scores: NDArray[np.floating[Any]], features: NDArray[np.floating[Any]], neighbours: Sequence[int]
) -> NDArray[np.float64]:
    """Image scores averaged over the most similar images: MuSc's RsCIN (Li et al., ICLR 2024, ``RsCIN.py``).

    Args:
        scores: [N].
        features: [N, D], one vector for each image.
        neighbours: how many images, itself the first of them, an image is averaged over, by cosine; the result is the
            mean over these numbers.

    Returns:
        [N] in [0, 1], the smallest and the largest of ``scores`` being 0 and 1.
    """
    spread = float(scores.max() - scores.min())
    scaled = (scores.astype(np.float64) - scores.min()) / (spread or 1.0)
    unit = features.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit @ unit.T
    order = np.argsort(-similarity, axis=1, kind="stable")
    found = np.zeros(len(scaled))
    for number in neighbours:
        nearest = order[:, :number]
        weights = np.take_along_axis(similarity, nearest, axis=1)
        found += (weights * scaled[nearest]).sum(axis=1) / weights.sum(axis=1)
    return found / len(neighbours)


LOCALISER = Mutual
