"""Mutual scoring: the images of a category judge each other, without words and without training.

A cell of an image is normal if most other images have a cell like it. Transductive: a result belongs to the batch, and
another batch gives another one.

Source: Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the
Unlabeled Images", ICLR 2024, and its public code (``_LNAMD.py``, ``_MSM.py``), on the levels of a frozen network of
features in place of the blocks of a vision transformer. Levels of several strides are brought to one grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.protocol import AnomalyMap, Kept, Localiser, Networks

if TYPE_CHECKING:
    import torch

    from cascade.frames import Size

_LARGEST = 2.0
"""Distance of two unit vectors that point away from each other."""


@dataclass(frozen=True)
class Mutual(Localiser):
    """Distances of cells to their nearest cells in other images.

    Attributes:
        sides: of the square input in pixels, one.
        strides: of the levels that are compared.
        layers: the levels that are compared, counted from 1, in place of those of ``strides``.
        neighbourhoods: r, odd; a cell is averaged with its r x r neighbourhood.
        share: of the other images, the nearest, over which distances are averaged.
        references: most images that judge another.
    """

    VERSION = 1
    ROLES = ("features",)
    SCOPE = "batch"
    MIN_BATCH = 8

    sides: tuple[int, ...]
    strides: tuple[int, ...]
    layers: tuple[int, ...] | None
    neighbourhoods: tuple[int, ...]
    share: float
    references: int

    def inputs(self, squares: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """[3, side, side] float32 in [−1, 1]."""
        import torch

        return [torch.from_numpy(square).permute(2, 0, 1).float() / 127.5 - 1 for square in squares]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """[B, C, grid, grid] by level, each normalised over an image, on the grid of the coarsest.

        A level is called ``level_<stride>``, or ``layer_<number>`` where ``layers`` are chosen.
        """
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            chosen, grid = self._chosen(networks), self._grid(networks)
            found = {}
            levels = networks.features()(inputs[0], list(chosen.values()))
            for name, level in zip(chosen, levels, strict=True):
                normed = functional.layer_norm(level, level.shape[1:])
                found[name] = functional.adaptive_avg_pool2d(normed, grid)
        return found

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """The levels as float16."""
        channels, grid = networks.features().channels, self._grid(networks)
        return {name: Kept((channels[level], grid, grid), "float16") for name, level in self._chosen(networks).items()}

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``distance`` [1, grid, grid] float32 in [0, 1], of one image to the ``others``; its largest is the score."""
        import torch

        nearest = max(1, int(self.share * len(others)))
        total = torch.zeros((), device=networks.device)
        with torch.inference_mode():
            for name, level in looks.items():
                for r in self.neighbourhoods:
                    cells = _cells(level, r)
                    distances = [_to_nearest(cells, _cells(other[name][None], r)) for other in others]
                    total = total + torch.stack(distances).sort(dim=0).values[:nearest].mean(dim=0)
            mean = total / (len(looks) * len(self.neighbourhoods) * _LARGEST)
        distance = mean.reshape(1, *next(iter(looks.values())).shape[2:]).cpu().numpy()
        return {"distance": distance}, distance.max(axis=(1, 2))

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``distance`` [grid, grid] float32."""
        return {"distance": Kept((self._grid(networks),) * 2, "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The distances, bilinearly with aligned corners."""
        import torch
        from torch.nn import functional

        grid = torch.from_numpy(arrays["distance"])[None, None]
        values = functional.interpolate(grid, size, mode="bilinear", align_corners=True)[0, 0].numpy()
        return AnomalyMap(values, values)

    def _chosen(self, networks: Networks) -> dict[str, int]:
        """The levels that are compared, by name; of several levels of a stride, the last."""
        if self.layers is not None:
            return {f"layer_{number}": number - 1 for number in self.layers}
        last = {stride: level for level, stride in enumerate(networks.features().strides)}
        return {f"level_{stride}": last[stride] for stride in self.strides}

    def _grid(self, networks: Networks) -> int:
        strides = networks.features().strides
        return self.sides[0] // max(strides[level] for level in self._chosen(networks).values())


def _cells(level: torch.Tensor, r: int) -> torch.Tensor:
    """[grid², C] unit vectors of [1, C, grid, grid]: the mean of each r x r neighbourhood, zeros beyond the edge."""
    from torch.nn import functional

    pooled = functional.avg_pool2d(level, r, stride=1, padding=r // 2)
    return functional.normalize(pooled[0].flatten(1).T, dim=1)


def _to_nearest(cells: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """[n] Euclidean distance of each unit vector to the nearest of the others."""
    cosine = (cells @ others.T).amax(dim=1)
    return (2 - 2 * cosine).clamp(min=0).sqrt()


LOCALISER = Mutual
