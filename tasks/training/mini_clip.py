"""Training of the small CLIP: captions for the whole image, defect masks for its patch tokens."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.configs.loader import MODELS
from cascade.synthesis.captions import abnormal_sentence, normal_sentence
from cascade.tasks.training.clip_examples import augment, class_word, make_example
from cascade.tasks.training.clip_objective import (
    SCALE,
    STAGES,
    DenseClip,
    dense_loss,
    patch_logits,
    state_features,
    state_gap_loss,
)
from cascade.tasks.training.scene_pool import VALIDATION_SEEDS, ScenePool, training_seed
from cascade.tasks.training.session import (
    Log,
    Progress,
    Run,
    export,
    learning_rate,
    load_checkpoint,
    optimiser,
    save_checkpoint,
    scene_workers,
    training_device,
)

CONFIG = MODELS / "mini_clip.json"
"""The open_clip model configuration."""

PATCH = 16
WINDOWED = 0.65
"""Share of the time spent on windows of half the side, of which more than four cost as much as one whole input."""

PEAK_RATE = 1e-3
NOUN_GROUPS = 4
SENTENCES = 8
COLUMNS = (
    "step",
    "minutes",
    "images",
    "loss",
    "contrast",
    "dense",
    "whole",
    "gap",
    "val_pixel_auroc",
    "val_image_auroc",
)


def _vocabulary(tokenizer: Any) -> list[str]:
    """Whole words of the tokenizer, as class words that mean nothing here."""
    words = (word[:-4] for word in tokenizer.encoder if word.endswith("</w>"))
    return sorted(word for word in words if word.isascii() and word.isalpha() and 3 <= len(word) <= 10)


def _state_tokens(tokenizer: Any, rng: np.random.Generator, nouns: list[str], count: int) -> Tensor:
    sentences = []
    for noun in nouns:
        sentences += [normal_sentence(rng, noun) for _ in range(count)]
        sentences += [abnormal_sentence(rng, noun) for _ in range(count)]
    tokens: Tensor = tokenizer(sentences)
    return tokens.reshape(len(nouns), 2, count, -1)


def to_input(images: NDArray[np.uint8], device: str) -> Tensor:
    """CLIP's normalised float ``[B, 3, H, W]`` of uint8 RGB ``[B, H, W, 3]``."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD, device=device).view(1, 3, 1, 1)
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    return (pixels - mean) / std


@torch.no_grad()
def validate(network: DenseClip, tokenizer: Any, size: int, scenes: int, device: str) -> dict[str, float]:
    """Pixel and image AUROC on held-out scenes, asked with the word ``object``."""
    network.eval()
    rng = np.random.default_rng(0)
    states = state_features(network.clip, _state_tokens(tokenizer, rng, ["object"], 32).to(device))
    maps, masks, scores, labels = [], [], [], []
    fine = size // 4
    for first in range(0, scenes, 16):
        batch = [make_example(VALIDATION_SEEDS[seed], size) for seed in range(first, min(first + 16, scenes))]
        with torch.autocast(device, torch.bfloat16):
            whole, stages = network(to_input(np.stack([item.image for item in batch]), device))
        pair = states.expand(len(batch), -1, -1)
        total = torch.zeros(len(batch), fine, fine, device=device)
        for patches in stages:
            logits = F.interpolate(patch_logits(patches, pair), (fine, fine), mode="bilinear", align_corners=True)
            total += logits.softmax(dim=1)[:, 1]
        maps.append(total.cpu().numpy())
        scores.append((SCALE * (whole @ (states[0, 1] - states[0, 0]))).cpu().numpy())
        masks += [cv2.resize(item.mask, (fine, fine), interpolation=cv2.INTER_AREA) > 127 for item in batch]
        labels += [bool(item.mask.any()) for item in batch]
    network.train()
    return {
        "val_pixel_auroc": float(roc_auc_score(np.stack(masks).ravel(), np.concatenate(maps).ravel())),
        "val_image_auroc": float(roc_auc_score(labels, np.concatenate(scores))),
    }


def _losses(
    network: DenseClip,
    images: Tensor,
    corner: tuple[int, int],
    masks: Tensor,
    captions: Tensor,
    states: Tensor,
    device: str,
) -> dict[str, Tensor]:
    with torch.autocast(device, torch.bfloat16):
        whole, stages = network(images, corner)
        text = network.clip.encode_text(captions)
        groups = state_features(network.clip, states)
    text = F.normalize(text.float(), dim=-1)
    pair = groups[torch.arange(len(images), device=images.device) % len(groups)]
    similarity = network.clip.logit_scale.exp().clamp(max=SCALE) * whole @ text.T
    order = torch.arange(len(images), device=images.device)
    contrast = (F.cross_entropy(similarity, order) + F.cross_entropy(similarity.T, order)) / 2
    dense = torch.stack([dense_loss(patch_logits(patches, pair), masks) for patches in stages]).sum()
    damaged = (masks.sum(dim=(1, 2)) > 0).long()
    image_logits = SCALE * torch.einsum("bd,bsd->bs", whole, pair)
    return {
        "contrast": contrast,
        "dense": dense,
        "whole": F.cross_entropy(image_logits, damaged),
        "gap": state_gap_loss(groups),
    }


def pretrain_clip(
    out: Path,
    *,
    minutes: float,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batch: int = 20,
    max_steps: int | None = None,
    config: dict[str, Any] | None = None,
    validation_scenes: int = 96,
) -> dict[str, Any]:
    """Trains the small CLIP on generated scenes and exports it.

    A run that was killed continues from ``out/checkpoint.pt`` when it is called again with the same folder.

    Args:
        out: folder for ``checkpoint.pt``, ``log.csv``, ``mini_clip.safetensors`` (open_clip names, fp16) and
            ``april_gan_mini.safetensors`` (``fc.{0..3}.weight``, ``fc.{0..3}.bias``).
        minutes: training time over all sessions; the learning rate follows it.
        seed: of weights, scenes and augmentation.
        threads: torch threads; as found when None.
        progress: called after every logged step.
        device: the GPU if there is one, or a choice; bfloat16 autocast on both.
        batch: windows per step; half as many whole images.
        max_steps: stop this session after so many steps even if time is left.
        config: open_clip configuration; ``configs/models/mini_clip.json`` when None.
        validation_scenes: held-out scenes per validation.

    Returns:
        The facts written beside the weights: data, seeds, steps, minutes, metrics.

    Raises:
        ConfigError: the folder holds a run with another seed, or there is no such device.
    """
    place = training_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads(CONFIG.read_text()) if config is None else config
    size = int(config["vision_cfg"]["image_size"])
    grid = size // PATCH
    torch.manual_seed(seed)
    network = DenseClip(config).to(place).train()
    optimizer = optimiser(network, PEAK_RATE)
    run = load_checkpoint(out / "checkpoint.pt", network, optimizer, seed) or Run(next_seed=training_seed(seed))
    log = Log(out / "log.csv", COLUMNS, progress)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    vocabulary = _vocabulary(tokenizer)
    rng = np.random.default_rng([seed, run.step])
    make = partial(make_example, size=max(64, size * 8 // 7))
    steps, metrics, last_save, last_check = 0, {}, time.monotonic(), time.monotonic() - 500
    pool = ScenePool(make, run.next_seed, reuse=8, capacity=3000, warm=4 * batch, workers=scene_workers(place))
    with pool:
        started, before = time.monotonic(), run.seconds
        while run.seconds < minutes * 60 and (max_steps is None or steps < max_steps):
            windowed = run.seconds < WINDOWED * minutes * 60
            cells = grid // 2 if windowed else grid
            examples = pool.draw(rng, batch if windowed else max(1, batch // 2))
            corner = (int(rng.integers(grid - cells + 1)), int(rng.integers(grid - cells + 1)))
            pairs = [augment(rng, example, cells * PATCH, 0.4 if windowed else 0.6) for example in examples]
            images = to_input(np.stack([image for image, _ in pairs]), place)
            small = [cv2.resize(mask, (cells * 4, cells * 4), interpolation=cv2.INTER_AREA) for _, mask in pairs]
            masks = torch.from_numpy(np.stack(small) > 100).float().to(place)
            captions = tokenizer(
                [
                    abnormal_sentence(rng, example.category, example.defect)
                    if mask.any()
                    else normal_sentence(rng, example.category)
                    for example, mask in zip(examples, small, strict=True)
                ]
            ).to(place)
            nouns = [class_word(rng, vocabulary) for _ in range(NOUN_GROUPS)]
            states = _state_tokens(tokenizer, rng, nouns, SENTENCES).to(place)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(PEAK_RATE, run.seconds / (minutes * 60))
            losses = _losses(network, images, corner, masks, captions, states, place)
            loss = losses["dense"] + 0.3 * (losses["contrast"] + losses["whole"]) + losses["gap"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            steps, run.step, run.images = steps + 1, run.step + 1, run.images + len(examples)
            run.seconds, run.next_seed = before + time.monotonic() - started, pool.next_seed
            row = {"step": run.step, "minutes": run.seconds / 60, "images": run.images, "loss": loss.item()}
            if run.step % 10 == 0:
                row |= {name: value.item() for name, value in losses.items()}
                if time.monotonic() - last_check > 600:
                    metrics = validate(network, tokenizer, size, validation_scenes, place)
                    row |= metrics
                    last_check = time.monotonic()
                log.row(row)
            if time.monotonic() - last_save > 180:
                save_checkpoint(out / "checkpoint.pt", network, optimizer, run, seed)
                _export(out, network, run, seed, metrics)
                last_save = time.monotonic()
        waited = pool.waited
    save_checkpoint(out / "checkpoint.pt", network, optimizer, run, seed)
    metrics = validate(network, tokenizer, size, validation_scenes, place)
    log.row({"step": run.step, "minutes": run.seconds / 60, "images": run.images, **metrics})
    return _export(out, network, run, seed, metrics | {"seconds_waited_for_scenes": waited})


def _export(out: Path, network: DenseClip, run: Run, seed: int, metrics: dict[str, float]) -> dict[str, Any]:
    facts = {
        "data": "generated scenes (cascade.synthesis), no photographs",
        "seed": seed,
        "first_scene_seed": training_seed(seed),
        "last_scene_seed": run.next_seed - 1,
        "steps": run.step,
        "images": run.images,
        "minutes": round(run.seconds / 60, 2),
        "stages": list(STAGES),
        **{name: round(value, 4) for name, value in metrics.items()},
    }
    export(out / "mini_clip.safetensors", network.clip.state_dict(), facts)
    layers = {f"fc.{name}": weight for name, weight in network.fc.state_dict().items()}
    training = {"method": "april_gan", "dataset": "generated scenes", "layers": facts["stages"]} | facts
    export(out / "april_gan_mini.safetensors", layers, {"training": json.dumps(training, sort_keys=True)})
    return facts
