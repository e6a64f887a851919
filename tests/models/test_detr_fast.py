"""The fast DETR beyond the contract: denoising, refinement, selection of cells, what is learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import saccade
from saccade.config import override
from saccade.errors import ConfigError
from saccade.models.build import build
from saccade.models.detr_fast import DetrFast
from saccade.models.detr_fast_loss import FastOutputs
from saccade.ops.boxes import from_centres
from saccade.types import BoxTarget, ImageBatch


def made(**overrides: object) -> DetrFast:
    torch.manual_seed(0)
    model = saccade.create("detr_fast_test", num_classes=3, overrides=overrides or None)
    assert isinstance(model, DetrFast)
    return model.eval()


def images(count: int = 2) -> ImageBatch:
    return ImageBatch.of(torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count)))


def targets() -> list[BoxTarget]:
    """Two objects and one."""
    boxes = torch.tensor([[8.0, 8.0, 40.0, 32.0], [30.0, 20.0, 60.0, 60.0]])
    return [BoxTarget.of(boxes, torch.tensor([0, 2])), BoxTarget.of(boxes[:1], torch.tensor([1]))]


def test_denoising_queries_change_no_other_answer() -> None:
    model = made().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    without, given = model(images()), model(images(), targets())
    assert without.denoised.shape == (2, 0)
    assert given.denoised.shape[1] > 0
    assert given.noisy.logits.shape[:3] == (2, 2, given.denoised.shape[1])
    torch.testing.assert_close(given.logits, without.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.boxes, without.boxes, rtol=1e-4, atol=1e-5)
    assert model.eval()(images(), targets()).denoised.shape == (2, 0)


def test_terms_of_the_loss() -> None:
    model = made().train()
    kinds = ("class", "boxes", "giou")
    terms = model.loss(model(images(), targets()), targets()).terms
    assert set(terms) == {f"{prefix}{kind}" for prefix in ("", "aux_", "dense_", "denoise_") for kind in kinds}
    without = model.loss(model(images()), targets()).terms
    assert set(without) == {f"{prefix}{kind}" for prefix in ("", "aux_", "dense_") for kind in kinds}
    little = made(**{"loss.denoise": 0, "loss.auxiliary": 0, "decoder_layers": 1}).train()
    terms = little.loss(little(images(), targets()), targets()).terms
    assert set(terms) == {f"{prefix}{kind}" for prefix in ("", "dense_") for kind in kinds}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"loss.dense": 0}, "cells' scores and boxes would never learn"),
        ({"loss.auxiliary": 0}, "earlier layers of the decoder would never learn"),
        ({"strides": [8, 16]}, "coarsest map is not used"),
    ],
)
def test_what_would_leave_a_part_untaught_is_refused(overrides: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        made(**overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss.denoise": 0, "loss.auxiliary": 0, "decoder_layers": 1},
        {"strides": [8, 16], "backbone.arguments": {"layers": [1, 1, 1, 1], "output_stride": 16}},
    ],
)
def test_every_parameter_has_a_gradient(overrides: dict[str, object]) -> None:
    model = made(**overrides).train()
    model.loss(model(images(), targets()), targets()).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_an_object_between_cells_teaches_the_nearest_of_the_finest_map() -> None:
    model = made()
    # The middle of the first cell of stride 32, (16, 16), is nearer than that of any cell of stride 8.
    target = BoxTarget.of(torch.tensor([[14.0, 14.0, 15.0, 15.0]]), torch.tensor([1]))
    outputs = model(images(1))
    boxes = torch.tensor([0.25, 0.25, 0.5, 0.5]).expand_as(outputs.dense_boxes).clone().requires_grad_()
    outputs = outputs._replace(dense_boxes=boxes)
    (wrong,) = torch.autograd.grad(model.loss(outputs, [target]).terms["dense_boxes"], boxes)
    assert wrong[0].any(-1).nonzero()[:, 0].tolist() == [8 + 1]


def test_perfect_answers_cost_nothing() -> None:
    model = made()
    outputs = model(images())
    boxes, logits = outputs.boxes.clone(), torch.full_like(outputs.logits, -30)
    for image, target in enumerate(targets()):
        corners = target.boxes / 64
        count = len(target)
        boxes[image, 3 : 3 + count, :2] = (corners[:, :2] + corners[:, 2:]) / 2
        boxes[image, 3 : 3 + count, 2:] = corners[:, 2:] - corners[:, :2]
        logits[image, torch.arange(3, 3 + count), target.labels] = 30
    terms = model.loss(outputs._replace(boxes=boxes, logits=logits), targets()).terms
    for kind in ("class", "boxes", "giou"):
        assert float(terms[kind].detach()) == pytest.approx(0, abs=1e-4)
    (found, _) = model.postprocess(outputs._replace(boxes=boxes, logits=logits), images())
    assert sorted(found.source[:2].tolist()) == [3, 4]
    torch.testing.assert_close(found.boxes[:2][found.source[:2].argsort()], targets()[0].boxes, rtol=1e-4, atol=1e-3)


def test_denoising_queries_learn_the_object_that_they_were_made_of() -> None:
    model = made()
    model.train()
    outputs = model(images(), targets())
    wanted = [torch.cat([target.boxes / 64, torch.zeros(1, 4)]) for target in targets()]
    perfect = outputs.noisy.boxes.detach().clone()
    for image, places in enumerate(outputs.denoised.tolist()):
        for query, place in enumerate(places):
            if place >= 0:
                corners = wanted[image][place]
                perfect[:, image, query] = torch.cat([(corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]])
    told = outputs._replace(noisy=outputs.noisy._replace(boxes=perfect))
    terms = model.loss(told, targets()).terms
    assert float(terms["denoise_boxes"]) == pytest.approx(0, abs=1e-5)
    assert float(terms["denoise_giou"]) == pytest.approx(0, abs=1e-4)
    swapped = [targets()[0].select(torch.tensor([1, 0])), targets()[1]]
    assert float(model.loss(told, swapped).terms["denoise_boxes"]) > 0.1


def test_queries_start_from_the_most_promising_cells() -> None:
    model = made(queries=5)
    outputs = model(images())
    best = outputs.dense_logits.amax(-1).argsort(1, descending=True)[:, :5]
    assert torch.equal(outputs.cells.sort(1).values, best.sort(1).values)
    assert outputs.centres.shape == (outputs.dense_logits.shape[1], 2)
    torch.testing.assert_close(outputs.centres[0], torch.tensor([4.0, 4.0]))  # stride 8, its middle
    torch.testing.assert_close(outputs.centres[-1], torch.tensor([48.0, 48.0]))  # stride 32


def test_untrained_cells_answer_with_boxes_around_themselves() -> None:
    with torch.no_grad():
        outputs = made()(images(1))
    middles = outputs.dense_boxes[0, :, :2] * 64
    assert float((middles - outputs.centres).abs().max()) < 2
    sides = outputs.dense_boxes[0, :, 2:] * 64
    assert float((sides[:64] - 32).abs().max()) < 4  # four cells of 8 pixels


def test_each_layer_corrects_the_box_of_the_one_before() -> None:
    model = made().train()
    with torch.no_grad():  # the second layer's correction is a fixed shift of the logits
        model.boxes[1][-1].weight.zero_()
        model.boxes[1][-1].bias.copy_(torch.tensor([0.5, -0.5, 0.2, 0.0]))
    outputs = model(images())
    first = torch.logit(outputs.auxiliary.boxes[0])
    shift = torch.tensor([0.5, -0.5, 0.2, 0.0])
    torch.testing.assert_close(torch.logit(outputs.boxes), first + shift, rtol=1e-3, atol=1e-3)
    # Its error reaches the correction before, and that one alone: cells learn their boxes for themselves.
    gradients = torch.autograd.grad(
        outputs.boxes.sum(), [model.boxes[0][-1].bias, model.cell_box[-1].bias], allow_unused=True
    )
    assert gradients[0].any()
    assert gradients[1] is None or not gradients[1].any()


def test_where_queries_look_can_be_seen() -> None:
    model = made()
    seen: dict[str, Tensor] = {}
    looks = model.explain_spec().queries
    assert looks is not None
    for layer in looks.layers:
        for path in (str(layer.points), layer.cross):
            model.get_submodule(path).register_forward_hook(
                lambda _module, _given, found, path=path: seen.__setitem__(path, found)
            )
    outputs: FastOutputs = model(images())
    assert len(seen) == 4
    for layer in looks.layers:
        assert seen[str(layer.points)].shape == (2, 12, 2, 3, 2, 2)  # queries, heads, levels, points, x and y
        torch.testing.assert_close(seen[layer.cross].sum(-1), torch.ones(2, 2, 12))
    (candidates, _) = model.candidates(outputs, images())
    assert bool((candidates.boxes[:, 0, 2:] >= candidates.boxes[:, 0, :2]).all())
    expected = from_centres(outputs.boxes[0]) * 64
    torch.testing.assert_close(candidates.boxes[:, 0], expected)


def test_other_classes_leave_only_the_head_fresh() -> None:
    model = made()
    other = build(override(model.config, {"num_classes": 4}))
    ours, theirs = model.state_dict(), other.state_dict()
    changed = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert changed
    assert all(name.startswith("head.") for name in changed)


def test_wrong_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="stride 64"):
        made(strides=(8, 64))
    with pytest.raises(ConfigError, match="sigmoid"):
        made(**{"loss.matcher.scores": "softmax"})
    with pytest.raises(ConfigError, match="width"):
        made(width=18)
