"""Evaluation: how good a model is on a data set, how sure that figure is, and where the model is most wrong.

Classes are joined by name, so a data set may lack some of the model's classes or order them otherwise. Every setting
that affects a figure is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saccade.config import to_dict
from saccade.data.dataset import Dataset
from saccade.data.loader import Batch, Loader, LoaderConfig
from saccade.data.pictures import PictureBatch, Pictures
from saccade.data.source import DataSource
from saccade.engine.detect import detect_pictures
from saccade.engine.modes import evaluating
from saccade.engine.segment import segment_pictures
from saccade.engine.zero_shot import new_tally, without_long_texts
from saccade.errors import DataError, nearest
from saccade.models.base import VisionModel
from saccade.models.detector import Detector
from saccade.models.segmenter import Segmenter
from saccade.tasks import EvaluateConfig, Evaluation, Facts, Tally
from saccade.tasks.base import LEVEL
from saccade.types import Classes, Prediction

__all__ = ["EvaluateConfig", "Evaluation", "evaluate", "evaluate_split", "join_classes", "score_batches"]


MOST_AS_THEY_ARE = 8
"""Pictures of any size that are taken at once."""


def evaluate(model: VisionModel[Any, Any, Any], dataset: Dataset, config: EvaluateConfig | None = None) -> Evaluation:
    """Evaluate a model on labelled pictures, where the model lives and in its own precision.

    Raises:
        DataError: where the data is for another task, has a class that the model does not know, or no readable picture.
        ImageError: with ``strict``, at the first unreadable picture.
    """
    config = config or EvaluateConfig()
    start = time.perf_counter()
    check_task(model, dataset.task)
    whole, (dataset, left_out) = dataset, without_long_texts(model, dataset, "the data")
    tally = new_tally(model, dataset, labels_for(model, dataset.classes), config)
    batches = held_out_batches(
        dataset, model, LoaderConfig(batch_size=config.batch_size, workers=config.workers, strict=config.strict)
    )
    if not sum(len(batch) for batch in score_batches(model, batches.epoch(0), tally)):
        raise DataError(
            "the data set has no readable picture", remedy="see what was skipped with `saccade data inspect`"
        )
    settings = {
        **to_dict(config),
        "preprocess": to_dict(model.preprocess),
        "level": LEVEL,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": str(next(model.parameters()).device),
        "data": whole.fingerprint(),
    }
    if left_out:
        settings["left_out"] = left_out
    return tally.evaluation(Facts(tuple(batches.skipped), settings, time.perf_counter() - start))


def evaluate_split(
    model: VisionModel[Any, Any, Any], source: DataSource, split: str | None, config: EvaluateConfig
) -> tuple[Dataset, Evaluation]:
    """Score a model on one split of a source; returns that split with the result.

    Args:
        model: as for ``evaluate``.
        source: the data.
        split: its name, or ``all``; where it is None, ``test`` if there is one, else the one that is held out.
        config: as for ``evaluate``.

    Raises:
        DataError: as ``evaluate``, naming the source.
    """
    split = split or source.scored
    dataset = source.split(split)
    try:
        evaluation = evaluate(model, dataset, config)
    except DataError as error:
        error.where = error.where or source.name
        raise
    return dataset, replace(evaluation, settings={**evaluation.settings, "split": split})


def check_task(model: VisionModel[Any, Any, Any], task: str, *, where: str | None = None) -> None:
    """Refuse data that a model has no use for.

    Raises:
        DataError: saying what the data is for.
    """
    # Objects with masks have boxes as well.
    if model.task != task and (model.task, task) != ("detection", "instance"):
        raise DataError(
            f"the data is for {task}, the model for {model.task}",
            where=where,
            remedy=f"`saccade models --task {task}` lists the models for it",
        )


def labels_for(model: VisionModel[Any, Any, Any], classes: Classes, *, where: str | None = None) -> Tensor:
    """Label of the model ``[K_data]`` int64 for each label of the data; a model of texts takes any names as they are.

    Raises:
        DataError: as ``join_classes``.
    """
    if model.task == "zero_shot":
        return torch.arange(len(classes))
    return join_classes(model.classes, classes, where=where)


def join_classes(model_classes: Classes, data_classes: Classes, *, where: str | None = None) -> Tensor:
    """Label of the model ``[K_data]`` int64 for each label of the data set, joined by name.

    Args:
        model_classes: what the model knows.
        data_classes: what the data set has.
        where: name of the data set, for the message.

    Raises:
        DataError: where the data set has a class the model was not trained on.
    """
    ids = {name: label for label, name in enumerate(model_classes)}
    unknown = [name for name in data_classes if name not in ids]
    if unknown:
        near = nearest(unknown[0], ids)
        raise DataError(
            f"the data set has {len(unknown)} class(es) that the model does not know: {', '.join(unknown[:5])}",
            where=where,
            expected=f"some of: {', '.join(model_classes.names[:12])}" + (", ..." if len(model_classes) > 12 else ""),
            remedy=f"rename it to {near!r}" if near else "evaluate on data with the classes it was trained on",
        )
    return torch.tensor([ids[name] for name in data_classes], dtype=torch.int64)


def held_out_batches(dataset: Dataset, model: VisionModel[Any, Any, Any], config: LoaderConfig) -> Loader | Pictures:
    """The pictures of a data set in order, each once: ready for models that see them whole, as they are for others.

    Pictures as they are may be huge and are read ahead, so a batch size above ``MOST_AS_THEY_ARE`` is lowered to that.
    """
    if model.task in {"classification", "zero_shot"}:
        return Loader(dataset, model.preprocess, config)
    return Pictures(dataset, min(config.batch_size, MOST_AS_THEY_ARE), strict=config.strict)


def score_batches(
    model: VisionModel[Any, Any, Any], batches: Iterable[Batch | PictureBatch], tally: Tally
) -> Iterator[Batch | PictureBatch]:
    """Run the model over batches and count its predictions; yields each batch when it is done.

    Args:
        model: in any mode; it is evaluated in evaluation mode and every module's mode is restored.
        batches: as ``held_out_batches`` gives them.
        tally: counts the predictions.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in batches:
            # Not inference_mode: a table that a model caches in its first forward pass must stay usable for training.
            with torch.no_grad():
                predictions: Sequence[Prediction]
                if isinstance(batch, Batch):
                    images = batch.images.to(device).channels_last()
                    # The texts of a caption are embedded beside its picture; other targets choose nothing here.
                    targets = batch.targets if model.task == "zero_shot" else None
                    predictions = model.postprocess(model(images, targets), images)
                elif isinstance(model, Segmenter):
                    predictions = segment_pictures(model, batch.pictures)
                else:
                    assert isinstance(model, Detector)
                    predictions = detect_pictures(model, batch.pictures)
            tally.add(predictions, batch.targets, batch.indices, batch.sources)
            yield batch
