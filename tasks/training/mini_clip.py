"""Training of the small CLIP: defect masks for its tokens, and damaged or not for the whole image, asked in words.

The trunk is frozen. So what it sees in all training images is written once, and the rest learns from it in minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from cascade.backbones.clip.mini import MiniClip, seen_levels
from cascade.backbones.features.efficientnet import CHANNELS, Trunk
from cascade.configs.loader import MODELS
from cascade.localisers.patch_text import LinearAdapter, anomaly_map, grid_logits, image_score
from cascade.synthesis.captions import abnormal_sentence, normal_sentence
from cascade.tasks.execution.networks import trunk_state
from cascade.tasks.training.array_cache import ArrayCache, Row
from cascade.tasks.training.clip_examples import class_word, example_stream
from cascade.tasks.training.clip_objective import dense_loss, image_loss, state_features, state_gap_loss
from cascade.tasks.training.scene_pool import VALIDATION_SEEDS, training_seed
from cascade.tasks.training.session import (
    Log,
    Progress,
    Session,
    export,
    learning_rate,
    load_checkpoint,
    optimiser,
    save_checkpoint,
    scene_workers,
    training_device,
)

CONFIG = MODELS / "mini_clip.json"
"""The dimensions of the network."""

PEAK_RATE = 1.5e-3
NOUN_GROUPS = 2
SENTENCES = 4
COLUMNS = (
    "step",
    "minutes",
    "images",
    "loss",
    "dense",
    "whole",
    "gap",
    "val_pixel_auroc",
    "val_pixel_ap",
    "val_image_auroc",
)


class Trainee(nn.Module):
    """The small CLIP and APRIL-GAN's linear layers on all of its blocks, which learn together."""

    def __init__(self, config: dict[str, Any], trunk: Trunk) -> None:
        super().__init__()
        vision = config["vision_cfg"]
        self.clip = MiniClip(config, trunk)
        self.adapter = LinearAdapter(vision["layers"], vision["width"], config["embed_dim"])

    def forward(self, levels: Sequence[Tensor], states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, L, 2, g, g]`` and pooled features ``[B, D]`` of seen levels, asked with states ``[B, 2, D]``."""
        after, pooled = self.clip.visual(levels)
        padded = [nn.functional.pad(tokens, (0, 0, 1, 0)) for tokens in after]
        return grid_logits(self.adapter, padded, states.transpose(1, 2)), pooled


class _Words:
    """Sentences about normal and abnormal things, tokenised."""

    def __init__(self) -> None:
        self._tokenizer = open_clip.SimpleTokenizer()
        words = (word[:-4] for word in self._tokenizer.encoder if word.endswith("</w>"))
        self._vocabulary = sorted(word for word in words if word.isascii() and word.isalpha() and 3 <= len(word) <= 10)

    def drawn(self, rng: np.random.Generator, groups: int, count: int) -> Tensor:
        """``[groups, 2, count, 77]`` of class words drawn at random."""
        return self.about(rng, [class_word(rng, self._vocabulary) for _ in range(groups)], count)

    def about(self, rng: np.random.Generator, nouns: Sequence[str], count: int) -> Tensor:
        """``[len(nouns), 2, count, 77]``, normal first."""
        sentences = []
        for noun in nouns:
            sentences += [normal_sentence(rng, noun) for _ in range(count)]
            sentences += [abnormal_sentence(rng, noun) for _ in range(count)]
        tokens: Tensor = self._tokenizer(sentences)
        return tokens.reshape(len(nouns), 2, count, -1)


class _Examples:
    """What the trunk sees in generated images, and their masks, in a folder."""

    def __init__(
        self, folder: Path, count: int, first_seed: int, size: int, pictures: Path | None, held_out: bool
    ) -> None:
        recipe = {"first_seed": first_seed, "size": size, "pictures": str(pictures), "held_out": held_out}
        self._cache = ArrayCache(folder, count, recipe)
        self._stream = (first_seed, size, pictures)
        self._held_out = held_out
        self.count = count

    def fill(self, trunk: Trunk, device: str, workers: int) -> Iterator[int]:
        """Makes what is missing and yields how many there are."""
        skip = self._cache.done
        if skip == self.count:
            return
        stream = example_stream(*self._stream, held_out=self._held_out, skip=skip, workers=workers)

        def rows() -> Iterator[Row]:
            for example in stream:
                pixels = torch.from_numpy(example.image).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
                with torch.inference_mode():
                    seen = seen_levels(trunk, pixels)
                levels = {f"level{number}": level[0].half().cpu().numpy() for number, level in enumerate(seen)}
                yield {**levels, "mask": example.mask}

        with closing(stream):
            yield from self._cache.fill(rows())

    def read(self, indices: NDArray[np.int64], device: str) -> tuple[list[Tensor], Tensor]:
        """Seen levels ``[B, C + TOLD, h, h]`` and the damaged share ``[B, 2g, 2g]`` of half cells, in [0, 1]."""
        read = (torch.from_numpy(self._cache.rows(f"level{number}", indices)) for number in range(len(CHANNELS)))
        levels = [level.to(device).float() for level in read]
        return levels, torch.from_numpy(self._cache.rows("mask", indices)).to(device).float() / 255


@torch.no_grad()
def validate(trainee: Trainee, examples: _Examples, words: _Words, device: str) -> dict[str, float]:
    """AUROC and AP of pixels and AUROC of images on held-out scenes, asked with the word ``object``."""
    trainee.eval()
    states = state_features(trainee.clip, words.about(np.random.default_rng(0), ["object"], 32).to(device))
    maps, truth, scores = [], [], []
    for indices in np.array_split(np.arange(examples.count), -(-examples.count // 8)):
        levels, masks = examples.read(indices, device)
        pair = states.expand(len(indices), -1, -1)
        logits, pooled = trainee(levels, pair)
        maps.append(anomaly_map(logits, (masks.shape[1], masks.shape[2])).cpu().numpy())
        scores.append(image_score(pooled, pair.transpose(1, 2)).cpu().numpy())
        truth.append(masks.cpu().numpy() > 0.4)
    trainee.train()
    found, labels = np.concatenate(maps), np.concatenate(truth)
    return {
        "val_pixel_auroc": float(roc_auc_score(labels.ravel(), found.ravel())),
        "val_pixel_ap": float(average_precision_score(labels.ravel(), found.ravel())),
        "val_image_auroc": float(roc_auc_score(labels.any(axis=(1, 2)), np.concatenate(scores))),
    }


def pretrain_clip(
    out: Path,
    *,
    minutes: float,
    seed: int = 0,
    pictures: Path | None = None,
    images: int = 1500,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batch: int = 8,
    max_steps: int | None = None,
    config: dict[str, Any] | None = None,
    validation_images: int = 150,
) -> dict[str, Any]:
    """Trains the small CLIP on generated scenes and exports it.

    A run that was killed continues from ``out/checkpoint.pt`` when it is called again with the same folder.

    Args:
        out: folder for what the trunk sees, ``checkpoint.pt``, ``log.csv``, ``mini_clip.safetensors`` (fp16, without
            the trunk) and ``april_gan_mini.safetensors`` (``fc.{0,1}.weight``, ``fc.{0,1}.bias``).
        minutes: training time over all sessions, after the images were made; the learning rate follows it.
        seed: of weights, scenes and augmentation.
        pictures: folder with pictures of surfaces, beside those that packages ship.
        images: generated images; each takes a megabyte.
        threads: torch threads; as found when None.
        progress: called after every logged step, and now and then while images are made.
        device: the GPU if there is one, or a choice.
        batch: images per step.
        max_steps: stop this session after so many steps even if time is left.
        config: dimensions; ``configs/models/mini_clip.json`` when None.
        validation_images: held-out images per validation.

    Returns:
        The facts written beside the weights: data, seeds, steps, minutes, metrics.

    Raises:
        ConfigError: the folder holds a run with another seed or other images, or there is no such device.
    """
    place = training_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads(CONFIG.read_text()) if config is None else config
    size = int(config["vision_cfg"]["image_size"])
    torch.manual_seed(seed)
    trainee = Trainee(config, Trunk(trunk_state(config["vision_cfg"]["trunk"]))).to(place).train()
    optimizer = optimiser(trainee, PEAK_RATE)
    run = load_checkpoint(out / "checkpoint.pt", trainee, optimizer, seed) or Session(next_seed=training_seed(seed))
    log = Log(out / "log.csv", COLUMNS, progress)
    words = _Words()
    rng = np.random.default_rng([seed, run.step])
    training = _Examples(out / "training", images, training_seed(seed), size, pictures, held_out=False)
    held_out = _Examples(out / "held_out", validation_images, VALIDATION_SEEDS[0], size, pictures, held_out=True)
    for examples in (held_out, training):
        for made in examples.fill(trainee.clip.trunk, place, scene_workers(place)):
            if progress is not None and made % 200 == 0:
                progress({"images made": made})
    steps, metrics, last_save, last_check = 0, {}, time.monotonic(), time.monotonic()
    started, before = time.monotonic(), run.seconds
    while run.seconds < minutes * 60 and (max_steps is None or steps < max_steps):
        chosen = np.sort(rng.choice(images, min(batch, images), replace=False))
        levels, masks = training.read(chosen, place)
        groups = state_features(trainee.clip, words.drawn(rng, NOUN_GROUPS, SENTENCES).to(place))
        states = groups[torch.arange(len(masks), device=groups.device) % len(groups)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_RATE, run.seconds / (minutes * 60))
        logits, pooled = trainee(levels, states)
        cells = nn.functional.avg_pool2d(masks, 2)
        losses = {
            "dense": torch.stack([dense_loss(own[:, 1] - own[:, 0], cells) for own in logits.unbind(dim=1)]).sum(),
            "whole": image_loss(pooled, states, masks),
            "gap": state_gap_loss(groups),
        }
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        steps, run.step, run.images = steps + 1, run.step + 1, run.images + len(masks)
        run.seconds = before + time.monotonic() - started
        if run.step % 20 == 0 or steps == max_steps:
            row_of = {"step": run.step, "minutes": run.seconds / 60, "images": run.images, "loss": loss.item()}
            row_of |= {name: value.item() for name, value in losses.items()}
            if time.monotonic() - last_check > 900:
                metrics = validate(trainee, held_out, words, place)
                row_of |= metrics
                last_check = time.monotonic()
            log.row(row_of)
        if time.monotonic() - last_save > 180:
            save_checkpoint(out / "checkpoint.pt", trainee, optimizer, run, seed)
            last_save = time.monotonic()
    save_checkpoint(out / "checkpoint.pt", trainee, optimizer, run, seed)
    metrics = validate(trainee, held_out, words, place)
    log.row({"step": run.step, "minutes": run.seconds / 60, "images": run.images, **metrics})
    return _export(out, trainee, run, seed, {"scenes": images, **metrics})


def _export(out: Path, trainee: Trainee, run: Session, seed: int, more: dict[str, Any]) -> dict[str, Any]:
    facts = {
        "data": "generated scenes (cascade.synthesis), many on pictures of real surfaces; no inspection photographs",
        "seed": seed,
        "first_scene_seed": training_seed(seed),
        "steps": run.step,
        "images": run.images,
        "minutes": round(run.seconds / 60, 2),
        "stages": list(range(1, len(trainee.adapter.fc) + 1)),
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in more.items()},
    }
    export(out / "mini_clip.safetensors", trainee.clip.state_dict(), facts)
    training = {"method": "april_gan", "dataset": "generated scenes", "layers": facts["stages"]} | facts
    layers = trainee.adapter.state_dict()
    export(out / "april_gan_mini.safetensors", layers, {"training": json.dumps(training, sort_keys=True)})
    return facts
