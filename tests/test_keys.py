from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from cascade.storage.keys import StageKey, canonical_json, causes, differences, digest_of, nearest_key

CONFIG = {"rule": "max", "size": 25, "weight": 0.1, "layers": [6, 12], "words": {"b": "ü", "a": None}, "on": True}
DIGEST = "0123456789abcdef" * 4
OTHER_DIGEST = "fedcba9876543210" * 4


def key(**changes: Any) -> StageKey:
    given: dict[str, Any] = {"config": CONFIG, "upstream": {"embed": DIGEST}, "weights": {"sam": DIGEST}}
    return StageKey(**({"stage": "refine", "version": 1} | given | changes))


def test_canonical_json_is_sorted_compact_ascii() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": {"ü": True}}) == r'{"a":{"\u00fc":true},"b":[1,2.5,null]}'


def test_the_digest_is_sha256_of_the_canonical_json() -> None:
    text = canonical_json(key().components)
    assert key().digest == hashlib.sha256(text.encode()).hexdigest() == digest_of(key().components)


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_digest_is_the_same_in_every_process(seed: str) -> None:
    # A set makes the order of insertion depend on the hash seed.
    script = (
        f"from cascade.storage.keys import StageKey\nconfig = {CONFIG!r}\n"
        "config = {name: config[name] for name in set(config)}\n"
        f"print(StageKey('refine', 1, config, {{'embed': {DIGEST!r}}}, {{'sam': {DIGEST!r}}}).digest)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
    )
    assert result.stdout.strip() == key().digest


def test_the_order_of_entries_does_not_matter() -> None:
    assert key(config=dict(reversed(CONFIG.items()))).digest == key().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "score"},
        {"version": 2},
        {"config": CONFIG | {"size": 27}},
        {"config": {name: value for name, value in CONFIG.items() if name != "on"}},
        {"upstream": {"embed": OTHER_DIGEST}},
        {"upstream": {"prompt": DIGEST}},
        {"weights": {"sam": OTHER_DIGEST}},
        {"weights": {}},
    ],
)
def test_every_component_counts(changes: dict[str, Any]) -> None:
    assert key(**changes).digest != key().digest


def test_values_that_python_calls_equal_have_different_digests() -> None:
    values = [1, "1", 1.0, True, [1], None, "null", {}, []]
    assert len({digest_of({"value": value}) for value in values}) == len(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"threshold": [value]})
    with pytest.raises(TypeError):
        digest_of({"threshold": {1, 2}})


def test_differences_are_dotted_names_with_old_and_new_values() -> None:
    new = key(config=CONFIG | {"size": 27, "words": {"a": "x"}}, weights={"sam": OTHER_DIGEST})
    assert differences(new.components, key().components) == [
        "config.size: 25 → 27",
        'config.words.a: null → "x"',
        r'config.words.b: "\u00fc" → absent',
        "weights.sam: 0123456789ab… → fedcba987654…",
    ]
    assert differences(key().components, key().components) == []


def test_a_change_of_type_alone_is_a_difference() -> None:
    assert differences(key(version=True).components, key(version=1).components) != []


def nothing(stage: str, digest: str) -> None:
    """Nothing else is stored."""


def test_a_cause_lies_where_the_option_is() -> None:
    prompts = {digit: StageKey("prompt", 1, {"positives": count}) for digit, count in (("a", 3), ("b", 5))}
    old, new = (
        StageKey("score", 1, {"weight": 0.5}, {"prompt": digit, "embed": "e"}, {"sam": DIGEST}) for digit in "ab"
    )

    def look_up(stage: str, digest: str) -> dict[str, Any] | None:
        return prompts[digest].components if stage == "prompt" else None

    assert causes(new.components, old.components, look_up) == ["prompt.positives: 3 → 5"]
    assert causes(new.components, old.components, nothing) == ['score upstream.prompt: "a" → "b"']
    other = replace(new, version=2, config={"weight": 0.25}, weights={"sam": OTHER_DIGEST})
    assert causes(other.components, old.components, look_up) == [
        "prompt.positives: 3 → 5",
        "score.weight: 0.5 → 0.25",
        "score version: 1 → 2",
        f"score weights.sam: {DIGEST[:12]}… → {OTHER_DIGEST[:12]}…",
    ]


def test_the_nearest_key_is_the_one_with_the_fewest_differences() -> None:
    near, far = key(version=2), key(stage="score", version=3, weights={})
    assert nearest_key(key().components, [far.components, near.components], nothing) == ["refine version: 2 → 1"]
    assert nearest_key(key().components, [], nothing) is None
