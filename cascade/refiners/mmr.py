"""MMR, ClipSAM's multi-level mask refinement: points and a box for each part of the map, SAM's three levels merged.

No code was published, and what is known of it are two sentences of the abstract: positions from the rough map become
point and box prompts of SAM, and several hierarchical masks are merged. The rest is our reading:

- the map is cut as for every refiner (A3, ``prompt.threshold``); each 8-connected part of S_a has its own prompts, the
  points of its highest scores (``prompt.positives``, A4 and A5) and its own box, without padding. There are no negative
  points;
- one pass for each part returns SAM's masks of three levels: the whole, a part, a part of that. Step ``points+box``
  is the one of the largest predicted IoU;
- step ``levels`` is their mean as probabilities, weighted by predicted IoU, so that a pixel scores the higher the more
  levels agree on it. It is segmented where that is above 1/2;
- parts are merged by maximum, as those of the other refiners; a sum would count twice what two parts both reach.

The blend with the map is that of the stage ``score``, as for every refiner.

Source: Li et al., "ClipSAM: CLIP and SAM Collaboration for Zero-Shot Anomaly Segmentation", arXiv 2401.12665.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from cascade.refiners.protocol import Refined, Refiner, Row

if TYPE_CHECKING:
    import torch

    from cascade.backbones.sam.decoder import Decoder


@dataclass(frozen=True)
class Mmr(Refiner):
    """One pass, and its levels merged."""

    VERSION = 1
    STEPS = ("points+box", "levels")
    PROMPTS = MappingProxyType({"negatives": 0, "grouping": "component", "box_of": "region"})

    def refine(
        self,
        decode: Decoder,
        embeddings: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        rows: Sequence[Row],
    ) -> list[Refined]:
        """The pass, and the merged mask."""
        from cascade.refiners.levels import refine_levels

        return refine_levels(decode, embeddings, points, labels, rows)


REFINER = Mmr
