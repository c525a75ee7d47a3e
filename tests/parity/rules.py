"""The deterministic weights and images behind the golden files."""

import os
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from cascade.backbones.clip.backbone import Positions, build_clip

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_files(folder: str, pattern: str = "*.npz") -> list[Path]:
    """The committed files, and those of ``$CASCADE_GOLDEN`` if it is set."""
    files = {path.name: path for path in (GOLDEN / folder).glob(pattern)}
    if more := os.environ.get("CASCADE_GOLDEN"):
        files |= {path.name: path for path in (Path(more) / folder).glob(pattern)}
    return [files[name] for name in sorted(files)]


def _draw(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32((salt + name).encode()))
    return rng.standard_normal(shape).astype(np.float32)


def sam_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    x, last = _draw(name, shape), name.split(".")[-1]
    if last == "positional_encoding_gaussian_matrix":
        return x
    embeddings = {
        "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.iou_token.weight",
        "mask_decoder.mask_tokens.weight",
    }
    if (
        last in {"pos_embed", "rel_pos_h", "rel_pos_w"}
        or name in embeddings
        or name.startswith("prompt_encoder.point_embeddings.")
    ):
        return np.float32(0.02) * x
    if last == "bias":
        value = np.float32(0.01) * x
        for index, shift in enumerate([0.3, 0.7, 0.6, 0.7]):
            if name == f"mask_decoder.output_hypernetworks_mlps.{index}.layers.2.bias":
                value -= np.float32(shift)
        if name == "mask_decoder.iou_prediction_head.layers.2.bias":
            value += np.array([0.5, -0.3, 0.6, 0.5], dtype=np.float32)
        return value
    if len(shape) == 1:
        return 1 + np.float32(0.1) * x
    transposed = name in {"mask_decoder.output_upscaling.0.weight", "mask_decoder.output_upscaling.3.weight"}
    fan = shape[0] * shape[2] * shape[3] if transposed else int(np.prod(shape[1:]))
    return x * np.float32(1 / np.sqrt(fan))


def golden_sam() -> Sam:
    """A small encoder; prompt encoder and mask decoder have the published dimensions."""
    sam = Sam(
        ImageEncoderViT(
            img_size=1024,
            patch_size=16,
            embed_dim=32,
            depth=4,
            num_heads=2,
            mlp_ratio=4,
            qkv_bias=True,
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(1, 3),
            out_chans=256,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        PromptEncoder(256, (64, 64), (1024, 1024), 16),
        MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
        [123.675, 116.28, 103.53],
        [58.395, 57.12, 57.375],
    )
    state = {name: torch.from_numpy(sam_weight(name, tuple(value.shape))) for name, value in sam.state_dict().items()}
    sam.load_state_dict(state)
    return sam.eval()


def sam_image(seed: int, height: int, width: int, channels: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    background = r.integers(60, 200, channels)
    noise = r.integers(0, 9, (height, width, channels))
    image = np.broadcast_to(background, (height, width, channels)).copy()
    for _ in range(3):
        rows = r.integers(height // 10, height // 4)
        columns = r.integers(width // 10, width // 4)
        top = r.integers(0, height - rows)
        left = r.integers(0, width - columns)
        image[top : top + rows, left : left + columns] = r.integers(0, 248, channels)
    image = (image + noise).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if channels == 1 else image


def formula_embedding(seed: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    u = r.standard_normal((3, 256)).astype(np.float32)
    noise = r.standard_normal((256, 64, 64)).astype(np.float32)
    e = np.broadcast_to(u[0][:, None, None], (256, 64, 64)).copy()
    top, left = r.integers(8, 32, 2)
    rows, columns = r.integers(8, 24, 2)
    e[:, top : top + rows, left : left + columns] = u[1][:, None, None]
    return (np.float32(3) * (e + np.float32(0.05) * noise))[None]


def clip_weight(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    if name == "logit_scale":
        return np.array(np.log(1 / 0.07), dtype=np.float32)
    x = _draw(name, shape, salt)
    learned = ("ctx_pos", "ctx_neg", "state_prompt_embedding", "compound_prompts_text.")
    if name.endswith(("positional_embedding", "class_embedding", "token_embedding.weight")) or name.startswith(learned):
        return x * np.float32(0.5)
    if name.endswith(("to_q.weight", "to_k.weight")):
        x = x * np.float32(2)
    if len(shape) >= 2:
        return x * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    if name.endswith("bias"):
        return x * np.float32(0.01)
    return 1 + np.float32(0.1) * x


def golden_clip(config: dict, salt: str, positions: Positions = "bicubic") -> torch.nn.Module:
    """The tiny CLIP of a golden file's ``config_json``, at the size that its images were run at."""
    bare = open_clip.CLIP(
        config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=config["quick_gelu"]
    )
    state = {
        name: torch.from_numpy(clip_weight(name, tuple(value.shape), salt)) for name, value in bare.state_dict().items()
    }
    side = int(config["image_size_run"])
    return build_clip(config, state, side, quick_gelu=config["quick_gelu"], positions=positions)
