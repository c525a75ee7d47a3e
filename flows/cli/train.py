"""`cascade train`: the weights of a localiser's own, and the mini models."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cascade.flows.cli.console import counted, make_console, plain
from cascade.flows.cli.options import DatasetOption, SetOption, StoreOption, load_with_options

if TYPE_CHECKING:
    from cascade.tasks.training.provenance import Epoch

_ANY = "METHOD"
"""The hidden command behind the name of every localiser that is trained."""


class _Methods(TyperGroup):
    """The mini models, and under its name every localiser with weights of its own; they are read when asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._name_methods()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self._name_methods()
        return super().get_command(ctx, cmd_name)

    def _name_methods(self) -> None:
        if (any_method := self.commands.pop(_ANY, None)) is None:
            return
        from cascade.flows.train import trained_methods

        named = {name: copy(any_method) for name in trained_methods()}
        for name, command in named.items():
            command.name = name
        self.commands = {**named, **self.commands}


app = typer.Typer(cls=_Methods, help="Train a localiser's own weights, or the mini models.", no_args_is_help=True)

MinutesOption = Annotated[float, typer.Option(min=0, max=1e6, help="Training time over all sessions.")]
PicturesOption = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Folder of pictures of surfaces, beside those that packages ship."),
]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train; a GPU if there is one.")]


@app.command(_ANY)
def train_method(
    context: typer.Context,
    dataset: DatasetOption = None,
    out: Annotated[Path, typer.Option(help="The weights, a .safetensors file.")] = Path("adapter.safetensors"),
    experiment: Annotated[str, typer.Option(help="Preset or YAML file that names the networks.")] = "mini",
    settings: SetOption = None,
    recipe: Annotated[list[str] | None, typer.Option("--train", help="Change the recipe, e.g. epochs=3.")] = None,
    store: StoreOption = None,
) -> None:
    """Train a localiser's own weights on the test split of an auxiliary dataset; the same command resumes after a stop.

    A model card is written beside the weights. Under torchrun its processes share every batch.
    """
    from cascade.configs.settings import Settings
    from cascade.flows.run.progress import RichReporter
    from cascade.flows.train import train_config
    from cascade.flows.train import train_method as train
    from cascade.storage.errors import ConfigError

    method = str(context.info_name)
    console, config = make_console(), train_config(recipe or [], method)
    chosen = load_with_options(experiment, dataset, [f"localise.method={method}", *(settings or [])])
    if chosen.localise.method != method:
        raise ConfigError(f"localise.method is '{chosen.localise.method}'; this trains {method}, so leave it out")
    folder = store or Settings().store
    fresh = not folder.exists()
    epochs = train(
        chosen,
        config,
        out,
        store=folder,
        observer=RichReporter(console),
        on_epoch=lambda epoch: console.print(_told(epoch, config.epochs)),
        on_warning=lambda line: console.print(
            f"[yellow]warning[/yellow] {plain(line)}", soft_wrap=True, highlight=False
        ),
    )
    if fresh:
        console.print(f"new store in {plain(str(folder.resolve()))}", soft_wrap=True, highlight=False)
    done = plain(f"{out}: trained for {counted(len(epochs), 'epoch')}; use it with --set localise.adapter={out}")
    console.print(done, soft_wrap=True, highlight=False)


def _told(epoch: Epoch, epochs: int) -> str:
    found = "" if epoch.pixel_ap is None else f", held out: AP {epoch.pixel_ap:.4f}, F1-max {epoch.pixel_f1max:.4f}"
    return f"epoch {epoch.number} of {epochs}: loss {epoch.loss:.4f}{found}"


@app.command("mini-clip")
def train_mini_clip(
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights.")] = Path("training/mini-clip"),
    minutes: MinutesOption = 15.0,
    seed: Annotated[int, typer.Option(min=0, max=9000, help="Of weights, scenes and augmentation.")] = 0,
    pictures: PicturesOption = None,
    images: Annotated[int, typer.Option(min=8, help="Generated images; each takes a megabyte in --out.")] = 1500,
    device: DeviceOption = "auto",
) -> None:
    """Train the small CLIP and its APRIL-GAN layers on generated photographs; the same command resumes after a stop.

    The images are made first, which takes about ten minutes on two cores; then the time begins.
    """
    from cascade.storage.paths import require_writable
    from cascade.tasks.training.mini_clip import pretrain_clip

    require_writable(out)
    facts = pretrain_clip(
        out,
        minutes=minutes,
        seed=seed,
        pictures=pictures,
        images=images,
        device=device,
        progress=_print_facts,
    )
    _print_facts(facts)


@app.command("mini-sam")
def train_mini_sam(
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights.")] = Path("training/mini-sam"),
    minutes: MinutesOption = 40.0,
    seed: Annotated[int, typer.Option(min=0, max=9000, help="Of weights, scenes and prompts.")] = 0,
    pictures: PicturesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the small SAM on generated photographs; the same command resumes after a stop.

    Use it with --set embed.weights=training/mini-sam/mini_sam.safetensors.
    """
    from cascade.storage.paths import require_writable
    from cascade.tasks.training.mini_sam import pretrain_sam

    require_writable(out)
    facts = pretrain_sam(out, minutes=minutes, seed=seed, pictures=pictures, device=device, progress=_print_facts)
    _print_facts(facts)


def _print_facts(facts: Mapping[str, object]) -> None:
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items())
    make_console().print(", ".join(shown), soft_wrap=True, highlight=False)
