"""Verdicts on models that are known to know something, and on models that are known to know nothing."""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError, InputError
from saccade.explanation.attribution import Attribution, Explainer
from saccade.explanation.cam import GradCAM, HiResCAM
from saccade.explanation.gradients import Gradient, GuidedBackprop, IntegratedGradients
from saccade.explanation.perturbation import RISE, Occlusion
from saccade.explanation.rounded import quick_copy
from saccade.explanation.scores import ClassScore, class_score
from saccade.explanation.scramble import scrambled
from saccade.explanation.trials import areas, cells_of, pooled
from saccade.explanation.verdict import Judge, Verdict, VerdictConfig, judge
from saccade.types import ExplainSpec, Geometry, GridLayer, ImageBatch

SPEC = ExplainSpec({"final": GridLayer("", lambda activation, canvas: activation)})
SIDE = 28


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Hundreds of passes of tiny networks: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Detector(nn.Module):
    """Two logits: the light in the upper left corner against the light in the lower right one. Known evidence."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(2, 3, SIDE, SIDE)
        weight[0, :, 4:12, 4:12] = 0.05
        weight[1, :, 16:24, 16:24] = 0.05
        self.head = nn.Linear(3 * SIDE * SIDE, 2)
        with torch.no_grad():
            self.head.weight.copy_(weight.flatten(1))

    def forward(self, images: ImageBatch) -> Tensor:
        out: Tensor = self.head(images.pixels.flatten(1))
        return out


class SmallNet(nn.Module):
    """An ordinary convolutional classifier, randomly initialised."""

    def __init__(self, seed: int, num_classes: int = 10) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(32, num_classes)

    def forward(self, images: ImageBatch) -> Tensor:
        out: Tensor = self.head(self.body(images.pixels).mean((2, 3)))
        return out


class Given:
    """An explainer that hands out a fixed map."""

    name = "given"
    is_signed = True
    is_class_agnostic = False
    is_costly = True

    def __init__(self, values: Tensor, error: Tensor | None = None) -> None:
        self.values = values
        self.error = error

    def __call__(self, model: nn.Module, images: ImageBatch, scores: object, spec: ExplainSpec) -> Attribution:
        return Attribution(self.values, self.error)


def bright() -> ImageBatch:
    """Noise with a bright square where the detector looks for class 0."""
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.3
    pixels[:, :, 4:12, 4:12] += 2
    return ImageBatch.of(pixels)


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def second(outputs: Tensor) -> Tensor:
    return outputs[:, 1]


def verdict_of(values: Tensor, *, explainer: type[Given] = Given, **settings: object) -> Verdict:
    given = explainer(values[None, None])
    attribution = given(Detector(), bright(), [first], SPEC)
    return judge(Detector(), bright(), [first], given, attribution, SPEC, VerdictConfig(**settings))[0][0]


def evidence() -> Tensor:
    values = torch.zeros(SIDE, SIDE)
    values[4:12, 4:12] = 1
    return values


def test_known_evidence_is_supported() -> None:
    verdict = verdict_of(evidence())
    assert verdict.status == "supported", verdict
    assert verdict.cost_forwards <= 60
    assert verdict.figures["deletion"] < verdict.figures["deletion_random"] < verdict.figures["insertion"]
    assert verdict.figures["response_ratio"] > 3
    assert 0 < verdict.figures["confidence"] <= 1
    assert "points at" in verdict.reasons[0]


@pytest.mark.parametrize("explainer", [Occlusion(), RISE(num_masks=200)])
def test_methods_that_find_it_are_supported(explainer: Occlusion | RISE) -> None:
    model, images = Detector(), bright()
    attribution = explainer(model, images, [first], SPEC)
    verdict = judge(model, images, [first], explainer, attribution, SPEC)[0][0]
    assert verdict.status == "supported", verdict
    assert ("error" in verdict.figures) == (explainer.name == "rise")


def test_a_map_that_points_elsewhere_has_failed() -> None:
    wrong = verdict_of(evidence().flip(0).flip(1))
    assert wrong.status == "failed"
    assert "no more than hiding at random" in wrong.reasons[0]
    assert verdict_of(-evidence()).status == "failed"


def test_figures_of_an_additive_model_by_hand() -> None:
    # The score is the sum of the shares of the cells, so the curves are known from the order of the cells alone.
    figures = verdict_of(evidence(), steps=7).figures
    whole, blank = figures["score"], figures["score_blank"]
    assert figures["deletion_random"] == pytest.approx((whole + blank) / 2, abs=1e-4)  # mirrored pairs are exact here
    # Deletion hides what insertion reveals, so the two areas add up to both ends.
    assert figures["deletion"] + figures["insertion"] == pytest.approx(whole + blank, abs=1e-3)
    # All evidence lies in the first 4 of 49 cells, gone after the first of 7 steps: trapezoid of 1/14.
    assert figures["deletion"] - blank == pytest.approx((whole - blank) / 14, rel=0.03)


def test_areas_by_hand() -> None:
    # Whole 1, blank 0, two random orders, centre (deletion, insertion), map (deletion, insertion); one point at 1/2.
    figures = areas(torch.tensor([1.0, 0.0, 0.6, 0.4, 0.3, 0.7, 0.0, 1.0], dtype=torch.float64), [2], 4, 2)
    assert figures["deletion"] == pytest.approx(0.25)
    assert figures["insertion"] == pytest.approx(0.75)
    assert figures["deletion_random"] == pytest.approx(0.5)
    assert figures["deletion_centre"] == pytest.approx(0.4)
    assert figures["insertion_centre"] == pytest.approx(0.6)
    assert figures["advantage"] == pytest.approx(0.5)
    assert figures["score_range"] == 1
    assert figures["advantage_chance"] == pytest.approx(0.1)  # of the pair: areas 0.55 and 0.45


def test_random_models_have_failed() -> None:
    """At least 95 % of the maps of randomly initialised models."""
    statuses = []
    for seed in range(24):
        model = SmallNet(seed)
        images = ImageBatch.of(torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) + 0.5)
        with torch.no_grad():
            label = int(model.eval()(images).argmax())

        def score(outputs: Tensor, label: int = label) -> Tensor:
            return outputs[:, label]

        explainer = Occlusion(patch=7, stride=7)
        attribution = explainer(model, images, [score], SPEC)
        statuses.append(judge(model, images, [score], explainer, attribution, SPEC)[0][0].status)
    assert statuses.count("failed") >= 0.95 * len(statuses)


def test_a_blank_map_says_why() -> None:
    blank = verdict_of(torch.zeros(7, 7))
    assert blank.status == "failed"
    assert blank.reasons == ("the map is blank: no place of the picture matters more than another",)
    rectified = Attribution(torch.zeros(1, 1, 7, 7), negative=torch.ones(1, 1))
    given = Given(torch.zeros(1, 1, 7, 7))
    verdict = judge(Detector(), bright(), [first], given, rectified, SPEC)[0][0]
    assert verdict.reasons == ("the map is blank: all evidence speaks against the score",)
    assert "not finite" in verdict_of(torch.full((7, 7), float("nan"))).reasons[0]


def test_a_score_that_ignores_the_picture_has_failed() -> None:
    given = Given(evidence()[None, None])
    constant = judge(
        Detector(), bright(), [lambda o: o[:, 0] * 0 + 1], given, given(None, bright(), [], SPEC), SPEC
    )[0][0]  # type: ignore[arg-type]  # fmt: skip
    assert constant.status == "failed"
    assert "the same whatever is hidden" in constant.reasons[0]


def test_a_method_that_ignores_the_class_is_never_better_than_weak() -> None:
    class Agnostic(Given):
        is_class_agnostic = True

    verdict = verdict_of(evidence(), explainer=Agnostic)
    assert verdict.status == "weak"
    assert verdict.class_agnostic
    assert any("ignores what was asked" in reason for reason in verdict.reasons)


def test_a_map_that_does_not_depend_on_the_weights_has_failed() -> None:
    class Free(Given):
        is_costly = False

    verdict = verdict_of(evidence(), explainer=Free)
    assert verdict.status == "failed"
    assert verdict.figures["similarity"] == pytest.approx(1)
    assert any("weights are shuffled" in reason for reason in verdict.reasons)


class Lines(nn.Module):
    """Four convolutions that tell which way the stripes of a patch run, wherever it lies; trained on the spot."""

    spec = ExplainSpec({"early": GridLayer("body.5"), "final": GridLayer("body")})

    def __init__(self) -> None:
        super().__init__()
        widths = itertools.pairwise((3, 12, 16, 24, 24))
        layers = [
            [nn.Conv2d(a, b, 3, 1 + index % 2, 1), nn.BatchNorm2d(b), nn.ReLU()] for index, (a, b) in enumerate(widths)
        ]
        self.body = nn.Sequential(*itertools.chain(*layers))
        self.head = nn.Linear(24, 2)

    def forward(self, images: ImageBatch) -> Tensor:
        logits: Tensor = self.head(self.body(images.pixels).mean((2, 3)))
        return logits


def striped(count: int, generator: torch.Generator) -> tuple[ImageBatch, Tensor]:
    """Pictures with a patch of stripes on coloured noise, and whether these run across (0) or down (1)."""
    pixels = torch.randn(count, 3, 1, 1, generator=generator) * 0.5
    pixels = pixels + torch.randn(count, 3, SIDE, SIDE, generator=generator) * 0.3
    labels = torch.randint(2, (count,), generator=generator)
    stripes = (torch.arange(12) % 4 < 2).float().mul(3).sub(1.5)
    for picture, label in zip(pixels, labels.tolist(), strict=True):
        top, left = torch.randint(SIDE - 12, (2,), generator=generator).tolist()
        picture[:, top : top + 12, left : left + 12] = stripes[None, :] if label else stripes[:, None]
    return ImageBatch.of(pixels), labels


@pytest.fixture(scope="module")
def trained() -> Lines:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Lines()
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        images, labels = striped(16, generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.2
    return model.eval()


def late_verdicts(model: Lines, explainer: Explainer, **settings: int) -> list[Verdict]:
    """Of ten new pictures, each asked about its class."""
    images, labels = striped(10, torch.Generator().manual_seed(1))
    judge_of_it, found = Judge(model, model.spec, VerdictConfig(**settings)), []
    for index, label in enumerate(labels.tolist()):
        score, image = class_score(label), images[index]
        found += judge_of_it(image, [score], explainer, explainer(model, image, [score], model.spec))[0]
    return found


def is_late(verdict: Verdict) -> bool:
    return any("later half of the weights" in reason for reason in verdict.reasons)


def test_guided_backpropagation_is_found_out_by_shuffling_the_later_half(trained: Lines) -> None:
    """The negative control of the literature: it draws the edges that the first layers see."""
    verdicts = late_verdicts(trained, GuidedBackprop())
    assert sum(map(is_late, verdicts)) > 5
    assert all(verdict.status == "failed" for verdict in verdicts if is_late(verdict))
    for explainer in (Gradient(), IntegratedGradients(), GradCAM("early"), HiResCAM("early")):
        verdicts = late_verdicts(trained, explainer)
        assert sum(map(is_late, verdicts)) <= 1, explainer
        assert all(verdict.cost_forwards <= 60 for verdict in verdicts)
    unasked = late_verdicts(trained, GuidedBackprop(), late=0)[0]
    assert "similarity_late" not in unasked.figures
    assert not is_late(unasked)


def test_a_method_that_reads_the_first_layer_alone_is_found_out_whatever_its_name(trained: Lines) -> None:
    class Edges(Given):
        is_costly = False

        def __call__(self, model: nn.Module, images: ImageBatch, scores: object, spec: ExplainSpec) -> Attribution:
            with torch.no_grad():
                first: Tensor = model.body[0](images.pixels)  # type: ignore[index]
            return Attribution(first.abs().sum(dim=1)[None])

    verdicts = late_verdicts(trained, Edges(torch.zeros(0)))
    assert all(is_late(verdict) and verdict.status == "failed" for verdict in verdicts)
    assert verdicts[0].figures["similarity_late"] == pytest.approx(1)


def test_coarse_maps_and_regions_are_not_compared_so_finely(trained: Lines) -> None:
    assert all("similarity_late" not in verdict.figures for verdict in late_verdicts(trained, HiResCAM()))
    image, _ = striped(1, torch.Generator().manual_seed(1))
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[8:20, 8:20] = True

    class Within(ClassScore):
        mask = inside

    score = Within(0)
    attribution = Gradient()(trained, image, [score], trained.spec)
    figures = judge(trained, image, [score], Gradient(), attribution, trained.spec)[0][0].figures
    assert "similarity_late" not in figures
    assert "similarity" in figures


def test_a_large_error_of_the_method_is_weak() -> None:
    given = Given(evidence()[None, None], error=torch.full((1, 1), 0.8))
    verdict = judge(Detector(), bright(), [first], given, given(None, bright(), [], SPEC), SPEC)[0][0]  # type: ignore[arg-type]
    assert verdict.status == "weak"
    assert "80%" in verdict.reasons[0]


def test_every_score_and_image_gets_its_own_verdict() -> None:
    model = Detector()
    images = ImageBatch.of(torch.cat([bright().pixels, bright().pixels.flip(2).flip(3)]))
    explainer = Occlusion()
    scores = [first, second]
    attribution = explainer(model, images, scores, SPEC)
    verdicts = Judge(model, SPEC)(images, scores, explainer, attribution)
    assert verdicts[0][0].status == "supported"
    assert verdicts[1][1].status == "supported"
    for score in range(2):
        for image in range(2):
            alone = Attribution(attribution.values[score : score + 1, image : image + 1])
            single = Judge(model, SPEC)(images[image], [scores[score]], explainer, alone)[0][0]
            for name, value in single.figures.items():
                assert verdicts[score][image].figures[name] == pytest.approx(value, abs=1e-4), name
    with pytest.raises(InputError, match="1 scores and 2 images"):
        judge(model, images, [first], explainer, attribution, SPEC)


def test_the_model_is_left_as_it_was() -> None:
    model = SmallNet(0).train()
    before = copy.deepcopy(model.state_dict())
    modules = [id(module) for module in model.modules()]
    images = ImageBatch.of(torch.rand(2, 3, SIDE, SIDE))
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    explainer = Occlusion()
    judge(model, images, [first], explainer, explainer(model, images, [first], SPEC), SPEC)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modules == [id(module) for module in model.modules()]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_shuffled_copies_keep_every_weight_and_lose_its_place() -> None:
    model = SmallNet(0)
    model.body[1].running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    whole, rows = scrambled(model, "all", 0), scrambled(model, "rows", 0)
    for name, tensor in model.state_dict().items():
        mine, theirs = whole.state_dict()[name], rows.state_dict()[name]
        torch.testing.assert_close(mine.flatten().sort().values, tensor.flatten().sort().values)
        if tensor.ndim > 1:
            assert not torch.equal(mine, tensor)
            sorted_rows = tensor.flatten(1).sort(dim=1).values
            torch.testing.assert_close(theirs.flatten(1).sort(dim=1).values, sorted_rows)
            assert not torch.equal(theirs, tensor)
        else:
            torch.testing.assert_close(theirs, tensor)
    assert not torch.equal(whole.body[1].running_var, model.body[1].running_var)
    again = scrambled(model, "all", 0)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))
    assert not torch.equal(scrambled(model, "all", 1).head.weight, whole.head.weight)


def test_late_copies_keep_the_first_half(trained: Lines) -> None:
    late = scrambled(trained, "all", 0, is_late=True).state_dict()
    is_same = {name: torch.equal(tensor, late[name]) for name, tensor in trained.state_dict().items() if tensor.ndim}
    first = ("body.0.", "body.1.", "body.3.", "body.4.", "body.6.")
    assert all(same for name, same in is_same.items() if name.startswith(first))
    assert not any(is_same[name] for name in ("body.9.weight", "body.10.running_var", "head.weight"))


def test_shared_weights_stay_shared() -> None:
    model = SmallNet(0)
    model.tied = nn.Linear(32, 10)
    model.tied.weight = model.head.weight
    other = scrambled(model, "rows", 0)
    assert other.tied.weight is other.head.weight


def test_padding_is_no_cell() -> None:
    images = ImageBatch(torch.zeros(1, 3, 8, 8), ((4, 8),), (Geometry((4, 8)),))
    cell = cells_of(images, 2)
    assert cell[0, :4].unique().tolist() == [0, 1, 2, 3]
    assert cell[0, 4:].eq(4).all()
    assert cell[0, 0].tolist() == [0] * 4 + [1] * 4
    values = torch.zeros(1, 1, 8, 8)
    values[..., 4:, :] = 9
    values[0, 0, :2, :4] = 1
    assert pooled(values, cell, 4)[0, 0].tolist() == [1, 0, 0, 0]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="even number"):
        VerdictConfig(copies=3)
    with pytest.raises(ConfigError, match="late 1"):
        VerdictConfig(late=1)
    with pytest.raises(ConfigError, match="at least 2"):
        VerdictConfig(steps=1)
    assert "response_ratio" not in verdict_of(evidence(), copies=0).figures


class Standardised(nn.Module):
    """The detector behind a standardisation of each picture: of one colour it makes 0/0."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = Detector()

    def forward(self, images: ImageBatch) -> Tensor:
        pixels = images.pixels
        mean, spread = pixels.mean((1, 2, 3), keepdim=True), pixels.std((1, 2, 3), keepdim=True)
        out: Tensor = self.detector(images.with_pixels((pixels - mean) / spread))
        return out


def test_a_score_that_is_not_a_number_on_hidden_pictures_has_failed() -> None:
    given = Given(evidence()[None, None])
    model = Standardised()
    verdict = judge(model, bright(), [first], given, given(model, bright(), [], SPEC), SPEC)[0][0]
    assert verdict.status == "failed"
    assert "not a number" in verdict.reasons[0]
    assert "advantage" not in verdict.figures
    json.dumps(verdict.figures, allow_nan=False)


def test_maps_of_copies_that_are_not_finite_are_not_compared() -> None:
    """A copy without a map is no proof that the map depends on the weights."""
    model = Detector()

    class Blind(Given):
        is_costly = False

        def __call__(self, other: nn.Module, images: ImageBatch, scores: object, spec: ExplainSpec) -> Attribution:
            return Attribution(self.values if other is model else torch.full_like(self.values, float("nan")))

    explainer = Blind(evidence()[None, None])
    figures = judge(model, bright(), [first], explainer, explainer(model, bright(), [], SPEC), SPEC)[0][0].figures
    assert not {"similarity", "similarity_abs", "similarity_late"} & figures.keys()


class Keeping(SmallNet):
    """Keeps its features on itself, as many models do for a look at them; asked before, they have a history."""

    def forward(self, images: ImageBatch) -> Tensor:
        self.last = [self.body(images.pixels)]
        out: Tensor = self.head(self.last[0].mean((2, 3)))
        return out


def normed(model: SmallNet, norm: Callable[..., nn.Module]) -> SmallNet:
    model.body[3] = norm(model.body[3])
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "model",
    [
        lambda: Keeping(0),
        lambda: normed(SmallNet(0), nn.utils.weight_norm),
        lambda: normed(SmallNet(0), nn.utils.spectral_norm),
        lambda: normed(SmallNet(0), nn.utils.parametrizations.weight_norm),
        lambda: normed(SmallNet(0), nn.utils.parametrizations.spectral_norm),
    ],
)
def test_models_that_hold_computed_tensors_are_judged(model: Callable[[], SmallNet]) -> None:
    asked, images = model(), ImageBatch.of(bright().pixels.repeat(2, 1, 1, 1))
    asked.train()(images).sum().backward()
    kept, score = getattr(asked, "last", None), class_score(0)
    attribution = Gradient()(asked, images, [score], SPEC)
    verdict = judge(asked, images, [score], Gradient(), attribution, SPEC)[0][0]
    assert "similarity" in verdict.figures
    assert kept is None or kept[0].grad_fn is not None, "that of the model itself is untouched"
    quick_copy(asked.eval())(images)


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = SmallNet(0)
    model.body[1].lock = threading.Lock()
    with pytest.raises(ExplainError, match=r"body.1.*'lock'.*verdict=False") as told:
        Judge(model, SPEC)
    assert told.value.where == "module 'body.1'"


def test_the_cost_of_a_wrapped_model_is_that_of_the_model(trained: Lines) -> None:
    """The plain gradient runs on the model itself; below a wrapper its passes count as well."""
    image, _ = striped(1, torch.Generator().manual_seed(1))
    attribution = Gradient()(trained, image, [first], trained.spec)
    costs = [
        judge(model, image, [first], Gradient(), attribution, trained.spec)[0][0].cost_forwards
        for model in (trained, nn.DataParallel(trained), torch.compile(trained, backend="eager"))
    ]
    assert costs == [costs[0]] * 3


def test_a_verdict_does_not_depend_on_what_else_was_asked(trained: Lines) -> None:
    """A class, a region and a single pixel: different things are measured of each."""

    class Within(ClassScore):
        mask: Tensor

    def within(label: int, top: int, side: int) -> ClassScore:
        score = Within(label)
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        mask[top : top + side, 8 : 8 + side] = True
        object.__setattr__(score, "mask", mask)
        return score

    image, _ = striped(1, torch.Generator().manual_seed(1))
    scores = [within(0, 8, 12), class_score(1), within(1, 14, 1), within(1, 4, 12)]
    attribution = Gradient()(trained, image, scores, trained.spec)
    judge_of_it = Judge(trained, trained.spec)
    together = judge_of_it(image, scores, Gradient(), attribution)
    for place, score in enumerate(scores):
        alone = Attribution(attribution.values[place : place + 1])
        (single,) = judge_of_it(image, [score], Gradient(), alone)[0]
        assert together[place][0].reasons == single.reasons
        assert together[place][0].figures == pytest.approx(dict(single.figures), abs=1e-4)
    assert "similarity" in together[0][0].figures
    assert "similarity" not in together[2][0].figures
    assert ["advantage_region" in row[0].figures for row in together] == [True, False, True, True]
