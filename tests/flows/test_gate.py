"""The gate of ``compare``, ``reevaluate`` and ``serve``, as it is met on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.conftest import Bench, Cli, files_of
from tests.planted import plant_run, planted_images


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on planted scores; tests do not write into it."""
    return plant_run(tmp_path_factory.mktemp("gate") / "baseline", planted_images())


# Options are checked before all work


@pytest.mark.usefixtures("no_networks")
@pytest.mark.parametrize("command", ["compare", "reevaluate", "serve"])
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["pixel_app=0.1"], ["'pixel_app'", "did you mean 'pixel_ap'"]),
        (["pixel_ap"], ["pixel_ap:", "metric=fraction"]),
        (["pixel_ap=a lot"], ["pixel_ap=a lot", "metric=fraction"]),
        (["pixel_ap=-0.01"], ["pixel_ap=-0.01", "from 0 to 1"]),
        (["pixel_ap=nan"], ["pixel_ap=nan", "from 0 to 1"]),
        (["pixel_ap=2"], ["pixel_ap=2", "from 0 to 1"]),
        (["pixel_ap=0.02", "pixel_ap=0.2"], ["pixel_ap=0.2", "each metric once"]),
    ],
)
def test_a_wrong_limit_is_refused_before_all_work(
    cli: Cli, empty: Bench, baseline: Path, tmp_path: Path, command: str, given: list[str], parts: list[str]
) -> None:
    data = ["--dataset", empty.dataset, "--store", empty.store]
    arguments = {
        "compare": [baseline, baseline, "--out", tmp_path / "out"],
        "reevaluate": ["mini", *data, "--engine", "local"],
        "serve": ["mini", *data],
    }
    options = [part for each in given for part in ("--max-drop", each)]
    result = cli(command, *arguments[command], *options)
    assert result.code == 2
    message = result.refusal()
    assert all(part in message for part in ("max-drop", *parts)), message
    assert files_of(tmp_path) == {}
