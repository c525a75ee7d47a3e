"""Networks of the real classes that are small enough for any test."""

from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from cascade.backbones.clip.mini import MiniClip
from cascade.backbones.features.efficientnet import Trunk
from cascade.tasks.execution.networks import clip_config

SMALL_CLIP: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 448, "layers": 8, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""Dimensions of a small ``open_clip.CLIP``."""
SMALL_TIMM_CLIP: dict[str, Any] = {
    "embed_dim": 64,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""A small ``open_clip.CustomTextCLIP`` with an image tower of timm: 6 blocks of width 64 and patches of 16 pixels."""


def mini_clip_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights file of a mini CLIP, with random weights in half precision."""
    torch.manual_seed(seed)
    state = MiniClip(clip_config("mini"), Trunk()).state_dict()
    return {name: value.half().contiguous() for name, value in state.items()}


def tiny_sam(seed: int = 0) -> Sam:
    """64 px input, a 4 x 4 grid of 32 channels, low-res masks of 16 px; random weights."""
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(
            img_size=64,
            patch_size=16,
            embed_dim=32,
            depth=1,
            num_heads=2,
            out_chans=32,
            use_rel_pos=True,
            window_size=2,
        ),
        PromptEncoder(32, (4, 4), (64, 64), 16),
        MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(2, 32, 2, 64), iou_head_hidden_dim=32),
    )
    with torch.no_grad():
        for name, value in sam.mask_decoder.named_parameters():
            if "hypernetworks" in name and name.endswith("2.weight"):
                value.mul_(30)
    return sam.eval()
