"""Which engine a command gets: the local one, unless a Prefect server is configured or a runner needs Prefect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.configs.loader import load_experiment
from cascade.flows.engines.choice import choose_engine
from cascade.flows.engines.prefect_address import configured_server
from cascade.storage.errors import ConfigError
from tests.flows.conftest import Bench, Cli

HERE = "http://127.0.0.1:4200/api"
PROFILES = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{HERE}"\n[profiles.bare]\n'
PLACES = {
    "nowhere": ({}, {}),
    "environment": ({"PREFECT_API_URL": HERE}, {"prefect.toml": '[api]\nurl = "http://other/api"'}),
    "set to nothing": ({"PREFECT_API_URL": ""}, {"home/profiles.toml": PROFILES}),
    ".env": ({}, {".env": f"PREFECT_API_URL={HERE}\n"}),
    "prefect.toml": ({}, {"prefect.toml": f'[api]\nurl = "{HERE}"', "home/profiles.toml": '[profiles.a]\nx = "1"'}),
    "pyproject.toml": ({}, {"pyproject.toml": f'[tool.prefect.api]\nurl = "{HERE}"'}),
    "active profile": ({}, {"home/profiles.toml": PROFILES}),
    "named profile": ({"PREFECT_PROFILE": "mine"}, {"home/profiles.toml": PROFILES.replace('"mine"', '"bare"', 1)}),
    "profile without a server": ({"PREFECT_PROFILE": "bare"}, {"home/profiles.toml": PROFILES}),
    "another file of profiles": ({"PREFECT_PROFILES_PATH": "other.toml"}, {"other.toml": PROFILES}),
    "a file named in pyproject.toml": (
        {},
        {"pyproject.toml": '[tool.prefect]\nprofiles_path = "other.toml"', "other.toml": PROFILES},
    ),
}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to work in, and nothing configured."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
def test_a_server_is_found_where_prefect_finds_it(place: str, monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    from prefect.settings import Settings

    variables, files = PLACES[place]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, content in files.items():
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_text(content, encoding="utf-8")
    assert configured_server() == (Settings().api.url or None)
    assert (configured_server() is None) == (place in ("nowhere", "set to nothing", "profile without a server"))


@pytest.mark.parametrize("content", ["no TOML", "api = 3", 'active = 3\nprofiles = "none"'])
def test_a_file_that_says_nothing_configures_nothing(content: str, elsewhere: Path) -> None:
    (elsewhere / "home").mkdir()
    for name in ("prefect.toml", "pyproject.toml", "home/profiles.toml"):
        (elsewhere / name).write_text(content, encoding="utf-8")
    assert configured_server() is None


def test_who_needs_prefect_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, ray = (load_experiment("mini", [f"runtime.runner={each}"]).runtime for each in ("threads", "ray"))
    assert choose_engine(None, [threads]).name == "local"
    assert choose_engine("prefect", [threads]).name == "prefect"
    assert choose_engine(None, [threads, ray]).name == "prefect"
    with pytest.raises(ConfigError, match=r"runtime\.runner 'ray' needs --engine prefect"):
        choose_engine("local", [threads, ray])
    monkeypatch.setenv("PREFECT_API_URL", HERE)
    assert choose_engine(None, [threads]).name == "prefect"
    assert choose_engine("local", [threads]).name == "local"


def test_a_cluster_needs_a_server_that_its_machines_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["runtime.runner=dask", "runtime.cluster=tcp://scheduler:8786"]
    runtime = load_experiment("mini", given).runtime
    with pytest.raises(ConfigError, match="set PREFECT_API_URL"):
        choose_engine(None, [runtime])
    monkeypatch.setenv("PREFECT_API_URL", HERE)
    assert choose_engine(None, [runtime]).server == HERE


def test_without_a_server_nothing_of_prefect_is_imported(bench: Bench, elsewhere: Path) -> None:
    program = (
        "import sys; from cascade.flows.cli import main\ntry: main()\nfinally: assert 'prefect' not in sys.modules"
    )
    arguments = [part for part in bench.arguments("name=bare") if part not in ("--engine", "local")]
    subprocess.run([sys.executable, "-c", program, *arguments, "--out", "out"], check=True, cwd=elsewhere)
    assert json.loads((elsewhere / "out" / "run.json").read_text(encoding="utf-8"))["engine"] == "local"


@pytest.mark.parametrize("command", [("run", "mini"), ("ablate", "table2"), ("reevaluate", "mini")])
def test_every_command_asks_the_configured_server_first(
    command: tuple[str, str], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Port 9 of this machine answers nobody."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        refused = cli(*command, "--dataset", "nowhere")
    assert refused.code == 2
    assert refused.out == "starting Prefect, server http://127.0.0.1:9/api ...\n"
    assert "PREFECT_API_URL http://127.0.0.1:9/api: no Prefect server answers" in refused.refusal()
    assert "--engine local" in refused.err
    assert "no dataset at" in cli(*command, "--dataset", "nowhere", "--engine", "local").refusal()
