"""The parts of a ``Segmenter``: the networks and options of an experiment, for images in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from cascade.configs.localisers import of_clip
from cascade.configs.schema import Experiment, Frame
from cascade.configs.settings import Settings
from cascade.frames import Size
from cascade.localisers import make_localiser
from cascade.localisers.protocol import Localiser
from cascade.refiners import make_refiner
from cascade.segmenter import Parts, SamParts
from cascade.tasks.execution.networks import Networks, decoder_of, networks_of, sam_of
from cascade.tasks.execution.weights import locate_weights
from cascade.tasks.prompt import prompt_options
from cascade.tasks.score import fusion_options
from cascade.tasks.words import features_of


def parts_of(experiment: Experiment) -> Parts:
    """Everything that a segmenter needs, loaded. Raises ``ConfigError`` and ``WeightsError``."""
    weights = locate_weights(experiment, Settings().weights)
    networks = networks_of(experiment, weights)
    localiser = make_localiser(experiment.localise.method, experiment.localise)
    refiner = make_refiner(experiment.refine.method, experiment.refine)
    localiser.arrays(networks)  # refuses what cannot work, and loads it
    embed, sam = experiment.embed, None
    if refiner.STEPS:
        sam = SamParts(
            sam=sam_of(experiment, weights),
            decode=decoder_of(experiment, weights),
            mode=embed.image,
            square_side=embed.square_side,
            bf16=embed.precision == "bf16",
            fused=embed.attention == "fused",
            batch=getattr(experiment.refine, "batch_size", 1),
        )
    return Parts(
        localiser=localiser,
        networks=networks,
        kept=experiment.localise.keep == "tokens",
        texts=_texts(experiment, networks, localiser) if localiser.WORDS else None,
        refiner=refiner,
        sam=sam,
        prompt_frame=_frame(experiment.prompt.frame),
        prompts=prompt_options(experiment.prompt, refiner.PROMPTS),
        score_frame=_frame(experiment.score.frame),
        fusion=fusion_options(experiment.score),
        image_score=experiment.score.image_score,
        top_share=experiment.score.top_share,
        operating_threshold=experiment.score.operating_threshold,
    )


def _frame(frame: Frame) -> Callable[[Size], Size]:
    return lambda size: size if frame == "native" else (frame, frame)


def _texts(experiment: Experiment, networks: Networks, localiser: Localiser) -> Callable[[str], torch.Tensor]:
    prompts, side = of_clip(experiment.localise).prompts, localiser.sides[0]

    @cache
    def texts(words: str) -> torch.Tensor:
        return torch.from_numpy(features_of(localiser, words, prompts, networks.clip(side))).to(networks.device)

    return texts
