"""`cascade generate`, `check` and `export`: what goes into a run, and what comes out of it as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cascade.flows.cli.console import counted, make_console, plain, show_images, show_problems, spinner
from cascade.flows.cli.options import SetOption, load_with_options

if TYPE_CHECKING:
    from rich.console import Console

    from cascade.storage.datasets import Manifest


def generate(
    target: Annotated[Path, typer.Argument(help="Folder of the new dataset.")],
    categories: Annotated[list[str] | None, typer.Option("--category", help="One kind; all by default.")] = None,
    good: Annotated[int, typer.Option(min=0, max=5000, help="Normal images for each category.")] = 4,
    defective: Annotated[int, typer.Option(min=0, max=5000, help="Defective images for each category.")] = 8,
    size: Annotated[int, typer.Option(min=64, max=8192, help="Side in pixels.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=99_999, help="Another seed gives other images.")] = 0,
) -> None:
    """Write a dataset of generated inspection photographs with exact masks."""
    from cascade.flows.generate import generate_dataset
    from cascade.storage.paths import require_new
    from cascade.synthesis.scene import CATEGORIES

    require_new(target)
    with spinner("generating photographs"):
        count = generate_dataset(
            target, categories=categories or CATEGORIES, good=good, defective=defective, size=size, seed=seed
        )
    make_console().print(plain(f"{counted(count, 'image')} in {target}"), soft_wrap=True, highlight=False)


def check(
    dataset: Annotated[Path, typer.Argument(help="Folder of images, dataset root or table.")],
    layout: Annotated[
        str, typer.Option(help="mvtec, visa, real_iad, meta, beside, folder, manifest, or auto.")
    ] = "auto",
    experiment: Annotated[
        str, typer.Option("--experiment", help="Preset or YAML file of the run that is meant: its frame and its words.")
    ] = "mini",
    settings: SetOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Name every file; by default the first few of a kind.")] = (
        False
    ),
    descriptor: Annotated[
        str | None,
        typer.Option(
            help="Dataset of `cascade datasets ls` or descriptor file whose numbers of images are expected; found by "
            "the folder's name or its categories by default."
        ),
    ] = None,
) -> None:
    """Look for everything that would make a run wrong, before any model is loaded; exit code 2 if there is.

    Numbers of images that differ from those published of a known dataset are said, and are no error.
    """
    from cascade.configs.datasets import load_descriptor
    from cascade.flows.run.reading import inspect_all

    if descriptor is not None:
        load_descriptor(descriptor)  # refused before the images are read

    loaded = load_with_options(experiment, dataset, [f"dataset.layout={layout}", *(settings or [])])
    with spinner("reading images and masks"):
        report = inspect_all(loaded)
    console = make_console()
    show_images(console, report, loaded.dataset.words)
    show_problems(console, report.problems, everything=everything)
    _show_differences(console, report.manifest, dataset, descriptor)
    errors, warnings = len(report.errors), len(report.warnings)
    console.print(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}")
    if not report.ok:
        raise typer.Exit(2)


def _show_differences(console: Console, manifest: Manifest, folder: Path, descriptor: str | None) -> None:
    from cascade.flows.datasets import differences, expected_of, tallied

    expected = expected_of(folder, manifest.categories, descriptor)
    if expected is None:
        return
    lines = differences(expected, tallied(manifest))
    for line in lines:
        console.print(f"[yellow]{plain(expected.title)}[/yellow] {plain(line)}", soft_wrap=True, highlight=False)
    if not lines:
        told = "as expected" if expected.images is not None else "none is expected"
        console.print(f"{plain(expected.title)}: numbers of images: {told}", soft_wrap=True, highlight=False)


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
    from cascade.flows.run.export import export_run
    from cascade.storage.paths import require_new

    require_new(target)
    with spinner("writing maps and masks"):
        count = export_run(
            run_folder,
            target,
            None if maps == "none" else maps,
            None if masks == "none" else masks,
            steps,
        )
    make_console().print(plain(f"{counted(count, 'image')} in {target}"), soft_wrap=True, highlight=False)
