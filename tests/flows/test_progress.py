"""What a log shows of a stage that takes its time."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from cascade.flows import progress
from cascade.flows.evaluate import StagePlan, plan
from tests.flows.conftest import Bench


@pytest.fixture
def embedding(empty: Bench) -> StagePlan:
    """Eight images that are not embedded yet."""
    return plan(empty.prepare().run)[0]


def shown(embedding: StagePlan, seconds: float) -> list[str]:
    """The lines in a file while three of the images are embedded, after a stage of that length."""
    file = io.StringIO()
    with progress.RichReporter(Console(file=file)) as reporter:
        item = reporter.started(embedding)
        for _ in range(3):
            item()
        time.sleep(seconds)
    before = file.getvalue()
    time.sleep(0.1)
    assert file.getvalue() == before, "goes on after its end"
    return before.splitlines()


def test_a_slow_stage_says_how_far_it_is_now_and_then(embedding: StagePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SLOW", 0.05)
    monkeypatch.setattr(progress, "_AGAIN", 0.05)
    lines = shown(embedding, 1.0)
    assert len(lines) >= 2
    assert set(lines) <= {"embed     works 3 of 8 after 0 s", "embed     works 3 of 8 after 1 s"}


def test_a_fast_stage_says_nothing_meanwhile(embedding: StagePlan) -> None:
    assert shown(embedding, 0.1) == []
