"""Every localiser with every refiner, on the mini networks: quality by category, and seconds an image.

    python -m benchmarks.matrix --train DIR --data DIR           # trains what has weights of its own on --train
    python -m benchmarks.matrix --train DIR --data DIR --write   # and makes this table the committed one

A row is the last step of one localiser, one refiner and one category; ``mean`` is the mean of the categories.
Weights of a localiser's own are trained on ``--train`` by its published recipe, anew in each call; those that ship
with the package (APRIL-GAN's) are used as they are. ``seconds`` is ``Segmenter.predict_batch`` on the first images of
one category, encoders included, decoded before, after a call on the fewest that it takes. ``against`` is the mean's
difference in pixel AP from APRIL-GAN with the same refiner, with the ends of its 95 % interval over images; maps alone
are steps of different names, and are not compared.

Where images judged each other ``n_batch`` says how many; such a row is not to be held against one of single images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from benchmarks.quality import LAST, METRICS
from cascade import Segmenter
from cascade.configs.loader import load_experiment
from cascade.configs.schema import Experiment
from cascade.configs.settings import Settings
from cascade.flows.run.experiment import Evaluation, run_experiment
from cascade.flows.run.progress import RichReporter
from cascade.flows.train import train_config, train_method
from cascade.flows.watch.compare import compare_runs
from cascade.storage.datasets import read_image
from cascade.storage.errors import ConfigError
from cascade.tasks.execution.weights import missing_weights
from cascade.tasks.stage import Run
from cascade.tasks.tables.batch import COLUMN
from cascade.tasks.training.provenance import card_of

LOCALISERS: dict[str, tuple[str, ...]] = {
    "april_gan": (),
    "winclip": ("localise.method=winclip",),
    "sdp": ("localise.method=sdp",),
    "sdp_plus": ("localise.method=sdp_plus",),
    "anomaly_clip": ("localise.method=anomaly_clip",),
    "af_clip": ("localise.method=af_clip", "localise.image_side=256"),  # its neighbourhoods are slow on 64x64 cells
    "clipsam_umci": ("localise.method=clipsam_umci",),
    "uniadet": ("localise.method=uniadet",),
    "uniadet on features": (
        "localise.method=uniadet",
        "localise.tower=features",
        "localise.backbone=efficientnet_lite0",
        "localise.layers=[2,3,4]",
    ),
    "mutual": ("localise.method=mutual",),
    "fused": (),
}
"""What each sets, beside the preset ``mini``; ``fused`` is ``mini_batch``, whose batch ``mutual`` has alone."""
REFINERS = ("none", "cps", "persam", "mmr")
COLUMNS = ("localiser", "refiner", "category", *METRICS, COLUMN, "seconds", "against", "against_low", "against_high")
BASELINE = "april_gan"
TIMED = 8
"""Images that are timed."""


def experiment_of(localiser: str, data: Path, *settings: str) -> Experiment:
    """A localiser on the mini networks, and photographs."""
    chosen = [f"dataset.path={data}", *LOCALISERS[localiser], *settings]
    if localiser == "mutual":
        batch = load_experiment("mini_batch").localise.batch.model_dump(
            mode="json", exclude={"method"}, exclude_defaults=True
        )
        chosen += [f"localise.{name}={json.dumps(value)}" for name, value in batch.items()]
    return load_experiment("mini_batch" if localiser == "fused" else "mini", chosen)


def trained(localiser: str, train: Path, store: Path, reporter: RichReporter) -> list[str]:
    """The setting that names a localiser's own weights, trained now; none if it needs none, or they are shipped."""
    experiment = experiment_of(localiser, train)
    if "adapter" not in missing_weights(experiment, Settings().weights):
        return []
    path = (store / "matrix" / f"{localiser.replace(' ', '_')}.safetensors").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # of another call, and so perhaps of other photographs or another CLIP
        path.unlink()
        card_of(path).unlink(missing_ok=True)
    train_method(experiment, train_config([], experiment.localise.method), path, store=store, observer=reporter)
    return [f"localise.adapter={path}"]


def seconds_of(run: Run) -> float:
    """Seconds an image."""
    segmenter, category = Segmenter.from_experiment(run.experiment), run.manifest.categories[0]
    records = [record for record in run.manifest if record.category == category][:TIMED]
    photographs, words = [read_image(run.image_path(each), each.white) for each in records], run.words(records[0])
    segmenter.predict_batch(photographs[: run.localiser.MIN_BATCH], words)
    start = time.perf_counter()
    segmenter.predict_batch(photographs, words)
    return (time.perf_counter() - start) / len(photographs)


def rows_of(localiser: str, refiner: str, found: Evaluation, baseline: Evaluation | None) -> pd.DataFrame:
    """The last step by category, with ``COLUMNS``."""
    table = found.table[found.table["step"] == found.table["step"].iloc[-1]]
    rows = table.assign(localiser=localiser, refiner=refiner).reindex(columns=list(COLUMNS))
    mean = rows["category"] == "mean"
    rows.loc[mean, "seconds"] = seconds_of(found.prepared.run)
    if baseline is not None:
        compared = compare_runs(found.folder, baseline.folder).table
        (own,) = compared[(compared["category"] == "mean") & (compared["metric"] == "pixel_ap")].to_dict("records")
        for column, name in (("against", "difference"), ("against_low", "low"), ("against_high", "high")):
            rows.loc[mean, column] = own[name]
    return rows


def matrix(
    train: Path, data: Path, store: Path, localisers: list[str], refiners: list[str], reporter: RichReporter
) -> tuple[pd.DataFrame, list[str]]:
    """The table, and the localisers that the mini networks cannot serve, with the reason."""
    tables, left_out = [], []
    baselines: dict[str, Evaluation] = {}
    for localiser in sorted(localisers, key=lambda name: name != BASELINE):
        try:
            weights = trained(localiser, train, store, reporter)
            for refiner in refiners:
                experiment = experiment_of(localiser, data, f"refine.method={refiner}", *weights)
                folder = store / "matrix" / f"{localiser.replace(' ', '_')}-{refiner}"
                shutil.rmtree(folder, ignore_errors=True)
                found = run_experiment(experiment, store=store, out=folder, engine="local", observer=reporter)
                if localiser == BASELINE and found.prepared.run.refiner.STEPS:
                    baselines[refiner] = found
                tables.append(
                    rows_of(localiser, refiner, found, None if localiser == BASELINE else baselines.get(refiner))
                )
        except ConfigError as error:
            left_out.append(f"{localiser}: {error}")
    return pd.concat(tables, ignore_index=True).round(6), left_out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=Path, required=True, help="photographs with masks to train on, of other products"
    )
    parser.add_argument("--data", type=Path, required=True, help="photographs with masks to report on")
    parser.add_argument("--localisers", nargs="+", choices=LOCALISERS, default=list(LOCALISERS), help="only these")
    parser.add_argument("--refiners", nargs="+", choices=REFINERS, default=list(REFINERS), help="only these")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--write", action="store_true", help="make this table the committed one")
    arguments = parser.parse_args()
    with RichReporter(Console(stderr=True)) as reporter:
        table, left_out = matrix(
            arguments.train, arguments.data, arguments.store, arguments.localisers, arguments.refiners, reporter
        )
    mean = table[table["category"] == "mean"].drop(columns="category")
    print(mean.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep=""))
    print(f"{torch.get_num_threads()} threads of torch", *left_out, sep="\n")
    if arguments.write:
        table.to_csv(LAST / "matrix.csv", index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
