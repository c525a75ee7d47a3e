"""What a localiser is: the questions that the rest of the system asks, and the method answers.

Nothing here imports torch, so that a run which finds everything in the store starts without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.frames import Size

Module = TypeVar("Module", bound="nn.Module")


@dataclass(frozen=True)
class Kept:
    """Shape and dtype of an array that is kept for each image."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class AnomalyMap:
    """Where an image looks wrong.

    Attributes:
        values: [H, W] float32 in [0, 1].
        ranking: [H, W] float32, a finer order of the same pixels; it breaks ties where ``values`` is saturated (A6).
    """

    values: NDArray[np.float32]
    ranking: NDArray[np.float32]


class Features(Protocol):
    """A frozen network that sees no text.

    Attributes:
        channels: of each level: a stage of a convolutional network, a block of a transformer.
        strides: of each level, pixels per cell.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, images: torch.Tensor, levels: Sequence[int]) -> list[torch.Tensor]:
        """[B, channels[i], side / strides[i], side / strides[i]] for each i of ``levels``, counted from 0.

        ``images`` are [B, 3, side, side] RGB in [−1, 1].
        """


class Networks(Protocol):
    """The networks that a localiser is given, by role, loaded when it first asks for them."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    @property
    def clip_config(self) -> Mapping[str, Any]:
        """open_clip's configuration of the CLIP model: ``embed_dim``, ``vision_cfg``, ``text_cfg``."""

    def clip(self, side: int) -> nn.Module:
        """The CLIP model for square inputs of ``side`` pixels."""

    def features(self) -> Features:
        """The frozen network of features."""

    def trained(
        self, role: str, build: Callable[[Mapping[str, torch.Tensor]], Module], fault: Callable[[Module], str]
    ) -> Module:
        """What ``build`` makes of the checkpoint of a role, on the device.

        A ``ValueError`` of ``build``, and what ``fault`` says unless it is empty, are shown with the file's name.
        """


class Localiser(ABC):
    """One method. Its instances are frozen dataclasses of the options that change what it computes.

    It works in two steps, so that the first can be kept: ``look`` sees images and no words; ``compare`` sees what
    ``look`` found, and the words. What ``compare`` returns is kept, and becomes a map of any size by ``map_of``.

    Attributes:
        VERSION: raised by hand when the mathematics changes.
        ROLES: of the checkpoints that it needs: ``clip`` is a CLIP model, ``features`` a frozen network of features,
            any other a file of its own.
        SCOPE: whether an image is judged alone, or by the other images of its category (``batch``), at most
            ``references`` of them; what is seen in them has to be kept then.
        MIN_BATCH: fewest images that judge each other.
        ALONE: whether an image of a smaller batch can be judged alone.
        WORDS: whether it is asked in words, and so given text features.
        STEP: name of the map's row in the tables.
        sides: of the squares, in pixels, to which a photograph is scaled for it.
    """

    VERSION: ClassVar[int]
    ROLES: ClassVar[tuple[str, ...]] = ()
    SCOPE: ClassVar[Literal["image", "batch"]] = "image"
    MIN_BATCH: ClassVar[int] = 1
    ALONE: ClassVar[bool] = False
    WORDS: ClassVar[bool] = False
    STEP: ClassVar[str] = "map"
    sides: tuple[int, ...]
    references: int = 0

    @classmethod
    def of(cls, options: object) -> Self:
        """The method with those attributes of ``options`` that it has fields for."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(cls)})  # type: ignore[arg-type]

    @property
    def roles(self) -> tuple[str, ...]:
        """``ROLES``, less those that the options leave without use."""
        return self.ROLES

    @abstractmethod
    def inputs(self, squares: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """What the networks take, on the CPU, of one photograph's squares [side, side, 3]."""

    @abstractmethod
    def look(self, networks: Networks, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is seen in B images before a word is said, [B, ...] by name; from inputs [B, ...] for each side."""

    @abstractmethod
    def look_arrays(self, networks: Networks) -> dict[str, Kept]:
        """The arrays of ``look`` for one image, as they are kept if they are kept."""

    def judge(self, look: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What an image that judges others is to them, made once: of what ``look`` returned for it, [...] by name."""
        return look

    @abstractmethod
    def compare(
        self,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        others: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """What is kept of B images, [B, ...] by name, and their image scores [B] in [0, 1].

        Args:
            networks: see there.
            looks: what ``look`` returned, on the networks' device.
            texts: [B, D, 2] unit columns, normal and abnormal; ``None`` unless ``WORDS``.
            others: what ``judge`` returned for the images that judge this one; B is 1 then, and the image is not among
                them. Empty unless ``SCOPE`` is ``batch``, and where an image is judged ``ALONE``.
        """

    @property
    def text_options(self) -> dict[str, Any]:
        """What ``text_feature`` depends on, as plain data for a key."""
        return {}

    def text_feature(self, sentences: torch.Tensor) -> torch.Tensor:
        """The vector [D] of length 1 that stands for sentences, from their embeddings [n, D] as CLIP gives them.

        The mean of their unit vectors, unless a method does otherwise. Raises ``ValueError`` if there is none.
        """
        from cascade.backbones.clip.backbone import mean_direction

        return mean_direction(sentences)

    @property
    def rescores(self) -> bool:
        """Whether the scores of a batch's images change each other, once all are known."""
        return False

    def rescore(self, scores: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.floating[Any]]:
        """The image scores [N] in [0, 1] of a batch, from those of ``compare`` and what it kept, [N, ...] by name."""
        return scores

    @abstractmethod
    def arrays(self, networks: Networks) -> dict[str, Kept]:
        """The arrays of ``compare`` for one image. Whatever cannot work is refused here, before anything is written."""

    @abstractmethod
    def map_of(self, arrays: Mapping[str, NDArray[Any]], size: Size) -> AnomalyMap:
        """The map of one image in a frame of ``size`` (height, width) that spans it."""


class Trainable(Localiser):
    """A localiser with weights of its own, trained on what ``look`` saw in images of another dataset.

    What ``look`` sees stays as it is, so that it can be kept and read again in every epoch.

    Attributes:
        TRAINED: the role, among ``ROLES``, of the checkpoint that a training writes.
        RECIPE: options of the published training, where they are not the defaults of ``TrainConfig``.
    """

    TRAINED: ClassVar[str] = "adapter"
    RECIPE: ClassVar[Mapping[str, object]] = MappingProxyType({})

    @abstractmethod
    def adapter(self, networks: Networks) -> nn.Module:
        """What ``untrained`` makes, with the weights of the checkpoint: ``networks.trained`` of the role."""

    @abstractmethod
    def untrained(self, networks: Networks) -> nn.Module:
        """New weights on the networks' device, drawn from torch's global generator; all of them are trained.

        Its state dict is the checkpoint, under the keys of the authors' files.
        """

    @abstractmethod
    def loss(
        self,
        module: nn.Module,
        networks: Networks,
        looks: Mapping[str, torch.Tensor],
        texts: torch.Tensor | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """The loss, a scalar with gradients to ``module``.

        Args:
            module: what ``untrained`` made, or an earlier training.
            networks: frozen.
            looks: what ``look`` returned for B images.
            texts: [B, D, 2] unit columns; ``None`` unless ``WORDS``.
            masks: [B, side, side] bool, true where defective; the side is the first of ``sides``.
        """
