"""ClipSAM's unified multi-scale cross-modal interaction, as it is read here; no code of it was published.

See :mod:`cascade.localisers.cross_modal` for what is ClipSAM's and what is ours. CLIP's look, the sentences and the way
from logits to a map are those of APRIL-GAN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.april_gan import AprilGan
from cascade.localisers.on_clip import OnClip
from cascade.localisers.protocol import AnomalyMap, Kept, Networks, Trainable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.frames import Size
    from cascade.localisers.cross_modal import CrossModal


@dataclass(frozen=True)
class ClipSamUmci(OnClip, Trainable):
    """Tokens of a few blocks in attention with the words, along strips and at two scales. Our reading.

    Attributes:
        sides: of CLIP's square input in pixels, one.
        layers: blocks, counted from 1.
        precision: of CLIP's vision tower.
    """

    VERSION = 1
    ROLES = ("clip", "adapter")
    WORDS = True
    STEP = "umci-our-reading"
    RECIPE = MappingProxyType({"batch_size": 8, "learning_rate": 1e-4})

    sides: tuple[int, ...]
    layers: tuple[int, ...]
    precision: Literal["fp32", "bf16"]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """As APRIL-GAN's: ``tokens_<side>`` [B, L, 1 + grid², width] and ``pooled`` [B, D]; float32."""
        return self._plain.look(networks, inputs)

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """As APRIL-GAN's."""
        return self._plain.look_arrays(networks)

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``logits`` [B, L, 2, grid, grid] float32, and the pooled feature's probability of "abnormal"."""
        import torch

        from cascade.localisers.patch_text import image_score

        assert texts is not None
        with torch.inference_mode():
            logits = self.adapter(networks)(looks[f"tokens_{self.sides[0]}"].unbind(dim=1), texts)
            scores = image_score(looks["pooled"], texts)
        return {"logits": logits.cpu().numpy()}, scores.cpu().numpy()

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``logits`` [L, 2, grid, grid] float32."""
        grid = self.grid(networks)
        networks.clip(self.sides[0])
        self.adapter(networks)
        return {"logits": Kept((len(self.layers), 2, grid, grid), "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """As APRIL-GAN's: the mean probability over the blocks, and the summed margin of the logits."""
        return self._plain.map_of(arrays, size)

    def adapter(self, networks: Networks) -> CrossModal:
        """The trained stages."""
        from cascade.localisers.cross_modal import build_cross_modal, misfit

        def fault(stages: CrossModal) -> str:
            return misfit(stages, networks.clip_config, self.layers)

        return networks.trained(self.TRAINED, build_cross_modal, fault)

    def untrained(self, networks: Networks) -> CrossModal:
        """A stage for each block, as torch draws it."""
        from cascade.localisers.cross_modal import CrossModal

        model = networks.clip_config
        stages = CrossModal(len(self.layers), model["vision_cfg"]["width"], model["embed_dim"])
        return stages.to(networks.device)

    def loss(
        self,
        module: nn.Module,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """Focal and Dice loss of every block's map at the side of the input, summed."""
        from cascade.localisers.patch_text import layer_maps
        from cascade.losses import segmentation_loss

        assert texts is not None
        side = self.sides[0]
        logits = module(looks[f"tokens_{side}"].unbind(dim=1), texts)
        return segmentation_loss(layer_maps(logits, (side, side)), masks)

    @property
    def _plain(self) -> AprilGan:
        return AprilGan(self.sides, self.layers, self.precision)


LOCALISER = ClipSamUmci
