from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from cascade.flows.cli import main
from cascade.storage.weights import REGISTRY, WeightsEntry
from cascade.tasks.aggregate import METRICS
from cascade.tasks.tables.intervals import result_intervals
from tests.flows.conftest import Bench, Cli, Recorder, files_of, save_adapter, save_scene


@pytest.fixture
def refused(cli: Cli, bench: Bench) -> Callable[..., str]:
    """The line of a ``cascade run`` that is refused and must leave everything as it was."""

    def call(*arguments: str, code: int) -> str:
        before, around = files_of(bench.store), set(bench.store.parent.iterdir())
        result = cli(*bench.arguments(), *arguments)
        assert result.code == code, result
        assert files_of(bench.store) == before
        assert set(bench.store.parent.iterdir()) == around
        return result.refusal()

    return call


# cascade run


def test_a_run_writes_its_tables_and_says_what_every_stage_did(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    result = cli(*bench.arguments("score.weight=0.25"), "--out", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert result.out.startswith("CLIP is told: 'carpet', 'metal_plate'\n")
    assert [line[:2] for line in lines[1:9]] == [
        ["embed", "hit"],
        ["tokens", "hit"],
        ["localise", "hit"],
        ["prompt", "hit"],
        ["refine", "hit"],
        ["score", "miss"],
        ["tally", "miss"],
        ["aggregate", "miss"],
    ]
    assert result.out.count("changed: score.weight: 0.3 → 0.25") == 3  # of the stage and of those that read it
    names = {"results.csv", "results.parquet", "images.parquet", "points.parquet", "run.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_intervals_stand_beside_the_numbers(
    cli: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENOUGH", "ENOUGH_EACH"):
        monkeypatch.setattr(f"cascade.tasks.tables.intervals.{name}", 1)  # two images of each kind are
    result = cli(*bench.arguments(), "--ci", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    notes = {f"{metric}_note": "" for metric in METRICS}
    table = pd.read_csv(tmp_path / "out" / "results.csv", dtype=dict.fromkeys(notes, "object")).fillna(notes)
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "out" / "results.parquet"), check_dtype=False)
    run = bench.prepare().run
    expected = result_intervals(run).set_index(["category", "step", "metric"])
    for row in table.to_dict("records"):
        for metric in METRICS:
            low, high, note = (row[f"{metric}_{part}"] for part in ("low", "high", "note"))
            own = expected.loc[(row["category"], row["step"], metric)]
            assert (low, high) == pytest.approx((own["low"], own["high"]), nan_ok=True)
            assert note == own["note"]
            assert (note or f"{100 * low:.1f}–{100 * high:.1f}") in result.out
    assert (table["pixel_ap_note"] == "").any()
    plain = cli(*bench.arguments(), "--out", tmp_path / "plain")
    assert "–" not in plain.out
    assert set(table.columns) - set(pd.read_csv(tmp_path / "plain" / "results.csv").columns) == {
        f"{metric}_{part}" for metric in METRICS for part in ("low", "high", "note")
    }


def test_by_default_a_run_goes_to_a_new_folder_under_runs(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    for _ in range(2):
        assert cli(*bench.arguments("name=mine")).code == 0
    assert len(list((tmp_path / "runs" / "mine").glob("2*/results.csv"))) == 2


def test_a_path_may_hold_any_character(cli: Cli, empty: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "\\" / 'it\'s [a] "set" ü: {1}'
    save_scene(folder / "a.png", seed=1)
    result = cli(*replace(empty, dataset=folder).arguments(), "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert folder.name in set(pd.read_csv(tmp_path / "out" / "results.csv")["dataset"])


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("prompt.postives=3", ["'prompt.postives'", "did you mean 'prompt.positives'"]),
        ("promt.positives=3", ["did you mean 'prompt'"]),
        ("score.fusion=blnd", ["'blnd'", "did you mean 'blend'"]),
        ("embed.backbone=vit_hh", ["'vit_hh'", "did you mean 'vit_h'"]),
        ("localise.method=april_gam", ["did you mean 'april_gan'"]),
        ("localise.backbone=minni", ["localise.backbone", "'minni'", "mini"]),
        ("localise.layers=[2, 9]", ["localise.layers", "1 to 2"]),
        ("localise.image_side=335", ["localise.image_side", "336"]),
        ("localise.more_sides=[335]", ["localise.more_sides", "336"]),
        ("localise.prompts=april_gam", ["did you mean 'april_gan'"]),
        ("dataset.categories=[carpett]", ["'carpett'", "did you mean 'carpet'"]),
        ("dataset.exclude=[metal-plate]", ["did you mean 'metal_plate'"]),
        ("dataset.layout=mvtek", ["did you mean 'mvtec'"]),
        ("dataset.split=train", ["split 'train'"]),
        ("prompt.positives", ["key=value"]),
        ("runtime.device=cuda", ["runtime.device", "GPU"]),
    ],
)
def test_a_wrong_setting_is_refused(refused: Callable[..., str], setting: str, parts: list[str]) -> None:
    import torch

    if "cuda" in setting and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    # Another key, so that a stage would have to run.
    message = refused("--set", "localise.activation=quickgelu", "--set", setting, code=2)
    assert all(part in message for part in parts), message


def test_an_unknown_experiment_is_refused(cli: Cli) -> None:
    result = cli("run", "papper", "--engine", "local")
    assert result.code == 2
    assert "did you mean 'paper'" in result.refusal()


def test_a_dataset_that_is_not_there_is_refused(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    before = files_of(bench.store)
    result = cli(*replace(bench, dataset=tmp_path / "nothing").arguments())
    assert result.code == 2
    assert str(tmp_path / "nothing") in result.refusal()
    assert files_of(bench.store) == before


def test_a_truncated_image_is_refused_before_anything_runs(cli: Cli, own_data: Bench) -> None:
    path = own_data.dataset / "carpet" / "test" / "good" / "0000.png"
    path.write_bytes(path.read_bytes()[:10])
    before = files_of(own_data.store)
    result = cli(*own_data.arguments())
    assert result.code == 2
    assert "carpet/test/good/0000.png" in result.refusal()
    assert files_of(own_data.store) == before


def test_debug_shows_the_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade.storage.errors import ConfigError

    monkeypatch.setattr(sys, "argv", ["cascade", "run", "papper", "--debug"])
    with pytest.raises(ConfigError, match="papper"):
        main()


# Checkpoints


def test_missing_weights_say_where_what_and_how(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("--set", "embed.backbone=vit_b", "--set", "embed.weights=null", code=4)
    assert str(tmp_path / "weights" / "sam_vit_b_01ec64.pth") in message
    assert REGISTRY["vit_b"].sha256 in message
    assert "cascade weights fetch vit_b" in message


def test_a_missing_path_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("--set", f"embed.weights={tmp_path / 'no.pth'}", "--set", f"embed.sha256={'ab' * 32}", code=4)
    assert str(tmp_path / "no.pth") in message
    assert "ab" * 32 in message


def test_weights_with_another_digest_are_refused(refused: Callable[..., str], bench: Bench) -> None:
    message = refused("--set", f"localise.sha256={'ab' * 32}", code=4)
    path = next(Path(each.partition("=")[2]) for each in bench.overrides if each.startswith("localise.weights"))
    assert str(path) in message
    assert "ab" * 32 in message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in message


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_for_other_layers_is_refused(
    refused: Callable[..., str], bench: Bench, tmp_path: Path, layers: int
) -> None:
    path = save_adapter(bench.dataset.parent / f"layers_{layers}.safetensors", layers=layers)
    message = refused("--set", f"localise.adapter={path}", code=4)
    assert str(path) in message
    assert "localise.layers" in message


def test_a_leak_is_refused_or_marked(refused: Callable[..., str], cli: Cli, bench: Bench, tmp_path: Path) -> None:
    training = {"dataset": "tiny", "categories": ["carpet"], "image_ids": []}
    setting = f"localise.adapter={save_adapter(bench.dataset.parent / 'leaking.safetensors', training)}"
    message = refused("--set", setting, code=2)
    assert "carpet" in message
    assert "--allow-leak" in message
    result = cli(*bench.arguments(setting), "--allow-leak", "--out", tmp_path / "out")
    assert result.code == 0
    assert "not zero-shot" in result.out
    assert pd.read_csv(tmp_path / "out" / "results.csv")["leak"].all()
    for name in ("results", "images", "points"):
        assert pd.read_parquet(tmp_path / "out" / f"{name}.parquet")["leak"].all()


def test_a_network_that_returns_nan_names_the_image(cli: Cli, empty: Bench, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(next(Path(each.partition("=")[2]) for each in empty.overrides if "localise.adapter" in each))
    state["fc.1.weight"].fill_(3e38)  # finite weights, whose sums are not
    save_file(state, tmp_path / "large.safetensors")
    result = cli(*empty.arguments(f"localise.adapter={tmp_path / 'large.safetensors'}"))
    assert result.code == 5
    assert re.search(r"localise: carpet/test/\S+\.png: .*NaN", result.refusal())


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_are_fetched_from_a_mirror(
    cli: Cli, mirror: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = mirror
    content = bytes(range(256)) * 40
    entry = WeightsEntry(
        "tiny", "tiny.pth", hashlib.sha256(content).hexdigest(), None, "https://x.invalid/tiny.pth", "CC0-1.0", ""
    )
    # The default arguments of storage.weights hold the registry that was there when it was imported.
    monkeypatch.setattr(
        "cascade.storage.weights.fetch.__kwdefaults__",
        {"base_url": None, "progress": False, "registry": {"tiny": entry}},
    )
    monkeypatch.setenv("CASCADE_WEIGHTS_URL", url)
    (folder / "tiny.pth").write_bytes(content)
    result = cli("weights", "fetch", "tiny")
    assert (result.code, result.err) == (0, "")
    assert (tmp_path / "weights" / "tiny.pth").read_bytes() == content

    (tmp_path / "weights" / "tiny.pth").unlink()
    (folder / "tiny.pth").write_bytes(content + b"x")
    result = cli("weights", "fetch", "tiny")
    assert result.code == 4
    assert entry.sha256 in result.refusal()
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_mirror_with_another_file_is_refused(
    cli: Cli, mirror: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = mirror
    monkeypatch.setenv("CASCADE_WEIGHTS_URL", url)
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"something else")
    result = cli("weights", "fetch", "vit_b")
    assert result.code == 4
    assert url in result.refusal()
    assert list((tmp_path / "weights").iterdir()) == []


def test_unknown_weights_name_the_nearest(cli: Cli) -> None:
    result = cli("weights", "fetch", "vit_hh")
    assert result.code == 2
    assert "did you mean 'vit_h'" in result.refusal()


def test_the_list_of_weights_says_what_is_there(cli: Cli, tmp_path: Path) -> None:
    result = cli("weights", "ls")
    assert result.code == 0
    assert all(name in result.out for name in REGISTRY)
    assert "missing" in result.out
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sam_vit_b_01ec64.pth").write_bytes(b"short")
    assert re.search(r"vit_b\s+damaged", cli("weights", "ls", "--verify").out)


# Other commands


def test_check_ends_with_0_for_a_sound_dataset_and_2_for_a_wrong_one(cli: Cli, own_data: Bench) -> None:
    result = cli("check", own_data.dataset)
    assert result.code == 0
    assert "layout mvtec: 8 images, 2 categories" in result.out
    assert ["carpet", "carpet", "test", "2", "2", "0"] in [line.split() for line in result.out.splitlines()]
    assert "0 errors, 0 warnings" in result.out
    good = own_data.dataset / "carpet" / "test" / "good"
    (good / "0001.png").write_bytes((good / "0001.png").read_bytes()[:-200])
    mask = sorted((own_data.dataset / "carpet" / "ground_truth").rglob("*.png"))[0]
    Image.new("L", (96, 96)).save(mask)
    result = cli("check", own_data.dataset)
    assert result.code == 2
    assert "carpet/test/good/0001.png" in result.out
    assert mask.relative_to(own_data.dataset).as_posix() in result.out
    assert "2 errors" in result.out
    assert cli("check", own_data.dataset / "nothing").code == 2


def test_store_ls_lists_every_artefact(cli: Cli, bench: Bench) -> None:
    result = cli("store", "ls", "--store", bench.store)
    assert result.code == 0
    rows = [line.split()[:3] for line in result.out.splitlines() if line.split()[0] != "stage"]
    listed = {(row[0], row[2]) for row in rows if len(row) == 3 and re.fullmatch("[0-9a-f]{12}", row[1])}
    ends = {("words", "2"), ("tally", "2"), ("aggregate", "1")}
    assert listed == {(stage, "8") for stage in ("embed", "tokens", "localise", "prompt", "refine", "score")} | ends


def test_store_ls_of_no_store_is_empty_and_creates_nothing(cli: Cli, tmp_path: Path) -> None:
    assert cli("store", "ls", "--store", tmp_path / "none").code == 0
    assert not (tmp_path / "none").exists()


def test_export_writes_what_the_options_say(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    assert cli(*bench.arguments(), "--out", tmp_path / "run").code == 0
    result = cli("export", tmp_path / "run", tmp_path / "files", "--maps", "tiff", "--masks", "png")
    assert result.code == 0
    assert {path.suffix for path in (tmp_path / "files" / "maps").rglob("*.*")} == {".tiff"}
    assert len(list((tmp_path / "files" / "masks").rglob("*.png"))) == 8
    result = cli("export", tmp_path / "nothing", tmp_path / "other")
    assert result.code == 2
    assert "run.json" in result.refusal()


def test_generated_photographs_are_a_sound_dataset(cli: Cli, tmp_path: Path) -> None:
    arguments = ("generate", tmp_path / "set", "--category", "wood", "--good", 1, "--defective", 1, "--size", 96)
    assert cli(*arguments).code == 0
    assert cli("check", tmp_path / "set").code == 0
    result = cli("generate", tmp_path / "other", "--category", "woood")
    assert result.code == 2
    assert "did you mean 'wood'" in result.refusal()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("epoch=3", ["'epoch'", "did you mean 'epochs'"]),
        ("epochs=[3", ["--train", "not valid YAML"]),
        ("epochs", ["--train", "key=value"]),
        ("epochs=0", ["epochs"]),
    ],
)
def test_a_wrong_recipe_is_refused(cli: Cli, bench: Bench, recipe: str, parts: list[str]) -> None:
    result = cli("train", "april_gan", "--dataset", bench.dataset, "--store", bench.store, "--train", recipe)
    assert result.code == 2
    message = result.refusal()
    assert all(part in message for part in parts), message


def test_ctrl_c_says_that_finished_items_are_kept(cli: Cli, empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def stop_after_two(stage: str) -> None:
        written.append(stage)
        if len(written) == 2:
            raise KeyboardInterrupt

    class Stopping(Recorder):
        def __init__(self, console: object) -> None:
            super().__init__(on_item=stop_after_two)

    with monkeypatch.context() as patch:
        patch.setattr("cascade.flows.cli.observers.RunObserver", Stopping)
        result = cli(*empty.arguments())
    assert result.code == 130
    assert result.err == "stopped; finished items are kept, the same command goes on from there\n"
    assert "6 of 8 computed" in cli(*empty.arguments()).out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["ablate", "--help"], ["weights", "--help"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom cascade.flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "slow = {'torch', 'prefect', 'pandas', 'zarr', 'scipy', 'open_clip', 'sklearn', 'cv2', 'matplotlib'}\n"
        "print('imported:', *sorted(slow & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert "Usage" in result.stdout
    assert result.stdout.splitlines()[-1].strip() == "imported:"


# cascade bench


def test_bench_runs_the_named_scripts(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "cps.py").write_text("import sys\nprint('measured', sys.argv[1:])\n", encoding="utf-8")
    (folder / "store.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    monkeypatch.setattr("cascade.flows.cli.bench.FOLDER", folder)
    assert cli("bench", "cps", "--json").code == 0
    assert cli("bench", "cps").code == 0
    assert cli("bench", "store").code == 3
    assert "valid: cps, store" in cli("bench", "metrics").refusal()


def test_bench_knows_the_benchmarks_of_this_tree() -> None:
    from cascade.flows.cli.bench import FOLDER, NAMES

    there = [name for name in NAMES if (FOLDER / f"{name}.py").is_file()]
    assert {"cps", "encoder", "metrics", "store", "overhead"} <= set(there)
    assert not (FOLDER / "cascade.py").exists()  # would stand before the package when a script is run by its path


def test_bench_says_what_to_do_without_a_source_tree(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cascade.flows.cli.bench.FOLDER", tmp_path / "nowhere")
    assert "source tree" in cli("bench").refusal()


def test_a_reader_who_leaves_early_costs_no_table(bench: Bench, tmp_path: Path) -> None:
    program = "from cascade.flows.cli import main; main()"
    arguments = [*bench.arguments(), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0
    assert {"run.json", "results.csv", "images.parquet"} <= {path.name for path in (tmp_path / "out").iterdir()}
