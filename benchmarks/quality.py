"""One table of the mini presets' quality on photographs, compared with the last committed one.

    python -m benchmarks.quality --data DIR                      # presets mini and mini_batch as they are shipped
    python -m benchmarks.quality --data DIR --preset mini        # one of them; --set changes its options
    python -m benchmarks.quality --data DIR --leave-one-out      # mini; each category, an adapter tuned on the others
    python -m benchmarks.quality --data DIR --write              # make this table the committed one

Rows are the map, the three cascade steps and, once, the oracle. The oracle is the cascade alone: one positive point
where a defect of more than 0.5 % of the image is deepest, then the three steps; its figures are IoU with that defect.
It stands under the first preset, whose SAM and cascade it is. Every option is at its default unless ``--set`` says
otherwise.

The row ``end to end`` has seconds an image: ``Segmenter.predict_batch`` on the first images of a category, decoded
before, after a call on the fewest that it takes, with as many threads as torch finds; the numbers are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from rich.console import Console

from cascade import Segmenter
from cascade.backbones.sam.build import input_side
from cascade.backbones.sam.image import input_frame
from cascade.configs.loader import load_experiment
from cascade.configs.schema import Experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import evaluate
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.prepare import prepare
from cascade.flows.run.progress import RichReporter
from cascade.flows.train import train_config, train_method
from cascade.frames import logits_in_frame, mask_box, scale_points
from cascade.refiners.cps import Cps
from cascade.refiners.passes import run_cascade
from cascade.refiners.protocol import Row
from cascade.storage.datasets import mask_in_frame, read_image, read_mask
from cascade.storage.weights import LocatedWeights, file_sha256
from cascade.tasks.embed import EMBED
from cascade.tasks.execution.adapters import adapter_training
from cascade.tasks.execution.networks import decoder_of, device_of
from cascade.tasks.stage import Run
from cascade.tasks.tables.batch import COLUMN, batch_note
from cascade.tasks.tables.results import results_table
from cascade.tasks.training.provenance import card_of

LAST = Path(__file__).parent / "results"
"""Where the committed tables are."""

PRESETS = ("mini", "mini_batch")
METRICS = ("pixel_auroc", "pixel_f1max", "pixel_ap", "pixel_aupro", "image_auroc")
COLUMNS = ("category", "preset", "row", "metric", "value")
SHOWN = (*METRICS, "iou", "seconds", COLUMN)
ORACLE_AREA = 0.005
"""Share of the image above which a defect gets an oracle point."""

TIMED = 16
"""Most images of a category that are timed."""
ROW = "end to end"

TUNING = ("start=april_gan_mini", "epochs=6", "learning_rate=2e-4")
"""Recipe of the leave-one-out adapters: the shipped layers, tuned on the other categories."""


def oracle_points(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each large 8-connected defect ``[H, W]`` of a mask with its deepest point ``[1, 2]`` (x, y)."""
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for part in range(1, count):
        if statistics[part, cv2.CC_STAT_AREA] > ORACLE_AREA * mask.size:
            defect = parts == part
            depth = cv2.distanceTransform(np.pad(defect, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            yield defect, np.array([[column, row]], np.float64)


def oracle_table(run: Run) -> pd.DataFrame:
    """IoU and predicted IoU of each large defect at each step of the cascade, from one point inside it."""
    experiment = run.experiment
    decode, device, size = (
        decoder_of(run.experiment, run.weights),
        device_of(run.experiment.runtime),
        (experiment.score.frame,) * 2,
    )
    options = Cps(**experiment.refine.model_dump(exclude={"method", "decoder", "precision", "batch_size"}))
    embeddings = EMBED.artefact(run)
    rows = []
    for record in run.manifest:
        if record.mask_path is None:
            continue
        own = (record.height, record.width)
        frame = input_frame(own, experiment.embed.image, input_side(experiment.embed.backbone))
        mask = mask_in_frame(read_mask(run.manifest.root / record.mask_path), size)
        features = torch.from_numpy(embeddings.read(record.image_id).arrays["embedding"])[None].float().to(device)
        for defect, point in oracle_points(mask):
            placed = torch.from_numpy(scale_points(point, size, frame.size))[None].float().to(device)
            around = Row(frame, size, mask_box(defect))
            (cascade,) = run_cascade(decode, features, placed, torch.ones(1, 1, device=device), [around], options)
            for name, step in zip(Cps.STEPS, cascade.steps, strict=True):
                logits = torch.from_numpy(step.logits[step.chosen])[None, None]
                drawn = logits_in_frame(logits, frame, size)[0, 0].numpy() > 0
                iou = (drawn & defect).sum() / (drawn | defect).sum()
                rows.append(
                    {
                        "category": record.category,
                        "step": name,
                        "area": defect.mean(),
                        "iou": iou,
                        "predicted_iou": step.predicted_iou[step.chosen],
                    }
                )
    return pd.DataFrame(rows)


def evaluated(experiment: Experiment, store: Path, reporter: RichReporter) -> tuple[Run, pd.DataFrame]:
    """The finished run of an experiment and its table of results."""
    run = prepare(experiment, store, Settings()).run
    evaluate(run, execute_locally, reporter)
    return run, results_table(run)


def timed(run: Run) -> pd.DataFrame:
    """Seconds an image by category: ``category, seconds, images``."""
    segmenter, rows = Segmenter.from_experiment(run.experiment), []
    for number, category in enumerate(run.manifest.categories):
        records = [record for record in run.manifest if record.category == category][:TIMED]
        photographs = [read_image(run.image_path(record), record.white) for record in records]
        if not number:
            segmenter.predict_batch(photographs[: run.localiser.MIN_BATCH], run.words(records[0]))
        start = time.perf_counter()
        segmenter.predict_batch(photographs, run.words(records[0]))
        seconds = (time.perf_counter() - start) / len(photographs)
        rows.append({"category": category, "seconds": seconds, "images": len(photographs)})
    return pd.DataFrame(rows)


def left_out(data: Path, settings: list[str], store: Path, reporter: RichReporter) -> tuple[Run, pd.DataFrame]:
    """As :func:`evaluated`, each category with an adapter tuned on all the others; the run has its embeddings."""
    whole = load_experiment("mini", [f"dataset.path={data}", *settings])
    run = prepare(whole, store, Settings()).run
    tables = []
    for category in run.manifest.categories:
        adapter = store / "leave-one-out" / f"{category}.safetensors"
        adapter.parent.mkdir(parents=True, exist_ok=True)
        others = load_experiment("mini", [f"dataset.path={data}", f"dataset.exclude=[{category}]", *settings])
        if not _made_alike(adapter, run):
            for path in (adapter, card_of(adapter)):
                path.unlink(missing_ok=True)
            train_method(others, train_config(TUNING), adapter, store=store)
        chosen = [f"dataset.path={data}", f"dataset.categories=[{category}]", f"localise.adapter={adapter}", *settings]
        _, table = evaluated(load_experiment("mini", chosen), store, reporter)
        tables.append(table[table["category"] == category])
    found = pd.concat(tables)
    mean = found.groupby("step", sort=False)[list(METRICS)].mean().reset_index().assign(category="mean")
    return run, pd.concat([found, mean])


def _made_alike(adapter: Path, run: Run) -> bool:
    """Whether an adapter of an earlier call has this recipe and this CLIP."""
    if not adapter.exists():
        return False
    training = adapter_training(LocatedWeights(adapter, file_sha256(adapter), "path"))
    recipe = train_config(TUNING).model_dump(mode="json")
    return (training["recipe"], training["clip_sha256"]) == (recipe, run.weights["clip"].sha256)


def quality_table(results: pd.DataFrame, preset: str, seconds: pd.DataFrame | None = None) -> pd.DataFrame:
    """Tidy: ``category, preset, row, metric, value``, of one preset; the mean of the seconds is over categories.

    Where images judged each other, the metric ``n_batch`` says how many.
    """
    metrics = [*METRICS, *([COLUMN] if batch_note(results) else [])]
    tidy = results.melt(["category", "step"], metrics, "metric", "value").rename(columns={"step": "row"})
    if seconds is not None:
        mean = pd.DataFrame([{"category": "mean", "seconds": seconds["seconds"].mean()}])
        spent = pd.concat([seconds, mean])[["category", "seconds"]].rename(columns={"seconds": "value"})
        tidy = pd.concat([tidy, spent.assign(row=ROW, metric="seconds")], ignore_index=True)
    return tidy.assign(preset=preset)[list(COLUMNS)].round(6)


def oracle_rows(oracle: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The oracle in the same form; its mean is over defects, as the goal asks."""
    own = oracle.groupby(["category", "step"], sort=False)["iou"].mean().reset_index()
    mean = oracle.groupby("step", sort=False)["iou"].mean().reset_index().assign(category="mean")
    ious = pd.concat([own, mean]).rename(columns={"iou": "value"})
    ious = ious.assign(row="oracle " + ious.pop("step"), metric="iou", preset=preset)
    return ious[list(COLUMNS)].round(6)


def show(table: pd.DataFrame, last: pd.DataFrame | None) -> None:
    """Prints a block for each preset, in percent, seconds and images; in brackets the change against the last table."""
    joined = table.assign(change=np.nan)
    if last is not None:
        if set(last["category"]) != set(table["category"]):  # a mean of others is no measure
            last = last[last["category"] != "mean"]
        joined = table.merge(last, on=list(COLUMNS[:-1]), how="left", suffixes=("", "_last"))
        joined["change"] = joined["value"] - joined["value_last"]
    joined["cell"] = [_cell(*each) for each in joined[["metric", "value", "change"]].itertuples(index=False)]
    for preset, block in joined.groupby("preset", sort=False):
        order = list(dict.fromkeys(zip(block["category"], block["row"], strict=True)))
        wide = block.pivot(index=["category", "row"], columns="metric", values="cell").reindex(order).fillna("")
        print(f"{preset}\n{wide[[name for name in SHOWN if name in wide]].to_string()}\n")


def _cell(metric: str, value: float, change: float) -> str:
    if np.isnan(value):
        return ""
    scale, digits = {"seconds": (1, 2), COLUMN: (1, 0)}.get(metric, (100, 1))
    changed = "" if np.isnan(change) else f" ({scale * change:+.{digits}f})"
    return f"{scale * value:.{digits}f}{changed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photographs with masks, in a layout that we read")
    parser.add_argument("--leave-one-out", action="store_true", help="tune an adapter for each category on the others")
    parser.add_argument("--preset", choices=PRESETS, help="only this one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the configuration")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--write", action="store_true", help="make this table the committed one")
    parser.add_argument("--json", action="store_true", help="print the tidy table as JSON")
    arguments = parser.parse_args()
    if arguments.preset and arguments.write:
        parser.error("--write keeps the table of all presets; leave --preset out")
    notes: list[str] = []

    with RichReporter(Console(stderr=True)) as reporter:
        if arguments.leave_one_out:
            run, results = left_out(arguments.data, arguments.set, arguments.store, reporter)
            runs, tables = [run], [quality_table(results, "mini")]
        else:
            runs, tables = [], []
            for preset in [arguments.preset] if arguments.preset else PRESETS:
                experiment = load_experiment(preset, [f"dataset.path={arguments.data}", *arguments.set])
                run, results = evaluated(experiment, arguments.store, reporter)
                with reporter.computing(f"timing {preset}"):
                    seconds = timed(run)
                notes.append(
                    f"{preset}: {seconds['seconds'].mean():.2f} s an image, mean of the categories; at most {TIMED} "
                    f"images of each in one call, {torch.get_num_threads()} threads of torch"
                )
                notes += [f"{preset}: {note}"] if (note := batch_note(results)) else []
                runs.append(run)
                tables.append(quality_table(results, preset, seconds))
    oracle = oracle_table(runs[0])
    table = pd.concat([*tables, oracle_rows(oracle, tables[0]["preset"].iloc[0])], ignore_index=True)
    path = LAST / ("quality_leave_one_out.csv" if arguments.leave_one_out else "quality.csv")
    last = pd.read_csv(path) if path.exists() else None
    if arguments.json:
        print(json.dumps(table.to_dict("records")))
    else:
        show(table, last)
        per_defect = oracle.groupby("step", sort=False)[["iou", "predicted_iou"]].corr(method="spearman")
        ranks = per_defect.xs("iou", level=1)["predicted_iou"].round(2).to_dict()
        print(*notes, sep="\n")
        print(f"oracle: {len(oracle) // len(Cps.STEPS)} defects; rank correlation of predicted and true IoU {ranks}")
    if arguments.write:
        path.parent.mkdir(exist_ok=True)
        table.to_csv(path, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
