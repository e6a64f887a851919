"""Names of the methods: each name is an explainer class; which of them suit a model is told by its ``ExplainSpec``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from saccade.errors import ConfigError, UnknownNameError, nearest
from saccade.explanation import attention, cam, gradients, perturbation, queries
from saccade.explanation.attribution import Explainer
from saccade.types import ExplainSpec

METHODS: Mapping[str, type[Explainer]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            gradients.Gradient,
            gradients.InputGradient,
            gradients.SmoothGrad,
            gradients.IntegratedGradients,
            gradients.GuidedBackprop,
            cam.CAM,
            cam.GradCAM,
            cam.GradCAMPlusPlus,
            cam.XGradCAM,
            cam.HiResCAM,
            cam.LayerCAM,
            cam.EigenCAM,
            cam.ScoreCAM,
            attention.AttentionRollout,
            attention.AttentionRelevance,
            queries.CrossAttention,
            perturbation.Occlusion,
            perturbation.RISE,
            perturbation.DRISE,
        )
    }
)
"""Every method by its name."""


def method(name: str, **options: Any) -> Explainer:
    """The explainer called ``name`` with some of its options changed.

    Raises:
        UnknownNameError: for a name that no method has, with the nearest one.
        ConfigError: for an option that the method does not have, or a value it cannot use.
    """
    folded = name.lower().replace("-", "").replace(" ", "_")
    kind = METHODS.get(name) or METHODS.get(folded)
    if kind is None:
        raise UnknownNameError("method", name, ("auto", *METHODS))
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            near = nearest(option, known)
            raise ConfigError(
                f"unknown option {option!r}",
                where=f"method {kind.name!r}",
                expected=None if near else f"one of: {', '.join(known) or '(it has none)'}",
                remedy=f"did you mean {near!r}?" if near else None,
            )
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"method {kind.name!r}, option {'.'.join(map(str, first['loc']))}"
        raise ConfigError(f"{first['msg'][:1].lower()}{first['msg'][1:]}", where=where) from None


def default_method(spec: ExplainSpec, *, has_regions: bool = False, has_boxes: bool = False) -> Explainer:
    """What ``auto`` means: attention times gradient where attention can be observed, HiResCAM elsewhere.

    Of a segmenter's regions LayerCAM: deep in a U-Net, HiResCAM also shows what speaks against the answer there, which
    the skips outvote. Of 18 regions of nuclei, 12 maps of LayerCAM were supported and 6 of HiResCAM. Of a detector's
    objects LayerCAM too, at the level of the pyramid that each was read from: of 8 discs and blocks all 8 maps were
    supported, 3 of HiResCAM, 4 of Grad-CAM, whose weights hold for the whole picture and so for other objects as well.

    Where the model names an ``early_layer`` LayerCAM reads that: signs of 8 pixels, planted at the objects of 64 pixels
    that a U-Net labels, were found in 16 of 16 maps of its first stage and 7 of 16 of its bottleneck; of a YOLO's boxes
    in 14 of 16 of its stem and 9 of 16 of the pyramid (``docs/verdict.md`` tells what counts as found).
    """
    if has_boxes or (has_regions and not spec.attention):
        return cam.LayerCAM(spec.early_layer or spec.usual_layer)
    return attention.AttentionRelevance() if spec.attention else cam.HiResCAM()


def suited(spec: ExplainSpec, *, has_boxes: bool = False) -> dict[str, str | None]:
    """Every method by name, with None where it suits the model and one sentence where it does not.

    Args:
        spec: what the model declares about itself.
        has_boxes: whether it finds objects.
    """
    reasons: dict[str, str | None] = dict.fromkeys(METHODS)
    if spec.linear_head is None:
        reasons["cam"] = "the model is not global average pooling followed by one linear layer; hirescam does the same"
    if not has_boxes:
        reasons["drise"] = "it asks where an object is still found, and the model finds none; rise asks about classes"
    elif spec.attention:
        reasons["rollout"] = "an object is read by a query of its own; cross_attention shows where it looked"
    if not spec.attention:
        for name in ("rollout", "relevance"):
            reasons[name] = "the model has no attention over all patches that could be observed"
    if spec.queries is None:
        reasons["cross_attention"] = "the model has no queries that look at the picture"
    else:
        reasons["relevance"] = None
    reasons["guided_backprop"] = "a negative control: it hardly depends on the weights or the class"
    return reasons
