"""Checkpoints that are no checkpoints: one line that names the file, nothing written, and no code of theirs run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.backbones.clip.backbone import mean_text_feature, model_config, model_names
from tests.flows.conftest import Bench, Cli, files_of, save_adapter
from tests.tiny import SMALL_CLIP

ROLES = {"sam": "embed.weights", "clip": "localise.weights", "adapter": "localise.adapter"}


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.mark}",)


def safetensors_header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


Files = dict[str, Callable[[Path, bytes], None]]
BYTES: Files = {
    "empty.safetensors": lambda path, whole: path.write_bytes(b"") and None,
    "truncated.safetensors": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]) and None,
    "cut_in_the_header.safetensors": lambda path, whole: path.write_bytes(whole[:100]) and None,
    "huge_header.safetensors": lambda path, whole: path.write_bytes((2**60).to_bytes(8, "little") + whole[8:]) and None,
    "no_json.safetensors": lambda path, whole: path.write_bytes(safetensors_header("{nothing")) and None,
    "nothing_in_it.safetensors": lambda path, whole: path.write_bytes(safetensors_header("{}")) and None,
    "empty.pth": lambda path, whole: path.write_bytes(b"") and None,
    "text.pth": lambda path, whole: path.write_text("<html>not found</html>") and None,
}
VALUES: dict[str, Any] = {
    "list.pth": [torch.zeros(2)],
    "tuple.pth": (torch.zeros(2), torch.zeros(2)),
    "none.pth": None,
    "int.pth": 3,
    "tensor.pth": torch.zeros(3),
    "no_entries.pth": {},
    "numbered.pth": {0: torch.zeros(3)},
    "list_inside.pth": {"state_dict": [torch.zeros(3)]},
    "words.pth": {"state_dict": {"a": "b"}},
    "sparse.pth": {"fc.0.weight": torch.eye(3).to_sparse(), "fc.0.bias": torch.zeros(3)},
    "complex.pth": {"fc.0.weight": torch.zeros(3, 3, dtype=torch.complex64), "fc.0.bias": torch.zeros(3)},
    "meta.pth": {"fc.0.weight": torch.zeros(3, 3, device="meta"), "fc.0.bias": torch.zeros(3)},
}


@pytest.fixture
def refused(cli: Cli, bench: Bench) -> Callable[..., str]:
    """The line about a checkpoint that cannot be used."""

    def call(*settings: str, code: int = 4) -> str:
        before = files_of(bench.store)
        result = cli(*bench.arguments(*settings), "--out", bench.store.parent / "out")
        assert result.code == code, result
        assert files_of(bench.store) == before
        assert not (bench.store.parent / "out").exists()
        return result.refusal()

    return call


@pytest.mark.parametrize("role", ROLES)
def test_a_damaged_file_is_named(refused: Callable[..., str], bench: Bench, tmp_path: Path, role: str) -> None:
    whole = next(Path(each.partition("=")[2]) for each in bench.overrides if each.startswith(ROLES[role])).read_bytes()
    for name, damage in BYTES.items():
        damage(tmp_path / name, whole)
        assert str(tmp_path / name) in refused(f"{ROLES[role]}={tmp_path / name}")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_holds_something_else_is_named(refused: Callable[..., str], tmp_path: Path, role: str) -> None:
    for name, value in VALUES.items():
        torch.save(value, tmp_path / name)
        assert str(tmp_path / name) in refused(f"{ROLES[role]}={tmp_path / name}")


@pytest.mark.parametrize("role", ROLES)
def test_no_code_in_a_file_is_run(refused: Callable[..., str], tmp_path: Path, role: str) -> None:
    malice = {"fc.0.weight": Malice(tmp_path / "mark")}
    for name in ("plain.pth", "plain.safetensors", "plain.bin", "plain.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(malice))
    for name in ("zipped.pth", "zipped.safetensors"):
        torch.save(malice, tmp_path / name)
    for path in sorted(tmp_path.glob("*.*")):
        line = refused(f"{ROLES[role]}={path}")
        assert str(path) in line
        assert "weights_only" not in line  # torch recommends to leave the protection off
    assert not (tmp_path / "mark").exists()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no file that cannot be read")
def test_a_file_that_cannot_be_read_is_named(refused: Callable[..., str]) -> None:
    assert "/proc/self/mem: cannot be read" in refused("localise.weights=/proc/self/mem")


def test_an_archive_with_code_needs_a_digest(refused: Callable[..., str], tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    assert "localise.sha256=" in refused(f"localise.weights={tmp_path / 'model.pt'}")


def test_layers_that_do_not_fit_each_other_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    good = load_file(save_adapter(tmp_path / "good.safetensors"))
    for name, change in {
        "bias": {"fc.1.bias": torch.zeros(7)},
        "vector": {"fc.0.weight": torch.zeros(7)},
        "another": {"fc.3.weight": torch.zeros(128, 32)},
        "nan": {"fc.2.bias": torch.full((128,), float("nan"))},
        "name": {"fc.9.bias": torch.zeros(7)},
    }.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(good | change, path)
        assert str(path) in refused(f"localise.adapter={path}")


@pytest.mark.parametrize(
    "training",
    [
        "{",
        "[]",
        "3",
        '{"dataset": 3}',
        '{"image_ids": {"a": 1}}',
        '{"start": [1]}',
        '{"categories": "wood"}',
        "[" * 9000,
    ],
)
def test_an_adapter_that_cannot_say_what_it_was_trained_on_is_refused(
    refused: Callable[..., str], tmp_path: Path, training: str
) -> None:
    good = load_file(save_adapter(tmp_path / "good.safetensors"))
    save_file(good, tmp_path / "bad.safetensors", metadata={"training": training})
    line = refused(f"localise.adapter={tmp_path / 'bad.safetensors'}")
    assert "training" in line
    assert str(tmp_path / "bad.safetensors") in line


def test_an_adapter_of_other_blocks_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "trained.safetensors", {"backbone": "mini", "layers": [1, 2]})
    line = refused(f"localise.adapter={path}", "localise.layers=[2]")
    assert "was trained with localise.layers [1, 2], not [2]" in line
    other = save_adapter(tmp_path / "other.safetensors", {"backbone": "ViT-L-14", "layers": [1, 2]})
    assert "localise.backbone ViT-L-14, not mini" in refused(f"localise.adapter={other}")


def test_an_adapter_of_another_activation_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "trained.safetensors", {"backbone": "mini", "activation": "quickgelu"})
    line = refused(f"localise.adapter={path}")
    assert "was trained with localise.activation quickgelu, not gelu; set that, or use another adapter" in line


def test_positions_of_another_shape_are_refused(refused: Callable[..., str], bench: Bench, tmp_path: Path) -> None:
    clip = load_file(next(each.partition("=")[2] for each in bench.overrides if each.startswith("localise.weights")))
    for number, shape in enumerate([(3,), (2, 3, 4), (12, 128), (0, 128)]):
        path = tmp_path / f"{number}.safetensors"
        save_file(clip | {"visual.positional_embedding": torch.zeros(shape)}, path)
        assert str(path) in refused(f"localise.weights={path}")


@pytest.mark.parametrize(
    ("backbone", "parts"),
    [
        ("RN50", ["cannot be read", "ResNet", "ViT-L-14-336", "mini"]),
        (
            "convnext_base",
            ["cannot be read", "'convnext_base' of timm, has no row of equal blocks", "PE-Core-L-14-336"],
        ),
        ("nllb-clip-base-siglip", ["cannot be read", "text tower", "downloaded", "mini"]),
        ("ViT-B-16-SigLIP2", ["cannot be asked", "timm/ViT-B-16-SigLIP2", "uniadet", "did you mean 'ViT-B-16"]),
        ("ViT-L-14-CLIPA", ["cannot be asked", "downloaded"]),
        ("coca_ViT-L-14", ["cannot be read", "did you mean 'ViT-L-14'"]),
        ("hf-hub:someone/model", ["no model"]),
        ("../models/mini", ["no model"]),
    ],
)
@pytest.mark.parametrize("own_weights", [True, False])
def test_a_tower_that_cannot_be_read_says_which_can(
    refused: Callable[..., str], backbone: str, parts: list[str], own_weights: bool
) -> None:
    line = refused(f"localise.backbone={backbone}", *([] if own_weights else ["localise.weights=null"]), code=2)
    assert all(part in line for part in parts), line


def test_a_name_with_quickgelu_asks_for_that_activation(
    refused: Callable[..., str], cli: Cli, bench: Bench, tmp_path: Path
) -> None:
    name = "localise.backbone=ViT-L-14-336-quickgelu"
    assert "set localise.activation=quickgelu" in refused(name, code=2)
    chosen = (name, "localise.activation=quickgelu", "localise.image_side=518")
    assert "does not fit" in refused(*chosen)  # the weights are another model's
    registered = ("localise.pretrained=openai", "localise.weights=null")
    assert "weights fetch ViT-L-14-336/openai" in refused(*chosen, *registered)


def test_all_missing_weights_are_listed_at_once(refused: Callable[..., str], tmp_path: Path) -> None:
    sam = ("embed.backbone=vit_b", "embed.weights=null")
    clip = ("localise.backbone=ViT-L-14-336", "localise.pretrained=openai", "localise.weights=null")
    line = refused(*sam, *clip, "localise.adapter=null")
    assert line.startswith("error: 3 checkpoints cannot be used: (1) ")
    for part in ("cascade weights fetch vit_b", "cascade weights fetch ViT-L-14-336/openai", "cascade train april_gan"):
        assert part in line


def test_a_damaged_training_is_not_continued(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"half of it")
    for command in ("mini-clip", "mini-sam"):
        result = cli("train", command, "--out", folder, "--minutes", "0.01", "--device", "cpu")
        assert result.code == 4, result
        assert "checkpoint.pt: damaged" in result.refusal()


@pytest.mark.parametrize("context", [77, 16])
def test_words_have_the_length_that_the_model_takes(context: int) -> None:
    config = SMALL_CLIP
    text = config["text_cfg"] | {"context_length": context}
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text).eval()
    sentence = "a photo of a damaged bottle"
    expected = model.encode_text(open_clip.SimpleTokenizer(context_length=context)([sentence]), normalize=True)[0]
    torch.testing.assert_close(mean_text_feature(model, [sentence]), expected.detach())


def test_every_model_that_can_be_read_has_the_words_of_clip() -> None:
    for name in model_names():
        tokenizer = open_clip.get_tokenizer(name)
        assert type(tokenizer) is open_clip.SimpleTokenizer
        text = model_config(name)["text_cfg"]
        assert tokenizer.context_length == text["context_length"]
        assert "tokenizer_kwargs" not in text
