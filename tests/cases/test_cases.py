"""Every odd dataset through the doors that a user takes: ``cascade check`` and ``cascade run``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.cases.odd import CASES, Case, blob, photo, save, tree, turned
from tests.flows.conftest import OVERRIDES, Cli, Result, files_of

MAX_LINES = 25
SMALL = (*OVERRIDES, "localise.image_side=64", "score.frame=64", "prompt.frame=64")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most cases have the same photographs, which are encoded once."""
    return tmp_path_factory.mktemp("cases") / "store"


Run = Callable[..., Result]


@pytest.fixture
def run(cli: Cli, weights: tuple[str, ...], shared_store: Path, tmp_path: Path) -> Run:
    """``cascade run`` of small networks on a dataset, into the folder ``out``."""

    def call(dataset: Path, *more: str, options: tuple[str, ...] = ()) -> Result:
        settings = [part for each in (*SMALL, *weights, *options) for part in ("--set", each)]
        place = ("--store", shared_store, "--out", tmp_path / "out", "--engine", "local")
        return cli("run", "mini", "--dataset", dataset, *place, *settings, *more)

    return call


def said(result: Result) -> str:
    """What stands on the screen, as a text that does not depend on its width."""
    return re.sub(r"\s+", " ", result.out + result.err)


def results(tmp_path: Path) -> pd.DataFrame:
    """The rows of the categories and of the last step."""
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    return table[(table["category"] != "mean") & (table["step"] == "clip")]


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_check_says_what_is_odd(cli: Cli, tmp_path: Path, each: Case) -> None:
    dataset = each.make(tmp_path / "set")
    options = ("score.frame=64", *each.options)
    result = cli("check", dataset, *(part for option in options for part in ("--set", option)))
    assert "Traceback" not in result.out + result.err
    assert result.code == (2 if each.images is None else 0), result
    assert len((result.out + result.err).splitlines()) <= MAX_LINES
    assert (result.out + result.err).replace("\n", "").isprintable()
    for part in each.says:
        assert part in said(result)
    if each.images is not None:
        assert f": {sum(each.images)} image" in result.out
    assert {path.name for path in tmp_path.iterdir()} <= {"set", "set_elsewhere", "outside.png"}


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_run_reads_it_or_refuses_it_and_says_the_same(run: Run, shared_store: Path, tmp_path: Path, each: Case) -> None:
    dataset = each.make(tmp_path / "set")
    before = files_of(shared_store)
    result = run(dataset, options=each.options)
    if each.images is None:
        assert result.code == 2, result
        for part in each.says:
            assert part in result.refusal()
        assert files_of(shared_store) == before
        assert not (tmp_path / "out").exists()
        return
    assert (result.code, result.err) == (0, ""), result
    for part in each.says:
        assert part in said(result)
    table = results(tmp_path)
    good, defective = (table["n_images"] - table["n_anomalous"]).sum(), table["n_anomalous"].sum()
    assert (good, defective) == each.images


def test_what_check_warns_of_a_run_says_again_when_everything_is_cached(run: Run, tmp_path: Path) -> None:
    dataset = CASES[0].make(tmp_path / "set")
    warnings = []
    for number in range(2):
        result = run(dataset, "--out", str(tmp_path / f"run{number}"))
        warnings.append([line for line in result.out.splitlines() if line.startswith("warning")])
    assert warnings[0] == warnings[1]
    assert "dataset.full_scale=4095" in warnings[0][0]
    described = json.loads((tmp_path / "run1" / "run.json").read_text(encoding="utf-8"))
    assert "dataset.full_scale=4095" in described["warnings"][0]
    assert not sum(stage["computed"] for stage in described["stages"])


def test_a_training_says_it_too(cli: Cli, weights: tuple[str, ...], shared_store: Path, tmp_path: Path) -> None:
    dataset = CASES[0].make(tmp_path / "set")
    settings = [part for each in (*SMALL, *weights) for part in ("--set", each)]
    place = ("--store", shared_store, "--out", tmp_path / "own.safetensors")
    result = cli("train", "april_gan", "--dataset", dataset, *place, "--train", "epochs=1", *settings)
    assert result.code == 0, result
    assert "dataset.full_scale=4095" in said(result)


def computed(out: Path) -> dict[str, int]:
    described = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {stage["stage"]: stage["computed"] for stage in described["stages"]}


def test_another_white_is_another_picture(run: Run, tmp_path: Path) -> None:
    dataset = CASES[0].make(tmp_path / "set")
    found = {}
    for white in ("4095", "8191", "65535", "null"):
        assert run(dataset, "--out", str(tmp_path / white), options=(f"dataset.full_scale={white}",)).code == 0
        images = pd.read_parquet(tmp_path / white / "images.parquet")
        found[white] = set(images["image_id"])
    assert found["4095"] == found["null"]
    assert found["4095"].isdisjoint(found["8191"] | found["65535"])
    assert all(len(each) == 64 for each in found["65535"])  # as before there was a choice
    assert computed(tmp_path / "8191")["embed"] == computed(tmp_path / "8191")["localise"] == 4
    assert not any(computed(tmp_path / "null").values())


def test_a_turned_photograph_shares_nothing_with_the_same_one_as_it_was_read_before(run: Run, tmp_path: Path) -> None:
    tree(tmp_path / "set")
    save(photo(20), tmp_path / "set/screw/test/crack/000.png", exif=turned(6))
    assert run(tmp_path / "set").code == 0
    images = pd.read_parquet(tmp_path / "out" / "images.parquet")
    odd = images[images["image_id"].str.len() != 64]
    assert set(odd["path"]) == {"screw/test/crack/000.png"}
    assert odd["image_id"].str.endswith("-turned").all()


def test_a_run_says_in_its_tables_which_defects_vanish(run: Run, tmp_path: Path) -> None:
    (vanishing,) = (each for each in CASES if each.make.__name__ == "vanishing_point")
    result = run(vanishing.make(tmp_path / "set"))
    assert result.code == 0
    assert "nothing is left of the defects of 1 image, whose pixels count as good: screw/test/crack/000" in said(result)
    assert json.loads((tmp_path / "out/run.json").read_text())["vanished"] == ["screw/test/crack/000.png"]
    assert set(pd.read_csv(tmp_path / "out/results.csv")["n_vanished"]) == {1}
    images = pd.read_parquet(tmp_path / "out/images.parquet")
    assert set(images.loc[images["vanished"], "path"]) == {"screw/test/crack/000.png"}
    assert set(images.loc[images["vanished"], "label"]) == {1}


# --skip-bad


def spoil(root: Path) -> None:
    """A cut photograph, an empty one, and one whose mask has another size."""
    cut = root / "screw/test/good/000.png"
    cut.write_bytes(cut.read_bytes()[:-3000])
    save(photo(50), root / "screw/test/good/005.png")
    (root / "screw/test/good/005.png").write_bytes(b"")
    save(blob(20, 20), root / "screw/ground_truth/crack/001_mask.png")


def test_bad_images_are_left_out_listed_and_counted(run: Run, tmp_path: Path) -> None:
    spoil(tree(tmp_path / "set"))
    refused = run(tmp_path / "set")
    assert refused.code == 2
    assert "--skip-bad" in refused.refusal()
    assert not (tmp_path / "out").exists()
    result = run(tmp_path / "set", "--skip-bad")
    assert result.code == 1
    assert "3 images left out" in said(result)
    listed = pd.read_csv(tmp_path / "out/skipped.csv").set_index("path")
    assert dict(listed["kind"]) == {
        "screw/test/crack/001.png": "mask-size",
        "screw/test/good/000.png": "truncated-image",
        "screw/test/good/005.png": "unreadable-image",
    }
    assert "screw/ground_truth/crack/001_mask.png: 20x20" in listed.loc["screw/test/crack/001.png", "reason"]
    assert set(listed["category"]) == {"screw"}
    table = pd.read_csv(tmp_path / "out/results.csv")
    assert set(table["n_skipped"]) == {3}
    assert set(table["n_images"]) == {2}
    assert json.loads((tmp_path / "out/run.json").read_text())["skipped"] == 3


def test_a_reevaluation_leaves_bad_images_out_too(
    cli: Cli, weights: tuple[str, ...], shared_store: Path, tmp_path: Path
) -> None:
    spoil(tree(tmp_path / "set"))
    settings = [part for each in (*SMALL, *weights) for part in ("--set", each)]
    again = (
        "reevaluate",
        "mini",
        "--dataset",
        tmp_path / "set",
        "--store",
        shared_store,
        "--engine",
        "local",
        *settings,
    )
    assert cli(*again).code == 2
    for _ in range(2):
        result = cli(*again, "--skip-bad")
        assert result.code == 1
        assert "3 images left out, listed with reasons in runs/mini/" in said(result)


def test_nothing_bad_and_skip_bad_is_a_run_like_any_other(run: Run, tmp_path: Path) -> None:
    tree(tmp_path / "set")
    assert run(tmp_path / "set", "--skip-bad").code == 0
    assert not (tmp_path / "out/skipped.csv").exists()
    assert "n_skipped" not in pd.read_csv(tmp_path / "out/results.csv")


def test_rows_that_cannot_be_used_are_left_out(run: Run, tmp_path: Path) -> None:
    tree(tmp_path / "set")
    rows = ["path,label", "screw/test/good/000.png,0", "screw/test/crack/000.png,yes", "gone.png,1"]
    (tmp_path / "set/t.csv").write_text("\n".join(rows))
    assert run(tmp_path / "set/t.csv", "--skip-bad").code == 1
    assert pd.read_csv(tmp_path / "out/skipped.csv")["kind"].tolist() == ["row", "missing-image"]


@pytest.mark.parametrize("name", ["one_mask_two_photographs", "climbing_category", "category_called_mean"])
def test_what_is_wrong_with_the_whole_is_not_skipped(run: Run, tmp_path: Path, name: str) -> None:
    (odd,) = (each for each in CASES if each.make.__name__ == name)
    assert run(odd.make(tmp_path / "set"), "--skip-bad").code == 2


def test_a_dataset_of_bad_images_alone_is_refused(run: Run, tmp_path: Path) -> None:
    for path in tree(tmp_path / "set").rglob("test/*/*.png"):
        path.write_bytes(b"")
    assert run(tmp_path / "set", "--skip-bad").code == 2


# Many problems, and names


def test_a_thousand_problems_are_counted_and_listed_when_asked_for(cli: Cli, tmp_path: Path) -> None:
    tree(tmp_path / "set")
    for number in range(1000):
        (tmp_path / "set/screw/test/good" / f"x{number}.png").write_bytes(b"")
    result = cli("check", tmp_path / "set")
    assert result.code == 2
    assert len(result.out.splitlines()) < MAX_LINES
    assert "(and 997 more)" in said(result)
    assert "1000 errors" in said(result)
    assert cli("check", tmp_path / "set", "--all").out.count("not a readable") == 1000


def test_an_export_stays_in_its_folder_whatever_its_table_says(run: Run, cli: Cli, tmp_path: Path) -> None:
    assert run(tree(tmp_path / "set")).code == 0
    images = pd.read_parquet(tmp_path / "out/images.parquet")
    for column, name in (("category", "../../out2"), ("defect", str(tmp_path / "out2")), ("path", "a/..")):
        images.assign(**{column: name}).to_parquet(tmp_path / "out/images.parquet", index=False)
        result = cli("export", tmp_path / "out", tmp_path / "files")
        assert result.code == 2
        assert "choose another name" in result.refusal()
    assert {path.name for path in tmp_path.iterdir()} == {"set", "out", "runs"}
    images.assign(category="maker/screw").to_parquet(tmp_path / "out/images.parquet", index=False)
    assert cli("export", tmp_path / "out", tmp_path / "files").code == 0
    assert len(list((tmp_path / "files/masks/maker/screw/crack").iterdir())) == 2
