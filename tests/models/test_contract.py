"""The contract of every model: runs over all registered variants whose name ends in ``_test``."""

from __future__ import annotations

import inspect
import json
import sys

import pytest
import torch
from torch import Tensor, nn

from saccade.config import to_dict
from saccade.models.base import VisionModel
from saccade.models.build import build, create, find_config, read_config
from saccade.registry import names
from saccade.types import ClassTarget, ImageBatch

VARIANTS = [name for name in names() if name.endswith("_test")]
NO_EXPORT: dict[str, str] = {}
"""Variants that torch.export cannot take, with the reason in writing."""

pytestmark = pytest.mark.parametrize("name", VARIANTS)


def images_for(model: VisionModel, count: int = 4) -> ImageBatch:
    height, width = model.preprocess.size
    return ImageBatch.of(torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count)))


def targets_for(model: VisionModel, count: int = 4) -> list[ClassTarget]:
    return [ClassTarget(torch.tensor(index % len(model.classes))) for index in range(count)]


def make(name: str) -> VisionModel:
    torch.manual_seed(0)
    return create(name)


def tensors_of(outputs: object) -> list[Tensor]:
    """All tensors of nested NamedTuples."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in tensors_of(part)]  # type: ignore[attr-defined]


def structure_of(outputs: object) -> object:
    if isinstance(outputs, Tensor):
        return outputs.dtype, outputs.shape
    return type(outputs), [structure_of(part) for part in outputs]  # type: ignore[attr-defined]


def test_config_survives_json(name: str) -> None:
    config = find_config(name)
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config


def test_is_small(name: str) -> None:
    assert sum(parameter.numel() for parameter in make(name).parameters()) < 100_000


def test_module_names_its_source(name: str) -> None:
    module = sys.modules[type(make(name)).__module__]
    assert "arXiv" in (inspect.getdoc(module) or "")


def test_output_type_is_constant(name: str) -> None:
    model = make(name)
    images, targets = images_for(model), targets_for(model)
    structures = [structure_of(model.train(mode)(images, given)) for mode in (True, False) for given in (None, targets)]
    assert all(structure == structures[0] for structure in structures)


def test_outputs_are_finite(name: str) -> None:
    model = make(name)
    for mode in (True, False):
        assert all(torch.isfinite(tensor).all() for tensor in tensors_of(model.train(mode)(images_for(model))))


def test_every_parameter_receives_a_gradient(name: str) -> None:
    model = make(name)
    images, targets = images_for(model, 8), targets_for(model, 8)
    with torch.no_grad():  # zero-initialised factors would stop the gradient of what stands before them
        for parameter in model.parameters():
            if parameter.ndim == 1 and not parameter.any():
                parameter.add_(0.1)
    losses = model.loss(model(images), targets)
    assert set(losses.terms)
    losses.total.backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_one_image(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 1)
    outputs = model(images)
    assert len(model.postprocess(outputs, images)) == 1
    assert torch.isfinite(model.loss(outputs, targets_for(model, 1)).total)


def test_does_not_depend_on_neighbours(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 4)
    together = model(images).logits
    for index in range(4):
        torch.testing.assert_close(model(images[index]).logits, together[index : index + 1], rtol=1e-4, atol=1e-5)


def test_evaluation_is_deterministic(name: str) -> None:
    model = make(name).eval()
    images = images_for(model)
    for one, other in zip(tensors_of(model(images)), tensors_of(model(images)), strict=True):
        assert torch.equal(one, other)


def test_training_is_deterministic_under_a_seed(name: str) -> None:
    results = []
    for _ in range(2):
        model = make(name).train()
        losses = model.loss(model(images_for(model)), targets_for(model))
        losses.total.backward()
        results.append([losses.total.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_predictions_are_valid(name: str) -> None:
    model = make(name).eval()
    images = images_for(model)
    predictions = model.postprocess(model(images), images)
    assert len(predictions) == len(images)
    for prediction in predictions:
        assert prediction.scores.dtype == torch.float32
        assert float(prediction.scores.sum()) == pytest.approx(1, abs=1e-5)
        assert float(prediction.scores.min()) >= 0
        assert prediction.name == prediction.top(1)[0][0] == model.classes[prediction.label]


def test_loss_falls_on_one_batch(name: str) -> None:
    model = make(name).train()
    images, targets = images_for(model), targets_for(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        losses = model.loss(model(images), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(float(losses.terms["cross_entropy"].detach()))
    assert history[-1] < 0.7 * history[0]


def test_state_dict_round_trip_is_exact(name: str) -> None:
    model = make(name).eval()
    torch.manual_seed(1)
    again = build(read_config(to_dict(model.config)), model.classes).eval()
    images = images_for(model)
    assert not torch.equal(again(images).logits, model(images).logits)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images).logits, model(images).logits)


def test_bfloat16(name: str) -> None:
    model = make(name).eval()
    images = images_for(model)
    exact = model(images).logits
    rounded = model.bfloat16()(images.to(dtype=torch.bfloat16)).logits
    assert rounded.dtype == torch.bfloat16
    # Eight bits of mantissa through a few layers.
    assert bool(((rounded.float() - exact).abs() < 0.1 * exact.abs().max() + 0.02).all())


def test_training_under_autocast(name: str) -> None:
    model = make(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(model(images_for(model)), targets_for(model))
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


class OnPixels(nn.Module):
    """What is exported: pixels to logits."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(ImageBatch.of(pixels)).logits


def test_exports(name: str) -> None:
    model = make(name).eval()
    pixels = images_for(model, 2).pixels
    if name in NO_EXPORT:
        assert NO_EXPORT[name].endswith(".")
        return
    exported = torch.export.export(OnPixels(model).eval(), (pixels,))
    torch.testing.assert_close(exported.module()(pixels), OnPixels(model)(pixels), rtol=1e-4, atol=1e-5)


def record(model: VisionModel, images: ImageBatch, path: str, is_input: bool) -> tuple[Tensor, Tensor]:
    """The logits and what a module took or gave, cloned as a recorder does so that in-place layers cannot spoil it."""
    seen: list[Tensor] = []

    def keep(activation: Tensor) -> Tensor:
        seen.append(activation.clone())
        return seen[-1]

    module = model.get_submodule(path)
    if is_input:
        handle = module.register_forward_pre_hook(lambda _m, given: (keep(given[0]), *given[1:]))
    else:
        handle = module.register_forward_hook(lambda _m, _given, result: keep(result))
    logits = model(images).logits
    handle.remove()
    return logits, seen[0]


def test_explain_layers_are_grids_that_a_gradient_reaches(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    spec = model.explain_spec()
    assert list(spec.layers)[-1] == "final"
    for place, layer in spec.layers.items():
        logits, activation = record(model, images, layer.path, layer.is_input)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), activation)
        for recorded in (activation, gradient):
            grid = layer.to_grid(recorded, model.preprocess.size)
            assert grid.ndim == 4
            assert grid.shape[0] == 2
            height, width = grid.shape[2:]
            assert height >= 1
            assert height / width == model.preprocess.size[0] / model.preprocess.size[1]
        reached = layer.to_grid(gradient, model.preprocess.size).abs().amax(1) > 0
        # Behind ReLU and max pooling some cells of an early layer rest; of the last one none may.
        assert bool(reached.all() if place == "final" else reached.flatten(1).any(1).all()), layer.path


def test_explain_attention_sites_are_softmaxes(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    for site in model.explain_spec().attention:
        logits, probabilities = record(model, images, site.path, is_input=False)
        height, width = site.grid(model.preprocess.size)
        tokens = site.num_prefix + height * width
        assert probabilities.shape[0] == 2
        assert probabilities.shape[2:] in {(tokens, tokens), (1, tokens)}  # one query where a pooling reads out
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:3]))
        torch.testing.assert_close(logits, model(images).logits, rtol=1e-4, atol=1e-5)


def test_linear_head_is_the_head_of_the_pooled_map(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    spec = model.explain_spec()
    if spec.linear_head is None:
        config = to_dict(model.config)
        assert config["pool"] != "average" or config["pool_norm"] or config["head"]
        return
    head, final = spec.linear_head(), spec.layers["final"]
    logits, activation = record(model, images, final.path, final.is_input)
    pooled = final.to_grid(activation, model.preprocess.size).mean(dim=(2, 3))
    torch.testing.assert_close(nn.functional.linear(pooled, head.weight, head.bias), logits, rtol=1e-4, atol=1e-5)


def test_no_decay_names_exist(name: str) -> None:
    model = make(name)
    assert model.no_decay() <= {key for key, _ in model.named_parameters()}


def test_gradients_of_several_classes_can_be_taken_at_once(name: str) -> None:
    model = make(name).eval()
    images = images_for(model, 2)
    layers = model.explain_spec().layers
    first = next(iter(layers.values()))
    logits, activation = record(model, images, first.path, first.is_input)
    scores = logits.sum(dim=0)
    (batched,) = torch.autograd.grad(
        scores, activation, torch.eye(len(scores)), retain_graph=True, is_grads_batched=True
    )
    for label, score in enumerate(scores):
        (alone,) = torch.autograd.grad(score, activation, retain_graph=True)
        torch.testing.assert_close(batched[label], alone, rtol=1e-4, atol=1e-6)
