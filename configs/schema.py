"""The configuration: one frozen model per stage. A default is the paper's, or the table's of the open choices A1–A20.

The choices that the paper leaves open are numbered A1 to A20 in this project's method notes; the number stands beside
each field. Every field of a stage's model is part of that stage's key, except those that cannot change its output
(``batch_size``).
"""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from cascade.storage.errors import ConfigError
from cascade.storage.paths import expanded

_MAX_PIXELS = 8192**2
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_NO_FOLDERS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.(parquet|json|lock)?", re.IGNORECASE)
"""Names of devices, names that end in a point, and those that files beside the runs may have."""

# YAML knows whole numbers, numbers, words and switches; none is taken for another one.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
Fraction = Annotated[Real, Field(ge=0.0, le=1.0)]
ClipSide = Annotated[Whole, Field(ge=16, le=4096)]
BatchSize = Annotated[Whole, Field(ge=1, le=1024)]
Precision = Literal["fp32", "bf16"]
Frame = Annotated[Whole, Field(ge=16, le=8192)] | Literal["native"]


def _folder_name(name: str) -> str:
    """A name that can be a folder on every system."""
    if not _NAME.fullmatch(name) or _NO_FOLDERS.fullmatch(name):
        raise ValueError(
            f"'{name[:100]}' cannot be a folder on every system; use letters, digits, '.', '_' and '-', "
            f"begin with a letter or digit, and give it no ending"
        )
    return name


def ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    """The same blocks, if they are in order."""
    if list(layers) != sorted(set(layers)):
        raise ValueError(f"{list(layers)}: name the blocks in ascending order, each once")
    return layers


def _expanded(value: Any) -> Any:
    return str(expanded(value)) if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_folder_name)]
UserPath = Annotated[Path, BeforeValidator(_expanded)]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def in_force(self) -> dict[str, Any]:
        """This section as plain data for a key, less the options that its other options leave without effect."""
        data = self.model_dump(mode="json", exclude=self._idle())
        return data | {name: own.in_force() for name, own in self if name in data and isinstance(own, Section)}

    def _idle(self) -> set[str]:
        """Names of the fields that change nothing beside the values that the others have."""
        return set()


class DatasetConfig(Section):
    """Which photographs are evaluated."""

    path: UserPath | None = None
    layout: Literal["auto", "mvtec", "visa", "beside", "folder", "manifest"] = "auto"
    name: str | None = Field(None, description="name in the tables; the folder's name when absent")
    split: Literal["test", "train"] = "test"
    categories: tuple[str, ...] | None = Field(None, description="only these; all when absent")
    exclude: tuple[str, ...] = Field((), description="all but these")
    words: dict[str, str] = Field(
        default_factory=dict, description="words for CLIP by category; the category's folder name when absent"
    )
    full_scale: Annotated[Real, Field(gt=0, le=2**32)] | None = Field(
        None,
        description="white of images with more than 8 bits, such as 4095; found from the whole dataset when absent",
    )
    follow_links: Switch = Field(False, description="read what symbolic links outside the dataset lead to")
    large_masks: Switch = Field(False, description="masks may mark nearly all of an image, as an inverted one would")


class EmbedConfig(Section):
    """SAM's image encoder."""

    backbone: Literal["mini", "mini_trunk", "vit_b", "vit_l", "vit_h"] = "vit_h"
    weights: str | None = Field(None, description="path of a checkpoint; the registered one when absent")
    sha256: str | None = Field(None, description="digest that the checkpoint must have")
    image: Literal["square", "stretched", "padded"] = Field(
        "square",
        description="A2: the square image of the evaluation frame, the native image stretched to SAM's square, "
        "or SAM's own scaling of the longest side with padding",
    )
    square_side: Whole = Field(518, ge=16, le=8192, description="side of the square image in pixels")
    attention: Literal["fused", "plain"] = Field(
        "fused", description="attention in one call, or as SAM publishes it; embeddings agree within rounding"
    )
    precision: Precision = "fp32"
    batch_size: BatchSize = Field(4, description="images in one pass on a GPU; on a CPU one at a time is faster")

    def _idle(self) -> set[str]:
        return set() if self.image == "square" else {"square_side"}


class Localiser(Section):
    """What every localiser has: options that say where something is, or how fast it is found, are no part of a key.

    Attributes:
        PLACES: options that say where something lies whose content is part of the key.
        LOOK: options on which depends what is seen in an image before a word is said.
        keep: whether that is kept.
    """

    PLACES: ClassVar[frozenset[str]] = frozenset({"weights", "sha256"})
    LOOK: ClassVar[tuple[str, ...]] = ()

    method: str = ""
    keep: str = "compared"
    precision: Precision = "fp32"
    batch_size: BatchSize = Field(4, description="images in one pass on a GPU; on a CPU one at a time is faster")

    def key_options(self) -> dict[str, Any]:
        """The options that are part of the key."""
        without = self.PLACES | {"keep", "batch_size"}
        return {name: value for name, value in self.in_force().items() if name not in without}

    def look_options(self) -> dict[str, Any]:
        """The options that are part of the key of what is seen before a word is said."""
        used = [name for name in self.LOOK if name not in self._idle()]
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in used}


class ClipLocaliser(Localiser):
    """What every localiser has that asks a CLIP model in words."""

    PLACES = Localiser.PLACES | {"pretrained", "prompts"}
    LOOK = ("backbone", "activation", "sides", "layers", "precision")

    backbone: str = Field("ViT-L-14-336", description="an open_clip model, or 'mini'")
    pretrained: str = Field("openai", description="open_clip tag of the weights")
    weights: str | None = Field(None, description="path of a checkpoint; the registered one when absent")
    sha256: str | None = Field(None, description="digest that the checkpoint must have")
    activation: Literal["gelu", "quickgelu"] = Field("gelu", description="A18: 'gelu' matches APRIL-GAN's checkpoints")
    image_side: ClipSide = Field(518, description="side of the square input in pixels")
    more_sides: tuple[ClipSide, ...] = Field(
        (),
        max_length=8,
        description="further sides at which CLIP looks at the same image; the logits of all are averaged. "
        "Adapters are trained at image_side alone",
    )
    layers: tuple[Annotated[Whole, Field(ge=1, le=1000)], ...] = Field(
        (6, 12, 18, 24), min_length=1, max_length=100, description="blocks in ascending order, counted from 1"
    )
    prompts: str = Field("april_gan", description="prompt ensemble: a name in configs/prompts, or a YAML file")
    keep: Literal["logits", "tokens"] = Field(
        "logits",
        description="what of CLIP's look is kept: the logits of the words asked for, or the tokens as float16 too, so "
        "that other words, sentences or linear layers need no second look (11 MB an image with ViT-L-14-336)",
    )
    precision: Precision = "fp32"
    batch_size: BatchSize = Field(4, description="images in one pass on a GPU; on a CPU one at a time is faster")

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        return ascending(layers)

    @property
    def sides(self) -> tuple[int, ...]:
        """Every side of CLIP's input, ``image_side`` first."""
        return (self.image_side, *self.more_sides)


class LinearLayers(ClipLocaliser):
    """What every localiser has whose CLIP tokens go through trained linear layers."""

    PLACES = ClipLocaliser.PLACES | {"adapter", "adapter_sha256", "adapter_trained_on"}

    adapter: str | None = Field(None, description="path of the trained linear layers, or a registered name")
    adapter_sha256: str | None = None
    adapter_trained_on: tuple[str, ...] = Field(
        (), description="names of the datasets behind a foreign adapter; our own adapters carry theirs"
    )


class AprilGan(LinearLayers):
    """APRIL-GAN: tokens of CLIP blocks through trained linear layers, compared with two text features."""

    method: Literal["april_gan"] = "april_gan"


class Mutual(Localiser):
    """The images of a category judge each other, by the features of a frozen network (MuSc's mutual scoring)."""

    LOOK = ("method", "backbone", "sides", "strides", "layers", "grid", "precision")

    method: Literal["mutual"] = "mutual"
    backbone: str = Field(
        "efficientnet_lite0",
        description="the network of features: that of the package, or a model of timm, 'name' or 'name.tag', with "
        "its weights in a file",
    )
    weights: str | None = Field(None, description="path of a checkpoint; that of the package when absent")
    sha256: str | None = Field(None, description="digest that the checkpoint must have")
    image_side: Annotated[Whole, Field(ge=64, le=4096)] = Field(
        512, description="side of the square input in pixels, a multiple of the network's coarsest stride"
    )
    strides: tuple[Literal[4, 8, 16, 32], ...] = Field(
        (8, 16), min_length=1, max_length=4, description="levels that are compared"
    )
    layers: tuple[Annotated[Whole, Field(ge=1, le=1000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="blocks or stages that are compared, in ascending order, counted from 1, in place of those of "
        "`strides`; a plain transformer has one stride (MuSc: 6, 12, 18, 24 of 24)",
    )
    neighbourhoods: tuple[Literal[1, 3, 5, 7, 9], ...] = Field(
        (1, 3, 5), min_length=1, max_length=5, description="sides, in cells, of the neighbourhoods that are averaged"
    )
    grid: Annotated[Whole, Field(ge=4, le=1024)] | None = Field(
        None,
        description="cells along a side to which finer levels are pooled, while coarser ones keep their own; those of "
        "the coarsest when absent",
    )
    descriptors: Literal["each", "mean"] = Field(
        "each",
        description="a distance for each neighbourhood (MuSc), or one of the mean of a cell's unit vectors over all of "
        "them, which is less work",
    )
    reference_cells: Literal["all", "half"] = Field(
        "all", description="cells of an image against which others are held: all (MuSc), or every second"
    )
    zero: Literal["none", "median"] = Field(
        "none", description="the map is the distances (MuSc), or what they are above the median of the image"
    )
    share: Annotated[Real, Field(gt=0.0, le=1.0)] = Field(
        0.3, description="of the other images, the nearest, over which a cell's distances are averaged"
    )
    rscin: tuple[Annotated[Whole, Field(ge=1, le=10_000)], ...] = Field(
        (),
        max_length=10,
        description="numbers of most similar images, itself among them, over which an image's own score "
        "(score.image_score=clip) is averaged (MuSc's RsCIN: 1, 2, 3); not at all when empty",
    )
    references: Whole = Field(
        100, ge=8, le=10_000, description="most images that judge the others, drawn by their digests"
    )
    keep: Literal["tokens"] = Field("tokens", description="what is seen of each image is kept for the others")
    precision: Literal["fp32"] = "fp32"

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return layers if layers is None else ascending(layers)

    def _idle(self) -> set[str]:
        return {"layers"} if self.layers is None else {"strides"}

    @property
    def sides(self) -> tuple[int, ...]:
        """The side of the square input."""
        return (self.image_side,)


class Fused(LinearLayers):
    """APRIL-GAN's map, and that of a batch whose images judge each other."""

    method: Literal["fused"] = "fused"
    keep: Literal["tokens"] = Field("tokens", description="what is seen of each image is kept for the others")
    batch: Mutual = Mutual()
    weight: Fraction = Field(0.5, description="of the batch's map; that of the single image has the rest")

    def key_options(self) -> dict[str, Any]:
        """The options that are part of the key."""
        return super().key_options() | {"batch": self.batch.key_options()}

    def look_options(self) -> dict[str, Any]:
        """The options that are part of the key of what is seen before a word is said."""
        return super().look_options() | {"batch": self.batch.look_options()}


class ThresholdConfig(Section):
    """A3: which pixels are extremely anomalous (S_a). The map is in [0, 1]."""

    rule: Literal["max", "absolute", "relative", "quantile"] = Field(
        "relative",
        description="a share of the image's largest score, or less if S_a would be smaller than min_area, so that "
        "every image gets a prompt; an absolute score; the larger of both (paper_strict); or a quantile",
    )
    absolute: Fraction = 0.5
    relative: Fraction = Field(0.8, description="fraction of the image's largest score")
    quantile: Fraction = Field(0.99, description="share of the image's pixels below the threshold")
    min_area: Whole = Field(20, ge=1, le=_MAX_PIXELS, description="with fewer pixels in S_a an image gets no prompt")

    def _idle(self) -> set[str]:
        used = {"absolute", "relative"} if self.rule == "max" else {self.rule}
        return {"absolute", "relative", "quantile"} - used


class SpacingConfig(Section):
    """A5: the reading of "spaced by 400 pixels"."""

    rule: Literal["rank", "radius", "distance"] = Field(
        "rank",
        description="every so many ranks of the sorted candidates; greedy with a radius in frame pixels; "
        "or greedy with a distance in a frame of 1024 pixels",
    )
    rank: Whole = Field(400, ge=1, le=_MAX_PIXELS)
    radius: Real = Field(20.0, ge=0.0, le=10_000.0)
    distance: Real = Field(400.0, ge=0.0, le=10_000.0)

    def _idle(self) -> set[str]:
        return {"rank", "radius", "distance"} - {self.rule}


class DilationConfig(Section):
    """The structuring element of the ring N_a (equation 3)."""

    shape: Literal["ellipse", "rectangle", "cross"] = "ellipse"
    size: Whole = Field(25, ge=2, le=512, description="side in pixels of the frame")


class PromptConfig(Section):
    """PPG: where the point prompts come from (equations 1 to 8)."""

    frame: Frame = Field(518, description="A1: side of the square frame of map, points and kernel, or 'native'")
    threshold: ThresholdConfig = ThresholdConfig()
    positives: Whole = Field(3, ge=1, le=256, description="A4: k of equation 2")
    negatives: Whole = Field(3, ge=0, le=256, description="A4: k of equation 7")
    spacing: SpacingConfig = SpacingConfig()
    dilation: DilationConfig = DilationConfig()
    similarity: Literal["prototype", "max", "mean"] = Field(
        "prototype", description="A7: cosine to the prototype of S_a, or the largest or mean cosine to its features"
    )
    prototype_weight: Literal["area", "area_score"] = Field("area", description="A7: weight of a cell in the prototype")
    prototype_features: Literal["raw", "unit"] = Field(
        "raw",
        description="A7: the prototype is a mean of SAM's features as they are, in which strong ones weigh more, "
        "or of their directions",
    )
    features: Literal["cell", "pixel"] = Field("cell", description="A8: upsample the similarity map, or the features")
    ring_limit: Fraction | None = Field(
        None, description="A9: keep N_a below this fraction of the threshold (quality profile: 0.5)"
    )
    grouping: Literal["image", "component"] = Field(
        "image", description="A14: one set of points for the image, or one for each connected part of S_a"
    )

    def _idle(self) -> set[str]:
        prototype = {"prototype_weight", "prototype_features"}
        if self.negatives == 0:
            return {"similarity", "features"} | prototype
        return set() if self.similarity == "prototype" else prototype


class Unrefined(Section):
    """No refiner: the map is the result; neither SAM nor prompts are needed."""

    method: Literal["none"] = "none"


class Cps(Section):
    """CPS: the three decoder passes (equations 9 to 12)."""

    method: Literal["cps"] = "cps"
    multimask: tuple[Switch, Switch, Switch] = Field(
        (True, True, True), description="A10: three masks or one, for each step; PerSAM uses false, true, true"
    )
    choice: Literal["iou", "agreement"] = Field(
        "iou", description="A10: the mask with the largest predicted IoU, or the one that agrees best with the map"
    )
    feedback: Literal["chosen", "mean"] = Field("chosen", description="A11: the logits that are fed back")
    box: Literal["mask", "largest", "components"] = Field(
        "mask", description="A12: one box of the whole mask, of its largest part, or one box for each part"
    )
    box_padding: Fraction = Field(0.0, description="A12: growth of the box on each side, in its sides")
    decoder: Literal["absorbed", "plain"] = Field(
        "absorbed", description="SAM's decoder in a faster order of multiplication, or as it is published; same masks"
    )
    empty: Literal["previous", "skip"] = Field(
        "previous", description="A13: an empty second mask falls back to the first mask or S_a, or skips the third step"
    )
    precision: Precision = "fp32"
    batch_size: BatchSize = Field(4, description="images in one pass; on a CPU every core has a batch of its own")

    def _idle(self) -> set[str]:
        idle = set() if any(self.multimask) else {"choice"}
        return idle if any(self.multimask[:2]) else idle | {"feedback"}


class ScoreConfig(Section):
    """How mask and map become one score per pixel, and in which frame pixels are counted."""

    frame: Frame = Field(518, description="side of the square evaluation frame in pixels, or 'native'")
    fusion: Literal["blend", "mask", "sum"] = Field(
        "blend",
        description="A15: (1−w)·map + w·gain·sigmoid(logits); the same with the hard mask; or map + mask",
    )
    weight: Fraction = Field(0.5, description="A15: w; 1 scores SAM's output alone")
    gain: Literal["agreement", "one"] = Field(
        "agreement", description="A15: mean of the map inside the mask times predicted IoU, or 1 (paper_strict)"
    )
    masks: Literal["chosen", "all"] = Field("chosen", description="A15: the chosen mask, or the mean of all masks")
    no_prompt: Literal["damp", "map"] = Field(
        "map", description="A16: an image without prompt scores the map itself, or (1−w)·map (paper_strict)"
    )
    smoothing: Real = Field(
        0.0, ge=0.0, le=1000.0, description="A17: sigma of a Gaussian on the map before the blend, in pixels"
    )
    image_score: Literal["clip", "max", "top", "clip+top"] = Field(
        "clip",
        description="A20: CLIP's image score, the largest pixel of each step, the mean of each step's top share, or "
        "the mean of CLIP's and that",
    )
    top_share: Real = Field(0.01, gt=0.0, le=1.0, description="A20: share of the pixels that are the top")

    def _idle(self) -> set[str]:
        return {"weight", "gain", "no_prompt"} if self.fusion == "sum" else set()


class RuntimeConfig(Section):
    """How a run is carried out; no part of any key."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: tuple[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")], ...] = Field(
        (),
        max_length=1024,
        description="devices that worker processes share out among themselves, each with models of its own",
    )
    runner: Literal["threads", "processes", "dask", "ray"] = Field(
        "threads", description="where tasks run; all but threads need the Prefect engine, Dask and Ray are extras"
    )
    compile: Switch = Field(
        False, description="compile the networks (torch.compile): pays for itself after some hundred images"
    )
    cluster: str | None = Field(
        None, description="address of a running Dask scheduler or Ray head; local workers when absent"
    )
    shard_size: Whole = Field(128, ge=1, le=256, description="images in one task")
    workers: Whole = Field(1, ge=1, le=1024, description="tasks at the same time")

    @model_validator(mode="after")
    def _runner_fits(self) -> RuntimeConfig:
        if len(self.devices) > 1 and self.runner == "threads":
            raise ValueError(
                "several runtime.devices need worker processes: set runtime.runner to processes, dask or ray"
            )
        if self.cluster is not None and self.runner not in ("dask", "ray"):
            raise ValueError(
                f"runtime.cluster is the address of a Dask or Ray cluster; runtime.runner is '{self.runner}'"
            )
        return self


def _named(default: str) -> Discriminator:
    """By ``method``; a section that names none is the default's."""

    def method(data: Any) -> Any:
        return str(data.get("method", default)) if isinstance(data, dict) else getattr(data, "method", None)

    return Discriminator(method)


LocaliseConfig = Annotated[
    Annotated[AprilGan, Tag("april_gan")] | Annotated[Mutual, Tag("mutual")] | Annotated[Fused, Tag("fused")],
    _named("april_gan"),
]
RefineConfig = Annotated[Annotated[Cps, Tag("cps")] | Annotated[Unrefined, Tag("none")], _named("cps")]


def of_clip(localise: Localiser) -> ClipLocaliser:
    """The options of a localiser that asks a CLIP model. Raises ``ConfigError`` if it has none."""
    if not isinstance(localise, ClipLocaliser):
        raise ConfigError(f"localise.method is '{localise.method}', which has no CLIP model; use april_gan")
    return localise


def of_features(localise: Localiser) -> tuple[str, Mutual]:
    """The options of a localiser that asks a network of features, and where they are."""
    if isinstance(localise, Fused):
        return "localise.batch", localise.batch
    return "localise", cast("Mutual", localise)


def methods_of(field: FieldInfo) -> dict[str, type[Section]]:
    """The sections that may stand in a field, by method; one without a name if there is no choice."""
    choices = [get_args(each)[0] if get_args(each) else each for each in get_args(field.annotation)]
    kinds = choices if get_origin(field.annotation) in (Union, UnionType) else [field.annotation]
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    if len(sections) == 1:
        return {"": sections[0]}
    return {str(each.model_fields["method"].default): each for each in sections}


class Experiment(Section):
    """A whole run: dataset, one section per stage, and how it is carried out."""

    name: Name = "experiment"
    dataset: DatasetConfig = DatasetConfig()
    embed: EmbedConfig = EmbedConfig()
    localise: LocaliseConfig = AprilGan()
    prompt: PromptConfig = PromptConfig()
    refine: RefineConfig = Cps()
    score: ScoreConfig = ScoreConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _grouping_needs_points(self) -> Experiment:
        if isinstance(self.refine, Cps) and self.refine.box == "components" and self.prompt.grouping == "component":
            raise ValueError(
                "refine.box 'components' and prompt.grouping 'component' both split the image; choose one of them"
            )
        return self


class TrainConfig(Section):
    """How the APRIL-GAN linear layers are trained (A19)."""

    epochs: Whole = Field(15, ge=1, le=100_000)
    batch_size: BatchSize = Field(16, description="A19: 16 in the paper, 8 in APRIL-GAN's script")
    learning_rate: Real = Field(1e-3, gt=0.0, le=10.0)
    mosaic: Fraction = Field(0.0, description="probability of a 2x2 mosaic in place of an image")
    seed: Whole = Field(111, ge=0, lt=2**32)
    start: str | None = Field(
        None,
        description="adapter that the training starts from, a path or a registered name; random layers when absent",
    )
