"""What a run costs when everything is in the store: seconds of ``cascade run`` on 1,700 images, with either engine.

    python -m benchmarks.overhead [--images 1700] [--no-prefect] [--json]

Fifteen categories of noise images of 64 px. Two images go through the pipeline with the mini models; their records are
then written for all the others, without arrays, since a cached run reads none. What is timed is a process from its
start to its end: manifest, digests of all files, plan, ledgers, tables. Prefect's own server is started in every run.
The same run in smaller shards has more task runs, which says what one costs.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.paired import publish
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import evaluate, stages_of
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.prepare import prepare
from cascade.flows.run.progress import RichReporter

CATEGORIES = 15
SIDE = 64
USUAL, SMALL = 128, 16
"""Images of a shard: the default, and what shows the cost of a task run."""
BY_IMAGE = 6
"""Stages that are cut into shards of images: embed, tokens, localise, prompt, refine, score."""
SETTINGS = ("score.frame=64", "prompt.frame=64", "prompt.threshold.rule=quantile", "prompt.threshold.min_area=5")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1700)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-prefect", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root / "data", arguments.images)
        draw(root / "sample", 2)
        fill(root)
        command = [sys.executable, "-c", "from cascade.flows.cli import main; main()"]
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        run = [*command, "run", "mini", "--dataset", str(root / "data"), "--store", str(root / "store"), *settings]
        ways = {"cascade --help": [*command, "--help"], "local engine": [*run, "--engine", "local"]}
        if not arguments.no_prefect:
            ways["prefect engine"] = [*run, "--engine", "prefect"]
            ways["prefect engine, small shards"] = [*ways["prefect engine"], "--set", f"runtime.shard_size={SMALL}"]
        environment = os.environ | {"PREFECT_HOME": str(root / "prefect"), "CASCADE_RUNS": str(root / "runs")}
        found = {name: timed(way, environment, arguments.rounds) for name, way in ways.items()}
    facts: dict[str, object] = {"images": arguments.images, "rounds": arguments.rounds, "seconds": found}
    if not arguments.no_prefect:
        # A few images make as many shards either way, and nothing to divide by.
        more = BY_IMAGE * (math.ceil(arguments.images / SMALL) - math.ceil(arguments.images / USUAL))
        longer = found["prefect engine, small shards"]["median"] - found["prefect engine"]["median"]
        facts |= {"seconds_per_task_run": longer / more} if more else {}
    publish([], facts, as_json=arguments.json)
    return 0


def draw(root: Path, images: int) -> None:
    """Noise in MVTec's layout, every other image defective; no two files are alike."""
    rng = np.random.default_rng(images)
    for number in range(images):
        category = root / f"category{number // 2 % CATEGORIES:02d}"
        kind = "bad" if number % 2 else "good"
        path = category / "test" / kind / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        if kind == "bad":
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[8 : 16 + number % 32, 8:24] = 255
            path = category / "ground_truth" / kind / f"{number:04d}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


def fill(root: Path) -> None:
    """Evaluate the sample, then give every image of the dataset the records of the sample's image with its label."""
    sample, whole = (
        prepare(load_experiment("mini", [f"dataset.path={root / name}", *SETTINGS]), root / "store", Settings()).run
        for name in ("sample", "data")
    )
    with RichReporter(Console(stderr=True)) as reporter:
        evaluate(sample, execute_locally, reporter)
    for stage in stages_of(whole):
        artefact = stage.artefact(whole)
        sources = {item.record.label: artefact.record(item.id) for item in stage.items(sample)}
        items = stage.items(whole)
        with artefact.writing([item.id for item in items], {}):
            for item in items:
                record = dict(sources[item.record.label])
                if "rows" in record:
                    categories = [*whole.manifest.categories, "mean"]
                    own = [row for row in record["rows"] if row["category"] != "mean"]
                    record["rows"] = [row | {"category": name} for name in categories for row in own]
                artefact.write(item.id, {}, record)


def timed(command: list[str], environment: dict[str, str], rounds: int) -> dict[str, float]:
    """Median, least and largest seconds, after one run that is not counted; it checks that nothing was computed."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        if result.returncode or re.search(r"^\w+ +miss ", result.stdout, re.MULTILINE):
            raise RuntimeError(f"{command}: {result.stdout}{result.stderr}")
    counted = seconds[1:]
    return {"median": statistics.median(counted), "least": min(counted), "largest": max(counted)}


if __name__ == "__main__":
    sys.exit(main())
