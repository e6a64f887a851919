"""Instances in one pass: prototypes mixed by the coefficients of a point, read and cut at its box."""

from __future__ import annotations

import pytest
import torch

import saccade
from saccade.errors import ConfigError, InputError
from saccade.models.yolo_mask import STRIDE, YoloMask, cut_out, sampled
from saccade.types import BoxTarget, Geometry, ImageBatch, Masks


def made(**overrides: object) -> YoloMask:
    torch.manual_seed(0)
    model = saccade.create("yolo_mask_test", num_classes=3, overrides=overrides or None)
    assert isinstance(model, YoloMask)
    return model


def ramp(height: int, width: int, *, is_across: bool) -> torch.Tensor:
    """A map ``[h, w]`` whose bilinear reading at a place on the canvas is that place's coordinate in pixels."""
    places = (torch.arange(width if is_across else height) + 0.5) * STRIDE
    return places[None].expand(height, width) if is_across else places[:, None].expand(height, width)


def test_places_of_a_box_are_read_where_they_are() -> None:
    boxes = torch.tensor([[8.0, 12.0, 40.0, 20.0], [10.0, 6.0, 26.0, 38.0]])
    maps = torch.stack([ramp(12, 16, is_across=True), ramp(12, 16, is_across=False)])
    across = sampled(maps[:1].expand(2, -1, -1), boxes, 8)
    down = sampled(maps[1:].expand(2, -1, -1), boxes, 8)
    steps = (torch.arange(8) + 0.5) / 8
    for row, (left, top, right, bottom) in enumerate(boxes.tolist()):
        torch.testing.assert_close(across[row], (left + (right - left) * steps)[None].expand(8, 8))
        torch.testing.assert_close(down[row], (top + (bottom - top) * steps)[:, None].expand(8, 8))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5), (2.0, 0.8)])
def test_pixels_are_cut_where_the_map_turns_positive(scale: tuple[float, float]) -> None:
    """The map is above 0 right of x = 24 on the canvas; so are the pixels whose centres lie there."""
    geometry = Geometry((60, 70), scale)
    logits = ramp(16, 20, is_across=True)[None] - 24
    box = torch.tensor([[4.2, 3.0, 66.0, 41.7]])
    masks = cut_out(logits, box, geometry)
    centres = (torch.arange(70) + 0.5) * scale[1]
    expected = torch.zeros(60, 70, dtype=torch.bool)
    # Beyond the outermost centres the outermost cell holds; here that changes no sign.
    expected[3:42, 4:66] = (centres > 24)[None, 4:66]
    assert torch.equal(masks[0], expected)


def test_no_detections_have_no_masks() -> None:
    assert len(cut_out(torch.zeros(0, 8, 8), torch.zeros(0, 4), Geometry((30, 30)))) == 0


def target() -> BoxTarget:
    dense = torch.zeros(1, 64, 64, dtype=torch.bool)
    dense[:, 16:48, 8:40] = True
    return BoxTarget.of(torch.tensor([[8.0, 16.0, 40.0, 48.0]]), torch.tensor([1]), Masks.of(dense))


def test_the_term_is_the_cross_entropy_of_the_places() -> None:
    """Coefficients zero: every logit is 0, and the mean cross-entropy of any aim is log 2."""
    model = made().train()
    for heads in (model.one_to_one, model.one_to_many):
        for head in heads:
            torch.nn.init.zeros_(head.codes.weight)
            torch.nn.init.zeros_(head.codes.bias)
    images = ImageBatch.of(torch.rand(1, 3, 64, 64))
    losses = model.loss(model(images), [target()])
    for name in ("one_mask", "many_mask"):
        assert float(losses.terms[name].detach()) == pytest.approx(2.5 * 0.693147, rel=1e-4)


def test_one_to_one_heads_do_not_form_the_prototypes() -> None:
    model = made().train()
    losses = model.loss(model(ImageBatch.of(torch.rand(1, 3, 64, 64))), [target()])
    losses.terms["one_mask"].backward()
    assert all(parameter.grad is None for parameter in model.branch.parameters())
    losses = model.loss(model(ImageBatch.of(torch.rand(1, 3, 64, 64))), [target()])
    losses.terms["many_mask"].backward()
    assert all(parameter.grad is not None for parameter in model.branch.parameters())


def test_it_learns_the_shape_of_an_object() -> None:
    model = made().train()
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (rows - 31.5) ** 2 + (columns - 27.5) ** 2 < 15**2
    pixels = disc.float().expand(1, 3, -1, -1) * 2 - 1
    aim = BoxTarget.of(Masks.of(disc[None]).boxes(), torch.tensor([1]), Masks.of(disc[None]))
    images = ImageBatch.of(pixels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        losses = model.loss(model(images), [aim])
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.postprocess(model(images), images)
    assert found.masks is not None
    shared, joint = (found.masks[0] & disc).sum(), (found.masks[0] | disc).sum()
    assert float(shared / joint) > 0.8
    square = (found.boxes[0, 2:] - found.boxes[0, :2]).prod()
    assert float(found.masks[0].sum()) < 0.9 * float(square)  # its corners are cut


def test_evidence_belongs_to_the_detections() -> None:
    model = made().eval()
    images = ImageBatch.of(torch.rand(2, 3, 64, 64))
    outputs = model(images)
    for evidence, found in zip(model.mask_evidence(outputs, images), model.postprocess(outputs, images), strict=True):
        assert torch.equal(evidence.source, found.source)
        assert torch.equal(evidence.boxes, found.boxes)
        assert evidence.logits.requires_grad
        assert found.masks is not None
        # Where all places are covered, so is nearly all of the box, and the reverse.
        shares = (evidence.logits > 0).float().mean((1, 2))
        areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
        large = areas > 100
        assert float((found.masks.areas() / areas - shares)[large].abs().max()) < 0.25


def test_a_question_about_a_mask_is_answered() -> None:
    picture = torch.randint(256, (50, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    heat = saccade.explain(made(), picture, of="mask:0", method="gradient")
    assert tuple(heat.map.shape) == (50, 70)
    assert float(heat.map.abs().max()) > 0


def test_objects_without_masks_are_refused() -> None:
    model = made().train()
    bare = BoxTarget.of(target().boxes, target().labels)
    with pytest.raises(InputError, match="no masks"):
        model.loss(model(ImageBatch.of(torch.rand(1, 3, 64, 64))), [bare])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="prototypes"):
        made(prototypes=0)
