"""What a user gets who installs the package, not the repository."""

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
    assert tops == {"cascade", "storage", "configs", "tasks", "flows"}


def test_presets_prompts_models_and_weights_are_inside(names):
    data = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("configs/**/*.json"), *ROOT.glob("storage/pretrained/**/*")]
    assert len(data) > 5
    assert {path.relative_to(ROOT).as_posix() for path in data if path.is_file()} <= set(names)


def test_the_console_script_is_declared(names):
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert entry.startswith("clip_sam_cascade-")
