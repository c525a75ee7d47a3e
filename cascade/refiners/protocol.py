"""What a refiner is: from point prompts to masks, in steps.

Nothing here imports torch, so that a run which finds everything in the store starts without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from cascade.backbones.sam.decoder import Decoder
    from cascade.frames import Box, InputFrame, Size


@dataclass(frozen=True)
class Row:
    """What a refiner knows of one set of prompts beside its points.

    Attributes:
        frame: where the image lies in SAM's input.
        size: (height, width) of the prompt frame, in which the box of a mask is taken.
        region_box: [4] box of S_a in the prompt frame, dilated unless the method fixes another.
        map: [4·grid, 4·grid] anomaly map over the input, in [0, 1]; only for a refiner that asks for it.
    """

    frame: InputFrame
    size: Size
    region_box: Box
    map: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Step:
    """One step for one row.

    Attributes:
        logits: [M, 4·grid, 4·grid] float32 low-resolution logits of all masks.
        predicted_iou: [M] float32.
        chosen: index of the mask that goes on.
        boxes: the boxes given as prompts, in the prompt frame.
    """

    logits: NDArray[np.float32]
    predicted_iou: NDArray[np.float32]
    chosen: int
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Refined:
    """The steps of one row; ``box_fallback`` says that a mask was empty whose box was needed (A13)."""

    steps: tuple[Step, ...]
    box_fallback: bool


class Refiner(ABC):
    """One method. Its instances are frozen dataclasses of the options that change what it computes.

    Attributes:
        VERSION: raised by hand when the mathematics changes.
        STEPS: names in order, as in the tables; without any, the map is the result, and no prompt is made.
        MASKS: most masks that a step has.
        PROMPTS: options of PPG that belong to the method, by the names of ``cascade.prompts.ppg.PromptOptions``; they
            hold whatever the experiment says of its prompts.
        needs_map: whether a row's ``map`` is to be given.
    """

    VERSION: ClassVar[int]
    STEPS: ClassVar[tuple[str, ...]]
    MASKS: ClassVar[int] = 3
    PROMPTS: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    needs_map: bool = False

    @abstractmethod
    def refine(
        self,
        decode: Decoder,
        embeddings: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        rows: Sequence[Row],
    ) -> list[Refined]:
        """Every step for B rows that have equally many points.

        Args:
            decode: SAM's decoder.
            embeddings: [B, C, grid, grid] float32.
            points: [B, n, 2] float32 (x, y) in pixels of SAM's input.
            labels: [B, n], 1 positive, 0 negative.
            rows: B descriptions.
        """
