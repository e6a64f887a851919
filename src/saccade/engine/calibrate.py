"""A temperature that was measured: how sure a classifier by words may be, by pictures whose class is known.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599. The temperature of a contrastive training
says which of a batch's texts belongs to a picture; a few class names are another question, and often another answer.

N pictures · K classes
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.data.dataset import Dataset, Labelled
from saccade.data.loader import Loader, LoaderConfig
from saccade.engine.evaluate import labels_for
from saccade.engine.modes import evaluating
from saccade.errors import DataError
from saccade.models.zero_shot import ZeroShotClassifier


def calibrate(classifier: ZeroShotClassifier, dataset: Dataset, *, batch_size: int = 64) -> float:
    """Set the temperature of a classifier by words so that its probabilities fit labelled pictures.

    No answer changes, only how sure it is. Take pictures that neither trained the model nor will measure it.

    Args:
        classifier: of ``Clip.classifier``; changed in place.
        dataset: pictures of N known classes, or with captions and categories; its classes are joined by name.
        batch_size: pictures per forward pass.

    Returns:
        What the inverse temperature was multiplied with; below 1 where the classifier was too sure.

    Raises:
        DataError: pictures without classes, or a class that the classifier does not know.
    """
    if not isinstance(dataset, Labelled) or not len(dataset.classes):
        told = "these pictures have no classes"
        raise DataError(told, where="calibrate", expected="a folder per class, or captions with a category")
    relabel = labels_for(classifier, dataset.classes, where="calibrate")
    labels = dataset.labels()
    device = classifier.weight.device
    logits: list[Tensor] = []
    found: list[int] = []
    with evaluating(classifier), torch.no_grad():
        for batch in Loader(dataset, classifier.preprocess, LoaderConfig(batch_size=batch_size)):
            logits.append(classifier(batch.images.to(device).channels_last()).logits.cpu())
            found += batch.indices
    return classifier.calibrate(torch.cat(logits), relabel[labels[torch.tensor(found)]])
