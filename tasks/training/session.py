"""What both pretraining tasks share: the clock, checkpoints, the log and exports."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from cascade.storage.atomic import replacing
from cascade.storage.errors import ConfigError, WeightsError

Progress = Callable[[dict[str, float]], None]
"""Called after each logged step with ``step``, ``minutes``, ``loss`` and, now and then, validation metrics."""


def training_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """The GPU if there is one and it is not refused, else the CPU. Raises ``ConfigError`` if ``cuda`` is not there."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("--device cuda: torch sees no GPU; use auto or cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


def scene_workers(device: str) -> int:
    """Generating processes: one beside a training on CPU cores, all cores but one beside a GPU."""
    return 1 if device == "cpu" else max(1, (os.cpu_count() or 2) - 1)


def learning_rate(peak: float, done: float) -> float:
    """Linear warm-up over the first 3 % of the budget, then a cosine down to 1 % of the peak."""
    if done < 0.03:
        return peak * max(0.02, done / 0.03)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.03) / 0.97))))


def optimiser(network: nn.Module, peak: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, but neither biases, norms nor embeddings."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, weight in network.named_parameters():
        (kept if weight.ndim < 2 or "embed" in name or "token" in name else decayed).append(weight)
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))


@dataclass
class Session:
    """Where a training run stands; saved with every checkpoint.

    Attributes:
        step: optimiser steps made.
        seconds: training time used, over all sessions.
        next_seed: scene seed to continue with.
        images: images seen, repetitions included.
    """

    step: int = 0
    seconds: float = 0.0
    next_seed: int = 0
    images: int = 0


def save_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, run: Session, seed: int) -> None:
    """Writes network, optimiser and position beside ``path`` and renames, so that a kill leaves the old one."""
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "network": network.state_dict(),
            "optimiser": optimizer.state_dict(),
            "run": vars(run).copy(),
            "seed": seed,
        },
        partial,
    )
    partial.replace(path)


def load_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Session | None:
    """Restores what ``save_checkpoint`` wrote; None when there is no file.

    Raises:
        ConfigError: the checkpoint belongs to a run with another seed.
        WeightsError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made = state["seed"]
        if made == seed:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimiser"])
            return Session(**state["run"])
    except Exception as error:  # a file can be damaged in many ways
        raise WeightsError(f"{path}: damaged, or no checkpoint of this training; use another folder") from error
    raise ConfigError(f"{path} was made with seed {made}, not {seed}; use another folder")


class Log:
    """A CSV of the training curve; ``columns`` are fixed, missing values stay empty."""

    def __init__(self, path: Path, columns: tuple[str, ...], progress: Progress | None) -> None:
        self._path, self._columns, self._progress = path, columns, progress
        if not path.exists():
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(columns)

    def row(self, values: dict[str, float]) -> None:
        """Appends one line and reports it."""
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writerow({name: f"{value:.6g}" for name, value in values.items()})
        if self._progress is not None:
            self._progress(values)


def export(path: Path, weights: Mapping[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Writes weights in fp16 as safetensors, and ``facts`` into its metadata and a JSON beside it."""
    half = {
        name: (tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.detach().cpu()).contiguous()
        for name, tensor in weights.items()
    }
    with replacing(path) as partial:
        save_file(half, partial, metadata={key: str(value) for key, value in facts.items()})
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
