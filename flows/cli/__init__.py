"""The command line. Commands import what they need when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cascade.flows.cli import (
    ablate,
    bench,
    calibrate,
    compare,
    data,
    datasets,
    history,
    reproduce,
    run,
    schedule,
    store,
    train,
    weights,
)
from cascade.flows.cli.arguments import checked, usage_fault

app = typer.Typer(
    name="cascade",
    help="Zero-shot industrial anomaly segmentation: CLIP finds, SAM outlines, every stage is computed once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run.run,
    run.demo,
    ablate.ablate,
    calibrate.calibrate,
    reproduce.reproduce,
    compare.compare,
    history.history,
    schedule.reevaluate,
    schedule.serve,
    data.generate,
    data.check,
    data.export,
    bench.bench,
):
    app.command()(command)
for name, group in (
    ("baseline", compare.app),
    ("datasets", datasets.app),
    ("store", store.app),
    ("weights", weights.app),
    ("train", train.app),
):
    app.add_typer(group, name=name)

_INTERRUPTED = 130  # typer's exit code after Ctrl-C
_COLLECT_AFTER = 50_000
"""Objects between two looks for garbage. Modules and manifests stay; Python's own 700 cost a tenth of a cached run."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("clip-sam-cascade"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Entry point: one line and an exit code for every refused input; ``--debug`` shows the traceback."""
    gc.set_threshold(_COLLECT_AFTER)
    debug = "--debug" in sys.argv
    given = [argument for argument in sys.argv[1:] if argument != "--debug"]
    from cascade.storage.errors import PipelineError

    try:
        code = typer.main.get_command(app).main(args=checked(given), prog_name=app.info.name, standalone_mode=False)
    except TyperException as error:
        if fault := usage_fault(error):
            print(f"error: {fault}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (PipelineError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, PipelineError) else 1)
    if code == _INTERRUPTED:
        print("stopped; finished items are kept, the same command goes on from there", file=sys.stderr)
    sys.exit(code)
