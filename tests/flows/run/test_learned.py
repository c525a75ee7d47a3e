"""Localisers with learned prompts, by command and from Python: what they learn, what they keep, what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from sklearn.metrics import precision_recall_curve

from cascade import Segmenter
from cascade.configs.loader import PRESETS, load_experiment
from cascade.flows.generate import generate_dataset
from cascade.localisers import make_localiser
from cascade.localisers.af_clip import AfClip
from cascade.localisers.anomaly_clip import AnomalyClip
from cascade.localisers.cross_modal import CrossModal
from cascade.localisers.learned_prompts import LearnedPrompts
from cascade.localisers.neighbour_tokens import AfAdapter
from cascade.localisers.protocol import Trainable
from cascade.storage.weights import SHIPPED_FOLDER, LocatedWeights, file_sha256
from cascade.tasks.execution import networks
from cascade.tasks.execution.networks import Networks, networks_of
from tests.flows.conftest import Cli, Result
from tests.tiny import SMALL_CLIP

GRID = 8
"""Cells along a side of the square input."""

SIDES = {"small": GRID * 16, "mini": GRID * 8}
COMMON = ("score.frame=64", "runtime.device=cpu")
LAYERS = {"small": "localise.layers=[8]", "mini": "localise.layers=[1,2]"}
ON = [
    ("anomaly_clip", "small"),
    ("af_clip", "small"),
    ("af_clip", "mini"),
    ("clipsam_umci", "small"),
    ("clipsam_umci", "mini"),
]
STEPS = {"clipsam_umci": "umci-our-reading"}
"""Names of the maps in the tables, where they are not ``map``."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a dataset, a random CLIP ``small``, ``mini`` as it ships, and untrained weights for each method."""
    folder = tmp_path_factory.mktemp("learned")
    shutil.copy(networks.MODELS / "mini_clip.json", folder)
    (folder / "small_clip.json").write_text(json.dumps(SMALL_CLIP))
    torch.manual_seed(0)
    clip = open_clip.CLIP(SMALL_CLIP["embed_dim"], SMALL_CLIP["vision_cfg"], SMALL_CLIP["text_cfg"])
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "small.safetensors")
    shutil.copy(SHIPPED_FOLDER / "mini-clip" / "mini_clip.safetensors", folder / "mini.safetensors")
    generate_dataset(folder / "data", categories=("carpet", "nut"), good=1, defective=2, size=96, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MODELS", folder)
        for method, backbone in ON:
            torch.manual_seed(1)
            localiser, own = parts(folder, method, backbone)
            save_file(localiser.untrained(own).state_dict(), folder / f"{method}_{backbone}.safetensors")
        yield folder


def settings(place: Path, backbone: str) -> list[str]:
    """Another CLIP in place of a preset's."""
    weights = f"localise.weights={place / backbone}.safetensors"
    return [
        f"localise.backbone={backbone}",
        weights,
        f"localise.image_side={SIDES[backbone]}",
        LAYERS[backbone],
        *COMMON,
    ]


def parts(place: Path, method: str, backbone: str) -> tuple[Trainable, Networks]:
    """A method, and its networks without trained weights."""
    experiment = load_experiment(method, settings(place, backbone))
    path = place / f"{backbone}.safetensors"
    localiser = make_localiser(method, experiment.localise)
    assert isinstance(localiser, Trainable)
    return localiser, networks_of(experiment, {"clip": LocatedWeights(path, file_sha256(path), "path")})


@pytest.fixture
def run(cli: Cli, place: Path) -> Callable[..., Result]:
    """``cascade run`` of a method's preset on a small CLIP."""

    def call(method: str, backbone: str, *changes: str, out: str = "run", adapter: str | Path | None = None) -> Result:
        weights = place / f"{method}_{backbone}.safetensors" if adapter is None else adapter
        chosen = [*settings(place, backbone), f"localise.adapter={weights}", *changes]
        given = [part for each in chosen for part in ("--set", each)]
        data = [] if any(each.startswith("dataset.path") for each in changes) else ["--dataset", place / "data"]
        return cli("run", method, *data, "--store", "store", "--out", out, *given)

    return call


@pytest.mark.parametrize(("method", "backbone"), ON)
def test_a_run_and_a_segmenter_have_the_same_numbers(
    run: Callable[..., Result], place: Path, method: str, backbone: str
) -> None:
    done = run(method, backbone)
    assert done.code == 0, done.err
    results = pd.read_csv("run/results.csv")
    assert set(results["localiser"]) == {method}
    assert list(results["step"].unique()) == [STEPS.get(method, "map")]
    assert ("CLIP is told" in done.out) == (method == "clipsam_umci")  # the others name no object
    assert run(method, backbone, "localise.keep=tokens", out="kept").code == 0
    images, kept = (pd.read_parquet(f"{name}/images.parquet").set_index("path") for name in ("run", "kept"))
    assert np.allclose(images["max_score"], kept["max_score"], atol=5e-3)

    adapter = f"localise.adapter={place / f'{method}_{backbone}'}.safetensors"
    segmenter = Segmenter.from_preset(method, settings=[*settings(place, backbone), adapter], device="cpu")
    for path, row in images.iterrows():
        found = segmenter.predict(place / "data" / str(path), str(path).partition("/")[0])
        assert found.score == pytest.approx(row["image_score"], abs=2e-3)
        assert float(found.map.max()) == pytest.approx(row["max_score"], abs=2e-3)


@pytest.mark.parametrize(("method", "shape"), [("anomaly_clip", (1, 2, 8, 8)), ("af_clip", (2, 8, 8))])
def test_the_gaussian_is_measured_on_clip_s_square(method: str, shape: tuple[int, ...]) -> None:
    """In a frame of another size the map is the same, smoothed as far as the published one."""
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    plain, published = (load_experiment(method, changes).localise for changes in (["localise.sigma=0.0"], []))
    assert plain.key_options() != published.key_options()
    none, four = (make_localiser(method, each).map_of({"logits": logits}, (518, 518)) for each in (plain, published))
    for name in ("values", "ranking"):
        unsmoothed = getattr(none, name)
        np.testing.assert_allclose(getattr(four, name), gaussian_filter(unsmoothed, 4.0), atol=1e-5)
    small = make_localiser(method, published).map_of({"logits": logits}, (259, 259)).values
    pairs = four.values.reshape(259, 2, 259, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(small, pairs, atol=1e-5)


def pictures(side: int) -> tuple[list[NDArray[np.uint8]], torch.Tensor]:
    """Four squares of noise on a ground of their own, three with a darker rectangle of whole cells; and the masks."""
    rng, cell = np.random.default_rng(4), side // GRID
    squares, masks = [], torch.zeros(4, side, side, dtype=torch.bool)
    for number, box in enumerate([(1, 2, 4, 5), (3, 1, 7, 4), (2, 4, 5, 8), None]):
        square = rng.integers(120, 240, 3) + rng.integers(-15, 16, (side, side, 3))
        if box is not None:
            rows, columns = slice(box[0] * cell, box[2] * cell), slice(box[1] * cell, box[3] * cell)
            square[rows, columns] = rng.integers(0, 60, square[rows, columns].shape)
            masks[number, rows, columns] = True
        squares.append(square.clip(0, 255).astype(np.uint8))
    return squares, masks


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("anomaly_clip", "small"),
        pytest.param("af_clip", "small", marks=pytest.mark.slow),
        ("clipsam_umci", "small"),
        ("clipsam_umci", "mini"),
    ],
)
def test_four_images_are_learnt_by_heart_and_nothing_frozen_moves(
    place: Path, tmp_path: Path, method: str, backbone: str
) -> None:
    localiser, own = parts(place, method, backbone)
    side = SIDES[backbone]
    squares, masks = pictures(side)
    inputs = torch.stack([localiser.inputs([square])[0] for square in squares])
    looks = {name: values.clone() for name, values in localiser.look(own, [inputs]).items()}
    words = torch.nn.functional.normalize(torch.randn(128, 2, generator=torch.Generator().manual_seed(5)), dim=0)
    texts = words.expand(4, -1, -1) if localiser.WORDS else None
    frozen = deepcopy(own.clip(side).state_dict())
    torch.manual_seed(2)
    module = localiser.untrained(own)
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = localiser.loss(module, own, looks, texts, masks)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for name, value in own.clip(side).state_dict().items():
        assert torch.equal(value, frozen[name]), name

    path = tmp_path / "trained.safetensors"
    save_file(module.state_dict(), path)
    trained = Networks(own.config, {**own.weights, "adapter": _located(path)}, own.device, False)
    arrays, scores = localiser.compare(trained, looks, texts)
    maps = [localiser.map_of({k: v[number] for k, v in arrays.items()}, (side, side)).values for number in range(4)]
    precision, recall, _ = precision_recall_curve(masks.numpy().ravel(), np.stack(maps).ravel())
    assert (2 * precision * recall / (precision + recall).clip(1e-9)).max() > 0.9
    if not localiser.WORDS:  # CLIP's own score of the words is not trained
        assert scores[3] < scores[:3].min()
    read = localiser.untrained(own)
    read.load_state_dict(load_file(path))
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in read.state_dict().items())


def _changed(path: Path, change: dict[str, tuple[int, ...] | None], folder: Path) -> Path:
    """Weights with entries of other shapes, or without them."""
    state = load_file(path)
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)
    save_file(state, folder / "other.safetensors")
    return folder / "other.safetensors"


def _located(path: Path) -> LocatedWeights:
    return LocatedWeights(path, file_sha256(path), "path")


@pytest.mark.parametrize(("method", "backbone"), ON)
def test_what_a_training_writes_is_run(
    cli: Cli, run: Callable[..., Result], place: Path, method: str, backbone: str
) -> None:
    chosen = [part for each in settings(place, backbone) for part in ("--set", each)]
    recipe = ("--train", "epochs=2", "--train", "batch_size=4", "--train", "held_out=0.5", "--train", "mosaic=0.5")
    to = ("--dataset", place / "data", "--experiment", method, "--store", "store", "--out", "trained.safetensors")
    done = cli("train", method, *to, *chosen, *recipe)
    assert done.code == 0, done.err
    assert "epoch 2 of 2" in done.out
    seen = run(method, backbone, adapter="trained.safetensors").refusal()
    assert "was trained on" in seen
    generate_dataset(Path("other"), categories=("tile",), good=1, defective=1, size=96, seed=9)
    found = run(method, backbone, f"dataset.path={Path('other').resolve()}", adapter="trained.safetensors")
    assert found.code == 0, found.err


def test_the_parameters_of_anomaly_clip_are_as_many_as_published() -> None:
    prompts = LearnedPrompts(768)
    sizes = {name: value.numel() for name, value in prompts.named_parameters()}
    assert sizes["ctx_pos"] + sizes["ctx_neg"] == 18_432
    assert sum(size for name, size in sizes.items() if name.startswith("compound_prompts_text.")) == 24_576
    assert len(sizes) == 10


def test_the_parameters_of_af_clip_are_as_many_as_published() -> None:
    adapter = AfAdapter(1024, 768)
    assert adapter.state_prompt_embedding.numel() == 9_216
    assert sum(value.numel() for value in adapter.adaptor.parameters()) == 2_100_224


def test_the_two_files_of_af_clip_s_authors_are_joined_as_the_preset_says(
    place: Path, run: Callable[..., Result], tmp_path: Path
) -> None:
    ours = load_file(place / "af_clip_small.safetensors")
    vectors = ours.pop("state_prompt_embedding")
    torch.save(torch.nn.Parameter(vectors), tmp_path / "NAME_prompt.pt")
    torch.save({name.removeprefix("adaptor."): value for name, value in ours.items()}, tmp_path / "NAME_adaptor.pt")
    apart = run("af_clip", "small", adapter=tmp_path / "NAME_adaptor.pt").refusal()
    assert "preset af_clip joins the authors' two files" in apart
    text = (PRESETS / "af_clip.yaml").read_text()
    code = text[text.index("torch.save(") : text.index("name: af_clip")].replace("\n#", "\n")
    exec(code.replace('"NAME', f'"{tmp_path}/NAME'), {"torch": torch})
    assert run("af_clip", "small", out="ours").code == 0
    assert run("af_clip", "small", out="theirs", adapter=tmp_path / "NAME.pt").code == 0
    first, second = (pd.read_csv(f"{name}/results.csv") for name in ("ours", "theirs"))
    pd.testing.assert_frame_equal(first, second)


def test_the_file_of_anomaly_clip_s_authors_is_read(place: Path, run: Callable[..., Result], tmp_path: Path) -> None:
    """It holds buffers and projections beside the vectors, which their forward pass does not read."""
    ours = load_file(place / "anomaly_clip_small.safetensors")
    beside = {
        "compound_prompt_projections.0.weight": torch.randn(40, 32),
        "compound_prompt_projections.0.bias": torch.randn(40),
        "token_prefix_pos": torch.randn(1, 1, 1, 32),
        "token_suffix_neg": torch.randn(1, 1, 64, 32),
        "tokenized_prompts_pos": torch.ones(1, 1, 77, dtype=torch.int64),
    }
    torch.save({"prompt_learner": ours | beside}, tmp_path / "epoch_15.pth")
    assert run("anomaly_clip", "small", out="ours").code == 0
    assert run("anomaly_clip", "small", out="theirs", adapter=tmp_path / "epoch_15.pth").code == 0
    first, second = (pd.read_csv(f"{name}/results.csv") for name in ("ours", "theirs"))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fc.0.weight": (128, 128)}, "expected ctx_pos, ctx_neg and compound_prompts_text.<i>; found fc.0.weight"),
        ({"ctx_pos": None}, "found ctx_pos missing"),
        ({"compound_prompts_text.0": None}, "found no compound_prompts_text"),
        ({"ctx_neg": (1, 1, 3, 32)}, "prompts of shapes (1, 1, 12, 32), (1, 1, 3, 32), (4, 32)"),
        ({"ctx_pos": (1, 1, 12, 48), "ctx_neg": (1, 1, 12, 48), "compound_prompts_text.0": (4, 48)}, "has width 32"),
        ({"compound_prompts_text.1": (4, 32)}, "prompts for 3 blocks, and the text tower of this CLIP model has 2"),
        ({"compound_prompts_text.1": (5, 32)}, "prompts that do not fit each other"),
    ],
)
def test_other_weights_than_those_of_anomaly_clip_are_refused(
    place: Path, run: Callable[..., Result], tmp_path: Path, change: dict[str, tuple[int, ...] | None], said: str
) -> None:
    changed = _changed(place / "anomaly_clip_small.safetensors", change, tmp_path)
    refused = run("anomaly_clip", "small", adapter=changed).refusal()
    assert said in refused
    assert "other.safetensors" in refused
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"ctx_pos": (1, 1, 12, 32)},
            "expected state_prompt_embedding and adaptor.attention.<...> in one file; found ctx",
        ),
        ({"state_prompt_embedding": None}, "found state_prompt_embedding missing"),
        ({"state_prompt_embedding": (1, 12, 48)}, "for towers of widths 128 (image) and 48 (text)"),
        ({"adaptor.attention.attn.to_q.weight": (100, 128)}, "expected [1, n, text width] and [heads x 64, width]"),
        ({"adaptor.attention.norm.bias": (64,)}, "AF-CLIP's weights do not fit each other"),
        ({"state_prompt_embedding": (1, 75, 32)}, "prompts of 75 vectors, and this CLIP model takes 77 tokens"),
    ],
)
def test_other_weights_than_those_of_af_clip_are_refused(
    place: Path, run: Callable[..., Result], tmp_path: Path, change: dict[str, tuple[int, ...] | None], said: str
) -> None:
    refused = run("af_clip", "small", adapter=_changed(place / "af_clip_small.safetensors", change, tmp_path)).refusal()
    assert said in refused
    assert "other.safetensors" in refused
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ctx_pos": (1, 1, 12, 32)}, "expected stages.<i>.<part>; found ctx_pos"),
        ({"stages.0.rows.weight": None}, "found stages.0.rows.weight missing"),
        ({"stages.0.project.weight": (128, 64)}, "projections of shapes [(128, 64)] do not fit localise.layers [8]"),
        ({"stages.0.norm.bias": (64,)}, "weights that do not fit each other"),
    ],
)
def test_other_weights_than_those_of_clipsam_umci_are_refused(
    place: Path, run: Callable[..., Result], tmp_path: Path, change: dict[str, tuple[int, ...] | None], said: str
) -> None:
    changed = _changed(place / "clipsam_umci_small.safetensors", change, tmp_path)
    assert said in run("clipsam_umci", "small", adapter=changed).refusal()
    assert not Path("run").exists()


def test_the_strips_and_scales_of_clipsam_umci_reach_beyond_a_cell_and_hear_the_words() -> None:
    torch.manual_seed(0)
    stages, tokens = CrossModal(1, 16, 32).eval(), torch.randn(1, 1 + 12 * 12, 16)
    words = torch.nn.functional.normalize(torch.randn(1, 32, 2), dim=1)
    with torch.inference_mode():
        before = stages([tokens], words)[0, 0]
        changed = tokens.clone()
        changed[0, 1 + 12 * 2 + 7] += 3  # row 2, column 7
        moved = (stages([changed], words)[0, 0] - before).abs().amax(dim=0)
        swapped = (stages([tokens], words.flip(2).roll(1, dims=1))[0, 0] - before).abs().amax(dim=0)
    assert moved[2].min() > 10 * moved[11, 0]  # along its row
    assert moved[:, 7].min() > 10 * moved[11, 0]  # and its column
    assert swapped.min() > 1e-4


@pytest.mark.parametrize("method", ["af_clip", "anomaly_clip"])
def test_half_precision_looks_alike(place: Path, method: str) -> None:
    localiser, own = parts(place, method, "small")
    assert isinstance(localiser, AfClip | AnomalyClip)
    inputs = torch.stack([localiser.inputs([square])[0] for square in pictures(SIDES["small"])[0]])
    full, half = (replace(localiser, precision=each).look(own, [inputs]) for each in ("fp32", "bf16"))
    for name, values in full.items():
        apart = (half[name] - values).square().mean().sqrt()
        assert 0 < apart < 0.03 * values.std(), name


def test_a_clip_without_attention_is_refused_by_anomaly_clip(cli: Cli, run: Callable[..., Result], place: Path) -> None:
    untrained = cli("train", "anomaly_clip", "--dataset", place / "data").refusal()
    assert "anomaly_clip reads the attention of CLIP's blocks, and 'mini' cannot be read so" in untrained
    refused = run("anomaly_clip", "mini", adapter=place / "anomaly_clip_small.safetensors").refusal()
    assert "anomaly_clip reads the attention of CLIP's blocks, and 'mini' cannot be read so" in refused
    assert "ViT-L-14-336" in refused
    assert not Path("run").exists()


@pytest.mark.parametrize("method", ["af_clip", "anomaly_clip", "clipsam_umci"])
def test_a_preset_whose_weights_are_not_here_says_which(cli: Cli, place: Path, method: str) -> None:
    refused = cli("run", method, "--dataset", place / "data").refusal()
    assert "2 checkpoints cannot be used" in refused
    assert "ViT-L-14-336/openai" in refused
    assert f"localise.adapter: {method} on ViT-L-14-336 needs trained weights" in refused
