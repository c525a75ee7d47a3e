"""What a task is sent, and what planning costs, as a dataset grows.

    python -m benchmarks.tasks [--images 300,3000,30000] [--json]

The manifest is made up and nothing is computed: for each stage its items are listed and cut into shards, and the work
of the largest shard is pickled as Dask, Ray and worker processes send it, less the rows that it is allotted (a name and
a number for each item).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

import cloudpickle

from benchmarks.paired import publish
from cascade.configs.loader import load_experiment
from cascade.flows.engines.evaluate import stages_of
from cascade.storage.datasets import ImageRecord, Manifest
from cascade.storage.weights import LocatedWeights
from cascade.tasks.execution.prefect_task import ShardWork
from cascade.tasks.execution.shards import run_of_shard, shard_size, shards_of
from cascade.tasks.stage import Run

CATEGORIES = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="300,3000,30000")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {}
    for images in map(int, arguments.images.split(",")):
        run = made_up(images)
        stages = {}
        started = time.perf_counter()
        for stage in stages_of(run):
            artefact = stage.artefact(run)
            shards = shards_of(stage.items(run), shard_size(run, stage))
            largest = max(shards, key=len)
            allotted = artefact.for_worker(item.id for item in largest)
            work = ShardWork(run_of_shard(run, stage, largest), stage, largest, allotted)
            sent = 0 if stage.central else len(cloudpickle.dumps(work))
            stages[stage.name] = {"tasks": len(shards), "largest_task_bytes": sent}
        seconds = time.perf_counter() - started
        total = sum(each["tasks"] * each["largest_task_bytes"] for each in stages.values())
        found[images] = {
            "stages": stages,
            "largest_task_bytes": max(each["largest_task_bytes"] for each in stages.values()),
            "bytes_per_image_at_most": total / images,
            "plan_seconds": seconds,
            "plan_microseconds_per_image": 1e6 * seconds / images,
        }
    publish([], {"images": found}, as_json=arguments.json)
    return 0


def made_up(images: int) -> Run:
    """A run over a manifest of images that are on no disk."""
    records = []
    for number in range(images):
        category, label = f"category{number // 2 % CATEGORIES:02d}", number % 2
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        records.append(
            ImageRecord(
                path=f"{category}/test/{'bad' if label else 'good'}/{number:06d}.png",
                mask_path=f"{category}/ground_truth/bad/{number:06d}_mask.png" if label else None,
                category=category,
                defect="bad" if label else "good",
                label=label,
                split="test",
                width=1024,
                height=1024,
                image_id=digest,
                mask_id=digest if label else None,
            )
        )
    folder = Path("nowhere")
    weights = {role: LocatedWeights(folder / role, "0" * 64, "path") for role in ("sam", "clip", "adapter")}
    return Run(load_experiment("mini"), Manifest("made up", folder, tuple(records)), folder, weights)


if __name__ == "__main__":
    sys.exit(main())
