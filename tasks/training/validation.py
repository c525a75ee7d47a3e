"""What a training holds out, whole categories, and how well their defects are found after an epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cascade.localisers.protocol import Trainable
from cascade.metrics import ScoreHistogram, average_precision, f1_max, score_histogram
from cascade.storage.artefacts import Artefact
from cascade.storage.datasets import ImageRecord, mask_in_frame
from cascade.storage.errors import DataError
from cascade.tasks.execution.networks import Module, Networks
from cascade.tasks.stage import Run
from cascade.tasks.training.method_examples import Examples, mask_of


@dataclass(frozen=True)
class Found:
    """How well the defects of the held-out categories are found by the map; means over categories, in [0, 1]."""

    pixel_ap: float
    pixel_f1max: float


@dataclass(frozen=True)
class InTraining(Networks):
    """The networks of a localiser with weights that are being trained, in place of a checkpoint's.

    Attributes:
        role: of the checkpoint.
        module: what takes its place.
    """

    role: str
    module: nn.Module

    def trained(
        self, role: str, build: Callable[[Mapping[str, torch.Tensor]], Module], fault: Callable[[Module], str]
    ) -> Module:
        """``module`` for its role."""
        return self.module if role == self.role else super().trained(role, build, fault)  # type: ignore[return-value]


def held_out(run: Run, share: float, seed: int) -> tuple[str, ...]:
    """The categories that are held out: at least one if ``share`` is not 0, drawn by ``seed`` among the defective.

    Raises:
        DataError: no category with defective images would be left to train on.
    """
    if not share:
        return ()
    defective = sorted({record.category for record in run.manifest if record.label})
    if len(defective) < 2:
        raise DataError(
            f"{run.manifest.root}: --train held_out={share} holds whole categories out, and only '{defective[0]}' has "
            f"defective images; leave it out"
        )
    count = min(max(1, round(share * len(run.manifest.categories))), len(defective) - 1)
    chosen = np.random.default_rng([seed, 1]).permutation(len(defective))[:count]
    return tuple(sorted(defective[index] for index in chosen))


def validated(
    run: Run, networks: Networks, module: nn.Module, tokens: Artefact, texts: Mapping[str, torch.Tensor]
) -> Found:
    """Pixel AP and F1-max of the map of every category of ``run``, in the frame of the localiser's input; their means.

    The images are read from ``tokens``, as in a run, and scored as float16.
    """
    localiser = run.localiser
    assert isinstance(localiser, Trainable)
    frozen = copy.deepcopy(module).eval().requires_grad_(False)
    mine = InTraining(networks.config, networks.weights, networks.device, networks.compiled, localiser.TRAINED, frozen)
    examples = Examples(run, networks, tokens, mosaic=0.0)
    totals = {category: ScoreHistogram.empty() for category in run.manifest.categories}
    for record in run.manifest:
        totals[record.category] += _histogram(run, mine, examples, record, texts)
    visible = [total for total in totals.values() if total.positives.any()]  # a tiny defect may leave no pixel
    if not visible:
        return Found(float("nan"), float("nan"))
    aps, f1s = [average_precision(total) for total in visible], [f1_max(total) for total in visible]
    return Found(float(np.mean(aps)), float(np.mean(f1s)))


def _histogram(
    run: Run, networks: Networks, examples: Examples, record: ImageRecord, texts: Mapping[str, torch.Tensor]
) -> ScoreHistogram:
    looks, _ = examples.read([record])
    text = texts[run.words(record)][None] if texts else None
    seen = {name: values[None].to(networks.device) for name, values in looks.items()}
    arrays, _ = run.localiser.compare(networks, seen, text)
    size = (run.localiser.sides[0],) * 2
    found = run.localiser.map_of({name: values[0] for name, values in arrays.items()}, size)
    return score_histogram(found.values.astype(np.float16), mask_in_frame(mask_of(run, record), size))
