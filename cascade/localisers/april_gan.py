"""APRIL-GAN: tokens of a few CLIP blocks, a trained linear layer on each, compared with two text features.

Source: Chen, Han, Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method", arXiv
2305.17382, and its public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.linear import Linear
from cascade.localisers.on_clip import OnClip
from cascade.localisers.protocol import AnomalyMap, Kept, Networks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.frames import Size


@dataclass(frozen=True)
class AprilGan(OnClip, Linear):
    """CLIP looks at each of ``sides``, and the logits of all are averaged on the finest grid.

    Attributes:
        sides: of CLIP's square input in pixels; the image score comes from the first.
        layers: blocks, counted from 1.
        precision: of CLIP's vision tower.
    """

    VERSION = 2
    ROLES = ("clip", "adapter")
    WORDS = True
    STEP = "clip"

    sides: tuple[int, ...]
    layers: tuple[int, ...]
    precision: Literal["fp32", "bf16"]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """``tokens_<side>`` [B, L, 1 + grid², width] for each side, and ``pooled`` [B, D] of the first; float32."""
        import torch

        from cascade.backbones.clip.backbone import image_tokens

        looks = {}
        for side, images in zip(self.sides, inputs, strict=True):
            tokens = image_tokens(networks.clip(side), images, self.layers, bf16=self.precision == "bf16")
            looks[f"tokens_{side}"] = torch.stack(tokens.blocks, dim=1)
            looks.setdefault("pooled", tokens.pooled)
        return looks

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """``pooled`` as float32 and the tokens as float16."""
        vision = networks.clip_config["vision_cfg"]
        networks.clip(self.sides[0])
        specs = {"pooled": Kept((networks.clip_config["embed_dim"],), "float32")}
        for side in self.sides:
            patches = (side // vision["patch_size"]) ** 2
            specs[f"tokens_{side}"] = Kept((len(self.layers), 1 + patches, vision["width"]), "float16")
        return specs

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``logits`` [B, L, 2, grid, grid] float32, and the pooled feature's probability of "abnormal"."""
        import torch

        from cascade.localisers.patch_text import grid_logits, image_score, mean_logits

        assert texts is not None
        adapter = self.adapter(networks)
        with torch.inference_mode():
            every = [grid_logits(adapter, looks[f"tokens_{side}"].unbind(dim=1), texts) for side in self.sides]
            logits, scores = mean_logits(every), image_score(looks["pooled"], texts)
        return {"logits": logits.cpu().numpy()}, scores.cpu().numpy()

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``logits`` [L, 2, grid, grid] float32: both logits of each block, on the grid of the largest input."""
        patch = networks.clip_config["vision_cfg"]["patch_size"]
        networks.clip(self.sides[0])
        self.adapter(networks)
        grid = max(self.sides) // patch
        return {"logits": Kept((len(self.layers), 2, grid, grid), "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The mean probability over the blocks, and the summed margin of the logits."""
        import torch

        from cascade.localisers.patch_text import anomaly_map, logit_margin

        logits = torch.from_numpy(arrays["logits"])[None]
        return AnomalyMap(anomaly_map(logits, size)[0].numpy(), logit_margin(logits, size)[0].numpy())

    def loss(
        self,
        module: nn.Module,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """Focal and Dice loss of every block's map at the side of the input, summed."""
        return self.loss_of(module, looks[f"tokens_{self.sides[0]}"], texts, masks)


LOCALISER = AprilGan
