"""From a name, a config or a published source to a model: the one place where models are put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saccade.backbones.timm import TimmConfig
from saccade.config import from_dict, override, to_dict
from saccade.errors import ConfigError, UnknownNameError, WeightsError
from saccade.models.attributes import AttributesConfig
from saccade.models.base import ModelConfig, VisionModel
from saccade.models.classifier import ClassifierConfig
from saccade.models.clip import Clip, ClipConfig
from saccade.models.detr import DetrConfig
from saccade.models.detr_fast import DetrFastConfig
from saccade.models.detr_vit import DetrVitConfig
from saccade.models.fast_rcnn import FastRCNNConfig
from saccade.models.faster_rcnn import FasterRCNNConfig
from saccade.models.fcn import FCNConfig
from saccade.models.localizer import LocalizerConfig
from saccade.models.mask_rcnn import MaskRCNNConfig
from saccade.models.patch_cnn import PatchCNNConfig
from saccade.models.rcnn import RCNNConfig
from saccade.models.segnet import SegNetConfig
from saccade.models.sliding_window import SlidingWindowConfig
from saccade.models.unet import UNetConfig
from saccade.models.vit_seg import VitSegConfig
from saccade.models.yolo import YoloConfig
from saccade.models.yolo_mask import YoloMaskConfig
from saccade.models.yolo_v1 import YoloV1Config
from saccade.models.yolox import Yolox, YoloxConfig
from saccade.models.zero_shot import ZeroShotConfig
from saccade.ops.image import Preprocess
from saccade.registry import lookup
from saccade.types import Classes, ImageBatch
from saccade.weights import open_clip, timm, torchvision, transformers, yolox
from saccade.weights.files import SUFFIXES, read_description, read_state_dict, recognise
from saccade.weights.published import Published
from saccade.weights.transfer import TransferReport, load_matching

AnyModel = VisionModel[Any, Any, Any]

CONFIG_KINDS: dict[str, type[ModelConfig]] = {
    "attributes": AttributesConfig,
    "classifier": ClassifierConfig,
    "clip": ClipConfig,
    "fast_rcnn": FastRCNNConfig,
    "detr": DetrConfig,
    "detr_fast": DetrFastConfig,
    "detr_vit": DetrVitConfig,
    "faster_rcnn": FasterRCNNConfig,
    "fcn": FCNConfig,
    "localizer": LocalizerConfig,
    "mask_rcnn": MaskRCNNConfig,
    "patch_cnn": PatchCNNConfig,
    "rcnn": RCNNConfig,
    "segnet": SegNetConfig,
    "sliding_window": SlidingWindowConfig,
    "unet": UNetConfig,
    "vit_seg": VitSegConfig,
    "yolo": YoloConfig,
    "yolo_mask": YoloMaskConfig,
    "yolo_v1": YoloV1Config,
    "yolox": YoloxConfig,
    "zero_shot": ZeroShotConfig,
}
"""Every kind of model config, by its ``kind`` field."""

SOURCES: dict[str, Callable[[str], Published]] = {
    "open_clip": open_clip.fetch,
    "timm": timm.fetch,
    "torchvision": torchvision.fetch,
    "transformers": transformers.fetch,
}
"""Where published weights come from; ``SOURCE/NAME`` names one of them."""


def is_published(name: str) -> bool:
    """Whether a name is that of a published source; nothing is downloaded unless such a name is given."""
    source, slash, _ = name.partition("/")
    return bool(slash) and source in SOURCES


def create(
    name: str | ModelConfig,
    num_classes: int | None = None,
    classes: Classes | Sequence[str] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
) -> AnyModel:
    """A model with random weights.

    Args:
        name: a registered name, or ``timm/NAME`` for any convolutional backbone of timm; or a config.
        num_classes: number of classes; the config's own where neither this nor ``classes`` is given.
        classes: names of the classes.
        overrides: dotted config fields, as ``saccade.config.override`` takes them.

    Raises:
        UnknownNameError: with the nearest name.
        ConfigError: where an override or the number of classes is wrong.
    """
    config = find_config(name) if isinstance(name, str) else name
    named = _named(num_classes, classes)
    count = len(named) if named else num_classes
    # The number of classes comes first: what is overridden may be checked against it.
    config = config if count is None else override(config, {"num_classes": count})
    config = override(config, overrides) if overrides else config
    return build(config if count is None else override(config, {"num_classes": count}), named)


def find_config(name: str) -> ModelConfig:
    """The config behind a registered name or ``timm/NAME``.

    Raises:
        UnknownNameError: with the nearest name.
    """
    source, slash, timm_name = name.partition("/")
    if slash and source == "timm":
        return ClassifierConfig(backbone=TimmConfig(name=timm_name))
    config = lookup(name)
    if not isinstance(config, ModelConfig):
        raise ConfigError(f"{name!r} is registered, but is no model", expected="a ModelConfig")
    return config


def build(config: ModelConfig, classes: Classes | None = None) -> AnyModel:
    """The model of a config, with random weights and, where given, named classes."""
    model = config.build()
    if classes is not None:
        if len(classes) != config.num_classes:
            raise ConfigError(f"{len(classes)} classes for a model of {config.num_classes}", where="num_classes")
        model.classes = classes
    return model


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """A model config from plain data, as ``saccade.config.to_dict`` wrote it; its ``kind`` says which.

    Raises:
        ConfigError: where a key is unknown or a value is wrong.
        UnknownNameError: where the kind is unknown.
    """
    kind = str(data.get("kind"))
    if kind not in CONFIG_KINDS:
        raise UnknownNameError("kind of model config", kind, CONFIG_KINDS)
    return from_dict(CONFIG_KINDS[kind], data)


def from_source(
    source: str, num_classes: int | None = None, classes: Classes | Sequence[str] | None = None
) -> AnyModel:
    """A published model with its weights, classes and preprocessing; downloads where the cache has it not.

    Args:
        source: ``timm/NAME[.TAG]``, ``torchvision/NAME``, ``transformers/OWNER/NAME``, ``open_clip/NAME/TAG``, or the
            ONNX file of a YOLOX.
        num_classes: replace the head by a fresh one for this many classes.
        classes: replace the head by a fresh one for these classes.

    Raises:
        UnknownNameError: where the source or the name is unknown.
        WeightsError: where the weights cannot be had, or our model does not compute what the original does.
    """
    return adopt(fetch(source), num_classes, classes)


def fetch(source: str) -> Published:
    """The published model ``SOURCE/NAME``, or of a file of ONNX, translated."""
    if Path(source).suffix == ".onnx":
        return yolox.publish(source)
    kind, _, name = source.partition("/")
    if kind not in SOURCES or not name:
        raise UnknownNameError("source of weights", source, [f"{known}/NAME" for known in SOURCES])
    return SOURCES[kind](name)


def adopt(
    published: Published, num_classes: int | None = None, classes: Classes | Sequence[str] | None = None
) -> AnyModel:
    """Our model of a published one, held against the original before its head is replaced.

    Raises:
        WeightsError: where the two do not compute the same.
    """
    config = read_config(published.config)
    model = build(config, Classes(published.classes) if published.classes else None)
    report = load_matching(model, published.state)
    if report.fresh or report.left:
        raise WeightsError(f"the translation is incomplete: {report}", where=published.origin)
    _hold_against(model, published)
    named = _named(num_classes, classes)
    count = len(named) if named else num_classes
    if count is None or (named is None and count == config.num_classes):
        return model
    if named == model.classes:
        return model
    changed = build(override(config, {"num_classes": count}), named)
    load_matching(changed, published.state, takes_head=False)
    return changed


def load_weights(model: AnyModel, source: str | Path) -> TransferReport:
    """Load a file of weights or a published source into a model: all of the backbone, the head where it fits.

    The backbone may come from a model for another task, such as a classifier. The head is taken where its shape fits
    and, as far as both are told, its classes are the model's. Mean and standard deviation of the pixels are taken over
    where the source tells them; a foreign file does not. A YOLOX that takes weights with folded norms freezes its own.

    Raises:
        WeightsError: where the file is damaged or of another architecture; the model stays as it was.
    """
    if Path(source).suffix in SUFFIXES or Path(source).is_file():
        state = read_state_dict(source)
        about = read_description(source)
        classes, config = about.get("classes"), about.get("config", {})
        try:
            is_read_as_ours = Path(source).suffix == ".onnx"
            if not about and not is_read_as_ours and state.keys() != model.state_dict().keys():
                state = recognise(state).convert(state)
            _check_vocabulary(model, state, config)
            report = load_matching(model, state, takes_head=_are_same(classes, model.classes))
        except WeightsError as error:
            error.where = error.where or str(source)
            raise
    else:
        published = fetch(str(source))
        config = published.config
        _check_vocabulary(model, published.state, config)
        report = load_matching(model, published.state, takes_head=_are_same(published.classes, model.classes))
    if "preprocess" in config:
        given = from_dict(Preprocess, config["preprocess"])
        adopted = dataclasses.replace(model.config.preprocess, mean=given.mean, std=given.std)
        model.config = dataclasses.replace(model.config, preprocess=adopted)
    if isinstance(model, Yolox) and (Path(source).suffix == ".onnx" or config.get("freeze_norms")):
        model.freeze_norms()  # they came folded, from the file or from the model that began with it
    return report


def _check_vocabulary(model: AnyModel, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Refuse weights that read by another vocabulary: their numbers would stand for other words."""
    table = state.get("text.tokens.weight")
    if not isinstance(model, Clip) or table is None:
        return
    ours, given = model.config.tokenizer, config.get("tokenizer")
    remedy = "load the weights as a model of their own, which brings their vocabulary along"
    if len(table) != model.tokenizer.vocab_size:
        told = f"the weights know {len(table)} tokens, and the vocabulary of the model has {model.tokenizer.vocab_size}"
        raise WeightsError(told, expected="the same vocabulary", remedy=remedy)
    same = ("kind", "merges", "definition")
    if given is not None and any(to_dict(ours)[key] != given.get(key, to_dict(ours)[key]) for key in same):
        told = "the weights were trained with another vocabulary than the model's, though one of the same size"
        raise WeightsError(told, expected="the same vocabulary", remedy=remedy)


def _are_same(names: Sequence[str] | None, classes: Classes) -> bool:
    """Whether told class names are the model's; untold ones are believed to be."""
    return names is None or tuple(names) == classes.names


def _named(num_classes: int | None, classes: Classes | Sequence[str] | None) -> Classes | None:
    if classes is None:
        return None
    named = classes if isinstance(classes, Classes) else Classes(tuple(classes))
    if num_classes is not None and num_classes != len(named):
        raise ConfigError(f"num_classes is {num_classes}, but {len(named)} classes are named", where="num_classes")
    return named


def _hold_against(model: AnyModel, published: Published) -> None:
    """Compare with the original on noise: names that fit do not prove that the layers between them are the same."""
    size = model.preprocess.size
    if model.preprocess.policy in {"native", "shorter"}:  # any canvas does, and a large one takes long
        size = (min(size[0], 128), min(size[1], 128))
    noise: Tensor = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs, theirs = model(ImageBatch.of(noise)), published.reference(noise)
        if isinstance(model, Clip) and published.texts is not None:
            texts = ["a diagram", "a photo of a dog."]
            outputs = outputs._replace(image=torch.cat([outputs.image, model.encode_text(texts)]))
            theirs = torch.cat([theirs, published.texts(model.tokenizer(texts, fills=True).ids)])
    model.train(was_training)
    # Proposals are chosen by their scores: of a two-stage detector these are held against the original's.
    found = outputs.rpn.objectness if hasattr(outputs, "rpn") else None
    ours: Tensor = found if found is not None else outputs.image if isinstance(model, Clip) else outputs.logits
    gap = float((ours - theirs).abs().max())
    allowed = 1e-3 * max(float(theirs.abs().max()), 1.0)
    if not gap <= allowed:
        raise WeightsError(
            f"our model gives other logits than the original (by {gap:.2g})",
            where=published.origin,
            expected=f"at most {allowed:.2g}",
            remedy="the original has layers between backbone and head that ours has not; choose another model",
        )
