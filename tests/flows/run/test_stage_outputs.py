"""What each stage makes of fixed inputs: every option changes it, and a change that no VERSION tells of is red.

The outputs are kept in ``golden/stages``, one file for each VERSION. After a change that is meant, raise the VERSION
and write them anew: ``python -m tests.flows.run.test_stage_outputs``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel

from cascade.configs.localisers import Mutual
from cascade.configs.schema import Experiment
from cascade.tasks.execution import networks
from tests.stages import NAMES, Desk, Digest, deviations, differ, distances

GOLDEN = Path(__file__).parents[2] / "golden" / "stages"
ANEW = "python -m tests.flows.run.test_stage_outputs"


@dataclass(frozen=True)
class Case:
    """Values of an option that must lead to different outputs of a stage, ``beside`` other options."""

    stage: str
    values: tuple[str, ...]
    beside: tuple[str, ...] = ()

    def overrides(self, option: str) -> list[tuple[str, ...]]:
        return [(*self.beside, f"{option}={value}") for value in self.values]


def _case(stage: str, *values: Any, beside: str = "") -> Case:
    return Case(stage, tuple(str(value) for value in values), tuple(beside.split()))


YES, NO = "true", "false"
MULTIMASK = (YES, YES, YES), (NO, YES, YES), (YES, NO, YES), (YES, YES, NO), (NO, NO, NO)

CASES = {
    "embed.weights": _case("embed", "{sam}", "{other_sam}"),
    "embed.image": _case("embed", "square", "stretched", "padded"),
    "embed.square_side": _case("embed", 518, 100),
    "localise.weights": _case("tokens", "{clip}", "{other_clip}"),
    "localise.activation": _case("tokens", "gelu", "quickgelu"),
    "localise.image_side": _case("tokens", 96, 64),
    "localise.more_sides": _case("localise", "[]", "[64]"),
    "localise.layers": _case("tokens", "[2,4,6,8]", "[1,3,6,8]"),
    "localise.adapter": _case("localise", "{adapter}", "{other_adapter}"),
    "localise.prompts": _case("words", "april_gan", "{sentences}"),
    "prompt.frame": _case("prompt", 96, 128, "native"),
    "prompt.threshold.rule": _case(
        "prompt", "max", "absolute", "relative", "quantile", beside="prompt.threshold.absolute=0.7"
    ),
    "prompt.threshold.absolute": _case("prompt", 0.5, 0.7, beside="prompt.threshold.rule=absolute"),
    "prompt.threshold.relative": _case("prompt", 0.8, 0.7),
    "prompt.threshold.quantile": _case("prompt", 0.99, 0.9, beside="prompt.threshold.rule=quantile"),
    "prompt.threshold.min_area": _case("prompt", 20, 500, beside="prompt.threshold.rule=max"),
    "prompt.positives": _case("prompt", 3, 5),
    "prompt.negatives": _case("prompt", 3, 0, 5),
    "prompt.spacing.rule": _case("prompt", "rank", "radius", "distance"),
    "prompt.spacing.rank": _case("prompt", 40, 20),
    "prompt.spacing.radius": _case("prompt", 20, 10, beside="prompt.spacing.rule=radius"),
    "prompt.spacing.distance": _case("prompt", 400, 100, beside="prompt.spacing.rule=distance"),
    "prompt.dilation.shape": _case("prompt", "ellipse", "rectangle", "cross"),
    "prompt.dilation.size": _case("prompt", 9, 10, 5),
    "prompt.similarity": _case("prompt", "prototype", "max", "mean"),
    "prompt.prototype_weight": _case("prompt", "area", "area_score"),
    "prompt.prototype_features": _case("prompt", "unit", "raw"),
    "prompt.features": _case("prompt", "cell", "pixel"),
    "prompt.ring_limit": _case("prompt", "null", 0.8),
    "prompt.grouping": _case("prompt", "image", "component"),
    "refine.multimask": _case("refine", *(f"[{a},{b},{c}]" for a, b, c in MULTIMASK)),
    "refine.choice": _case("refine", "iou", "agreement"),
    "refine.feedback": _case("refine", "chosen", "mean"),
    "refine.box": _case("refine", "mask", "largest", "components"),
    "refine.box_padding": _case("refine", 0.0, 0.1, beside="refine.box=largest"),
    "refine.empty": _case("refine", "previous", "skip", beside="embed.weights={shy}"),
    "score.frame": _case("score", 64, 96, "native"),
    "score.fusion": _case("score", "blend", "mask", "sum"),
    "score.weight": _case("score", 0.5, 0.2),
    "score.gain": _case("score", "agreement", "one"),
    "score.masks": _case("score", "chosen", "all"),
    "score.no_prompt": _case("score", "map", "damp"),
    "score.smoothing": _case("score", 0.0, 2.0),
    "score.image_score": _case("score", "clip+top", "clip", "max", "top"),
    "score.top_share": _case("score", 0.01, 0.2),
}
"""By option. The inputs of its stage are the same for all values."""

WITHIN_ROUNDING = {
    "embed.attention": ("embed", ("fused", "plain"), 1e-3),
    "embed.precision": ("embed", ("fp32", "bf16"), 0.07),
    "localise.precision": ("tokens", ("fp32", "bf16"), 0.05),
    "refine.decoder": ("refine", ("absorbed", "plain"), 1e-3),
    "refine.precision": ("refine", ("fp32", "bf16"), 0.1),
}
"""Options that make the same in another way: stage, values, and the root of the mean squared difference that they may
make, in standard deviations of an array."""

WITHOUT_CASE = {
    "embed.backbone": "a network of another shape; its arithmetic is compared in tests/parity",
    "embed.sha256": "demands a digest of weights",
    "embed.batch_size": "how many at a time",
    "localise.method": "each method has options of its own",
    "localise.backbone": "a network of another shape; its arithmetic is compared in tests/parity",
    "localise.pretrained": "names weights",
    "localise.sha256": "demands a digest of weights",
    "localise.adapter_sha256": "demands a digest of weights",
    "localise.adapter_trained_on": "says what is fair",
    "localise.keep": "what is kept beside the output; compared in test_evaluate.py",
    "localise.batch_size": "how many at a time",
    **dict.fromkeys(
        (
            "localise.strides",
            "localise.grid",
            "localise.neighbourhoods",
            "localise.descriptors",
            "localise.reference_cells",
            "localise.zero",
            "localise.share",
            "localise.rscin",
            "localise.references",
        ),
        "of mutual alone; compared in test_mutual.py",
    ),
    **dict.fromkeys(
        ("localise.positions", "localise.sigma"),
        "of methods with learned prompts; compared in test_learned.py and tests/parity",
    ),
    "localise.weight": "of fused alone; compared in test_fused.py",
    **dict.fromkeys(
        (f"localise.batch.{name}" for name in Mutual.model_fields), "of mutual; compared in test_mutual.py"
    ),
    **dict.fromkeys(
        (
            "localise.representative",
            "localise.dbscan_eps",
            "localise.dbscan_min_samples",
            "localise.aliased",
        ),
        "of sdp and sdp_plus; compared in test_sdp.py",
    ),
    **dict.fromkeys(("localise.tower", "localise.image_score"), "of uniadet alone; compared in test_uniadet.py"),
    "localise.scales": "of winclip alone; compared in test_winclip.py",
    "refine.method": "each method has options of its own",
    "score.operating_threshold": "decides on an image by its score; tried in test_calibrate.py",
    "refine.batch_size": "how many at a time",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MODELS", folder)
        yield Desk(folder)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that may stand in a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]


def _options() -> dict[str, Any]:
    """Every option of the stages with its annotation."""
    found: dict[str, Any] = {}

    def collect(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            inner = _models(field.annotation)
            for each in inner:
                collect(each, f"{prefix}{name}.")
            if not inner:
                found.setdefault(f"{prefix}{name}", field.annotation)  # the first method is the one that has cases

    for section in ("embed", "localise", "prompt", "refine", "score"):
        for model in _models(Experiment.model_fields[section].annotation):
            collect(model, f"{section}.")
    return found


OPTIONS = _options()


def test_every_option_has_a_case() -> None:
    listed = [*CASES, *WITHIN_ROUNDING, *WITHOUT_CASE]
    assert len(listed) == len(set(listed))
    assert set(OPTIONS) - set(listed) == set(), "give it values in CASES that change the output of its stage"
    assert set(listed) - {*OPTIONS, "localise.method", "refine.method"} == set(), "there is no such option"


@pytest.mark.parametrize("option", CASES)
def test_every_value_has_an_output_and_a_key_of_its_own(desk: Desk, option: str) -> None:
    case = CASES[option]
    if get_origin(OPTIONS[option]) is Literal:
        assert set(case.values) == set(get_args(OPTIONS[option]))
    for first, second in combinations(case.overrides(option), 2):
        assert desk.key(case.stage, *first) != desk.key(case.stage, *second), f"{first} and {second} have one key"
        outputs = desk.items(case.stage, *first), desk.items(case.stage, *second)
        assert differ(*outputs), f"{first} and {second} lead to the same output"


@pytest.mark.parametrize("option", WITHIN_ROUNDING)
def test_another_way_to_the_same_agrees(desk: Desk, option: str) -> None:
    stage, values, allowed = WITHIN_ROUNDING[option]
    assert set(values) == set(get_args(OPTIONS[option]))
    keys = [desk.key(stage, f"{option}={value}") for value in values]
    assert keys[0] != keys[1]
    first, second = (desk.items(stage, f"{option}={value}") for value in values)
    for image, item in first.items():
        assert item.arrays.keys() == second[image].arrays.keys()
        for name, array in item.arrays.items():
            apart = distances(array, second[image].arrays[name])
            assert np.sqrt((apart**2).mean()) < allowed, f"{name} of {image}"
            assert apart.any() or values[1] != "bf16", "nothing was computed with half precision"


def _golden_cases() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each stage as it is, and with every value of every option of its own."""
    yield from ((name, ()) for name in NAMES)
    for option, case in CASES.items():
        yield from ((case.stage, each) for each in case.overrides(option))


def _kept(stage: str) -> dict[str, Any]:
    path = GOLDEN / f"{stage}.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"outputs": {}}
    return kept


def _changed(stage: str, label: str, found: Digest, kept: dict[str, Any]) -> str:
    """Why a stage's output is not what its VERSION says; empty if it is."""
    names = deviations(found, kept["outputs"][label]) if label in kept["outputs"] else []
    shown = "; ".join(f"{each}: {kept['outputs'][label].get(each)} → {found.get(each)}" for each in names[:3])
    what = f"the output of '{stage}' {label or 'with the default options'} has changed and its VERSION has not"
    return f"{what}: raise VERSION of '{stage}' and run `{ANEW}` ({shown})" if names else ""


@pytest.mark.parametrize(
    ("stage", "overrides"), list(_golden_cases()), ids=lambda each: each if isinstance(each, str) else " ".join(each)
)
def test_an_output_changes_with_its_version_only(desk: Desk, stage: str, overrides: tuple[str, ...]) -> None:
    kept, version = _kept(stage), desk.key(stage).version
    if kept.get("version") != version:
        pytest.fail(f"'{stage}' has VERSION {version}, what is kept has {kept.get('version')}: run `{ANEW}`")
    label = " ".join(overrides)
    assert label in kept["outputs"], f"nothing is kept for it: run `{ANEW}`"
    changed = _changed(stage, label, desk.digest(stage, *overrides), kept)
    assert not changed, changed


def test_what_has_changed_is_named_with_what_to_do(desk: Desk) -> None:
    kept, found = _kept("prompt"), desk.digest("prompt")
    assert not _changed("prompt", "", found, kept)
    kept["outputs"][""]["sets.area"]["means"][0] += 1
    message = _changed("prompt", "", found, kept)
    assert "raise VERSION of 'prompt' and run `python -m tests" in message
    assert "sets.area" in message


def write_golden(folder: Path) -> list[str]:
    """Keep the outputs of every stage whose VERSION was raised, and of new cases; why others were not kept."""
    desk = Desk(folder)
    refused = []
    for stage in NAMES:
        kept, version = _kept(stage), desk.key(stage).version
        cases = [overrides for name, overrides in _golden_cases() if name == stage]
        outputs = {" ".join(each): desk.digest(stage, *each) for each in cases}
        changes = [_changed(stage, label, found, kept) for label, found in outputs.items()]
        if kept.get("version") == version and any(changes):
            refused += [each for each in changes if each][:1]
            continue
        GOLDEN.mkdir(parents=True, exist_ok=True)
        lines = [
            f" {json.dumps(label)}: {json.dumps(found, separators=(',', ':'))}" for label, found in outputs.items()
        ]
        text = f'{{"version": {version}, "outputs": {{\n' + ",\n".join(lines) + "\n}}\n"
        (GOLDEN / f"{stage}.json").write_text(text, encoding="utf-8")
    return refused


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        networks.MODELS = Path(scratch)
        sys.exit("\n".join(write_golden(Path(scratch))))
