"""No refiner: the localiser's map is the result. Neither SAM nor prompts are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cascade.refiners.protocol import Refined, Refiner, Row

if TYPE_CHECKING:
    import torch

    from cascade.backbones.sam.decoder import Decoder


@dataclass(frozen=True)
class Unrefined(Refiner):
    """Zero steps."""

    VERSION = 1
    STEPS = ()

    def refine(
        self,
        decode: Decoder,
        embeddings: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        rows: Sequence[Row],
    ) -> list[Refined]:
        """Nothing, for every row."""
        return [Refined((), box_fallback=False) for _ in rows]


REFINER = Unrefined
