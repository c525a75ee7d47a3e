"""AnomalyCLIP: cells by the path of values, compared with two learned prompts that name no object.

Source: Zhou et al., "AnomalyCLIP: Object-Agnostic Prompt Learning for Zero-Shot Anomaly Detection", ICLR 2024, arXiv
2310.18961, and its public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.on_clip import OnClip
from cascade.localisers.protocol import AnomalyMap, Kept, Networks, Trainable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.frames import Size
    from cascade.localisers.learned_prompts import LearnedPrompts


@dataclass(frozen=True)
class AnomalyClip(OnClip, Trainable):
    """One look at a square, in which DPAM runs beside the last blocks.

    Attributes:
        sides: of CLIP's square input in pixels, one.
        layers: blocks, counted from 1. The authors asked for 6, 12, 18 and 24, and their code of that time returned the
            last one four times; the published weights and numbers are those of 24 alone.
        precision: of CLIP's vision tower.
        sigma: of the Gaussian on the map, in pixels of the square.
    """

    VERSION = 1
    ROLES = ("clip", "adapter")
    RECIPE = MappingProxyType({"batch_size": 8})

    sides: tuple[int, ...]
    layers: tuple[int, ...]
    precision: Literal["fp32", "bf16"]
    sigma: float

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """``cells`` [B, L, grid², D] and ``pooled`` [B, D], in the space of text; float32."""
        import torch

        from cascade.backbones.clip.dpam import value_features

        found = value_features(networks.clip(self.sides[0]), inputs[0], self.layers, bf16=self.precision == "bf16")
        return {"cells": torch.stack([block[:, 1:] for block in found.blocks], dim=1), "pooled": found.pooled}

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """``cells`` as float16 and ``pooled`` as float32."""
        dimension = networks.clip_config["embed_dim"]
        networks.clip(self.sides[0])
        return {
            "cells": Kept((len(self.layers), self.grid(networks) ** 2, dimension), "float16"),
            "pooled": Kept((dimension,), "float32"),
        }

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``logits`` [B, L, 2, grid, grid] float32, cosine / 0.07, and the image's probability of "abnormal"."""
        import torch

        from cascade.localisers.learned_prompts import cosine_logits, known_features, on_grid

        learned = known_features(self.adapter(networks), networks.clip(self.sides[0]))
        with torch.inference_mode():
            logits = on_grid(cosine_logits(looks["cells"], learned))
            scores = cosine_logits(looks["pooled"], learned).softmax(dim=-1)[:, 1]
        return {"logits": logits.cpu().numpy()}, scores.cpu().numpy()

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``logits`` [L, 2, grid, grid] float32."""
        grid = self.grid(networks)
        networks.clip(self.sides[0])
        self.adapter(networks)
        return {"logits": Kept((len(self.layers), 2, grid, grid), "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The mean probability over the layers, and the mean difference of the logits, both smoothed."""
        import torch

        from cascade.localisers.learned_prompts import map_parts
        from cascade.localisers.smoothed import smoothed

        parts = map_parts(torch.from_numpy(arrays["logits"]))
        return AnomalyMap(*(smoothed(part, self.sides[0], self.sigma, size) for part in parts))

    def untrained(self, networks: Networks) -> LearnedPrompts:
        """Vectors drawn with a deviation of 0.02."""
        from cascade.localisers.learned_prompts import DEPTH, LearnedPrompts

        text = networks.clip_config["text_cfg"]
        return LearnedPrompts(text["width"], depth=min(DEPTH, text["layers"])).to(networks.device)

    def loss(
        self,
        module: nn.Module,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """Cross entropy of the image, and four times focal and Dice losses of each layer's map."""
        from cascade.localisers.learned_prompts import LearnedPrompts, prompts_loss

        assert isinstance(module, LearnedPrompts)
        return prompts_loss(module, networks.clip(self.sides[0]), looks["cells"], looks["pooled"], masks)

    def adapter(self, networks: Networks) -> LearnedPrompts:
        """The trained prompts."""
        from cascade.localisers.learned_prompts import build_prompts, misfit

        return networks.trained(self.TRAINED, build_prompts, lambda prompts: misfit(prompts, networks.clip_config))


LOCALISER = AnomalyClip
