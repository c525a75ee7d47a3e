"""UniADet: two learned vectors for the image and two for its cells, on layers of a frozen network; no words.

Source: "UniADet", arXiv 2601.05552, of which no official code was published; published on CLIP, DINOv2-R and DINOv3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.april_gan import AprilGan
from cascade.localisers.protocol import AnomalyMap, Kept, Networks, Trainable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.frames import Size
    from cascade.localisers.class_vectors import ClassVectors


@dataclass(frozen=True)
class UniAdet(Trainable):
    """Blocks of a CLIP tower, or levels of a network of features.

    A block of CLIP speaks for the image by its class token, as it is before the last norm and the projection. A network
    of features gives cells alone, and their mean speaks for the image.

    Attributes:
        sides: of the square input in pixels, one.
        layers: blocks or levels, counted from 1.
        tower: which of the two.
        image_score: the mean over layers of the image's probability, or half of it and half of the map's maximum.
        precision: of CLIP's vision tower.
    """

    VERSION = 1
    ROLES = ("clip", "features", "adapter")
    RECIPE = MappingProxyType(
        {
            "optimiser": "adamw",
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "schedule": "cosine",
            "batch_size": 8,
            "seed": 42,
        }
    )

    sides: tuple[int, ...]
    layers: tuple[int, ...]
    tower: Literal["clip", "features"]
    image_score: Literal["class", "class+map"]
    precision: Literal["fp32", "bf16"]

    @property
    def roles(self) -> tuple[str, ...]:
        """The tower and the vectors."""
        return (self.tower, self.TRAINED)

    def inputs(self, squares: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """[3, side, side] float32, with CLIP's normalisation, or in [−1, 1]."""
        import torch

        if self.tower == "clip":
            return self._clip.inputs(squares)
        return [torch.from_numpy(square).permute(2, 0, 1).float() / 127.5 - 1 for square in squares]

    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What APRIL-GAN sees; or ``level_<i>`` [B, C, grid, grid] of each layer."""
        import torch

        if self.tower == "clip":
            return self._clip.look(networks, inputs)
        with torch.inference_mode():
            levels = networks.features()(inputs[0], [number - 1 for number in self.layers])
        return {f"level_{number}": level.float() for number, level in zip(self.layers, levels, strict=True)}

    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """As APRIL-GAN's; or the levels as float16."""
        if self.tower == "clip":
            return self._clip.look_arrays(networks)
        sizes = zip(self.layers, self._widths(networks), self._grids(networks), strict=True)
        return {f"level_{number}": Kept((width, grid, grid), "float16") for number, width, grid in sizes}

    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """``logits_<i>`` [B, 2, grid, grid] float32 of each layer, and the image score."""
        import torch

        from cascade.localisers.class_vectors import cell_logits, image_logits, layer_maps

        vectors = self.adapter(networks)
        cells, images = self._seen(looks)
        with torch.inference_mode():
            logits = cell_logits(vectors, cells)
            scores = image_logits(vectors, images).softmax(dim=-1)[..., 1].mean(dim=1)
            if self.image_score == "class+map":
                maps = layer_maps(logits, (self.sides[0],) * 2)[:, :, 1].mean(dim=1)
                scores = (scores + maps.flatten(1).amax(dim=1)) / 2
        found = {f"logits_{number}": own.cpu().numpy() for number, own in zip(self.layers, logits, strict=True)}
        return found, scores.cpu().numpy()

    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """``logits_<i>`` [2, grid, grid] float32 of each layer."""
        self.look_arrays(networks)
        self.adapter(networks)
        grids = zip(self.layers, self._grids(networks), strict=True)
        return {f"logits_{number}": Kept((2, grid, grid), "float32") for number, grid in grids}

    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The mean over layers of the probability, and of the margin of the logits."""
        import torch

        from cascade.localisers.class_vectors import layer_maps, mean_margin

        logits = [torch.from_numpy(arrays[f"logits_{number}"])[None] for number in self.layers]
        values = layer_maps(logits, size)[0, :, 1].mean(dim=0)
        return AnomalyMap(values.numpy(), mean_margin(logits, size)[0].numpy())

    def adapter(self, networks: Networks) -> ClassVectors:
        """The trained vectors."""
        from cascade.localisers.class_vectors import build_vectors, misfit

        return networks.trained(
            self.TRAINED, build_vectors, lambda vectors: misfit(vectors, self._widths(networks), self.layers)
        )

    def untrained(self, networks: Networks) -> ClassVectors:
        """Vectors drawn with a deviation of 0.02."""
        from cascade.localisers.class_vectors import ClassVectors

        return ClassVectors(self._widths(networks)).to(networks.device)

    def loss(
        self,
        module: nn.Module,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """Cross entropy of the image, focal loss and Dice losses of the map at the side of the input."""
        from cascade.localisers.class_vectors import ClassVectors, cell_logits, decoupled_loss, image_logits, layer_maps

        assert isinstance(module, ClassVectors)
        cells, images = self._seen(looks)
        maps = layer_maps(cell_logits(module, cells), (self.sides[0],) * 2)
        return decoupled_loss(image_logits(module, images), maps, masks)

    @property
    def _clip(self) -> AprilGan:
        """What looks at an image in the same way."""
        return AprilGan(self.sides, self.layers, self.precision)

    def _seen(self, looks: Mapping[str, torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Cells [B, grid², width], and what speaks for the image [B, width], of each layer."""
        if self.tower == "clip":
            blocks = looks[f"tokens_{self.sides[0]}"].unbind(dim=1)
            return [tokens[:, 1:] for tokens in blocks], [tokens[:, 0] for tokens in blocks]
        cells = [looks[f"level_{number}"].flatten(2).transpose(1, 2) for number in self.layers]
        return cells, [own.mean(dim=1) for own in cells]

    def _widths(self, networks: Networks) -> list[int]:
        if self.tower == "clip":
            return [networks.clip_config["vision_cfg"]["width"]] * len(self.layers)
        return [networks.features().channels[number - 1] for number in self.layers]

    def _grids(self, networks: Networks) -> list[int]:
        if self.tower == "clip":
            return [self.sides[0] // networks.clip_config["vision_cfg"]["patch_size"]] * len(self.layers)
        return [self.sides[0] // networks.features().strides[number - 1] for number in self.layers]


LOCALISER = UniAdet
