"""What a user may type or hand over that cannot work: one line, an exit code, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.conftest import Cli

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
