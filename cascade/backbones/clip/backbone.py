"""An open_clip model as the CLIP methods need it: tokens after chosen blocks, pooled image features, text features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import resize_pos_embed
from torch import nn
from torchvision.transforms import functional as vision

from cascade.backbones.clip.mini import MiniClip
from cascade.backbones.features.efficientnet import Trunk

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
Positions = Literal["bicubic", "bilinear"]
_SENTENCES_AT_ONCE = 64


@dataclass(frozen=True)
class ImageTokens:
    """Tokens of a batch of images.

    Attributes:
        blocks: for each chosen block, [B, 1 + grid², width]: the residual stream after it, class token first; neither
            the final layer norm nor the projection has been applied.
        pooled: [B, D], the projected class token, not normalised.
    """

    blocks: tuple[torch.Tensor, ...]
    pooled: torch.Tensor


def model_config(name: str) -> dict[str, Any] | None:
    """open_clip's configuration of a model that it knows, ``None`` if it does not; nothing is downloaded."""
    config: dict[str, Any] | None = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    return config


def model_names() -> list[str]:
    """Names of the models of open_clip that can be read here."""
    return [name for name in open_clip.list_models() if unreadable(open_clip.get_model_config(name)) is None]


def unreadable(config: Mapping[str, Any]) -> str | None:
    """Why a model of open_clip cannot be read here: not a transformer of its own, or words that need a download."""
    vision_config, text_config = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision_config:
        return "its image tower is one of timm's"
    if not isinstance(vision_config["layers"], int):
        return "its image tower is a ResNet, which has no blocks of tokens"
    if "hf_model_name" in text_config or "hf_tokenizer_name" in text_config:
        return "its words would have to be downloaded from a hub"
    if config.get("custom_text") or "multimodal_cfg" in config:
        return "its text tower has a form of its own"
    return None


def origin(name: str, tag: str) -> str | None:
    """Where open_clip gets the weights of a tag from, ``None`` if it does not know; nothing is downloaded."""
    return open_clip.get_pretrained_url(name, tag) or None


def normalises_alike(name: str, tag: str) -> bool:
    """Whether the weights of a tag were trained on images normalised as here, as far as open_clip knows."""
    known = open_clip.get_pretrained_cfg(name, tag)
    return tuple(known.get("mean") or MEAN) == MEAN and tuple(known.get("std") or STD) == STD


def build_clip(
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    image_side: int,
    *,
    quick_gelu: bool,
    trunk: Mapping[str, torch.Tensor] | None = None,
    positions: Positions = "bicubic",
) -> nn.Module:
    """An open_clip model whose vision tower runs on square images of ``image_side`` pixels, or a :class:`MiniClip`.

    Args:
        config: ``embed_dim``, ``vision_cfg`` and ``text_cfg``.
        state: state dict at the native image size, any float dtype.
        image_side: side of the square input, a multiple of the patch size.
        quick_gelu: x·sigmoid(1.702 x) in place of GELU.
        trunk: state dict of the trunk that ``vision_cfg`` names, if it does.
        positions: how the visual positional embedding is resized, its class row kept: ``bicubic`` with antialiasing, as
            APRIL-GAN does, or ``bilinear`` without, as AnomalyCLIP does.

    Raises:
        ValueError: the state dict does not fit the configuration, or ``image_side`` does not fit the patches.
    """
    vision_config = dict(config["vision_cfg"]) | {"image_size": image_side}
    if image_side % vision_config["patch_size"]:
        raise ValueError(
            f"an image side of {image_side} is no multiple of the patch side {vision_config['patch_size']}"
        )
    weights = {name.removeprefix("module."): value.float() for name, value in state.items()}  # of several GPUs
    if trunk is not None:
        model: nn.Module = MiniClip(config, Trunk(trunk))
    else:
        model = open_clip.CLIP(config["embed_dim"], vision_config, config["text_cfg"], quick_gelu=quick_gelu)
    try:
        if trunk is None:
            resize_pos_embed(weights, model, interpolation=positions, antialias=positions == "bicubic")
        model.load_state_dict(weights)
    except Exception as error:  # positions of any shape may be in a file, and go wrong in as many ways
        raise ValueError(" ".join(str(error).split())[:300]) from error
    if trunk is None:
        _sequence_first(model.visual.transformer)  # type: ignore[union-attr]
    model.eval().requires_grad_(False)
    return model


def _sequence_first(transformer: Any) -> None:
    """Let a tower of open_clip keep its tokens as [P, B, width], as its published weights were trained.

    Batch first, ``nn.MultiheadAttention`` works on a transposed view, which a linear layer under autocast folds into
    no matrix product: it copies its weight for every token (1,370 times 6 MB in ViT-L at 518 px). Towers with another
    attention stay as they are.
    """
    if not all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in transformer.resblocks):
        return
    transformer.batch_first = False
    for block in transformer.resblocks:
        block.attn.batch_first = False


def compile_blocks(model: nn.Module) -> None:
    """Let the blocks of the vision tower run as ``torch.compile`` makes them: one for all, for each size of a batch."""
    for block in model.visual.transformer.resblocks:  # type: ignore[union-attr]
        block.compile()


def image_tensor(square: NDArray[np.uint8]) -> torch.Tensor:
    """A square photograph [side, side, 3] as CLIP's input [3, side, side] float32, with CLIP's normalisation."""
    normalised: torch.Tensor = vision.normalize(vision.to_tensor(square), list(MEAN), list(STD))
    return normalised


@torch.inference_mode()
def image_tokens(model: nn.Module, images: torch.Tensor, layers: Sequence[int], *, bf16: bool = False) -> ImageTokens:
    """Tokens after ``layers`` (blocks counted from 1) and the pooled feature, float32, of [B, 3, side, side] images."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        result = model.forward_intermediates(  # type: ignore[operator]
            image=images,
            image_indices=[layer - 1 for layer in layers],
            normalize=False,
            image_output_fmt="NLC",
            image_output_extra_tokens=True,
        )
    blocks = tuple(
        torch.cat([prefix, patches], dim=1).float()
        for prefix, patches in zip(result["image_intermediates_prefix"], result["image_intermediates"], strict=True)
    )
    return ImageTokens(blocks, result["image_features"].float())


def projected(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """[..., D] of tokens [..., width]: the final layer norm and the projection, which are made for the class token."""
    visual: Any = model.visual
    found: torch.Tensor
    found = visual.projected(tokens) if isinstance(model, MiniClip) else visual.ln_post(tokens) @ visual.proj
    return found


@torch.inference_mode()
def sentence_features(model: nn.Module, sentences: Sequence[str]) -> torch.Tensor:
    """[n, D] float32: the embeddings of sentences as the text tower gives them, not normalised."""
    parts = [
        model.encode_text(part)  # type: ignore[operator]
        for part in torch.split(tokenised(model, sentences), _SENTENCES_AT_ONCE)
    ]
    return torch.cat(parts).float()


def mean_direction(features: torch.Tensor) -> torch.Tensor:
    """[D] of length 1: the mean of [n, D], each normalised before."""
    return nn.functional.normalize(nn.functional.normalize(features, dim=-1).mean(dim=0), dim=0)


def mean_text_feature(model: nn.Module, sentences: Sequence[str]) -> torch.Tensor:
    """[D]: each sentence's embedding normalised, their mean normalised again; float32."""
    return mean_direction(sentence_features(model, sentences))


def tokenised(model: nn.Module, sentences: Sequence[str]) -> torch.Tensor:
    """[n, context length] token ids on the model's device: start, words, end, zeros."""
    tokens: torch.Tensor = _tokenizer(int(model.context_length))(list(sentences))  # type: ignore[arg-type]
    return tokens.to(next(model.parameters()).device)


@lru_cache(maxsize=2)
def _tokenizer(context_length: int) -> Any:
    """CLIP's own words, which every model has that can be read, in the length that the model takes."""
    return open_clip.SimpleTokenizer(context_length=context_length)
