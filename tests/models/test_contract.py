"""The contract of every model: runs over all registered variants whose name ends in ``_test``."""

from __future__ import annotations

import inspect
import json
import re
import sys

import pytest
import torch
from torch import Tensor, nn

from saccade.config import to_dict
from saccade.errors import ConfigError
from saccade.models.base import VisionModel
from saccade.models.build import build, create, find_config, read_config
from saccade.models.detector import Candidates, Detector
from saccade.models.yolo import Yolo
from saccade.models.zero_shot import ZeroShotClassifier
from saccade.registry import names
from saccade.types import (
    IGNORE,
    BoxTarget,
    Caption,
    Classification,
    ClassTarget,
    Detections,
    Embedding,
    ImageBatch,
    MapTarget,
    Masks,
    Segmentation,
    Target,
    TaskName,
)

VARIANTS = [name for name in names() if name.endswith("_test")]
_PROPOSALS = "How many regions there are and which, the picture decides: no graph of fixed operations computes that."
NO_EXPORT: dict[str, str] = {name: _PROPOSALS for name in VARIANTS if "rcnn" in name}
"""Variants that torch.export cannot take, with the reason in writing."""


def of_task(*tasks: TaskName) -> pytest.MarkDecorator:
    """Runs a test over the variants of some tasks."""
    return pytest.mark.parametrize("name", [name for name in VARIANTS if find_config(name).task in tasks])


every_variant = pytest.mark.parametrize("name", VARIANTS)
classifiers = of_task("classification")
segmenters = of_task("semantic")
detectors = of_task("detection", "instance")


def images_for(model: VisionModel, count: int = 4) -> ImageBatch:
    """Noise; for a segmenter of another brightness in each region, for a detector with objects: something to learn."""
    height, width = model.preprocess.size
    pixels = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))
    if model.task == "semantic":
        pixels = 0.5 * pixels + regions(model, count)[:, None] - (len(model.classes) - 1) / 2
    if isinstance(model, Detector):
        pixels *= 0.3
        for picture, target in zip(pixels, objects(model, count), strict=True):
            for label, (left, top, right, bottom) in zip(target.labels, target.boxes.int().tolist(), strict=True):
                picture[int(label) % 3, top:bottom, left:right] += 2
    return ImageBatch.of(pixels)


def targets_for(model: VisionModel, count: int = 4) -> list[Target]:
    if isinstance(model, Detector):
        return list(objects(model, count))
    if model.task == "semantic":
        is_unknown = torch.rand(regions(model, count).shape, generator=torch.Generator().manual_seed(count)) < 0.1
        return [MapTarget(labels) for labels in regions(model, count).masked_fill(is_unknown, IGNORE)]
    if model.task == "zero_shot":
        return [Caption((f"{index} {'red' if index % 2 else 'blue'} dots",)) for index in range(count)]
    return [ClassTarget(torch.tensor(index % len(model.classes))) for index in range(count)]


def regions(model: VisionModel, count: int) -> Tensor:
    """Label maps ``[count, H, W]`` uint8: a random class in each quarter of each picture."""
    height, width = model.preprocess.size
    generator = torch.Generator().manual_seed(count)
    quarters = torch.randint(len(model.classes), (count, 2, 2), generator=generator, dtype=torch.uint8)
    rows, columns = torch.arange(height) * 2 // height, torch.arange(width) * 2 // width
    return quarters[:, rows[:, None], columns]


def objects(model: VisionModel, count: int) -> list[BoxTarget]:
    """Two bright rectangles per picture, the colour of their class; a fifth of the canvas high or so."""
    height, width = model.preprocess.size
    generator = torch.Generator().manual_seed(count)
    targets = []
    for _ in range(count):
        sides = torch.rand(2, 2, generator=generator) * 0.25 + 0.2
        corner = torch.rand(2, 2, generator=generator) * 0.5
        boxes = (torch.cat([corner, corner + sides], 1) * torch.tensor([width, height, width, height])).round()
        labels = torch.randint(len(model.classes), (2,), generator=generator)
        dense = torch.zeros(2, height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(dense, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        targets.append(BoxTarget.of(boxes, labels, Masks.of(dense) if model.task == "instance" else None))
    return targets


def scores_of(model: VisionModel, outputs: object, images: ImageBatch) -> Tensor:
    """One score per picture and class ``[B, K]``: the logit, or its mean over all pixels or candidates.

    Of a model without classes the place in the shared space ``[B, D]``.
    """
    if model.task == "zero_shot":
        return outputs.image  # type: ignore[attr-defined,no-any-return]
    if isinstance(model, Detector):
        return torch.stack([candidates.logits.mean(dim=0) for candidates in model.candidates(outputs, images)])
    logits: Tensor = outputs.logits  # type: ignore[attr-defined]
    return logits.flatten(2).mean(2) if logits.ndim == 4 else logits


def make(name: str) -> VisionModel:
    torch.manual_seed(0)
    return create(name)


def tensors_of(outputs: object) -> list[Tensor]:
    """All tensors of nested NamedTuples."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in tensors_of(part)]  # type: ignore[attr-defined]


def structure_of(outputs: object, *, has_sizes: bool) -> object:
    if isinstance(outputs, Tensor):
        return outputs.dtype, outputs.shape if has_sizes else outputs.ndim
    return type(outputs), [structure_of(part, has_sizes=has_sizes) for part in outputs]  # type: ignore[attr-defined]


@of_task("classification", "semantic")
def test_a_single_class_is_refused_where_classes_share_the_probability(name: str) -> None:
    config = find_config(name)
    if config.least_classes == 2:
        with pytest.raises(ConfigError, match=r"num_classes is 1; expected at least 2.*give what is not of this class"):
            create(name, num_classes=1)
    else:  # attributes and words say something of one class, too
        assert config.kind in {"attributes", "zero_shot"}  # type: ignore[attr-defined]


@every_variant
def test_config_survives_json(name: str) -> None:
    config = find_config(name)
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config


@every_variant
def test_is_small(name: str) -> None:
    assert sum(parameter.numel() for parameter in make(name).parameters()) < 100_000


@every_variant
def test_module_names_its_source(name: str) -> None:
    module = sys.modules[type(make(name)).__module__]
    assert "arXiv" in (inspect.getdoc(module) or "")


@every_variant
def test_output_type_is_constant(name: str) -> None:
    model = make(name)
    images, targets = images_for(model), targets_for(model)
    modes = [[model.train(mode)(images, given) for given in (None, targets)] for mode in (True, False)]
    # Targets may choose how many regions are looked at, and how many texts are read.
    has_sizes = not isinstance(model, Detector) and model.task != "zero_shot"
    for without, given in modes:
        assert structure_of(without, has_sizes=has_sizes) == structure_of(given, has_sizes=has_sizes)
    # Auxiliary heads rest in evaluation: their axis is there, but empty.
    training, evaluation = (structure_of(without, has_sizes=False) for without, _ in modes)
    assert training == evaluation


@every_variant
def test_outputs_are_finite(name: str) -> None:
    model = make(name)
    for mode in (True, False):
        assert all(torch.isfinite(tensor).all() for tensor in tensors_of(model.train(mode)(images_for(model))))


@every_variant
def test_every_parameter_receives_a_gradient(name: str) -> None:
    model = make(name)
    images, targets = images_for(model, 8), targets_for(model, 8)
    with torch.no_grad():  # zero-initialised factors would stop the gradient of what stands before them
        for parameter in model.parameters():
            if parameter.ndim == 1 and not parameter.any():
                parameter.add_(0.1)
    losses = model.loss(model(images, targets), targets)
    assert set(losses.terms)
    losses.total.backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if isinstance(model, Yolo):  # a level learns boxes of objects of its own size alone; here they are of one size
        without = [key for key in without if not re.match(r"one_to_(one|many)\.[12]\.(box_tower|codes)", key)]
    assert without == []


@every_variant
def test_one_image(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 1)
    outputs = model(images)
    assert len(model.postprocess(outputs, images)) == 1
    if model.task == "zero_shot":  # texts are read in the forward pass
        outputs = model(images, targets_for(model, 1))
    assert torch.isfinite(model.loss(outputs, targets_for(model, 1)).total)


@every_variant
def test_does_not_depend_on_neighbours(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 4)
    outputs = model(images)
    is_detector = isinstance(model, Detector)
    together = model.candidates(outputs, images) if is_detector else scores_of(model, outputs, images)
    for index in range(4):
        alone = model(images[index])
        if isinstance(model, Detector):
            check_same_candidates(model.candidates(alone, images[index])[0], together[index])
        else:
            ones = scores_of(model, alone, images[index])
            torch.testing.assert_close(ones, together[index : index + 1], rtol=1e-4, atol=1e-5)


def check_same_candidates(ones: Candidates, others: Candidates) -> None:
    """The same, in any order: of near ties another one may come first."""
    rows = [torch.cat([c.boxes.flatten(1) / 64, c.scores], dim=1).detach() for c in (ones, others)]
    assert len(rows[0]) == len(rows[1])
    distances = torch.cdist(*rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.amin(0).max()) < 1e-3
    assert float(distances.amin(1).max()) < 1e-3


@every_variant
def test_evaluation_is_deterministic(name: str) -> None:
    model = make(name).eval()
    images = images_for(model)
    for one, other in zip(tensors_of(model(images)), tensors_of(model(images)), strict=True):
        assert torch.equal(one, other)


@every_variant
def test_training_is_deterministic_under_a_seed(name: str) -> None:
    results = []
    for _ in range(2):
        model = make(name).train()
        losses = model.loss(model(images_for(model), targets_for(model)), targets_for(model))
        losses.total.backward()
        results.append([losses.total.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@every_variant
def test_predictions_are_valid(name: str) -> None:
    model = make(name).eval()
    height, width = model.preprocess.size
    sizes = [(height, width), (height - 5, width // 2), (height, width + 3)]
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    images = model.preprocess(pictures)
    predictions = model.postprocess(model(images), images)
    assert len(predictions) == len(pictures)
    for prediction, size in zip(predictions, sizes, strict=True):
        if isinstance(model, Detector):
            check_detections(prediction, model, size)
        elif model.task == "semantic":
            check_segmentation(prediction, model, size)
        elif model.task == "zero_shot":
            check_embedding(prediction)
        else:
            check_classification(prediction, model)


def check_classification(prediction: Classification, model: VisionModel) -> None:
    assert prediction.scores.dtype == torch.float32
    assert float(prediction.scores.sum()) == pytest.approx(1, abs=1e-5)
    assert float(prediction.scores.min()) >= 0
    assert prediction.name == prediction.top(1)[0][0] == model.classes[prediction.label]


def check_embedding(prediction: Embedding) -> None:
    assert prediction.image.dtype == prediction.texts.dtype == torch.float32
    assert float(prediction.image.norm()) == pytest.approx(1, abs=1e-5)
    assert prediction.texts.shape == (0, len(prediction.image))


def check_segmentation(prediction: Segmentation, model: VisionModel, size: tuple[int, int]) -> None:
    assert prediction.labels.dtype == torch.uint8
    assert tuple(prediction.labels.shape) == size
    assert int(prediction.labels.max()) < len(model.classes)
    # The likeliest of K classes has at least its share; half precision rounds it.
    assert float(prediction.confidence.min()) >= 1 / len(model.classes) - 1e-3
    assert float(prediction.confidence.max()) <= 1
    assert prediction.classes == model.classes


def check_detections(prediction: Detections, model: VisionModel, size: tuple[int, int]) -> None:
    assert prediction.boxes.dtype == prediction.scores.dtype == torch.float32
    assert bool((prediction.boxes[:, 2:] > prediction.boxes[:, :2]).all())
    assert float(prediction.boxes.amin()) >= 0
    assert bool((prediction.boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all())
    assert torch.equal(prediction.scores, prediction.scores.sort(descending=True).values)
    assert 0 <= float(prediction.scores.min()) <= float(prediction.scores.max()) <= 1
    assert 0 <= int(prediction.labels.min()) <= int(prediction.labels.max()) < len(model.classes)
    assert prediction.classes == model.classes
    assert (prediction.masks is not None) == (model.task == "instance")
    if prediction.masks is not None:
        assert prediction.masks.size == size


@detectors
def test_every_detection_comes_from_its_source(name: str) -> None:
    model = make(name).eval()
    images = images_for(model)
    outputs = model(images)
    found = model.postprocess(outputs, images)
    for candidates, detections in zip(model.candidates(outputs, images), found, strict=True):
        assert len(detections)
        scores = candidates.scores[detections.source, detections.labels]
        torch.testing.assert_close(scores.float(), detections.scores)


@detectors
@pytest.mark.parametrize("has_crowds", [False, True])
def test_pictures_without_objects_are_learned_from(name: str, has_crowds: bool) -> None:
    model = make(name).train()
    count = 1 if has_crowds else 0
    side = float(min(model.preprocess.size))
    boxes = torch.tensor([[0.0, 0.0, side, side]])[:count]
    masks = Masks.of(torch.ones(count, *model.preprocess.size)) if model.task == "instance" else None
    crowd = torch.ones(count, dtype=torch.bool)
    targets = [BoxTarget(boxes, torch.zeros(count, dtype=torch.int64), crowd, masks)] * 4
    losses = model.loss(model(images_for(model), targets), targets)
    assert torch.isfinite(losses.total)
    losses.total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@detectors
def test_there_is_a_loss_without_targets_in_the_forward_pass(name: str) -> None:
    model = make(name).eval()
    with torch.no_grad():
        losses = model.loss(model(images_for(model)), targets_for(model))
    given = model.loss(model(images_for(model), targets_for(model)), targets_for(model))
    assert losses.terms.keys() == given.terms.keys()
    assert torch.isfinite(losses.total)


@every_variant
def test_loss_falls_on_one_batch(name: str) -> None:
    model = make(name).train()
    images, targets = images_for(model), targets_for(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(20 if model.task == "classification" else 45):
        losses = model.loss(model(images, targets), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(float(losses.total.detach()))
    last = sum(history[-5:]) / 5 if isinstance(model, Detector) else history[-1]  # of other regions in each step
    assert last < 0.7 * history[0]


@every_variant
def test_state_dict_round_trip_is_exact(name: str) -> None:
    model = make(name).eval()
    torch.manual_seed(1)
    again = build(read_config(to_dict(model.config)), model.classes).eval()
    images = images_for(model)
    expected = model(images)
    assert not torch.equal(scores_of(again, again(images), images), scores_of(model, expected, images))
    again.load_state_dict(model.state_dict())
    for one, other in zip(tensors_of(again(images)), tensors_of(expected), strict=True):
        assert torch.equal(one, other)


@every_variant
def test_bfloat16(name: str) -> None:
    model = make(name).eval()
    images = images_for(model)
    if isinstance(model, Detector):
        check_rounded_detector(model, images)
        return
    exact = scores_of(model, model(images), images)
    rounded = scores_of(model, model.bfloat16()(images.to(dtype=torch.bfloat16)), images)
    # Cosines are compared and multiplied in float32 always: rounded ones would tie.
    is_exact = model.task == "zero_shot" or isinstance(model, ZeroShotClassifier)
    assert rounded.dtype == (torch.float32 if is_exact else torch.bfloat16)
    # Eight bits of mantissa through a few layers. Of pixels that round to one value max-unpooling may take another.
    is_near = (rounded.float() - exact).abs() < 0.1 * exact.abs().max() + 0.02
    assert is_near.float().mean() >= (0.99 if model.task == "semantic" else 1)


def check_rounded_detector(model: Detector, images: ImageBatch) -> None:
    """Which candidates there are may change; the predictions stay valid, and what is told of all of them alike."""
    exact = scores_of(model, model(images), images)
    images = images.to(dtype=torch.bfloat16)
    model = model.bfloat16()
    outputs = model(images)
    torch.testing.assert_close(scores_of(model, outputs, images).float(), exact, rtol=0.1, atol=0.1)
    for found, size in zip(model.postprocess(outputs, images), images.sizes, strict=True):
        check_detections(found, model, size)


@every_variant
def test_training_under_autocast(name: str) -> None:
    model = make(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(model(images_for(model), targets_for(model)), targets_for(model))
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["localizer_test", "detr_test", "detr_vit_test", "detr_fast_test"])
def test_boxes_leave_in_float32_under_autocast(name: str) -> None:
    """As shares of the canvas they would be in steps of up to 1/256 of it."""
    model = make(name).eval()
    images = images_for(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images)
    boxes = outputs.shares if name == "localizer_test" else outputs.boxes
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


class OnPixels(nn.Module):
    """What is exported: pixels to logits, of a detector to all of its outputs."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> list[Tensor]:
        outputs = self.model(ImageBatch.of(pixels))
        if isinstance(self.model, Detector) or self.model.task == "zero_shot":
            return tensors_of(outputs)
        return [outputs.logits]


@every_variant
def test_exports(name: str) -> None:
    model = make(name).eval()
    pixels = images_for(model, 2).pixels
    if name in NO_EXPORT:
        assert NO_EXPORT[name].endswith(".")
        return
    exported = torch.export.export(OnPixels(model).eval(), (pixels,))
    torch.testing.assert_close(exported.module()(pixels), OnPixels(model)(pixels), rtol=1e-4, atol=1e-5)


def record(model: VisionModel, images: ImageBatch, path: str, is_input: bool) -> tuple[object, Tensor]:
    """The outputs and what a module took or gave, cloned as a recorder does so that in-place layers cannot spoil it."""
    seen: list[Tensor] = []

    def keep(activation: Tensor) -> Tensor:
        cloned = activation.clone()
        seen.append(cloned if cloned.requires_grad else cloned.requires_grad_())  # pixels need no gradient themselves
        return seen[-1]

    module = model.get_submodule(path)
    if is_input:
        handle = module.register_forward_pre_hook(lambda _m, given: (keep(given[0]), *given[1:]))
    else:
        handle = module.register_forward_hook(lambda _m, _given, result: keep(result))
    outputs = model(images)
    handle.remove()
    return outputs, seen[0]


@every_variant
def test_explain_layers_are_grids_that_a_gradient_reaches(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    spec = model.explain_spec()
    assert list(spec.layers)[-1] == "final"
    for place, layer in spec.layers.items():
        outputs, activation = record(model, images, layer.path, layer.is_input)
        (gradient,) = torch.autograd.grad(scores_of(model, outputs, images)[:, 0].sum(), activation)
        for recorded in (activation, gradient):
            grid = layer.to_grid(recorded, model.preprocess.size)
            assert grid.ndim == 4
            assert grid.shape[0] == 2
            height, width = grid.shape[2:]
            assert height >= 1
            assert height / width == model.preprocess.size[0] / model.preprocess.size[1]
        reached = layer.to_grid(gradient, model.preprocess.size).abs().amax(1) > 0
        # Behind ReLU and max pooling some cells of an early layer rest; of the last one none may, unless regions do.
        is_last = place == "final" and not isinstance(model, Detector)
        assert bool(reached.all() if is_last else reached.flatten(1).any(1).all()), layer.path


@every_variant
def test_explain_attention_sites_are_softmaxes(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    spec = model.explain_spec()
    for site in spec.attention:
        outputs, probabilities = record(model, images, site.path, is_input=False)
        height, width = site.grid(model.preprocess.size)
        tokens = site.num_prefix + height * width
        assert probabilities.shape[0] == 2
        assert probabilities.shape[3] == tokens
        assert probabilities.shape[2] == tokens or site is spec.attention[-1]  # few queries where the last reads out
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:3]))
        expected = scores_of(model, model(images), images)
        torch.testing.assert_close(scores_of(model, outputs, images), expected, rtol=1e-4, atol=1e-5)


@classifiers
def test_linear_head_is_the_head_of_the_pooled_map(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    spec = model.explain_spec()
    if spec.linear_head is None:
        config = to_dict(model.config)
        # A vector of length 1 is no linear function of the map.
        is_unit = isinstance(model, ZeroShotClassifier)
        assert is_unit or config["pool"] != "average" or config["pool_norm"] or config["head"]
        return
    head, final = spec.linear_head(), spec.layers["final"]
    outputs, activation = record(model, images, final.path, final.is_input)
    pooled = final.to_grid(activation, model.preprocess.size).mean(dim=(2, 3))
    torch.testing.assert_close(
        nn.functional.linear(pooled, head.weight, head.bias), outputs.logits, rtol=1e-4, atol=1e-5
    )


@every_variant
def test_no_decay_names_exist(name: str) -> None:
    model = make(name)
    assert model.no_decay() <= {key for key, _ in model.named_parameters()}


@every_variant
def test_gradients_of_several_classes_can_be_taken_at_once(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    layers = model.explain_spec().layers
    first = next(iter(layers.values()))
    outputs, activation = record(model, images, first.path, first.is_input)
    scores = scores_of(model, outputs, images).sum(dim=0)
    (batched,) = torch.autograd.grad(
        scores, activation, torch.eye(len(scores)), retain_graph=True, is_grads_batched=True
    )
    for label, score in enumerate(scores):
        (alone,) = torch.autograd.grad(score, activation, retain_graph=True)
        torch.testing.assert_close(batched[label], alone, rtol=1e-4, atol=1e-6)


@segmenters
def test_logits_are_as_large_as_any_canvas(name: str) -> None:
    model = make(name)
    height, width = model.preprocess.size[0] + 5, model.preprocess.size[1] - 7
    images = ImageBatch.of(torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)))
    for mode in (True, False):
        outputs = model.train(mode)(images)
        assert outputs.logits.shape == (2, len(model.classes), height, width)
        assert outputs.auxiliary.shape[1:] == outputs.logits.shape
        assert mode or len(outputs.auxiliary) == 0


@segmenters
def test_unlabelled_pictures_teach_nothing(name: str) -> None:
    model = make(name).train()
    unknown = torch.full(model.preprocess.size, IGNORE, dtype=torch.uint8)
    outputs = model(images_for(model, 2))
    losses = model.loss(outputs, [MapTarget(unknown)] * 2)
    for key in losses.terms.keys() - {"balance", "router_z"}:  # routers learn from pictures without labels, too
        assert losses.terms[key].item() == 0, key
    given = [tensor for tensor in (outputs.logits, outputs.auxiliary) if tensor.requires_grad]
    for gradient in torch.autograd.grad(losses.total, given, allow_unused=True):
        assert gradient is None or not gradient.any()


@segmenters
def test_unlabelled_pixels_do_not_count(name: str) -> None:
    model = make(name).eval()
    outputs = model(images_for(model, 1))
    labels = targets_for(model, 1)[0].labels
    wrong = outputs._replace(logits=outputs.logits.masked_fill(labels == IGNORE, 1e3))
    assert (labels == IGNORE).any()
    one, other = (model.loss(given, [MapTarget(labels)]).total for given in (outputs, wrong))
    torch.testing.assert_close(one, other)


@segmenters
def test_channels_last_gives_the_same(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    expected = model(images).logits
    again = model.to(memory_format=torch.channels_last)(images.channels_last()).logits
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)
