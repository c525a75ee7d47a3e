"""The refiners' options: one section a method, and ``RefineConfig``, the choice among them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from cascade.configs.section import BatchSize, Fraction, Precision, Section, Switch, named


class Unrefined(Section):
    """No refiner: the map is the result; neither SAM nor prompts are needed."""

    method: Literal["none"] = "none"


class Cps(Section):
    """CPS: the three decoder passes (equations 9 to 12)."""

    method: Literal["cps"] = "cps"
    multimask: tuple[Switch, Switch, Switch] = Field(
        (True, True, True), description="A10: three masks or one, for each step; PerSAM uses false, true, true"
    )
    choice: Literal["iou", "agreement"] = Field(
        "iou", description="A10: the mask with the largest predicted IoU, or the one that agrees best with the map"
    )
    feedback: Literal["chosen", "mean"] = Field("chosen", description="A11: the logits that are fed back")
    box: Literal["mask", "largest", "components"] = Field(
        "mask", description="A12: one box of the whole mask, of its largest part, or one box for each part"
    )
    box_padding: Fraction = Field(0.0, description="A12: growth of the box on each side, in its sides")
    decoder: Literal["absorbed", "plain"] = Field(
        "absorbed", description="SAM's decoder in a faster order of multiplication, or as it is published; same masks"
    )
    empty: Literal["previous", "skip"] = Field(
        "previous", description="A13: an empty second mask falls back to the first mask or S_a, or skips the third step"
    )
    precision: Precision = "fp32"
    batch_size: BatchSize = Field(4, description="images in one pass; on a CPU every core has a batch of its own")

    def _idle(self) -> set[str]:
        idle = set() if any(self.multimask) else {"choice"}
        return idle if any(self.multimask[:2]) else idle | {"feedback"}


RefineConfig = Annotated[Annotated[Cps, Tag("cps")] | Annotated[Unrefined, Tag("none")], named("cps")]
