"""Everything that is decided before a stage runs: images, checkpoints, and whether the test would be fair."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cascade.configs.schema import Experiment
from cascade.configs.settings import Settings
from cascade.flows.run.reading import Images, lines_of, read_images
from cascade.localisers import make_localiser
from cascade.storage.datasets import Manifest
from cascade.storage.errors import DataError, LeakError
from cascade.storage.weights import LocatedWeights
from cascade.tasks.aggregate import definable
from cascade.tasks.execution.adapters import adapter_training
from cascade.tasks.execution.weights import locate_weights
from cascade.tasks.stage import Batch, Run, batches_of


@dataclass(frozen=True)
class Prepared:
    """A run that may start, and what has to be said about it."""

    run: Run
    leak: str | None
    images: Images

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each; those of a kind beyond the first few are counted."""
        return (*lines_of(self.images.report.warnings), *self.alone)

    @property
    def alone(self) -> tuple[str, ...]:
        """A line for each category that is too small for a batch, so that its images are judged alone."""
        if self.run.localiser.SCOPE != "batch":
            return ()
        images = {
            name: {record.image_id for record in self.run.manifest if record.category == name}
            for name in self.run.manifest.categories
        }
        return tuple(
            f"{category}: {len(own)} different images are too few to judge each other ({self.run.localiser.MIN_BATCH} "
            f"needed); each is judged alone"
            for category, own in images.items()
            if category not in self.run.batches
        )


def prepare(
    experiment: Experiment,
    store: Path,
    settings: Settings,
    *,
    allow_leak: bool = False,
    skip_bad: bool = False,
    images: Images | None = None,
) -> Prepared:
    """Find and verify images and checkpoints; nothing is written.

    ``images`` is what :func:`cascade.flows.run.reading.read_images` returned for the same dataset, so that several runs
    read it once; without it, they are read, and with ``skip_bad`` those that cannot be used are left out.

    Raises:
        ConfigError, DataError, WeightsError: see their messages.
        LeakError: the adapter was trained on the data it would be tested on, and ``allow_leak`` is false.
    """
    images = images or read_images(experiment, store, skip_bad=skip_bad)
    manifest = images.manifest
    weights, batches = locate_weights(experiment, settings.weights), batches_for(experiment, manifest)
    run = Run(experiment, manifest, store.resolve(), weights, batches)
    leak = find_leak(experiment, manifest, run.weights.get("adapter"))
    if leak and not allow_leak:
        raise LeakError(f"{leak}; test on other data, use another adapter, or pass --allow-leak to have it marked")
    return Prepared(run, leak, images)


def batches_for(experiment: Experiment, manifest: Manifest) -> dict[str, Batch]:
    """The images that judge the others; none unless the localiser looks at batches.

    Raises:
        DataError: a category has too few images to judge each other, and the localiser judges none alone.
    """
    localiser = make_localiser(experiment.localise.method, experiment.localise)
    if localiser.SCOPE != "batch":
        return {}
    batches = batches_of(manifest, localiser.references)
    small = {name: batch for name, batch in batches.items() if len(batch.images) < localiser.MIN_BATCH}
    for category, batch in small.items():
        if not localiser.ALONE:
            raise DataError(
                f"{category}: {len(batch.images)} different images cannot judge each other; localise.method "
                f"'{experiment.localise.method}' needs {localiser.MIN_BATCH} in each category: add images, leave the "
                f"category out (dataset.exclude), or use a method that looks at one image, such as that of preset mini"
            )
    return {name: batch for name, batch in batches.items() if name not in small}


def require_metrics(manifest: Manifest, purpose: str) -> None:
    """Raise ``DataError`` if labels and masks allow no metric in any category; ``purpose`` is what needs one."""
    categories = {name: [each for each in manifest if each.category == name] for name in manifest.categories}
    if not any(definable(records) for records in categories.values()):
        known = Counter(record.label for record in manifest)
        masks = sum(record.mask_path is not None for record in manifest)
        raise DataError(
            f"{manifest.root}: {purpose} needs metrics, and none is defined: {len(manifest)} images, of which "
            f"{known[0]} are labelled good and {known[1]} defective ({masks} with a mask); it takes both kinds in one "
            f"category, or a mask for every defective image"
        )


def find_leak(experiment: Experiment, manifest: Manifest, adapter: LocatedWeights | None) -> str | None:
    """Why a test would be unfair: an image, a category or a dataset that the adapter, if any, was trained on.

    An adapter that was trained from another one has also seen what that one was trained on.
    """
    if adapter is None:
        return None
    training = adapter_training(adapter)
    while training:
        shared = set(training.get("image_ids", [])) & {record.digest for record in manifest}
        if shared:
            return f"{adapter.path.name} was trained on {len(shared)} of the {len(manifest)} images of {manifest.name}"
        if training.get("dataset") == manifest.name:
            for category in sorted(set(training.get("categories", [])) & set(manifest.categories)):
                return f"{adapter.path.name} was trained on category '{category}' of {manifest.name}"
        training = training.get("start", {})
    named = {name.lower() for name in getattr(experiment.localise, "adapter_trained_on", ())}
    if manifest.name.lower() in named:
        return f"{adapter.path.name} was trained on {manifest.name}, says localise.adapter_trained_on"
    return None
