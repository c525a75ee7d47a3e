"""SDP, of CLIP-AD: tokens of CLIP Surgery's second path, in stages, against two representative texts; no training.

Source: Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for Zero-Shot Anomaly Detection", arXiv
2311.00453, and its public code. The class tokens of all but the last layer, which weigh the two texts, come from a
tensor that the next block has changed in place; ``aliased`` says whether that is repeated.

The published score of an image is the sum of the text's probability and the map's largest value, each scaled by the
smallest and largest of a class's test images. Here an image is judged alone: its score is the text's probability, and
the preset takes the mean of that and the map's largest value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.on_clip import OnClip
from cascade.localisers.protocol import AnomalyMap, Kept, Networks

if TYPE_CHECKING:
    import torch

    from cascade.backbones.clip.dual_path import DualPath
    from cascade.frames import Size

_TEMPERATURE = 100.0


@dataclass(frozen=True)
class Sdp(OnClip):
    """Staged dual path.

    Attributes:
        sides: of CLIP's square input in pixels, one.
        layers: blocks, counted from 1.
        aliased: whether ordinary tokens carry the attention of the next block, as in the authors' code.
        representative: what stands for the sentences; see there.
        dbscan_eps: see :func:`cascade.localisers.representative.representative`.
        dbscan_min_samples: the same.
        sigma: of the Gaussian on the map, in pixels of the square.
        precision: of CLIP's vision tower.
    """

    VERSION = 1
    ROLES: ClassVar[tuple[str, ...]] = ("clip",)
    WORDS = True

    sides: tuple[int, ...]
    layers: tuple[int, ...]
    aliased: bool
    representative: Literal["mean", "dbscan", "pca", "kde", "mean_shift"]
    dbscan_eps: float
    dbscan_min_samples: int
    sigma: float
    precision: Literal["fp32", "bf16"]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """``surgery`` [B, L, 1 + grid², D] float32: the second path's tokens in the space of text, not normalised."""
        import torch

        return {"surgery": torch.stack(self.paths(networks, inputs[0]).surgery, dim=1)}

    def paths(self, networks: Networks, images: torch.Tensor) -> DualPath:
        """Both paths of a batch of images."""
        from cascade.backbones.clip.dual_path import dual_path, stage_starts

        model, depth = networks.clip(self.sides[0]), networks.clip_config["vision_cfg"]["layers"]
        bf16 = self.precision == "bf16"
        return dual_path(model, images, self.layers, fresh=stage_starts(depth), aliased=self.aliased, bf16=bf16)

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """``surgery`` as float16."""
        shape = (len(self.layers), 1 + self.grid(networks) ** 2, networks.clip_config["embed_dim"])
        networks.clip(self.sides[0])
        return {"surgery": Kept(shape, "float16")}

    @property
    def text_options(self) -> dict[str, Any]:
        """How the representative is selected."""
        dbscan = {"dbscan_eps": self.dbscan_eps, "dbscan_min_samples": self.dbscan_min_samples}
        return {"representative": self.representative} | (dbscan if self.representative == "dbscan" else {})

    def text_feature(self, sentences: torch.Tensor) -> torch.Tensor:
        """The representative vector of the sentences."""
        from cascade.localisers.representative import representative

        return representative(sentences, self.representative, self.dbscan_eps, self.dbscan_min_samples)

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``similarity`` [B, grid, grid] float32 to "abnormal" after surgery, summed over layers.

        The score is the probability of "abnormal" that the last layer's class token has.
        """
        import torch
        from torch.nn import functional

        from cascade.localisers.surgery import feature_surgery

        assert texts is not None
        grid = self.grid(networks)
        with torch.inference_mode():
            features = functional.normalize(looks["surgery"].float(), dim=-1)
            layers = [feature_surgery(own, texts)[:, 1:, 1] for own in features.unbind(dim=1)]
            similarity = torch.stack(layers).sum(dim=0).reshape(-1, grid, grid)
            logits = _TEMPERATURE * features[:, -1, :1] @ texts
            scores = logits.softmax(dim=-1)[:, 0, 1]
        return {"similarity": similarity.cpu().numpy()}, scores.cpu().numpy()

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``similarity`` [grid, grid] float32."""
        grid = self.grid(networks)
        networks.clip(self.sides[0])
        return {"similarity": Kept((grid, grid), "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The similarity, upsampled to CLIP's square and smoothed there, and brought into (0, 1) in the same order.

        ``ranking`` is the published map. The similarity is small and has no bounds that are reached; 100 times the
        difference of both texts' mean over layers, x, becomes (1 + x / (1 + |x|)) / 2, which a float16 tells apart
        longer than a softmax of it.
        """
        import torch

        from cascade.localisers.smoothed import smoothed

        published = smoothed(torch.from_numpy(arrays["similarity"]), self.sides[0], self.sigma, size)
        margin = 2 * _TEMPERATURE * published / len(self.layers)  # the normal text's similarity is the negative
        return AnomalyMap(((1 + margin / (1 + np.abs(margin))) / 2).astype(np.float32), published)


LOCALISER = Sdp
