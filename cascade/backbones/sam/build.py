"""Segment Anything networks of every size, from one table of dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from cascade.backbones.sam.pyramid import CELL, PyramidEncoder


@dataclass(frozen=True)
class _Transformer:
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


@dataclass(frozen=True)
class _Dimensions:
    encoder: _Transformer | None
    """None for the pyramid on a frozen trunk."""
    image_size: int = 1024
    cell: int = 16
    embed_dim: int = 256
    decoder_heads: int = 8
    decoder_narrowing: int = 2
    """Channels of the embedding over those of the decoder's cross attentions."""
    decoder_mlp: int = 2048
    iou_hidden: int = 256


_TABLE = {
    # As in ``segment_anything.build_sam``.
    "vit_b": _Dimensions(_Transformer(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))),
    "vit_l": _Dimensions(_Transformer(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))),
    "vit_h": _Dimensions(_Transformer(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))),
    "mini": _Dimensions(
        None,
        image_size=512,
        cell=CELL,
        embed_dim=64,
        decoder_heads=1,
        decoder_narrowing=1,
        decoder_mlp=256,
        iou_hidden=64,
    ),
}

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""RGB mean that SAM subtracts, on the 0..255 scale."""

PIXEL_STD = (58.395, 57.12, 57.375)
"""RGB standard deviation that SAM divides by, on the 0..255 scale."""

MIDDLE = 127.5
"""What the pyramid's SAM subtracts and divides by, since its trunk takes RGB in [−1, 1]."""

SAM_MODELS: tuple[str, ...] = tuple(_TABLE)
"""Names that ``build_sam`` knows."""


def input_side(name: str) -> int:
    """Side in pixels of the square input of a model."""
    return _dimensions(name).image_size


def embedding_shape(name: str) -> tuple[int, int, int]:
    """[C, grid, grid] of a model's image embedding; its low-res masks have 4·grid pixels a side."""
    dims = _dimensions(name)
    grid = dims.image_size // dims.cell
    return (dims.embed_dim, grid, grid)


def trunk_of(name: str) -> str | None:
    """The registered name of the frozen weights that a model stands on, beside its own; None for most."""
    return "efficientnet_lite0" if _dimensions(name).encoder is None else None


def build_sam(name: str, trunk: Mapping[str, Tensor] | None = None) -> Sam:
    """A Segment Anything network with random weights, in evaluation mode.

    ``vit_b``, ``vit_l`` and ``vit_h`` have the dimensions, and so the state-dict names and shapes, of the
    published checkpoints. ``mini`` takes 512 px squares, embeds them as ``[64, 64, 64]`` by a
    :class:`PyramidEncoder` and returns low-res masks of 256 px.

    Args:
        name: of the model.
        trunk: the weights that :func:`trunk_of` names, which no state dict holds; random ones if ``None``.

    Raises:
        ValueError: ``name`` is not one of ``SAM_MODELS``, or ``trunk`` holds another network.
    """
    dims = _dimensions(name)
    cells = dims.image_size // dims.cell
    sam = Sam(
        image_encoder=(
            PyramidEncoder(dims.image_size, dims.embed_dim, trunk)
            if dims.encoder is None
            else _vision_transformer(dims, dims.encoder)
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=dims.embed_dim,
            image_embedding_size=(cells, cells),
            input_image_size=(dims.image_size, dims.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer_dim=dims.embed_dim,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=dims.embed_dim,
                num_heads=dims.decoder_heads,
                mlp_dim=dims.decoder_mlp,
                attention_downsample_rate=dims.decoder_narrowing,
            ),
            iou_head_depth=3,
            iou_head_hidden_dim=dims.iou_hidden,
        ),
        pixel_mean=[MIDDLE] * 3 if dims.encoder is None else list(PIXEL_MEAN),
        pixel_std=[MIDDLE] * 3 if dims.encoder is None else list(PIXEL_STD),
    )
    return sam.eval()


def _vision_transformer(dims: _Dimensions, encoder: _Transformer) -> nn.Module:
    own: nn.Module = ImageEncoderViT(
        img_size=dims.image_size,
        patch_size=dims.cell,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        mlp_ratio=4,
        out_chans=dims.embed_dim,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=encoder.global_blocks,
    )
    return own


def _dimensions(name: str) -> _Dimensions:
    if name not in _TABLE:
        raise ValueError(f"unknown SAM model {name!r}; valid: {', '.join(SAM_MODELS)}")
    return _TABLE[name]
