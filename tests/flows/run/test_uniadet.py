"""UniADet by command and from Python: what it computes, what it learns, what it keeps, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, softmax
from sklearn.metrics import precision_recall_curve

from cascade import Segmenter
from cascade.configs.loader import load_experiment
from cascade.flows.generate import generate_dataset
from cascade.localisers import make_localiser
from cascade.localisers.class_vectors import ClassVectors
from cascade.localisers.protocol import Trainable
from cascade.storage.weights import LocatedWeights, file_sha256, locate
from cascade.tasks.execution import networks
from cascade.tasks.execution.networks import Networks, networks_of
from tests.flows.conftest import Cli, Result
from tests.tiny import SMALL_CLIP, mini_clip_state

SIDE = 128
COMMON = (f"localise.image_side={SIDE}", "score.frame=64", "runtime.device=cpu")
TOWERS = {
    "small": ("localise.layers=[2,8]", "localise.backbone=small"),
    "mini": ("localise.layers=[1,2]", "localise.backbone=mini"),
    "efficientnet_lite0": (
        "localise.layers=[2,3]",
        "localise.backbone=efficientnet_lite0",
        "localise.tower=features",
    ),
    "vit_tiny_patch16_224": (
        "localise.layers=[3,12]",
        "localise.backbone=vit_tiny_patch16_224",
        "localise.tower=features",
    ),
}


@dataclass(frozen=True)
class Place:
    """A folder with a dataset, and weights of CLIPs and a timm network."""

    folder: Path

    def settings(self, tower: str) -> list[str]:
        weights = self.folder / f"{tower}.safetensors"
        return [*TOWERS[tower], *([f"localise.weights={weights}"] if weights.exists() else []), *COMMON]

    def parts(self, tower: str, *changes: str) -> tuple[Trainable, Networks]:
        """The method, and its networks without trained weights."""
        experiment = load_experiment("uniadet", [*self.settings(tower), *changes])
        localiser = make_localiser("uniadet", experiment.localise)
        assert isinstance(localiser, Trainable)
        weights = self.folder / f"{tower}.safetensors"
        located = located_at(weights) if weights.exists() else locate(tower, folder=self.folder)
        return localiser, networks_of(experiment, {localiser.roles[0]: located})


def located_at(path: Path) -> LocatedWeights:
    return LocatedWeights(path, file_sha256(path), "path")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    import timm

    folder = tmp_path_factory.mktemp("uniadet")
    shutil.copy(networks.MODELS / "mini_clip.json", folder)
    (folder / "small_clip.json").write_text(json.dumps(SMALL_CLIP))
    torch.manual_seed(0)
    clip = open_clip.CLIP(SMALL_CLIP["embed_dim"], SMALL_CLIP["vision_cfg"], SMALL_CLIP["text_cfg"])
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    for name, network in (("small", clip), ("vit_tiny_patch16_224", vit)):
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    save_file(mini_clip_state(), folder / "mini.safetensors")
    generate_dataset(folder / "data", categories=("carpet", "nut"), good=1, defective=2, size=96, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MODELS", folder)
        yield Place(folder)


@pytest.fixture
def run(cli: Cli, place: Place) -> Callable[..., Result]:
    """``cascade run uniadet`` on a tower, with the vectors of a file."""

    def call(tower: str, adapter: Path, *changes: str, out: str = "run") -> Result:
        chosen = [*place.settings(tower), f"localise.adapter={adapter}", *changes]
        given = [part for each in chosen for part in ("--set", each)]
        return cli("run", "uniadet", "--dataset", place.folder / "data", "--store", "store", "--out", out, *given)

    return call


def noise(localiser: Trainable, own: Networks) -> dict[str, torch.Tensor]:
    """What is seen in two images of noise."""
    rng = np.random.default_rng(0)
    squares = [rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(2)]
    inputs = torch.stack([localiser.inputs([square])[0] for square in squares])
    return {name: values.clone() for name, values in localiser.look(own, [inputs]).items()}


def with_vectors(own: Networks, path: Path, vectors: ClassVectors) -> Networks:
    save_file(vectors.state_dict(), path)
    return Networks(own.config, {**own.weights, "adapter": located_at(path)}, own.device, False)


def cells_and_image(looks: dict[str, torch.Tensor], layer: int, index: int) -> tuple[NDArray, NDArray]:
    """[B, grid², C] and [B, C] float64."""
    if f"tokens_{SIDE}" in looks:
        tokens = looks[f"tokens_{SIDE}"][:, index].double().numpy()
        return tokens[:, 1:], tokens[:, 0]
    level = looks[f"level_{layer}"].double().numpy()
    return level.reshape(*level.shape[:2], -1).transpose(0, 2, 1), level.mean(axis=(2, 3))


def cosines(features: NDArray, vectors: NDArray) -> NDArray:
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return unit @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T / 0.07


def upsampled(grid: NDArray, size: int) -> NDArray:
    """[..., size, size] bilinearly between centres of cells, from [..., g, g]; the border is repeated."""
    g = grid.shape[-1]
    at = ((np.arange(size) + 0.5) * g / size - 0.5).clip(0, g - 1)
    low = np.minimum(np.floor(at).astype(int), max(g - 2, 0))
    weights = np.zeros((size, g))
    weights[np.arange(size), low] = 1 - (at - low)
    weights[np.arange(size), np.minimum(low + 1, g - 1)] += at - low
    found: NDArray = np.einsum("sg,...gh,th->...st", weights, grid, weights)
    return found


@pytest.mark.parametrize("tower", ["small", "efficientnet_lite0"])
@pytest.mark.parametrize("score", ["class", "class+map"])
def test_maps_scores_and_loss_are_those_of_plain_numpy(place: Place, tmp_path: Path, tower: str, score: str) -> None:
    localiser, own = place.parts(tower, f"localise.image_score={score}")
    looks = noise(localiser, own)
    torch.manual_seed(1)
    module = localiser.untrained(own)
    arrays, scores = localiser.compare(with_vectors(own, tmp_path / "v.safetensors", module), looks, None)

    state = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}
    maps, margins, probabilities, terms = [], [], [], []
    masks = np.zeros((2, SIDE, SIDE), bool)
    masks[0, 10:50, 20:90] = True
    for index, layer in enumerate(localiser.layers):
        cells, image = cells_and_image(looks, layer, index)
        logits = cosines(cells, state[f"segmentation.{index}"])
        grid = round(logits.shape[1] ** 0.5)
        logits = upsampled(logits.transpose(0, 2, 1).reshape(2, 2, grid, grid), SIDE)
        whole = cosines(image, state[f"classification.{index}"])
        maps.append(softmax(logits, axis=1))
        margins.append(logits[:, 1] - logits[:, 0])
        probabilities.append(softmax(whole, axis=1)[:, 1])
        chosen = np.where(masks, maps[-1][:, 1], maps[-1][:, 0])
        dice = [
            1 - (2 * (p * y).sum((1, 2)) + 1) / (p.sum((1, 2)) + y.sum((1, 2)) + 1)
            for p, y in ((maps[-1][:, 1], masks), (maps[-1][:, 0], ~masks))
        ]
        entropy = -log_softmax(whole, axis=1)[[0, 1], [1, 0]]
        terms.append(
            entropy.mean() + (-((1 - chosen) ** 2) * np.log(chosen)).mean() + np.mean(dice[0]) + np.mean(dice[1])
        )
    expected, margin = np.mean(maps, axis=0)[:, 1], np.mean(margins, axis=0)
    for number in range(2):
        found = localiser.map_of({name: values[number] for name, values in arrays.items()}, (SIDE, SIDE))
        np.testing.assert_allclose(found.values, expected[number], atol=2e-5)
        np.testing.assert_allclose(found.ranking, margin[number], atol=2e-4)
    image = np.mean(probabilities, axis=0)
    np.testing.assert_allclose(
        scores, image if score == "class" else (image + expected.max(axis=(1, 2))) / 2, atol=2e-5
    )
    loss = localiser.loss(module, own, looks, None, torch.from_numpy(masks))
    assert float(loss.detach()) == pytest.approx(np.mean(terms), abs=1e-3)


def test_the_parameters_are_as_many_as_published() -> None:
    """0.02 M on the blocks of ViT-L, 0.015 M on features of 768."""
    defaults = load_experiment("uniadet").localise
    assert isinstance(defaults.sides, tuple)
    layers = make_localiser("uniadet", defaults).layers
    sizes = [sum(value.numel() for value in ClassVectors([width] * len(layers)).parameters()) for width in (1024, 768)]
    assert sizes == [20_480, 15_360]


def pictures() -> tuple[list[NDArray[np.uint8]], torch.Tensor]:
    """Four squares of noise on a ground of their own, three with a darker rectangle; and the masks."""
    rng = np.random.default_rng(4)
    squares, masks = [], torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    for number, box in enumerate([(16, 32, 64, 80), (48, 16, 112, 64), (32, 64, 80, 128), None]):
        square = rng.integers(120, 240, 3) + rng.integers(-15, 16, (SIDE, SIDE, 3))
        if box is not None:
            rows, columns = slice(box[0], box[2]), slice(box[1], box[3])
            square[rows, columns] = rng.integers(0, 60, (box[2] - box[0], box[3] - box[1], 3))
            masks[number, rows, columns] = True
        squares.append(square.clip(0, 255).astype(np.uint8))
    return squares, masks


@pytest.mark.parametrize("tower", ["mini", "efficientnet_lite0"])
def test_four_images_are_learnt_by_heart(place: Place, tmp_path: Path, tower: str) -> None:
    localiser, own = place.parts(tower, *(["localise.layers=[1,2,3]"] if tower != "mini" else []))
    squares, masks = pictures()
    inputs = torch.stack([localiser.inputs([square])[0] for square in squares])
    looks = {name: values.clone() for name, values in localiser.look(own, [inputs]).items()}
    torch.manual_seed(2)
    module = localiser.untrained(own)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(200):
        optimiser.zero_grad()
        localiser.loss(module, own, looks, None, masks).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    arrays, scores = localiser.compare(with_vectors(own, tmp_path / "v.safetensors", module), looks, None)
    maps = [localiser.map_of({k: v[number] for k, v in arrays.items()}, (SIDE, SIDE)).values for number in range(4)]
    precision, recall, _ = precision_recall_curve(masks.numpy().ravel(), np.stack(maps).ravel())
    assert (2 * precision * recall / (precision + recall)).max() > 0.9
    assert scores[3] < scores[:3].min()


@pytest.mark.parametrize("tower", TOWERS)
def test_a_training_and_a_run_of_its_weights(
    cli: Cli, place: Place, run: Callable[..., Result], tmp_path: Path, tower: str
) -> None:
    """``cascade train uniadet`` with a learning rate of nearly nothing gives back its seed's vectors, bit by bit."""
    given = [part for each in place.settings(tower) for part in ("--set", each)]
    recipe = [part for each in ("epochs=1", "learning_rate=1e-30", "weight_decay=0.0") for part in ("--train", each)]
    out = tmp_path / "vectors.safetensors"
    data = place.folder / "data"
    place_of = ("--experiment", "uniadet", "--dataset", data, "--store", "store", "--out", out)
    trained = cli("train", "uniadet", *place_of, *given, *recipe)
    assert trained.code == 0, trained.err
    localiser, own = place.parts(tower)
    torch.manual_seed(42)  # of the recipe
    expected = localiser.untrained(own).state_dict()
    assert load_file(out).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in load_file(out).items())
    assert "optimiser adamw" in out.with_suffix(".md").read_text()

    assert "trained on 6 of the 6 images" in run(tower, out).refusal()
    unknown = tmp_path / "foreign.safetensors"
    save_file(load_file(out), unknown)
    done = run(tower, unknown)
    assert done.code == 0, done.err
    assert set(pd.read_csv("run/results.csv")["localiser"]) == {"uniadet"}
    assert run(tower, unknown, "localise.keep=tokens", out="kept").code == 0
    images, kept = (pd.read_parquet(f"{name}/images.parquet").set_index("path") for name in ("run", "kept"))
    assert np.allclose(images["max_score"], kept["max_score"], atol=5e-3)
    settings = [*place.settings(tower), f"localise.adapter={unknown}"]
    segmenter = Segmenter.from_preset("uniadet", settings=settings, device="cpu")
    for path, row in images.iterrows():
        found = segmenter.predict(data / str(path))
        assert found.score == pytest.approx(row["image_score"], abs=2e-3)
        assert float(found.map.max()) == pytest.approx(row["max_score"], abs=2e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fc.0.weight": (128, 128)}, "found fc.0.weight beside"),
        ({"classification.1": None}, "found no classification.1"),
        ({"classification.0": (2, 65), "segmentation.0": (2, 65)}, "widths [65, 64] do not fit localise.layers [1, 2]"),
        ({"classification.0": (3, 64), "segmentation.0": (3, 64)}, "not twice [2, width]"),
    ],
)
def test_other_weights_are_refused(
    place: Place, run: Callable[..., Result], tmp_path: Path, change: dict[str, tuple[int, ...] | None], said: str
) -> None:
    localiser, own = place.parts("mini")
    state = dict(localiser.untrained(own).state_dict())
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)
    save_file(state, tmp_path / "other.safetensors")
    refused = run("mini", tmp_path / "other.safetensors").refusal()
    assert said in refused
    assert "other.safetensors" in refused
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("localise.tower=features", "no network 'mini'"),
        ("localise.layers=[1,3]", "localise.layers [1, 3]: mini has blocks 1 to 2"),
        ("localise.tower=words", "localise.tower: unknown value 'words'"),
    ],
)
def test_what_cannot_work_is_refused(run: Callable[..., Result], tmp_path: Path, change: str, said: str) -> None:
    save_file({"classification.0": torch.zeros(2, 64)}, tmp_path / "any.safetensors")
    refused = run("mini", tmp_path / "any.safetensors", change).refusal()
    assert said in refused
