"""What is measured of a map: maps of every method for one question, beside maps that know nothing of the model.

Pointing game: Zhang et al. 2016, arXiv 1608.00507. Energy inside: Wang et al. 2020, arXiv 1910.01279. Deletion and
insertion: Petsiuk et al. 2018, arXiv 1806.07421. Randomised weights: Adebayo et al. 2018, arXiv 1810.03292, here of
the later half of the tensors, because a control that only draws edges survives exactly that.

h, w picture · H, W canvas · N cells of a picture · M masks
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError
from saccade.explanation.asking import ask, on_canvas
from saccade.explanation.attribution import Explainer, ScoreFn
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.faithfulness import (
    centre_map,
    counts_of,
    edge_map,
    energy_inside,
    pointing_hit,
    rank_similarity,
)
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.methods import METHODS, default_method, method, suited
from saccade.explanation.perturbation import baseline_pixels, masked_scores, masks_at_once
from saccade.explanation.questions import Question
from saccade.explanation.record import undisturbed
from saccade.explanation.trials import both_games
from saccade.studies.base import Scale
from saccade.types import ImageBatch

CELLS = 7
"""Cells a side of the grid on which pictures are hidden and revealed."""

PASSES: Mapping[Scale, tuple[int, int, int]] = {"smoke": (4, 4, 16), "quick": (4, 4, 16), "full": (16, 32, 150)}
"""How often the costly methods see the picture, less often than by default, so that it costs seconds: samples and steps
of the averaged gradients, channels of Score-CAM, random masks."""

CONTROLS = ("random order", "middle", "edges")
"""Maps that know nothing of the model: noise, a blob in the middle, the edges of the picture."""

NEGATIVE = "guided_backprop"
"""The method that is here to be found out."""


@dataclass(frozen=True, eq=False)
class Case:
    """One question about one picture.

    Attributes:
        picture: ``[3, h, w]`` uint8.
        of: the question.
        score: what it stands for.
        images: the picture on the canvas.
        layer: that the layer methods read; of a detector the level that the object was read from.
        region: ``[h, w]`` bool where the evidence should be; None where nobody knows.
        is_within: whether the question is about that region, so that only what is inside of it can be compared.
    """

    picture: Tensor
    of: Question
    score: ScoreFn
    images: ImageBatch
    layer: str
    region: Tensor | None
    is_within: bool


def case_of(subject: Subject, picture: Tensor, of: Question, truth: Tensor | None = None) -> Case | None:
    """A question about a picture; None where the model found nothing that could be asked about.

    Args:
        subject: the model.
        picture: ``[3, h, w]`` uint8.
        of: the question.
        truth: ``[h, w]`` bool where the evidence should be; None: the region of the question, if it has one.
    """
    images = on_canvas(subject.model, [picture], [of])
    try:
        with undisturbed(subject.model), torch.no_grad():
            asked = ask(subject.model, subject.model(images), images, [of], None)[0][0]
        heat = explain_batch(subject, [picture], [of], ExplainOptions(method="layercam", verdict=False))[0][0]
    except InputError:
        return None
    region = truth if truth is not None else heat.region
    region = region if region is not None and bool(region.any()) else None
    assert heat.layer is not None
    return Case(picture, of, asked.score, images, heat.layer, region, truth is None and region is not None)


def explainers_of(subject: Subject, scale: Scale) -> dict[str, Explainer]:
    """Every method that suits a model, the usual one first, and the negative control where it has a ReLU.

    The costly ones see the picture less often than by default, see ``PASSES``; occlusion hides one cell at a time.
    """
    ready: Any = subject.model
    window = max(min(ready.preprocess.size) // CELLS, 1)
    samples, channels, masks = PASSES[scale]
    options: dict[str, dict[str, Any]] = {
        "smoothgrad": {"samples": samples},
        "integrated_gradients": {"steps": samples},
        "scorecam": {"max_channels": channels},
        "occlusion": {"patch": window, "stride": window},
        "rise": {"num_masks": masks},
        "drise": {"num_masks": masks},
    }
    reasons = suited(subject.spec, has_boxes=subject.has_boxes)
    has_relu = any(isinstance(module, nn.ReLU) for module in subject.model.modules())
    usual = default_method(subject.spec, has_regions=subject.has_regions, has_boxes=subject.has_boxes)
    chosen = [name for name in METHODS if reasons[name] is None or (name == NEGATIVE and has_relu)]
    found = {name: method(name, **options.get(name, {})) for name in dict.fromkeys((usual.name, *chosen))}
    if subject.spec.early_layer is not None:
        found[usual.name] = usual
    return found


def figures_of(
    case: Case, subject: Subject, copy: Subject, explainers: Mapping[str, Explainer], steps: int
) -> tuple[dict[str, Heatmap], dict[str, dict[str, float]]]:
    """The maps of a picture, and what was measured of them and of the controls.

    The costly methods do not run on the copy, and those that average many passes run there in their brief form.

    Args:
        case: the picture and its question.
        subject: the model.
        copy: the same with its later half shuffled.
        explainers: by name.
        steps: from the whole picture to none.
    """
    heats: dict[str, Heatmap] = {}
    figures: dict[str, dict[str, float]] = {}
    for name, explainer in explainers.items():
        start = time.perf_counter()
        heats[name] = explained(subject, case, case.of, explainer)
        figures[name] = {"seconds": time.perf_counter() - start, "similarity": math.nan}
        if not getattr(explainer, "is_costly", False):
            other = explained(copy, case, case.score, getattr(explainer, "brief", explainer))
            maps = [heat.map[case.region] if case.is_within else heat.map for heat in (heats[name], other)]
            figures[name]["similarity"] = rank_similarity(maps[0].abs(), maps[1].abs())
    size = (int(case.picture.shape[-2]), int(case.picture.shape[-1]))
    noise = torch.rand(size, generator=torch.Generator().manual_seed(0))
    everything = {name: heat.map for name, heat in heats.items()}
    everything |= dict(zip(CONTROLS, (noise, centre_map(size), edge_map(case.picture)), strict=True))
    games = played(case, subject.model, everything, steps)
    for name, values in everything.items():
        found = figures.setdefault(name, {"seconds": math.nan, "similarity": math.nan}) | games[name]
        if case.region is not None:
            inside, area = energy_inside(values, case.region)
            found |= {"pointing": pointing_hit(values, case.region), "inside": inside, "area": area}
        else:
            found |= dict.fromkeys(("pointing", "inside", "area"), math.nan)
        figures[name] = found
    return heats, figures


def explained(subject: Subject, case: Case, of: Question, explainer: Explainer) -> Heatmap:
    """A map by a method with its options, at the layer that a user would get."""
    usual: Any = explainer
    if hasattr(usual, "layer") and usual.layer != subject.spec.early_layer:
        usual = replace(usual, layer=case.layer)
    return explain_batch(subject, [case.picture], [of], ExplainOptions(method=usual, verdict=False))[0][0]


def played(case: Case, model: nn.Module, maps: Mapping[str, Tensor], steps: int) -> dict[str, dict[str, float]]:
    """Deletion and insertion of maps ``[h, w]``: areas as shares of the range of all scores seen on this picture.

    The whole picture and nothing of it are shown once for all maps, and all of them share the forward passes.
    """
    cells = CELLS**2
    inner = counts_of(cells, steps)[1:-1]
    ends = torch.tensor([[True], [False]]).expand(2, cells)
    pooled = [F.adaptive_avg_pool2d(values.float()[None, None], CELLS).flatten() for values in maps.values()]
    keep = torch.cat([ends, *(both_games(values, inner, 0) for values in pooled)])
    with undisturbed(model):
        seen = _scores_of(case, model, keep)
    low, high = float(seen.min()), float(seen.max())
    scale = max(high - low, 1e-12)
    fractions = torch.tensor([0, *inner, cells], dtype=torch.float64) / cells
    whole, blank = seen[:1], seen[1:2]
    found = {}
    for name, (deleted, inserted) in zip(maps, seen[2:].reshape(len(maps), 2, len(inner)), strict=True):
        falling = float(torch.trapezoid(torch.cat([whole, deleted, blank]), fractions))
        rising = float(torch.trapezoid(torch.cat([blank, inserted, whole]), fractions))
        found[name] = {
            "deletion": (falling - low) / scale,
            "insertion": (rising - low) / scale,
            "advantage": (rising - falling) / scale,
        }
    return found


def _scores_of(case: Case, model: nn.Module, keep: Tensor) -> Tensor:
    """Scores ``[M]`` float64 of a picture of which only some cells ``[M, N]`` are shown."""
    baseline = baseline_pixels(model, case.images, "mean")
    height, width = case.images.sizes[0]
    canvas = case.images.pixels.shape[-2:]
    shown = F.interpolate(keep.reshape(-1, 1, CELLS, CELLS).float(), (height, width), mode="nearest")
    padded = F.pad(shown, (0, canvas[1] - width, 0, canvas[0] - height), value=1.0)[:, 0]
    parts = [part[None] for part in torch.split(padded, masks_at_once(case.images, 64))]
    return torch.cat([*masked_scores(model, case.images, baseline, parts, [case.score])], dim=-1)[0, 0].double()
