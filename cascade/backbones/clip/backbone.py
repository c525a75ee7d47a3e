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
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.timm_model import TimmModel
from torch import nn
from torchvision.transforms import functional as vision

from cascade.backbones.clip.mini import MiniClip
from cascade.backbones.clip.timm_tower import plain_towers, tower_of
from cascade.backbones.features.efficientnet import Trunk
from cascade.backbones.features.timm_network import set_side

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each colour, of images in [0, 1]."""
Positions = Literal["bicubic", "bilinear"]
_SENTENCES_AT_ONCE = 64


@dataclass(frozen=True)
class ImageTokens:
    """Tokens of a batch of images.

    Attributes:
        blocks: for each chosen block, [B, 1 + grid², width]: the residual stream after it, class token first; neither
            the final layer norm nor the projection has been applied. Of timm's towers, one without a class token has
            the mean of its patches there, and register tokens are left out.
        pooled: [B, D], what ``encode_image`` gives, not normalised: the projected class token, or what the tower pools.
    """

    blocks: tuple[torch.Tensor, ...]
    pooled: torch.Tensor


def model_config(name: str) -> dict[str, Any] | None:
    """open_clip's configuration of a model that it knows, ``None`` if it does not; nothing is downloaded."""
    config: dict[str, Any] | None = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    return config


def model_names() -> list[str]:
    """Names of the models of open_clip that can be read here, words included."""
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    return [name for name, config in configs.items() if unreadable(config) is None and wordless(config) is None]


def unreadable(config: Mapping[str, Any]) -> str | None:
    """Why a model of open_clip cannot be read here: no row of blocks of tokens, or a text tower of another library."""
    vision_config = config["vision_cfg"]
    tower = vision_config.get("timm_model_name")
    if tower is not None and tower not in plain_towers():
        return f"its image tower, '{tower}' of timm, has no row of equal blocks of tokens"
    if tower is None and not isinstance(vision_config["layers"], int):
        return "its image tower is a ResNet, which has no blocks of tokens"
    if "hf_model_name" in config["text_cfg"]:
        return "its text tower would have to be downloaded from a hub"
    if "multimodal_cfg" in config or (config.get("custom_text") and tower is None):
        return "its text tower has a form of its own"
    return None


def wordless(config: Mapping[str, Any]) -> str | None:
    """Why a model cannot be asked in words here, if it can be read otherwise; ``None`` if it has the words of CLIP."""
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    return f"its words, those of {tokenizer}, would have to be downloaded from a hub" if tokenizer else None


def origin(name: str, tag: str) -> str | None:
    """Where open_clip gets the weights of a tag from, ``None`` if it does not know; nothing is downloaded."""
    known = open_clip.get_pretrained_cfg(name, tag)
    return known.get("url") or (f"the hub: {known['hf_hub'].rstrip('/')}" if known.get("hf_hub") else None)


def normalisation(name: str, tag: str) -> Normalisation:
    """How the images were normalised on which the weights of a tag were trained, as far as open_clip knows.

    For a tag that it does not know: as for all tags of the model that it knows, or as CLIP's where these differ.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = [open_clip.get_pretrained_cfg(name, each) for each in ([tag] if tag in tags else tags)]
    ways = {(tuple(each.get("mean") or MEAN), tuple(each.get("std") or STD)) for each in known}
    return ways.pop() if len(ways) == 1 else (MEAN, STD)


def build_clip(
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    image_side: int,
    *,
    quick_gelu: bool,
    trunk: Mapping[str, torch.Tensor] | None = None,
    positions: Positions = "bicubic",
    normalised: Normalisation | None = None,
) -> nn.Module:
    """An open_clip model whose vision tower runs on square images of ``image_side`` pixels, or a :class:`MiniClip`.

    It is an ``open_clip.CustomTextCLIP`` where the configuration says ``custom_text``, else an ``open_clip.CLIP``.
    Nothing is downloaded.

    Args:
        config: ``embed_dim``, ``vision_cfg`` and ``text_cfg``.
        state: state dict at the native image size, any float dtype.
        image_side: side of the square input, a multiple of the patch size.
        quick_gelu: x·sigmoid(1.702 x) in place of GELU.
        trunk: state dict of the trunk that ``vision_cfg`` names, if it does.
        positions: how the visual positional embedding is resized, its class row kept: ``bicubic`` with antialiasing, as
            APRIL-GAN does, or ``bilinear`` without, as AnomalyCLIP does. Towers of timm resize their own, ``bicubic``.
        normalised: how the images were normalised on which the weights were trained, if the model is to be given
            images of :func:`image_tensor` and change their normalisation itself; ``None`` if it is given what it was
            trained on.

    Raises:
        ValueError: the state dict does not fit the configuration, or ``image_side`` does not fit the patches.
    """
    patch = tower_of(config).patch
    if image_side % patch:
        raise ValueError(f"an image side of {image_side} is no multiple of the patch side {patch}")
    weights = {name.removeprefix("module."): value.float() for name, value in state.items()}  # of several GPUs
    if trunk is not None:
        model: nn.Module = MiniClip(config, Trunk(trunk))
    else:
        model = _open_clip(config, image_side, quick_gelu=quick_gelu)
    try:
        if trunk is None:
            weights = convert_state_dict(model, weights)
            if "positional_embedding" in weights and isinstance(model, open_clip.CustomTextCLIP):
                weights = convert_to_custom_text_state_dict(weights)
            resize_pos_embed(weights, model, interpolation=positions, antialias=positions == "bicubic")
        model.load_state_dict(weights)
    except Exception as error:  # positions of any shape may be in a file, and go wrong in as many ways
        raise ValueError(" ".join(str(error).split())[:300]) from error
    if isinstance(model.visual, TimmModel):
        set_side(model.visual.trunk, image_side)
    elif trunk is None:
        _sequence_first(model.visual.transformer)  # type: ignore[union-attr]
    if trunk is None and normalised not in (None, (MEAN, STD)):
        _change_normalisation(model, *normalised)
    model.eval().requires_grad_(False)
    return model


def _open_clip(config: Mapping[str, Any], image_side: int, *, quick_gelu: bool) -> nn.Module:
    """The model with random weights; a tower of timm at its native side."""
    vision_config = dict(config["vision_cfg"]) | {"image_size": image_side, "timm_model_pretrained": False}
    options = {"quick_gelu": quick_gelu, "init_logit_bias": config.get("init_logit_bias")}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model: nn.Module = kind(config["embed_dim"], vision_config, config["text_cfg"], **options)
    return model


def _change_normalisation(model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let the first layer of a vision tower take images that are normalised for CLIP as if they were so otherwise."""
    visual = model.visual
    first = visual.trunk.patch_embed if isinstance(visual, TimmModel) else visual.conv1
    colours = {"old_mean": MEAN, "old_std": STD, "new_mean": mean, "new_std": std}
    for name, values in colours.items():
        first.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def change(layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        images = inputs[0] * layer.old_std + layer.old_mean
        return ((images - layer.new_mean) / layer.new_std, *inputs[1:])

    first.register_forward_pre_hook(change)


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
    visual: Any = model.visual
    for block in visual.trunk.blocks if isinstance(visual, TimmModel) else visual.transformer.resblocks:
        block.compile()


def image_tensor(square: NDArray[np.uint8]) -> torch.Tensor:
    """A square photograph [side, side, 3] as CLIP's input [3, side, side] float32, with CLIP's normalisation.

    A model whose weights were trained with another changes it itself (:func:`build_clip`).
    """
    normalised: torch.Tensor = vision.normalize(vision.to_tensor(square), list(MEAN), list(STD))
    return normalised


@torch.inference_mode()
def image_tokens(model: nn.Module, images: torch.Tensor, layers: Sequence[int], *, bf16: bool = False) -> ImageTokens:
    """Tokens after ``layers`` (blocks counted from 1) and the pooled feature, float32, of [B, 3, side, side] images."""
    visual: Any = model.visual
    with_class = not isinstance(visual, TimmModel) or visual.trunk.cls_token is not None
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        result = model.forward_intermediates(  # type: ignore[operator]
            image=images,
            image_indices=[layer - 1 for layer in layers],
            normalize=False,
            image_output_fmt="NLC",
            image_output_extra_tokens=with_class,
        )
    patches = [each.float() for each in result["image_intermediates"]]
    if with_class:
        first = [each[:, :1].float() for each in result["image_intermediates_prefix"]]
    else:
        first = [each.mean(dim=1, keepdim=True) for each in patches]
    blocks = tuple(torch.cat(pair, dim=1) for pair in zip(first, patches, strict=True))
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
