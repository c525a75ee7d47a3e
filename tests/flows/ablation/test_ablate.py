from __future__ import annotations

import json
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from cascade.configs.grid import Grid, expand, load_grid
from cascade.configs.loader import validate
from cascade.configs.settings import Settings
from cascade.flows.ablation.outputs import finished_table
from cascade.flows.ablation.plan import plan_keys
from cascade.flows.ablation.state import Ablation, new_ablation, read_ablation
from cascade.flows.ablation.timings import past_rates
from cascade.flows.ablation.variants import Candidates, prepare_variants, run_variants
from cascade.flows.cli.observers import AblationObserver
from cascade.flows.engines.evaluate import StagePlan
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.prepare import Prepared
from cascade.flows.run.results import write_run
from cascade.storage.artefacts import Store
from cascade.tasks import refine
from cascade.tasks.aggregate import METRICS
from tests.flows.conftest import Bench, Cli, Outcome, Recorder, files_of, flip_chunk, save_adapter

IMAGES = 8
WEIGHTS = {"axes": {"grid": {"score.weight": [0.2, 0.8]}}}


def without(bench: Bench, key: str) -> Bench:
    """The bench without its own value of a key that a grid varies."""
    return replace(bench, overrides=tuple(each for each in bench.overrides if not each.startswith(f"{key}=")))


def ablation_of(bench: Bench, grid: Grid | dict[str, Any]) -> Ablation:
    loaded = grid if isinstance(grid, Grid) else validate(Grid, grid)
    variants = expand(loaded, "mini", [f"dataset.path={bench.dataset}", *bench.overrides])
    return new_ablation(loaded, variants, bench.store, allow_leak=False)


def candidates_of(bench: Bench, ablation: Ablation) -> Candidates:
    return prepare_variants(ablation, Settings(weights=bench.store / "none"))


def carried_out(bench: Bench, grid: Grid | dict[str, Any]) -> tuple[Ablation, Recorder]:
    ablation, recorder = ablation_of(bench, grid), Recorder()
    candidates = candidates_of(bench, ablation)
    ended = run_variants(ablation, candidates, execute_locally, recorder)
    return ended, recorder


def arguments(bench: Bench, tmp_path: Path, grid: dict[str, Any]) -> list[str]:
    """``cascade ablate`` on the bench, less ``--out``."""
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid), encoding="utf-8")
    return ["ablate", str(path), *bench.arguments()[2:]]


def looked_up(recorder: Recorder) -> Counter[str]:
    """How often each stage was run, whether it computed anything or not."""
    return Counter(result.stage for result in recorder.results)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the rest."""
    monkeypatch.setattr("cascade.flows.ablation.outputs.write_plots", lambda *arguments: None)


# What is computed


@pytest.mark.slow
def test_the_three_steps_of_table3_are_decoded_once(empty: Bench) -> None:
    ended, recorder = carried_out(empty, load_grid("table3"))
    assert [variant.state for variant in ended.variants] == ["done"]
    assert recorder.writes == dict.fromkeys(("embed", "tokens", "localise", "prompt", "refine", "score"), IMAGES) | {
        "tally": 2,
        "aggregate": 1,
    }


@pytest.mark.slow
def test_table2_on_a_warm_store_encodes_nothing(bench: Bench) -> None:
    _, recorder = carried_out(without(bench, "prompt.dilation.size"), load_grid("table2"))
    assert recorder.writes == dict.fromkeys(("prompt", "refine", "score"), 9 * IMAGES) | {"tally": 18, "aggregate": 9}


def test_stages_that_variants_share_run_once_and_are_not_looked_up_again(empty: Bench) -> None:
    ended, recorder = carried_out(empty, WEIGHTS)
    shared = ("embed", "tokens", "localise", "prompt", "refine")
    assert recorder.writes == dict.fromkeys(shared, IMAGES) | {"score": 2 * IMAGES, "tally": 4, "aggregate": 2}
    assert looked_up(recorder) == dict.fromkeys(shared, 1) | {"score": 2, "tally": 2, "aggregate": 2}
    told = [[stage["stage"] for stage in variant.stages] for variant in ended.variants]
    assert told == [[*shared, "score", "tally", "aggregate"], ["score", "tally", "aggregate"]]


def test_variants_on_parts_of_a_dataset_share_a_key_and_not_its_items(empty: Bench) -> None:
    parts = {"axes": {"grid": {"dataset.categories": [["carpet"], ["metal_plate"], ["carpet", "metal_plate"]]}}}
    planned = plan_keys(_runs(empty, parts), {})
    assert [(each.stage, each.missing) for each in planned[:-2]] == [
        (stage, IMAGES) for stage in ("embed", "tokens", "localise", "prompt", "refine", "score")
    ]
    _, recorder = carried_out(empty, parts)
    assert recorder.writes["embed"] == recorder.writes["score"] == IMAGES
    assert recorder.writes["aggregate"] == planned[-1].missing == 3


def test_results_are_those_of_separate_runs(bench: Bench) -> None:
    ablation = ablation_of(bench, WEIGHTS)
    candidates = candidates_of(bench, ablation)
    ended = run_variants(ablation, candidates, execute_locally, Recorder())
    table = finished_table(ended, candidates)
    assert table is not None
    for weight in (0.2, 0.8):
        outcome = bench.run(f"score.weight={weight}")
        assert outcome.computed == {}
        alone = write_run(bench.store.parent / str(weight), outcome.prepared, outcome.results, "local")
        own = table[table["score.weight"] == weight]
        pd.testing.assert_frame_equal(own[alone.columns].reset_index(drop=True), alone)


def test_damage_found_by_a_later_variant_is_mended(bench: Bench) -> None:
    """The stage that is at fault was found complete a moment ago, and runs again all the same."""
    ablation = ablation_of(bench, WEIGHTS)
    candidates = candidates_of(bench, ablation)
    run = next(each.run for each in candidates.values() if isinstance(each, Prepared))
    masks = refine.REFINE.artefact(run)
    item = sorted(masks.done())[2]

    class Damaging(Recorder):
        def variant(self, name: str) -> None:
            if name == ablation.variants[1].name:
                flip_chunk(masks, "logits", item)

    recorder = Damaging()
    ended = run_variants(ablation, candidates, execute_locally, recorder)
    assert [variant.state for variant in ended.variants] == ["done", "done"]
    assert [error.item for error in recorder.damage] == [item]
    assert recorder.writes["refine"] == 1


# The dry run


def _runs(bench: Bench, grid: Grid | dict[str, Any]) -> dict[str, Any]:
    candidates = candidates_of(bench, ablation_of(bench, grid))
    return {name: each.run for name, each in candidates.items() if isinstance(each, Prepared)}


@pytest.mark.parametrize("store", ["empty", "bench"])
def test_the_plan_says_what_then_happens(request: pytest.FixtureRequest, store: str) -> None:
    used: Bench = request.getfixturevalue(store)
    grid = {"axes": {"grid": {"prompt.positives": [1, 3], "score.weight": [0.5, 0.8]}}}
    planned = plan_keys(_runs(used, grid), {})
    _, recorder = carried_out(used, grid)
    happened: Counter[tuple[str, str]] = Counter()
    for result in recorder.results:
        happened[result.stage, result.key] += result.computed
    assert {(each.stage, each.key): each.missing for each in planned} == happened
    keys = Counter(each.stage for each in planned)
    assert keys == {"embed": 1, "tokens": 1, "localise": 1, "prompt": 2, "refine": 2} | dict.fromkeys(
        ("score", "tally", "aggregate"), 4
    )


def test_planned_bytes_are_those_on_disk_where_nothing_is_compressed(empty: Bench) -> None:
    planned = {each.stage: each for each in plan_keys(_runs(empty, load_grid("table3")), {})}
    carried_out(empty, load_grid("table3"))
    for stage, array in {"embed": "embedding", "localise": "logits", "refine": "logits"}.items():
        (artefact,) = [each for each in Store(empty.store).stored() if each.key.stage == stage]
        chunks = [path for path in (artefact.path / array / "c").rglob("*") if path.is_file()]
        checksums = 4 * len(chunks)
        assert sum(path.stat().st_size for path in chunks) - checksums == planned[stage].nbytes
    assert planned["prompt"].nbytes == 0
    (scores,) = [each for each in Store(empty.store).stored() if each.key.stage == "score"]
    assert planned["score"].nbytes > scores.nbytes()


def test_a_dry_run_writes_nothing_and_shows_the_tree(cli: Cli, empty: Bench, tmp_path: Path) -> None:
    given = arguments(empty, tmp_path, WEIGHTS)
    before = files_of(tmp_path)
    result = cli(*given, "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert files_of(tmp_path) == before
    assert not empty.store.exists()
    lines = {line.split()[1]: line for line in result.out.splitlines() if "──" in line and " key" in line}
    assert "1 key: 0 of 8 cached, 8 to compute" in lines["embed"]
    assert "2 keys: 0 of 16 cached, 16 to compute" in lines["score"]
    assert "no timing yet" in lines["embed"]


def test_a_dry_run_knows_the_time_of_past_runs(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    assert cli(*bench.arguments("score.weight=0.9")).code == 0  # into runs/
    elsewhere = replace(bench, store=tmp_path / "other")
    result = cli(*arguments(elsewhere, tmp_path, WEIGHTS), "--dry-run")
    lines = {line.split()[1]: line for line in result.out.splitlines() if "──" in line and " key" in line}
    assert "no timing yet" in lines["embed"]
    assert " min" in lines["score"]
    assert "at least" in result.out.splitlines()[-1]


def _told(folder: Path, node: str, backbone: str, *stages: tuple[str, int, float]) -> None:
    folder.mkdir(parents=True)
    experiment = {"embed": {"backbone": backbone}, "localise": {"backbone": "mini"}, "runtime": {"device": "auto"}}
    told = [{"stage": stage, "computed": computed, "seconds": seconds} for stage, computed, seconds in stages]
    (folder / "run.json").write_text(json.dumps({"node": node, "experiment": experiment, "stages": told}))


def test_rates_are_seconds_for_each_item_of_this_machine_and_backbone(tmp_path: Path) -> None:
    here = platform.node()
    _told(tmp_path / "a" / "1", here, "mini", ("embed", 10, 5.0), ("score", 0, 0.1))
    _told(tmp_path / "a" / "2", here, "mini", ("embed", 30, 3.0))
    _told(tmp_path / "b" / "1", here, "vit_h", ("embed", 2, 40.0), ("localise", 2, 1.0))
    _told(tmp_path / "b" / "2", here + "-other", "mini", ("embed", 1, 1000.0))
    (tmp_path / "c").mkdir()
    for number, text in enumerate(["{", "[]", "{}", json.dumps({"node": here, "experiment": {}, "stages": [{}]})]):
        (tmp_path / "c" / str(number)).mkdir()
        (tmp_path / "c" / str(number) / "run.json").write_text(text)
    assert past_rates(tmp_path) == {
        ("embed", "mini", "auto"): 8.0 / 40,
        ("embed", "vit_h", "auto"): 20.0,
        ("localise", "mini", "auto"): 0.5,
    }
    assert past_rates(tmp_path / "none") == {}


@pytest.mark.usefixtures("no_pictures")
def test_an_ablation_tells_its_times_too(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "x"
    assert cli(*arguments(bench, tmp_path, WEIGHTS), "--out", out).code == 0
    rates = past_rates(tmp_path / "runs")
    assert set(rates) == {(stage, "mini", "auto") for stage in ("score", "tally", "aggregate")}
    stages = [stage for variant in read_ablation(out).variants for stage in variant.stages if stage["stage"] == "score"]
    assert rates["score", "mini", "auto"] == pytest.approx(sum(stage["seconds"] for stage in stages) / (2 * IMAGES))


# The folder


@pytest.mark.slow
def test_an_ablation_writes_its_tables_and_pictures(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    used = without(bench, "prompt.dilation.size")
    out = tmp_path / "out"
    result = cli("ablate", "table2", *used.arguments()[2:], "--out", out)
    assert (result.code, result.err) == (0, "")
    names = {path.name for path in out.iterdir()}
    assert {"ablation.json", "results.csv", "results.parquet", "published.csv"} <= names
    assert {f"pivot_{metric}.csv" for metric in METRICS} <= names
    assert {f"plot_{metric}.png" for metric in METRICS} <= names
    assert "failures.csv" not in names
    table = pd.read_csv(out / "results.csv")
    assert len(table) == 9 * 3 * 4
    pd.testing.assert_frame_equal(pd.read_parquet(out / "results.parquet"), table, check_dtype=False)
    published = pd.read_csv(out / "published.csv")
    assert len(published) == 9 * 3
    assert published["difference"].isna().all()  # the dataset is not the published one
    assert "on MVTec-AD" in result.out
    assert "not a claim about the paper's" in result.out
    assert "(48.8)" in result.out


def test_pictures_are_pictures(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    from PIL import Image

    assert cli(*arguments(bench, tmp_path, WEIGHTS), "--out", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / "plot_pixel_ap.png") as picture:
        assert picture.width > picture.height > 200


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_is_not_used_twice(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    given = [*arguments(bench, tmp_path, WEIGHTS), "--out", tmp_path / "out"]
    assert cli(*given).code == 0
    before = files_of(tmp_path / "out")
    result = cli(*given)
    assert result.code == 2
    assert "--resume" in result.refusal()
    assert files_of(tmp_path / "out") == before


# Failures


def failing(bench: Bench, tmp_path: Path) -> tuple[Bench, dict[str, Any]]:
    """Adapters that work, do not fit, and return NaN."""
    from safetensors.torch import load_file, save_file

    sound = next(each.partition("=")[2] for each in bench.overrides if each.startswith("localise.adapter="))
    state = load_file(sound)
    state["fc.1.weight"].fill_(3e38)  # finite weights, whose sums are not
    save_file(state, tmp_path / "large.safetensors")
    short = save_adapter(tmp_path / "short.safetensors", layers=1)
    adapters = [str(short), str(tmp_path / "large.safetensors"), sound]
    grid = {"axes": {"grid": {"localise.adapter": adapters, "score.weight": [0.5, 0.8]}}}
    return without(bench, "localise.adapter"), grid


@pytest.mark.usefixtures("no_pictures")
def test_a_failed_variant_is_recorded_and_the_rest_goes_on(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    used, grid = failing(bench, tmp_path)
    result = cli(*arguments(used, tmp_path, grid), "--out", tmp_path / "out")
    assert result.code == 1
    assert result.err == ""
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(table["localise.adapter"]) == {grid["axes"]["grid"]["localise.adapter"][-1]}
    assert set(table["score.weight"]) == {0.5, 0.8}
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert len(failures) == 4
    assert failures["error"].str.contains("layers").tolist() == [True, True, False, False]
    assert failures["error"].str.contains("NaN").tolist() == [False, False, True, True]
    assert not failures["error"].str.contains("\n").any()
    assert result.out.count("failed ") == 4
    states = [variant.state for variant in read_ablation(tmp_path / "out").variants]
    assert states == ["failed"] * 4 + ["done"] * 2


def test_what_has_failed_is_not_tried_again(bench: Bench, tmp_path: Path) -> None:
    used, grid = failing(bench, tmp_path)
    grid["axes"]["grid"]["localise.adapter"] = grid["axes"]["grid"]["localise.adapter"][1:2]
    tried: list[str] = []

    class Watching(Recorder):
        def started(self, plan: Any) -> Callable[[], None]:
            tried.append(plan.stage.name)
            return super().started(plan)

    ablation = ablation_of(used, grid)
    candidates = candidates_of(used, ablation)
    ended = run_variants(ablation, candidates, execute_locally, Watching())
    assert [variant.state for variant in ended.variants] == ["failed", "failed"]
    assert tried == ["embed", "tokens", "localise"]


def test_an_ablation_of_which_nothing_can_run_is_refused(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    used = replace(bench, overrides=tuple(each for each in bench.overrides if not each.startswith("embed.weights")))
    grid = {"axes": {"grid": {"embed.backbone": ["vit_b", "vit_l"]}}}
    before = files_of(bench.store)
    result = cli(*arguments(used, tmp_path, grid), "--out", tmp_path / "out")
    assert result.code == 4
    assert "cascade weights fetch vit_b" in result.refusal()
    assert files_of(bench.store) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_pictures")
def test_missing_weights_fail_their_variant_with_the_command(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    used = replace(bench, overrides=tuple(each for each in bench.overrides if not each.startswith("embed.weights")))
    result = cli("ablate", "backbones", *used.arguments()[2:], "--out", tmp_path / "out")
    assert result.code == 1
    failures = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("variant")["error"]
    for name in ("vit_b", "vit_l", "vit_h"):
        assert f"cascade weights fetch {name}" in failures[f"backbone={name}"]
    assert pd.read_csv(tmp_path / "out" / "results.csv")["embed.backbone"].unique().tolist() == ["mini"]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"axes": {}}, ["nothing varies"]),
        ({"axes": {"grid": {"prompt.postives": [1]}}}, ["did you mean 'prompt.positives'"]),
        ({"axis": {}}, ["did you mean 'axes'"]),
        ({"axes": {"zip": {"score.weight": [0.5], "score.fusion": ["mask", "sum"]}}}, ["equally many"]),
    ],
)
def test_a_wrong_grid_gets_one_line(
    cli: Cli, bench: Bench, tmp_path: Path, given: dict[str, Any], parts: Sequence[str]
) -> None:
    before = files_of(bench.store)
    result = cli(*arguments(bench, tmp_path, given))
    assert result.code == 2
    assert all(part in result.refusal() for part in parts)
    assert files_of(bench.store) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["ablate"], "no grid"),
        (["ablate", "tabel2"], "did you mean 'table2'"),
        (["ablate", "--resume", "nothing"], "no ablation to resume"),
        (["ablate", "table2", "--resume", "nothing"], "nothing else but --engine"),
    ],
)
def test_wrong_arguments_get_one_line(cli: Cli, given: list[str], part: str) -> None:
    result = cli(*given)
    assert result.code == 2
    assert part in result.refusal()


# Interruption


class Stop:
    """In the place of the command line's observer: ends the run as Ctrl-C would after ``count`` items."""

    def __init__(self, count: int | None) -> None:
        self.left = count
        self.writes: Counter[str] = Counter()

    def __call__(self, console: Console) -> AblationObserver:
        stopping = self

        class Stopping(AblationObserver):
            def started(self, plan: StagePlan) -> Callable[[], None]:
                return lambda: stopping._item(plan.stage.name)

        return Stopping(console)

    def _item(self, stage: str) -> None:
        self.writes[stage] += 1
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("items", [3, *(pytest.param(each, marks=pytest.mark.slow) for each in (38, 44, 54))])
def test_interrupted_and_resumed_equals_uninterrupted(
    cli: Cli,
    empty: Bench,
    finished: tuple[Bench, Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    items: int,
) -> None:
    """Stopped inside embed, refine and score of the first variant, and inside the second."""
    shutil.copytree(finished[0].store, tmp_path / "warm")  # what a run leaves that nobody stopped
    assert (
        cli(*arguments(replace(empty, store=tmp_path / "warm"), tmp_path, WEIGHTS), "--out", tmp_path / "whole").code
        == 0
    )

    given = arguments(empty, tmp_path, WEIGHTS)
    stopped, resumed = Stop(items), Stop(None)
    with monkeypatch.context() as patch:
        patch.setattr("cascade.flows.cli.observers.AblationObserver", stopped)
        result = cli(*given, "--out", tmp_path / "part")
        assert result.code == 130
        assert f"--resume {tmp_path / 'part'}" in result.out
        assert not (tmp_path / "part" / "results.csv").exists()
        (tmp_path / "grid.yaml").unlink()  # the folder knows it
        patch.setattr("cascade.flows.cli.observers.AblationObserver", resumed)
        assert cli("ablate", "--resume", tmp_path / "part", "--engine", "local").code == 0
    assert stopped.writes.total() == items
    shared = dict.fromkeys(("embed", "tokens", "localise", "prompt", "refine"), IMAGES)
    assert stopped.writes + resumed.writes == shared | {"score": 2 * IMAGES, "tally": 4, "aggregate": 2}
    for name in ("results.csv", "pivot_pixel_ap.csv"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.usefixtures("no_pictures")
def test_resuming_a_finished_ablation_computes_nothing_and_changes_no_table(
    cli: Cli, bench: Bench, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cli(*arguments(bench, tmp_path, WEIGHTS), "--out", out).code == 0
    before = files_of(out)
    result = cli("ablate", "--resume", out, "--engine", "local")
    assert result.code == 0
    assert "miss" not in result.out
    after = files_of(out)
    assert {name for name in before if before[name] != after[name]} <= {
        name for name in before if not name.endswith(".csv")
    }


@pytest.mark.usefixtures("no_pictures")
def test_a_failure_that_was_mended_is_gone_after_resuming(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    adapters = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    save_adapter(adapters[0], seed=5)
    used = without(bench, "localise.adapter")
    grid = {"axes": {"grid": {"localise.adapter": [str(path) for path in adapters]}}}
    out = tmp_path / "out"
    assert cli(*arguments(used, tmp_path, grid), "--out", out).code == 1
    assert (out / "failures.csv").exists()
    save_adapter(adapters[1], seed=6)
    assert cli("ablate", "--resume", out, "--engine", "local").code == 0
    assert not (out / "failures.csv").exists()
    assert pd.read_csv(out / "results.csv")["variant"].nunique() == 2


@pytest.mark.usefixtures("no_pictures")
def test_an_altered_state_is_refused(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli(*arguments(bench, tmp_path, WEIGHTS), "--out", out).code == 0
    state = json.loads((out / "ablation.json").read_text())
    state["variants"][0]["experiment"]["score"]["weight"] = 7
    (out / "ablation.json").write_text(json.dumps(state))
    result = cli("ablate", "--resume", out, "--engine", "local")
    assert result.code == 2
    assert "ablation.json" in result.refusal()


def test_an_ablation_takes_the_options_of_a_run(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    result = cli(*arguments(bench, tmp_path, WEIGHTS), "--runner", "processes")
    assert (result.code, result.out) == (2, "")
    assert "runtime.runner 'processes' needs --engine prefect" in result.err
