"""The localisers' options: one section a method, and ``LocaliseConfig``, the choice among them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, Field, Tag

from cascade.configs.section import BatchSize, Fraction, Precision, Real, Section, Switch, Whole, named
from cascade.storage.errors import ConfigError

ClipSide = Annotated[Whole, Field(ge=16, le=4096)]


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    """The same blocks, if they are in order."""
    if list(layers) != sorted(set(layers)):
        raise ValueError(f"{list(layers)}: name the blocks in ascending order, each once")
    return layers


Layers = Annotated[
    tuple[Annotated[Whole, Field(ge=1, le=1000)], ...],
    Field(min_length=1, max_length=100),
    AfterValidator(_ascending),
]
"""Blocks or levels, counted from 1."""


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
    """What every localiser has that asks a CLIP model in words.

    Attributes:
        ATTENTION: whether it reads the attention of the image tower's blocks.
        OWN_TOWER: whether it goes through layers of the image tower that only open_clip's own have.
        SPEAKS: whether CLIP's text tower is asked.
    """

    PLACES = Localiser.PLACES | {"pretrained", "prompts"}
    LOOK: ClassVar[tuple[str, ...]] = ("backbone", "activation", "sides", "precision")
    ATTENTION: ClassVar[bool] = False
    OWN_TOWER: ClassVar[bool] = False
    SPEAKS: ClassVar[bool] = True

    backbone: str = Field("ViT-L-14-336", description="an open_clip model, or 'mini'")
    pretrained: str = Field("openai", description="open_clip tag of the weights")
    weights: str | None = Field(None, description="path of a checkpoint; the registered one when absent")
    sha256: str | None = Field(None, description="digest that the checkpoint must have")
    activation: Literal["gelu", "quickgelu"] = Field("gelu", description="A18: 'gelu' matches APRIL-GAN's checkpoints")
    image_side: ClipSide = Field(518, description="side of the square input in pixels")
    prompts: str = Field("april_gan", description="prompt ensemble: a name in configs/prompts, or a YAML file")
    keep: Literal["logits", "tokens"] = Field(
        "logits",
        description="what of CLIP's look is kept: the logits of the words asked for, or the tokens as float16 too, so "
        "that other words, sentences or linear layers need no second look (11 MB an image with ViT-L-14-336)",
    )
    precision: Precision = "fp32"
    batch_size: BatchSize = Field(4, description="images in one pass on a GPU; on a CPU one at a time is faster")

    @property
    def sides(self) -> tuple[int, ...]:
        """Every side of CLIP's input, ``image_side`` first."""
        return (self.image_side,)

    def key_options(self) -> dict[str, Any]:
        """The options that are part of the key."""
        return super().key_options() | self._tag()

    def look_options(self) -> dict[str, Any]:
        """The options that are part of the key of what is seen before a word is said."""
        return super().look_options() | self._tag()

    def _tag(self) -> dict[str, str]:
        """The tag, where it is not the weights that say how images are normalised.

        A registered checkpoint has one tag; a file of one's own can be given under any. Those that are left out here
        normalise alike for each model: as for its only way, or as CLIP.
        """
        own = self.weights is not None and self.pretrained not in ("openai", "shipped")
        return {"pretrained": self.pretrained} if own and "pretrained" not in self._idle() else {}


class ClipBlocks(ClipLocaliser):
    """What every localiser has that looks at the tokens of chosen blocks."""

    LOOK = (*ClipLocaliser.LOOK, "layers")

    layers: Layers = Field((6, 12, 18, 24), description="blocks in ascending order, counted from 1")


class TrainedClip(ClipBlocks):
    """What every localiser has that reads CLIP by weights which were trained on another dataset."""

    PLACES = ClipLocaliser.PLACES | {"adapter", "adapter_sha256", "adapter_trained_on"}

    adapter: str | None = Field(None, description="path of the trained weights, or a registered name")
    adapter_sha256: str | None = None
    adapter_trained_on: tuple[str, ...] = Field(
        (), description="names of the datasets behind a foreign adapter; our own adapters carry theirs"
    )

    @property
    def trained_by(self) -> str:
        """The method whose training makes the weights."""
        return self.method


class LearnedClip(TrainedClip):
    """What every localiser has whose prompts are learned too: it is asked for no object, and looks once."""

    LOOK: ClassVar[tuple[str, ...]] = (*TrainedClip.LOOK, "positions")

    activation: Literal["gelu", "quickgelu"] = Field("quickgelu", description="as OpenAI's weights were trained")
    positions: Literal["bilinear"] = Field(
        "bilinear", description="how the visual positional embedding is resized, without antialiasing"
    )
    prompts: Literal["learned"] = "learned"
    sigma: Annotated[Real, Field(ge=0.0, le=1000.0)] = Field(
        4.0, description="of the Gaussian on the map, in pixels of CLIP's square; part of the method"
    )


class AfClip(LearnedClip):
    """AF-CLIP: tokens averaged with their neighbours, through one adapter, compared with two learned prompts."""

    LOOK: ClassVar[tuple[str, ...]] = ("method", *LearnedClip.LOOK)

    OWN_TOWER = True

    method: Literal["af_clip"] = "af_clip"


class AnomalyClip(LearnedClip):
    """AnomalyCLIP: cells by attention among values (DPAM), compared with two learned prompts that name no object."""

    LOOK: ClassVar[tuple[str, ...]] = ("method", *LearnedClip.LOOK)
    ATTENTION = True

    method: Literal["anomaly_clip"] = "anomaly_clip"
    layers: Layers = Field(
        (24,),
        description="blocks in ascending order, counted from 1; published is 24 alone (the authors asked for 6, 12, 18 "
        "and 24, and their code returned the last one four times), [6, 12, 18, 24] is what they meant",
    )


class LinearClip(TrainedClip):
    """What both have that read tokens through APRIL-GAN's linear layers."""

    more_sides: tuple[ClipSide, ...] = Field(
        (),
        max_length=8,
        description="further sides at which CLIP looks at the same image; the logits of all are averaged. "
        "Adapters are trained at image_side alone",
    )

    @property
    def sides(self) -> tuple[int, ...]:
        """Every side of CLIP's input, ``image_side`` first."""
        return (self.image_side, *self.more_sides)


class AprilGan(LinearClip):
    """APRIL-GAN: tokens of CLIP blocks through trained linear layers, compared with two text features."""

    method: Literal["april_gan"] = "april_gan"


class ClipSamUmci(TrainedClip):
    """Our reading of ClipSAM's UMCI: tokens in attention with the words, along strips and at two scales."""

    method: Literal["clipsam_umci"] = "clipsam_umci"


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
    layers: Layers | None = Field(
        None,
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

    def _idle(self) -> set[str]:
        return {"layers"} if self.layers is None else {"strides"}

    @property
    def sides(self) -> tuple[int, ...]:
        """The side of the square input."""
        return (self.image_side,)


class Fused(LinearClip):
    """APRIL-GAN's map, and that of a batch whose images judge each other."""

    method: Literal["fused"] = "fused"
    keep: Literal["tokens"] = Field("tokens", description="what is seen of each image is kept for the others")
    batch: Mutual = Mutual()
    weight: Fraction = Field(0.5, description="of the batch's map; that of the single image has the rest")

    @property
    def trained_by(self) -> str:
        """APRIL-GAN."""
        return "april_gan"

    def key_options(self) -> dict[str, Any]:
        """The options that are part of the key."""
        return super().key_options() | {"batch": self.batch.key_options()}

    def look_options(self) -> dict[str, Any]:
        """The options that are part of the key of what is seen before a word is said."""
        return super().look_options() | {"batch": self.batch.look_options()}


class ClipAd(ClipBlocks):
    """What both methods of CLIP-AD have: a second path through CLIP, and a vector that stands for sentences."""

    LOOK: ClassVar[tuple[str, ...]] = ("method", *ClipBlocks.LOOK, "aliased")
    ATTENTION = True

    representative: Literal["mean", "dbscan", "pca", "kde", "mean_shift"] = Field(
        "dbscan", description="the vector that stands for the sentences (representative vector selection)"
    )
    dbscan_eps: Annotated[Real, Field(gt=0.0, le=2.0)] = Field(
        0.5, description="largest distance between neighbours; published is 1.5 for VisA, 0.5 for everything else"
    )
    dbscan_min_samples: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        15, description="neighbours in the core of a cluster; published is 25 for VisA, 15 for everything else"
    )
    aliased: Switch = Field(
        True,
        description="ordinary tokens of all but the last block with what the next block's attention adds to them, as "
        "the authors' code has them by a change in place; false for the tokens themselves",
    )
    sigma: Annotated[Real, Field(ge=0.0, le=1000.0)] = Field(
        8.0, description="of the Gaussian on the map, in pixels of CLIP's square; part of the method"
    )

    def _idle(self) -> set[str]:
        return set() if self.representative == "dbscan" else {"dbscan_eps", "dbscan_min_samples"}


class Sdp(ClipAd):
    """SDP: tokens of a second path, in stages, against two representative texts (CLIP-AD); no training."""

    method: Literal["sdp"] = "sdp"


class SdpPlus(ClipAd, TrainedClip):
    """SDP+: SDP, and trained linear layers on the tokens of CLIP's ordinary path (CLIP-AD)."""

    method: Literal["sdp_plus"] = "sdp_plus"


class UniAdet(TrainedClip):
    """UniADet: two learned vectors for the image and two for its cells, on layers of a frozen network; no words."""

    SPEAKS = False

    method: Literal["uniadet"] = "uniadet"
    tower: Literal["clip", "features"] = Field(
        "clip",
        description="what looks: CLIP, or a network of features as mutual scoring has it; `backbone` names either",
    )
    activation: Literal["gelu", "quickgelu"] = Field("quickgelu", description="as OpenAI's weights were trained")
    layers: Layers = Field(
        (12, 15, 18, 21, 24),
        description="blocks, or levels of the network of features, in ascending order, counted from 1",
    )
    prompts: Literal["none"] = "none"
    image_score: Literal["class", "class+map"] = Field(
        "class", description="the image's probability, or half of it and half of the map's maximum"
    )

    def look_options(self) -> dict[str, Any]:
        """As APRIL-GAN's, whose looks are the same, unless features look."""
        return super().look_options() | ({} if self.tower == "clip" else {"tower": self.tower})

    def _idle(self) -> set[str]:
        return set() if self.tower == "clip" else {"activation", "precision", "pretrained"}


class WinClip(ClipLocaliser):
    """WinCLIP: windows of the image, each alone before CLIP, compared with two text features; no training."""

    LOOK: ClassVar[tuple[str, ...]] = ("method", *ClipLocaliser.LOOK, "scales")

    OWN_TOWER = True

    method: Literal["winclip"] = "winclip"
    scales: tuple[Annotated[Whole, Field(ge=1, le=256)], ...] = Field(
        (2, 3), min_length=1, max_length=8, description="sides of the windows in cells; WinCLIP's are 32 and 48 pixels"
    )


LocaliseConfig = Annotated[
    Annotated[AprilGan, Tag("april_gan")]
    | Annotated[AfClip, Tag("af_clip")]
    | Annotated[AnomalyClip, Tag("anomaly_clip")]
    | Annotated[SdpPlus, Tag("sdp_plus")]
    | Annotated[ClipSamUmci, Tag("clipsam_umci")]
    | Annotated[Mutual, Tag("mutual")]
    | Annotated[Fused, Tag("fused")]
    | Annotated[Sdp, Tag("sdp")]
    | Annotated[UniAdet, Tag("uniadet")]
    | Annotated[WinClip, Tag("winclip")],
    named("april_gan"),
]


def of_clip(localise: Localiser) -> ClipLocaliser:
    """The options of a localiser that asks a CLIP model. Raises ``ConfigError`` if it has none."""
    if not isinstance(localise, ClipLocaliser):
        raise ConfigError(f"localise.method is '{localise.method}', which has no CLIP model; use april_gan")
    return localise


def of_features(localise: Localiser) -> tuple[str, Mutual | UniAdet]:
    """The options of a localiser that asks a network of features, and where they are."""
    if isinstance(localise, Fused):
        return "localise.batch", localise.batch
    return "localise", cast("Mutual | UniAdet", localise)
