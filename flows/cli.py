"""The command line. Commands import what they need when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from configs.schema import Experiment

app = typer.Typer(
    name="cascade",
    help="Zero-shot industrial anomaly segmentation: CLIP finds, SAM outlines, every stage is computed once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
store_app = typer.Typer(help="The artefacts that runs have left.", no_args_is_help=True)
weights_app = typer.Typer(help="Checkpoints: what is here, and how to get the rest.", no_args_is_help=True)
train_app = typer.Typer(help="Train the linear layers of a CLIP method, or the mini models.", no_args_is_help=True)
app.add_typer(store_app, name="store")
app.add_typer(weights_app, name="weights")
app.add_typer(train_app, name="train")

Engine = Literal["prefect", "local"]
DatasetOption = Annotated[Path | None, typer.Option("--dataset", help="Folder of images, dataset root or table.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change one key, e.g. prompt.positives=5.")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Folder of the artefacts.")]
EngineOption = Annotated[Engine, typer.Option(help="Prefect, or plain Python without a server.")]
INTERRUPTED = 130  # typer's exit code after Ctrl-C
_LOG_WIDTH = 120
DEMO_CATEGORIES = ("metal plate", "carpet", "pill", "wood")


def main() -> None:
    """Entry point: one line and an exit code for every refused input; ``--debug`` shows the traceback."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    from storage.errors import PipelineError

    try:
        app(args=arguments)
    except (PipelineError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, PipelineError) else 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("stopped; finished items are kept, the same command goes on from there", file=sys.stderr)
        raise


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="Preset (mini, paper, paper_strict, quality) or YAML file.")],
    dataset: DatasetOption = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tables; a new one under runs/ by default.")] = None,
    store: StoreOption = None,
    engine: EngineOption = "prefect",
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Test an adapter on its own training data, and mark every table.")
    ] = False,
) -> None:
    """Evaluate an experiment on a dataset; what the store has is not computed again."""
    _evaluate(_load(experiment, dataset, settings), out, store, engine, allow_leak)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the photographs, the store and the tables.")] = Path(
        "runs/demo"
    ),
    engine: EngineOption = "prefect",
) -> None:
    """The whole pipeline on generated photographs with the mini models: no download, no GPU."""
    from flows.generate import generate_dataset

    data = out / "data"
    with _spinner("generating photographs"):
        generate_dataset(data, categories=DEMO_CATEGORIES, good=4, defective=8)
    _evaluate(_load("mini", data, ["name=demo", "dataset.name=demo"]), out, out / "store", engine, False)


@app.command()
def generate(
    target: Annotated[Path, typer.Argument(help="Folder of the new dataset.")],
    categories: Annotated[list[str] | None, typer.Option("--category", help="One kind; all by default.")] = None,
    good: Annotated[int, typer.Option(min=0, help="Normal images for each category.")] = 4,
    defective: Annotated[int, typer.Option(min=0, help="Defective images for each category.")] = 8,
    size: Annotated[int, typer.Option(min=64, help="Side in pixels.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other images.")] = 0,
) -> None:
    """Write a dataset of generated inspection photographs with exact masks."""
    from cascade.synthesis.scene import CATEGORIES
    from flows.generate import generate_dataset

    with _spinner("generating photographs"):
        count = generate_dataset(
            target, categories=categories or CATEGORIES, good=good, defective=defective, size=size, seed=seed
        )
    _console().print(f"{count} images in {target}")


@app.command()
def check(
    dataset: Annotated[Path, typer.Argument(help="Folder of images, dataset root or table.")],
    layout: Annotated[str, typer.Option(help="mvtec, visa, folder, manifest, or auto.")] = "auto",
) -> None:
    """Look for everything that would make a run wrong, before any model is loaded; exit code 2 if there is."""
    from storage.datasets import inspect_dataset

    with _spinner("reading images and masks"):
        report = inspect_dataset(dataset, layout, decode=True)
    console = _console()
    for problem in report.problems:
        colour = "red" if problem.severity == "error" else "yellow"
        console.print(
            f"[{colour}]{problem.severity}[/{colour}] " + _plain(f"{problem.kind}: {problem.path}: {problem.message}"),
            soft_wrap=True,
            highlight=False,
        )
    manifest = report.manifest
    console.print(
        f"{len(manifest)} images in {len(manifest.categories)} categories; "
        f"{len(report.errors)} errors, {len(report.warnings)} warnings"
    )
    if not report.ok:
        raise typer.Exit(2)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files.")],
    maps: Annotated[Literal["npy", "tiff", "none"], typer.Option(help="Format of the score maps.")] = "npy",
    masks: Annotated[Literal["png", "none"], typer.Option(help="Format of the ground truth.")] = "png",
    steps: Annotated[
        list[str] | None, typer.Option("--step", help="Only the maps of this step; all by default.")
    ] = None,
) -> None:
    """Write the scored maps and the masks they were scored against, one file each."""
    from flows.export import export_run
    from tasks.score import STEPS

    with _spinner("writing maps and masks"):
        count = export_run(
            run_folder,
            target,
            None if maps == "none" else maps,
            None if masks == "none" else masks,
            steps or STEPS,
        )
    _console().print(f"{count} images in {target}")


@train_app.command("april_gan")
def train_april_gan(
    dataset: DatasetOption = None,
    out: Annotated[Path, typer.Option(help="The adapter, a .safetensors file.")] = Path("adapter.safetensors"),
    experiment: Annotated[str, typer.Option(help="Preset or YAML file that names the CLIP model.")] = "mini",
    settings: SetOption = None,
    recipe: Annotated[list[str] | None, typer.Option("--train", help="Change the recipe, e.g. epochs=3.")] = None,
    store: StoreOption = None,
) -> None:
    """Train APRIL-GAN's linear layers on the test split of an auxiliary dataset."""
    from configs.settings import Settings
    from flows.progress import RichReporter
    from flows.train import train_april_gan as train
    from flows.train import train_config

    machine, console = Settings(), _console()
    loaded, config = _load(experiment, dataset, settings), train_config(recipe or [])
    with RichReporter(console) as reporter:
        epochs = train(
            loaded,
            config,
            out,
            store or machine.store,
            machine,
            reporter,
            lambda epoch: console.print(f"epoch {epoch.number} of {config.epochs}: loss {epoch.loss:.4f}"),
        )
    console.print(f"{out}: trained for {len(epochs)} epochs; use it with --set localise.adapter={out}", soft_wrap=True)


@train_app.command("mini-clip")
def train_mini_clip(
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights.")] = Path("training/mini-clip"),
    minutes: Annotated[float, typer.Option(min=0, help="Training time over all sessions.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, scenes and augmentation.")] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train; a GPU if there is one.")
    ] = "auto",
) -> None:
    """Train the small CLIP on generated photographs and captions; the same command resumes after a stop."""
    from tasks.pretraining.mini_clip import pretrain_clip

    _print_facts(pretrain_clip(out, minutes=minutes, seed=seed, device=device, progress=_print_facts))


@train_app.command("mini-sam")
def train_mini_sam(
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights.")] = Path("training/mini-sam"),
    minutes: Annotated[float, typer.Option(min=0, help="Training time over all sessions.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, scenes and prompts.")] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train; a GPU if there is one.")
    ] = "auto",
) -> None:
    """Train the small SAM on generated photographs; the same command resumes after a stop."""
    from tasks.pretraining.mini_sam import pretrain_sam

    _print_facts(pretrain_sam(out, minutes=minutes, seed=seed, device=device, progress=_print_facts))


@store_app.command("ls")
def store_ls(store: StoreOption = None) -> None:
    """List the artefacts: stage, key, finished items, size and configuration."""
    from rich.table import Table

    from configs.settings import Settings
    from storage.artefacts import Store

    table = Table("stage", "key", "items", "MB", "configuration", box=None)
    for artefact in Store(store or Settings().store).stored():
        shown = {name: value for name, value in artefact.key.config.items() if name != "sentences"}
        table.add_row(
            artefact.key.stage,
            artefact.path.name[:12],
            str(len(artefact.done())),
            f"{artefact.nbytes() / 1e6:.1f}",
            _plain(", ".join(f"{name}={value}" for name, value in shown.items())),
        )
    _console().print(table)


@weights_app.command("ls")
def weights_ls(
    verify: Annotated[bool, typer.Option("--verify", help="Read and hash every file.")] = False,
) -> None:
    """List the registered checkpoints and whether they are on this machine."""
    from rich.table import Table

    from configs.settings import Settings
    from storage.weights import weights_table

    table = Table("name", "state", "MB", "license", "path", box=None)
    for row in weights_table(Settings().weights, verify=verify):
        size = "" if row.size is None else f"{row.size / 1e6:.1f}"
        table.add_row(row.name, row.state, size, row.license, _plain(str(row.path)))
    _console().print(table)


@weights_app.command("fetch")
def weights_fetch(name: Annotated[str, typer.Argument(help="A name that `cascade weights ls` shows.")]) -> None:
    """Download a checkpoint and keep it only if its digest is the pinned one."""
    from configs.settings import Settings
    from storage.weights import fetch

    machine = Settings()
    with _spinner(f"fetching {name}"):
        path = fetch(name, folder=machine.weights, base_url=machine.weights_url)
    _console().print(f"{path} verified", soft_wrap=True)


def _evaluate(experiment: Experiment, out: Path | None, store: Path | None, engine: Engine, allow_leak: bool) -> None:
    from configs.settings import Settings
    from flows.evaluate import evaluate, plan
    from flows.local_engine import execute_locally
    from flows.outputs import default_folder, write_run
    from flows.prepare import prepare, remember_checked
    from flows.progress import RichReporter

    machine, console = Settings(), _console()
    prepared = prepare(experiment, store or machine.store, machine, allow_leak=allow_leak)
    plan(prepared.run)  # refuses what could not run before anything is written
    remember_checked(prepared.run.manifest, prepared.run.store)
    folder = out or default_folder(machine.runs, experiment.name)
    for line in prepared.warnings:
        console.print(f"[yellow]warning[/yellow] {_plain(line)}", soft_wrap=True, highlight=False)
    with RichReporter(console) as reporter:
        if engine == "local":
            results = evaluate(prepared.run, execute_locally, reporter)
        else:
            from flows.prefect_engine import evaluate_on_prefect

            results = evaluate_on_prefect(prepared.run, reporter)
    table = write_run(folder, prepared, results, engine)
    _show(table, console)
    if prepared.leak:
        console.print(f"[red]not zero-shot:[/red] {_plain(prepared.leak)}", soft_wrap=True)
    console.print(f"tables in {folder}", soft_wrap=True)


def _print_facts(facts: Mapping[str, object]) -> None:
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items())
    _console().print(", ".join(shown), soft_wrap=True, highlight=False)


def _load(source: str, dataset: Path | None, overrides: list[str] | None) -> Experiment:
    from configs.loader import load_experiment

    # a JSON string is the same string in YAML
    given = [f"dataset.path={json.dumps(str(dataset), ensure_ascii=False)}"] if dataset is not None else []
    return load_experiment(source, [*given, *(overrides or [])])


def _show(results: pd.DataFrame, console: Console) -> None:
    import math

    from rich.table import Column, Table

    from tasks.aggregate import METRICS

    step = Column("step", no_wrap=True)
    category = Column("category", no_wrap=True)
    table = Table(category, step, *(name.replace("_", "\n") for name in METRICS), box=None)
    for row in results.to_dict("records"):
        cells = ["" if math.isnan(row[name]) else f"{100 * row[name]:.1f}" for name in METRICS]
        table.add_row(_plain(row["category"]), row["step"], *cells, end_section=row["step"] == "points+box+logits")
    console.print(table)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, _LOG_WIDTH))


@contextmanager
def _spinner(text: str) -> Iterator[None]:
    with _console().status(text):
        yield


def _plain(text: str) -> str:
    """File names may hold square brackets, which are markup to rich."""
    from rich.markup import escape

    return escape(text)
