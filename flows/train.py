"""Training: the weights of a localiser's own, on an auxiliary dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.configs.loader import parse_override, validate
from cascade.configs.localisers import LinearClip, Localiser
from cascade.configs.schema import Experiment, TrainConfig
from cascade.configs.section import methods_of
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import plan_stage, run_stage
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.observer import Observer
from cascade.flows.run.progress import LOGGER, LogReporter
from cascade.flows.run.reading import lines_of, read_images, remember_checked
from cascade.localisers import localiser_class
from cascade.localisers.protocol import Trainable
from cascade.storage.errors import ConfigError, CorruptItem
from cascade.storage.paths import require_writable
from cascade.storage.weights import locate
from cascade.tasks.execution.weights import locate_frozen
from cascade.tasks.stage import Run
from cascade.tasks.tokens import TOKENS
from cascade.tasks.training.method_examples import require_masks
from cascade.tasks.training.provenance import Epoch, card_of, checkpoint_of

if TYPE_CHECKING:
    from cascade.tasks.training.workers import Workers


def trained_methods() -> dict[str, type[Trainable]]:
    """The localisers that have weights of their own, by name."""
    found = {name: localiser_class(name) for name in methods_of(Experiment.model_fields["localise"])}
    return {name: each for name, each in found.items() if issubclass(each, Trainable)}


def train_method(
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
    """Cache what the localiser sees in the dataset's split, then train on it; the weights are written to ``out``.

    Beside them a model card is written, ``out`` with the ending ``.md``. A training that was stopped goes on when the
    same call is made again. Under ``torchrun`` its processes share every batch.

    Args:
        experiment: names the dataset and the localiser.
        config: the recipe; see :func:`train_config`.
        out: a new file ``.safetensors``.
        store: folder of the artefacts; that of ``settings`` by default.
        settings: folders of this machine; from the environment by default.
        observer: told of the stage that caches; the logger ``cascade`` by default.
        on_epoch: called after each epoch; the logger is told by default.
        on_warning: told what has to be said of the images, before anything is done.

    Raises:
        ConfigError: the localiser has no weights of its own, or ``out`` does not end in ``.safetensors``, is there
            already or cannot be written.
        DataError, WeightsError: see their messages.
    """
    _require_new(out)
    method = experiment.localise.method
    if method not in trained_methods():
        raise ConfigError(
            f"localise.method is '{method}', which has no weights of its own; those of {', '.join(trained_methods())} "
            f"are trained"
        )
    machine = settings or Settings()
    folder = (store or machine.store).resolve()
    images = read_images(experiment, folder)
    for line in lines_of(images.report.warnings):
        on_warning(line)
    role = trained_methods()[method].TRAINED
    weights = dict(locate_frozen(experiment, machine.weights, role))
    if config.start is not None:
        weights[role] = locate(config.start, folder=machine.weights)
    localise = _alone(experiment.localise)
    run = Run(experiment.model_copy(update={"localise": localise}), images.manifest, folder, weights)
    require_masks(run)

    from cascade.tasks.training.method import require_usable
    from cascade.tasks.training.workers import workers

    with workers() as others:
        require_usable(run, config, out, others)
        plan_stage(run, TOKENS)  # refuses networks that cannot be used
        if others.first:
            remember_checked(images, folder)
        with observer or LogReporter() as told:
            return _train(run, config, out, told, on_epoch or _log_epoch, others)


def _require_new(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: must end in .safetensors")
    require_writable(out.parent)
    begun = checkpoint_of(out).exists()
    for path in (out, *(() if begun else (card_of(out),))):
        if path.exists():
            raise ConfigError(f"--out {path}: is there already; choose another name, or move it away")


def _alone(localise: Localiser) -> Localiser:
    """The same options, with what is seen kept, of one side alone."""
    sides = {"more_sides": ()} if isinstance(localise, LinearClip) else {}
    return localise.model_copy(update={"keep": "tokens", **sides})


def _train(
    run: Run, config: TrainConfig, out: Path, told: Observer, on_epoch: Callable[[Epoch], None], others: Workers
) -> list[Epoch]:
    from cascade.tasks.training.method import train

    while True:
        if others.first:
            run_stage(run, TOKENS, execute_locally, told)
        others.wait()
        tokens = TOKENS.artefact(run)
        try:
            return train(run, config, tokens, out, on_epoch, others)
        except CorruptItem as error:
            if others.size > 1:
                raise
            told.damaged(error)
            tokens.forget(error.item)


def _log_epoch(epoch: Epoch) -> None:
    LOGGER.info("epoch %d: loss %.4f", epoch.number, epoch.loss)
    if epoch.pixel_ap is not None and epoch.pixel_f1max is not None:
        LOGGER.info("held out: AP %.4f, F1-max %.4f", epoch.pixel_ap, epoch.pixel_f1max)


def train_config(overrides: Sequence[str], method: str = "april_gan") -> TrainConfig:
    """The recipe of a method with ``key=value`` overrides. Raises ``ConfigError``."""
    pairs = [parse_override("--train", override) for override in overrides]
    published: Mapping[str, object] = trained_methods()[method].RECIPE
    return validate(TrainConfig, {**published, **{".".join(names): value for names, value in pairs}})
