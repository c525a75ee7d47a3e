"""What a log shows of a stage that takes its time."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from cascade.flows.engines.evaluate import StagePlan, plan
from cascade.flows.run import progress
from tests.flows.conftest import Bench


@pytest.fixture
def embedding(empty: Bench) -> StagePlan:
    """Eight images that are not embedded yet."""
    return plan(empty.prepare().run)[0]


def to_a_file(file: io.StringIO) -> progress.RichReporter:
    return progress.RichReporter(Console(file=file))


def to_a_log(file: io.StringIO) -> progress.LogReporter:
    logger = logging.Logger("flow")
    logger.addHandler(logging.StreamHandler(file))
    return progress.LogReporter(logger)


Make = Callable[[io.StringIO], progress.RichReporter | progress.LogReporter]


def shown(make: Make, embedding: StagePlan, seconds: float) -> list[str]:
    """The lines while three of the images are embedded, in a stage of that length."""
    file = io.StringIO()
    with make(file) as reporter:
        item = reporter.started(embedding)
        for _ in range(3):
            item()
        time.sleep(seconds)
    before = file.getvalue()
    time.sleep(0.1)
    assert file.getvalue() == before, "goes on after its end"
    return before.splitlines()


@pytest.mark.parametrize("make", [to_a_file, to_a_log])
def test_a_slow_stage_says_how_far_it_is_now_and_then(
    make: Make, embedding: StagePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SLOW", 0.05)
    monkeypatch.setattr(progress, "_AGAIN", 0.05)
    lines = shown(make, embedding, 1.0)
    assert len(lines) >= 2
    assert set(lines) <= {"embed     works 3 of 8 after 0 s", "embed     works 3 of 8 after 1 s"}


@pytest.mark.parametrize("make", [to_a_file, to_a_log])
def test_a_fast_stage_says_nothing_meanwhile(make: Make, embedding: StagePlan) -> None:
    assert shown(make, embedding, 0.1) == []
