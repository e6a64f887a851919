"""Explanations of objects: each map is about its own object, and about nothing else where that cannot be told."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.errors import ExplainError, InputError, UnknownNameError
from saccade.explanation.asking import ask
from saccade.explanation.boxes import Found, Watched, fired_layers
from saccade.explanation.boxquestions import BoxQuestions, parsed_box
from saccade.explanation.boxscores import (
    AskedBox,
    DetectionScore,
    MaskOverlap,
    MaskScore,
    OverlapScore,
    SideKept,
    SideScore,
    follow,
)
from saccade.explanation.cam import LayerCAM
from saccade.explanation.explain import ExplainOptions, Subject, explain, explain_batch
from saccade.explanation.methods import method, suited
from saccade.explanation.perturbation import DRISE, masked_scores
from saccade.explanation.questions import check_question, described
from saccade.explanation.scores import class_score, region_of, unbounded, when_hidden
from saccade.explanation.trials import answers_of
from saccade.models.build import create
from saccade.models.detector import Candidates, MaskEvidence
from saccade.models.faster_rcnn import FasterRCNN
from saccade.ops.boxes import box_iou
from saccade.types import BoxTarget, Classes, Detections, Masks

CLASSES = Classes(("disc", "block"))
SIDE = 64
QUICK = ExplainOptions(verdict=False)


def scene(number: int) -> tuple[Tensor, BoxTarget]:
    """Two or three red discs and blue blocks apart from each other on noisy grey; every second time two are alike."""
    generator = torch.Generator().manual_seed(number)

    def draw(low: int, high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, size, generator=generator)

    image = 120 + draw(-15, 16, (3, SIDE, SIDE))
    places = torch.arange(SIDE) + 0.5
    boxes: list[list[int]] = []
    labels: list[int] = []
    masks = []
    for _ in range(50):
        radius = int(draw(7, 12, (1,)))
        row, column = draw(radius + 1, SIDE - radius - 1, (2,)).tolist()
        box = [column - radius, row - radius, column + radius, row + radius]
        is_near = [min(box[k + 2], b[k + 2]) + 3 > max(box[k], b[k]) for b in boxes for k in (0, 1)]
        if any(x and y for x, y in zip(is_near[::2], is_near[1::2], strict=True)):
            continue
        label = labels[0] if len(boxes) == 1 and number % 2 else int(draw(0, 2, (1,)))
        down, across = (places - row)[:, None], (places - column)[None]
        is_disc, is_block = down**2 + across**2 < radius**2, (down.abs() < radius) & (across.abs() < radius)
        mask = is_block if label else is_disc
        colour = torch.tensor([(210, 60, 60), (60, 60, 210)][label])
        image[:, mask] = colour[:, None] + draw(-15, 16, (3, int(mask.sum())))
        boxes, labels, masks = [*boxes, box], [*labels, label], [*masks, mask]
        if len(boxes) == (2 if number % 3 else 3):
            break
    target = BoxTarget.of(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), Masks.of(torch.stack(masks)))
    return image.clamp(0, 255).to(torch.uint8), target


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A Mask R-CNN that learned the scenes for some seconds."""
    torch.manual_seed(0)
    model = create("mask_rcnn_test", classes=CLASSES)
    data = [scene(number) for number in range(48)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=200)
    for _ in range(200):
        samples = [data[index] for index in torch.randint(len(data), (4,)).tolist()]
        targets = [target for _, target in samples]
        total = model.loss(model(model.preprocess([image for image, _ in samples]), targets), targets).total
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return Subject(model.eval())


def predict(subject: Subject, image: Tensor) -> Detections:
    assert isinstance(subject.model, Watched)
    images = subject.model.preprocess([image])
    with torch.no_grad():
        return subject.model.detections(subject.model(images), images)[0]


def alike(subject: Subject, numbers: range, count: int) -> list[tuple[Tensor, Detections, tuple[int, int]]]:
    """Scenes with two objects of one class that were both found, apart from each other, with their places."""
    chosen = []
    for number in numbers:
        image, target = scene(number)
        found = predict(subject, image).above(0.4)
        for label in (0, 1):
            places = torch.nonzero(found.labels == label)[:, 0]
            true = target.boxes[target.labels == label]
            if len(true) < 2 or len(places) < 2:
                continue
            best = box_iou(true[:2], found.boxes[places]).max(1)
            if float(best.values.min()) > 0.6:
                first, second = places[best.indices].tolist()
                chosen.append((image, found, (first, second)))
                break
        if len(chosen) == count:
            break
    assert len(chosen) == count, "the detector learned too little"
    return chosen


def inside(heat: Tensor, box: Tensor) -> float:
    """Share of the positive evidence in a box."""
    left, top, right, bottom = box.round().long().tolist()
    positive = heat.clamp(min=0)
    return float(positive[top:bottom, left:right].sum() / positive.sum())


# --- what a question needs


@pytest.mark.parametrize(("asked", "is_mask"), [("box:0", False), ("box:0/top", False), ("mask:0", True)])
def test_only_a_question_about_a_mask_computes_masks(subject: Subject, asked: str, is_mask: bool) -> None:
    """Changed pictures are the dear part; what a question about a box scores in them is the same without masks."""
    assert isinstance(subject.model, Watched)
    image, _, _ = alike(subject, range(48, 96), 1)[0]
    images = subject.model.preprocess([image])
    with torch.no_grad():
        outputs = subject.model(images)
        scores = [ask(subject.model, outputs, images, [asked], None)[0][0].score]
    masks = torch.ones(1, 3, *images.pixels.shape[-2:])
    masks[:, 1, :, :24], masks[:, 2, 30:] = 0.0, 0.5
    baseline = torch.zeros_like(images.pixels)
    head: Any = subject.model.detector.heads[-1]  # type: ignore[index]
    calls: list[int] = []
    with head.register_forward_hook(lambda *_: calls.append(1)):
        (values,) = masked_scores(subject.model, images, baseline, [masks], scores)
        answers_of(subject.model, images, images.pixels[:, None], scores)
    assert bool(calls) == is_mask
    with torch.no_grad():
        changed = images.with_pixels(torch.lerp(baseline, images.pixels, masks[0][:, None]))
        torch.testing.assert_close(values[0, 0], when_hidden(scores[0])(subject.model(changed)))
    assert subject.model.detector.heads[-1] is head  # type: ignore[index]


# --- two objects of one class


# The detector learns for seconds, and on another processor it learns something a little different.
@pytest.mark.parametrize(("name", "least"), [("auto", 0.3), ("hirescam", 0.25), ("gradient", 0.1), ("drise", 0.0)])
def test_of_two_objects_of_one_class_each_map_is_about_its_own(name: str, least: float, subject: Subject) -> None:
    asked = method(name, num_masks=250) if name == "drise" else name
    for image, found, pair in alike(subject, range(1000, 1060), 3):
        questions = [(found, place) for place in pair]
        heats = explain_batch(subject, [image], questions, ExplainOptions(method=asked, verdict=False))[0]
        for heat, own, other in zip(heats, pair, pair[::-1], strict=True):
            mine, theirs = inside(heat.map, found.boxes[own]), inside(heat.map, found.boxes[other])
            assert mine > max(least, 2 * theirs), (name, mine, theirs)


def test_the_verdict_supports_the_map_and_fails_that_of_the_other_object(subject: Subject) -> None:
    image, found, (first, second) = alike(subject, range(1000, 1060), 1)[0]

    images = subject.model.preprocess([image])  # type: ignore[operator]
    with torch.no_grad():
        other = BoxQuestions(subject.model, subject.model(images), images, None).ask((found, second))  # type: ignore[arg-type]

    class Elsewhere(LayerCAM):
        """The map of the other object."""

        def __call__(self, model: Any, images: Any, scores: Any, spec: Any) -> Any:
            return super().__call__(model, images, [other.score], spec)

    right, wrong = (
        explain_batch(subject, [image], [(found, first)], ExplainOptions(method=one))[0][0]
        for one in ("layercam", Elsewhere("p3"))
    )
    assert right.verdict is not None
    assert wrong.verdict is not None
    assert right.verdict.status != "failed", right.verdict.reasons
    assert wrong.verdict.status == "failed"
    for name in ("advantage_region", "response_ratio", "similarity"):
        assert name in right.verdict.figures
    assert right.verdict.figures["advantage_region"] > 0.2, "the box itself is a control"
    assert right.verdict.figures["advantage"] > wrong.verdict.figures["advantage"] + 0.3


# --- what can be asked


def test_all_ways_to_ask_for_an_object_are_one(subject: Subject) -> None:
    image, found, (place, _) = alike(subject, range(1000, 1060), 1)[0]
    before = [parameter.requires_grad for parameter in subject.model.parameters()]
    by_number, by_words, by_prediction = explain_batch(
        subject, [image], [place, f"box:{place}", (found, place)], QUICK
    )[0]
    for heat in (by_words, by_prediction):
        assert torch.equal(heat.map, by_number.map)
    assert by_number.of == f"{found.name(place)} {float(found.scores[place]):.2f} (box {place})"
    assert by_number.manifest["model"] == "MaskRCNN"
    assert by_number.manifest["score"].startswith(f"DetectionScore(label={int(found.labels[place])}, source=")
    likeliest, of_class = explain_batch(subject, [image], [None, found.name(0)], QUICK)[0]
    assert torch.equal(likeliest.map, of_class.map)
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    left, top, right, bottom = found.boxes[place].tolist()
    region[int(top) : int(-(-bottom // 1)), int(left) : int(-(-right // 1))] = True
    assert torch.equal(by_number.region, region)  # type: ignore[arg-type]
    assert [parameter.requires_grad for parameter in subject.model.parameters()] == before
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_the_score_is_the_log_odds_of_the_prediction(subject: Subject) -> None:
    image, _ = scene(1001)
    found = predict(subject, image)
    heat = explain(subject.model.detector, image, of="box:0", verdict=False)  # type: ignore[union-attr, arg-type]
    assert torch.tensor(heat.score).sigmoid() == pytest.approx(float(found.scores[0]), abs=1e-4)
    left = explain_batch(subject, [image], ["box:0/left"], QUICK)[0][0]
    assert left.score == pytest.approx(float(found.boxes[0, 0]), abs=1e-3)
    assert left.of.startswith("left side of ")
    assert left.map.any()
    assert (left.name, heat.name) == ("hirescam", "layercam"), "what holds a side pushes it either way"
    mask = explain_batch(subject, [image], ["mask:0"], QUICK)[0][0]
    assert found.masks is not None
    assert mask.region is not None
    overlap = (mask.region & found.masks[0]).sum() / (mask.region | found.masks[0]).sum()
    assert float(overlap) == 1
    assert mask.score > 0, "cells that the model gave to the object"


def test_an_object_is_contrasted_with_another_class(subject: Subject) -> None:
    image, _ = scene(1001)
    found = predict(subject, image)
    other = 1 - int(found.labels[0])
    heat = explain_batch(subject, [image], ["box:0"], replace(QUICK, against=other))[0][0]
    assert heat.of == f"{found.name(0)} {float(found.scores[0]):.2f} (box 0) rather than {CLASSES[other]}"
    with pytest.raises(InputError, match="contrasted with itself"):
        explain_batch(subject, [image], ["box:0"], replace(QUICK, against=int(found.labels[0])))
    with pytest.raises(InputError, match="a side has no class"):
        explain_batch(subject, [image], ["box:0/top"], replace(QUICK, against=other))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("box:500", "box 500 does not exist; expected 0 to"),
        ("box:0/up", "asks about no side"),
        ("mask:0/left", "asks about no side"),
        ((3, 4, 5), "a tuple is no question to a detector"),
    ],
)
def test_questions_without_an_answer_are_refused(of: Any, message: str, subject: Subject) -> None:
    with pytest.raises(InputError, match=message):
        explain_batch(subject, [scene(1001)[0]], [of], QUICK)


def test_an_object_that_the_model_does_not_find_is_not_replaced_by_another(subject: Subject) -> None:
    image, _ = scene(1001)
    found = predict(subject, image)
    moved = replace(found, boxes=(found.boxes + 3).clamp(max=SIDE))
    with pytest.raises(InputError, match=r"no candidate at box 0.*pixels off.*predict again"):
        explain_batch(subject, [image], [(moved, 0)], QUICK)
    # The number of a candidate may differ in a faster copy; its box tells which it is.
    shuffled = replace(found, source=found.source.flip(0))
    same = explain_batch(subject, [image], [(shuffled, 0), (found, 0)], QUICK)[0]
    assert torch.equal(same[0].map, same[1].map)
    with pytest.raises(InputError, match="other classes"):
        explain_batch(subject, [image], [(replace(found, classes=Classes(("a", "b"))), 0)], QUICK)


def test_nothing_found_is_said() -> None:
    model = create("faster_rcnn_test", 2, overrides={"selection.min_score": 1.0})
    with pytest.raises(InputError, match="finds nothing in this picture"):
        explain(model, scene(0)[0], verdict=False)
    with pytest.raises(InputError, match="no 'class_1' was found"):
        explain(model, scene(0)[0], of="class_1", verdict=False)


def test_a_model_without_masks_says_so() -> None:
    model = create("faster_rcnn_test", 2)
    with pytest.raises(InputError, match="gives boxes only"):
        explain(model, scene(0)[0], of="mask:0", verdict=False)


def test_questions_are_checked_before_any_picture() -> None:
    for question in ("box:3", "BOX 3/left", "mask:0", "disc"):
        check_question(question, CLASSES, has_regions=False, has_boxes=True)
    for question in ("box:3/up", "bix:3", "1,2"):
        with pytest.raises(UnknownNameError):
            check_question(question, CLASSES, has_regions=False, has_boxes=True)
    with pytest.raises(UnknownNameError):
        check_question("box:3", CLASSES, has_regions=False)
    assert parsed_box("box:12/Top") == (12, "top", False)
    assert parsed_box("mask:2") == (2, None, True)
    assert parsed_box("disc") is None


# --- scores, by hand

BOX = torch.tensor([10.0, 10.0, 30.0, 20.0])
ASKED = AskedBox(BOX, 1, 0, torch.zeros(40, 40, dtype=torch.bool))


def said(*rows: tuple[tuple[float, float, float, float], float]) -> Found:
    """One picture with candidates of class 1."""
    boxes = torch.tensor([box for box, _ in rows]).reshape(-1, 1, 4)
    scores = torch.tensor([[0.0, score] for _, score in rows]).reshape(-1, 2)
    return Found([Candidates(boxes, scores, torch.logit(scores, 1e-6))], None, ((40, 40),), None)


HALF = (10.0, 10.0, 30.0, 15.0)
FAR = (0.0, 30.0, 8.0, 40.0)


def test_the_candidate_is_followed_where_it_moves() -> None:
    own = (10.4, 10.0, 30.0, 20.0)
    still = said((own, 0.3), ((10.0, 10.0, 30.0, 19.0), 0.9))
    assert follow(still.candidates[0], (40, 40), ASKED) == 0, "its number counts while its box is the same"
    assert float(DetectionScore(ASKED)(still)) == pytest.approx(float(torch.logit(torch.tensor(0.3))))
    moved = said((FAR, 0.9), (HALF, 0.8), ((11.0, 10.0, 31.0, 20.0), 0.6))
    assert follow(moved.candidates[0], (40, 40), ASKED) == 2, "0.6 * 19/21 is more than 0.8 / 2"
    assert follow(said((FAR, 0.9)).candidates[0], (40, 40), ASKED) is None
    assert follow(said().candidates[0], (40, 40), ASKED) is None


def test_the_overlap_score_is_the_largest_product() -> None:
    assert float(OverlapScore(ASKED)(said((FAR, 0.9), (HALF, 0.8)))) == pytest.approx(0.4)
    assert float(OverlapScore(ASKED)(said((tuple(BOX.tolist()), 0.3), (HALF, 0.8)))) == pytest.approx(0.4)  # type: ignore[arg-type]
    assert float(OverlapScore(ASKED)(said((FAR, 0.9)))) == 0
    assert float(OverlapScore(ASKED)(said())) == 0
    assert float(OverlapScore(ASKED, against=0)(said((HALF, 0.8)))) == pytest.approx(0.4)


def test_a_side_is_read_and_its_moves_are_measured() -> None:
    given = said(((12.0, 10.0, 30.5, 20.0), 0.9))
    assert float(SideScore(ASKED, "left")(given)) == 12
    assert float(SideScore(ASKED, "right")(given)) == 30.5
    assert float(SideKept(ASKED, "left")(given)) == pytest.approx(1 - 2 / 20)
    assert float(SideKept(ASKED, "top")(given)) == 1
    assert float(SideKept(ASKED, "left")(said((FAR, 0.9)))) == 0


def test_a_mask_is_read_over_its_own_cells() -> None:
    logits = torch.tensor([[[4.0, 2.0], [-6.0, -6.0]], [[9.0, 9.0], [9.0, 9.0]]])
    boxes = torch.tensor([[10.0, 10, 30, 20], [0, 30, 8, 40]])
    evidence = MaskEvidence(boxes, torch.tensor([1, 1]), torch.tensor([0, 5]), logits)
    given = replace_masks(said((HALF, 0.9)), evidence)
    cells = torch.tensor([[True, True], [False, False]])
    assert float(MaskScore(ASKED, cells)(given)) == 3
    covered = torch.zeros(40, 40, dtype=torch.bool)
    covered[10:15, 10:30] = True
    asked = replace(ASKED, mask=covered)
    assert float(MaskOverlap(asked)(given)) > 0.6
    assert float(MaskOverlap(replace(ASKED, mask=~covered))(given)) < 0.1
    gone = replace_masks(given, MaskEvidence(boxes[1:], torch.tensor([1]), torch.tensor([5]), logits[1:]))
    assert float(MaskOverlap(asked)(gone)) == 0
    with pytest.raises(ExplainError, match="gives no masks"):
        MaskScore(ASKED, cells)(said())


def replace_masks(given: Found, evidence: MaskEvidence) -> Found:
    return given._replace(masks=[evidence])


def test_changed_pictures_are_scored_by_overlap() -> None:
    cells = torch.ones(2, 2, dtype=torch.bool)
    scores = (DetectionScore(ASKED), SideScore(ASKED, "left"), MaskScore(ASKED, cells))
    assert [type(when_hidden(score)) for score in scores] == [OverlapScore, SideKept, MaskOverlap]
    plain = class_score(1)
    assert when_hidden(plain) is plain


# --- layers and methods


def test_the_level_that_fired_is_the_one_that_was_read() -> None:
    torch.manual_seed(0)
    model = create("faster_rcnn_test", 2, overrides={"box.canonical": 36.0})
    assert isinstance(model, FasterRCNN)
    watched = Watched(model.eval())
    images = model.preprocess([scene(3)[0]])
    with torch.no_grad():
        found = watched(images)
    asked = [BoxQuestions(watched, found, images, None).ask(index) for index in range(8)]
    regions = found.outputs.heads[0].regions.boxes
    expected = model.level_of(regions[[question.score.asked.source for question in asked]])  # type: ignore[attr-defined]
    assert len(set(expected)) == 2, "the objects are of both levels"
    levels = fired_layers(watched, images, [q.score for q in asked], dict(watched.explain_spec().layers))
    assert [level.replace("final", "p2") for level in levels] == expected
    heats = explain_batch(watched.detector, [scene(3)[0]], list(range(8)), QUICK)[0]
    assert [heat.layer for heat in heats] == levels


def test_the_usual_map_of_a_yolo_is_read_where_all_ways_begin() -> None:
    """Its pyramid carries the evidence for one object through several maps; a side is asked about at its own level."""
    torch.manual_seed(0)
    model = create("yolo_test", overrides={"selection.min_score": 0.0}).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    spec = model.explain_spec()

    def layer(of: str, method: str = "auto", layer: str = "auto") -> tuple[str, str | None]:
        heat = explain_batch(model, [image], [of], ExplainOptions(method=method, layer=layer, verdict=False))[0][0]
        return heat.name, heat.layer

    assert spec.early_layer == "stem"
    assert layer("box:0") == ("layercam", "stem")
    assert layer("box:0", layer="p4") == ("layercam", "p4")
    for name, read in (layer("box:0", "layercam"), layer("box:0/left")):
        assert read in spec.levels, name
    with pytest.raises(InputError, match="early_layer 'stm' is no layer"):
        replace(spec, early_layer="stm")


def test_drise_is_about_objects_only() -> None:
    spec = create("resnet_test").explain_spec()
    assert suited(spec)["drise"] is not None
    assert suited(spec, has_boxes=True)["drise"] is None
    with pytest.raises(ExplainError, match="choose method 'rise'"):
        explain(create("resnet_test"), scene(0)[0], method=DRISE(num_masks=4), verdict=False)


@pytest.mark.parametrize("name", ["gradient", "smoothgrad", "gradcam", "layercam", "scorecam", "rise", "drise"])
@pytest.mark.parametrize("of", ["box:0", "box:0/bottom", "mask:0"])
def test_every_question_suits_every_kind_of_method(name: str, of: str, subject: Subject) -> None:
    options = {"smoothgrad": {"samples": 2}, "rise": {"num_masks": 16}, "drise": {"num_masks": 16}}.get(name, {})
    heat = explain_batch(subject, [scene(1001)[0]], [of], ExplainOptions(method=method(name, **options), verdict=False))
    assert torch.isfinite(heat[0][0].map).all()
    assert heat[0][0].map.any() or heat[0][0].blank


def test_sides_and_masks_are_judged_too(subject: Subject) -> None:
    heats = explain_batch(subject, [scene(1001)[0]], ["box:0/left", "mask:0"], ExplainOptions())[0]
    for heat in heats:
        assert heat.verdict is not None
        assert "advantage_region" in heat.verdict.figures
        assert heat.verdict.figures["score_range"] <= 1.0001, "hidden pictures are scored by overlap"


@pytest.mark.parametrize(("name", "read"), [("yolo_test", "one_logits"), ("detr_test", "logits")])
def test_a_function_of_a_detector_gets_the_raw_outputs(name: str, read: str) -> None:
    """As the documentation says of any model: what the model itself returns, and not what we make of it."""
    torch.manual_seed(0)
    model = create(name, classes=CLASSES).eval()
    image, _ = scene(1)

    def mean_logit(outputs: Any) -> Tensor:
        logits: Tensor = getattr(outputs, read)
        return logits.float().mean((1, 2))

    with torch.no_grad():
        raw = model(model.preprocess([image]))
    for name_of_method in ("gradient", "occlusion", "auto"):
        options = ExplainOptions(method=name_of_method, verdict=name_of_method == "gradient")
        (heat,) = explain_batch(model, [image], [mean_logit], options)[0]
        assert heat.score == pytest.approx(float(mean_logit(raw)), rel=1e-4)
        assert heat.of == "mean_logit"
        assert heat.manifest["score"].endswith("mean_logit")
        assert heat.map.any()


def test_a_function_of_a_detector_keeps_what_it_says_about_itself() -> None:
    class Asked:
        mask = torch.ones(2, 2, dtype=torch.bool)

        def __call__(self, outputs: str) -> str:
            return f"whole {outputs}"

        def hidden(self, outputs: str) -> str:
            return f"hidden {outputs}"

        def __repr__(self) -> str:
            return "Asked()"

    watched, given = Watched(create("yolo_test", classes=CLASSES)), Asked()
    ((question,),) = ask(watched, None, watched.preprocess([scene(1)[0]]), [given], None)  # type: ignore[list-item]
    found = Found([], None, (), "outputs")
    assert question.score(found) == "whole outputs"
    assert when_hidden(question.score)(found) == "hidden outputs"
    assert region_of(question.score) is given.mask
    assert (question.words, described(question.score), question.key) == ("Asked()", "Asked()", ("own", id(given)))
    assert ask(watched, None, watched.preprocess([scene(1)[0]]), [given], None)[0][0] == question


def test_shares_are_exponentiated_as_odds() -> None:
    found = said((HALF, 0.8), (FAR, 0.6))
    overlap = when_hidden(DetectionScore(ASKED))
    share = float(overlap(found))
    assert math.exp(float(unbounded(overlap)(found))) == pytest.approx(share / (1 - share), rel=1e-5)
    assert getattr(unbounded(overlap), "reads_candidates_only")  # noqa: B009
    rather = when_hidden(DetectionScore(ASKED, against=0))
    other = when_hidden(DetectionScore(replace(ASKED, label=0)))
    expected = unbounded(overlap)(found) - unbounded(other)(found)
    torch.testing.assert_close(unbounded(rather)(found), expected)
    assert float(unbounded(overlap)(said())) == pytest.approx(math.log(1e-4), rel=1e-3), "none found: finite"
    for share_of in (SideKept(ASKED, "left"), MaskOverlap(ASKED)):
        assert "LogOdds" in repr(unbounded(share_of))
    assert unbounded(score := class_score(0)) is score


def test_scorecam_tells_objects_apart(subject: Subject) -> None:
    """A softmax of shares would weigh every channel about alike, whatever is asked: correlations of 0.98."""
    found = []
    for number in range(1000, 1006):
        questions = [f"box:{index}" for index in range(2)]
        image = scene(number)[0]
        heats = explain_batch(subject, [image], questions, ExplainOptions(method="scorecam", verdict=False))[0]
        found.append(float(torch.corrcoef(torch.stack([heat.map.flatten() for heat in heats]))[0, 1]))
    assert sum(found) / len(found) < 0.93, found
