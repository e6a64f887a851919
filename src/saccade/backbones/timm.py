"""Any convolutional backbone of timm, with random weights: pixels to its last feature map, or to one map per stage.

Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models. timm is imported when the first
such backbone is built.

B batch · C channels · h, w grid
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saccade.backbones.base import Backbone, BackboneConfig, Features, Routing
from saccade.errors import ConfigError, UnknownNameError
from saccade.nn.norm import batch_norms, keep_statistics
from saccade.types import ExplainSpec, GridLayer


@dataclass(frozen=True, kw_only=True)
class TimmConfig(BackboneConfig):
    """A convolutional network of timm."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet18"
    """timm's name of the architecture, without a weights tag."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm's constructor, as JSON has them: ``{"drop_path_rate": 0.1}``."""

    def build(self) -> TimmBackbone:
        """The backbone up to its last map, with random weights."""
        return TimmBackbone(self)

    def build_pyramid(self) -> TimmBackbone:
        """The backbone with one map per stage, finest first, with random weights.

        It has the names of ``build``'s, so weights of the classifier fit; layers that only a classifier has, behind the
        last stage, are left out (``TimmBackbone.left_out``).

        Raises:
            ConfigError: where timm does not tell the stages of this network.
        """
        return TimmBackbone(self, has_all_stages=True)


class TimmBackbone(Backbone):
    """A timm network without its pooling and head.

    Args:
        config: which network.
        has_all_stages: whether to publish the map of every stage instead of the last map.

    Attributes:
        body: timm's module, names as in timm's own weight files.
    """

    def __init__(self, config: TimmConfig, *, has_all_stages: bool = False) -> None:
        super().__init__()
        self.config = config
        self.has_all_stages = has_all_stages
        self.has_frozen_norms = False
        self.body: Any = build_body(config)  # timm's networks share methods, but no type
        self.maps = nn.Identity()  # the last map passes here, for explanation to record
        if has_all_stages:
            self.left_out = _prune(self.body, config.name)
        self.channels, self.strides = _measure(self._compute, self.body, config.name)

    def freeze_norms(self) -> None:
        """From now on batch norms stay as they are in training as well.

        Their statistics, which a few pictures would spoil, and their weights and biases: published detectors are
        trained so (torchvision's ``FrozenBatchNorm2d``).
        """
        self.has_frozen_norms = True
        for norm in batch_norms(self):
            norm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TimmBackbone:
        """The mode of training or of evaluation; frozen norms always evaluate."""
        super().train(mode)
        if self.has_frozen_norms:
            keep_statistics(self)
        return self

    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels ``[B, 3, H, W]`` to maps ``[B, C_i, h_i, w_i]``, finest first."""
        *finer, last = self._compute(pixels)
        maps = (*finer, self.maps(last))
        return Features(maps, pixels.new_zeros(pixels.shape[0], 0, self.channels[-1]), Routing.none(pixels))

    def _compute(self, pixels: Tensor) -> list[Tensor]:
        if self.has_all_stages:
            return self.body.forward_intermediates(pixels, intermediates_only=True)  # type: ignore[no-any-return]
        return [self.body.forward_features(pixels)]

    def stages_of(self, strides: Sequence[int], *, needs_coarsest: bool = False) -> list[int]:
        """Indices of the maps with these strides, the last one of each.

        Args:
            strides: pixels per cell.
            needs_coarsest: whether to refuse strides without the coarsest map's, whose layers then compute and hold
                weights for nobody.

        Raises:
            ConfigError: where one is missing.
        """
        last = {stride: stage for stage, stride in enumerate(self.strides)}
        missing = [stride for stride in strides if stride not in last]
        if missing:
            known = ", ".join(str(stride) for stride in last)
            told = f"no map of the backbone has stride {missing[0]}"
            raise ConfigError(told, where="strides", expected=f"of {known}")
        coarsest = max(self.strides)
        if needs_coarsest and coarsest not in strides:
            raise ConfigError(
                "the backbone's coarsest map is not used",
                where="strides",
                expected=f"{coarsest} in them",
                remedy=f"add it, or keep the backbone finer: backbone.arguments.output_stride={max(strides)}",
            )
        return [last[stride] for stride in strides]

    def explain_spec(self, reads_prefix: bool = False) -> ExplainSpec:
        """The stages as timm names them (``layer1``, ``blocks.2``) and ``final``, the last map."""
        modules = dict(self.body.named_modules())
        stages = [info["module"] for info in self.body.feature_info]
        layers = {name: GridLayer(f"body.{name}") for name in stages if name in modules}
        return ExplainSpec({**layers, "final": GridLayer("maps")})


def build_body(config: TimmConfig) -> nn.Module:
    """Timm's module without head and pooling.

    Raises:
        UnknownNameError: with timm's nearest name.
        ConfigError: where timm refuses the arguments.
    """
    import timm

    if not timm.is_model(config.name):
        raise UnknownNameError("timm model", config.name, timm.list_models())
    try:
        body: nn.Module = timm.create_model(config.name, num_classes=0, global_pool="", **config.arguments)
    except TypeError as error:
        raise ConfigError(f"timm refuses: {error}", where=f"backbone.arguments of {config.name}") from error
    return body


def _prune(body: Any, name: str) -> frozenset[str]:
    """Drop what no stage's map depends on; returns the names, below the backbone, of what is gone."""
    before = body.state_dict().keys()
    if not (hasattr(body, "forward_intermediates") and hasattr(body, "prune_intermediate_layers")):
        raise ConfigError(
            f"timm does not tell the stages of {name!r}", where="backbone.name", expected="a ResNet or so"
        )
    body.prune_intermediate_layers(len(body.feature_info), prune_norm=True, prune_head=True)
    return frozenset(f"body.{gone}" for gone in before - body.state_dict().keys())


def _measure(
    compute: Callable[[Tensor], list[Tensor]], body: nn.Module, name: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of the maps, measured on a small black picture rather than looked up."""
    side = 64
    was_training = body.training
    body.eval()
    try:
        with torch.no_grad():
            maps = compute(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, AttributeError) as error:
        raise _not_convolutional(name) from error
    body.train(was_training)
    # Token models give three axes, and some attention models put channels last: then the axes are no square map.
    is_grid = all(level.ndim == 4 and level.shape[2] == level.shape[3] for level in maps)
    if not is_grid or not hasattr(body, "feature_info"):
        raise _not_convolutional(name)
    return tuple(int(level.shape[1]) for level in maps), tuple(side // int(level.shape[2]) for level in maps)


def _not_convolutional(name: str) -> ConfigError:
    return ConfigError(
        f"timm's {name!r} gives no feature map [B, C, h, w]",
        where="backbone.name",
        expected="a convolutional network",
        remedy="use 'vit_*' models for transformers",
    )
