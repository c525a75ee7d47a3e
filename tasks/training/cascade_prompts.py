"""Point prompts as the pipeline gives them to SAM: PPG on the map that the small CLIP draws of the same image.

A click drawn from a mask always lies on its target. PPG's points often lie beside the damage, and their negatives on
it. A SAM that has never seen such points trusts them all: its predicted IoU is far too high, and later passes keep
what the first one drew. So a part of the training takes its points from here, with all damage as the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cascade.backbones.clip.backbone import build_clip, image_tensor, image_tokens, mean_text_feature
from cascade.configs.loader import load_experiment
from cascade.configs.schema import of_clip
from cascade.configs.settings import Settings
from cascade.frames import InputFrame
from cascade.localisers.patch_text import anomaly_map, build_adapter, grid_logits, logit_margin
from cascade.localisers.squares import squared
from cascade.prompts.ppg import PromptOptions, generate_prompts
from cascade.storage.weights import locate
from cascade.tasks.ensembles import load_ensemble
from cascade.tasks.execution.checkpoints import read_state
from cascade.tasks.execution.networks import clip_config, trunk_state
from cascade.tasks.prompt import prompt_options

DOUBT = 5.0
"""Spread of the strength of the noise on CLIP's logits: on photographs its map errs more than on generated images."""


@dataclass(frozen=True)
class DrawnMap:
    """The anomaly map ``[S, S]`` in [0, 1] and the logit margin ``[S, S]`` of one image, float32."""

    values: NDArray[np.float32]
    margin: NDArray[np.float32]


class MapDrawer:
    """The mini CLIP of the package with its layers, as the ``mini`` preset sets them up, but at ``image_side`` only.

    Args:
        device: where it runs.
    """

    def __init__(self, device: str) -> None:
        self._config = of_clip(load_experiment("mini", []).localise)
        folder = Settings().weights
        clip, layers = (locate(name, folder=folder) for name in ("mini_clip", "april_gan_mini"))
        config = clip_config(self._config.backbone)
        state, trunk = read_state(clip.path, clip.sha256), trunk_state(config["vision_cfg"]["trunk"])
        self._clip = build_clip(config, state, self._config.image_side, quick_gelu=False, trunk=trunk).to(device)
        self._adapter = build_adapter(read_state(layers.path, layers.sha256)).requires_grad_(False).to(device)
        self._ensemble = load_ensemble(self._config.prompts)
        self._device = device
        self._text: dict[str, Tensor] = {}

    def __call__(
        self, rng: np.random.Generator, images: NDArray[np.uint8], words: Sequence[str], repeats: int
    ) -> list[DrawnMap]:
        """``repeats`` maps of each RGB image ``[B, S, S, 3]``, which show ``words``, each with a noise of its own."""
        pixels = torch.stack([image_tensor(squared(image, self._config.image_side)) for image in images])
        with torch.inference_mode(), torch.autocast(self._device, enabled=False):
            tokens = image_tokens(self._clip, pixels.to(self._device), self._config.layers)
            text = torch.stack([self._text_of(word) for word in words])
            logits = grid_logits(self._adapter, tokens.blocks, text).cpu().repeat_interleave(repeats, dim=0)
            noise = np.stack([_clouds(rng, logits.shape[-1]) for _ in logits])
            logits[:, :, 1] += torch.from_numpy(noise)[:, None]
            size = images.shape[1], images.shape[2]
            values, margins = anomaly_map(logits, size), logit_margin(logits, size)
        return [DrawnMap(own.numpy(), margin.numpy()) for own, margin in zip(values, margins, strict=True)]

    def _text_of(self, word: str) -> Tensor:
        if word not in self._text:
            features = [mean_text_feature(self._clip, own) for own in self._ensemble.sentences(word)]
            self._text[word] = torch.stack(features, dim=1)
        return self._text[word]


def _clouds(rng: np.random.Generator, grid: int) -> NDArray[np.float32]:
    """Smooth noise ``[grid, grid]`` of a random strength and coarseness."""
    coarse = int(rng.integers(3, grid // 2 + 1))
    noise = torch.from_numpy(rng.standard_normal((1, 1, coarse, coarse)).astype(np.float32))
    smooth = F.interpolate(noise, (grid, grid), mode="bicubic", align_corners=True)[0, 0].numpy()
    return np.asarray(smooth * abs(rng.normal(0, DOUBT)), np.float32)


def draw_options(rng: np.random.Generator) -> PromptOptions:
    """PPG with its defaults or near them: what is extreme, how far apart points are, how wide the ring is."""
    config = load_experiment("mini", []).prompt
    threshold = {"rule": "relative", "relative": float(rng.uniform(0.6, 0.95)), "min_area": 1}
    config = config.model_copy(
        update={
            "threshold": config.threshold.model_copy(update=threshold),
            "spacing": config.spacing.model_copy(update={"rank": int(rng.choice([100, 400, 400]))}),
            "dilation": config.dilation.model_copy(update={"size": int(rng.choice([15, 25, 25, 35]))}),
        }
    )
    if rng.random() < 0.3:
        counts = {"positives": int(rng.integers(1, 6)), "negatives": int(rng.integers(0, 6))}
        config = config.model_copy(update=counts)
    return prompt_options(config)


def ppg_points(
    rng: np.random.Generator, drawn: Sequence[DrawnMap], embeddings: Tensor, options: PromptOptions
) -> tuple[Tensor, Tensor]:
    """Points ``[B, K, 2]`` in pixels (x, y) of the square input, and labels ``[B, K]``.

    PPG may find fewer points than wanted. A row then repeats its own, so that all rows have the same K.

    Args:
        rng: draws the points that are repeated.
        drawn: B maps in the frame of SAM's input.
        embeddings: ``[B, C, g, g]``.
        options: of PPG, the same for all rows.
    """
    side = drawn[0].values.shape[0]
    rows, labels = [], []
    for own, embedding in zip(drawn, embeddings, strict=True):
        (found,) = generate_prompts(
            own.values, own.margin, embedding.float().cpu(), InputFrame(side, (side, side)), options
        ).sets
        good, bad = (np.flatnonzero(found.labels == kind) for kind in (1, 0))
        picked = np.concatenate([_filled(rng, good, options.positives), _filled(rng, bad, options.negatives, good)])
        rows.append(found.points[picked])
        labels.append(found.labels[picked])
    return torch.from_numpy(np.stack(rows)).float(), torch.from_numpy(np.stack(labels)).float()


def _filled(
    rng: np.random.Generator, found: NDArray[np.int64], count: int, instead: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """``count`` indices: those found, then repetitions of them, or of ``instead`` if none was found."""
    source = found if found.size or instead is None else instead
    return np.concatenate([found, rng.choice(source, count - len(found))]) if len(found) < count else found[:count]
