"""The configuration: one frozen model per stage. A default is the paper's, or the table's of the open choices A1–A20.

The choices that the paper leaves open are numbered A1 to A20 in this project's method notes; the number stands beside
each field. Every field of a stage's model is part of that stage's key, except those that cannot change its output
(``batch_size``).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cascade.configs.localisers import AprilGan, LocaliseConfig
from cascade.configs.refiners import Cps, RefineConfig
from cascade.configs.section import BatchSize, Fraction, Precision, Real, Section, Switch, UserPath, Whole

_MAX_PIXELS = 8192**2
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_NO_FOLDERS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.(parquet|json|lock)?", re.IGNORECASE)
"""Names of devices, names that end in a point, and those that files beside the runs may have."""

Beta = Annotated[Real, Field(ge=0.0, lt=1.0)]
Frame = Annotated[Whole, Field(ge=16, le=8192)] | Literal["native"]


def _folder_name(name: str) -> str:
    """A name that can be a folder on every system."""
    if not _NAME.fullmatch(name) or _NO_FOLDERS.fullmatch(name):
        raise ValueError(
            f"'{name[:100]}' cannot be a folder on every system; use letters, digits, '.', '_' and '-', "
            f"begin with a letter or digit, and give it no ending"
        )
    return name


Name = Annotated[str, AfterValidator(_folder_name)]


class DatasetConfig(Section):
    """Which photographs are evaluated."""

    path: UserPath | None = None
    layout: Literal["auto", "mvtec", "visa", "real_iad", "meta", "beside", "folder", "manifest"] = "auto"
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

    backbone: Literal["mini", "vit_b", "vit_l", "vit_h"] = "vit_h"
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
    operating_threshold: Annotated[Real, Field(ge=-1000.0, le=1000.0)] | None = Field(
        None,
        description="an image is defective from this image score of the last step on; no yes or no when absent. It "
        "changes no score; `cascade calibrate` chooses it",
    )

    def _idle(self) -> set[str]:
        idle = {"operating_threshold"}
        return idle | {"weight", "gain", "no_prompt"} if self.fusion == "sum" else idle


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
    """How a localiser's own weights are trained; the defaults are APRIL-GAN's (A19).

    A method that was published with another recipe says so (``RECIPE`` of its class).
    """

    epochs: Whole = Field(15, ge=1, le=100_000)
    batch_size: BatchSize = Field(16, description="A19: 16 in the paper, 8 in APRIL-GAN's script")
    learning_rate: Real = Field(1e-3, gt=0.0, le=10.0)
    optimiser: Literal["adam", "adamw"] = "adam"
    betas: tuple[Beta, Beta] = Field((0.5, 0.999), description="of the running means of gradient and square")
    weight_decay: Real = Field(0.0, ge=0.0, le=10.0)
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate: as it is, or from step to step down to 0 along half a cosine"
    )
    mosaic: Fraction = Field(0.0, description="probability of a 2x2 mosaic in place of an image")
    seed: Whole = Field(111, ge=0, lt=2**32)
    start: str | None = Field(
        None,
        description="adapter that the training starts from, a path or a registered name; random layers when absent",
    )
    held_out: Fraction = Field(
        0.0, description="share of the categories that is not learned from, but judged after every epoch"
    )
    precision: Precision = Field("fp32", description="of what is trained and of the loss; bf16 is for a GPU")
