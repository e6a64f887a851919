"""Figures of segmentation against closed forms, a count by hand and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index
from torchmetrics.functional.segmentation import dice_score

from saccade.errors import InputError
from saccade.metrics import semantic
from saccade.metrics.semantic import SemanticMeter, boundary_counts, boundary_f, pixel_confusion


def square(top: int, left: int, side: int = 8, size: tuple[int, int] = (24, 32)) -> torch.Tensor:
    """A square of class 1 on class 0."""
    labels = torch.zeros(size, dtype=torch.uint8)
    labels[top : top + side, left : left + side] = 1
    return labels


def metered(pairs, num_classes: int = 2, **options) -> SemanticMeter:
    meter = SemanticMeter(num_classes, **options)
    for index, (predicted, labels) in enumerate(pairs):
        meter.update(predicted, labels, index=index, source=f"picture{index}")
    return meter


def random_pairs(count: int, num_classes: int = 5, size: int = 40, seed: int = 0):
    """Maps of every class with ignored pixels; about half of the prediction is right."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for index in range(count):
        shape = (size + index % 3, size)
        labels = torch.randint(0, num_classes, shape, generator=generator)
        guess = torch.randint(0, num_classes, shape, generator=generator)
        predicted = torch.where(torch.rand(shape, generator=generator) < 0.5, labels, guess)
        labels[torch.rand(shape, generator=generator) < 0.1] = 255
        pairs.append((predicted.to(torch.uint8), labels.to(torch.uint8)))
    return pairs


def test_a_perfect_prediction_has_every_figure_one():
    figures = metered([(square(4, 4), square(4, 4))]).compute()
    assert figures == dict.fromkeys(["miou", "pixel_accuracy", "mean_accuracy", "dice", "boundary_f"], 1.0)


def test_a_shifted_square_by_hand():
    # 8x8 moved by 2: 48 pixels shared, 16 lost, 16 invented, on a picture of 768.
    meter = metered([(square(4, 6), square(4, 4))])
    background = 768 - 64 - 16
    iou = [background / (background + 32), 48 / 80]
    dice = [2 * background / (2 * background + 32), 96 / 128]
    figures, per_class = meter.compute(), meter.per_class()
    assert figures["miou"] == pytest.approx(sum(iou) / 2)
    assert figures["dice"] == pytest.approx(sum(dice) / 2)
    assert figures["pixel_accuracy"] == pytest.approx(1 - 32 / 768)
    assert figures["mean_accuracy"] == pytest.approx((background / (768 - 64) + 48 / 64) / 2)
    assert per_class.iou.tolist() == pytest.approx(iou)
    assert per_class.dice.tolist() == pytest.approx(dice)
    assert per_class.precision.tolist() == per_class.recall.tolist() == pytest.approx([background / 704, 0.75])
    assert per_class.share.tolist() == pytest.approx([704 / 768, 64 / 768])
    assert per_class.pictures.tolist() == [1, 1]
    assert meter.confusion.tolist() == [[background, 16], [16, 48]]


def test_an_empty_prediction_finds_nothing():
    meter = metered([(torch.zeros(24, 32, dtype=torch.uint8), square(4, 4))])
    per_class = meter.per_class()
    assert per_class.iou.tolist() == pytest.approx([704 / 768, 0])
    assert math.isnan(per_class.precision[1])
    assert per_class.recall[1] == 0
    assert meter.compute()["boundary_f"] == 0


def test_ignored_pixels_count_nowhere():
    labels, predicted = square(4, 4), square(4, 6)
    labels[predicted != labels] = 255
    meter = metered([(predicted, labels)])
    assert meter.compute()["miou"] == 1
    assert meter.confusion.sum() == 768 - 32
    # What stands there need not even be a class.
    predicted[labels == 255] = 255
    assert metered([(predicted, labels)]).compute()["pixel_accuracy"] == 1


def test_only_classes_of_the_truth_are_averaged():
    # Class 2 is predicted on a quarter of the background and true nowhere; class 3 is neither.
    labels, predicted = square(4, 4), square(4, 4)
    predicted[:, 24:] = 2
    meter = metered([(predicted, labels)], num_classes=4)
    assert meter.compute()["miou"] == pytest.approx(((704 - 192) / 704 + 1) / 2)
    iou = meter.per_class().iou
    assert iou[2] == 0
    assert math.isnan(iou[3])


def test_nothing_labelled_is_unknown():
    meter = metered([(square(4, 4), torch.full((24, 32), 255, dtype=torch.uint8))])
    assert all(math.isnan(value) for value in meter.compute().values())
    assert all(math.isnan(value) for value in meter.interval())
    assert meter.gallery() == ((), (), ())


def test_figures_equal_torchmetrics_and_a_count_pixel_by_pixel():
    pairs = random_pairs(4)
    meter = metered(pairs, 5, boundary_tolerance=None)
    predicted, labels = (torch.cat([pair[side].flatten() for pair in pairs]).long() for side in (0, 1))
    counted = np.zeros((5, 5), dtype=np.int64)
    for found, true in zip(predicted.tolist(), labels.tolist(), strict=True):
        if true != 255:
            counted[true, found] += 1
    assert meter.confusion.tolist() == counted.tolist()
    per_class, figures = meter.per_class(), meter.compute()
    theirs = multiclass_jaccard_index(predicted, labels, 5, average=None, ignore_index=255)
    torch.testing.assert_close(per_class.iou.float(), theirs)
    assert figures["miou"] == pytest.approx(float(theirs.mean()), abs=1e-6)
    for name, average in (("pixel_accuracy", "micro"), ("mean_accuracy", "macro")):
        accuracy = multiclass_accuracy(predicted, labels, 5, average=average, ignore_index=255)
        assert figures[name] == pytest.approx(float(accuracy), abs=1e-6)
    known = labels != 255
    dice = dice_score(predicted[known][None], labels[known][None], 5, average="none", input_format="index")
    torch.testing.assert_close(per_class.dice.float(), dice[0])
    assert "boundary_f" not in figures


def test_large_pictures_are_counted_in_parts(monkeypatch):
    predicted, labels = random_pairs(1)[0]
    whole = pixel_confusion(labels, predicted, 5)
    monkeypatch.setattr(semantic, "PIXELS_AT_ONCE", 7)
    assert torch.equal(pixel_confusion(labels, predicted, 5), whole)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3])
def test_a_boundary_counts_within_the_tolerance(tolerance):
    # A half plane moved by two pixels: each of its edge pixels is two away from the true edge.
    labels, predicted = torch.zeros(20, 40, dtype=torch.uint8), torch.zeros(20, 40, dtype=torch.uint8)
    labels[:, 20:], predicted[:, 22:] = 1, 1
    counts = boundary_counts(predicted, labels, 2, tolerance=tolerance)
    assert counts[1].tolist() == counts[3].tolist() == [20, 20]
    assert boundary_f(counts).tolist() == ([1, 1] if tolerance >= 2 else [0, 0])


def test_distances_of_boundaries_are_euclidean():
    # One true pixel; the predicted one lies three down and four to the right.
    labels, predicted = square(10, 10, side=1), square(13, 14, side=1)
    assert boundary_f(boundary_counts(predicted, labels, 2, tolerance=4.9))[1] == 0
    assert boundary_f(boundary_counts(predicted, labels, 2, tolerance=5))[1] == 1


def test_a_boundary_half_found_by_hand():
    # The true edge is 20 long; half of it is predicted, and another edge as long where there is none.
    labels, predicted = torch.zeros(20, 60, dtype=torch.uint8), torch.zeros(20, 60, dtype=torch.uint8)
    labels[:, 20:], predicted[:10, 20:], predicted[10:, 50:] = 1, 1, 1
    counts = boundary_counts(predicted, labels, 2, tolerance=0)
    # Found: 20 edge pixels and the 29 steps of the horizontal edge beside the corner; class 1 has them above it.
    assert counts[:, 1].tolist() == [10, 10 + 29 + 10, 10, 20]
    precision, recall = 10 / 49, 10 / 20
    assert float(boundary_f(counts)[1]) == pytest.approx(2 * precision * recall / (precision + recall))


def test_boundaries_equal_a_distance_transform():
    predicted, labels = (blobs(seed) for seed in (0, 1))
    labels[20:30, 20:40] = 255

    def edge(values, label):
        """Pixels of the class with a neighbour, up, down, left or right, of another known class."""
        found = np.zeros(values.shape, dtype=bool)
        height, width = values.shape
        for y, x in np.argwhere(values == label):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width and values[v, u] not in (label, 255):
                    found[y, x] = True
        return found

    truth, found = labels.numpy(), np.where(labels == 255, 255, predicted.numpy())
    counts = boundary_counts(predicted, labels, 4, tolerance=2)
    for label in range(4):
        ours, theirs = edge(found, label), edge(truth, label)
        right = ours & (distance_transform_edt(~theirs) <= 2)
        recalled = theirs & (distance_transform_edt(~ours) <= 2)
        assert counts[:, label].tolist() == [right.sum(), ours.sum(), recalled.sum(), theirs.sum()]
    assert 0.1 < float(boundary_f(counts).mean()) < 0.9


def blobs(seed: int, size: int = 64, num_classes: int = 4) -> torch.Tensor:
    """A map of smooth regions."""
    noise = torch.randn(1, num_classes, 6, 6, generator=torch.Generator().manual_seed(seed))
    planes = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic")[0]
    return planes.argmax(0).to(torch.uint8)


def test_the_border_of_an_ignored_region_is_no_boundary():
    labels, predicted = square(4, 4), square(4, 4)
    ring = torch.nn.functional.max_pool2d(labels[None, None].float(), 3, 1, 1)[0, 0].bool() & (labels == 0)
    labels[ring] = 255
    assert boundary_counts(predicted, labels, 2, tolerance=2).sum() == 0
    assert math.isnan(metered([(predicted, labels)]).compute()["boundary_f"])


def test_boundaries_are_summed_over_pictures():
    pairs = [(blobs(0, num_classes=3), blobs(1, num_classes=3)), (blobs(2, num_classes=3), blobs(2, num_classes=3))]
    # 0.0075 of the diagonal of 64x64 is 0.68 pixels: one, rounded up.
    counts = sum(boundary_counts(*pair, 3, tolerance=1) for pair in pairs)
    assert metered(pairs, 3).per_class().boundary_f.tolist() == boundary_f(counts).tolist()


def test_the_interval_is_that_of_the_ordinary_bootstrap():
    # Pictures of very different quality, so that the interval is wide.
    generator = torch.Generator().manual_seed(5)
    pairs = []
    for index in range(60):
        labels = torch.randint(0, 3, (12, 12), generator=generator)
        wrong = torch.rand(12, 12, generator=generator) < (index % 10) / 10
        pairs.append((((labels + wrong) % 3).to(torch.uint8), labels.to(torch.uint8)))
    meter = metered(pairs, 3, boundary_tolerance=None, resamples=4000)
    confusions = np.stack([pixel_confusion(labels, predicted, 3).numpy() for predicted, labels in pairs])
    drawn = np.random.default_rng(7).integers(0, 60, (4000, 60))
    totals = np.stack([confusions[draw].sum(0) for draw in drawn])
    hits = np.diagonal(totals, axis1=1, axis2=2)
    means = (hits / (totals.sum(1) + totals.sum(2) - hits)).mean(1)
    expected = np.quantile(means, [0.025, 0.975])
    assert expected[1] - expected[0] > 0.08
    assert meter.interval() == pytest.approx(expected, abs=0.006)
    assert meter.interval()[0] < meter.compute()["miou"] < meter.interval()[1]


def test_nothing_depends_on_the_order_of_the_pictures():
    pairs = list(enumerate(random_pairs(9, size=12)))
    meters = []
    for order in (pairs, pairs[::-1]):
        meter = SemanticMeter(5, resamples=50, kept=2)
        for index, (predicted, labels) in order:
            meter.update(predicted, labels, index=index, source=str(index))
        meters.append((meter.compute(), meter.interval(), meter.gallery()))
    assert meters[0] == meters[1]
    assert metered([pair for _, pair in pairs], 5, resamples=50, seed=1).interval() != meters[0][1]


def test_the_gallery_holds_the_ends_and_the_middle():
    # Picture i is wrong in i columns of 20: its own mean IoU falls with i.
    labels = torch.zeros(20, 20, dtype=torch.uint8)
    pairs = []
    for index in (3, 11, 0, 7, 5, 1, 9, 2, 10, 4, 8, 6):
        predicted = labels.clone()
        predicted[:, :index] = 1
        pairs.append((predicted, labels))
    meter = metered(pairs, resamples=0, kept=3)
    worst, median, best = meter.gallery()
    # One class in the truth, a second in the prediction: the mean of (20 - i) / 20 and 0, or 1 alone.
    assert [picture.score for picture in worst] == pytest.approx([9 / 40, 10 / 40, 11 / 40])
    assert [picture.source for picture in worst] == ["picture1", "picture8", "picture6"]
    assert [picture.score for picture in median] == pytest.approx([13 / 40, 14 / 40, 15 / 40])
    assert [picture.score for picture in best] == pytest.approx([1, 19 / 40, 18 / 40])
    assert best[0].index == 2
    # Few pictures: none is shown twice; and there is always one of each kind.
    worst, median, best = metered(pairs[:6], resamples=0, kept=3).gallery()
    assert len({picture.index for picture in (*worst, *median, *best)}) == 6
    assert [len(group) for group in metered(pairs[:1], resamples=0).gallery()] == [1, 1, 1]
    assert math.isnan(meter.interval()[0])


def test_memory_does_not_grow_with_the_pictures(monkeypatch):
    monkeypatch.setattr(semantic, "MOST_RANKED", 50)
    labels = torch.zeros(10, 10, dtype=torch.uint8)
    meter = SemanticMeter(2, resamples=2, kept=4, boundary_tolerance=None)
    for index in range(400):
        predicted = labels.clone()
        predicted.view(-1)[: 1 + index % 100] = 1
        meter.update(predicted, labels, index=index, source="")
    assert max(len(meter._worst), len(meter._best), len(meter._sample)) == 50
    # A sample of 50 of 400 finds the middle (0.2475) well enough.
    assert all(0.15 < picture.score < 0.35 for picture in meter.gallery().median)
    assert meter.gallery().worst[0].score == 0
    meter.reset()
    assert math.isnan(meter.compute()["miou"])


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        (square(4, 4), square(4, 4, size=(24, 31)), r"a\.png: the prediction is \(24, 32\)"),
        (square(4, 4) * 2, square(4, 4), r"a\.png: predicted: values from 0 to 2; expected 0 to 1"),
        (square(4, 4), square(4, 4) * 7, r"a\.png: labels: values from 0 to 7; expected 0 to 1"),
    ],
)
def test_maps_that_do_not_fit_are_refused_by_name(predicted, labels, message):
    with pytest.raises(InputError, match=message):
        SemanticMeter(2).update(predicted, labels, index=0, source="a.png")
