"""CPS, cascaded prompts for SAM: points, points and logits, points, box and logits (equations 9 to 12).

Source: Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts", section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cascade.refiners.protocol import Refined, Refiner, Row

if TYPE_CHECKING:
    import torch

    from cascade.backbones.sam.decoder import Decoder


@dataclass(frozen=True)
class Cps(Refiner):
    """The open choices.

    Attributes:
        multimask: three masks or one, for each step (A10).
        choice: the mask with the largest predicted IoU, or with the best agreement with the anomaly map (A10).
        feedback: logits of the chosen mask, or the mean of all (A11).
        box: one box of the whole second mask, of its largest part, or one box and pass for each part, merged by
            maximum (A12).
        box_padding: growth of a box on each side, as a fraction of its sides (A12).
        empty: an empty second mask falls back on the first mask and its logits, or if that is empty too on the box
            of the dilated S_a; or the third step is skipped (A13).
    """

    VERSION = 2
    STEPS = ("points", "points+logits", "points+box+logits")

    multimask: tuple[bool, bool, bool]
    choice: Literal["iou", "agreement"]
    feedback: Literal["chosen", "mean"]
    box: Literal["mask", "largest", "components"]
    box_padding: float
    empty: Literal["previous", "skip"]

    @property
    def needs_map(self) -> bool:  # type: ignore[override]
        """Only to choose by agreement."""
        return self.choice == "agreement"

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

        return run_cascade(decode, embeddings, points, labels, rows, self)


REFINER = Cps
