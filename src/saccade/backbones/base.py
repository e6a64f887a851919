"""What every backbone promises: pixels in, ``Features`` out, its channels, strides and explain layers published.

B batch · C channels · h, w grid · P prefix tokens · M mixture-of-experts layers · E experts · T tokens · A active
experts
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saccade.config import Config
from saccade.types import ExplainSpec, Losses


class Routing(NamedTuple):
    """What the routers of a model did; every tensor has M = 0 rows where the model has no mixture of experts.

    Attributes:
        balance: ``[M]`` load-balance loss per layer, unweighted.
        z: ``[M]`` router-z loss per layer, unweighted.
        load: ``[M, E]`` share of the routed tokens each expert took.
        dropped: ``[M]`` share of assignments beyond the capacity.
        experts: ``[M, B, T, A]`` int64, the experts chosen for each patch token, likeliest first.
    """

    balance: Tensor
    z: Tensor
    load: Tensor
    dropped: Tensor
    experts: Tensor

    @classmethod
    def none(cls, pixels: Tensor) -> Routing:
        """The routing of a model without experts."""
        empty = pixels.new_zeros(0, dtype=torch.float32)
        no_experts = torch.zeros(0, pixels.shape[0], 0, 0, dtype=torch.int64, device=pixels.device)
        return cls(empty, empty, empty.reshape(0, 0), empty, no_experts)

    def added_to(self, losses: Losses, *, balance_weight: float, router_z_weight: float) -> Losses:
        """Losses of a model and, with experts, the terms ``balance`` and ``router_z``; ``dropped`` is logged.

        Args:
            losses: what the model learns beside.
            balance_weight: of the load-balance loss, summed over layers.
            router_z_weight: of the router-z loss, summed over layers.
        """
        if not len(self.balance):
            return losses
        terms = {"balance": balance_weight * self.balance.sum(), "router_z": router_z_weight * self.z.sum()}
        return Losses({**losses.terms, **terms}, {**losses.logs, "dropped": self.dropped.mean()})


class Features(NamedTuple):
    """What a backbone makes of pixels.

    Attributes:
        maps: ``[B, C_i, h_i, w_i]`` per published stride, finest first.
        prefix: ``[B, P, C]`` class token and registers; P = 0 for convolutional backbones.
        routing: what the routers did.
    """

    maps: tuple[Tensor, ...]
    prefix: Tensor
    routing: Routing


class Backbone(nn.Module, abc.ABC):
    """Base of the backbones.

    Attributes:
        channels: width of each feature map, finest first.
        strides: pixels per cell of each feature map, finest first.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels ``[B, 3, H, W]`` to features."""

    @abc.abstractmethod
    def explain_spec(self, reads_prefix: bool = False) -> ExplainSpec:
        """Layers and attention sites, with paths relative to the backbone.

        Args:
            reads_prefix: whether the head reads the class token instead of the maps; it moves the last layer that a
                gradient reaches.
        """

    def no_decay(self) -> set[str]:
        """Names of parameters, beside norms and biases, that weight decay must spare (positions, tokens)."""
        return set()


class BackboneConfig(Config):
    """Base of the backbone configs."""

    def build(self) -> Backbone:
        """The backbone, with random weights."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it builds")
