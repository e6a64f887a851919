"""Evaluation: joined by name, complete, and the same however it is batched."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.functional import nll_loss

from saccade.console import print_evaluation
from saccade.data.captions import CaptionsInMemory
from saccade.data.dataset import ArrayDataset, subset
from saccade.engine.evaluate import EvaluateConfig, Evaluation, evaluate, join_classes
from saccade.errors import DataError, ImageError
from saccade.report.run import facts
from saccade.types import Classes, ImageBatch


@pytest.fixture
def told(model, dataset):
    """A model that knows its classes, not perfectly."""
    model.classes = dataset(1).classes
    return model.train()


def renamed(dataset, order):
    """The same pictures with the classes listed in another order."""
    names = tuple(dataset.classes[label] for label in order)
    labels = torch.tensor([names.index(dataset.classes[int(label)]) for label in dataset.targets])
    return ArrayDataset(dataset.images, labels, Classes(names), dataset.name)


def test_figures_are_those_of_the_plain_formulae(told, dataset):
    data = dataset(60)
    evaluation = evaluate(told, data, EvaluateConfig(batch_size=7))
    told.eval()
    with torch.no_grad():
        pixels = told.preprocess([data[index].image for index in range(60)]).pixels
        scores = told(ImageBatch.of(pixels)).logits.softmax(1)
    predicted = scores.argmax(1)
    assert evaluation.metrics["top1"] == pytest.approx(float((predicted == data.targets).double().mean()))
    assert evaluation.metrics["nll"] == pytest.approx(float(nll_loss(scores.log(), data.targets)), rel=1e-5)
    assert evaluation.num_images == 60
    low, high = evaluation.interval
    assert low <= evaluation.metrics["top1"] <= high
    for label, row in enumerate(evaluation.per_class):
        assert row.support == 12
        assert row.recall == pytest.approx(float((predicted[data.targets == label] == label).double().mean()))
    assert sum(map(sum, evaluation.confusion)) == 60
    assert sum(row.count for row in evaluation.reliability) == 60
    assert len(evaluation.reliability) == 15
    wrong = torch.nonzero(predicted != data.targets)[:, 0].tolist()
    assert {mistake.index for mistake in evaluation.mistakes} <= set(wrong)
    worst = evaluation.mistakes[0]
    assert worst.true_score == pytest.approx(min(float(scores[i, data.targets[i]]) for i in wrong), rel=1e-4)
    assert worst.source == f"colours0#{worst.index}"
    assert worst.true == data.classes[int(data.targets[worst.index])]
    assert [m.true_score for m in evaluation.mistakes] == sorted(m.true_score for m in evaluation.mistakes)


def test_order_of_the_classes_does_not_matter(told, dataset):
    data = dataset(30)
    straight, other = evaluate(told, data), evaluate(told, renamed(data, [4, 2, 0, 1, 3]))
    assert other.metrics == straight.metrics
    assert other.per_class == straight.per_class
    assert other.confusion == straight.confusion


def test_missing_classes_are_told_and_not_shifted(told, dataset):
    data = dataset(60)
    kept = [index for index in range(60) if data.classes[int(data.targets[index])] in {"blue", "dark"}]
    part = subset(data, kept)
    names = Classes(("dark", "blue"))
    labels = torch.tensor([names.id(data.classes[int(label)]) for label in part.targets])
    few = evaluate(told, ArrayDataset(part.images, labels, names, "few"))
    whole = evaluate(told, data)
    assert few.missing_classes == ("red", "green", "grey")
    recall = {row.name: row.recall for row in whole.per_class}
    assert {row.name: row.recall for row in few.per_class if row.support} == {n: recall[n] for n in ("blue", "dark")}
    assert few.per_class[0].recall is None
    assert few.num_images == 24


def test_an_unknown_class_is_refused_with_the_nearest_name(told, dataset):
    data = dataset(10)
    odd = ArrayDataset(data.images, data.targets, Classes(("red", "green", "blue", "gray", "dark")), "odd")
    with pytest.raises(DataError, match=r"does not know: gray.*'grey'"):
        evaluate(told, odd)
    assert join_classes(Classes(("a", "b", "c")), Classes(("c", "a"))).tolist() == [2, 0]


def test_batch_size_does_not_matter_and_modes_are_restored(told, dataset):
    told.backbone.eval()
    modes = [module.training for module in told.modules()]
    first, second = (evaluate(told, dataset(25), EvaluateConfig(batch_size=size)) for size in (1, 25))
    assert first.metrics == pytest.approx(second.metrics, rel=1e-5)
    assert [module.training for module in told.modules()] == modes


def test_it_survives_json(told, dataset):
    evaluation = evaluate(told, dataset(10))
    content = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert Evaluation.from_dict(content).to_dict() == evaluation.to_dict()


def test_settings_hold_what_affects_the_figures(told, dataset):
    settings = evaluate(told, dataset(10), EvaluateConfig(num_bins=5)).settings
    assert settings["num_bins"] == 5
    assert settings["dtype"] == "float32"
    assert settings["preprocess"]["size"] == [32, 32]
    assert settings["data"] == dataset(10).fingerprint()


class Damaged(ArrayDataset):
    gather = None

    def __getitem__(self, index):
        if index in (2, 5):
            raise ImageError("it is no picture", where=f"{index}.png")
        return super().__getitem__(index)


def test_unreadable_pictures_are_counted_and_indices_stay_right(told, dataset):
    data = dataset(20)
    evaluation = evaluate(told, Damaged(data.images, data.targets, data.classes, "d"), EvaluateConfig(batch_size=4))
    assert evaluation.num_images == 18
    assert len(evaluation.skipped) == 2
    assert "2.png" in evaluation.skipped[0]
    assert all(mistake.source == f"d#{mistake.index}" for mistake in evaluation.mistakes)
    with pytest.raises(ImageError, match=r"2\.png"):
        evaluate(told, Damaged(data.images, data.targets, data.classes, "d"), EvaluateConfig(strict=True))


def test_no_readable_picture_at_all_is_an_error(told, dataset):
    data = subset(dataset(20), [2])

    class Broken(ArrayDataset):
        gather = None

        def __getitem__(self, index):
            raise ImageError("it is no picture", where="0.png")

    with pytest.raises(DataError, match="no readable picture"):
        evaluate(told, Broken(data.images, data.targets, data.classes, "d"))


def test_a_model_of_nan_is_no_perfect_model(told, dataset):
    with torch.no_grad():
        told.head.bias.fill_(math.nan)
    with pytest.raises(Exception, match="NaN"):
        evaluate(told, dataset(5))


def test_texts_that_are_too_long_are_told_apart_from_unreadable_pictures(new_clip, captions, capsys) -> None:
    part = captions.splits["val"]
    items = [
        replace(item, texts=("very " * 30,), alternatives=()) if n < 3 else item for n, item in enumerate(part.items)
    ]
    evaluation = evaluate(new_clip(), CaptionsInMemory(items, part.classes, part.root))
    assert evaluation.num_images == len(items) - 3
    assert evaluation.skipped == ()
    print_evaluation(evaluation, Console(width=200))
    told = capsys.readouterr().out
    assert "1 text of the data is longer than the context of the model ('very very" in told
    assert "left out, and 3 pictures with no other" in told
    assert "unreadable" not in told
    assert evaluation.settings["left_out"][0] in facts(Path("nowhere"), evaluation).details[0]["text"]
