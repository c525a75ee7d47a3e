"""`cascade bench`: the benchmarks of a source tree, each against a named peer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

FOLDER = Path(__file__).parents[3] / "benchmarks"
NAMES = ("cps", "encoder", "clip", "decode", "metrics", "store", "ablation", "overhead", "tasks")


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which; all by default.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything that was measured, one document for each.")
    ] = False,
) -> None:
    """Measure speed and memory against other programs that do the same work, in alternation."""
    from cascade.storage.errors import ConfigError, nearest

    there = [name for name in NAMES if (FOLDER / f"{name}.py").is_file()]
    if not there:
        raise ConfigError("the benchmarks are not part of the installed package; run `cascade bench` in a source tree")
    for name in names or there:
        if name not in there:
            raise ConfigError(f"no benchmark '{name}'; {nearest(name, there)}")
    for name in names or there:
        if not as_json:
            print(name, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--json"] if as_json else [])]
        code = subprocess.run(command, cwd=FOLDER.parent).returncode
        if code:
            raise typer.Exit(code)
