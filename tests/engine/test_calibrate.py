"""The temperature of a classifier by words is the one that a closed form gives."""

from __future__ import annotations

import math

import pytest
import torch

from saccade.data.captions import CaptionDataset
from saccade.data.dataset import subset
from saccade.engine.calibrate import calibrate
from saccade.errors import DataError
from saccade.models.zero_shot import ZeroShotClassifier
from saccade.types import Classes


class Fixed(ZeroShotClassifier):
    """Says of every picture the same: 2 more for its first class than for the others."""

    def encode_images(self, images):
        return self.weight[:1].expand(len(images), -1)


@pytest.fixture
def classifier(new_clip, dataset):
    names = dataset(5).classes.names
    weight = torch.eye(5, 16)
    model = new_clip().with_class_embeddings(names, weight)
    fixed = Fixed(model.config, new_clip())
    fixed.classes, fixed.weight = model.classes, weight
    fixed.logit_scale.fill_(2.0)
    fixed.logit_bias.fill_(0.0)
    return fixed.eval()


def test_the_temperature_makes_the_share_of_right_answers_the_confidence(classifier, dataset) -> None:
    """Softmax of (2 f, 0, 0, 0, 0) gives the first class p where 2 f = log(4 p / (1 - p)); here 6 of 10 are of it."""
    data, share = dataset(40), 0.6
    labels = data.labels()
    first = torch.nonzero(labels == 0)[:, 0][:6].tolist()
    others = torch.nonzero(labels != 0)[:, 0][:4].tolist()
    chosen = subset(data, [*first, *others])
    factor = calibrate(classifier, chosen, batch_size=4)
    assert factor == pytest.approx(math.log(4 * share / (1 - share)) / 2, rel=1e-4)
    assert float(classifier.logit_scale) == pytest.approx(math.log(4 * share / (1 - share)), rel=1e-4)
    images = classifier.preprocess([chosen[0].image])
    prediction = classifier.postprocess(classifier(images), images)[0]
    assert float(prediction.scores[0]) == pytest.approx(share, rel=1e-4)


def test_pictures_with_captions_and_categories_will_do(classifier, captions) -> None:
    """Two of the ten pictures of each split are of the first class: it gets a fifth, as every other one."""
    factor = calibrate(classifier, captions.split("val"))
    assert factor == pytest.approx(1e-3, rel=0.01)  # no temperature makes 2 in 10 less than even: the least there is


def test_pictures_without_classes_are_refused(classifier, captions) -> None:
    bare = CaptionDataset(captions.split("val").items, Classes(()), captions.split("val").root)
    with pytest.raises(DataError, match="these pictures have no classes; expected a folder per class"):
        calibrate(classifier, bare)
