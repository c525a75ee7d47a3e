from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from cascade.backbones.clip import backbone
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import STAGES, StagePlan, evaluate, plan
from cascade.flows.engines.local import execute_locally
from cascade.flows.run.export import export_run
from cascade.flows.run.prepare import prepare
from cascade.flows.run.results import write_run
from cascade.storage.errors import ConfigError, DataError, LeakError, StageError, StoreError
from cascade.tasks.aggregate import METRICS
from cascade.tasks.execution import networks
from tests.flows.conftest import Bench, Outcome, Recorder, files_of, flip_chunk, save_adapter, save_scene

COLUMNS = (
    "dataset,category,localiser,refiner,step,frame,n_images,n_anomalous,n_no_prompt,n_no_prompt_anomalous,"
    "pixel_auroc,pixel_f1max,pixel_ap,pixel_aupro,image_auroc,image_f1max,image_ap,"
    "good_prompted,image_auroc_clip_score,image_auroc_max_score,image_auroc_top_score,mask_1,mask_2,mask_3"
)
STEPS = ["clip", "points", "points+logits", "points+box+logits"]
FROM_PROMPT = {"prompt": 8, "refine": 8, "score": 8, "tally": 2, "aggregate": 1}


def tables(outcome: Outcome, folder: Path) -> pd.DataFrame:
    write_run(folder, outcome.prepared, outcome.results, "local")
    return pd.read_csv(folder / "results.csv")


def metrics(outcome: Outcome, folder: Path) -> pd.DataFrame:
    return tables(outcome, folder).set_index(["category", "step"])[list(METRICS)]


# Reuse


def test_a_first_run_computes_every_item_of_every_stage(finished: tuple[Bench, Outcome]) -> None:
    _, outcome = finished
    assert outcome.computed == {"embed": 8, "tokens": 8, "localise": 8} | FROM_PROMPT
    assert outcome.recorder.writes == outcome.computed
    assert {result.reason for result in outcome.results} == {"nothing of this stage is stored yet"}
    assert any(record["sets"] for record in outcome.artefact("prompt").done().values())


def test_two_cores_leave_the_bytes_of_one(bench: Bench, cores: Callable[[int], None]) -> None:
    """From the prompts on; the encoders share their products among cores, which may round differently."""
    stages = ("prompt", "refine", "score")
    found = []
    for count in (1, 2):
        cores(count)
        for stage in (*stages, "tally", "aggregate"):
            shutil.rmtree(bench.store / stage)
        assert bench.run().computed == FROM_PROMPT
        found.append({name: data for name, data in files_of(bench.store).items() if str(name).startswith(stages)})
    assert found[0] == found[1]
    assert len(found[0]) > 20


@pytest.mark.usefixtures("no_networks")
def test_a_second_run_computes_nothing_and_loads_no_network(bench: Bench) -> None:
    before = files_of(bench.store)
    outcome = bench.run()
    assert [result.stage for result in outcome.results] == [stage.name for stage in STAGES]
    assert {(result.computed, result.hits - result.items, result.reason) for result in outcome.results} == {(0, 0, "")}
    assert outcome.recorder.writes == {}
    assert files_of(bench.store) == before


def test_a_second_run_imports_no_deep_learning_library(bench: Bench, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom cascade.flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "slow = {'torch', 'torchvision', 'open_clip', 'segment_anything', 'prefect'}\n"
        "print('imported:', *sorted(slow & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, *bench.arguments(), "--out", str(tmp_path / "out")]
    environment = os.environ | {"CASCADE_RUNS": str(tmp_path / "runs")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "miss" not in result.stdout
    assert result.stdout.splitlines()[-1].strip() == "imported:"
    assert (tmp_path / "out" / "run.json").is_file()


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ("prompt.dilation.size=13", FROM_PROMPT),
        ("refine.choice=agreement", {"refine": 8, "score": 8, "tally": 2, "aggregate": 1}),
        ("score.weight=0.25", {"score": 8, "tally": 2, "aggregate": 1}),
        (
            "dataset.words={carpet: rug}",
            {"localise": 4, "prompt": 4, "refine": 4, "score": 4, "tally": 1, "aggregate": 1},
        ),
        ("dataset.categories=[carpet]", {"aggregate": 1}),
        ("dataset.name=another", {}),
        ("embed.batch_size=1", {}),
        ("refine.batch_size=1", {}),
        ("runtime.shard_size=3", {}),
        ("runtime.workers=2", {}),
    ],
)
def test_a_change_runs_only_what_depends_on_it(bench: Bench, change: str, computed: dict[str, int]) -> None:
    assert bench.run(change).computed == computed


def test_clip_looks_at_more_sides_of_the_input(bench: Bench) -> None:
    once, coarse, both = (
        bench.run(f"localise.image_side={side}", f"localise.more_sides={more}").artefact("localise")
        for side, more in ((96, []), (64, []), (96, [64]))
    )
    for item, record in both.done().items():
        fine, rough = (each.read(item).arrays["logits"] for each in (once, coarse))
        assert (fine.shape[-1], rough.shape[-1]) == (12, 8)
        grown = [grown_to(plane, 12) for plane in rough.reshape(-1, 8, 8)]
        expected = (fine + np.stack(grown).reshape(fine.shape)) / 2
        np.testing.assert_allclose(both.read(item).arrays["logits"], expected, atol=1e-4)
        assert record["image_score"] == pytest.approx(once.done()[item]["image_score"], abs=1e-6)


def grown_to(plane: NDArray[Any], side: int) -> NDArray[Any]:
    """Linear interpolation of a square whose corners stay where they are, one axis after the other."""
    at = np.linspace(0, len(plane) - 1, side)
    rows = np.stack([np.interp(at, np.arange(len(plane)), line) for line in plane])
    return np.stack([np.interp(at, np.arange(len(plane)), line) for line in rows.T]).T


def test_a_miss_says_what_changed(bench: Bench) -> None:
    reasons = {result.stage: result.reason for result in bench.run("prompt.dilation.size=13").results}
    assert reasons["embed"] == reasons["localise"] == ""
    later = ("prompt", "refine", "score", "tally", "aggregate")
    assert {reasons[stage] for stage in later} == {"changed: prompt.dilation.size: 9 → 13"}


def test_the_plan_is_known_before_anything_runs(bench: Bench) -> None:
    before = files_of(bench.store)
    planned = {each.stage.name: each.missing for each in plan(bench.prepare("prompt.dilation.size=13").run)}
    assert planned == {"embed": 0, "tokens": 0, "localise": 0} | FROM_PROMPT
    assert files_of(bench.store) == before


def test_a_new_image_is_the_only_one_computed(own_data: Bench) -> None:
    save_scene(own_data.dataset / "carpet" / "test" / "good" / "9999.png", seed=7)
    outcome = own_data.run()
    assert outcome.computed == dict.fromkeys(
        ("embed", "tokens", "localise", "prompt", "refine", "score", "tally", "aggregate"), 1
    )
    assert {result.reason for result in outcome.results} == {"new items"}


def test_a_copy_of_an_image_is_not_computed_again(own_data: Bench, tmp_path: Path) -> None:
    good = own_data.dataset / "carpet" / "test" / "good"
    shutil.copy(good / "0000.png", good / "copy.png")
    outcome = own_data.run()
    assert outcome.computed == {"tally": 1, "aggregate": 1}
    assert set(tables(outcome, tmp_path / "out").query("category == 'carpet'")["n_images"]) == {5}


def test_a_picture_of_two_categories_is_embedded_once(own_data: Bench) -> None:
    shutil.copy(
        own_data.dataset / "carpet" / "test" / "good" / "0000.png",
        own_data.dataset / "metal_plate" / "test" / "good" / "0100.png",
    )
    expected = dict.fromkeys(("localise", "prompt", "refine", "score", "tally", "aggregate"), 1)
    assert own_data.run().computed == expected


def test_a_moved_dataset_finds_everything(own_data: Bench, tmp_path: Path) -> None:
    moved = own_data.dataset.rename(tmp_path / "elsewhere")
    assert replace(own_data, dataset=moved).run().computed == {}


def test_a_renamed_folder_costs_no_second_look(
    own_data: Bench, finished: tuple[Bench, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cascade.backbones.clip.backbone.image_tokens", lambda *arguments, **named: pytest.fail("CLIP looked again")
    )
    (own_data.dataset / "carpet").rename(own_data.dataset / "rug")
    outcome = own_data.run()
    assert outcome.computed == {"localise": 4, "prompt": 4, "refine": 4, "score": 4, "tally": 1, "aggregate": 1}
    assert "rug" in {item.partition("/")[2] for item in outcome.artefact("localise").done()}


def test_other_linear_layers_cost_no_second_look(bench: Bench, tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "other.safetensors", seed=5)
    assert "tokens" not in bench.run(f"localise.adapter={other}").computed


def test_kept_tokens_make_the_logits_of_a_look_within_their_rounding(bench: Bench) -> None:
    """Tokens are kept as float16, so a logit of 100 times a cosine is off by a few hundredths at most."""
    kept, looked = bench.run().artefact("localise"), bench.run("localise.keep=logits").artefact("localise")
    assert kept.path != looked.path
    for item in kept.done():
        one, other = kept.read(item), looked.read(item)
        assert np.abs(one.arrays["logits"] - other.arrays["logits"]).max() < 0.1
        assert one.record["image_score"] == pytest.approx(other.record["image_score"], abs=1e-5)


def test_a_redrawn_mask_is_scored_again(own_data: Bench) -> None:
    path = sorted((own_data.dataset / "carpet" / "ground_truth").rglob("*.png"))[0]
    mask = np.zeros((96, 96), np.uint8)
    mask[:40] = 255
    Image.fromarray(mask).save(path)
    assert own_data.run().computed == {"score": 1, "tally": 1, "aggregate": 1}


# Damage and interruption


def delete(outcome: Outcome, *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(outcome.artefact(stage).path)


def test_a_damaged_item_alone_is_computed_again(bench: Bench, finished: tuple[Bench, Outcome], tmp_path: Path) -> None:
    undamaged = metrics(finished[1], tmp_path / "before")
    cached = bench.run()
    delete(cached, "prompt", "refine", "score", "tally", "aggregate")
    item = sorted(cached.artefact("embed").done())[3]
    flip_chunk(cached.artefact("embed"), "embedding", item)
    outcome = bench.run()
    assert [error.item for error in outcome.recorder.damage] == [item]
    assert outcome.recorder.writes["embed"] == 1
    assert "localise" not in outcome.computed
    for each in cached.artefact("embed").done():
        np.testing.assert_allclose(
            outcome.artefact("embed").read(each).arrays["embedding"].astype(np.float32),
            finished[1].artefact("embed").read(each).arrays["embedding"].astype(np.float32),
            atol=0,
        )
    pd.testing.assert_frame_equal(metrics(outcome, tmp_path / "after"), undamaged, rtol=1e-12)


def test_a_class_is_put_into_words_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another shard nor another run calls the text tower again; damaged features are made anew."""
    asked: list[list[str]] = []
    true = backbone.sentence_features

    def counted(model: Any, sentences: list[str]) -> Any:
        asked.append(sentences)
        return true(model, sentences)

    monkeypatch.setattr(backbone, "sentence_features", counted)
    cached = bench.run()
    (words,) = [each for each in cached.stored() if each.key.stage == "words"]
    assert set(words.done()) == {"carpet", "metal_plate"}
    delete(cached, "localise")
    assert bench.run("runtime.shard_size=4").computed == {"localise": 8}
    assert asked == []
    before = files_of(cached.artefact("localise").path)
    flip_chunk(words, "features", "carpet")
    delete(cached, "localise")
    assert bench.run().computed == {"localise": 8}
    assert len(asked) == 2  # normal and abnormal
    assert all("carpet" in sentence for sentences in asked for sentence in sentences)
    assert files_of(cached.artefact("localise").path) == before


def test_several_damaged_items_are_all_mended(bench: Bench) -> None:
    cached = bench.run()
    delete(cached, "score", "tally", "aggregate")
    items = sorted(cached.artefact("localise").done())
    for item in (items[0], items[5]):
        flip_chunk(cached.artefact("localise"), "logits", item)
    flip_chunk(cached.artefact("refine"), "logits", items[2])
    outcome = bench.run()
    assert len(outcome.recorder.damage) == 3
    assert (outcome.recorder.writes["localise"], outcome.recorder.writes["refine"]) == (2, 1)
    assert outcome.recorder.writes["embed"] == 0


@pytest.mark.parametrize("stage", ["localise", "prompt", "refine", "score", "tally", "aggregate"])
def test_an_altered_record_is_mended_even_if_no_stage_reads_it(
    bench: Bench, finished: tuple[Bench, Outcome], tmp_path: Path, stage: str
) -> None:
    cached = bench.run()
    ledger = cached.artefact(stage).path / "ledger.jsonl"
    first, *others = ledger.read_text(encoding="utf-8").splitlines()
    altered = json.loads(first)
    altered["record"] |= {"image_score": 0.5}
    ledger.write_text("\n".join([json.dumps(altered), *others, ""]), encoding="utf-8")
    outcome = bench.run()
    assert [error.item for error in outcome.recorder.damage] == [altered["item"]]
    assert outcome.computed == {stage: 1}
    pd.testing.assert_frame_equal(metrics(outcome, tmp_path / "after"), metrics(finished[1], tmp_path / "before"))
    assert bench.run().recorder.damage == []


def test_a_ctrl_c_keeps_finished_items(empty: Bench) -> None:
    counted: list[str] = []

    def stop_after_three(stage: str) -> None:
        counted.append(stage)
        if len(counted) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        empty.run(on_item=stop_after_three)
    (embeddings,) = [path for path in (empty.store / "embed").iterdir() if path.is_dir()]
    assert len((embeddings / "ledger.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert empty.run().computed == {"embed": 5, "tokens": 8, "localise": 8} | FROM_PROMPT


def test_of_two_runs_at_once_each_counts_its_own_work(empty: Bench, finished: tuple[Bench, Outcome]) -> None:
    """The other run has made all embeddings while this one waited for its turn to."""
    source = finished[1].artefact("embed").path
    target = empty.store / source.relative_to(finished[0].store)
    target.parent.mkdir(parents=True)
    waits = threading.Event()

    class Watcher(Recorder):
        def started(self, plan: StagePlan) -> Callable[[], None]:
            waits.set()
            return super().started(plan)

    run, watcher = empty.prepare().run, Watcher()
    with ThreadPoolExecutor(1) as pool, FileLock(target.with_suffix(".lock")):
        ran = pool.submit(evaluate, run, execute_locally, watcher)
        assert waits.wait(60)
        shutil.copytree(source, target)
    embed = next(result for result in ran.result() if result.stage == "embed")
    assert (embed.hits, embed.computed) == (8, 0)
    assert watcher.writes["embed"] == 0
    assert files_of(empty.store) == files_of(finished[0].store)


@pytest.mark.parametrize(
    ("device", "compilers"), [("cpu", r"C\+\+ compiler \(g\+\+\)"), ("cuda", r"C compiler \(gcc or clang\)")]
)
def test_compiling_without_a_compiler_fails_before_anything_is_written(
    empty: Bench, monkeypatch: pytest.MonkeyPatch, device: str, compilers: str
) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("cascade.tasks.execution.networks.device_of", lambda run: torch.device(device))
    with pytest.raises(ConfigError, match=f"runtime.compile: no {compilers}"):
        networks.compiles(empty.prepare("runtime.compile=true").run.experiment.runtime)
    monkeypatch.setattr("cascade.tasks.execution.networks.device_of", lambda run: torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"runtime\.compile"):
        empty.run("runtime.compile=true")
    assert Outcome(empty.prepare(), [], None).stored() == []  # type: ignore[arg-type]


def test_a_network_that_returns_nan_fails_naming_the_image(empty: Bench, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    sam = next(Path(each.partition("=")[2]) for each in empty.overrides if each.startswith("embed.weights"))
    state = load_file(sam)
    state["image_encoder.neck.weight"] = torch.full((64,), 3e38)  # finite weights, whose products are not
    save_file(state, tmp_path / "large.safetensors")
    with pytest.raises(StageError, match=r"embed: carpet/test/.*\.png: .*NaN"):
        empty.run(f"embed.weights={tmp_path / 'large.safetensors'}")
    assert [artefact.done() for artefact in Outcome(empty.prepare(), [], None).stored()] == [{}]  # type: ignore[arg-type]


# Tables


def test_results_have_the_documented_columns_and_rows(finished: tuple[Bench, Outcome], tmp_path: Path) -> None:
    results = tables(finished[1], tmp_path)
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()[0] == COLUMNS
    rows = list(zip(results["category"], results["step"], strict=True))
    assert rows == [(category, step) for category in ("carpet", "metal_plate", "mean") for step in STEPS]
    assert set(results["dataset"]) == {"tiny"}
    assert set(results["localiser"]) == {"april_gan"}
    assert set(results["refiner"]) == {"cps"}
    assert set(results["frame"]) == {"96x96"}
    counts = results.groupby("category")[["n_images", "n_anomalous"]].first()
    assert counts.to_dict("index") == {
        "carpet": {"n_images": 4, "n_anomalous": 2},
        "metal_plate": {"n_images": 4, "n_anomalous": 2},
        "mean": {"n_images": 8, "n_anomalous": 4},
    }
    values = results[list(METRICS)].to_numpy()
    assert ((values >= 0) & (values <= 1)).all()
    for step in STEPS:
        own = results[results["step"] == step].set_index("category")[list(METRICS)]
        np.testing.assert_allclose(own.loc["mean"], own.drop("mean").mean(), rtol=1e-12)
    parquet = pd.read_parquet(tmp_path / "results.parquet")
    assert ",".join(parquet.columns) == COLUMNS
    np.testing.assert_allclose(parquet[list(METRICS)], values, rtol=1e-12)


def test_images_and_points_are_told_one_by_one(finished: tuple[Bench, Outcome], tmp_path: Path) -> None:
    bench, outcome = finished
    tables(outcome, tmp_path)
    images = pd.read_parquet(tmp_path / "images.parquet")
    assert len(images) == 8 * len(STEPS)
    assert set(images["step"]) == set(STEPS)
    assert all((bench.dataset / path).is_file() for path in images["path"])
    assert images["mask_area"].between(0, 1).all()
    assert images["mask_iou"].isna().equals(images["label"].astype(int) == 0)
    assert images.loc[images["step"] == "clip", "predicted_iou"].isna().all()
    prompted = images[~images["no_prompt"]]
    assert len(prompted) > 0
    assert prompted.loc[prompted["step"] != "clip", "predicted_iou"].notna().all()
    assert prompted.loc[prompted["step"] == "points+box+logits", "box"].notna().all()
    points = pd.read_parquet(tmp_path / "points.parquet")
    assert len(points) > 0
    assert points["x"].between(0, 96, inclusive="left").all()
    assert points["y"].between(0, 96, inclusive="left").all()
    counts = points.groupby("path")["label"].agg(["sum", "count"])
    for path, own in images[images["step"] == "clip"].set_index("path").iterrows():
        positive, both = counts.loc[path] if path in counts.index else (0, 0)
        assert (own["n_positive"], own["n_negative"]) == (positive, both - positive)


def test_the_description_holds_keys_weights_and_counts(finished: tuple[Bench, Outcome], tmp_path: Path) -> None:
    _, outcome = finished
    tables(outcome, tmp_path)
    described = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    names = [stage.name for stage in STAGES]
    assert sorted(described["keys"]) == sorted(names)
    for result in outcome.results:
        own = described["keys"][result.stage]
        assert own["digest"] == result.key
        assert own["config"] is not None
    assert [stage["stage"] for stage in described["stages"]] == names
    assert described["stages"][0] | {"seconds": 0, "key": ""} == {
        "stage": "embed",
        "key": "",
        "items": 8,
        "hits": 0,
        "computed": 8,
        "seconds": 0,
        "reason": "nothing of this stage is stored yet",
    }
    assert {role: len(own["sha256"]) for role, own in described["weights"].items()} == {
        "sam": 64,
        "clip": 64,
        "adapter": 64,
    }
    assert described["experiment"]["prompt"]["dilation"]["size"] == 9
    assert described["leak"] is None
    assert {"python", "torch", "zarr", "prefect"} <= set(described["versions"])


def test_points_of_other_frames_lie_in_the_original_image(odd_sizes: Bench, tmp_path: Path) -> None:
    tables(odd_sizes.run("embed.image=padded"), tmp_path)
    points = pd.read_parquet(tmp_path / "points.parquet")
    sizes = {"screw/test/good/0.png": (120, 80), "screw/test/bent/0.png": (64, 100)}
    assert set(points["path"]) == set(sizes)
    for path, (width, height) in sizes.items():
        own = points[points["path"] == path]
        assert own["x"].between(0, width, inclusive="left").all()
        assert own["y"].between(0, height, inclusive="left").all()


def test_native_frames_of_several_sizes_are_scored_together(odd_sizes: Bench, tmp_path: Path) -> None:
    results = tables(
        odd_sizes.run("score.frame=native", "prompt.frame=native", "embed.image=stretched"), tmp_path / "run"
    )
    assert set(results["frame"]) == {"native"}
    assert results[list(METRICS)].notna().all(axis=None)
    export_run(tmp_path / "run", tmp_path / "export", "tiff", "png")
    for kind, shape in {"good": (80, 120), "bent": (100, 64)}.items():
        assert np.asarray(Image.open(tmp_path / "export" / "masks" / "screw" / kind / "0.png")).shape == shape


# Export


def f1_max(truth: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(truth, scores)
    both = precision + recall
    return float(np.max(np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)))


def test_exported_maps_and_masks_give_the_table_again(finished: tuple[Bench, Outcome], tmp_path: Path) -> None:
    bench, outcome = finished
    results = metrics(outcome, tmp_path / "run")
    assert export_run(tmp_path / "run", tmp_path / "export", "npy", "png") == 8
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    scored = outcome.artefact("score")
    for category in ("carpet", "metal_plate"):
        for index, step in enumerate(STEPS):
            rows = images[(images["category"] == category) & (images["step"] == step)]
            maps, truths = [], []
            for row in rows.itertuples():
                stem = Path(category) / row.defect / Path(row.path).stem
                own = np.load(tmp_path / "export" / "maps" / step / f"{stem}.npy")
                truth = np.asarray(Image.open(tmp_path / "export" / "masks" / f"{stem}.png"))
                np.testing.assert_array_equal(own, scored.read(row.item).arrays["scores_96x96"][index])
                assert (own.dtype, own.shape, truth.dtype) == (np.float16, (96, 96), np.uint8)
                assert set(np.unique(truth)) <= {0, 255}
                mask = bench.dataset / category / "ground_truth" / row.defect / f"{Path(row.path).stem}_mask.png"
                expected = np.asarray(Image.open(mask)) if row.label else np.zeros((96, 96), np.uint8)
                np.testing.assert_array_equal(truth, expected)
                maps.append(own.ravel())
                truths.append(truth.ravel() == 255)
            scores, truth = np.concatenate(maps).astype(np.float64), np.concatenate(truths)
            labels, image_scores = rows["label"].astype(int), rows["image_score"]
            expected = {
                "pixel_auroc": roc_auc_score(truth, scores),
                "pixel_ap": average_precision_score(truth, scores),
                "pixel_f1max": f1_max(truth, scores),
                "image_auroc": roc_auc_score(labels, image_scores),
                "image_ap": average_precision_score(labels, image_scores),
                "image_f1max": f1_max(labels, image_scores),
            }
            assert results.loc[(category, step), list(expected)].to_dict() == pytest.approx(expected, abs=1e-9)


def test_tiff_holds_the_same_float16_values(finished: tuple[Bench, Outcome], tmp_path: Path) -> None:
    import tifffile

    tables(finished[1], tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "a", "npy", None)
    export_run(tmp_path / "run", tmp_path / "b", "tiff", None)
    arrays = sorted((tmp_path / "a").rglob("*.npy"))
    assert len(arrays) == 8 * len(STEPS)
    for path in arrays:
        other = tifffile.imread((tmp_path / "b" / path.relative_to(tmp_path / "a")).with_suffix(".tiff"))
        assert other.dtype == np.float16
        np.testing.assert_array_equal(other, np.load(path))


def test_an_export_without_its_run_or_its_scores_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        export_run(tmp_path / "nothing", tmp_path / "export", "npy", "png")
    tables(bench.run(), tmp_path / "run")
    shutil.rmtree(bench.store)
    with pytest.raises(StoreError, match="run the experiment again"):
        export_run(tmp_path / "run", tmp_path / "export", "npy", "png")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("column", "name"),
    [
        *((column, name) for column in ("category", "defect") for name in ("../../../out", "{tmp}/out", "\x1b[2J")),
        *(("path", name) for name in ("a/..", "a/\x1b[2J.png", "x" * 201)),
    ],
)
def test_an_edited_table_cannot_lead_the_export_out_of_its_folder(
    finished: tuple[Bench, Outcome], tmp_path: Path, column: str, name: str
) -> None:
    tables(finished[1], tmp_path / "run")
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    images[column] = name.format(tmp=tmp_path)
    images.to_parquet(tmp_path / "run" / "images.parquet", index=False)
    with pytest.raises(DataError, match="choose another name"):
        export_run(tmp_path / "run", tmp_path / "deep" / "export", "npy", "png")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


# Data without labels, defects or prompts


def test_a_category_without_defects_has_empty_cells_and_a_warning(own_data: Bench, tmp_path: Path) -> None:
    carpet = own_data.dataset / "carpet"
    shutil.rmtree(carpet / "ground_truth")
    for folder in (carpet / "test").iterdir():
        if folder.name != "good":
            shutil.rmtree(folder)
    outcome = own_data.run()
    assert outcome.computed == {"tally": 1, "aggregate": 1}
    assert any("carpet" in line and "no defective" in line for line in outcome.prepared.warnings)
    results = metrics(outcome, tmp_path)
    assert results.loc["carpet"].isna().all(axis=None)
    pd.testing.assert_frame_equal(results.loc["mean"], results.loc["metal_plate"])
    text = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()[1]
    assert text == "tiny,carpet,april_gan,cps,clip,96x96,2,0,0,0,,,,,,,,1.0,,,,,,"


def test_an_image_below_the_threshold_has_no_prompt_and_the_clip_maps_score(bench: Bench, tmp_path: Path) -> None:
    never = ("prompt.threshold.rule=absolute", "prompt.threshold.absolute=1.0", "score.image_score=clip")
    for rule, factor in (("map", 1.0), ("damp", 0.7)):
        outcome = bench.run(*never, f"score.no_prompt={rule}")
        scored = outcome.artefact("score")
        for item in scored.done():
            scores = scored.read(item).arrays["scores_96x96"].astype(np.float32)
            np.testing.assert_allclose(scores[1:], np.broadcast_to(factor * scores[0], scores[1:].shape), rtol=1e-3)
        results = metrics(outcome, tmp_path / rule)
        for step in STEPS[1:]:
            pd.testing.assert_series_equal(
                results.loc[("mean", step)], results.loc[("mean", "clip")], check_names=False, atol=1e-3
            )
    images = pd.read_parquet(tmp_path / "map" / "images.parquet")
    assert images["no_prompt"].all()
    assert (images["mask_area"][images["step"] != "clip"] == 0).all()
    assert len(pd.read_parquet(tmp_path / "map" / "points.parquet")) == 0


def test_a_plain_folder_without_labels_is_scored_without_metrics(empty: Bench, tmp_path: Path) -> None:
    for number in range(2):
        save_scene(tmp_path / "plain" / f"{number}.png", seed=number)
    outcome = replace(empty, dataset=tmp_path / "plain").run()
    assert any("no labels" in line for line in outcome.prepared.warnings)
    assert metrics(outcome, tmp_path / "run").isna().all(axis=None)
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    assert images["label"].isna().all()
    assert images["mask_iou"].isna().all()
    assert export_run(tmp_path / "run", tmp_path / "export", "npy", "png") == 2
    assert len(list((tmp_path / "export").rglob("*.npy"))) == 2 * len(STEPS)
    assert not (tmp_path / "export" / "masks").exists()


# Fair tests


@pytest.mark.parametrize("by", ["image", "category", "name"])
def test_an_adapter_is_not_tested_on_what_it_was_trained_on(bench: Bench, tmp_path: Path, by: str) -> None:
    image_id = bench.prepare().run.manifest.records[0].image_id
    training = {
        "image": {"dataset": "other", "categories": ["x"], "image_ids": [image_id]},
        "category": {"dataset": "tiny", "categories": ["carpet"], "image_ids": []},
        "name": None,
    }[by]
    changes = [f"localise.adapter={save_adapter(tmp_path / 'own.safetensors', training)}"]
    if by == "name":
        changes.append("localise.adapter_trained_on=[Tiny]")
    before = files_of(bench.store)
    with pytest.raises(LeakError, match="--allow-leak"):
        bench.prepare(*changes)
    assert files_of(bench.store) == before
    assert bench.prepare(*changes, allow_leak=True).leak


def test_an_adapter_trained_elsewhere_is_fair(bench: Bench, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "own.safetensors", {"dataset": "tiny", "categories": ["pill"], "image_ids": []})
    assert bench.prepare(f"localise.adapter={adapter}").leak is None


def test_a_run_without_a_dataset_is_refused(empty: Bench) -> None:
    from cascade.configs.loader import load_experiment
    from cascade.storage.errors import ConfigError

    with pytest.raises(ConfigError, match="--dataset"):
        prepare(load_experiment("mini", empty.overrides), empty.store, Settings())
