"""All objects at once: each map equals that of a single explanation, and shared sweeps hide nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.errors import ConfigError, InputError
from saccade.explanation.boxes import Watched
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.heatmap import shared_scale
from saccade.explanation.manyboxes import Window, _apart, explain_boxes
from saccade.explanation.record import recording
from saccade.models.build import create
from saccade.models.detector import Detector
from saccade.ops.boxes import clip, map_to_original
from saccade.types import Detections

PICTURE = torch.randint(0, 256, (3, 45, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
PICTURE = PICTURE.float().mul(0.3).to(torch.uint8).repeat_interleave(2, 1)[:, :60]
LEVELLED = ("faster_rcnn_test", "mask_rcnn_test", "yolo_test", "yolo_direct_test")
OTHERS = ("detr_test", "detr_fast_test", "yolo_v1_test", "fast_rcnn_test")


def detector(name: str, most: int = 9) -> Detector[Any]:
    torch.manual_seed(0)
    return create(name, overrides={"selection.min_score": 0.0, "selection.max_detections": most}).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("name", [*LEVELLED, *OTHERS])
@pytest.mark.parametrize(("method", "side"), [("layercam", None), ("hirescam", "left"), ("gradcam", None)])
def test_every_map_equals_that_of_a_single_explanation(name: str, method: str, side: Any) -> None:
    model = detector(name)
    many = explain_boxes(model, PICTURE, side=side, method=method)
    assert len(many) == 9
    layer = "auto" if name in LEVELLED else "final"
    questions = [f"box:{index}" + (f"/{side}" if side else "") for index in range(0, 9, 4)]
    options = ExplainOptions(method=method, layer=layer, verdict=False)
    for one, other in zip(explain_batch(model, [PICTURE], questions, options)[0], many[::4], strict=True):
        torch.testing.assert_close(other.map, one.map, rtol=1e-5, atol=1e-5 * one.peak)
        assert (other.layer, other.of, other.method, other.is_signed) == (one.layer, one.of, one.method, one.is_signed)
        assert other.score == pytest.approx(one.score, rel=1e-5)
        assert other.manifest == one.manifest
        assert shared_scale([one, other]) == max(one.peak, other.peak)
        assert other.negative == pytest.approx(one.negative, abs=1e-5)
        assert torch.equal(other.region, one.region)  # type: ignore[arg-type]
        assert other.fired is not None
        assert other.fired.about() == one.fired.about()  # type: ignore[union-attr]
        assert torch.equal(other.fired.box, one.fired.box)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LEVELLED)
def test_a_candidate_reads_nothing_outside_of_its_reach(name: str) -> None:
    """What lets objects share a sweep: their gradients are zero outside, and of no other level."""
    model = Watched(detector(name))
    spec = model.explain_spec()
    images = model.preprocess([PICTURE])
    with recording(model, {level: spec.layers[level] for level in spec.levels}) as record:
        found = record.run(images)
        candidates = found.candidates[0]
        for source in range(0, len(candidates.scores), max(len(candidates.scores) // 7, 1)):
            origin = model.detector.origin(found.outputs, 0, source)
            assert origin.reach is not None
            for number in (candidates.logits[source, 0], candidates.boxes[source, 0, 2]):
                seen = record.all_seen()
                slopes = torch.autograd.grad(number, [*seen.values()], retain_graph=True, allow_unused=True)
                reached = {level: slope for level, slope in zip(seen, slopes, strict=True) if slope is not None}
                assert [level for level, slope in reached.items() if slope.any()] == [origin.layer]
                rows, columns = torch.nonzero(reached[origin.layer][0].abs().sum(0), as_tuple=True)  # type: ignore[index]
                height, width = reached[origin.layer].shape[-2:]  # type: ignore[index]
                left, top, right, bottom = (
                    origin.reach * torch.tensor([width, height] * 2) / torch.tensor(record.canvas[::-1] * 2)
                ).tolist()
                assert top - 1e-3 <= int(rows.min())
                assert int(rows.max()) + 1 <= bottom + 1e-3
                assert left - 1e-3 <= int(columns.min())
                assert int(columns.max()) + 1 <= right + 1e-3


def test_groups_are_of_windows_that_do_not_overlap() -> None:
    windows = {0: Window(0, 4, 0, 4), 1: Window(4, 8, 0, 4), 2: Window(3, 5, 3, 5), 7: Window(0, 9, 6, 9)}
    groups = _apart(windows)
    assert sorted(index for group in groups for index in group) == [0, 1, 2, 7]
    assert sorted(map(sorted, groups)) == [[0, 1, 7], [2]]


def test_objects_found_earlier_are_explained_and_others_refused() -> None:
    model = detector("faster_rcnn_test")
    images = model.preprocess([PICTURE])
    with torch.no_grad():
        found = model.postprocess(model(images), images)[0]
    subject = Subject(model)
    chosen = found.select(torch.tensor([4, 1]))
    now, earlier = explain_boxes(subject, PICTURE), explain_boxes(subject, PICTURE, chosen)
    assert torch.equal(earlier[0].map, now[4].map)
    assert torch.equal(earlier[1].map, now[1].map)
    assert explain_boxes(model, PICTURE, found.select(torch.zeros(0, dtype=torch.int64))) == []
    wrong = type(found)(found.boxes + 2.5, found.scores, found.labels, found.source, found.classes)
    with pytest.raises(InputError, match=r"no candidate at box \d"):
        explain_boxes(model, PICTURE, wrong)
    with pytest.raises(ConfigError, match="cannot be shared"):
        explain_boxes(model, PICTURE, method="rise")
    with pytest.raises(InputError, match="'up' is no side"):
        explain_boxes(model, PICTURE, side="up")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="finds no objects"):
        explain_boxes(create("resnet_test"), PICTURE)  # type: ignore[arg-type]


def test_two_classes_of_one_candidate_are_told_apart() -> None:
    """A proposal that is kept as two classes has one row, whose gradients must not be added up."""
    model = detector("faster_rcnn_test")
    images = model.preprocess([PICTURE])
    with torch.no_grad():
        candidates = model.candidates(model(images), images)[0]
    labels, source = torch.tensor([0, 2, 1]), torch.tensor([5, 5, 5])
    boxes = map_to_original(clip(candidates.boxes[source, labels], images.sizes[0]), images.geometries[0])
    found = Detections(boxes, candidates.scores[source, labels], labels, source, model.classes)
    many = explain_boxes(model, PICTURE, found)
    options = ExplainOptions(method="layercam", verdict=False)
    single = explain_batch(model, [PICTURE], [(found, index) for index in range(3)], options)[0]
    for one, other in zip(single, many, strict=True):
        torch.testing.assert_close(other.map, one.map, rtol=1e-5, atol=1e-5 * one.peak)
    assert not torch.allclose(many[0].map, many[1].map, rtol=1e-2)


def test_the_model_is_left_as_it_was() -> None:
    model = detector("yolo_test").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain_boxes(model, PICTURE)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
