"""How far an explanation can be trusted: measured, not assumed.

Three questions are asked of every map. Did the model learn anything (what its weights look like, and its answer to the
picture against that of copies with shuffled weights)? Does hiding what the map points at change the score more than
hiding at random or at the centre? Does the map change when the weights do? What follows from the figures is decided in
``rules.py``. The lines come from a calibration on trained and on random models; ``docs/verdict.md`` has the table and
``benchmarks/verdict_calibration.py`` makes it.

Deletion and insertion: Petsiuk et al. 2018, arXiv 1806.07421. Randomised weights: Adebayo et al. 2018, arXiv
1810.03292.

T scores · B images · N cells · M masks · K classes · R shuffled copies
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.config import Config
from saccade.errors import ConfigError, ExplainError, InputError
from saccade.explanation.attribution import Attribution, Explainer, ScoreFn
from saccade.explanation.faithfulness import centre_map, counts_of, keep_masks, negative_share, rank_similarity
from saccade.explanation.gradients import Gradient
from saccade.explanation.perturbation import Baseline, baseline_pixels, masked_scores, masks_at_once
from saccade.explanation.record import counting, undisturbed, unwrap
from saccade.explanation.rules import Lines, Status, measured, rule
from saccade.explanation.scores import region_of
from saccade.explanation.scramble import Extent, scrambled
from saccade.explanation.structure import structure
from saccade.explanation.trials import answers_of, areas, both_games, cells_of, movement, pooled, strengths
from saccade.types import ExplainSpec, ImageBatch

SMALLEST_REGION = 64
"""Pixels of a region within which maps can be compared."""

FEWEST_CELLS = 100
"""Cells of a map that a comparison with late copies takes: these still see where something is, and a map of fewer cells
hardly says more."""

NUM_PROBES = 4
"""Pictures that the answers of model and copies are compared on."""


@dataclass(frozen=True, kw_only=True)
class VerdictConfig(Config):
    """What is measured, and where the lines are drawn."""

    cells: int = 7
    """Cells a side of the grid on which pictures are hidden and revealed."""
    steps: int = 4
    """Steps from the whole picture to none."""
    random_orders: int = 6
    """Random orders of the control, in mirrored pairs; an even number."""
    copies: int = 2
    """Copies with shuffled weights; an even number, or 0 to leave out what needs them."""
    rerun: int = 2
    """Copies on which the explainer itself runs again; costly methods (RISE, occlusion, Score-CAM) never do."""
    late: int = 2
    """Copies with only the later half of the weights shuffled, on which explainer and plain gradient run again; an even
    number, or 0 to leave it out."""
    baseline: Baseline = "mean"
    """What hidden pixels become."""
    batch: int = 64
    """Pictures per forward pass."""
    seed: int = 0
    """Of the private random generators."""
    lines: Lines = field(default_factory=Lines)
    """Where the lines are drawn."""

    def __post_init__(self) -> None:
        is_odd = any(number % 2 for number in (self.random_orders, self.copies, self.late))
        if min(self.cells, self.steps) < 2 or self.random_orders < 2 or is_odd:
            raise ConfigError(
                f"cells {self.cells}, steps {self.steps}, random_orders {self.random_orders}, copies {self.copies}, "
                f"late {self.late}",
                where="verdict",
                expected="cells and steps of at least 2, an even number of orders and of copies",
            )


@dataclass(frozen=True)
class Verdict:
    """What was measured of one map.

    Attributes:
        status: "supported": the evidence holds; "weak": it holds in part, or the method cannot answer the question
            asked; "failed": do not read anything into the map.
        reasons: one sentence each, the gravest first.
        figures: what was measured, by name: ``deletion``, ``insertion`` and their controls ``deletion_random``,
            ``deletion_centre``, ``insertion_centre`` are areas in units of the score; ``advantage`` is (insertion -
            deletion) / ``score_range``, and ``advantage_chance`` how far random orders get from 0 in it (root mean
            square); ``structure`` is how far the weight matrices lie above random ones, in spreads;
            ``response_ratio`` is the change of the model's answer between picture and blank over that of its shuffled
            copies; ``similarity`` (signed) and ``similarity_abs`` are rank correlations with the maps of shuffled
            copies; ``similarity_late`` is the first of them with copies of which only the later half is shuffled,
            ``similarity_late_gradient`` that of the plain gradient on the same grid; ``evenness`` is the lowest value
            of the map over its highest. What could not be measured is missing.
        cost_forwards: pictures that went through the model or a copy for this verdict, the runs of the method itself on
            shuffled copies included.
        class_agnostic: whether the method ignores what was asked.
    """

    status: Status
    reasons: tuple[str, ...]
    figures: Mapping[str, float]
    cost_forwards: int
    class_agnostic: bool = False


class Judge:
    """Judges maps of one model; its shuffled copies are made once and serve every call.

    Args:
        model: called with an ``ImageBatch``; left as it is.
        spec: what the model declares about itself.
        config: what is measured.
    """

    def __init__(self, model: nn.Module, spec: ExplainSpec, config: VerdictConfig | None = None) -> None:
        # Wrappers are called past by some methods and not by others.
        self.model = unwrap(model)
        self.spec = spec
        self.config = config or VerdictConfig()
        self._copies = self._shuffled(self.config.copies)
        above = structure(self.model)
        self._of_model: dict[str, float] = {} if above is None else {"structure": above}

    def _shuffled(self, count: int, *, is_late: bool = False) -> list[nn.Module]:
        kinds: tuple[Extent, Extent] = ("all", "rows")
        seed = self.config.seed
        return [scrambled(self.model, kinds[index % 2], seed + index, is_late=is_late) for index in range(count)]

    @cached_property
    def _late_copies(self) -> list[nn.Module]:
        """Made when first needed: costly methods never are compared on them."""
        return self._shuffled(self.config.late, is_late=True)

    def __call__(
        self, images: ImageBatch, scores: Sequence[ScoreFn], explainer: Explainer, attribution: Attribution
    ) -> list[list[Verdict]]:
        """One verdict for every score and image, ``[T][B]``.

        Raises:
            InputError: where the attribution is not of these scores and images.
        """
        if attribution.values.shape[:2] != (len(scores), len(images)):
            got = f"{tuple(attribution.values.shape[:2])} maps for {len(scores)} scores and {len(images)} images"
            raise InputError(got, where="attribution")
        verdicts: dict[int, list[Verdict]] = {}
        for members in _alike(scores):
            asked = [scores[member] for member in members]
            verdicts |= zip(members, self._judged(images, asked, explainer, _of(attribution, members)), strict=True)
        return [verdicts[score] for score in range(len(scores))]

    def _judged(
        self, images: ImageBatch, scores: Sequence[ScoreFn], explainer: Explainer, attribution: Attribution
    ) -> list[list[Verdict]]:
        """The verdicts of scores of one kind, of which the same is measured."""
        with undisturbed(self.model):
            baseline = baseline_pixels(self.model, images, self.config.baseline)
            trials = self._hide_and_reveal(images, baseline, scores, attribution)
            response = self._response(images, baseline, scores)
        similarity, cost = self._similarity(images, scores, explainer, attribution)
        cost += trials.cost + NUM_PROBES * (1 + len(self._copies))
        verdicts = []
        for score in range(len(scores)):
            row = []
            for image in range(len(images)):
                figures = self._of_model | trials.figures[score][image] | response[score][image]
                figures |= similarity[score][image]
                values = attribution.values[score, image].float()
                figures |= _own_figures(attribution, score, image)
                row.append(self._verdict(values, figures, explainer.is_class_agnostic, cost))
            verdicts.append(row)
        return verdicts

    def _verdict(self, values: Tensor, figures: Mapping[str, float], is_class_agnostic: bool, cost: int) -> Verdict:
        unreadable = _unreadable(values, figures)
        if unreadable:
            return Verdict("failed", (unreadable,), measured(figures), cost, is_class_agnostic)
        ruling = rule(figures, self.config.lines, is_class_agnostic=is_class_agnostic)
        return Verdict(ruling.status, ruling.reasons, measured(figures), cost, is_class_agnostic)

    def _hide_and_reveal(
        self, images: ImageBatch, baseline: Tensor, scores: Sequence[ScoreFn], attribution: Attribution
    ) -> _Trials:
        """Deletion and insertion of the maps and of the controls, on one grid of cells and one baseline."""
        config = self.config
        cell = cells_of(images, config.cells)  # [B, H, W]
        generator = torch.Generator().manual_seed(config.seed)
        number = config.cells**2
        inner = counts_of(number, config.steps)[1:-1]
        shared = [torch.ones(1, number, dtype=torch.bool), torch.zeros(1, number, dtype=torch.bool)]
        half = torch.stack([torch.randperm(number, generator=generator) for _ in range(config.random_orders // 2)])
        shared.append(keep_masks(torch.cat([half, half.flip(-1)]), inner, is_deletion=True).flatten(0, 1))
        shared.append(both_games(centre_map((config.cells, config.cells)), inner, config.seed))
        values = pooled(strengths(attribution.values, scores), cell, number)  # [T, B, N]
        own = torch.stack(
            [torch.stack([both_games(v, inner, config.seed) for v in row]) for row in values]
        )  # [T, B, m, N]
        regions = _regions(scores)
        if regions is not None:
            # The control of a question about a region: pointing at the region itself.
            there = pooled(regions[:, None].expand(-1, len(images), -1, -1), cell, number)
            control = torch.stack([torch.stack([both_games(v, inner, config.seed) for v in row]) for row in there])
            own = torch.cat([own, control], dim=2)
        common = torch.cat(shared).expand(len(images), -1, -1)
        masks = torch.cat([common, own.transpose(0, 1).flatten(1, 2)], dim=1)  # [B, M, N]
        seen = self._seen(images, baseline, scores, masks, cell)  # [T, B, M]
        figures = []
        for score in range(len(scores)):
            start = common.shape[1] + score * own.shape[2]
            columns = torch.cat([seen[score, :, : common.shape[1]], seen[score, :, start : start + own.shape[2]]], -1)
            has_region = regions is not None
            figures.append(
                [areas(c.double(), inner, number, config.random_orders, has_region=has_region) for c in columns]
            )
        return _Trials(figures, common.shape[1] + own.shape[2])

    def _seen(
        self, images: ImageBatch, baseline: Tensor, scores: Sequence[ScoreFn], masks: Tensor, cell: Tensor
    ) -> Tensor:
        at_once = masks_at_once(images, self.config.batch)
        place = torch.arange(len(images))[:, None, None]

        shown = F.pad(masks.transpose(1, 2).float(), (0, 0, 0, 1), value=1.0)  # [B, N + 1, M]; padding always shows

        def enlarged() -> Iterator[Tensor]:
            for start in range(0, masks.shape[1], at_once):
                part = shown[..., start : start + at_once]
                yield part[place, cell].permute(0, 3, 1, 2)

        return torch.cat(list(masked_scores(self.model, images, baseline, enlarged(), scores)), dim=-1).cpu()

    def _response(
        self, images: ImageBatch, baseline: Tensor, scores: Sequence[ScoreFn]
    ) -> list[list[dict[str, float]]]:
        """How far hiding the picture, or half its cells, moves the answer; beside that of the shuffled copies.

        ``[T][B]``: classifiers answer with all their logits, so all scores get the same; others with each score.
        """
        probes = self._probes(images, baseline)
        answers = answers_of(self.model, images, probes, scores)
        own = movement(answers).expand(len(scores), -1)  # [T, B]
        figures = [[{"response": float(value)} for value in row] for row in own]
        if answers.is_logits:
            for image, row in enumerate(answers.values[0, :, 0].softmax(-1)):
                for entries in figures:
                    entries[image]["confidence"] = float(row.max())
        if not self._copies:
            return figures
        others = torch.stack([movement(answers_of(other, images, probes, scores)) for other in self._copies])
        # The root of the mean square, not the median: a single copy that reacts as strongly is reason for doubt.
        # A copy whose answer is not a number says nothing; where both are like that the ratio is not measured.
        usual = others.clamp(max=torch.finfo(torch.float64).max ** 0.5).square().nanmean(0).sqrt().expand_as(own)
        for entries, mine, theirs in zip(figures, own.tolist(), usual.tolist(), strict=True):
            for entry, here, there in zip(entries, mine, theirs, strict=True):
                if not math.isnan(there):
                    entry["response_ratio"] = min(here / max(there, 1e-30), 1e6) if here > 0 else 0.0
        return figures

    def _probes(self, images: ImageBatch, baseline: Tensor) -> Tensor:
        """``[B, 4, 3, H, W]``: the picture, nothing of it, a random half of its cells, the other half."""
        cells = self.config.cells
        generator = torch.Generator().manual_seed(self.config.seed)
        half = torch.rand(cells**2, generator=generator) < 0.5
        keep = torch.stack([torch.ones_like(half), torch.zeros_like(half), half, ~half])
        shown = F.pad(keep.float(), (0, 1), value=1.0)[:, cells_of(images, cells)]  # [4, B, H, W]
        kept = shown.transpose(0, 1)[:, :, None].to(baseline)
        return torch.lerp(baseline[:, None], images.pixels.detach()[:, None], kept)

    def _similarity(
        self, images: ImageBatch, scores: Sequence[ScoreFn], explainer: Explainer, attribution: Attribution
    ) -> tuple[list[list[dict[str, float]]], int]:
        """Rank correlations of the maps with those of shuffled copies, ``[T][B]``; none where the method is too costly.

        Beside it the pictures that went through model and copies, for each that is explained. Methods that average
        many passes run in their brief form.

        Of a question about a region only the pixels of the region count: outside of it, the maps of every model fall
        off with the distance, whatever it learned. A region of a few pixels leaves nothing to compare.
        """
        figures: list[list[dict[str, float]]] = [[{} for _ in range(len(images))] for _ in scores]
        regions = _regions(scores)
        if _kind(scores[0]) == "small region" or getattr(explainer, "is_costly", False):
            return figures, 0
        brief: Explainer = getattr(explainer, "brief", explainer)
        own = attribution.values.float()
        others, seen = self._again(self._copies[: self.config.rerun], brief, images, scores)
        if others:
            _note(figures, "similarity", _likeness(own, others, regions))
            _note(figures, "similarity_abs", _likeness(own.abs(), [other.abs() for other in others], regions))
        # Within a region all maps follow what the first layers see there, the good ones as well.
        if self.config.late and regions is None and own.shape[-2:].numel() >= FEWEST_CELLS:
            seen += self._similarity_late(figures, images, scores, brief, own)
        return figures, -(-seen // len(images))

    def _similarity_late(
        self,
        figures: list[list[dict[str, float]]],
        images: ImageBatch,
        scores: Sequence[ScoreFn],
        brief: Explainer,
        own: Tensor,
    ) -> int:
        """The same with copies of which only the later half is shuffled, and beside it that of the plain gradient.

        What a network does with the features of its first layers is told by the later ones. The gradient changes as
        the score's dependence on the pixels does; a map that changes less shows the features. Signs count here: a map
        that has them says something by them. Returns the pictures that went through model and copies.
        """
        gradient = Gradient()
        try:
            (usual,), seen = self._again([self.model], gradient, images, scores)
            usuals, more = self._again(self._late_copies, gradient, images, scores)
        except ExplainError:
            # Nothing leads from the score back to the pixels.
            return 0
        others, most = self._again(self._late_copies, brief, images, scores)
        for name, mine, theirs in (("similarity_late", own, others), ("similarity_late_gradient", usual, usuals)):
            # Fine maps change more than coarse ones, so both are compared on the grid of the map.
            mine, *theirs = [_coarsened(values, own) for values in (mine, *theirs)]
            _note(figures, name, _likeness(mine, theirs, None))
        return seen + more + most

    def _again(
        self, models: Sequence[nn.Module], explainer: Explainer, images: ImageBatch, scores: Sequence[ScoreFn]
    ) -> tuple[list[Tensor], int]:
        """The maps ``[T, B, h, w]`` of other models, and how many pictures went through these."""
        found, seen = [], 0
        for other in models:
            declared = getattr(other, "explain_spec", None)
            with counting(other) as count:
                found.append(explainer(other, images, scores, declared() if declared else self.spec).values.float())
            seen += sum(count)
        return found, seen


def judge(
    model: nn.Module,
    images: ImageBatch,
    scores: Sequence[ScoreFn],
    explainer: Explainer,
    attribution: Attribution,
    spec: ExplainSpec,
    config: VerdictConfig | None = None,
) -> list[list[Verdict]]:
    """One verdict for every score and image, ``[T][B]``; use a ``Judge`` where more pictures will follow."""
    return Judge(model, spec, config)(images, scores, explainer, attribution)


def _kind(score: ScoreFn) -> str:
    """What a score is about, which decides what is measured of its map."""
    region = region_of(score)
    if region is None:
        return "picture"
    return "small region" if int(region.sum()) < SMALLEST_REGION else "region"


def _alike(scores: Sequence[ScoreFn]) -> list[list[int]]:
    """Places of the scores of each kind, so that no verdict depends on what else was asked."""
    kinds: dict[str, list[int]] = {}
    for place, score in enumerate(scores):
        kinds.setdefault(_kind(score), []).append(place)
    return [*kinds.values()]


def _of(attribution: Attribution, scores: list[int]) -> Attribution:
    """The part of an attribution that belongs to some of its scores."""
    error, negative = (None if one is None else one[scores] for one in (attribution.error, attribution.negative))
    return replace(attribution, values=attribution.values[scores], error=error, negative=negative)


def _regions(scores: Sequence[ScoreFn]) -> Tensor | None:
    """The regions ``[T, H, W]`` of 0 and 1 that the scores are about; None where they are about whole pictures."""
    masks = [region.float().cpu() for region in map(region_of, scores) if region is not None]
    return torch.stack(masks) if masks else None


def _likeness(own: Tensor, others: Sequence[Tensor], regions: Tensor | None) -> Tensor:
    """Mean rank correlation of maps ``[T, B, h, w]`` with those of other models, in their regions: ``[T, B]``.

    Maps that hold numbers that are not finite say nothing; where all others are like that there is no number either.
    """

    def part(values: Tensor, score: int) -> Tensor:
        return values if regions is None else _inside(values, regions[score] > 0)

    return torch.tensor(
        [
            [
                [rank_similarity(part(maps, score), part(other[score, image], score)) for other in others]
                for image, maps in enumerate(row)
            ]
            for score, row in enumerate(own)
        ]
    ).nanmean(-1)


def _note(figures: list[list[dict[str, float]]], name: str, values: Tensor) -> None:
    for row, numbers in zip(figures, values.tolist(), strict=True):
        for entry, number in zip(row, numbers, strict=True):
            entry[name] = number


def _coarsened(values: Tensor, like: Tensor) -> Tensor:
    """Maps as means over the cells of a coarser grid; as they are where it is no coarser."""
    if values.shape[-1] <= like.shape[-1]:
        return values
    return F.adaptive_avg_pool2d(values, (like.shape[-2], like.shape[-1]))


def _inside(values: Tensor, region: Tensor) -> Tensor:
    """A map ``[h, w]`` laid over the canvas, its values in the region."""
    large = F.interpolate(values[None, None].cpu(), region.shape, mode="bilinear", align_corners=False)[0, 0]
    return large[region]


class _Trials(NamedTuple):
    figures: list[list[dict[str, float]]]
    cost: int


def _own_figures(attribution: Attribution, score: int, image: int) -> dict[str, float]:
    negative = attribution.negative
    own = negative_share(attribution.values[score, image]) if negative is None else float(negative[score, image])
    values = attribution.values[score, image].float()
    low, high = float(values.min()), float(values.max())
    figures = {"negative_share": own, "evenness": max(low, 0.0) / high if high > 0 else 0.0}
    if attribution.error is not None:
        figures["error"] = float(attribution.error[score, image])
    return figures


def _unreadable(values: Tensor, figures: Mapping[str, float]) -> str | None:
    """Why there is nothing to judge; None where there is."""
    if not bool(torch.isfinite(values).all()):
        return "the map holds numbers that are not finite"
    if float(values.max()) > float(values.min()):
        return None
    if figures["negative_share"] > 0.999:
        return "the map is blank: all evidence speaks against the score"
    return "the map is blank: no place of the picture matters more than another"
