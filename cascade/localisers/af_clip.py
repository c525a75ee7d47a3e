"""AF-CLIP: tokens of a few blocks with their neighbours, through one adapter, compared with two learned prompts.

Source: "AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation", 2025; see
:mod:`cascade.localisers.neighbour_tokens`.
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
    from cascade.localisers.neighbour_tokens import AfAdapter


@dataclass(frozen=True)
class AfClip(OnClip, Trainable):
    """One look at a square; tokens of several blocks, each alone and averaged with 3 x 3 and 5 x 5 neighbours.

    Attributes:
        sides: of CLIP's square input in pixels, one.
        layers: blocks, counted from 1.
        precision: of CLIP's vision tower.
        sigma: of the Gaussian on the map, in pixels of the square.
    """

    VERSION = 1
    ROLES = ("clip", "adapter")
    RECIPE = MappingProxyType({"batch_size": 8, "epochs": 2, "learning_rate": 1e-4, "seed": 122})

    sides: tuple[int, ...]
    layers: tuple[int, ...]
    precision: Literal["fp32", "bf16"]
    sigma: float

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """``tokens`` [B, L, 1 + grid², width] float32."""
        import torch

        from cascade.backbones.clip.backbone import image_tokens

        found = image_tokens(networks.clip(self.sides[0]), inputs[0], self.layers, bf16=self.precision == "bf16")
        return {"tokens": torch.stack(found.blocks, dim=1)}

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """``tokens`` as float16."""
        width = networks.clip_config["vision_cfg"]["width"]
        networks.clip(self.sides[0])
        return {"tokens": Kept((len(self.layers), 1 + self.grid(networks) ** 2, width), "float16")}

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``logits`` [B, 2, grid, grid] float32, cosine / 0.07 summed, and the image's probability of "abnormal"."""
        import torch

        from cascade.localisers.learned_prompts import on_grid
        from cascade.localisers.neighbour_tokens import known_texts, summed_logits

        adapter, clip = self.adapter(networks), networks.clip(self.sides[0])
        learned = known_texts(adapter, clip)
        with torch.inference_mode():
            logits = summed_logits(adapter.token_sets(clip, looks["tokens"].unbind(dim=1)), learned)
            scores = logits[:, 0].softmax(dim=-1)[:, 1]
        return {"logits": on_grid(logits[:, 1:]).cpu().numpy()}, scores.cpu().numpy()

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``logits`` [2, grid, grid] float32."""
        grid = self.grid(networks)
        networks.clip(self.sides[0])
        self.adapter(networks)
        return {"logits": Kept((2, grid, grid), "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The probability of "abnormal", and the difference of the logits, both smoothed."""
        import torch

        from cascade.localisers.learned_prompts import map_parts
        from cascade.localisers.smoothed import smoothed

        parts = map_parts(torch.from_numpy(arrays["logits"])[None])
        return AnomalyMap(*(smoothed(part, self.sides[0], self.sigma, size) for part in parts))

    def untrained(self, networks: Networks) -> AfAdapter:
        """Prompt vectors drawn with a deviation of 0.01, layers as torch draws them."""
        from cascade.localisers.neighbour_tokens import AfAdapter

        config = networks.clip_config
        return AfAdapter(config["vision_cfg"]["width"], config["text_cfg"]["width"]).to(networks.device)

    def loss(
        self,
        module: nn.Module,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """Focal losses of the image and of the cells, the cells' mean error, and the alignment of cells."""
        from cascade.localisers.neighbour_tokens import AfAdapter, af_loss

        assert isinstance(module, AfAdapter)
        return af_loss(module, networks.clip(self.sides[0]), looks["tokens"].unbind(dim=1), masks)

    def adapter(self, networks: Networks) -> AfAdapter:
        """The trained weights."""
        from cascade.localisers.neighbour_tokens import build_af_adapter, misfit

        return networks.trained(self.TRAINED, build_af_adapter, lambda adapter: misfit(adapter, networks.clip_config))


LOCALISER = AfClip
