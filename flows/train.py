"""Training: APRIL-GAN's linear layers on an auxiliary dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cascade.configs.loader import parse_override, validate
from cascade.configs.localisers import AprilGan
from cascade.configs.schema import Experiment, TrainConfig
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import plan_stage, run_stage
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.observer import Observer
from cascade.flows.run.progress import LOGGER, LogReporter
from cascade.flows.run.reading import lines_of, read_images, remember_checked
from cascade.storage.errors import ConfigError, CorruptItem
from cascade.storage.paths import require_writable
from cascade.storage.weights import locate
from cascade.tasks.execution.weights import locate_clip
from cascade.tasks.stage import Run
from cascade.tasks.tokens import TOKENS
from cascade.tasks.training.april_gan import Epoch, require_trainable, train_adapter


def train_april_gan(
    experiment: Experiment,
    config: TrainConfig,
    out: Path,
    *,
    store: Path | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_warning: Callable[[str], None] = LOGGER.warning,
) -> list[Epoch]:
    """Cache the tokens of the dataset's split, then train on them; the adapter is written to ``out``.

    Args:
        experiment: names the dataset and the CLIP model.
        config: the recipe; see :func:`train_config`.
        out: a new file ``.safetensors``.
        store: folder of the artefacts; that of ``settings`` by default.
        settings: folders of this machine; from the environment by default.
        observer: told of the stage that caches tokens; the logger ``cascade`` by default.
        on_epoch: called after each epoch; the logger is told by default.
        on_warning: told what has to be said of the images, before anything is done.

    Raises:
        ConfigError: ``out`` does not end in ``.safetensors``, is there already or cannot be written.
        DataError, WeightsError: see their messages.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: must end in .safetensors")
    require_writable(out.parent)
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; choose another name, or move it away")
    if not isinstance(experiment.localise, AprilGan):
        raise ConfigError(
            f"localise.method is '{experiment.localise.method}'; linear layers are trained with april_gan"
        )
    machine = settings or Settings()
    folder = (store or machine.store).resolve()
    images = read_images(experiment, folder)
    for line in lines_of(images.report.warnings):
        on_warning(line)
    weights = {"clip": locate_clip(experiment, machine.weights)}
    if config.start is not None:
        weights["adapter"] = locate(config.start, folder=machine.weights)
    alone = {"more_sides": (), "keep": "tokens"}  # layers are trained on tokens of one side
    localise = experiment.localise.model_copy(update=alone)
    run = Run(experiment.model_copy(update={"localise": localise}), images.manifest, folder, weights)
    require_trainable(run)
    plan_stage(run, TOKENS)  # refuses a CLIP that cannot be used
    remember_checked(images, folder)
    with observer or LogReporter() as told:
        return _train(run, config, out, told, on_epoch or _log_epoch)


def _train(run: Run, config: TrainConfig, out: Path, told: Observer, on_epoch: Callable[[Epoch], None]) -> list[Epoch]:
    while True:
        run_stage(run, TOKENS, execute_locally, told)
        tokens = TOKENS.artefact(run)
        try:
            return train_adapter(run, config, tokens, out, on_epoch)
        except CorruptItem as error:
            told.damaged(error)
            tokens.forget(error.item)


def _log_epoch(epoch: Epoch) -> None:
    LOGGER.info("epoch %d: loss %.4f", epoch.number, epoch.loss)


def train_config(overrides: Sequence[str]) -> TrainConfig:
    """The recipe from ``key=value`` overrides. Raises ``ConfigError``."""
    pairs = [parse_override("--train", override) for override in overrides]
    return validate(TrainConfig, {".".join(names): value for names, value in pairs})
