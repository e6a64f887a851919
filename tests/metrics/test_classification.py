"""Metrics against closed forms and against torchmetrics."""

import math

import pytest
import torch
from torchmetrics.functional import classification as peer

from saccade.errors import InputError
from saccade.metrics.classification import (
    ClassificationMeter,
    bootstrap_accuracy,
    confusion_matrix,
    per_class,
    rank_of_truth,
    reliability,
)


@pytest.fixture
def drawn():
    """Scores that are right about half of the time, over seven classes of which one never occurs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (500,), generator=generator)
    logits = torch.randn(500, 7, generator=generator)
    logits[torch.arange(500), labels] += 1.5
    return logits.softmax(1), labels


def test_confusion_by_hand():
    confusion = confusion_matrix(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    figures = per_class(confusion)
    assert figures.precision.tolist()[:2] == [0.5, 0.5]
    assert math.isnan(figures.precision[2])
    assert figures.recall.tolist() == [0.5, 1.0, 0.0]
    assert figures.f1.tolist() == pytest.approx([0.5, 2 / 3, 0.0])
    assert figures.support.tolist() == [2, 1, 1]


def test_a_class_without_images_has_no_recall():
    figures = per_class(confusion_matrix(torch.tensor([0]), torch.tensor([0]), 2))
    assert math.isnan(figures.recall[1])
    assert math.isnan(figures.f1[1])
    assert figures.support[1] == 0


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_refused(label):
    with pytest.raises(InputError, match="expected 0 to 2"):
        confusion_matrix(torch.tensor([0, label]), torch.tensor([0, 0]), 3)


def test_counts_equal_torchmetrics(drawn):
    scores, labels = drawn
    predicted = scores.argmax(1)
    confusion = confusion_matrix(labels, predicted, 7)
    assert torch.equal(confusion, peer.multiclass_confusion_matrix(predicted, labels, 7))
    figures = per_class(confusion)
    present = figures.support > 0
    for ours, function in (
        (figures.precision, peer.multiclass_precision),
        (figures.recall, peer.multiclass_recall),
        (figures.f1, peer.multiclass_f1_score),
    ):
        theirs = function(predicted, labels, 7, average=None)
        torch.testing.assert_close(ours[present].float(), theirs[present])


def test_meter_equals_torchmetrics_batch_by_batch(drawn):
    scores, labels = drawn
    meter = ClassificationMeter(7)
    for start in range(0, 500, 64):
        meter.update(scores[start : start + 64], labels[start : start + 64])
    metrics = meter.compute()
    expected = {
        "top1": peer.multiclass_accuracy(scores, labels, 7, average="micro"),
        "top5": peer.multiclass_accuracy(scores, labels, 7, average="micro", top_k=5),
        "ece": peer.multiclass_calibration_error(scores, labels, 7, n_bins=15, norm="l1"),
        "nll": torch.nn.functional.nll_loss(scores.log(), labels),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), abs=1e-6), name
    meter.reset()
    assert math.isnan(meter.compute()["top1"])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_by_sorting(drawn, k):
    scores, labels = drawn
    places = scores.sort(dim=1, descending=True, stable=True).indices
    expected = (places[:, :k] == labels[:, None]).any(1)
    assert torch.equal(rank_of_truth(scores, labels) < k, expected)


def test_a_constant_output_is_right_for_one_class_only():
    scores = torch.full((4, 4), 0.25)
    assert rank_of_truth(scores, torch.arange(4)).tolist() == [0, 1, 2, 3]
    meter = ClassificationMeter(4)
    meter.update(scores, torch.arange(4))
    assert meter.compute()["top1"] == 0.25


def test_nan_scores_are_refused():
    with pytest.raises(InputError, match="NaN"):
        ClassificationMeter(2).update(torch.tensor([[math.nan, 1.0]]), torch.tensor([0]))


def test_scores_of_another_number_of_classes_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        ClassificationMeter(3).update(torch.rand(2, 4), torch.tensor([0, 1]))


def test_top_five_of_five_classes_says_nothing_and_is_left_out():
    meter = ClassificationMeter(5)
    meter.update(torch.eye(5), torch.arange(5))
    assert "top5" not in meter.compute()


def test_calibration_by_hand():
    # Two bins of four: (0, 1/2] holds 0.5 (right), (1/2, 1] holds 0.75, 0.75, 1.0 (right, wrong, wrong).
    table = reliability(torch.tensor([0.5, 0.75, 0.75, 1.0]), torch.tensor([True, True, False, False]), 2)
    assert table.counts.tolist() == [1, 3]
    assert table.confidence.tolist() == pytest.approx([0.5, 2.5 / 3])
    assert table.accuracy.tolist() == pytest.approx([1.0, 1 / 3])
    assert table.error == pytest.approx((1 * 0.5 + 3 * 0.5) / 4)


def test_perfect_calibration_has_no_error():
    confidence = torch.tensor([0.75] * 4)
    assert reliability(confidence, torch.tensor([True, True, True, False]), 10).error == 0.0


def test_empty_bins_are_unknown_not_zero():
    table = reliability(torch.tensor([0.95]), torch.tensor([True]), 10)
    assert math.isnan(table.accuracy[0])
    assert table.counts.sum() == 1
    assert math.isnan(reliability(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 10).error)


def test_bootstrap_is_the_binomial_interval():
    is_right = torch.arange(400) < 300
    low, high = bootstrap_accuracy(is_right, resamples=100_000)
    # Normal approximation: 0.75 +- 1.96 sqrt(0.75 * 0.25 / 400), good to a step of 1/400.
    assert low == pytest.approx(0.75 - 1.96 * 0.02165, abs=1 / 400)
    assert high == pytest.approx(0.75 + 1.96 * 0.02165, abs=1 / 400)
    # And drawing images themselves gives the same.
    draws = torch.randint(0, 400, (20_000, 400), generator=torch.Generator().manual_seed(1))
    means = is_right[draws].double().mean(1)
    assert low == pytest.approx(float(means.quantile(0.025)), abs=1 / 400)
    assert high == pytest.approx(float(means.quantile(0.975)), abs=1 / 400)


def test_bootstrap_is_seeded():
    is_right = torch.arange(100) < 60
    assert bootstrap_accuracy(is_right, 50, seed=1) == bootstrap_accuracy(is_right, 50, seed=1)
    assert bootstrap_accuracy(is_right, 50, seed=1) != bootstrap_accuracy(is_right, 50, seed=2)
    assert math.isnan(bootstrap_accuracy(torch.zeros(0, dtype=torch.bool))[0])


def test_an_underflowing_probability_is_finite():
    meter = ClassificationMeter(2)
    meter.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert meter.compute()["nll"] == pytest.approx(87.3365, abs=1e-3)
