"""The one training loop, of every localiser with weights of its own, on what it has seen in images and kept."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from cascade.configs.schema import TrainConfig
from cascade.localisers.protocol import Trainable
from cascade.storage.artefacts import Artefact
from cascade.storage.atomic import replacing, write_text
from cascade.storage.errors import ConfigError, StageError, WeightsError
from cascade.storage.weights import file_sha256
from cascade.tasks.execution.networks import Networks, networks_of
from cascade.tasks.stage import Run
from cascade.tasks.training.method_examples import Drawn, Examples
from cascade.tasks.training.provenance import Epoch, card, card_of, checkpoint_of, identity, training_of
from cascade.tasks.training.validation import held_out, validated
from cascade.tasks.training.workers import Workers
from cascade.tasks.words import text_features


def train(
    run: Run,
    config: TrainConfig,
    tokens: Artefact,
    out: Path,
    on_epoch: Callable[[Epoch], None],
    workers: Workers | None = None,
) -> list[Epoch]:
    """Train the localiser of a run, and write its weights to ``out`` (safetensors) and what they are to a card.

    The weights start at random, or as the checkpoint of their role among the run's. An epoch without mosaics reads what
    is cached and touches no frozen network but those that the loss asks; a mosaic is looked at as it comes. After each
    epoch a checkpoint is written beside ``out``; the same call goes on from there, to the same bytes.

    Args:
        run: its images are those of the training, with those that are held out.
        config: the recipe.
        tokens: what the localiser saw in each image.
        out: a new file.
        on_epoch: told of each epoch when it ends.
        workers: the processes that train together; this one alone by default.

    Raises:
        ConfigError: the checkpoint is another training's.
        StageError: the loss is no number.
    """
    workers = workers or Workers()
    localiser, networks = cast("Trainable", run.localiser), networks_of(run.experiment, run.weights)
    excluded = held_out(run, config.held_out, config.seed)
    training = run.only([record for record in run.manifest if record.category not in excluded])
    unseen = run.only([record for record in run.manifest if record.category in excluded])
    words = {run.words(record) for record in run.manifest}
    texts = text_features(run, words) if localiser.WORDS else {}
    state = _begun(localiser, networks, run, config)
    examples = Examples(training, networks, tokens, config.mosaic)
    place, digest = checkpoint_of(out), identity(run, config, workers.size)
    _resume(state, place, digest)
    workers.wait()
    while len(state.epochs) < config.epochs:
        loss = _epoch(state, config, examples, texts, workers)
        found = validated(unseen, networks, state.module, tokens, texts) if excluded and workers.first else None
        state.epochs.append(Epoch(len(state.epochs) + 1, loss, **(asdict(found) if found else {})))
        if workers.first:
            _save(state, place, digest)
            on_epoch(state.epochs[-1])
    workers.wait()
    if workers.first:
        _write(training, config, state, out, excluded)
        place.unlink(missing_ok=True)
    return state.epochs


def require_usable(run: Run, config: TrainConfig, out: Path, workers: Workers) -> None:
    """Refuse what a training could not start from, before anything is written.

    Raises:
        ConfigError, WeightsError: what lies beside ``out`` is no checkpoint of this training, or the weights that it is
            to start from are of no use.
        DataError: too many categories would be held out.
    """
    localiser = cast("Trainable", run.localiser)
    if localiser.TRAINED in run.weights:
        localiser.adapter(networks_of(run.experiment, run.weights))
    held_out(run, config.held_out, config.seed)
    _read(checkpoint_of(out), identity(run, config, workers.size))


@dataclass
class _State:
    """Where a training stands.

    Attributes:
        module: what is trained.
        optimiser: over all of it.
        rng: draws the order of the images and the mosaics.
        epochs: those that are done.
    """

    module: nn.Module
    optimiser: torch.optim.Optimizer
    rng: np.random.Generator
    epochs: list[Epoch] = field(default_factory=list)


def _begun(localiser: Trainable, networks: Networks, run: Run, config: TrainConfig) -> _State:
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    if localiser.TRAINED in run.weights:
        module = copy.deepcopy(localiser.adapter(networks)).requires_grad_(True)
    else:
        module = localiser.untrained(networks)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser]
    optimiser = kind(module.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    return _State(module.train(), optimiser, rng)


def _epoch(
    state: _State,
    config: TrainConfig,
    examples: Examples,
    texts: Mapping[str, torch.Tensor],
    workers: Workers,
) -> float:
    """One pass over the images in a drawn order; the mean loss of its batches."""
    run, networks = examples.run, examples.networks
    records = list(run.manifest)
    order = state.rng.permutation(len(records))
    starts = range(0, len(order), config.batch_size)
    losses = []
    for number, start in enumerate(starts):
        if config.schedule == "cosine":
            done = (len(state.epochs) + number / len(starts)) / config.epochs
            for group in state.optimiser.param_groups:
                group["lr"] = config.learning_rate * (1 + math.cos(math.pi * done)) / 2
        chosen = [records[index] for index in order[start : start + config.batch_size]]
        drawn = [examples.draw(record, state.rng) for record in chosen]
        mine = workers.share(drawn)
        state.optimiser.zero_grad()
        value = 0.0
        if mine:
            loss = _loss(state.module, examples, networks, mine, texts, bf16=config.precision == "bf16")
            if workers.size > 1:
                loss = loss * (len(mine) / len(drawn))
            loss.backward()  # type: ignore[no-untyped-call]
            value = float(loss.detach())
        workers.sum_gradients(state.module)
        losses.append(workers.total(value))
        if not math.isfinite(losses[-1]):
            raise StageError(
                f"epoch {len(state.epochs) + 1}: the loss is {losses[-1]}; use a smaller learning_rate, "
                f"or precision fp32"
            )
        state.optimiser.step()
    return float(np.mean(losses))


def _loss(
    module: nn.Module,
    examples: Examples,
    networks: Networks,
    drawn: Sequence[Drawn],
    texts: Mapping[str, torch.Tensor],
    *,
    bf16: bool,
) -> torch.Tensor:
    run, device = examples.run, networks.device
    read = [examples.read(each) for each in drawn]
    looks = {name: torch.stack([seen[name] for seen, _ in read]).to(device) for name in read[0][0]}
    masks = torch.from_numpy(np.stack([mask for _, mask in read])).to(device)
    text = torch.stack([texts[run.words(each[0])] for each in drawn]).clone() if texts else None
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return cast("Trainable", run.localiser).loss(module, networks, looks, text, masks)


def _save(state: _State, place: Path, digest: str) -> None:
    kept = {
        "identity": digest,
        "module": state.module.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "draws": json.dumps(state.rng.bit_generator.state),
        "torch": torch.get_rng_state(),
        "epochs": [asdict(epoch) for epoch in state.epochs],
    }
    with replacing(place) as part:
        torch.save(kept, part)


def _read(place: Path, digest: str) -> dict[str, Any] | None:
    """The checkpoint of this training; ``None`` if there is none."""
    if not place.exists():
        return None
    try:
        kept: dict[str, Any] = torch.load(place, map_location="cpu", weights_only=True)
        found = kept["identity"]
    except Exception as error:  # a file can be damaged in many ways
        raise WeightsError(
            f"{place}: damaged, or no checkpoint of a training; delete it, or choose another --out"
        ) from error
    if found != digest:
        raise ConfigError(
            f"{place}: was left by a training with another recipe, other options or other images; give its command "
            f"again to go on with it, delete it, or choose another --out"
        )
    return kept


def _resume(state: _State, place: Path, digest: str) -> None:
    kept = _read(place, digest)
    if kept is None:
        return
    state.module.load_state_dict(kept["module"])
    state.optimiser.load_state_dict(kept["optimiser"])
    state.rng.bit_generator.state = json.loads(kept["draws"])
    torch.set_rng_state(kept["torch"])
    state.epochs = [Epoch(**epoch) for epoch in kept["epochs"]]


def _write(run: Run, config: TrainConfig, state: _State, out: Path, excluded: tuple[str, ...]) -> None:
    said = training_of(run, config, state.epochs, cast("Trainable", run.localiser).TRAINED)
    weights = {name: value.detach().cpu().contiguous() for name, value in state.module.state_dict().items()}
    with replacing(out) as part:
        save_file(weights, part, metadata={"training": json.dumps(said, sort_keys=True)})
        sizes = {name: value.numel() for name, value in weights.items()}
        write_text(card_of(out), card(said, run, sizes, file_sha256(part), excluded))
