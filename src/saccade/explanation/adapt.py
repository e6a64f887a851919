"""Any model that is a ``torch.nn.Module``, made explainable: its grids, attention and linear head are found.

A classifier needs nothing more than its preprocessing. Any other model (detectors, segmenters, embeddings, ...) comes
with a score function of its outputs: what is asked. What is found is verified (``survey.py``), never concluded from
names.

H, W canvas
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from saccade.data.decode import ImageSource, read_image
from saccade.errors import ConfigError, ExplainError
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.record import find_module, unwrap
from saccade.explanation.scores import logits_of
from saccade.explanation.survey import Survey
from saccade.ops.image import Preprocess
from saccade.types import Classes, ExplainSpec, ImageBatch, LinearHead

FINGERPRINT_NUMBERS = 256
"""Of each tensor, about."""


class AdaptedModel(nn.Module):
    """A model that is not ours, called with an ``ImageBatch``; made by ``adapt``.

    Attributes:
        module: the model itself, called with pixels ``[B, 3, H, W]``.
        preprocess: how its pictures become pixels.
        score: what is asked of it where nothing else is; None: the predicted class.
        classes: names of its classes; none where it has a score.
        task: ``classification``, or ``any`` where it has a score.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess, score: ScoreFn | None = None) -> None:
        super().__init__()
        self.module = module
        self.preprocess = preprocess
        self.score = score
        self.classes = Classes(())
        self.task = "classification" if score is None else "any"
        self._spec: ExplainSpec | None = None
        self._head_path: str | None = None

    def forward(self, images: ImageBatch) -> Any:
        """Logits ``[B, K]`` of a classifier; of another model whatever it gives."""
        outputs = self.module(images.pixels)
        return logits_of(outputs) if self.score is None else outputs

    def explain_spec(self) -> ExplainSpec:
        """What the survey found."""
        assert self._spec is not None, "adapt() sets it"
        return self._spec if self._head_path is None else replace(self._spec, linear_head=self._linear_head)

    def _linear_head(self) -> LinearHead:
        # Looked up each time, so that a copy of this model speaks of its own head.
        head = find_module(self.module, self._head_path or "")
        assert isinstance(head, nn.Linear)
        return LinearHead(head.weight, head.bias)


def adapt(
    module: nn.Module,
    preprocess: Preprocess | None = None,
    *,
    classes: Sequence[str] | None = None,
    layer: str | None = None,
    score: ScoreFn | None = None,
    example: ImageSource | None = None,
) -> AdaptedModel:
    """Make a plain model explainable.

    Args:
        module: takes pixels ``[B, 3, H, W]``. Of a classifier: gives logits ``[B, K]`` or an object whose ``.logits``
            they are.
        preprocess: how its pictures become pixels; may be left out for timm models, which know it themselves.
        classes: names of the K classes.
        layer: dotted name of the module to use as layer "final"; found where it is None.
        score: what to ask of a model that is no classifier: its outputs for B pictures to one number each, ``[B]``,
            differentiable, and defined for pictures of which a part is hidden.
        example: a picture to study the model on; None: noise, on which a detector may find nothing to be asked about.

    Raises:
        ConfigError: where the preprocessing is unknown, or the number of class names is not K.
        ExplainError: where no layer fits, naming what to do.
    """
    module = unwrap(module)
    adapted = AdaptedModel(module, preprocess or _own_preprocess(module), score)
    device, dtype = model_device(module)
    survey = Survey(adapted, module, _studied(adapted.preprocess, example).to(device, dtype), score)
    if score is None:
        adapted.classes = _named(classes, survey)
    elif classes is not None:
        raise ConfigError("class names were given beside a score", where="classes", remedy="leave one of them out")
    spec, adapted._head_path = survey.spec(layer)
    adapted._spec = spec.under("module")
    return adapted


def model_device(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the floating-point parameters of a model live and what type they are of."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def fingerprint(model: nn.Module) -> str:
    """Eight hexadecimal digits that tell one set of weights from another, from some numbers of every tensor."""
    digest = 0
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        flat = tensor.detach().flatten()
        some = flat[:: max(len(flat) // FINGERPRINT_NUMBERS, 1)].double().cpu()
        digest = zlib.crc32(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes(), digest)
    return f"{digest:08x}"


def _studied(preprocess: Preprocess, example: ImageSource | None) -> ImageBatch:
    if example is not None:
        return preprocess([read_image(example)])
    noise = torch.randn(1, 3, *preprocess.size, generator=torch.Generator().manual_seed(0))
    return ImageBatch.of(noise)


def _named(classes: Sequence[str] | None, survey: Survey) -> Classes:
    if survey.logits is None:
        raise ExplainError("the outputs hold no class logits", remedy="give a score function: adapt(..., score=...)")
    count = int(survey.logits.shape[1])
    if classes is not None and len(classes) != count:
        raise ConfigError(f"{len(classes)} class names for {count} logits", where="classes")
    return Classes(tuple(classes)) if classes is not None else Classes.numbered(count)


def _own_preprocess(module: nn.Module) -> Preprocess:
    """The preprocessing that a timm model carries with it.

    Raises:
        ConfigError: where the model carries none.
    """
    known = getattr(module, "pretrained_cfg", None)
    if not isinstance(known, Mapping) or "mean" not in known or "input_size" not in known:
        raise ConfigError(
            "the model does not say how its pictures are prepared",
            where="preprocess",
            remedy="say it: adapt(model, Preprocess(size=(224, 224), mean=..., std=...))",
        )
    interpolation = "bicubic" if known.get("interpolation") == "bicubic" else "bilinear"
    return Preprocess(
        size=tuple(known["input_size"][-2:]),
        crop_fraction=float(known.get("crop_pct") or 1.0),
        interpolation=interpolation,  # type: ignore[arg-type]
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
    )
