"""Any convolutional backbone of timm, with random weights: pixels to its last feature map.

Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models. timm is imported when the first
such backbone is built.

B batch · C channels · h, w grid
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saccade.backbones.base import Backbone, BackboneConfig, Features, Routing
from saccade.errors import ConfigError, UnknownNameError
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
        """The backbone, with random weights."""
        return TimmBackbone(self)


class TimmBackbone(Backbone):
    """A timm network without its pooling and head.

    Attributes:
        body: timm's module, names as in timm's own weight files.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.body: Any = build_body(config)  # timm's networks share methods, but no type
        self.maps = nn.Identity()  # the pooled map passes here, for explanation to record
        width, stride = _measure(self.body, config.name)
        self.channels, self.strides = (width,), (stride,)

    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels ``[B, 3, H, W]`` to the last map ``[B, C, h, w]``."""
        maps = self.maps(self.body.forward_features(pixels))
        return Features((maps,), pixels.new_zeros(pixels.shape[0], 0, self.channels[-1]), Routing.none(pixels))

    def explain_spec(self, reads_prefix: bool = False) -> ExplainSpec:
        """The stages as timm names them (``layer1``, ``blocks.2``) and ``final``, the map that is pooled."""
        modules = dict(self.body.named_modules())
        stages = [info["module"] for info in self.body.feature_info]
        layers = {name: GridLayer(f"body.{name}", _as_it_is) for name in stages if name in modules}
        return ExplainSpec({**layers, "final": GridLayer("maps", _as_it_is)})


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


def _measure(body: Any, name: str) -> tuple[int, int]:
    """Channels and stride of the last map, measured on a small black picture rather than looked up."""
    side = 64
    was_training = body.training
    body.eval()
    try:
        with torch.no_grad():
            maps = body.forward_features(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, AttributeError) as error:
        raise _not_convolutional(name) from error
    body.train(was_training)
    # Token models give three axes, and some attention models put channels last: then the axes are no square map.
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3] or not hasattr(body, "feature_info"):
        raise _not_convolutional(name)
    return int(maps.shape[1]), side // int(maps.shape[2])


def _not_convolutional(name: str) -> ConfigError:
    return ConfigError(
        f"timm's {name!r} gives no feature map [B, C, h, w]",
        where="backbone.name",
        expected="a convolutional network",
        remedy="use 'vit_*' models for transformers",
    )


def _as_it_is(maps: Tensor, _: tuple[int, int]) -> Tensor:
    return maps
