"""SDP+, of CLIP-AD: SDP, and linear layers on the tokens of CLIP's ordinary path; the sum of both maps.

Source: Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for Zero-Shot Anomaly Detection", arXiv
2311.00453, and its public code. The linear layers are those of APRIL-GAN, four of 896 x 640 on ViT-B-16-plus-240. The
authors' were trained on tokens that the next block had changed in place (``aliased``), all but those of the last block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.linear import Linear
from cascade.localisers.protocol import AnomalyMap, Kept, Networks
from cascade.localisers.sdp import Sdp

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.frames import Size

_ROOM = 0.25
"""Beyond [0, 1], on either side, that is left for the mean of both maps before it is clipped."""


@dataclass(frozen=True)
class SdpPlus(Sdp, Linear):
    """The options of SDP."""

    VERSION = 1 + Sdp.VERSION  # raised with either
    ROLES: ClassVar[tuple[str, ...]] = ("clip", "adapter")
    RECIPE = MappingProxyType({"epochs": 5, "batch_size": 8, "learning_rate": 1e-4, "betas": (0.9, 0.999), "seed": 42})

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """As SDP, and ``tokens`` [B, L, 1 + grid², width] float32 of the ordinary path."""
        import torch

        paths = self.paths(networks, inputs[0])
        return {"surgery": torch.stack(paths.surgery, dim=1), "tokens": torch.stack(paths.ordinary, dim=1)}

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """Both as float16."""
        shape = (len(self.layers), 1 + self.grid(networks) ** 2, networks.clip_config["vision_cfg"]["width"])
        return super().look_arrays(networks) | {"tokens": Kept(shape, "float16")}

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """As SDP, and ``logits`` [B, L, 2, grid, grid] float32 of the linear layers, normal first."""
        import torch

        from cascade.localisers.patch_text import grid_logits

        assert texts is not None
        found, scores = super().compare(networks, looks, texts)
        with torch.inference_mode():
            logits = grid_logits(self.adapter(networks), looks["tokens"].unbind(dim=1), texts)
        return found | {"logits": logits.cpu().numpy()}, scores

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """As SDP, and ``logits`` [L, 2, grid, grid] float32."""
        found, grid = super().arrays(networks), self.grid(networks)
        self.adapter(networks)
        return found | {"logits": Kept((len(self.layers), 2, grid, grid), "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The sum of both maps in CLIP's square, smoothed there; brought into [0, 1] in the same order.

        The published map (``ranking``) is the sum over layers of probabilities in [0, 1] and of SDP's similarities,
        which are small and of either sign. So its mean over layers lies in [0, 1] or a little beyond; ``values`` has
        room for a quarter on either side, and clips what lies further out.
        """
        import torch
        from torch.nn import functional

        from cascade.localisers.patch_text import layer_maps
        from cascade.localisers.smoothed import smoothed

        square = (self.sides[0], self.sides[0])
        linear = layer_maps(torch.from_numpy(arrays["logits"])[None], square).sum(dim=1)[0]
        similarity = torch.from_numpy(arrays["similarity"])[None, None]
        surgery = functional.interpolate(similarity, square, mode="bilinear", align_corners=False)[0, 0]
        published = smoothed(linear + surgery, self.sides[0], self.sigma, size)
        values = (published / len(self.layers) + _ROOM) / (1 + 2 * _ROOM)
        return AnomalyMap(values.clip(0, 1).astype(np.float32), published)

    def loss(
        self,
        module: nn.Module,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """Focal and Dice loss of every layer's own map, summed; SDP has no part in it."""
        return self.loss_of(module, looks["tokens"], texts, masks)


LOCALISER = SdpPlus
