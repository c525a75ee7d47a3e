"""A grid of dilation kernels from a warm store, against the same variants run apart, and without any reuse.

    python -m benchmarks.ablation [--json]

Nine variants (three shapes, three sizes) of the mini models on generated images, from a store that holds the encoders'
work. The peers are nine passes, each prepared by itself, of prompt, refine and score, which end without a table; the
same passes on to their tables, as the ablation does; and nine runs in empty stores. The ablation writes its state and
its tables, and draws nothing. Processor time is given too, since the other work of a busy machine is not in it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.paired import Comparison, of_pairs, publish
from cascade.configs.grid import expand, load_grid
from cascade.configs.settings import Settings
from cascade.flows.ablation.outputs import finished_table, write_tables
from cascade.flows.ablation.state import new_ablation, write_ablation
from cascade.flows.ablation.variants import prepare_variants, run_variants
from cascade.flows.engines.evaluate import StagePlan, evaluate, run_stage, stages_of
from cascade.flows.engines.local import execute_locally
from cascade.flows.generate import generate_dataset
from cascade.flows.run import Observer
from cascade.flows.run.prepare import Prepared, prepare
from cascade.flows.run.reading import remember_checked
from cascade.storage.errors import CorruptItem
from cascade.tasks.aggregate import AGGREGATE
from cascade.tasks.prompt import PROMPT
from cascade.tasks.refine import REFINE
from cascade.tasks.score import SCORE
from cascade.tasks.tally import TALLY

VARIANTS = 9
ENCODERS = ("embed", "tokens", "localise")


class Counting(Observer):
    """Counts the items of each stage."""

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()

    def started(self, plan: StagePlan) -> Callable[[], None]:
        return lambda: self.computed.update([plan.stage.name])

    def damaged(self, error: CorruptItem) -> None:
        raise error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        comparisons, encoded = _compare(Path(folder), arguments.images, arguments.rounds)
    facts = {
        "images": arguments.images,
        "variants": VARIANTS,
        "rounds": arguments.rounds,
        "images_that_the_encoders_ran_in_the_ablation": encoded,
    }
    publish(comparisons, facts, as_json=arguments.json)
    return 0


class Clock:
    """Seconds of wall-clock and of processor time since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def read(self) -> np.ndarray:
        return np.array([time.perf_counter() - self.began[0], time.process_time() - self.began[1]])


def _compare(folder: Path, images: int, rounds: int) -> tuple[list[Comparison], int]:
    data, warm = folder / "data", folder / "warm"
    good = images // 4
    generate_dataset(data, categories=("metal plate",), good=good, defective=images - good)
    grid = load_grid("table2")
    variants = expand(grid, "mini", [f"dataset.path={data}"])
    _fill(prepare(variants[0].experiment, warm, Settings()))
    encoded: Counter[str] = Counter()

    def warm_copy(name: str) -> Path:
        store = folder / name
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(warm, store)
        return store

    def ablation() -> np.ndarray:
        store, out, counting = warm_copy("ablation"), folder / "out", Counting()
        clock = Clock()
        state = new_ablation(grid, variants, store, allow_leak=False)
        candidates = prepare_variants(state, Settings())
        ended = run_variants(state, candidates, execute_locally, counting, lambda now: write_ablation(out, now))
        table = finished_table(ended, candidates)
        assert table is not None
        assert len(table) == len(variants) * 2 * 4
        write_tables(out, ended, table)
        encoded.update(counting.computed)
        return clock.read()

    def apart() -> tuple[np.ndarray, np.ndarray]:
        """To the scores, and to the table."""
        store, to_scores, to_table = warm_copy("apart"), np.zeros(2), np.zeros(2)
        for variant in variants:
            clock = Clock()
            run = prepare(variant.experiment, store, Settings()).run
            for stage in (PROMPT, REFINE, SCORE):
                run_stage(run, stage, execute_locally, Counting())
            to_scores += clock.read()
            for stage in (TALLY, AGGREGATE):
                run_stage(run, stage, execute_locally, Counting())
            to_table += clock.read()
        return to_scores, to_table

    def naive() -> np.ndarray:
        clock = Clock()
        for number, variant in enumerate(variants):
            run = prepare(variant.experiment, folder / f"naive{number}", Settings()).run
            evaluate(run, execute_locally, Counting())
        return clock.read()

    ablation(), apart()  # warm up
    measured = [(ablation(), *apart()) for _ in range(rounds)]
    comparisons = []
    for kind, name in enumerate(("wall-clock time", "processor time")):
        for peer, what in ((1, "nine passes of prompt, refine and score"), (2, "the same on to their tables")):
            pairs = [(float(round_[0][kind]), float(round_[peer][kind])) for round_ in measured]
            comparisons.append(of_pairs(f"ablation, {name}", what, "variant", pairs, VARIANTS))
    own, without_reuse = ablation()[0], naive()[0]
    comparisons.append(
        of_pairs(
            "ablation, wall-clock time",
            "nine runs in empty stores, once",
            "variant",
            [(float(own), float(without_reuse))],
            VARIANTS,
        )
    )
    return comparisons, sum(encoded[stage] for stage in ENCODERS)


def _fill(prepared: Prepared) -> None:
    """What any run leaves behind: everything up to the maps and embeddings, and a file checked once."""
    run = prepared.run
    remember_checked(prepared.images, run.store)
    for stage in stages_of(run):
        if stage.name in ENCODERS:
            run_stage(run, stage, execute_locally, Counting())


if __name__ == "__main__":
    sys.exit(main())
