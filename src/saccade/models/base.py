"""The model contract: forward, loss and postprocess are three things, and the type of each never changes.

``forward`` returns one NamedTuple in training and in evaluation, with targets and without. Targets given to it may only
choose what is computed; they enter the numbers in ``loss``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.ops.image import Preprocess
from saccade.types import Classes, ExplainSpec, ImageBatch, Losses, Prediction, Target, TaskName
from saccade.types.attributes import AttributeTable

OutputsT = TypeVar("OutputsT")
TargetT = TypeVar("TargetT", bound=Target)
PredictionT = TypeVar("PredictionT", bound=Prediction)


def icons(side: int) -> Preprocess:
    """Small pictures are icons rather than photographs: statistics of one half, and nothing is cut off."""
    return Preprocess(size=(side, side), policy="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Base of the model configs; ``build`` is the one place where a model is put together.

    Attributes:
        task: what the model is for.
        least_classes: how few classes such a model may have.
    """

    task: ClassVar[TaskName]
    least_classes: ClassVar[int] = 1
    num_classes: int = 1000
    """Number of foreground classes."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """How pictures become pixels; travels with the weights."""

    def __post_init__(self) -> None:
        if self.num_classes < self.least_classes:
            alone = self.num_classes == 1
            raise ConfigError(
                f"num_classes is {self.num_classes}",
                where="num_classes",
                expected=f"at least {self.least_classes}"
                + (": the probability of a single class is always 1" if alone else ""),
                remedy="give what is not of this class one of its own, such as 'background'" if alone else None,
            )

    def described(self, table: AttributeTable | None) -> ModelConfig:
        """The same config for data whose classes are described by attributes, or not; most models need none."""
        return self

    def fitted(self, texts: Callable[[], Iterable[str]]) -> ModelConfig:
        """The same config with what it learns from the texts of the training data before it is built; most: nothing."""
        return self

    def train_settings(self, taken: Collection[str]) -> Mapping[str, Any]:
        """Fields of ``TrainConfig`` that this model has its own values for; what the user sets goes first. Most: none.

        Args:
            taken: names of the parameters that start from given weights.
        """
        return {}

    def build(self) -> VisionModel[Any, Any, Any]:
        """The model, with random weights."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it builds")


class VisionModel(nn.Module, abc.ABC, Generic[OutputsT, TargetT, PredictionT]):
    """Base of the models.

    Attributes:
        config: what built it.
        classes: names of the foreground classes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = Classes.numbered(config.num_classes)

    @property
    def task(self) -> TaskName:
        """What the model is for."""
        return self.config.task

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become pixels."""
        return self.config.preprocess

    @abc.abstractmethod
    def forward(self, images: ImageBatch, targets: Sequence[TargetT] | None = None) -> OutputsT:
        """Raw outputs; targets may only choose what is computed."""

    @abc.abstractmethod
    def loss(self, outputs: OutputsT, targets: Sequence[TargetT]) -> Losses:
        """The loss terms of one batch."""

    @abc.abstractmethod
    def postprocess(self, outputs: OutputsT, images: ImageBatch) -> list[PredictionT]:
        """One prediction per picture, in the pixels of the original."""

    @abc.abstractmethod
    def explain_spec(self) -> ExplainSpec:
        """Where the grids, the attention and the linear head are."""

    def no_decay(self) -> set[str]:
        """Names of parameters, beside norms and biases, that weight decay must spare."""
        return set()

    def announcement(self, size: tuple[int, int]) -> str | None:
        """What people should know before pictures ``(h, w)`` on the canvas are looked at, such as a great cost."""
        return None
