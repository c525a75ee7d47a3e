"""Each stage alone: made-up artefacts stand in the store for what it reads, and few numbers for what it makes of them.

So a change of one stage shows in that stage and in no other. All that is made up comes from numpy's old generator,
whose numbers are the same for good.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from cascade.backbones.sam.build import build_sam
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import STAGES
from cascade.flows.run.prepare import prepare
from cascade.storage.artefacts import ArraySpec, Item
from cascade.storage.keys import StageKey
from cascade.tasks import words
from cascade.tasks.stage import Run, Stage
from tests.tiny import SMALL_CLIP

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
NAMES = ("words", *BY_NAME)
SIZES = {"good/0": (80, 120), "good/1": (96, 96), "bent/0": (100, 64), "bent/1": (72, 90)}
READS = {
    "localise": ("words", "tokens"),
    "prompt": ("embed", "localise"),
    "refine": ("embed", "localise", "prompt"),
    "score": ("localise", "prompt", "refine"),
    "tally": ("score",),
    "aggregate": ("score", "tally"),
}
SMALL = (
    "localise.weights={clip}",
    "localise.adapter={adapter}",
    "embed.weights={sam}",
    "localise.backbone=small",
    "localise.layers=[2,4,6,8]",
    "score.weight=0.5",
    "localise.image_side=96",
    "localise.more_sides=[]",
    "prompt.frame=96",
    "prompt.spacing.rank=40",
    "prompt.dilation.size=9",
    "score.frame=64",
)
ROUNDING = {"spread": 1e-3, "means": 1e-3, "entries": 1e-2}
"""What another processor may change of a number, in standard deviations of the array that it tells of."""

Summary = Mapping[str, list[float]]
Digest = Mapping[str, Summary]


@dataclass
class Desk:
    """A folder with images and networks, in which single stages are computed.

    Its CLIP is an ordinary one, ``small``; the folder has to take the place of ``networks.MODELS``.
    """

    folder: Path
    _found: dict[tuple[str, ...], dict[str, Item]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _draw_images(self.folder / "data")
        config = SMALL_CLIP
        (self.folder / "small_clip.json").write_text(json.dumps(config))
        clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=False)
        sam, tower = build_sam("mini").state_dict(), clip.state_dict()
        shapes = {"weight": (config["embed_dim"], config["vision_cfg"]["width"]), "bias": (config["embed_dim"],)}
        layers = {f"fc.{number}.{part}": torch.empty(shape) for number in range(4) for part, shape in shapes.items()}
        for name, state in {"sam": sam, "clip": tower, "adapter": layers}.items():
            save_file(_filled(state), self._file(name))
            save_file(_filled(state, seed=1), self._file(f"other_{name}"))
        save_file(_without_masks(_filled(sam)), self._file("shy"))
        self._file("sentences").write_text(
            'normal: ["{}"]\nabnormal: ["broken {}", "{} with a hole"]\ntemplates: ["a photo of a {}."]\n'
        )

    def run(self, store: str, *overrides: str) -> Run:
        """The preset ``mini`` in small; ``{clip}`` and the like in an override name the files of this folder."""
        files = {path.stem: path for path in self.folder.iterdir() if path.is_file()}
        chosen = [each.format(**files) for each in (*SMALL, *overrides)]
        experiment = load_experiment("mini", [f"dataset.path={self.folder / 'data'}", *chosen])
        return prepare(experiment, self.folder / f"store-{store}", Settings(weights=self.folder)).run

    def items(self, name: str, *overrides: str) -> dict[str, Item]:
        """What a stage, or ``words``, makes of the images, by image; computed once."""
        known = (name, *overrides)
        if known not in self._found:
            run = self.run(*known)  # what was computed in one store stands in no other for what is made up
            self._found[known] = _words_of(run) if name == "words" else _computed(run, BY_NAME[name])
        return self._found[known]

    def key(self, name: str, *overrides: str) -> StageKey:
        """The key of a stage, or of ``words``."""
        run = self.run(name, *overrides)
        return words.key(run) if name == "words" else BY_NAME[name].key(run)

    def digest(self, name: str, *overrides: str) -> Digest:
        """The same in few numbers."""
        return digest(self.items(name, *overrides))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.{'yaml' if name == 'sentences' else 'safetensors'}"


def digest(items: Mapping[str, Item]) -> Digest:
    """Few numbers that say what items hold, by the name of an array of an image, or of a value in their records."""
    records: dict[str, list[float]] = {}
    found = {f"{image} {name}": _summary(value) for image, item in items.items() for name, value in item.arrays.items()}
    for _, item in sorted(items.items()):
        for name, leaf in _leaves(item.record):
            records.setdefault(name, []).append(leaf)
    return found | {name: _summary(np.array(values)) for name, values in records.items()}


def deviations(found: Digest, kept: Digest) -> list[str]:
    """Names under which two digests differ by more than rounding."""
    return [name for name in sorted({*found, *kept}) if not _alike(found.get(name), kept.get(name))]


def differ(first: Mapping[str, Item], second: Mapping[str, Item]) -> bool:
    """Whether items hold different things: another record, or an array of another shape or far from the other."""
    if first.keys() != second.keys() or any(
        first[image].arrays.keys() != second[image].arrays.keys() for image in first
    ):
        return True
    if deviations(
        *(digest({image: Item({}, item.record) for image, item in each.items()}) for each in (first, second))
    ):
        return True
    return any(
        value.shape != second[image].arrays[name].shape or distances(value, second[image].arrays[name]).max() > 0.02
        for image, item in first.items()
        for name, value in item.arrays.items()
    )


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far the entries of two arrays are apart, in standard deviations of the first."""
    spread: float = first.astype(np.float64).std() or 1.0
    return np.abs(first.astype(np.float64) - second) / spread


def _alike(found: Summary | None, kept: Summary | None) -> bool:
    if found is None or kept is None or found["shape"] != kept["shape"]:
        return False
    spread = kept["spread"][0]
    return all(
        len(found[name]) == len(kept[name])
        and all(abs(a - b) <= allowed * spread + 1e-6 for a, b in zip(found[name], kept[name], strict=True))
        for name, allowed in ROUNDING.items()
    )


def _summary(values: np.ndarray) -> Summary:
    """Of an array: its standard deviation, means, and entries at even distances of what a network has made.

    The means are that of all entries, and by axis the one weighted with half a wave along it, which changes when
    entries trade places.
    """
    exact = values.astype(np.float64)
    means = [exact.mean()]
    for axis, length in enumerate(exact.shape):
        wave = np.cos(np.pi * (np.arange(length) + 0.5) / length)
        means.append(np.moveaxis(exact, axis, -1).mean(axis=tuple(range(exact.ndim - 1))) @ wave / length)
    several = values.dtype in (np.float16, np.float32)
    entries = exact.ravel()[exact.size // 18 :: max(1, exact.size // 9)] if several else []
    numbers = {"spread": [exact.std()], "means": means, "entries": entries}
    rounded = {name: [float(f"{round(each, 9) + 0.0:.6g}") for each in own] for name, own in numbers.items()}
    return {"shape": list(exact.shape), **rounded}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a record, each under the names of what holds it; a word is the number of its letters' checksum."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, -1.0 if value is None else zlib.crc32(value.encode()) if isinstance(value, str) else float(value)


def _computed(run: Run, stage: Stage) -> dict[str, Item]:
    for name in READS.get(stage.name, ()):
        if name == "words":
            _plant_words(run)
        else:
            _plant(run, BY_NAME[name])
    items = stage.items(run)
    artefact = run.artefact(stage.key(run))
    with artefact.writing([item.id for item in items], stage.arrays(run, items)):
        stage.compute(run, items, artefact)
    return {_image(item.record.path): artefact.read(item.id) for item in items}


def _words_of(run: Run) -> dict[str, Item]:
    classes = {"carpet", "metal plate"}
    words.text_features(run, classes)
    artefact = run.artefact(words.key(run))
    return {each: artefact.read(each) for each in classes}


def _plant_words(run: Run) -> None:
    artefact = run.artefact(words.key(run))
    if artefact.missing(["carpet"]):
        specs = {"features": ArraySpec((SMALL_CLIP["embed_dim"], 2), "float32")}
        features = _made_up("words", "features", specs["features"], "carpet")
        with artefact.writing(["carpet"], specs):
            artefact.write("carpet", {"features": features / np.linalg.norm(features, axis=0)}, {})


def _plant(run: Run, stage: Stage) -> None:
    """Made-up items of a stage, unless the store has them."""
    items = stage.items(run)
    artefact = run.artefact(stage.key(run))
    if not artefact.missing(item.id for item in items):
        return
    specs = stage.arrays(run, items)
    with artefact.writing([item.id for item in items], specs):
        for item in items:
            image = _image(item.record.path)
            record = _record(stage.name, list(SIZES).index(image), item.record.label == 1)
            arrays = {name: _made_up(stage.name, name, spec, image) for name, spec in specs.items()}
            if "regions" in arrays:  # of two regions
                positives = arrays["positives"]
                arrays["regions"] = 2 * positives / positives.sum(axis=1, keepdims=True)
            if record.get("no_prompt") and stage.name == "refine":
                arrays = {}
            artefact.write(item.id, arrays, record)


def _made_up(stage: str, name: str, spec: ArraySpec, image: str) -> np.ndarray:
    """Noise in the units of an array; SAM's logits in blocks of 16 pixels, so that a mask has parts."""
    rng = np.random.RandomState(zlib.crc32(f"{stage} {name} {image}".encode()))
    if np.dtype(spec.dtype).kind in "iu":
        return rng.randint(0, 3, spec.shape).astype(spec.dtype)
    if stage == "refine":
        *outer, height, width = spec.shape
        blocks = 4 * rng.standard_normal((*outer, height // 16, width // 16))
        return np.kron(blocks, np.ones((16, 16))).astype(spec.dtype)
    noise = rng.standard_normal(spec.shape)
    if stage == "embed":  # two things on a ground
        channels, height, width = spec.shape
        features = rng.standard_normal((2, channels, 1, 1))
        things = np.zeros((height, width), int)
        things[5:14, 6:12] = things[18:26, 12:27] = 1
        noise = 0.3 * noise + np.where(things == 1, features[1], features[0])
    return (2 * noise).astype(spec.dtype)


def _record(stage: str, number: int, defective: bool) -> dict[str, Any]:
    """What stands beside the arrays of an image: the second of two sets of points, and none for the last image."""
    points = [[10, 12], [40, 30], [22, 51], [55, 15], [8, 60], [47, 66]]
    labels, values = [1, 1, 1, 0, 0, 0], [0.9, 0.8, 0.7, 0.1, 0.2, 0.3]
    first = {"points": points, "labels": labels, "values": values, "box": [4, 6, 60, 70], "area": 90}
    second = first | {"points": [[50 - x, 62 - y] for x, y in points], "box": [20, 2, 70, 50]}
    sets = [each | {"empty_ring": False} for each in (first, second)]
    share = 0.1 + 0.2 * number
    steps = {"predicted_iou": [[0.3, 0.8, 0.6], [0.7, 0.2, 0.4], [0.5, 0.9, 0.95]], "chosen": [1, 0, 2]}
    records: dict[str, dict[str, Any]] = {
        "localise": {"image_score": share},
        "prompt": {"threshold": 0.6, "frame": [96, 96], "sets": [sets[:1], sets[1:], sets, []][number]},
        "refine": {"no_prompt": True}
        if number == 3
        else {"no_prompt": False, "box_fallback": False, "empty_ring": False, "boxes": [[], [], [[9, 9, 60, 70]]]}
        | steps,
        "score": {"frame": [64, 64], "truth": True, "regions": 2, "no_prompt": number == 3, "clip_score": share}
        | {name: [share, 0.9 - share, 0.5, share] for name in ("image_score", "max_score", "top_score", "mask_area")}
        | {"mask_iou": [0.1, 0.2, 0.3, 0.4] if defective else None, "chosen": [None, 1, 0, 2]},
        "tally": {"regions": 8},
    }
    return records.get(stage, {})


def _image(path: str) -> str:
    """``bent/0`` of ``carpet/test/bent/0.png``."""
    return "/".join(Path(path).with_suffix("").parts[-2:])


def _draw_images(folder: Path) -> None:
    """Noise in squares of four pixels, and a bright patch in two images."""
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        rng = np.random.RandomState(number)
        coarse = rng.randint(0, 200, (math.ceil(height / 4), math.ceil(width / 4), 3))
        pixels = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width].astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[20:50, 10:40] = 255
        if name.startswith("bent"):
            pixels[mask > 0] //= 2
            pixels[mask > 0] += 120
            _save(mask, folder / "carpet" / "ground_truth" / f"{name}_mask.png")
        _save(pixels, folder / "carpet" / "test" / f"{name}.png")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _without_masks(sam: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same SAM with negative logits everywhere: negative factors for features that are positive."""
    shift = {
        "output_upscaling.3.bias": 3,
        **{f"output_hypernetworks_mlps.{mask}.layers.2.bias": -5 for mask in range(4)},
    }
    return {name: value + shift.get(name.removeprefix("mask_decoder."), 0) for name, value in sam.items()}


def _filled(state: Mapping[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random numbers of the usual size in place of those of a network."""
    return {name: _weights(name, value.shape, seed) for name, value in state.items()}


def _weights(name: str, shape: Iterable[int], seed: int) -> torch.Tensor:
    shape = tuple(shape)
    noise = np.random.RandomState(zlib.crc32(f"{seed} {name}".encode())).standard_normal(shape)
    if len(shape) < 2:
        noise = 0.1 * noise + (1 if name.endswith("weight") else 0)
    else:
        noise = noise / math.sqrt(math.prod(shape[1:]))
    if (
        "output_upscaling" in name and len(shape) == 4
    ):  # the same for all pixels of a cell, so that masks have few parts
        noise = np.broadcast_to(noise[..., :1, :1] * 2, shape)
    return torch.from_numpy(np.array(noise)).float()
