"""What can be asked of a label map, and which pixels, class and words each question comes to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError, InputError, UnknownNameError
from saccade.explanation import asking
from saccade.explanation.explain import explain
from saccade.explanation.questions import (
    ClassQuestions,
    RegionQuestions,
    check_question,
    label_of,
    pixel_of,
    plain,
)
from saccade.explanation.scores import RegionScore, map_logits_of, region_score
from saccade.models.build import create
from saccade.models.segmenter import SegmenterOutputs
from saccade.ops.image import Preprocess
from saccade.types import Classes, Classification, ImageBatch

CLASSES = Classes(("background", "road", "car"))
# Two cars of 4 and 2 pixels, a road of 5, one car pixel that touches the second car by a corner only.
LABELS = torch.tensor(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 2, 2, 0, 0, 0],
        [0, 2, 2, 0, 2, 2],
        [0, 0, 0, 2, 0, 0],
    ]
)


def logits_for(labels: Tensor, num_classes: int = 3) -> Tensor:
    """Logits ``[1, K, H, W]`` whose largest is that of the label."""
    return torch.nn.functional.one_hot(labels, num_classes).permute(2, 0, 1)[None].float()


def questions(
    labels: Tensor = LABELS,
    against: str | int | None = None,
    classes: Classes = CLASSES,
    images: ImageBatch | None = None,
) -> RegionQuestions:
    images = images or ImageBatch.of(torch.zeros(1, 3, *labels.shape))
    return RegionQuestions(logits_for(labels, len(classes)), images, classes, against)


# --- which pixels


@pytest.mark.parametrize("question", ["car", "CAR", 2])
def test_a_class_is_all_of_its_pixels(question: str | int) -> None:
    asked = questions().ask(question)
    assert asked.region is not None
    assert torch.equal(asked.region, LABELS == 2)
    assert asked.words == "car"
    assert isinstance(asked.score, RegionScore)
    assert (asked.score.label, asked.score.against) == (2, None)
    assert torch.equal(asked.score.mask, LABELS == 2)


@pytest.mark.parametrize("question", [(4, 2), "4,2", " 4 , 2 "])
def test_a_pixel_is_left_then_top(question: str | tuple[int, int]) -> None:
    asked = questions().ask(question)
    assert asked.region is not None
    assert torch.nonzero(asked.region).tolist() == [[2, 4]]
    assert asked.words == "car at 4,2"


@pytest.mark.parametrize(
    ("question", "label", "area", "corner"),
    [
        ("component:1", 1, 5, (0, 0)),
        ("component:2", 2, 4, (1, 1)),
        ("Component 3", 2, 2, (2, 4)),
        ("component#4", 2, 1, (3, 3)),
    ],
)
def test_parts_are_numbered_from_the_largest_without_the_background(
    question: str, label: int, area: int, corner: tuple[int, int]
) -> None:
    for _ in range(2):
        asked = questions().ask(question)
        assert asked.region is not None
        assert int(asked.region.sum()) == area
        assert bool(asked.region[corner])
        assert asked.words == f"{CLASSES[label]} component {question[-1]}"
        assert asked.score.label == label  # type: ignore[attr-defined]


def test_equal_parts_are_numbered_in_reading_order() -> None:
    labels = torch.zeros(5, 5, dtype=torch.int64)
    labels[0, 3], labels[2, 0], labels[2, 4] = 2, 1, 2
    places = [torch.nonzero(questions(labels).ask(f"component:{n}").region).tolist()[0] for n in (1, 2, 3)]
    assert places == [[0, 3], [2, 0], [2, 4]]


def test_nothing_asked_is_the_class_that_covers_most_beside_a_background() -> None:
    asked = questions().ask(None)
    assert asked.words == "car", "7 pixels of car, 5 of road, 12 of background"
    only = questions(torch.zeros(3, 3, dtype=torch.int64)).ask(None)
    assert only.words == "background", "there is nothing else"
    named = Classes(("sky", "road", "car"))
    assert questions(classes=named).ask(None).words == "sky", "only names that say so are backgrounds"


def test_a_mask_is_its_pixels_and_their_commonest_class() -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0:3, 1:3] = True
    asked = questions().ask(mask)
    assert asked.region is not None
    assert torch.equal(asked.region, mask)
    assert asked.score.label == 2  # type: ignore[attr-defined]
    assert asked.words == "car in a mask", "4 pixels of car, 2 of road"


def test_a_class_named_like_a_pixel_is_a_class() -> None:
    odd = Classes(("background", "1,1", "component:1"))
    assert questions(classes=odd).ask("1,1").words == "1,1"
    assert questions(classes=odd).ask("component:1").words == "component:1"
    check_question("1,1", odd, has_regions=False)


def test_padding_of_the_canvas_is_in_no_region() -> None:
    labels = torch.full((6, 8), 2)
    labels[:4, :6] = LABELS
    images = ImageBatch(torch.zeros(1, 3, 6, 8), ((4, 6),), (ImageBatch.of(torch.zeros(1, 3, 4, 6)).geometries[0],))
    padded = questions(labels, images=images)
    for question in ("car", "component:2", None):
        region = padded.ask(question).region
        assert region is not None
        assert region.shape == (6, 8)
        assert not region[4:].any()
        assert not region[:, 6:].any()
    assert int(padded.ask("car").region.sum()) == 7  # type: ignore[union-attr]


# --- questions are the same or not


def test_questions_that_mean_the_same_are_equal_and_others_are_not() -> None:
    several = questions()
    assert several.ask("car") == several.ask(2)
    assert hash(several.ask("car")) == hash(several.ask(2))
    assert several.ask("4,2") == several.ask((4, 2))
    different = [several.ask(question) for question in ("car", "road", "4,2", "5,2", "component:1", "component:2")]
    assert len(set(different)) == 6
    assert several.ask("car") != questions(against="road").ask("car")


def test_two_masks_of_one_class_are_two_questions() -> None:
    one, other = torch.zeros(4, 6, dtype=torch.bool), torch.zeros(4, 6, dtype=torch.bool)
    one[1, 1], other[2, 2] = True, True
    several = questions()
    assert several.ask(one) != several.ask(other)
    assert several.ask(one) == several.ask(one.clone())


# --- contrast


def test_contrast_is_told_and_scored() -> None:
    asked = questions(against="road").ask("component:2")
    assert asked.words == "car component 2 rather than road"
    assert (asked.score.label, asked.score.against) == (2, 1)  # type: ignore[attr-defined]
    assert questions(against=0).ask("1,1").words == "car at 1,1 rather than background"


@pytest.mark.parametrize("question", ["road", "0,0", "component:1", 1])
def test_a_contrast_with_itself_is_refused(question: str | int) -> None:
    with pytest.raises(InputError, match="against: class 'road' is contrasted with itself; say with `of`"):
        questions(against="road").ask(question)


# --- what is refused


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("6,0", "pixel 6,0 lies outside of the picture; expected at most 5,3"),
        ((0, 4), "pixel 0,4 lies outside of the picture; expected at most 5,3"),
        ((-1, 0), "pixel -1,0 lies outside"),
        ("component:5", "component 5 does not exist; expected 1 to 4"),
        ("component:0", "component 0 does not exist"),
        (3, "class 3 does not exist; expected 0 to 2"),
        (torch.zeros(4, 6, dtype=torch.bool), "the mask is empty; expected at least one pixel"),
        (torch.ones(6, 4, dtype=torch.bool), r"the mask is \(6, 4\) torch.bool; expected \(4, 6\) bool"),
        (torch.ones(4, 6), r"the mask is \(4, 6\) torch.float32; expected \(4, 6\) bool"),
        (Classification(torch.ones(3) / 3, CLASSES), "a Classification is no question to a segmenter"),
    ],
)
def test_what_is_not_there_is_refused(question: object, words: str) -> None:
    with pytest.raises(InputError, match=f"of: {words}"):
        questions().ask(question)  # type: ignore[arg-type]


def test_a_picture_of_background_alone_has_no_parts() -> None:
    with pytest.raises(InputError, match="component 1 does not exist; expected a class beside a background, which no"):
        questions(torch.zeros(3, 3, dtype=torch.int64)).ask("component:1")


def test_a_class_that_no_pixel_got_names_those_that_are_there() -> None:
    labels = LABELS.clone()
    labels[labels == 1] = 0
    with pytest.raises(
        InputError, match="no pixel was given the class 'road'; expected a class that is there: "
    ) as told:
        questions(labels).ask("road")
    assert "there: background, car; ask for one pixel" in str(told.value)


@pytest.mark.parametrize("question", ["caar", "4,2,1", "-1,2", "component:x", "1.5,2"])
def test_an_unknown_class_is_told_before_and_after_the_picture_is_seen(question: str) -> None:
    with pytest.raises(UnknownNameError) as early:
        check_question(question, CLASSES, has_regions=True)
    with pytest.raises(UnknownNameError) as late:
        questions().ask(question)
    assert str(early.value) == str(late.value)
    assert f"unknown class '{question}'" in str(early.value)
    if question == "caar":
        assert "did you mean 'car'?" in str(early.value)


def test_regions_are_no_questions_to_a_classifier() -> None:
    asked = ClassQuestions(torch.tensor([[0.0, 2.0, 1.0]]), CLASSES, None)
    assert asked.ask(None, 0).words == "road"
    assert asked.ask(None, 0).region is None
    for question in ((1, 2), torch.ones(2, 2, dtype=torch.bool)):
        with pytest.raises(InputError, match="a classifier has no regions to ask about; expected the name or label"):
            asked.ask(question, 0)
    with pytest.raises(UnknownNameError, match="unknown class '1,2'"):
        check_question("1,2", CLASSES, has_regions=False)


def test_pixels_backgrounds_and_labels() -> None:
    assert pixel_of("12,34") == pixel_of((12, 34)) == (12, 34)
    assert all(pixel_of(other) is None for other in (None, "car", 3, "component:2", torch.ones(1, 1)))
    assert Classes(("Background", "car", "Unlabelled", "other")).backgrounds == {0, 2, 3}
    assert Classes(("sky", "car")).backgrounds == frozenset()
    assert (label_of("Car", CLASSES), label_of(1, CLASSES)) == (2, 1)
    with pytest.raises(InputError, match="class -1 does not exist"):
        label_of(-1, CLASSES)


# --- resized canvases


@pytest.mark.parametrize("policy", ["letterbox", "stretch"])
def test_a_pixel_of_the_picture_finds_its_place_on_a_resized_canvas(policy: str) -> None:
    picture = torch.zeros(3, 30, 60, dtype=torch.uint8)
    images = Preprocess(size=(20, 20), policy=policy)([picture])  # type: ignore[arg-type]
    scale = (20 / 30 if policy == "stretch" else 1 / 3, 1 / 3)
    labels = torch.zeros(20, 20, dtype=torch.int64)
    for left, top in ((0, 0), (59, 29), (31, 14), (2, 1)):
        region = questions(labels, images=images).ask((left, top)).region
        assert region is not None
        row, column = torch.nonzero(region)[0].tolist()
        assert (row, column) == (int((top + 0.5) * scale[0]), int((left + 0.5) * scale[1]))
    with pytest.raises(InputError, match="at most 59,29"):
        questions(labels, images=images).ask((60, 0))


def test_a_mask_of_the_picture_finds_its_place_on_a_letterboxed_canvas() -> None:
    images = Preprocess(size=(20, 20), policy="letterbox")([torch.zeros(3, 30, 60, dtype=torch.uint8)])
    mask = torch.zeros(30, 60, dtype=torch.bool)
    mask[15:, 30:] = True
    region = questions(torch.zeros(20, 20, dtype=torch.int64), images=images).ask(mask).region
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[5:10, 10:] = True
    assert region is not None
    assert torch.equal(region, expected), "the lower half of the canvas shows no picture"


# --- region scores


def outputs_of(logits: Tensor) -> SegmenterOutputs:
    return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), None)  # type: ignore[arg-type]


def test_the_score_is_the_mean_logit_above_the_other_classes() -> None:
    logits = torch.tensor([[[[1.0, 2.0]], [[4.0, 0.0]], [[7.0, 8.0]]]])  # [1, 3, 1, 2]
    both, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert float(region_score(1, first)(logits)) == pytest.approx(4 - (1 + 7) / 2)
    assert float(region_score(1, both)(logits)) == pytest.approx(((4 - 4) + (0 - 5)) / 2)
    assert float(region_score(2, both, against=0)(logits)) == pytest.approx(((7 - 1) + (8 - 2)) / 2)
    assert float(region_score(0, first)(logits[:, :2])) == pytest.approx(1 - 4), "of two classes: the difference"
    torch.testing.assert_close(region_score(1, both)(outputs_of(logits)), region_score(1, both)(logits))
    shifted = logits + torch.tensor([[5.0, -3.0]])
    torch.testing.assert_close(region_score(1, both)(shifted), region_score(1, both)(logits))


def test_scores_of_a_batch_are_those_of_its_pictures() -> None:
    logits = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    for score in (region_score(2, mask), region_score(2, mask, 0)):
        together = score(logits)
        assert together.shape == (4,)
        torch.testing.assert_close(together, torch.cat([score(logits[i : i + 1]) for i in range(4)]))


def test_the_gradient_of_the_score_is_the_region_by_class() -> None:
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[0, 1], mask[2, 2] = True, True
    (slope,) = torch.autograd.grad(region_score(1, mask)(logits).sum(), logits)
    expected = torch.zeros(1, 4, 3, 3)
    expected[:, :, mask] = -1 / 3 / 2
    expected[:, 1, mask] = 1 / 2
    torch.testing.assert_close(slope, expected)
    (slope,) = torch.autograd.grad(region_score(1, mask, 3)(logits).sum(), logits)
    assert not slope[:, [0, 2]].any()
    torch.testing.assert_close(slope[:, 3], -slope[:, 1])


def test_a_region_score_says_where_it_is_in_few_words() -> None:
    mask = torch.zeros(2000, 3000, dtype=torch.bool)
    mask[10:20, 30:50] = True
    assert repr(region_score(1, mask)) == "RegionScore(label=1, pixels=200, box=[30, 10, 50, 20])"
    assert repr(region_score(1, mask, 0)) == "RegionScore(label=1, against=0, pixels=200, box=[30, 10, 50, 20])"
    weights = region_score(1, mask).weights  # type: ignore[attr-defined]
    assert float(weights.double().sum()) == pytest.approx(1)
    assert not weights[~mask].any()


def test_region_scores_refuse() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ConfigError, match="class 1 is contrasted with itself"):
        region_score(1, mask, 1)
    with pytest.raises(InputError, match="the region is empty"):
        region_score(1, ~mask)
    with pytest.raises(InputError, match=r"the region is \(2, 2\), the canvas \(3, 2\)"):
        region_score(1, mask)(torch.zeros(1, 2, 3, 2))
    with pytest.raises(InputError, match="class 2 does not exist; expected 0 to 1"):
        region_score(2, mask)(torch.zeros(1, 2, 2, 2))
    with pytest.raises(Exception, match="hold no class logits of pixels"):
        map_logits_of(torch.zeros(2, 3))


# --- pictures too large to be explained as a whole


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_REGION_PIXELS", 32 * 32)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize(
    ("pixel", "rows", "columns"),
    [
        ((50, 40), (24, 56), (34, 66)),
        ((0, 0), (0, 32), (0, 32)),
        ((99, 79), (48, 80), (68, 100)),
    ],
)
def test_of_a_large_picture_the_surroundings_of_the_pixel_are_explained(
    pixel: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = create("unet_plain_test", 3).eval()
    picture = torch.randint(0, 256, (3, 80, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    heat = explain(model, picture, of=pixel, method="gradient", verdict=False)
    assert heat.map.shape == heat.seen.shape == (80, 100)
    expected = torch.zeros(80, 100, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(heat.seen, expected)
    assert not heat.map[~expected].any()
    assert heat.region is not None
    assert torch.nonzero(heat.region).tolist() == [[pixel[1], pixel[0]]]
    part = picture[:, slice(*rows), slice(*columns)]
    alone = explain(model, part, of=(pixel[0] - columns[0], pixel[1] - rows[0]), method="gradient", verdict=False)
    torch.testing.assert_close(heat.map[slice(*rows), slice(*columns)], alone.map)
    assert heat.score == pytest.approx(alone.score)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("question", [None, "class_1", "component:1", 0])
def test_a_large_picture_is_not_explained_as_a_whole(question: str | int | None) -> None:
    model = create("unet_plain_test", 3).eval()
    picture = torch.zeros(3, 80, 100, dtype=torch.uint8)
    words = "of: a picture of 100x80 pixels is too large to be explained as a whole; expected at most 1,024 pixels"
    with pytest.raises(InputError, match=f"{words}.*; ask for one pixel, or cut out the part"):
        explain(model, picture, of=question, verdict=False)


@pytest.mark.usefixtures("small_limit")
def test_a_pixel_outside_of_a_large_picture_is_told_as_of_a_small_one() -> None:
    model = create("unet_plain_test", 3).eval()
    with pytest.raises(InputError, match="pixel 100,0 lies outside of the picture; expected at most 99,79"):
        explain(model, torch.zeros(3, 80, 100, dtype=torch.uint8), of=(100, 0), verdict=False)


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    for number in (np.int64(2), np.uint8(2), torch.tensor(2), np.array(2)):
        assert type(plain(number)) is int  # type: ignore[arg-type]
    mask = torch.ones(1, 1, dtype=torch.bool)
    for other in ("car", (4, 2), None, mask, Classification, 2.0):
        assert plain(other) is other  # type: ignore[arg-type]
