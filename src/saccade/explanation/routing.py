"""Which expert handled which patch: the routing of a mixture of experts as a map of the picture.

M layers with experts · gh, gw grid of patches · H, W canvas
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saccade.data.decode import ImageSource, read_image
from saccade.errors import ExplainError, InputError
from saccade.explanation.adapt import model_device
from saccade.explanation.record import undisturbed
from saccade.models.base import VisionModel


@dataclass(frozen=True, eq=False)
class RoutingMap:
    """How one picture was shared out among the experts.

    Attributes:
        experts: ``[M, gh, gw]`` int64, the likeliest expert of each patch, for each layer with experts.
        num_experts: E.
        seen: ``[3, H, W]`` uint8, the picture as the model saw it; the grid covers it exactly.
    """

    experts: Tensor
    num_experts: int
    seen: Tensor

    def shares(self) -> list[list[float]]:
        """Share of the patches that each expert took, per layer; each row sums to 1."""
        return [[float((layer == e).float().mean()) for e in range(self.num_experts)] for layer in self.experts]

    def save(self, path: str | Path, layer: int = -1) -> Path:
        """Draw one layer beside the picture; the suffix chooses the format (.png, .svg, .pdf).

        Raises:
            InputError: where there is no such layer, or no such format.
            RunError: where the file cannot be written.
        """
        from saccade import render  # matplotlib is loaded only when something is drawn

        count = len(self.experts)
        if not -count <= layer < count:
            raise InputError(f"there is no routed layer {layer}", where="layer", expected=f"0 to {count - 1}")
        title = f"routed layer {layer % count}: first expert"
        return render.save(render.routing_map(self.seen, self.experts[layer], self.num_experts, title=title), path)


def routing_maps(model: VisionModel[Any, Any, Any], images: Sequence[ImageSource]) -> list[RoutingMap]:
    """The routing of each picture.

    Args:
        model: with a mixture of experts.
        images: paths, bytes, PIL pictures, uint8 arrays or tensors.

    Raises:
        ExplainError: where the model has no experts.
        ImageError: naming the picture that cannot be read.
    """
    if not images:
        raise InputError("there are no images", expected="at least one")
    device, dtype = model_device(model)
    batch = model.preprocess([read_image(image) for image in images]).to(device, dtype)
    with undisturbed(model), torch.no_grad():
        routing: Any = getattr(model(batch), "routing", None)
    if routing is None or not len(routing.load):
        raise ExplainError(
            "the model has no experts, so there is no routing to show",
            expected="a model with a mixture of experts",
            remedy="train one with --set model.backbone.moe.num_experts=4",
        )
    grid = model.explain_spec().attention[0].grid((int(batch.pixels.shape[-2]), int(batch.pixels.shape[-1])))
    first = routing.experts[..., 0].unflatten(2, grid).cpu()  # [M, B, gh, gw]
    seen = (model.preprocess.denormalise(batch.pixels.float()) * 255).round().to(torch.uint8).cpu()
    num_experts = int(routing.load.shape[1])
    return [RoutingMap(first[:, index], num_experts, seen[index]) for index in range(len(batch))]


def has_experts(model: VisionModel[Any, Any, Any]) -> bool:
    """Whether any block of the model has experts."""
    backbone: Any = getattr(model.config, "backbone", None)
    moe: Any = getattr(backbone, "moe", None)
    return moe is not None and bool(moe.num_experts)
