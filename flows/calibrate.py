"""Calibration: settings and an operating threshold, chosen on categories that the adapter was not trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from cascade.configs.grid import BASE, Grid, Variant, directions_of, expand, load_grid, value_at, variant_name
from cascade.configs.loader import as_override, load_experiment, parse_override, preset_names
from cascade.configs.settings import Settings
from cascade.flows.ablation import EndedAblation, resume_ablation, run_ablation
from cascade.flows.ablation.plots import write_sensitivity
from cascade.flows.ablation.state import FILE, Ablation, VariantState, new_ablation, read_ablation
from cascade.flows.engines.choice import Engine, EngineName
from cascade.flows.run.folder import default_folder, link_latest
from cascade.flows.run.observer import Observer
from cascade.flows.run.prepare import Prepared, find_leak, prepare
from cascade.flows.run.reading import remember_checked
from cascade.metrics import (
    Estimate,
    bca_intervals,
    best_f1_thresholds,
    bins_of_scores,
    draw_weights,
    influences,
    left_out_weights,
    quantile_threshold,
    resampled_metrics,
)
from cascade.storage.atomic import replacing, write_text
from cascade.storage.datasets import Manifest
from cascade.storage.errors import ConfigError, DataError, StageError
from cascade.storage.names import printable
from cascade.storage.paths import expanded, require_new
from cascade.tasks.aggregate import MEAN, definable
from cascade.tasks.stage import Run
from cascade.tasks.tables.intervals import ENOUGH, FEW, LEVEL, RESAMPLES
from cascade.tasks.tables.results import images_table

FEWEST = 2
"""Categories that a choice needs: of one alone it would be that category's."""

_ABLATION, _CONFIG = "ablation", "calibrated.yaml"
_TIED = 1e-9
_ELSEWHERE = ("dataset", "runtime", "name")
"""Sections of the experiment that say where and how it was calibrated, and are not carried over."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class OperatingPoint:
    """The yes or no of an image, and how sure it is on the images that it was chosen on.

    Attributes:
        threshold: an image is defective from this score on.
        rule: how it was chosen, in words.
        f1: of this threshold, in [0, 1].
        false_alarms: share of the good images that it calls defective.
        missed: share of the defective images that it does not.
        threshold_interval: of the best F1's threshold, 95 %, over draws of the images; ``None`` for a quantile.
        f1_interval: of the best F1, 95 %; ``None`` for a quantile.
        n_good: images that it was chosen on.
        n_defective: likewise.
        note: why the intervals may mislead, as in the tables; empty if nothing speaks against them.
    """

    threshold: float
    rule: str
    f1: float
    false_alarms: float
    missed: float
    threshold_interval: Interval | None
    f1_interval: Interval | None
    n_good: int
    n_defective: int
    note: str


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What was chosen, and where it is written.

    Attributes:
        folder: holds ``calibrated.yaml``, ``grid.csv``, ``sensitivity.png``, ``calibration.json`` and ``ablation/``.
        categories: those that it was chosen on.
        grid: a row for each variant: keys, ``pixel_ap``, ``pixel_f1max``, ``score``, ``default`` and ``chosen``.
        changes: the chosen value of each varied key.
        operating: the operating threshold.
        ablation: the variants that were run.
    """

    folder: Path
    categories: tuple[str, ...]
    grid: pd.DataFrame
    changes: Mapping[str, Any]
    operating: OperatingPoint
    ablation: EndedAblation


def calibrate(
    source: str,
    auxiliary: Path,
    overrides: Sequence[str] = (),
    *,
    holdout: float = 0.2,
    seed: int = 0,
    grid: str = "calibrate",
    good_quantile: float | None = None,
    out: Path | None = None,
    store: Path | None = None,
    engine: Engine | EngineName | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Calibrated:
    """Choose the variant of a grid, and an operating threshold, on an auxiliary dataset; a stopped one goes on.

    The variant is that of the largest pixel AP + F1-max after the last step, a mean over categories; if the experiment
    as it is ties with it, that one, else the first of the grid. The threshold is that of the best F1 of its image
    scores, every image of every category counting once, or a quantile of the good images' scores.

    Args:
        source: preset or YAML file of the experiment.
        auxiliary: a dataset that is not the one to be tested.
        overrides: ``key=value``, laid over the experiment; they are written to ``calibrated.yaml`` too.
        holdout: share of the categories, two at least, that is drawn among those that the adapter was not trained on,
            if it was trained on others of this dataset. If it was not, all categories are used.
        seed: of that draw.
        grid: preset or YAML file.
        good_quantile: the threshold has this share of the good images below it, in (0, 1]; the best F1 when absent.
        out: a new folder, or that of the same call when it was stopped; one under ``settings.runs`` by default.
        store: folder of the artefacts; that of ``settings`` by default.
        engine: see ``cascade.flows.run.run_experiment``.
        settings: folders of this machine; from the environment by default.
        observer: told how it comes along; the logger ``cascade`` by default.

    Raises:
        ConfigError: a name, key or value is of no use; ``out`` holds other files; or the dataset is that to be tested.
        DataError: too few categories with defective images and masks are left, or there are no good images.
        StageError: no variant came to its end.
    """
    machine, loaded = settings or Settings(), load_grid(grid)
    _require_share("--holdout", holdout)
    if good_quantile is not None:
        _require_share("--good-quantile", good_quantile)
    tested = load_experiment(source, overrides).dataset.path
    if tested is not None and tested.resolve() == auxiliary.resolve():
        raise ConfigError(f"--dataset {auxiliary}: is what '{source}' tests; calibrate on other data")
    folder = out or default_folder(machine.runs, loaded.name)
    begun = _begun(folder)
    if begun is None:
        require_new(folder)
    given = [*overrides, as_override("dataset.path", str(auxiliary.resolve()))]
    prepared = prepare(load_experiment(source, given), store or machine.store, machine, allow_leak=True)
    categories = held_out_categories(prepared, holdout, seed)
    chosen_on = [*given, as_override("dataset.categories", list(categories))]
    ablation, default = _defined(loaded, source, chosen_on, prepared.run.store)
    remember_checked(prepared.images, prepared.run.store)
    if begun is None:
        ended = run_ablation(ablation, out=folder / _ABLATION, engine=engine, settings=machine, observer=observer)
    elif _same(begun, ablation):
        ended = resume_ablation(folder / _ABLATION, engine=engine, settings=machine, observer=observer)
    else:
        raise ConfigError(f"{folder}: holds another calibration, which is not finished; choose a new folder")
    table = _grid_table(ended, default)
    best = next(each for each in ended.ablation.variants if each.name in set(table.loc[table["chosen"], "variant"]))
    operating = _operating_point(ended.runs[best.name], good_quantile, seed)
    values = {key: value_at(best.experiment, key) for key in ended.ablation.keys}
    changes = {key: value for key, value in values.items() if value is not None}
    found = Calibrated(folder, categories, table, changes, operating, ended)
    _write(found, loaded, source, overrides, prepared.run, {"holdout": holdout, "seed": seed})
    link_latest(folder)
    return found


def held_out_categories(prepared: Prepared, holdout: float, seed: int) -> tuple[str, ...]:
    """The categories to choose on: all that can be, or, of an adapter's own dataset, a draw among those it never saw.

    Raises ``DataError`` if they are too few, or hold no good image.
    """
    manifest, names = prepared.run.manifest, prepared.run.manifest.categories
    where = str(manifest.root)
    if all(record.label is None for record in manifest):
        raise DataError(f"{where}: no image has a label, and a choice needs metrics; label good and defective ones")
    if len(names) < FEWEST:
        raise DataError(f"{where}: {len(names)} category, and a choice needs {FEWEST}; calibrate on more")
    seen = _seen(prepared)
    unseen = [name for name in names if name not in seen]
    usable = [name for name in unseen if "pixel_ap" in definable(_of(manifest, name))]
    if not unseen:
        raise DataError(
            f"{where}: {next(iter(seen.values()))}, and on all others; calibrate on other data, or train an adapter "
            f"that leaves categories out (cascade train {prepared.run.experiment.localise.method} --train held_out=0.2)"
        )
    if len(usable) < FEWEST:
        which = "unknown to the adapter " if seen else ""
        raise DataError(
            f"{where}: {len(usable)} of the {len(unseen)} categories {which}({', '.join(unseen)}) with defective "
            f"images and a mask for each, and a choice needs {FEWEST}; calibrate on more"
        )
    if seen:
        count = max(FEWEST, round(holdout * len(names)))
        places = np.random.default_rng([seed, 1]).permutation(len(usable))[:count]
        usable = [usable[place] for place in sorted(places)]
    if not any(record.label == 0 for name in usable for record in _of(manifest, name)):
        raise DataError(f"{where}: no good image in {', '.join(usable)}; an operating threshold needs some")
    return tuple(usable)


def _begun(folder: Path) -> Ablation | None:
    """The variants of a calibration that was stopped."""
    if (folder / _CONFIG).exists() or not (folder / _ABLATION / FILE).is_file():
        return None
    return read_ablation(folder / _ABLATION)


def _same(begun: Ablation, ablation: Ablation) -> bool:
    """Whether both are of the same variants, whatever has become of them."""
    first, second = ({each.name: each.experiment for each in own.variants} for own in (begun, ablation))
    return first == second and begun.store == ablation.store


def _require_share(option: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ConfigError(f"{option} {value}: must be above 0 and at most 1")


def _of(manifest: Manifest, category: str) -> list[Any]:
    return [record for record in manifest if record.category == category]


def _seen(prepared: Prepared) -> dict[str, str]:
    """By category that the adapter was trained on, why it is one."""
    run = prepared.run
    adapter = run.weights.get("adapter")
    found = {}
    for name in run.manifest.categories:
        part = Manifest(run.manifest.name, run.manifest.root, tuple(_of(run.manifest, name)))
        if leak := find_leak(run.experiment, part, adapter):
            found[name] = leak
    return found


def _defined(grid: Grid, source: str, overrides: Sequence[str], store: Path) -> tuple[Ablation, str]:
    """The ablation, and the name of the variant that is the experiment as it is; put first if the grid lacks it."""
    variants, own = expand(grid, source, overrides), load_experiment(source, overrides)
    default = next((each.name for each in variants if each.experiment == own), None)
    if default is None:
        default, variants = BASE, [Variant(BASE, {}, own), *variants]
    return new_ablation(grid, variants, store, allow_leak=False), default


def _grid_table(ended: EndedAblation, default: str) -> pd.DataFrame:
    """The means after the last step, with the default and the choice marked."""
    if ended.table is None:
        raise StageError(f"no variant came to its end; {ended.failed[0].name}: {ended.failed[0].error}")
    last = ended.table[ended.table["category"] == MEAN].groupby("variant", sort=False).tail(1)
    table = last[["variant", *ended.ablation.keys, "step", "pixel_ap", "pixel_f1max"]].reset_index(drop=True)
    table["score"] = table["pixel_ap"] + table["pixel_f1max"]
    if table["score"].isna().all():
        raise DataError("no variant has a pixel AP: the defects leave no pixel in the evaluation frame; raise it")
    table["default"] = table["variant"].eq(default)
    tied = table["score"] >= table["score"].max() - _TIED
    table["chosen"] = False
    table.loc[(table["default"] & tied).idxmax() if (table["default"] & tied).any() else tied.idxmax(), "chosen"] = True
    return table


def _operating_point(run: Run, good_quantile: float | None, seed: int) -> OperatingPoint:
    """The threshold on the image scores of a finished run after its last step."""
    images = images_table(run)
    last = images[(images["step"] == run.steps[-1]) & images["label"].notna()]
    scores, labels = last["image_score"].to_numpy(np.float64), last["label"].to_numpy(np.int64) == 1
    if good_quantile is None:
        # the images of each category and kind are drawn apart, as for the intervals of a table
        strata: NDArray[np.int64] = np.array(last.groupby(["category", "label"]).ngroup(), np.int64)
        drawn = draw_weights(strata, RESAMPLES, np.random.default_rng(seed))
        thresholds, left_out = best_f1_thresholds(scores, labels, drawn), left_out_weights(strata)
        best = resampled_metrics(bins_of_scores(scores, labels), np.concatenate([drawn, left_out]))[:, 1:2]
        of_f1 = Estimate(best[0], best[1 : len(drawn)], influences(best[len(drawn) :], left_out, strata))
        low, high = bca_intervals(of_f1, LEVEL)[0].tolist()
        ends = np.quantile(thresholds[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        threshold, rule = float(thresholds[0]), "best F1 of the image scores"
        intervals: tuple[Interval | None, Interval | None] = (ends[0], ends[1]), (low, high)
    else:
        threshold, rule = quantile_threshold(scores[~labels], good_quantile), f"{good_quantile:g} of the good images"
        intervals = None, None
    called = scores >= threshold
    hits = int((called & labels).sum())
    return OperatingPoint(
        threshold=threshold,
        rule=rule,
        f1=2 * hits / int(called.sum() + labels.sum()),
        false_alarms=float(called[~labels].mean()),
        missed=float((~called[labels]).mean()),
        threshold_interval=intervals[0],
        f1_interval=intervals[1],
        n_good=int((~labels).sum()),
        n_defective=int(labels.sum()),
        note=FEW if good_quantile is None and min(labels.sum(), (~labels).sum()) < ENOUGH else "",
    )


def _write(
    found: Calibrated, grid: Grid, source: str, overrides: Sequence[str], run: Run, draw: Mapping[str, Any]
) -> None:
    """Write the folder; ``calibrated.yaml`` last."""
    folder, table = found.folder, found.grid
    with replacing(folder / "grid.csv") as path:
        table.to_csv(path, index=False)
    (default,) = table.loc[table["default"], "score"] if table["default"].any() else (float("nan"),)
    write_sensitivity(folder / "sensitivity.png", _sensitivity(found, grid), default)
    (chosen,) = table[table["chosen"]].to_dict("records")
    adapter = run.weights.get("adapter")
    said = {
        "experiment": source,
        "dataset": {"name": run.manifest.name, "root": str(run.manifest.root)},
        "categories": list(found.categories),
        **draw,
        "adapter": adapter and adapter.sha256,
        "grid": grid.name,
        "chosen": {name: chosen[name] for name in ("variant", "pixel_ap", "pixel_f1max", "score")},
        "score_as_it_was": None if np.isnan(default) else default,
        "operating": asdict(found.operating),
    }
    write_text(folder / "calibration.json", json.dumps(said, indent=2) + "\n")
    write_text(folder / _CONFIG, _fragment(found, source, overrides, run))


def _sensitivity(found: Calibrated, grid: Grid) -> dict[str, pd.DataFrame]:
    """By direction of the grid, best and mean score of the variants that have each of its values."""
    scores = dict(zip(found.grid["variant"], found.grid["score"], strict=True))
    done: list[VariantState] = [each for each in found.ablation.ablation.variants if each.name in scores]
    directions = {}
    for values in directions_of(grid):
        keys = list(dict.fromkeys(key for value in values for key in value))
        rows = {}
        for value in values:
            own = [scores[each.name] for each in done if value.items() <= each.changes.items()]
            if own:
                rows[variant_name(value, keys)] = {"best": max(own), "mean": float(np.mean(own))}
        if rows:
            directions[", ".join(keys)] = pd.DataFrame.from_dict(rows, orient="index")
    return directions


def _fragment(found: Calibrated, source: str, overrides: Sequence[str], run: Run) -> str:
    """The experiment with what was chosen, as YAML."""
    data: dict[str, Any] = {
        "extends": source if source in preset_names() else str(expanded(source).resolve()),
        "name": f"{run.experiment.name[:80]}_calibrated",
    }
    changes = [parse_override("--set", override) for override in overrides]
    changes += [(key.split("."), value) for key, value in found.changes.items()]
    changes.append((["score", "operating_threshold"], found.operating.threshold))
    for names, value in changes:
        if names[0] not in _ELSEWHERE:
            below = data
            for name in names[:-1]:
                below = below.setdefault(name, {})
            below[names[-1]] = value
    chosen = found.grid[found.grid["chosen"]].iloc[0]
    at = found.operating
    lines = [
        f"Chosen on {run.manifest.name}: {', '.join(found.categories)}. A test on these would not be fair.",
        f"Pixel AP {chosen['pixel_ap']:.4f} and F1-max {chosen['pixel_f1max']:.4f}, the largest sum of "
        f"{len(found.grid)} variants.",
        f"Operating threshold: {at.rule}, of {at.n_good} good and {at.n_defective} defective images.",
    ]
    head = "".join(f"# {printable(line)}\n" for line in lines)
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
