"""What localisers share whose own weights are a linear layer for each chosen block of CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade.localisers.protocol import Networks, Trainable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.localisers.patch_text import LinearAdapter


class Linear(Trainable):
    """Its weights, new and trained.

    Attributes:
        layers: blocks, counted from 1.
    """

    layers: tuple[int, ...]

    def adapter(self, networks: Networks) -> LinearAdapter:
        """The trained linear layers."""
        from cascade.localisers.patch_text import build_adapter, misfit

        def fault(adapter: LinearAdapter) -> str:
            return misfit(adapter, networks.clip_config, self.layers)

        return networks.trained(self.TRAINED, build_adapter, fault)

    def untrained(self, networks: Networks) -> LinearAdapter:
        """A linear layer for each block, as torch draws it."""
        from cascade.localisers.patch_text import LinearAdapter

        model = networks.clip_config
        layers = LinearAdapter(len(self.layers), model["vision_cfg"]["width"], model["embed_dim"])
        return layers.to(networks.device)

    def loss_of(
        self, module: nn.Module, tokens: torch.Tensor, texts: torch.Tensor | None, masks: torch.Tensor
    ) -> torch.Tensor:
        """Focal and Dice loss of every block's map at the side of the first input, summed.

        Args:
            module: the linear layers.
            tokens: [B, L, 1 + grid², width].
            texts: [B, D, 2] unit columns.
            masks: [B, side, side] bool.
        """
        from cascade.localisers.patch_text import LinearAdapter, grid_logits, layer_maps
        from cascade.losses import segmentation_loss

        assert isinstance(module, LinearAdapter)
        assert texts is not None
        side = self.sides[0]
        return segmentation_loss(layer_maps(grid_logits(module, tokens.unbind(dim=1), texts), (side, side)), masks)
