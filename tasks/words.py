"""The text features of class words, made once for a text tower and an ensemble of sentences, and kept in the store.

Not a stage of the picture: it has no images. Whoever needs features asks for them, and what the store lacks or holds
damaged is computed then.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascade.configs.localisers import of_clip
from cascade.localisers.protocol import Localiser
from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.errors import ConfigError, CorruptItem
from cascade.storage.keys import StageKey
from cascade.tasks.stage import Run

if TYPE_CHECKING:
    import torch
    from torch import nn

VERSION = 1


def key(run: Run) -> StageKey:
    """Model, activation, weights, and the sentences themselves."""
    from cascade.tasks.ensembles import load_ensemble

    localise = of_clip(run.experiment.localise)
    config = {
        "backbone": localise.backbone,
        "activation": localise.activation,
        "sentences": load_ensemble(localise.prompts).as_data(),
        **run.localiser.text_options,
    }
    return StageKey("words", VERSION, config, weights={"clip": run.weights["clip"].sha256})


def text_features(run: Run, words: Set[str]) -> dict[str, torch.Tensor]:
    """[D, 2] float32 unit columns, normal and abnormal, for each class, on the run's device."""
    import torch

    from cascade.tasks.execution.networks import device_of

    artefact = run.artefact(key(run))
    artefact.done()
    found = {}
    for each in sorted(words - artefact.missing(words)):
        try:
            found[each] = artefact.read(each)
        except CorruptItem:
            artefact.forget(each)
    if artefact.missing(words):
        _compute(run, words, artefact)
        found |= {each: artefact.read(each) for each in words - found.keys()}
    device = device_of(run.experiment.runtime)
    return {each: torch.from_numpy(found[each].arrays["features"]).to(device) for each in sorted(words)}


def _compute(run: Run, words: Set[str], artefact: Artefact) -> None:
    from cascade.tasks.execution.networks import networks_of

    networks, prompts = networks_of(run.experiment, run.weights), of_clip(run.experiment.localise).prompts
    clip, shape = networks.clip(run.localiser.sides[0]), (networks.clip_config["embed_dim"], 2)
    with artefact.writing(sorted(artefact.missing(words)), {"features": ArraySpec(shape, "float32")}):
        for each in sorted(artefact.missing(words)):  # another shard may have been first
            artefact.write(each, {"features": features_of(run.localiser, each, prompts, clip)}, {})


def features_of(localiser: Localiser, words: str, prompts: str, clip: nn.Module) -> NDArray[np.float32]:
    """[D, 2] unit columns, normal and abnormal, of a class under the prompt ensemble ``prompts``.

    Raises ``ConfigError`` if the localiser finds nothing that stands for the sentences.
    """
    import torch

    from cascade.backbones.clip.backbone import sentence_features
    from cascade.tasks.ensembles import load_ensemble

    columns = []
    for sentences in load_ensemble(prompts).sentences(words):
        try:
            columns.append(localiser.text_feature(sentence_features(clip, sentences)))
        except ValueError as error:
            raise ConfigError(f"localise.prompts {prompts}, '{words}': {error}") from error
    features: NDArray[np.float32] = torch.stack(columns, dim=1).cpu().numpy()
    return features
