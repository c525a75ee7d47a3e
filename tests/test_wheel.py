"""What a user gets who installs the package, not the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("clip_sam_cascade-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_packages_and_nothing_else(names):
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"cascade"}
    inside = {name.split("/")[1] for name in names if name.startswith("cascade/")}
    assert inside >= {"storage", "configs", "tasks", "flows", "localisers", "refiners"}


@pytest.mark.parametrize("folder", ["storage", "configs", "tasks", "flows"])
def test_a_project_with_folders_of_our_names_is_left_alone(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text("raise SystemExit('the project\\'s own package was imported')")
    command = [sys.executable, "-c", "from cascade.flows.cli import main; main()", "weights", "ls"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "mini_sam" in result.stdout


def test_presets_prompts_models_weights_and_photographs_are_inside(names):
    data = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("configs/**/*.json"), *ROOT.glob("storage/pretrained/**/*")]
    data += ROOT.glob("storage/photographs/**/*")
    assert len(data) > 5
    assert {f"cascade/{path.relative_to(ROOT).as_posix()}" for path in data if path.is_file()} <= set(names)


def test_the_licence_and_the_mark_of_typed_packages_are_inside(names):
    assert "cascade/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/storage/photographs/ATTRIBUTION.md") for name in names)


def test_the_console_script_is_declared(names):
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert entry.startswith("clip_sam_cascade-")
