from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from saccade.engine.optim import parameter_groups
from saccade.errors import ConfigError
from saccade.matching.assign import BACKGROUND, IoUAssigner
from saccade.matching.sample import BalancedSampler
from saccade.models.build import create, load_weights
from saccade.models.detector import Selection, select
from saccade.models.roi_heads import (
    BoxHead,
    BoxHeadConfig,
    BoxOutputs,
    Regions,
    class_evidence,
    region_candidates,
    region_losses,
    sample_regions,
)
from saccade.ops.boxes import encode
from saccade.types import BoxTarget, ImageBatch

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
OBJECT = BoxTarget.of(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([1]))
NONE = BoxTarget.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def regions() -> Regions:
    """One on the object, one beside it; one in a picture without objects."""
    return Regions.of([torch.tensor([[0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 30.0, 10.0]]), torch.tensor([[0.0, 0, 9, 9]])])


def test_regions_know_their_pictures() -> None:
    found = Regions.of([torch.zeros(2, 4), torch.zeros(0, 4), torch.zeros(1, 4)])
    assert found.image.tolist() == [0, 0, 2]
    assert found.source.tolist() == [0, 1, 0]
    assert [rows.tolist() for rows in found.per_image(4)] == [[0, 1], [], [2], []]


def test_region_losses_in_closed_form() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    outputs = BoxOutputs(regions(), logits, torch.zeros(3, 2, 4))
    terms = region_losses(outputs, [OBJECT, NONE], BoxHeadConfig())
    # Label 1 for the first, background (the last) for the others.
    torch.testing.assert_close(terms["class"], F.cross_entropy(logits, torch.tensor([1, 2, 2])))
    codes = encode(OBJECT.boxes, regions().boxes[:1], WEIGHTS)[0]
    torch.testing.assert_close(codes, torch.tensor([0, 10 * 1 / 8, 0, 5 * math.log(10 / 8)]))
    expected = sum(float(value) - 0.5 / 9 for value in codes if value) / 3
    assert float(terms["boxes"]) == pytest.approx(expected, rel=1e-5)


def test_only_the_codes_of_the_own_class_are_learned() -> None:
    codes = torch.zeros(3, 2, 4, requires_grad=True)
    region_losses(BoxOutputs(regions(), torch.zeros(3, 3), codes), [OBJECT, NONE], BoxHeadConfig())["boxes"].backward()
    assert codes.grad is not None
    assert codes.grad.flatten(2).any(2).tolist() == [[False, True], [False, False], [False, False]]


def test_scores_and_odds_tell_the_same() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scores, odds = class_evidence(logits)
    torch.testing.assert_close(scores, logits.softmax(1)[:, :3])
    torch.testing.assert_close(odds.sigmoid(), scores)  # the odds of p are log(p / (1 - p))
    # Growing by one, a class gains one over the others, whatever its share.
    (gradient,) = torch.autograd.grad(odds.sum(), logits)
    others = [logits[:, [j for j in range(4) if j != k]].softmax(1) for k in range(3)]
    assert float(gradient[:, 3].max()) < 0
    torch.testing.assert_close(gradient[:, 3], -sum(part[:, -1] for part in others))


def test_odds_of_what_is_beyond_doubt_are_exact() -> None:
    odds = class_evidence(torch.tensor([[60.0, 20.0, 0.0], [0.0, 0.0, 80.0]]))[1]
    torch.testing.assert_close(odds, torch.tensor([[40.0, -40.0], [-80.0, -80.0]]))


def head(selection: Selection) -> BoxHead:
    return BoxHead(BoxHeadConfig(hidden=8), 4, [4], 2, selection)


def test_the_kept_are_those_that_all_candidates_give() -> None:
    """Deciding first which regions can matter at all must not change the result."""
    dice = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=dice) * 80
    boxes = torch.cat([corner, corner + 5 + torch.rand(60, 2, generator=dice) * 30], dim=1)
    logits, codes = 3 * torch.randn(60, 3, generator=dice), torch.randn(60, 2, 4, generator=dice)
    outputs = BoxOutputs(Regions.of([boxes[:25], boxes[25:]]), logits, codes)
    selection = Selection(min_score=0.6, nms_iou=0.3)
    box = head(selection)
    sizes = [(90, 100), (100, 80)]
    for kept, candidates, size in zip(
        box.keep(outputs, sizes), region_candidates(outputs, 2, box.config), sizes, strict=True
    ):
        assert len(kept.scores) > 3
        for one, other in zip(kept, select(candidates, size, selection), strict=True):
            torch.testing.assert_close(one, other)


def test_the_sample_holds_the_objects_themselves() -> None:
    box = head(Selection())
    far = torch.tensor([[50.0, 50.0, 60.0, 60.0]])
    sample = sample_regions([far.expand(600, 4), far], [OBJECT, NONE], box.config)
    assert sample.boxes[0].tolist() == OBJECT.boxes[0].tolist()
    assert [len(rows) for rows in sample.per_image(2)] == [512, 1]


def test_crowds_are_neither_objects_nor_background() -> None:
    crowd = BoxTarget(OBJECT.boxes, OBJECT.labels, torch.tensor([True]))
    near, far = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([[50.0, 50.0, 60.0, 60.0]])
    sample = sample_regions([torch.cat([near, far])], [crowd], BoxHeadConfig())
    assert sample.boxes.tolist() == far.tolist()


def learned_labels(outputs: BoxOutputs, targets: list[BoxTarget], config: BoxHeadConfig) -> list[int]:
    """The label that each region learns, by what its logits are told: with all zero only the label's shall grow."""
    logits = torch.zeros_like(outputs.logits, requires_grad=True)
    region_losses(outputs._replace(logits=logits), targets, config)["class"].backward()
    assert logits.grad is not None
    return logits.grad.argmin(1).tolist()


def test_what_a_region_learns_is_settled_when_it_is_sampled() -> None:
    """Of four objects one is sampled; with ``keep_best`` a second look made objects of what is background."""
    corners = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    target = BoxTarget.of(torch.cat([corners, corners + 10], dim=1), torch.tensor([0, 1, 0, 1]))
    beside = torch.cat([corners + 7, corners + 17], dim=1)  # an overlap of 9 / 191
    config = BoxHeadConfig(
        assigner=IoUAssigner(positive=0.5, negative=0.4, keep_best=True),
        sampler=BalancedSampler(size=5, positive_share=0.2),
    )
    torch.manual_seed(0)
    sampled = sample_regions([beside], [target], config)
    matched = sampled.matched.tolist()
    assert matched[0] >= 0
    assert matched[1:] == [BACKGROUND] * 4
    outputs = BoxOutputs(sampled, torch.zeros(5, 3), torch.zeros(5, 2, 4))
    expected = [int(target.labels[matched[0]]), 2, 2, 2, 2]
    assert learned_labels(outputs, [target], config) == expected
    # The next head sees what the box head learned as an object, and nothing else.
    passed = BoxHead(config, 4, [4], 2, Selection()).passes_on(outputs, [(40, 40)], [target])
    assert torch.equal(passed.boxes, sampled.boxes[:1])


def test_next_head_sees_detections_or_objects() -> None:
    box = head(Selection(min_score=0.5))
    logits = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    outputs = BoxOutputs(regions(), logits, torch.zeros(3, 2, 4))
    found = box.passes_on(outputs, [(40, 40)] * 2, None)
    assert (found.image.tolist(), found.labels.tolist(), found.source.tolist()) == ([0], [0], [1])
    learned = box.passes_on(outputs, [(40, 40)] * 2, [OBJECT, NONE])
    assert (learned.image.tolist(), learned.labels.tolist(), learned.source.tolist()) == ([0], [1], [0])


def test_a_step_of_training_leaves_frozen_norms_and_nothing_else() -> None:
    """As torchvision's ``FrozenBatchNorm2d``, whose weight and bias are no parameters."""
    torch.manual_seed(0)
    model = create("faster_rcnn_test", overrides=["freeze_norms=true"]).train()
    images = ImageBatch.of(torch.randn(2, 3, 64, 64))
    targets = [BoxTarget.of(torch.tensor([[4.0, 8.0, 40.0, 44.0]]), torch.tensor([1]))] * 2
    groups = parameter_groups(model, weight_decay=0.05, spared=model.no_decay())
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.loss(model(images, targets), targets).total.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    norms = {f"backbone.{name}." for name, part in model.backbone.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert not any(name.startswith(tuple(norms)) for name in moved)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} <= moved


def test_norms_that_processes_share_are_frozen_too() -> None:
    model = create("faster_rcnn_test", overrides=["freeze_norms=true"])
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    norms = [part for part in shared.backbone.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_norms_stay_as_they_are_where_they_are_frozen() -> None:
    model = create("faster_rcnn_test", overrides=["freeze_norms=true"]).train()
    before = model.backbone.body.bn1.running_mean.clone()
    images = ImageBatch.of(torch.randn(2, 3, 64, 64))
    model(images)
    assert torch.equal(model.backbone.body.bn1.running_mean, before)
    assert model.training
    assert model.backbone.training
    assert not model.backbone.body.bn1.training
    learning = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    assert not any("bn" in name or ".downsample.1." in name for name in learning)
    assert any("conv" in name for name in learning)
    free = create("faster_rcnn_test").train()
    before = free.backbone.body.bn1.running_mean.clone()
    free(images)
    assert not torch.equal(free.backbone.body.bn1.running_mean, before)


def test_regions_name_the_level_that_they_are_read_from() -> None:
    model = create("faster_rcnn_test")
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 64.0, 64.0]])
    assert model.level_of(boxes) == ["p2", "p5"]
    assert set(model.level_of(boxes)) <= set(model.explain_spec().layers)


def test_the_backbone_of_a_classifier_is_taken(tmp_path: Path) -> None:
    classifier = create("timm/mobilenetv2_035", num_classes=4)
    file = tmp_path / "classifier.safetensors"
    save_file(dict(classifier.state_dict()), file)
    detector = create(
        "faster_rcnn_mobilenet", num_classes=2, overrides={"backbone.name": "mobilenetv2_035", "pyramid_width": 16}
    )
    load_weights(detector, file)
    ours, theirs = detector.backbone.body.conv_stem.weight, classifier.backbone.body.conv_stem.weight
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("strides=[4, 8, 12, 32]", "powers of two"),
        ("strides=[4, 8, 16]", "anchors for 5 levels"),
        ("strides=[2, 4, 8, 16]", "coarsest map is not used"),
        ("strides=[4, 8, 32, 64]", "no map of the backbone has stride 64"),
    ],
)
def test_strides_that_do_not_fit_are_refused(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        create("faster_rcnn_test", overrides=[override])


def test_detections_are_in_the_pixels_of_the_picture() -> None:
    """The same content on a canvas of half the size is found at the same place."""
    model = create("faster_rcnn_test").eval()
    found: list[Tensor] = []
    for size in ((64, 48), (32, 24), (128, 96)):
        picture = torch.zeros(3, *size, dtype=torch.uint8)
        images = model.preprocess([picture])
        (detections,) = model.postprocess(model(images), images)
        found.append(detections.boxes / torch.tensor([size[1], size[0]] * 2))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
