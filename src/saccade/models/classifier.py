"""One class per picture: a backbone, a pooling, a head.

Class token: Dosovitskiy et al. 2020, arXiv 2010.11929. Global average pooling with one linear layer: Lin et al. 2013,
arXiv 1312.4400, which is also what class activation maps need (Zhou et al. 2015, arXiv 1512.04150).

B batch · K classes · C width of the backbone · h, w grid
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from saccade.backbones.base import Routing
from saccade.backbones.timm import TimmConfig
from saccade.backbones.vit import ViTConfig, check_fit
from saccade.errors import ConfigError
from saccade.losses import cross_entropy
from saccade.models.base import ModelConfig, VisionModel, icons
from saccade.nn.attention import AttentionPool
from saccade.nn.moe import MoEConfig
from saccade.nn.norm import build_norm
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.types import Classification, ClassTarget, ExplainSpec, ImageBatch, LinearHead, Losses, TaskName


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(ModelConfig):
    """A classifier: what sees, what gathers, what decides."""

    task: ClassVar[TaskName] = "classification"
    least_classes: ClassVar[int] = 2
    kind: Literal["classifier"] = "classifier"
    backbone: Annotated[ViTConfig | TimmConfig, Field(discriminator="kind")] = field(default_factory=ViTConfig)
    """What turns pixels into features."""
    pool: Literal["token", "average", "attention"] = "average"
    """Read the class token, the mean of the map, or what a learned query gathers from the map."""
    pool_norm: bool = False
    """LayerNorm of the pooled vector (timm's ``fc_norm``); with it plain CAM does not apply."""
    head: tuple[int, ...] = ()
    """Widths of dense GELU layers between pooling and the last linear layer."""
    head_dropout: float = 0.0
    """Dropout of the pooled vector."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss, summed over layers with experts."""
    router_z_weight: float = 0.001
    """Weight of the router-z loss, summed over layers with experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fit(self.backbone, self.pool, self.preprocess.size)
        if min(self.head, default=1) < 1:
            raise ConfigError(f"head is {self.head}", where="head", expected="widths of at least 1")

    def build(self) -> Classifier:
        """The classifier, with random weights."""
        return Classifier(self)


class ClassifierOutputs(NamedTuple):
    """Raw outputs of a classifier.

    Attributes:
        logits: ``[B, K]``.
        routing: what the routers did; M = 0 rows without experts.
    """

    logits: Tensor
    routing: Routing


class Classifier(VisionModel[ClassifierOutputs, ClassTarget, Classification]):
    """Backbone, pooling, hidden layers, one linear layer.

    Attributes:
        backbone: pixels to features.
        head: the last linear layer; the only part that depends on the classes.
    """

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build()
        width = self.backbone.channels[-1]
        self.pool = AttentionPool(width, math.gcd(width, 8)) if config.pool == "attention" else None
        self.pool_norm = build_norm("layer", width, 1e-6) if config.pool_norm else nn.Identity()
        self.dropout = nn.Dropout(config.head_dropout)
        widths = (width, *config.head)
        dense = [layer for a, b in zip(widths, config.head, strict=False) for layer in (nn.Linear(a, b), nn.GELU())]
        self.hidden = nn.Sequential(*dense)
        self.head = nn.Linear(widths[-1], config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: ImageBatch, targets: Sequence[ClassTarget] | None = None) -> ClassifierOutputs:
        """Logits ``[B, K]``; targets change nothing."""
        return self.classify(*self.embed(images))

    def embed(self, images: ImageBatch) -> tuple[Tensor, Routing]:
        """The pooled vectors ``[B, C]``, all that a frozen backbone contributes, and what the routers did."""
        features = self.backbone(images.pixels)
        maps = features.maps[-1]
        if self.config.pool == "token":
            return features.prefix[:, 0], features.routing
        if self.pool is None:
            return maps.mean(dim=(2, 3)), features.routing
        return self.pool(maps.flatten(2).transpose(1, 2)), features.routing

    def classify(self, pooled: Tensor, routing: Routing) -> ClassifierOutputs:
        """Outputs from the pooled vectors ``[B, C]`` of ``embed``."""
        logits = self.head(self.hidden(self.dropout(self.pool_norm(pooled))))
        return ClassifierOutputs(logits, routing)

    def loss(self, outputs: ClassifierOutputs, targets: Sequence[ClassTarget]) -> Losses:
        """Cross-entropy; with experts, the balance and router-z terms as well."""
        logits, routing = outputs.logits, outputs.routing
        labels = stack_labels(targets, logits.shape[1]).to(logits.device)
        terms = {"cross_entropy": cross_entropy(logits, labels)}
        with torch.no_grad():
            hard = labels.argmax(dim=1) if labels.ndim == 2 else labels
            logs = {"accuracy": (logits.argmax(dim=1) == hard).float().mean()}
        config = self.config
        return routing.added_to(
            Losses(terms, logs), balance_weight=config.balance_weight, router_z_weight=config.router_z_weight
        )

    def postprocess(self, outputs: ClassifierOutputs, images: ImageBatch) -> list[Classification]:
        """Softmax probabilities, one ``Classification`` per picture."""
        scores = outputs.logits.detach().float().softmax(dim=-1)
        return [Classification(row, self.classes) for row in scores]

    def explain_spec(self) -> ExplainSpec:
        """The backbone's layers, the pooling's attention, the linear head where plain average pooling precedes it."""
        spec = self.backbone.explain_spec(reads_prefix=self.config.pool == "token").under("backbone")
        if self.pool is not None and spec.attention:
            # The pooling query sees the patches alone, without the prefix.
            site = replace(spec.attention[0], path="pool.probabilities", num_prefix=0)
            spec = replace(spec, attention=[*spec.attention, site])
        is_plain = self.config.pool == "average" and not self.config.pool_norm and not self.config.head
        return replace(spec, linear_head=self._linear_head) if is_plain else spec

    def _linear_head(self) -> LinearHead:
        return LinearHead(self.head.weight, self.head.bias)

    def no_decay(self) -> set[str]:
        """Tokens, positions and the query of attention pooling."""
        names = {f"backbone.{name}" for name in self.backbone.no_decay()}
        return names if self.pool is None else names | {"pool.query"}


def stack_labels(targets: Sequence[ClassTarget], num_classes: int) -> Tensor:
    """Labels ``[B]`` int64, or ``[B, K]`` as soon as one of them is soft."""
    labels = [target.label for target in targets]
    if all(label.ndim == 0 for label in labels):
        return torch.stack(labels)
    soft = [nn.functional.one_hot(label, num_classes).float() if label.ndim == 0 else label for label in labels]
    return torch.stack(soft)


_SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}


def _vit(shape: tuple[int, int, int], patch_size: int, side: int) -> ViTConfig:
    embed_dim, depth, num_heads = shape
    return ViTConfig(
        image_size=(side, side), patch_size=patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads
    )


def _published() -> dict[str, ClassifierConfig]:
    """The sizes of the papers, with class token."""
    return {
        f"vit_{size}{patch}": ClassifierConfig(backbone=_vit(shape, patch, 224), pool="token")
        for size, shape in _SIZES.items()
        for patch in (16, 32)
    }


def _modern() -> dict[str, ClassifierConfig]:
    """vit_s16 with one idea changed at a time, averaged so that plain CAM applies."""
    plain = replace(_vit(_SIZES["s"], 16, 224), has_class_token=False)
    backbones = {
        "vit_s16_gap": plain,
        "vit_s16_swiglu": replace(plain, mlp="swiglu"),
        "vit_s16_rms": replace(plain, norm="rms"),
        "vit_s16_rope": replace(plain, positions="rotary"),
        "vit_s16_moe8": replace(plain, moe=MoEConfig(num_experts=8)),
        "vit_s16_modern": replace(
            plain, mlp="swiglu", norm="rms", positions="rotary", qk_norm=True, num_registers=4, layer_scale=1e-2
        ),
    }
    return {name: ClassifierConfig(backbone=backbone) for name, backbone in backbones.items()}


def _small() -> dict[str, ClassifierConfig]:
    """Transformers for pictures of 28 to 64 pixels that a laptop trains."""
    pico, nano, micro = (64, 4, 4), (64, 6, 4), (128, 6, 4)
    shapes = {
        "vit_pico_p4_28": (pico, 4, 28),
        "vit_nano_p4_28": (nano, 4, 28),
        "vit_nano_p4_32": (nano, 4, 32),
        "vit_nano_p8_64": (nano, 8, 64),
        "vit_micro_p4_28": (micro, 4, 28),
        "vit_micro_p4_32": (micro, 4, 32),
        "vit_micro_p8_64": (micro, 8, 64),
    }
    variants = {}
    for name, (shape, patch, side) in shapes.items():
        # Learned positions start at 0.02 beside patches of size 1: short trainings end before they are noticed.
        backbone = replace(_vit(shape, patch, side), has_class_token=False, positions="sincos")
        plain = ClassifierConfig(backbone=backbone, num_classes=10, preprocess=icons(side))
        variants[name] = plain
        variants[f"{name}_moe4"] = replace(plain, backbone=replace(backbone, moe=MoEConfig(num_experts=4)))
    return variants


def _convolutional() -> dict[str, ClassifierConfig]:
    names = ("resnet18", "resnet34", "resnet50", "mobilenetv2_100", "efficientnet_b0", "regnety_004")
    variants = {name: ClassifierConfig(backbone=TimmConfig(name=name)) for name in names}
    # The same network as TensorFlow trained it: padding at the right and bottom, values in [-1, 1].
    variants["mobilenetv2_100_tf"] = ClassifierConfig(
        backbone=TimmConfig(name="mobilenetv2_100", arguments={"pad_type": "same"}),
        preprocess=Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    return variants


def _tests() -> dict[str, ClassifierConfig]:
    """Under 100k parameters each; their names end in ``_test`` and the contract suite runs over them."""
    base = _vit((32, 2, 4), 8, 32)
    free = replace(base, has_class_token=False)
    experts = MoEConfig(num_experts=4, active=2, has_shared_expert=True)
    cnn = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "output_stride": 8}
    common = {"num_classes": 5, "preprocess": icons(32)}

    def small(backbone: ViTConfig | TimmConfig, **options: object) -> ClassifierConfig:
        return ClassifierConfig(backbone=backbone, **common, **options)  # type: ignore[arg-type]

    return {
        "vit_token_test": small(replace(base, num_registers=1, qk_norm=True), pool="token"),
        "vit_average_test": small(free),
        "vit_attention_test": small(free, pool="attention", head=(16,)),
        "vit_post_norm_test": small(replace(base, norm_position="post", final_norm=False), pool="token"),
        "vit_rms_test": small(replace(free, norm="rms", layer_scale=0.1, qkv_bias=False)),
        "vit_swiglu_test": small(replace(free, mlp="swiglu", drop_path=0.1), pool_norm=True),
        "vit_moe_test": small(replace(free, moe=experts)),
        "vit_rotary_test": small(replace(free, positions="rotary", num_registers=2)),
        "vit_sincos_test": small(replace(free, positions="sincos", activation="relu")),
        "resnet_test": small(TimmConfig(name="resnet18", arguments=cnn)),
    }


register({**_published(), **_modern(), **_small(), **_convolutional(), **_tests()})
