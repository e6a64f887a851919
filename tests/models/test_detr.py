"""DETR beyond the contract: padding, auxiliary layers, post-processing, where queries look."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import saccade
from saccade.backbones.vit import ViTConfig
from saccade.errors import ConfigError
from saccade.models.base import VisionModel
from saccade.models.detr import Detr, SetOutputs
from saccade.models.detr_vit import DetrVit, DetrVitConfig
from saccade.types import BoxTarget, Geometry, ImageBatch


def made(name: str = "detr_test", **overrides: object) -> Detr | DetrVit:
    torch.manual_seed(0)
    model = saccade.create(name, num_classes=3, overrides=overrides or None)
    assert isinstance(model, (Detr, DetrVit))
    return model.eval()


def batch(*sizes: tuple[int, int], canvas: tuple[int, int] = (64, 64)) -> ImageBatch:
    """Noise in the pictures, zeros around them."""
    dice = torch.Generator().manual_seed(len(sizes))
    pixels = torch.zeros(len(sizes), 3, *canvas)
    for picture, (height, width) in zip(pixels, sizes, strict=True):
        picture[:, :height, :width] = torch.randn(3, height, width, generator=dice)
    return ImageBatch(pixels, sizes, tuple(Geometry(size) for size in sizes))


def test_a_picture_does_not_depend_on_the_padding_of_another_size() -> None:
    # The convolutions see a black border either way; attention must not see the tokens behind it.
    model = made()
    small = batch((32, 48), canvas=(64, 64))
    larger = torch.zeros(1, 3, 64, 128)
    larger[..., :64] = small.pixels
    wide = ImageBatch(larger, small.sizes, small.geometries)
    torch.testing.assert_close(model(wide).logits, model(small).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(wide).boxes, model(small).boxes, rtol=1e-4, atol=1e-4)


def test_padded_tokens_change_nothing() -> None:
    model = made()
    images = batch((64, 64), (32, 48))
    expected = model(images)

    def spoil(_module: object, _given: object, maps: Tensor) -> Tensor:
        spoiled = maps.clone()
        spoiled[1, :, 2:] = 100
        spoiled[1, :, :, 3:] = 100
        return spoiled

    handle = model.project.register_forward_hook(spoil)
    found = model(images)
    handle.remove()
    torch.testing.assert_close(found.logits, expected.logits)
    # Without the mask the second picture would be another one.
    whole = model(ImageBatch.of(images.pixels))
    assert not torch.allclose(whole.logits[1], expected.logits[1], atol=1e-4)


def test_boxes_are_shares_of_the_picture_and_come_back_in_pixels() -> None:
    model = made()
    images = batch((64, 64), (32, 48))
    outputs = model(images)
    boxes = torch.tensor([0.5, 0.5, 0.5, 0.25]).expand_as(outputs.boxes)
    logits = torch.tensor([5.0, 0.0, 0.0, 0.0]).expand_as(outputs.logits)
    found = model.postprocess(outputs._replace(boxes=boxes, logits=logits), images)
    torch.testing.assert_close(found[0].boxes[0], torch.tensor([16.0, 24.0, 48.0, 40.0]))
    torch.testing.assert_close(found[1].boxes[0], torch.tensor([12.0, 12.0, 36.0, 20.0]))
    assert len(found[0]) == 12  # nothing is suppressed
    assert found[0].source.tolist() == list(range(12))


def test_no_object_is_no_object() -> None:
    model = made()
    images = batch((64, 64))
    outputs = model(images)
    logits = torch.zeros_like(outputs.logits)
    logits[..., -1] = 6
    logits[0, 4] = torch.tensor([0.0, 3.0, 0.0, 0.0])
    (found,) = model.postprocess(outputs._replace(logits=logits), images)
    assert (found.labels.tolist(), found.source.tolist()) == ([1], [4])
    assert float(found.scores) == pytest.approx(float(torch.tensor([0.0, 3.0, 0.0, 0.0]).softmax(0)[1]))


def test_earlier_layers_answer_in_training_only() -> None:
    model = made()
    images = batch((64, 64))
    assert len(model(images).auxiliary_logits) == 0
    outputs = model.train()(images)
    assert outputs.auxiliary_logits.shape == (1, 1, 12, 4)
    target = BoxTarget.of(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([1]))
    assert set(model.loss(outputs, [target]).terms) == {"class", "boxes", "giou", "aux_class", "aux_boxes", "aux_giou"}


def test_crowds_are_not_learned() -> None:
    model = made()
    outputs = model(batch((64, 64)))
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [0.0, 0.0, 64.0, 64.0]])
    both = BoxTarget(boxes, torch.tensor([1, 2]), torch.tensor([False, True]))
    one = BoxTarget.of(boxes[:1], torch.tensor([1]))
    torch.testing.assert_close(model.loss(outputs, [both]).total, model.loss(outputs, [one]).total)


@pytest.mark.parametrize("name", ["detr_test", "detr_vit_test"])
def test_the_loss_is_a_config_value(name: str) -> None:
    target = BoxTarget.of(torch.tensor([[8.0, 8.0, 24.0, 24.0]]), torch.tensor([1]))
    for kind, terms in (("notes", {"class", "boxes"}), ("published", {"class", "boxes", "giou"})):
        model = made(name, **{"loss.kind": kind})
        height, width = model.preprocess.size
        outputs = model(batch((height, width), canvas=(height, width)))
        assert set(model.loss(outputs, [target]).terms) == terms


def looked(model: VisionModel, images: ImageBatch, paths: Sequence[str]) -> tuple[SetOutputs, list[Tensor]]:
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _module, _given, found: seen.append(found))
        for path in paths
    ]
    outputs = model(images)
    for handle in handles:
        handle.remove()
    return outputs, seen


@pytest.mark.parametrize("name", ["detr_test", "detr_vit_test"])
def test_where_a_query_looks_can_be_seen_and_differentiated(name: str) -> None:
    model = made(name)
    size = model.preprocess.size
    images = batch(size, canvas=size)
    sites = model.cross_attention()
    assert len(sites) == 2
    assert model.explain_spec().attention[-1] == sites[-1]
    outputs, seen = looked(model, images, [site.path for site in sites])
    rows, columns = sites[0].grid(size)
    for probabilities in seen:
        assert probabilities.shape[2:] == (12, rows * columns)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:3]))
    (candidates,) = model.candidates(outputs, images)
    (gradient,) = torch.autograd.grad(candidates.logits[5, 1], seen[-1])
    # Behind the last look queries no longer meet: the score of one depends on its own look alone.
    assert gradient[0, :, 5].abs().min() > 0
    assert not gradient[0, :, [q for q in range(12) if q != 5]].any()


def test_frozen_norms_stay_in_evaluation() -> None:
    model = made(freeze_norms=True).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(batch((64, 64), (64, 64)))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_wrong_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="width"):
        made(width=30)
    with pytest.raises(ConfigError, match="class token"):
        DetrVitConfig(backbone=ViTConfig())
