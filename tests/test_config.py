from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from pydantic import ValidationError

from cascade.configs import schema
from cascade.configs.loader import as_override, load_experiment, parse_override, preset_names, read_yaml
from cascade.configs.schema import Experiment
from cascade.configs.section import Section
from cascade.storage.errors import ConfigError
from cascade.tasks.stage import config_of

SECTIONS = [each for each in vars(schema).values() if isinstance(each, type) and issubclass(each, Section)]
Writer = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_experiment(source, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    assert load_experiment(name).name == name


def test_presets_say_what_their_names_promise() -> None:
    paper, strict, quality = (load_experiment(name) for name in ("paper", "paper_strict", "quality"))
    assert paper == Experiment(name="paper")
    taken_out = {"name": "paper_strict", "score": strict.score, "prompt": strict.prompt}
    assert strict == paper.model_copy(update=taken_out)
    assert strict.score == paper.score.model_copy(update={"gain": "one", "no_prompt": "damp"})
    floor = paper.prompt.threshold.model_copy(update={"rule": "max"})
    assert strict.prompt == paper.prompt.model_copy(update={"threshold": floor})
    assert paper.prompt.prototype_features == strict.prompt.prototype_features == "raw"
    assert quality.embed.image == "stretched"
    assert quality.prompt == paper.prompt.model_copy(update={"ring_limit": 0.5})
    assert load_experiment("mini").embed.backbone == load_experiment("mini").localise.backbone == "mini"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_every_section_has_a_default(section: type[Section]) -> None:
    assert section() is not None
    assert not [name for name, field in section.model_fields.items() if field.is_required()]


@pytest.mark.parametrize("section", SECTIONS)
def test_how_many_at_a_time_is_in_no_key(section: type[Section]) -> None:
    assert "batch_size" not in config_of(section())


def test_a_key_holds_every_field_that_is_not_left_out() -> None:
    localise = load_experiment("mini").localise
    left_out = {"weights", "sha256"}
    assert set(config_of(localise, *left_out)) == set(type(localise).model_fields) - left_out - {"batch_size"}


@pytest.mark.parametrize(
    ("chosen", "without_effect", "with_effect"),
    [
        ("prompt.threshold.rule=max", "prompt.threshold.quantile=0.5", "prompt.threshold.absolute=0.4"),
        ("prompt.threshold.rule=max", "prompt.threshold.quantile=0.5", "prompt.threshold.relative=0.4"),
        ("prompt.threshold.rule=relative", "prompt.threshold.absolute=0.4", "prompt.threshold.relative=0.4"),
        ("prompt.threshold.rule=absolute", "prompt.threshold.relative=0.4", "prompt.threshold.absolute=0.4"),
        ("prompt.threshold.rule=quantile", "prompt.threshold.absolute=0.4", "prompt.threshold.quantile=0.5"),
        ("prompt.spacing.rule=rank", "prompt.spacing.radius=5", "prompt.spacing.rank=5"),
        ("prompt.spacing.rule=radius", "prompt.spacing.distance=5", "prompt.spacing.radius=5"),
        ("prompt.spacing.rule=distance", "prompt.spacing.rank=5", "prompt.spacing.distance=5"),
        ("prompt.similarity=max", "prompt.prototype_weight=area_score", "prompt.features=pixel"),
        ("prompt.similarity=mean", "prompt.prototype_features=unit", "prompt.features=pixel"),
        ("prompt.similarity=prototype", "prompt.threshold.quantile=0.5", "prompt.prototype_features=unit"),
        ("prompt.negatives=0", "prompt.similarity=max", "prompt.dilation.size=9"),
        ("refine.multimask=[false,false,false]", "refine.choice=agreement", "refine.empty=skip"),
        ("refine.multimask=[false,false,true]", "refine.feedback=mean", "refine.choice=agreement"),
        ("score.fusion=sum", "score.weight=0.2", "score.smoothing=1"),
        ("score.fusion=sum", "score.no_prompt=map", "score.masks=all"),
        ("score.fusion=mask", "refine.batch_size=9", "score.no_prompt=damp"),
        ("embed.image=stretched", "embed.square_side=100", "embed.image=padded"),
        ("embed.image=square", "embed.batch_size=9", "embed.square_side=100"),
    ],
)
def test_an_option_that_changes_nothing_beside_others_is_in_no_key(
    chosen: str, without_effect: str, with_effect: str
) -> None:
    def keys(*overrides: str) -> list[dict[str, Any]]:
        experiment = load_experiment("paper", [chosen, *overrides])
        return [config_of(getattr(experiment, name)) for name in ("embed", "prompt", "refine", "score")]

    assert keys(without_effect) == keys()
    assert keys(with_effect) != keys()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("promt.positives=3", ["'promt'", "did you mean 'prompt'"]),
        ("prompt.positve=3", ["'prompt.positve'", "did you mean 'prompt.positives'"]),
        ("prompt.dilation.sice=3", ["'prompt.dilation.sice'", "did you mean 'prompt.dilation.size'"]),
        ("device=cpu", ["'device'", "did you mean 'runtime.device'?"]),
        ("frame=96", ["did you mean 'prompt.frame' or 'score.frame'?"]),
        ("refine.similarity=max", ["did you mean 'prompt.similarity'?", "valid: batch_size, box,"]),
        ("score.smothing=1", ["did you mean 'score.smoothing'?"]),
        ("smoothin=1", ["did you mean 'score.smoothing'?"]),
        ("qqq=1", ["'qqq'; valid: dataset,"]),
        ("score.fusion=blnd", ["score.fusion", "'blnd'", "did you mean 'blend'"]),
        ("embed.backbone=vit_g", ["embed.backbone", "'vit_g'", "did you mean 'vit_", "mini"]),
        ("dataset.layout=mvtek", ["dataset.layout", "did you mean 'mvtec'"]),
        ("prompt.positives=0", ["prompt.positives", "greater than or equal to 1", "given: 0"]),
        ("score.weight=1.5", ["score.weight", "less than or equal to 1", "given: 1.5"]),
        ("prompt.positives=many", ["prompt.positives", "integer", "given: 'many'"]),
        ("refine.multimask=[true]", ["refine.multimask"]),
        ("name=a/b", ["name", "'a/b'", "letters, digits"]),
        ("embed=4", ["embed", "given: 4"]),
        ("score.frame=nativ", ["score.frame", "native"]),
    ],
)
def test_a_wrong_key_or_value_names_what_is_valid(override: str, parts: list[str]) -> None:
    message = refusal("mini", override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "override",
    [
        *(f"prompt.positives={value}" for value in ("true", "'3'", "3.0", ".inf", ".nan", "1e9", "0x" + "f" * 9000)),
        *(f"prompt.spacing.radius={value}" for value in (".inf", "-.inf", ".nan", "true", "'3'", "1e300")),
        *(f"score.smoothing={value}" for value in (".inf", ".nan", "1e300")),
        *(f"runtime.compile={value}" for value in ("1", "'true'", "0.0")),
        "score.weight=true",
        "refine.multimask=[1, 1, 1]",
        "prompt.dilation.size=100000",
        "prompt.frame='518'",
        "localise.layers=[2, true]",
        "localise.layers=[2, 2, 2, 2]",
        "localise.layers=[8, 6, 4, 2]",
        "localise.layers=[0, 2]",
        "localise.more_sides=[336, 100000]",
        "embed.batch_size=1000000000",
        "embed.square_side=100000",
    ],
)
def test_no_value_is_taken_for_another_and_none_is_too_large(override: str) -> None:
    message = refusal("mini", override)
    assert message.startswith(override.partition("=")[0])
    assert len(message) < 200


def _numbers(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if schema.get("type") in ("integer", "number"):
        yield schema
    for value in schema.values():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, dict):
                yield from _numbers(child)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_has_bounds(section: type[Section]) -> None:
    for number in _numbers(section.model_json_schema()):
        assert {"minimum", "exclusiveMinimum", "enum"} & number.keys(), number
        assert {"maximum", "exclusiveMaximum", "enum"} & number.keys(), number


@pytest.mark.parametrize("section", SECTIONS)
def test_no_number_or_switch_is_read_from_a_word(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        words = {"integer": "3", "number": "0.5", "boolean": "true"}
        kind = section.model_json_schema()["properties"][name].get("type")
        if kind in words:
            assert not isinstance(field.default, str)
            with pytest.raises(ValidationError):
                section.model_validate({name: words[kind]})


@pytest.mark.parametrize(
    "name", ["..", ".", ".hidden", "a.", "-x", "CON", "con.txt", "history.parquet", "a" * 101, "é"]
)
def test_a_name_that_cannot_be_a_folder_everywhere_is_refused(name: str) -> None:
    assert "cannot be a folder" in refusal("mini", f"name={name}")
    assert load_experiment("mini", ["name=v1.2_b-3"]).name == "v1.2_b-3"


def test_merge_keys_are_merged(write: Writer) -> None:
    base = "base: &base {positives: 5, dilation: {size: 9}}\n"
    path = write("merged.yaml", base + "prompt:\n  <<: *base\n  positives: 7\n")
    assert read_yaml(path)["prompt"] == {"positives": 7, "dilation": {"size": 9}}
    twice = write("twice.yaml", base + "prompt:\n  <<: *base\n  positives: 7\n  positives: 8\n")
    assert "'positives' stands twice" in refusal(str(twice))
    inner = write("inner.yaml", "top:\n  own: &own {<<: {a: 1}, a: 2}\n  <<: *own\n")
    assert read_yaml(inner)["top"] == {"own": {"a": 2}, "a": 2}


def _bomb(line: str) -> str:
    return "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {line.replace('@', f'*a{n - 1}')}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        _bomb("[@, @, @, @, @, @, @, @, @]"),
        _bomb("{x: @, y: @}"),
        _bomb("{<<: [@, @, @, @]}"),
        "prompt: " + "[" * 3000 + "]" * 3000,
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "name: 2026-13-45\n",
        "prompt: {positives: " + "1" * 5000 + "}\n",
        "prompt: !!int many\n",
        "prompt: !!int ''\n",
        "prompt: !!timestamp x\n",
    ],
)
def test_a_file_that_would_keep_the_reader_busy_is_refused_at_once(write: Writer, text: str) -> None:
    began = perf_counter()
    message = refusal(str(write("odd.yaml", text)))
    assert perf_counter() - began < 5
    assert message.startswith(str(write("odd.yaml", text)))
    assert len(message) < 600


@pytest.mark.parametrize(
    ("text", "value"), [("2e-4", 2e-4), ("1e-05", 1e-5), ("1E0", 1.0), ("2.5e-1", 0.25), ("1", 1.0)]
)
def test_numbers_with_an_exponent_are_numbers(write: Writer, text: str, value: float) -> None:
    assert load_experiment("mini", [f"score.weight={text}"]).score.weight == value
    assert read_yaml(write("number.yaml", f"weight: {text}\n")) == {"weight": value}
    assert read_yaml(write("word.yaml", f"weight: '{text}'\n")) == {"weight": text}


@pytest.mark.parametrize("word", ["e5", "1e", "3e4f", "2e-4 mm", "1.e", "a1e3"])
def test_words_with_an_e_are_words(write: Writer, word: str) -> None:
    assert read_yaml(write("word.yaml", f"words: {word}\n")) == {"words": word}


@pytest.mark.parametrize("text", ["prompt.positives=010", "dataset.categories=[010]", "score.smoothing=1:30.5"])
def test_numbers_to_another_base_are_refused(text: str) -> None:
    assert "put it in quotes" in refusal("mini", text)
    assert "put it in quotes" in refusal("mini", "dataset.words={010: plate}")
    assert load_experiment("mini", ["dataset.categories=['010']"]).dataset.categories == ("010",)
    assert load_experiment("mini", ["score.weight=0.5", "score.smoothing=0"]).score.weight == 0.5


def test_half_a_character_is_refused() -> None:
    for key in ("name", "dataset.words", "dataset.path"):
        assert "holds half a character" in refusal("mini", f'{key}="a\\ud800"')


def test_an_override_is_read_like_a_file() -> None:
    assert "nested too deeply" in refusal("mini", "dataset.words=" + "{a: " * 3000)
    assert "stands twice" in refusal("mini", "dataset.words={a: b, a: c}")
    assert "not valid YAML" in refusal("mini", "name=2026-13-45")


@pytest.mark.parametrize(
    "value", ["a 'b' \"c\": #d", "\U0001f529 €/\\n", "true", "1e3", "", ["cuda:0", "cpu"], None, 0.5]
)
def test_a_value_survives_its_override(value: object) -> None:
    assert parse_override("--set", as_override("dataset.path", value)) == (["dataset", "path"], value)


def test_an_unknown_experiment_names_the_nearest_preset() -> None:
    assert "did you mean 'paper'" in refusal("papper")


def test_an_impossible_combination_says_which_two() -> None:
    message = refusal("mini", "refine.box=components", "prompt.grouping=component")
    assert "refine.box" in message
    assert "prompt.grouping" in message


def test_overrides_reach_any_depth_and_read_yaml() -> None:
    loaded = load_experiment(
        "mini",
        [
            "prompt.dilation.size=31",
            "localise.layers=[1, 2]",
            "dataset.words={metal_nut: metal nut}",
            "prompt.ring_limit=0.5",
            "refine.multimask=[false, true, true]",
            "score.frame=native",
            "dataset.categories=null",
            "localise.adapter=a=b.pth",
            "prompt.dilation.size=33",
        ],
    )
    assert loaded.prompt.dilation.size == 33
    assert loaded.prompt.dilation.shape == "ellipse"
    assert loaded.localise.layers == (1, 2)
    assert loaded.dataset.words == {"metal_nut": "metal nut"}
    assert loaded.refine.multimask == (False, True, True)
    assert loaded.score.frame == "native"
    assert loaded.dataset.categories is None
    assert loaded.localise.adapter == "a=b.pth"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("prompt.positives", "key=value"),
        ("=3", "key=value"),
        (".=3", "key=value"),
        ("prompt..frame=3", "key=value"),
        ("localise.layers=[1, 2", "not valid YAML"),
        ("prompt.frame.side=3", "prompt.frame: Input should be a valid integer, or"),
    ],
)
def test_a_malformed_override_is_refused(override: str, part: str) -> None:
    assert part in refusal("mini", override)


def test_a_value_in_place_of_a_section_is_named(write: Writer) -> None:
    path = write("flat.yaml", "prompt: 3\n")
    assert "'prompt' is a value" in refusal(str(path), "prompt.frame=100")


def test_a_file_may_build_on_presets_and_files(write: Writer) -> None:
    base = write("base.yaml", "extends: mini\nprompt: {positives: 5, dilation: {size: 9}}\nscore: {weight: 0.25}\n")
    top = write("top.yaml", f"extends: {base}\nprompt: {{dilation: {{shape: cross}}}}\n")
    loaded = load_experiment(str(top), ["score.gain=one"])
    assert (loaded.name, loaded.embed.backbone) == ("top", "mini")
    assert (loaded.prompt.positives, loaded.prompt.dilation.size, loaded.prompt.dilation.shape) == (5, 9, "cross")
    assert (loaded.score.weight, loaded.score.gain) == (0.25, "one")
    assert load_experiment("mini").prompt.positives == 3


def test_files_beside_each_other_find_each_other(write: Writer) -> None:
    write("base.yaml", "extends: mini\nprompt: {positives: 5}\n")
    assert load_experiment(str(write("top.yaml", "extends: base.yaml\n"))).prompt.positives == 5


def test_a_circle_of_files_is_refused(write: Writer, tmp_path: Path) -> None:
    first = write("first.yaml", f"extends: {tmp_path / 'second.yaml'}\n")
    write("second.yaml", f"extends: {first}\n")
    assert "leads back to itself" in refusal(str(first))
    assert "leads back to itself" in refusal(str(write("own.yaml", f"extends: {tmp_path / 'own.yaml'}\n")))


def test_an_unknown_base_is_refused(write: Writer) -> None:
    assert "did you mean 'mini'" in refusal(str(write("top.yaml", "extends: minni\n")))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("prompt: {positives: 3}\nscore: {}\nprompt: {positives: 5}\n", "'prompt' stands twice"),
        ("prompt:\n  positives: 3\n  positives: 5\n", "'positives' stands twice"),
        ("- a\n- b\n", "key: value"),
        ("", "key: value"),
        ("prompt: [\n", "not valid YAML"),
        ("prompt: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
        ("1: 2\n", "1: Keys should be strings"),
    ],
)
def test_a_file_that_says_something_else_than_it_seems_is_refused(write: Writer, text: str, part: str) -> None:
    path = write("odd.yaml", text)
    assert part in refusal(str(path))


def test_a_file_that_cannot_be_a_configuration_is_refused(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than"):
        read_yaml(write("large.yaml", "# " + "x" * 1_000_001))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name: a")
    with pytest.raises(ConfigError):
        read_yaml(binary)


def test_an_experiment_cannot_be_changed_in_place() -> None:
    loaded = load_experiment("mini")
    with pytest.raises(ValidationError):
        loaded.prompt.positives = 4
    with pytest.raises(ValidationError):
        loaded.prompt.dilation.size = 4
    with pytest.raises(ValidationError):
        loaded.name = "other"


def test_an_experiment_survives_its_own_json() -> None:
    loaded = load_experiment("quality", ["dataset.path=somewhere", "score.frame=native"])
    assert Experiment.model_validate_json(loaded.model_dump_json()) == loaded
