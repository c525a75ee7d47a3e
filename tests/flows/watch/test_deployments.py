"""The files that a Prefect server is set up with are what it understands."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
import yaml

from cascade.configs.loader import load_experiment

ROOT = Path(__file__).parents[3]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["name"])
def test_a_deployment_is_a_flow_with_parameters_it_takes(deployment: dict[str, object]) -> None:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(str(deployment["entrypoint"]), use_placeholder_flow=False)
    parameters = deployment["parameters"]
    assert isinstance(parameters, dict)
    assert set(parameters) <= set(signature(flow.fn).parameters)
    load_experiment(parameters["experiment"], parameters.get("settings", []))
    ConcurrencyLimitConfig.model_validate(deployment["concurrency_limit"])
    for schedule in deployment["schedules"]:
        CronSchedule.model_validate(schedule)


def test_the_automation_listens_to_the_event_that_is_emitted() -> None:
    from prefect.events.schemas.automations import AutomationCore

    from cascade.flows.watch.schedules import REGRESSION

    text = (ROOT / "docs" / "automation.yaml").read_text(encoding="utf-8")
    automation = AutomationCore.model_validate(yaml.safe_load(text))
    assert automation.trigger.expect == {REGRESSION}
    assert automation.actions[0].type == "call-webhook"
