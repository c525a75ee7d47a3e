"""The refiners' options: one section a method, and ``RefineConfig``, the choice among them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from cascade.configs.section import BatchSize, Fraction, Precision, Section, Switch, named

Decoder = Annotated[
    Literal["absorbed", "plain"],
    Field(description="SAM's decoder in a faster order of multiplication, or as it is published; same masks"),
]
Batch = Annotated[BatchSize, Field(description="images in one pass; on a CPU every core has a batch of its own")]


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
    decoder: Decoder = "absorbed"
    empty: Literal["previous", "skip"] = Field(
        "previous", description="A13: an empty second mask falls back to the first mask or S_a, or skips the third step"
    )
    precision: Precision = "fp32"
    batch_size: Batch = 4

    def _idle(self) -> set[str]:
        idle = set() if any(self.multimask) else {"choice"}
        return idle if any(self.multimask[:2]) else idle | {"feedback"}


class Mmr(Section):
    """ClipSAM's MMR, as we read it: points and a box for each part of the map, and SAM's three masks merged.

    Its prompts have no negative points and one set for each part, whatever ``prompt`` says of these.
    """

    method: Literal["mmr"] = "mmr"
    decoder: Decoder = "absorbed"
    precision: Precision = "fp32"
    batch_size: Batch = 4


class PerSam(Section):
    """PerSAM's cascade: CPS's passes with one mask in the first, one positive point and one negative.

    The points are so whatever ``prompt`` says of positives, negatives and similarity.
    """

    method: Literal["persam"] = "persam"
    decoder: Decoder = "absorbed"
    precision: Precision = "fp32"
    batch_size: Batch = 4


RefineConfig = Annotated[
    Annotated[Cps, Tag("cps")]
    | Annotated[Mmr, Tag("mmr")]
    | Annotated[Unrefined, Tag("none")]
    | Annotated[PerSam, Tag("persam")],
    named("cps"),
]
