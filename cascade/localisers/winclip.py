"""WinCLIP: CLIP's feature of every small window of an image, compared with two text features; nothing is trained.

Source: Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023 (arXiv 2303.14814),
zero-shot, in the form of anomalib's code: the authors published none. A cell is as anomalous as the harmonic mean of
the windows that cover it, which one normal window pulls down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.on_clip import OnClip
from cascade.localisers.protocol import AnomalyMap, Kept, Networks

if TYPE_CHECKING:
    import torch

    from cascade.frames import Size

TEMPERATURE = 0.07
"""By which cosines are divided before the softmax, in anomalib's code."""


@dataclass(frozen=True)
class WinClip(OnClip):
    """Windows of each of ``scales``, and the whole image.

    Anomalib scales float images, whose overshoot at edges it keeps; here a square has 8 bits.

    Attributes:
        sides: of CLIP's square input in pixels, one.
        scales: sides of the windows in cells.
        precision: of CLIP's vision tower.
    """

    VERSION = 1
    ROLES = ("clip",)
    WORDS = True

    sides: tuple[int, ...]
    scales: tuple[int, ...]
    precision: Literal["fp32", "bf16"]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """``pooled`` [B, D], and ``windows_<scale>`` [B, (grid − scale + 1)², D] for each scale; float32."""
        from cascade.backbones.clip.windows import window_features

        found = window_features(networks.clip(self.sides[0]), inputs[0], self.scales, bf16=self.precision == "bf16")
        windows = {f"windows_{scale}": each for scale, each in zip(self.scales, found.windows, strict=True)}
        return {"pooled": found.pooled, **windows}

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """``pooled`` as float32 and the windows as float16."""
        grid, width = self.grid(networks), networks.clip_config["embed_dim"]
        networks.clip(self.sides[0])
        windows = {f"windows_{scale}": Kept(((grid - scale + 1) ** 2, width), "float16") for scale in self.scales}
        return {"pooled": Kept((width,), "float32"), **windows}

    def text_feature(self, sentences: torch.Tensor) -> torch.Tensor:
        """The mean of the embeddings as they are, normalised: longer ones weigh more."""
        from torch.nn import functional

        return functional.normalize(sentences.mean(dim=0), dim=0)

    @property
    def text_options(self) -> dict[str, Any]:
        """That it is not the mean of unit vectors."""
        return {"representative": "mean of embeddings that are not normalised"}

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``scores`` [B, 1 + S, grid, grid] float32 in (0, 1): the whole image's, its own score, and each scale's."""
        import torch

        assert texts is not None
        grid = self.grid(networks)
        with torch.inference_mode():
            whole = abnormal_probability(looks["pooled"][:, None], texts)
            found = [whole[:, :, None].expand(-1, grid, grid)]
            for scale in self.scales:
                found.append(cell_scores(abnormal_probability(looks[f"windows_{scale}"], texts), grid, scale))
            return {"scores": torch.stack(found, dim=1).cpu().numpy()}, whole[:, 0].cpu().numpy()

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``scores`` [1 + S, grid, grid] float32."""
        grid = self.grid(networks)
        networks.clip(self.sides[0])
        return {"scores": Kept((1 + len(self.scales), grid, grid), "float32")}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The harmonic mean of the whole image's score and the scales', bilinearly."""
        import torch

        values = score_map(torch.from_numpy(arrays["scores"])[None], size)[0].numpy()
        return AnomalyMap(values, values)


def abnormal_probability(features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """[B, n] in (0, 1): softmax of cosine / 0.07 of features [B, n, D] and ``texts`` [B, D, 2], normal and abnormal."""
    from torch.nn import functional

    logits = functional.normalize(features.float(), dim=-1) @ texts / TEMPERATURE
    return logits.softmax(dim=-1)[..., 1]


def cell_scores(windows: torch.Tensor, grid: int, scale: int) -> torch.Tensor:
    """[B, grid, grid]: for each cell, the harmonic mean of the scores of the windows that cover it.

    Args:
        windows: [B, (grid − scale + 1)²] in (0, 1), row by row.
        grid: cells along a side.
        scale: of a window, in cells.
    """
    import torch
    from torch.nn import functional

    places = grid - scale + 1
    inverse = (1 / windows).reshape(-1, 1, places, places)
    kernel = torch.ones(1, 1, scale, scale, device=windows.device)
    covering = functional.conv_transpose2d(torch.ones_like(inverse), kernel)
    return (covering / functional.conv_transpose2d(inverse, kernel))[:, 0]


def grid_map(scores: torch.Tensor) -> torch.Tensor:
    """[B, grid, grid]: the harmonic mean over ``scores`` [B, n, grid, grid]."""
    return scores.shape[1] / (1 / scores).sum(dim=1)


def score_map(scores: torch.Tensor, size: Size) -> torch.Tensor:
    """[B, height, width] in (0, 1): :func:`grid_map`, upsampled bilinearly without aligned corners."""
    from torch.nn import functional

    return functional.interpolate(grid_map(scores)[:, None], size, mode="bilinear", align_corners=False)[:, 0]


LOCALISER = WinClip
