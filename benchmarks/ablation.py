"""A grid of dilation kernels from a warm store, against the same variants run apart, and without any reuse.

    python -m benchmarks.ablation [--json]

Nine variants (three shapes, three sizes) of the mini models on generated images, from a store that holds the encoders'
work. ``apart`` prepares each variant by itself and runs prompt, refine and score, and makes no table; ``naive`` runs
every variant in an empty store. Each side starts from its own copy of the store. The ablation also aggregates, and
writes its state and its tables; it draws nothing. Beside the ratio of wall-clock time stands that of processor time,
in which the other work of a busy machine is not counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.paired import Comparison, compare, report, show
from configs.grid import Variant, expand, load_grid
from configs.settings import Settings
from flows.ablate import prepare_variants, run_ablation
from flows.ablation import new_ablation, write_ablation
from flows.ablation_outputs import finished_table, write_tables
from flows.evaluate import STAGES, StagePlan, StageResult, evaluate, run_stage
from flows.generate import generate_dataset
from flows.local_engine import execute_locally
from flows.prepare import prepare, remember_checked
from storage.errors import CorruptItem
from tasks.prompt import PROMPT
from tasks.refine import REFINE
from tasks.score import SCORE
from tasks.stage import Run

ENCODERS = ("embed", "localise")


class Counting:
    """A reporter that counts the items of each stage."""

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()

    def started(self, plan: StagePlan) -> Callable[[], None]:
        return lambda: self.computed.update([plan.stage.name])

    def finished(self, result: StageResult) -> None:
        pass

    def damaged(self, error: CorruptItem) -> None:
        raise error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--naive-rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        comparisons, encoded, processor = _compare(
            Path(folder), arguments.images, arguments.rounds, arguments.naive_rounds
        )
    facts: dict[str, object] = {
        "images": arguments.images,
        "variants": 9,
        "rounds": arguments.rounds,
        "naive_rounds": arguments.naive_rounds,
        "images_that_the_encoders_ran_in_the_ablation": encoded,
        "processor_time_ratio": processor,
    }
    if arguments.json:
        print(json.dumps(report(comparisons, facts), indent=2))
    else:
        show(comparisons)
        print(f"the same in processor time, against the nine passes: {processor:.2f} times faster")
        print(f"images that the encoders ran in the ablation: {encoded}")
    return 0


def _compare(folder: Path, images: int, rounds: int, naive_rounds: int) -> tuple[list[Comparison], int, float]:
    data, warm = folder / "data", folder / "warm"
    good = images // 3
    generate_dataset(data, categories=("metal plate",), good=good, defective=images - good)
    grid = load_grid("table2")
    variants = expand(grid, "mini", [f"dataset.path={data}"])
    base = prepare(variants[0].experiment, warm, Settings())
    _fill(base.run)
    encoded: Counter[str] = Counter()
    spent: dict[str, list[float]] = {"ablation": [], "apart": []}
    used = iter(range(1000))

    def warm_copy() -> Path:
        store = folder / f"store{next(used)}"
        shutil.copytree(warm, store)
        return store

    def ablation() -> None:
        began = time.process_time()
        store, out, counting = warm_copy(), folder / "out", Counting()
        state = new_ablation(grid, variants, store, allow_leak=False)
        candidates = prepare_variants(state, Settings())
        ended = run_ablation(
            state, candidates, execute_locally, counting, lambda variant: None, lambda now: write_ablation(out, now)
        )
        table = finished_table(ended, candidates)
        assert table is not None
        assert len(table) == len(variants) * 2 * 4
        write_tables(out, ended, table)
        encoded.update(counting.computed)
        spent["ablation"].append(time.process_time() - began)

    def apart() -> None:
        began = time.process_time()
        store = warm_copy()
        for variant in variants:
            run = prepare(variant.experiment, store, Settings()).run
            for stage in (PROMPT, REFINE, SCORE):
                run_stage(run, stage, execute_locally, Counting())
        spent["apart"].append(time.process_time() - began)

    def naive() -> None:
        for variant in variants:
            _whole(variant, folder / f"store{next(used)}")

    ours = "ablation of 9 variants"
    comparisons = [
        compare(ours, "nine passes of prompt, refine and score", "variant", ablation, apart, 9, rounds),
        compare(ours, "nine runs in empty stores", "variant", ablation, naive, 9, naive_rounds, warm_up=False),
    ]
    pairs = zip(spent["ablation"][1 : rounds + 1], spent["apart"][1:], strict=True)  # the first of each warmed up
    processor = statistics.median(theirs / own for own, theirs in pairs)
    return comparisons, sum(encoded[stage] for stage in ENCODERS), processor


def _fill(run: Run) -> None:
    """What any run leaves behind: everything up to the maps and embeddings, and a file checked once."""
    remember_checked(run.manifest, run.store)
    for stage in STAGES:
        if stage.name in ENCODERS:
            run_stage(run, stage, execute_locally, Counting())


def _whole(variant: Variant, store: Path) -> None:
    evaluate(prepare(variant.experiment, store, Settings()).run, execute_locally, Counting())


if __name__ == "__main__":
    sys.exit(main())
