"""Two looks at an image in one map: what words say of it alone, and how it differs from the others of its category.

The mean of APRIL-GAN's map and of mutual scoring's, with a fixed weight. Transductive as the latter; a category with
too few images to judge each other has the former's map alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.april_gan import AprilGan
from cascade.localisers.mutual import LEVELS, Mutual
from cascade.localisers.protocol import AnomalyMap, Kept, Localiser, Networks

if TYPE_CHECKING:
    import torch

    from cascade.frames import Size

_JUDGED = "judged"


@dataclass(frozen=True)
class Fused(Localiser):
    """A localiser of single images and one of batches.

    Attributes:
        sides: of both, those of the single image first.
        single: judges an image alone.
        batch: judges it by the others.
        weight: of the batch's map.
        references: most images that judge another.
    """

    VERSION = 1 + AprilGan.VERSION + Mutual.VERSION  # raised with either
    ROLES = (*AprilGan.ROLES, *Mutual.ROLES)
    SCOPE = "batch"
    MIN_BATCH = Mutual.MIN_BATCH
    ALONE = True
    WORDS = True

    sides: tuple[int, ...]
    single: AprilGan
    batch: Mutual
    weight: float
    references: int = 0

    @classmethod
    def of(cls, options: Any) -> Self:
        """Both methods: the options of APRIL-GAN, and in ``batch`` those of mutual scoring."""
        single, batch = AprilGan.of(options), Mutual.of(options.batch)
        return cls((*single.sides, *batch.sides), single, batch, options.weight, batch.references)

    def inputs(self, squares: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """Those of both."""
        own = len(self.single.sides)
        return [*self.single.inputs(squares[:own]), *self.batch.inputs(squares[own:])]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What both see; no name is in both."""
        own = len(self.single.sides)
        return self.single.look(networks, inputs[:own]) | self.batch.look(networks, inputs[own:])

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """Those of both."""
        return self.single.look_arrays(networks) | self.batch.look_arrays(networks)

    def judge(self, look: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What mutual scoring makes of its part."""
        return self.batch.judge({name: level for name, level in look.items() if name.startswith(LEVELS)})

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """What both keep, ``judged`` [B, 1] uint8 (0 for an image without ``others``), and the mean of their scores."""
        found, scores = self.single.compare(networks, looks, texts)
        size = len(scores)
        if not others:
            blank = {
                name: np.zeros((size, *kept.shape), kept.dtype) for name, kept in self.batch.arrays(networks).items()
            }
            return found | blank | {_JUDGED: np.zeros((size, 1), np.uint8)}, scores
        levels = {name: level for name, level in looks.items() if name.startswith(LEVELS)}
        compared, distances = self.batch.compare(networks, levels, None, others)
        mean = (1 - self.weight) * scores + self.weight * distances
        return found | compared | {_JUDGED: np.ones((size, 1), np.uint8)}, np.asarray(mean, np.float32)

    @property
    def rescores(self) -> bool:
        """As mutual scoring."""
        return self.batch.rescores

    def rescore(self, scores: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.floating[Any]]:
        """As mutual scoring."""
        return self.batch.rescore(scores, arrays)

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """Those of both, and ``judged``."""
        return self.single.arrays(networks) | self.batch.arrays(networks) | {_JUDGED: Kept((1,), "uint8")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The weighted mean of both maps, or that of the single image if no other judged it."""
        alone = self.single.map_of(arrays, size)
        if not arrays[_JUDGED].any():
            return alone
        values = (1 - self.weight) * alone.values + self.weight * self.batch.map_of(arrays, size).values
        return AnomalyMap(values, values)


LOCALISER = Fused
