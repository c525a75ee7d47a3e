"""One decode for both encoders against a decode for each: the stages ``embed`` and ``localise`` with the mini models.

    python -m benchmarks.decode [--images 8] [--json]

Generated photographs, enlarged to 12 megapixels and saved as JPEG, as an inspection camera leaves them. Everything is
in the page cache, and what both ways share (checking the files, loading the networks) is not timed. The networks take
most of the time; CLIP looks at one side here, so that more of it is the photographs', and SAM at another one, so that
nothing but the decode is shared.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.ablation import ENCODERS, Counting
from benchmarks.paired import compare, publish
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import run_stage, stages_of
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.prepare import prepare
from cascade.synthesis.scene import generate_scene
from cascade.tasks.execution import photographs

SIZE = (4000, 3000)
SETTINGS = ("localise.more_sides=[]",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        draw(Path(folder) / "data", arguments.images)
        experiment = load_experiment("mini", [f"dataset.path={Path(folder) / 'data'}", *SETTINGS])
        run = prepare(experiment, store, Settings()).run

        def encoded(limit: int) -> None:
            shutil.rmtree(store, ignore_errors=True)
            photographs.LIMIT = limit
            for stage in stages_of(run):
                if stage.name in ENCODERS:
                    run_stage(run, stage, execute_locally, Counting())

        limit = photographs.LIMIT
        found = compare(
            "embed and localise, one decode",
            "a decode for each",
            "image",
            lambda: encoded(limit),
            lambda: encoded(0),
            arguments.images,
            arguments.rounds,
        )
    publish([found], {"images": arguments.images, "rounds": arguments.rounds, "size": SIZE}, as_json=arguments.json)
    return 0


def draw(root: Path, images: int) -> None:
    """Good photographs of metal plates in MVTec's layout, with the noise of a sensor."""
    rng = np.random.default_rng(0)
    folder = root / "metal plate" / "test" / "good"
    folder.mkdir(parents=True)
    for number in range(images):
        small = generate_scene(number, 512, "metal plate", False).image
        large = cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC) + rng.normal(0, 4, (SIZE[1], SIZE[0], 1))
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.jpg", quality=92)


if __name__ == "__main__":
    sys.exit(main())
