"""Segment Anything networks of every size, from one table of dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from cascade.backbones.sam.stem import ConvPatchEmbed


@dataclass(frozen=True)
class _Dimensions:
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    window: int = 14
    embed_dim: int = 256
    mask_channels: int = 16
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_hidden: int = 256
    relative_positions: bool = True
    convolutional_stem: bool = False


_TABLE = {
    # As in ``segment_anything.build_sam``.
    "vit_b": _Dimensions(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": _Dimensions(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": _Dimensions(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "mini": _Dimensions(
        width=128,
        depth=6,
        heads=4,
        global_blocks=(2, 5),
        image_size=512,
        window=8,
        embed_dim=128,
        decoder_heads=4,
        decoder_mlp=256,
        iou_hidden=128,
        # A small network learns edges from few images when convolutions look for them, and where it is from its
        # absolute positions alone.
        relative_positions=False,
        convolutional_stem=True,
    ),
}

PATCH = 16
"""Pixels per side of an encoder patch; the embedding has ``image_size / 16`` cells per side."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""RGB mean that SAM subtracts, on the 0..255 scale."""

PIXEL_STD = (58.395, 57.12, 57.375)
"""RGB standard deviation that SAM divides by, on the 0..255 scale."""

SAM_MODELS: tuple[str, ...] = tuple(_TABLE)
"""Names that ``build_sam`` knows."""


def input_side(name: str) -> int:
    """Side in pixels of the square input of a model."""
    return _dimensions(name).image_size


def embedding_shape(name: str) -> tuple[int, int, int]:
    """[C, grid, grid] of a model's image embedding; its low-res masks have 4·grid pixels a side."""
    grid = input_side(name) // PATCH
    return (_dimensions(name).embed_dim, grid, grid)


def build_sam(name: str) -> Sam:
    """A Segment Anything network with random weights, in evaluation mode.

    ``vit_b``, ``vit_l`` and ``vit_h`` have the dimensions, and so the state-dict names and shapes, of the
    published checkpoints. ``mini`` takes 512 px squares, embeds them as ``[128, 32, 32]`` and returns low-res
    masks of 128 px; its patch embedding is a :class:`ConvPatchEmbed`.

    Raises:
        ValueError: ``name`` is not one of ``SAM_MODELS``.
    """
    dims = _dimensions(name)
    cells = dims.image_size // PATCH
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=dims.image_size,
            patch_size=PATCH,
            embed_dim=dims.width,
            depth=dims.depth,
            num_heads=dims.heads,
            mlp_ratio=4,
            out_chans=dims.embed_dim,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=dims.relative_positions,
            window_size=dims.window,
            global_attn_indexes=dims.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=dims.embed_dim,
            image_embedding_size=(cells, cells),
            input_image_size=(dims.image_size, dims.image_size),
            mask_in_chans=dims.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer_dim=dims.embed_dim,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=dims.embed_dim,
                num_heads=dims.decoder_heads,
                mlp_dim=dims.decoder_mlp,
            ),
            iou_head_depth=3,
            iou_head_hidden_dim=dims.iou_hidden,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    if dims.convolutional_stem:
        sam.image_encoder.patch_embed = ConvPatchEmbed(dims.width)
    return sam.eval()


def _dimensions(name: str) -> _Dimensions:
    if name not in _TABLE:
        raise ValueError(f"unknown SAM model {name!r}; valid: {', '.join(SAM_MODELS)}")
    return _TABLE[name]
