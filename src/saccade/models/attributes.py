"""A class that was never shown, recognised by its description: direct attribute prediction.

Lampert, Nickisch and Harmeling 2014, "Attribute-Based Classification for Zero-Shot Visual Object Categorization", TPAMI
36(3), section 3.1: a picture's attributes are predicted, and the class whose description fits them best is the answer.

The paper asks for the class that makes the product of p(attribute of the class | picture) / p(attribute of the class)
largest. Where each attribute is a sigmoid of its own logit, the logarithm of that product is, up to what all classes
share, linear in the logits: ``description · (logits - logit(share))``. So a class has a logit as in any classifier, the
softmax over the classes is the paper's posterior, and explanations follow from the class to the pixels.

Differs from the paper: one network predicts all attributes, where the paper trained one SVM for each; descriptions may
lie between 0 and 1, and count as probabilities.

A second loss (``loss="classes"``) is the label embedding of Akata et al. 2013, arXiv 1503.08677, with a softmax in the
place of their ranking: only the seen classes compete. The difference matters where attributes go together. If no green
thing of the training is a ring, each attribute for itself learns that green speaks against rings, and a green ring is
never recognised. Seen classes against each other learn nothing about green rings: what other rings taught holds.

B batch · K classes · A attributes · C width of the backbone · h, w grid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from saccade.backbones.base import Routing
from saccade.backbones.timm import TimmConfig
from saccade.backbones.vit import ViTConfig
from saccade.errors import ConfigError
from saccade.models.base import ModelConfig, VisionModel, icons
from saccade.models.classifier import stack_labels
from saccade.registry import register
from saccade.types import Classes, Classification, ClassTarget, ExplainSpec, ImageBatch, LinearHead, Losses, TaskName
from saccade.types.attributes import AttributeTable

_LEAST_SHARE = 0.01
"""An attribute that no seen class has would otherwise count infinitely much."""


@dataclass(frozen=True, kw_only=True)
class AttributesConfig(ModelConfig):
    """A backbone that predicts attributes, and the table that describes the classes by them."""

    task: ClassVar[TaskName] = "classification"
    kind: Literal["attributes"] = "attributes"
    backbone: Annotated[ViTConfig | TimmConfig, Field(discriminator="kind")] = field(default_factory=ViTConfig)
    """What turns pixels into features; their mean over the picture is read."""
    table: AttributeTable = field(default_factory=AttributeTable)
    """Which class has which attribute. Comes from the data; where empty, each class is an attribute of its own."""
    loss: Literal["attributes", "classes"] = "classes"
    """Each attribute for itself (the first paper), or the seen classes against each other (the second)."""
    prior: Literal["half", "seen"] = "seen"
    """What p(attribute) is: one half, or its share among the seen classes. With the loss ``attributes`` alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table.classes and len(self.table.classes) != self.num_classes:
            what = f"the table describes {len(self.table.classes)} classes, but num_classes is {self.num_classes}"
            raise ConfigError(what, where="table")

    def described(self, table: AttributeTable | None) -> AttributesConfig:
        """The same with the table of the data.

        Raises:
            ConfigError: where the data has none.
        """
        if table is None:
            raise ConfigError(
                "this model recognises classes by their attributes, and the data describes none",
                where="table",
                expected="attributes.csv beside the class folders: a row per class, a column per attribute",
            )
        return replace(self, table=table, num_classes=len(table.classes))

    def build(self) -> AttributeClassifier:
        """The classifier, with random weights."""
        return AttributeClassifier(self)


class AttributeOutputs(NamedTuple):
    """Raw outputs.

    Attributes:
        logits: ``[B, K]``, one per class; their softmax is the posterior.
        attributes: ``[B, A]``, one per attribute; their sigmoids are its probability.
    """

    logits: Tensor
    attributes: Tensor


class AttributeClassifier(VisionModel[AttributeOutputs, ClassTarget, Classification]):
    """Backbone, mean over the picture, one logit per attribute, one per class by its description.

    Attributes:
        backbone: pixels to features.
        head: the linear layer that predicts the attributes.
    """

    config: AttributesConfig
    table: Tensor
    seen: Tensor
    prior: Tensor

    def __init__(self, config: AttributesConfig) -> None:
        super().__init__(config)
        table = config.table
        if table.classes:
            self.classes = Classes(table.classes)
        matrix = table.matrix() if table.classes else torch.eye(config.num_classes)
        has_prior = config.loss == "attributes" and config.prior == "seen" and table.classes
        shares = table.shares() if has_prior else torch.full((matrix.shape[1],), 0.5)
        self.backbone = config.backbone.build()
        self.head = nn.Linear(self.backbone.channels[-1], matrix.shape[1])
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("table", matrix)
        is_seen = torch.tensor([name in table.seen for name in self.classes])
        self.register_buffer("seen", is_seen if bool(is_seen.any()) else ~is_seen)
        self.register_buffer("prior", shares.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE).logit())

    def forward(self, images: ImageBatch, targets: Sequence[ClassTarget] | None = None) -> AttributeOutputs:
        """Logits of classes and attributes; targets change nothing."""
        return self.classify(*self.embed(images))

    def embed(self, images: ImageBatch) -> tuple[Tensor, Routing]:
        """The mean features ``[B, C]``, all that a frozen backbone contributes, and what the routers did."""
        features = self.backbone(images.pixels)
        return features.maps[-1].mean(dim=(2, 3)), features.routing

    def classify(self, pooled: Tensor, routing: Routing) -> AttributeOutputs:
        """Outputs from the mean features ``[B, C]``."""
        attributes = self.head(pooled)
        return AttributeOutputs((attributes - self.prior) @ self.table.T, attributes)

    def loss(self, outputs: AttributeOutputs, targets: Sequence[ClassTarget]) -> Losses:
        """Cross-entropy of every attribute against the description, or of the seen classes."""
        labels = stack_labels(targets, len(self.classes)).to(outputs.logits.device)
        with torch.no_grad():
            hard = labels.argmax(dim=1) if labels.ndim == 2 else labels
            logs = {"accuracy": (outputs.logits.argmax(dim=1) == hard).float().mean()}
        if self.config.loss == "attributes":
            table = self.table.float()
            wanted = labels.float() @ table if labels.ndim == 2 else table[labels]
            term = nn.functional.binary_cross_entropy_with_logits(outputs.attributes.float(), wanted)
            return Losses({"attributes": term}, logs)
        # A class that is not shown is no candidate, unless a picture of it is there after all.
        is_open = self.seen | (labels.sum(dim=0) > 0 if labels.ndim == 2 else _among(labels, len(self.seen)))
        logits = outputs.logits.float().masked_fill(~is_open, -torch.inf)
        if labels.ndim == 2:
            shares = logits.log_softmax(dim=1).masked_fill(~is_open, 0.0)
            return Losses({"classes": -(labels * shares).sum(dim=1).mean()}, logs)
        return Losses({"classes": nn.functional.cross_entropy(logits, labels)}, logs)

    def postprocess(self, outputs: AttributeOutputs, images: ImageBatch) -> list[Classification]:
        """Probabilities of all classes of the table, shown or not."""
        scores = outputs.logits.detach().float().softmax(dim=-1)
        return [Classification(row, self.classes) for row in scores]

    def explain_spec(self) -> ExplainSpec:
        """The backbone's layers; plain CAM applies, as classes are linear in the mean features."""
        spec = self.backbone.explain_spec(reads_prefix=False).under("backbone")
        return replace(spec, linear_head=self._linear_head)

    def _linear_head(self) -> LinearHead:
        return LinearHead(self.table @ self.head.weight, self.table @ (self.head.bias - self.prior))

    def no_decay(self) -> set[str]:
        """Tokens and positions."""
        return {f"backbone.{name}" for name in self.backbone.no_decay()}


def _among(labels: Tensor, count: int) -> Tensor:
    """Which of ``count`` classes are there, ``[K]`` bool."""
    return torch.bincount(labels, minlength=count) > 0


def _variants() -> dict[str, AttributesConfig]:
    test = AttributeTable(
        classes=("red ball", "red box", "blue ball", "blue box", "blue cone"),
        attributes=("red", "blue", "ball", "box"),
        values=((1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 1, 0, 0)),
        seen=("red ball", "red box", "blue ball"),
    )
    tiny = ViTConfig(
        image_size=(32, 32), patch_size=8, embed_dim=32, depth=2, num_heads=4, has_class_token=False, positions="sincos"
    )
    cnn = {"layers": [1, 1, 1, 1], "channels": [24, 48, 96, 128], "output_stride": 16}
    return {
        "attributes_resnet18": AttributesConfig(backbone=TimmConfig(name="resnet18")),
        "attributes_mobilenetv2": AttributesConfig(backbone=TimmConfig(name="mobilenetv2_100")),
        # A residual network of a million parameters for pictures of 64 pixels, which a laptop trains in minutes.
        "attributes_small": AttributesConfig(
            backbone=TimmConfig(name="resnet18", arguments=cnn), num_classes=10, preprocess=icons(64)
        ),
        "attributes_test": AttributesConfig(backbone=tiny, table=test, num_classes=5, preprocess=icons(32)),
    }


register({**_variants()})
