from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.errors import ConfigError
from saccade.matching.sample import BalancedSampler
from saccade.models.rpn import RPN, AnchorConfig, RPNConfig, RPNOutputs
from saccade.ops.boxes import box_iou, encode
from saccade.types import BoxTarget

CONFIG = RPNConfig(
    anchors=AnchorConfig(sizes=((8,), (16,)), ratios=(1.0,)), before_nms=(50, 20), after_nms=(30, 10), nms_iou=0.7
)
CANVAS = (64, 64)


def levels() -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 8, 8, generator=dice), torch.randn(2, 4, 4, 4, generator=dice)]


def anchored() -> RPNOutputs:
    """What a network says that takes nothing for an object and leaves every anchor as it is."""
    outputs = RPN(CONFIG, 4)(levels(), CANVAS)
    return outputs._replace(objectness=torch.full_like(outputs.objectness, -5), codes=torch.zeros_like(outputs.codes))


def test_scores_belong_to_their_anchors() -> None:
    """A map that is bright at one place makes the anchor of that place likely."""
    rpn = RPN(CONFIG, 1)
    with torch.no_grad():
        rpn.convs[0].weight.zero_()[0, 0, 1, 1] = 1
        rpn.objectness.weight.fill_(1)
    maps = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
    maps[1][0, 0, 2, 3] = 7
    outputs = rpn(maps, CANVAS)
    assert outputs.objectness.shape == (1, 80)
    assert outputs.codes.shape == (1, 80, 4)
    likeliest = int(outputs.objectness.argmax())
    assert outputs.anchors[likeliest].tolist() == [48 - 8, 32 - 8, 48 + 8, 32 + 8]


def test_codes_belong_to_their_anchors() -> None:
    rpn = RPN(RPNConfig(anchors=AnchorConfig(sizes=((8,),), ratios=(0.5, 2.0))), 2)
    with torch.no_grad():
        rpn.codes.weight.zero_()
        rpn.codes.bias.copy_(torch.arange(8.0))
    outputs = rpn([torch.zeros(1, 2, 2, 3)], (16, 24))
    assert outputs.codes[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] * 6


def test_the_likeliest_are_proposed_first_and_copies_go() -> None:
    outputs = anchored()
    outputs.objectness[0, 9] = 3  # cell (1, 1) of the fine level
    outputs.objectness[0, 64 + 5] = 2  # cell (1, 1) of the coarse one
    # A neighbour whose box is moved onto that of the first: the same place, less likely.
    outputs.objectness[0, 10] = 1
    outputs.codes[0, 10, 0] = -1
    rpn = RPN(CONFIG, 4).eval()
    first, second = rpn.propose(outputs, levels(), [CANVAS, (32, 48)])
    assert first[:2].tolist() == [[4, 4, 12, 12], [8, 8, 24, 24]]
    assert float(box_iou(first[2:], first[:1]).max()) < 0.7
    assert len(first) == len(second) == 10
    # Nothing lies outside of the smaller picture.
    assert bool((second[:, 2] <= 48).all())
    assert bool((second[:, 3] <= 32).all())
    assert bool(((second[:, 2:] - second[:, :2]) > 0).all())


def test_training_keeps_more() -> None:
    rpn = RPN(CONFIG, 4)
    counts = [len(rpn.train(mode).propose(anchored(), levels(), [CANVAS] * 2)[0]) for mode in (True, False)]
    assert counts == [30, 10]


def test_loss_in_closed_form() -> None:
    """Every anchor counts alike; the boxes of the positive ones are learned relative to their anchors."""
    config = RPNConfig(anchors=CONFIG.anchors, sampler=BalancedSampler(size=1000, positive_share=1.0))
    outputs = anchored()
    target = BoxTarget.of(torch.tensor([[4.0, 4.0, 12.0, 13.0]]), torch.tensor([0]))
    none = BoxTarget.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    terms = RPN(config, 4).loss(outputs, [target, none])
    matched = config.assigner(outputs.anchors, target).matched
    assert (matched >= 0).nonzero().flatten().tolist() == [9]
    known = int((matched != -2).sum()) + 80
    expected = (F.softplus(torch.tensor(5.0)) + (known - 1) * F.softplus(torch.tensor(-5.0))) / known
    torch.testing.assert_close(terms["rpn_objectness"], expected)
    aims = encode(target.boxes, outputs.anchors[9:10])[0]
    torch.testing.assert_close(aims, torch.tensor([0, 1 / 16, 0, math.log(9 / 8)]))
    quadratic, linear = 0.5 * 9 * (1 / 16) ** 2, math.log(9 / 8) - 0.5 / 9
    torch.testing.assert_close(terms["rpn_boxes"], torch.tensor((quadratic + linear) / known))


def test_anchors_are_sampled_per_picture() -> None:
    config = RPNConfig(anchors=CONFIG.anchors, sampler=BalancedSampler(size=10, positive_share=0.5))
    outputs = anchored()
    outputs.objectness.requires_grad_()
    target = BoxTarget.of(torch.tensor([[4.0, 4.0, 12.0, 12.0]]), torch.tensor([0]))
    RPN(config, 4).loss(outputs, [target] * 2)["rpn_objectness"].backward()
    assert outputs.objectness.grad is not None
    assert outputs.objectness.grad.count_nonzero(dim=1).tolist() == [10, 10]


def test_levels_with_other_numbers_of_anchors_are_refused() -> None:
    with pytest.raises(ConfigError, match="different numbers of anchors"):
        AnchorConfig(sizes=((8, 16), (32,)))
