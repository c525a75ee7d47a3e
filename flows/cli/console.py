"""What commands print with: a console, a spinner, plain text and the table of results."""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from rich.console import Console

    from cascade.configs.schema import Experiment
    from cascade.storage.datasets import Problem, Report

_LOG_WIDTH = 120
PAPER_MODELS = ("vit_h", "ViT-L-14-336")


def show_results(results: pd.DataFrame, console: Console) -> None:
    """The table of results in per cent, a blank cell where a metric is undefined; intervals below if there are any.

    Where images judged each other, a column and a line say how many.
    """
    from rich.table import Column, Table

    from cascade.tasks.aggregate import METRICS
    from cascade.tasks.tables.batch import COLUMN, batch_note
    from cascade.tasks.tables.intervals import explained

    step = Column("step", no_wrap=True)
    category = Column("category", no_wrap=True)
    batch = ["batch"] if COLUMN in results else []
    table = Table(category, step, *(name.replace("_", "\n") for name in METRICS), *batch, box=None)
    last = results["step"].iloc[-1]
    for row in results.to_dict("records"):
        cells = [*(_cell(row, name) for name in METRICS), *(str(row[COLUMN] or "alone") for _ in batch)]
        table.add_row(plain(row["category"]), row["step"], *cells, end_section=row["step"] == last)
    console.print(table)
    if note := batch_note(results):
        console.print(plain(note), soft_wrap=True, highlight=False)
    notes = [note for name in METRICS if f"{name}_note" in results for note in results[f"{name}_note"]]
    for line in explained(notes):
        console.print(f"[dim]{line}[/dim]", soft_wrap=True, highlight=False)


def show_prompts(results: pd.DataFrame, console: Console) -> None:
    """By category, how many images got no prompt, how many good ones did, and which masks the last step chose.

    An image without prompt has no mask: its scores are the map's.
    """
    from rich.table import Table

    last = results[results["step"] == results["step"].iloc[-1]]
    table = Table(
        "category", "images", "no prompt", "defective\nno prompt", "good\nwith prompt", "masks 1/2/3", box=None
    )
    for row in last.to_dict("records"):
        masks = [row[f"mask_{number}"] for number in (1, 2, 3)]
        table.add_row(
            plain(row["category"]),
            str(row["n_images"]),
            str(row["n_no_prompt"]),
            str(row["n_no_prompt_anomalous"]),
            f"{per_cent(row['good_prompted'])} %" if row["good_prompted"] == row["good_prompted"] else "",
            "" if masks[0] != masks[0] else "/".join(f"{100 * share:.0f}" for share in masks) + " %",
        )
    console.print(table)


def show_images(console: Console, report: Report, words: Mapping[str, str]) -> None:
    """What a dataset was read as: its layout, and by category the words for CLIP and the images of each split."""
    from rich.table import Table

    manifest = report.manifest
    console.print(
        f"layout {report.layout}: {counted(len(manifest), 'image')}, {counted(len(manifest.categories), 'category')}",
        highlight=False,
    )
    if not len(manifest):
        return
    table = Table("category", "words for CLIP", "split", "good", "defective", "not labelled", box=None)
    for (category, split), records in manifest.parts().items():
        labels = [record.label for record in records]
        numbers = [str(labels.count(label)) for label in (0, 1, None)]
        table.add_row(plain(category), plain(words.get(category, category)), split, *numbers)
    console.print(table)


def show_problems(console: Console, problems: Sequence[Problem], *, everything: bool = False) -> None:
    """One line for each; those beyond the first few of a kind are counted, unless ``everything`` is wanted."""
    from cascade.storage.datasets import SHOWN, summarised

    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    for problem, more in summarised(problems, len(problems) if everything else SHOWN):
        colour, text = colours[problem.severity], f"{problem.kind}: {problem.path}: {problem.message}"
        rest = f" (and {more} more)" if more else ""
        console.print(f"[{colour}]{problem.severity}[/{colour}] {plain(text)}{rest}", soft_wrap=True, highlight=False)


def show_left_out(console: Console, number: int, folder: Path) -> None:
    """How many images a run did without, and where they are listed."""
    text = f"{counted(number, 'image')} left out, listed with reasons in {folder / 'skipped.csv'}"
    console.print(f"[red]{plain(text)}[/red]", soft_wrap=True, highlight=False)


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``, ``2 categories``, ``2 keys``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _cell(row: Mapping[Hashable, Any], metric: str) -> str:
    value = per_cent(row[metric])
    if not value or f"{metric}_low" not in row:
        return value
    interval = row[f"{metric}_note"] or f"{100 * row[f'{metric}_low']:.1f}–{100 * row[f'{metric}_high']:.1f}"
    return f"{value}\n[dim]{interval}[/dim]"


def per_cent(value: float) -> str:
    """A cell: one decimal, or blank where the value is not defined."""
    return "" if value != value else f"{100 * value:.1f}"


def models_note(experiments: Sequence[Experiment]) -> str | None:
    """What has to be said where figures of ours stand beside the paper's; ``None`` if all models are the paper's."""
    used = {(each.embed.backbone, each.localise.backbone) for each in experiments}
    others = sorted(used - {PAPER_MODELS})
    if not others:
        return None
    shown = "; ".join(f"SAM {sam}, CLIP {clip}" for sam, clip in others)
    mini = " The mini models are not a claim about the paper's." if any("mini" in pair for pair in others) else ""
    return f"not the paper's models ({shown}); do not compare these figures with the paper's.{mini}"


def make_console() -> Console:
    """Wide enough for a table when it writes to a log. If nobody reads on, as after ``| head``, the work goes on."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    console = Lasting()
    return console if console.is_terminal else Lasting(width=max(console.width, _LOG_WIDTH))


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """A sign of life beside ``text`` while something takes its time."""
    with make_console().status(text):
        yield


def plain(text: str) -> str:
    """File names may hold square brackets, which are markup to rich, and characters that steer a terminal."""
    from rich.markup import escape

    from cascade.storage.names import printable

    return escape(printable(text))
