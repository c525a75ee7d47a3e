"""The command line. Commands import what they need when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import gc
import sys

import typer

from cascade.flows.cli import ablate, bench, compare, data, history, reproduce, run, schedule, store, train, weights

app = typer.Typer(
    name="cascade",
    help="Zero-shot industrial anomaly segmentation: CLIP finds, SAM outlines, every stage is computed once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    run.run,
    run.demo,
    ablate.ablate,
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
for name, group in (("baseline", compare.app), ("store", store.app), ("weights", weights.app), ("train", train.app)):
    app.add_typer(group, name=name)

_INTERRUPTED = 130  # typer's exit code after Ctrl-C
_COLLECT_AFTER = 50_000
"""Objects between two looks for garbage. Modules and manifests stay; Python's own 700 cost a tenth of a cached run."""


def main() -> None:
    """Entry point: one line and an exit code for every refused input; ``--debug`` shows the traceback."""
    gc.set_threshold(_COLLECT_AFTER)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    from cascade.storage.errors import PipelineError

    try:
        app(args=arguments)
    except (PipelineError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, PipelineError) else 1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("stopped; finished items are kept, the same command goes on from there", file=sys.stderr)
        raise
