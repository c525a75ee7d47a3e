"""PerSAM's cascade: CPS's three passes with one positive point, one negative, and one mask in the first pass.

    M1, logit1 = Dec(F, P)                    one mask (SAM's token for many prompts)
    M2, logit2 = Dec(F, P + logit1)           three masks, the one of the largest predicted IoU
    box        = box of all of M2             inclusive, without padding
    M3         = Dec(F, P + box + logit2)     three masks, the one of the largest predicted IoU

PerSAM finds both points in one map of similarity to a mean feature: its largest value and its smallest. It is shown a
reference; here nothing is, so the positive is the most anomalous pixel of the map, and the negative is the pixel
outside of S_a that is least similar to the mean feature of S_a, wherever in the image it is. Its attention and
embedding that a reference guides are left out. Where its second mask is empty it fails; here A13's default holds.

Source: Zhang et al., "Personalize Segment Anything Model with One Shot", arXiv 2305.03048, and the repository
``ZrrSkywalker/Personalize-SAM``, ``persam.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from cascade.refiners.cps import Cps
from cascade.refiners.protocol import Refined, Refiner, Row

if TYPE_CHECKING:
    import torch

    from cascade.backbones.sam.decoder import Decoder

_PASSES = Cps(
    multimask=(False, True, True), choice="iou", feedback="chosen", box="mask", box_padding=0.0, empty="previous"
)


@dataclass(frozen=True)
class PerSam(Refiner):
    """The passes of :class:`~cascade.refiners.cps.Cps`; nothing of them is open."""

    VERSION = Cps.VERSION
    STEPS = Cps.STEPS
    PROMPTS = MappingProxyType(
        {
            "positives": 1,
            "negatives": 1,
            "negatives_from": "image",
            "similarity": "prototype",
            "prototype_weight": "area",
            "prototype_features": "raw",
            "features": "cell",
        }
    )

    def refine(
        self,
        decode: Decoder,
        embeddings: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        rows: Sequence[Row],
    ) -> list[Refined]:
        """The three passes."""
        from cascade.refiners.passes import run_cascade

        return run_cascade(decode, embeddings, points, labels, rows, _PASSES)


REFINER = PerSam
