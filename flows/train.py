"""Training: APRIL-GAN's linear layers on an auxiliary dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cascade.configs.loader import parse_override, validate
from cascade.configs.schema import Experiment, TrainConfig
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import Reporter, plan_stage, run_stage
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.prepare import locate_clip
from cascade.flows.run.reading import lines_of, read_images, remember_checked
from cascade.storage.errors import ConfigError, CorruptItem
from cascade.storage.paths import require_writable
from cascade.storage.weights import locate
from cascade.tasks.stage import Run
from cascade.tasks.tokens import TOKENS
from cascade.tasks.training.april_gan import Epoch, require_trainable, train_adapter


def train_april_gan(
    experiment: Experiment,
    config: TrainConfig,
    out: Path,
    store: Path,
    settings: Settings,
    reporter: Reporter,
    on_epoch: Callable[[Epoch], None],
    on_warning: Callable[[str], None] = lambda line: None,
) -> list[Epoch]:
    """Cache the tokens of the dataset's split, then train on them; the adapter is written to ``out``.

    ``on_warning`` is told what has to be said of the images, before anything is done.

    Raises:
        ConfigError: ``out`` does not end in ``.safetensors``, is there already or cannot be written.
        DataError, WeightsError: see their messages.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: must end in .safetensors")
    require_writable(out.parent)
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; choose another name, or move it away")
    images = read_images(experiment, store)
    for line in lines_of(images.report.warnings):
        on_warning(line)
    weights = {"clip": locate_clip(experiment, settings)}
    if config.start is not None:
        weights["adapter"] = locate(config.start, folder=settings.weights)
    alone = {"more_sides": (), "keep": "tokens"}  # layers are trained on tokens of one side
    localise = experiment.localise.model_copy(update=alone)
    run = Run(experiment.model_copy(update={"localise": localise}), images.manifest, store.resolve(), weights)
    require_trainable(run)
    plan_stage(run, TOKENS)  # refuses a CLIP that cannot be used
    remember_checked(images, store)
    while True:
        run_stage(run, TOKENS, execute_locally, reporter)
        tokens = run.artefact(TOKENS.key(run))
        try:
            return train_adapter(run, config, tokens, out, on_epoch)
        except CorruptItem as error:
            reporter.damaged(error)
            tokens.forget(error.item)


def train_config(overrides: Sequence[str]) -> TrainConfig:
    """The recipe from ``key=value`` overrides. Raises ``ConfigError``."""
    pairs = [parse_override("--train", override) for override in overrides]
    return validate(TrainConfig, {".".join(names): value for names, value in pairs})
