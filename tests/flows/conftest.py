"""A tiny dataset, networks with random weights, and one finished run that tests copy before they change it."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cascade.backbones.sam.build import build_sam
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.cli import main
from cascade.flows.engines.evaluate import StagePlan, StageResult, evaluate
from cascade.flows.engines.local import execute_locally
from cascade.flows.engines.prefect_server import set_defaults
from cascade.flows.generate import generate_dataset
from cascade.flows.run import Observer
from cascade.flows.run.prepare import Prepared, prepare
from cascade.localisers.patch_text import LinearAdapter
from cascade.storage.artefacts import Artefact
from cascade.storage.errors import CorruptItem
from cascade.synthesis.scene import generate_scene
from cascade.tasks.execution.networks import clip_config
from tests.tiny import mini_clip_state

SIZE = 96
# Random networks see defects nowhere; a quantile marks some pixels in every image all the same.
OVERRIDES = (
    "localise.more_sides=[]",
    "prompt.frame=96",
    "prompt.threshold.rule=quantile",
    "prompt.threshold.quantile=0.95",
    "prompt.spacing.rank=40",
    "prompt.dilation.size=9",
    "score.frame=96",
)


@dataclass
class Recorder(Observer):
    """An observer that remembers; ``on_item`` is called with the stage's name after each item."""

    results: list[StageResult] = field(default_factory=list)
    damage: list[CorruptItem] = field(default_factory=list)
    writes: Counter[str] = field(default_factory=Counter)
    on_item: Callable[[str], None] = lambda stage: None

    def started(self, plan: StagePlan) -> Callable[[], None]:
        def item() -> None:
            self.writes[plan.stage.name] += 1
            self.on_item(plan.stage.name)

        return item

    def finished(self, result: StageResult) -> None:
        self.results.append(result)

    def damaged(self, error: CorruptItem) -> None:
        self.damage.append(error)


@dataclass(frozen=True)
class Outcome:
    prepared: Prepared
    results: Sequence[StageResult]
    recorder: Recorder

    @property
    def computed(self) -> dict[str, int]:
        """Items computed by each stage that computed any."""
        return {result.stage: result.computed for result in self.results if result.computed}

    def artefact(self, stage: str) -> Artefact:
        key = next(result.key for result in self.results if result.stage == stage)
        (found,) = [each for each in self.stored() if each.path.name == key]
        return found

    def stored(self) -> list[Artefact]:
        from cascade.storage.artefacts import Store

        return Store(self.prepared.run.store).stored()


@dataclass(frozen=True)
class Bench:
    """What a run needs, and the shortest way to one."""

    dataset: Path
    store: Path
    overrides: tuple[str, ...]

    def prepare(self, *more: str, allow_leak: bool = False) -> Prepared:
        experiment = load_experiment("mini", [f"dataset.path={self.dataset}", *self.overrides, *more])
        return prepare(experiment, self.store, Settings(weights=self.store / "none"), allow_leak=allow_leak)

    def run(self, *more: str, on_item: Callable[[str], None] = lambda stage: None) -> Outcome:
        prepared, recorder = self.prepare(*more), Recorder(on_item=on_item)
        return Outcome(prepared, evaluate(prepared.run, execute_locally, recorder), recorder)

    def arguments(self, *more: str) -> list[str]:
        """The same as arguments of ``cascade run``."""
        settings = [part for override in (*self.overrides, *more) for part in ("--set", override)]
        return [
            "run",
            "mini",
            "--dataset",
            str(self.dataset),
            "--store",
            str(self.store),
            "--engine",
            "local",
            *settings,
        ]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line that a refused input gets."""
        assert self.code not in (0, 130)
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: ")
        assert "Traceback" not in self.out + self.err
        return self.err


Cli = Callable[..., Result]


def save_adapter(path: Path, training: Mapping[str, Any] | None = None, *, layers: int = 2, seed: int = 2) -> Path:
    """Random linear layers for the mini CLIP, saying that they were trained on ``training``."""
    config = clip_config("mini")
    torch.manual_seed(seed)
    adapter = LinearAdapter(layers, config["vision_cfg"]["width"], config["embed_dim"])
    save_file(adapter.state_dict(), path, metadata={"training": json.dumps(training)} if training else None)
    return path


def save_scene(path: Path, seed: int, *, size: int = SIZE, category: str = "carpet") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generate_scene(seed, size, category, False).image).save(path)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, less locks and Prefect's own."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and "prefect-results" not in path.parts
    }


def flip_chunk(artefact: Artefact, array: str, item: str) -> None:
    """Change one bit of an item's chunk."""
    lines = [json.loads(line) for line in (artefact.path / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    row = next(line["row"] for line in lines if line["item"] == item)
    (chunk,) = [path for path in (artefact.path / array / "c" / str(row)).rglob("*") if path.is_file()]
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(bytes(content))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that name random networks."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    sam = {name: value.half().contiguous() for name, value in build_sam("mini").state_dict().items()}
    save_file(sam, folder / "sam.safetensors")
    save_file(mini_clip_state(1), folder / "clip.safetensors")
    save_adapter(folder / "adapter.safetensors")
    roles = {"embed.weights": "sam", "localise.weights": "clip", "localise.adapter": "adapter"}
    return tuple(f"{name}={folder / role}.safetensors" for name, role in roles.items())


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of two good and two defective images."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    generate_dataset(folder, categories=("carpet", "metal plate"), good=2, defective=2, size=SIZE)
    return folder


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, dataset: Path, weights: tuple[str, ...]
) -> tuple[Bench, Outcome]:
    """A run that is complete; tests do not write into its store."""
    bench = Bench(dataset, tmp_path_factory.mktemp("finished") / "store", (*OVERRIDES, *weights))
    return bench, bench.run()


@pytest.fixture
def empty(tmp_path: Path, dataset: Path, weights: tuple[str, ...]) -> Bench:
    """A store with nothing in it; dataset and networks are shared and must not be changed."""
    return Bench(dataset, tmp_path / "store", (*OVERRIDES, *weights))


@pytest.fixture
def bench(tmp_path: Path, finished: tuple[Bench, Outcome]) -> Bench:
    """A copy of the finished run's store; the dataset is shared."""
    store = tmp_path / "store"
    shutil.copytree(finished[0].store, store)
    return replace(finished[0], store=store)


@pytest.fixture
def own_data(tmp_path: Path, bench: Bench) -> Bench:
    """The same with a copy of the dataset, too."""
    folder = tmp_path / "data" / "tiny"
    shutil.copytree(bench.dataset, folder)
    return replace(bench, dataset=folder)


@pytest.fixture(autouse=True)
def started_ahead(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Each time a server was to be started before it is needed; none is."""
    asked: list[bool] = []
    monkeypatch.setattr("cascade.flows.engines.prefect_server.start_ahead", lambda: asked.append(True))
    return asked


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server for all tests, with its database and results in a folder of their own."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(home / "results"))
        set_defaults()
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture
def no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a network fails the test."""

    def load(*arguments: Any) -> None:
        pytest.fail(f"loaded a network: {arguments}")

    for name in ("_sam", "_clip", "_trained"):
        monkeypatch.setattr(f"cascade.tasks.execution.networks.{name}", load)


@pytest.fixture
def odd_sizes(tmp_path: Path, weights: tuple[str, ...]) -> Bench:
    """One category with a landscape and a portrait image, one of them defective."""
    folder = tmp_path / "odd" / "screw"
    rng = np.random.default_rng(0)
    for kind, (height, width) in {"good": (80, 120), "bent": (100, 64)}.items():
        path = folder / "test" / kind / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    mask = np.zeros((100, 64), np.uint8)
    mask[20:50, 10:30] = 255
    (folder / "ground_truth" / "bent").mkdir(parents=True)
    Image.fromarray(mask).save(folder / "ground_truth" / "bent" / "0_mask.png")
    return Bench(folder.parent, tmp_path / "store", (*OVERRIDES, *weights))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """``cascade`` with the given arguments, in this process and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("CASCADE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("CASCADE_WEIGHTS_URL", raising=False)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["cascade", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        code = end.value.code
        return Result(code if isinstance(code, int) else 0, printed.out, printed.err)

    return call
