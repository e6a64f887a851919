"""What training and evaluation need to know of models that embed pictures and texts.

N pictures · K categories
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from saccade.data.captions import CaptionDataset
from saccade.data.dataset import Dataset, Labelled
from saccade.data.splits import counted
from saccade.engine.modes import evaluating
from saccade.errors import DataError
from saccade.models.base import VisionModel
from saccade.tasks import TASKS, EvaluateConfig, Tally
from saccade.tasks.zero_shot import ZeroShotTally
from saccade.text.tokenizer import Tokenizer


@runtime_checkable
class EmbedsTexts(Protocol):
    """A model that puts pictures and texts into one space."""

    tokenizer: Tokenizer

    def class_embeddings(self, classes: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """The names of classes ``[K, D]``, each the mean of its templates."""
        ...


def new_tally(model: VisionModel[Any, Any, Any], dataset: Dataset, relabel: Tensor, config: EvaluateConfig) -> Tally:
    """A tally for the predictions of a model on a data set; one of embeddings also knows the categories by name.

    Args:
        model: of any task.
        dataset: what is scored.
        relabel: ``[K_data]`` the model's label for each label of the data.
        config: how to evaluate.
    """
    names = dataset.classes.names if isinstance(model, EmbedsTexts) else model.classes.names
    tally = TASKS[model.task].tally(names, relabel, config)
    if isinstance(tally, ZeroShotTally) and isinstance(model, EmbedsTexts) and isinstance(dataset, Labelled) and names:
        with evaluating(model), torch.no_grad():
            tally.know_categories(model.class_embeddings(names, config.templates or None), dataset.labels())
    return tally


def without_long_texts(model: VisionModel[Any, Any, Any], dataset: Dataset, split: str) -> tuple[Dataset, list[str]]:
    """A captioned data set without the texts that are too long for the model, and a sentence about them.

    Args:
        model: whose tokenizer counts.
        dataset: of any kind; what has no captions is given back as it is.
        split: its name, for the sentence.

    Raises:
        DataError: where every caption is too long.
    """
    if not isinstance(model, EmbedsTexts) or not isinstance(dataset, CaptionDataset):
        return dataset, []
    texts = list(dict.fromkeys(text for item in dataset.items for text in item.choices))
    long = {texts[place] for place in model.tokenizer.too_long(texts)}
    if not long:
        return dataset, []
    kept = dataset.keeping(lambda text: text not in long)
    longest = max(long, key=len)
    are = "is" if len(long) == 1 else "are"
    told = f"{counted(len(long), 'text')} of {split} {are} longer than the context of the model ({longest[:40]!r} ...)"
    if not len(kept):
        raise DataError(told, expected="captions that fit", remedy="choose a model with a longer context")
    gone = len(dataset) - len(kept)
    return kept, [f"{told}: left out" + (f", and {counted(gone, 'picture')} with no other" if gone else "")]
