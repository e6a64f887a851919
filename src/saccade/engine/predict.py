"""Prediction: load once, predict many; faster than the model as written, and checked against it.

The first pictures of a long list are run through the float32 model and through faster copies of it (``engine.fast``).
A copy may do the rest where enough of its answers are the model's and no probability is too far off; what an answer is
and how much is enough says the task (``Task.agreement``, ``min_agreement``, ``max_difference``). Copies are tried the
safest first, and one that rounds more has to be a tenth faster than what there is already.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from saccade.config import Config
from saccade.data.decode import ImageSource, read_image
from saccade.engine.detect import AT_ONCE, detect_pictures
from saccade.engine.fast import Candidate, candidates
from saccade.engine.modes import evaluating
from saccade.engine.segment import segment_pictures
from saccade.errors import ConfigError
from saccade.models.base import VisionModel
from saccade.models.detector import Detector
from saccade.models.segmenter import Segmenter
from saccade.tasks import TASKS
from saccade.types import Classification, Embedding, ImageBatch, Prediction

NUM_CHECKED = 16
Ready = ImageBatch | Sequence[Tensor]
"""Pictures on their way into a model."""

PIXELS_AT_ONCE = 1 << 23
"""Pixels of a segmenter's pictures that are read before they are predicted: 24 MB of bytes."""

PIXELS_CHECKED = 1 << 18
"""For segmenters, whose pictures are worth many: as many as four pictures of 256x256."""

NUM_DETECTED = 4
"""For detectors: each picture is worth many boxes."""

MIN_GAIN = 1.1
"""How many times as fast as the best so far a copy has to be."""

LONG = 1.0
"""Seconds from which one run is enough to measure."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """How predictions are made."""

    batch_size: int = 32
    """Pictures per forward pass."""
    speed: Literal["auto", "exact"] = "auto"
    """``auto`` uses a faster copy where it agrees with the float32 model; ``exact`` never does."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}", where="batch_size", expected="at least 1")


@dataclass(frozen=True)
class Plan:
    """How a predictor runs its model, and what was measured when that was decided.

    Attributes:
        name: what was done to the model.
        speedup: time of the float32 model over time of this one, on the checked pictures.
        agreement: share of equal answers on the checked pictures, as ``Task.agreement`` counts them.
        difference: how far probabilities are apart there, largest or mean, as the task has it.
        rejected: what was tried and not taken, with the reason.
    """

    name: str = "float32, as written"
    speedup: float = 1.0
    agreement: float = 1.0
    difference: float = 0.0
    rejected: tuple[str, ...] = ()


class Predictor:
    """A model ready to predict.

    Args:
        model: any Saccade model; it is left as it is.
        config: batch size and whether faster copies may be used.
    """

    def __init__(self, model: VisionModel[Any, Any, Any], config: PredictConfig | None = None) -> None:
        self.model = model
        self.config = config or PredictConfig()
        self.plan: Plan | None = None
        self._runner = Candidate("float32, as written", self.model)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def __call__(self, images: Iterable[ImageSource]) -> list[Prediction]:
        """One prediction per picture, in order."""
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageSource]) -> Iterator[Prediction]:
        """Predictions one after the other, for lists that do not fit into memory.

        Args:
            images: paths, bytes, PIL pictures, uint8 arrays or tensors.

        Raises:
            ImageError: naming the first picture that cannot be read.
        """
        return self.stream_pictures(read_image(image) for image in images)

    def stream_pictures(self, pictures: Iterable[Tensor]) -> Iterator[Prediction]:
        """Predictions for pictures ``[3, h, w]`` uint8 that somebody else has read, one after the other."""
        for chunk in self._chunks(pictures):
            # Never across a yield: between two predictions the model is as its owner has it.
            with evaluating(self.model):
                # A short list is done before a faster copy would have paid for itself.
                if self.plan is None and self.config.speed == "auto" and sum(map(self._worth, chunk)) >= 1:
                    predictions = self._choose(chunk)
                else:
                    predictions = run(self._runner, self.model, ready(self.model, chunk))
            yield from predictions

    def _chunks(self, pictures: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        """Pictures in lists of ``batch_size``; where they may be huge, no more than so many pixels."""
        most = math.inf if self.model.task == "classification" else PIXELS_AT_ONCE
        chunk: list[Tensor] = []
        pixels = 0
        for picture in pictures:
            chunk.append(picture)
            pixels += picture[0].numel()
            if len(chunk) == self.config.batch_size or pixels >= most:
                yield chunk
                chunk, pixels = [], 0
        if chunk:
            yield chunk

    def _worth(self, picture: Tensor) -> float:
        """The part of a check that a picture makes up: pictures count where they have few answers, else pixels."""
        if self.model.task == "classification":
            return 1 / NUM_CHECKED
        return picture[0].numel() / PIXELS_CHECKED if self.model.task == "semantic" else 1 / NUM_DETECTED

    def _choose(self, pictures: Sequence[Tensor]) -> list[Prediction]:
        """Decide on the fastest copy that agrees, on the first pictures, and let it do the others."""
        count = 1 + sum(total < 1 for total in itertools.accumulate(map(self._worth, pictures)))
        checked = ready(self.model, pictures[:count])
        predictions = run(self._runner, self.model, checked)
        self.plan = self._compared(checked, predictions)
        if len(pictures) > count:
            predictions += run(self._runner, self.model, ready(self.model, pictures[count:]))
        return predictions

    def _compared(self, checked: Ready, reference: Sequence[Prediction]) -> Plan:
        """Which copy to use from now on, by what the model itself says of some pictures."""
        task = TASKS[self.model.task]
        base_seconds = _seconds(self._runner, self.model, checked)
        best, rejected = Plan(), []
        for candidate in candidates(self.model, self.device):
            agreement, difference = task.agreement(run(candidate, self.model, checked), reference)
            if agreement < task.min_agreement:
                rejected.append(f"{candidate.name}: only {agreement:.2%} of the answers are the same")
                continue
            if not difference <= task.max_difference:
                rejected.append(f"{candidate.name}: a probability differs by {difference:.3f}")
                continue
            speedup = base_seconds / _seconds(candidate, self.model, checked)
            if speedup < MIN_GAIN * best.speedup:
                rejected.append(f"{candidate.name}: only {speedup:.2f} times as fast")
                continue
            best = Plan(candidate.name, speedup, agreement, difference)
            self._runner = candidate
        return replace(best, rejected=tuple(rejected))


def ready(model: VisionModel[Any, Any, Any], pictures: Sequence[Tensor]) -> Ready:
    """Pictures ``[3, h, w]`` uint8 as ``run`` wants them: as they are, where not all of them fill the same canvas."""
    if isinstance(model, Segmenter | Detector):
        return pictures
    return model.preprocess(pictures).to(next(model.parameters()).device)


def run(candidate: Candidate, model: VisionModel[Any, Any, Any], pictures: Ready) -> list[Prediction]:
    """Predictions by a copy of ``model`` for what ``ready`` made of pictures."""

    def forward(images: ImageBatch) -> Any:
        return _to_float(candidate.model(images.to(dtype=candidate.dtype)))

    with torch.inference_mode():
        predictions: list[Prediction] = []
        if isinstance(model, Detector) and not isinstance(pictures, ImageBatch):
            predictions += detect_pictures(model, pictures, forward, at_once=min(candidate.chunk or AT_ONCE, AT_ONCE))
            return predictions
        if not isinstance(pictures, ImageBatch):
            assert isinstance(model, Segmenter)
            predictions += segment_pictures(model, pictures, forward)
            return predictions
        for part in _parts(pictures, candidate.chunk):
            predictions += [_on_cpu(one) for one in model.postprocess(forward(part), part)]
        return predictions


def _on_cpu(prediction: Prediction) -> Prediction:
    """The same prediction where callers expect every answer, wherever the model lives."""
    if isinstance(prediction, Classification):
        return replace(prediction, scores=prediction.scores.cpu())
    return prediction.to("cpu") if isinstance(prediction, Embedding) else prediction


def _parts(batch: ImageBatch, size: int) -> Iterator[ImageBatch]:
    """The batch in parts of at most ``size`` pictures; whole where that is 0."""
    for start in range(0, len(batch), size or len(batch)):
        part = slice(start, start + (size or len(batch)))
        yield ImageBatch(batch.pixels[part], batch.sizes[part], batch.geometries[part])


def _to_float(outputs: Any) -> Any:
    """The same outputs with floating tensors as float32, so that scores never come in half precision."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, tuple):
        parts = [_to_float(part) for part in outputs]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
    return outputs


def _seconds(candidate: Candidate, model: VisionModel[Any, Any, Any], pictures: Ready) -> float:
    """The faster of two runs, in seconds; of long ones the first, which something else has warmed up."""
    times: list[float] = []
    while len(times) < 2 and max(times, default=0.0) < LONG:
        start = time.perf_counter()
        run(candidate, model, pictures)
        if next(model.parameters()).is_cuda:
            torch.cuda.synchronize(next(model.parameters()).device)
        times.append(time.perf_counter() - start)
    return min(times)
