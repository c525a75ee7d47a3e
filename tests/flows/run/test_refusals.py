"""What a user may type or hand over that cannot work: one line, an exit code, and nothing written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.flows.conftest import Bench, Cli

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB + "name: *a29\n", "100000 values"),
        ("prompt: " + "[" * 3000 + "\n", "nested too deeply"),
        ("score: {smoothing: .inf}\n", "score.smoothing: Input should be a finite number"),
        ("prompt: {spacing: {radius: .nan}}\n", "prompt.spacing.radius: Input should be a finite number"),
        ("prompt: {dilation: {size: 100000}}\n", "less than or equal to 512 (given: 100000)"),
        ("prompt: {positives: '3'}\n", "valid integer (given: '3')"),
        ("prompt: {positives: true}\n", "valid integer (given: True)"),
        ("name: ..\n", "name: '..'"),
        ("localise: {layers: [2, 2, 2, 2]}\n", "ascending order"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("serve",), ("ablate", "spacing", "--experiment")])
def test_a_configuration_that_cannot_be_meant_is_refused(
    cli: Cli, tmp_path: Path, command: tuple[str, ...], text: str, part: str
) -> None:
    (tmp_path / "odd.yaml").write_text(f"extends: mini\n{text}", encoding="utf-8")
    result = cli(*command, "odd.yaml")
    assert result.code == 2
    assert part in result.refusal()
    assert [path.name for path in tmp_path.iterdir()] == ["odd.yaml"]


def test_a_recipe_is_read_like_a_configuration(cli: Cli, tmp_path: Path) -> None:
    for recipe in ("seed=-1", "epochs=true", "learning_rate=.inf", "batch_size=100000"):
        result = cli("train", "april_gan", "--dataset", tmp_path, "--train", recipe)
        assert result.code == 2
        assert recipe.partition("=")[0] in result.refusal()


# Options and arguments


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rnu", "mini"], ["'rnu'", "Did you mean 'run'? see `cascade --help`"]),
        (["run", "mini", "--datset", "x"], ["cascade run: no option '--datset'", "did you mean '--dataset'?"]),
        (["store", "ls", "--sotre", "x"], ["cascade store ls", "did you mean '--store'?"]),
        (["weights", "fetch", "vit_b", "--hlep"], ["did you mean '--help'?"]),
        (["run"], ["Missing argument", "see `cascade run --help`"]),
        (["run", "mini", "--engine", "locl"], ["'--engine'", "'locl' is not one of"]),
        (["generate", "d", "--size", "big"], ["'--size'", "integer"]),
        (["train", "april_gan", "--out"], ["'--out' requires an argument"]),
        (["run", "mini", "--store", ""], ["an argument is empty"]),
        (["run", "mini", "--store="], ["--store is empty"]),
        (["run", "a\udcff.yaml"], ["a\\udcff.yaml", "UTF-8"]),
    ],
)
def test_wrong_options_are_answered_like_wrong_values(
    cli: Cli, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert all(part in result.refusal() for part in parts), result.err
    assert list(tmp_path.iterdir()) == []


def test_one_is_not_counted_as_many(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "[a] folder"
    assert (
        f"1 image in {folder}"
        in cli(*("generate", folder, "--category", "wood", "--good", 0, "--defective", 1, "--size", 96)).out
    )
    for option, value in {"--good": 10**6, "--defective": 10**6, "--size": 10**6, "--seed": 10**9}.items():
        result = cli("generate", tmp_path / "other", option, value)
        assert result.code == 2
        assert f"'{option}'" in result.refusal()


def test_the_version_and_help_are_where_they_are_looked_for(cli: Cli) -> None:
    shown = cli("--version")
    assert (shown.code, shown.out, shown.err) == (0, version("clip-sam-cascade") + "\n", "")
    for arguments in (["-h"], ["run", "-h"], ["store", "-h"], ["store", "ls", "-h"]):
        assert cli(*arguments).out == cli(*arguments[:-1], "--help").out
        assert "Usage" in cli(*arguments).out
    assert "Usage" in cli("store").out


# Folders


def test_the_home_folder_is_found_wherever_a_path_is_written(
    cli: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    bench.store.rename(home / "store")
    (home / "data").symlink_to(bench.dataset)
    (home / "mine.yaml").write_text("extends: mini\ndataset: {path: ~/data, name: tiny}\n", encoding="utf-8")
    (tmp_path / "top.yaml").write_text("extends: ~/mine.yaml\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CASCADE_RUNS", "~/runs")
    settings = [part for override in bench.overrides for part in ("--set", override.replace(str(home), "~"))]
    result = cli("run", "top.yaml", "--engine", "local", "--store=~/store", "--out=~/out", *settings)
    assert result.code == 0, result.err
    assert "miss" not in result.out
    monkeypatch.setenv("CASCADE_STORE", "~/store")
    monkeypatch.chdir(home)
    result = cli("run", "mine.yaml", "--engine", "local", "--set", "dataset.path=data", *settings)
    assert result.code == 0, result.err
    assert {path.name for path in home.iterdir()} == {"store", "data", "mine.yaml", "runs", "out"}


def test_a_variable_that_is_set_to_nothing_means_the_default(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CASCADE_STORE", "CASCADE_RUNS", "CASCADE_WEIGHTS"):
        monkeypatch.setenv(name, "")
    (tmp_path / "store" / "embed" / ("0" * 64)).mkdir(parents=True)
    (tmp_path / "store" / "embed" / ("0" * 64) / "zarr.json").write_text("{}", encoding="utf-8")
    assert "store/embed" in cli("store", "ls").refusal()
    assert cli("weights", "ls").code == 0


def test_names_that_are_not_utf_8_are_refused_wherever_they_come_from(
    cli: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCADE_RUNS", "a\udcff")
    assert "CASCADE_RUNS: a\\udcff: a name that is not UTF-8" in cli("history").refusal()
    monkeypatch.delenv("CASCADE_RUNS")
    folder = tmp_path / "b\udcff"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "b\\udcff/runs/mini" in cli(*bench.arguments()).refusal()
    monkeypatch.chdir(tmp_path)
    dataset = tmp_path / "dataset"
    shutil.copytree(bench.dataset, dataset)
    picture = next((dataset / "carpet" / "test" / "good").iterdir())
    picture.rename(picture.with_name("c\udcff.png"))
    assert "c\\udcff.png" in cli(*replace(bench, dataset=dataset).arguments()).refusal()


def without_home(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``cascade`` on a machine on which nobody has a home folder."""
    script = (
        "import pwd, sys\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from cascade.flows.cli import main\n"
        "sys.argv = ['cascade', *sys.argv[1:]]\n"
        "main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | variables
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_nobody_needs_a_home_folder(bench: Bench, tmp_path: Path) -> None:
    ended = without_home(*bench.arguments(), "--out", str(tmp_path / "out"), CASCADE_RUNS=str(tmp_path / "runs"))
    assert (ended.returncode, ended.stderr) == (0, "")
    asked = without_home("weights", "ls")
    assert asked.returncode == 4
    assert asked.stderr.startswith("error: ")
    assert asked.stderr.count("\n") == 1
    assert "set CASCADE_WEIGHTS" in asked.stderr
    assert without_home("weights", "ls", CASCADE_WEIGHTS=str(tmp_path)).returncode == 0
    lost = without_home("store", "ls", CASCADE_STORE="~/s")
    assert lost.returncode == 2
    assert lost.stderr.startswith("error: CASCADE_STORE: ~/s: ")
