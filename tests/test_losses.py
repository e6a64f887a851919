from __future__ import annotations

import itertools
import math

import pytest
import torch

from saccade.errors import InputError
from saccade.losses import (
    boundary_cross_entropy,
    clip_loss,
    cross_entropy,
    dice,
    focal,
    load_balance,
    lovasz_softmax,
    near_boundary,
    pixel_cross_entropy,
    router_z,
    siglip_loss,
)
from saccade.types import IGNORE


def test_labels_are_looked_at_on_the_processor_alone() -> None:
    """Any other device would have to wait for it; one that holds no numbers shows whether it was asked."""
    logits, labels = torch.zeros(3, 7, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")
    assert cross_entropy(logits, labels).shape == ()
    assert focal(logits[:, :, None, None], labels[:, None, None]).shape == ()


def test_cross_entropy_of_equal_logits_is_log_k() -> None:
    loss = cross_entropy(torch.zeros(3, 7), torch.tensor([0, 3, 6]))
    assert float(loss) == pytest.approx(math.log(7))


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(cross_entropy(logits, torch.tensor([0, 0]))) == pytest.approx(expected)


def test_soft_labels_blend_the_hard_losses() -> None:
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    soft = torch.tensor([[0.7, 0.0, 0.3, 0.0, 0.0]])
    parts = [cross_entropy(logits, torch.tensor([label])) for label in (0, 2)]
    assert float(cross_entropy(logits, soft)) == pytest.approx(float(0.7 * parts[0] + 0.3 * parts[1]))


def test_one_hot_soft_labels_equal_hard_labels() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 4, 2, 2])
    soft = torch.nn.functional.one_hot(labels, 5).float()
    torch.testing.assert_close(cross_entropy(logits, soft), cross_entropy(logits, labels))


def test_cross_entropy_is_float32_from_bfloat16() -> None:
    assert cross_entropy(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named(label: int) -> None:
    with pytest.raises(InputError, match=rf"label {label} is no class.*0 to 2"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, label]))


def test_soft_labels_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 4\).*\(2, 3\)"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("experts", [2, 8])
def test_uniform_routing_has_load_balance_one(experts: int) -> None:
    uniform = torch.full((16, experts), 1 / experts)
    assert float(load_balance(uniform, torch.full((experts,), 1 / experts))) == pytest.approx(1)


def test_collapsed_routing_has_load_balance_e() -> None:
    probabilities = torch.tensor([[1.0, 0, 0, 0]]).expand(10, 4)
    assert float(load_balance(probabilities, torch.tensor([1.0, 0, 0, 0]))) == pytest.approx(4)


def test_load_balance_by_hand_and_its_gradient() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]], requires_grad=True)
    load = torch.tensor([1.0, 0.0])
    loss = load_balance(probabilities, load)
    assert float(loss.detach()) == pytest.approx(2 * 0.625)
    loss.backward()
    # E * load_e / S: pushes down the probability of the expert in use, nothing else.
    torch.testing.assert_close(probabilities.grad, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_router_z_of_equal_logits() -> None:
    assert float(router_z(torch.zeros(5, 8))) == pytest.approx(math.log(8) ** 2)


def test_router_z_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    expected = (math.log(2) ** 2 + (3 + math.log(2)) ** 2) / 2
    assert float(router_z(logits)) == pytest.approx(expected)


# The losses of label maps


def drawn_map(seed: int = 0, num_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits ``[2, K, 5, 6]`` and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_classes, 5, 6, generator=generator)
    labels = torch.randint(0, num_classes, (2, 5, 6), generator=generator)
    labels[0, :2, :3] = IGNORE
    return logits, labels


def sure(labels: torch.Tensor, num_classes: int, margin: float = 60.0) -> torch.Tensor:
    """Logits whose softmax is, to rounding, one at the given labels."""
    return margin * torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1).float()


MAP_LOSSES = [pixel_cross_entropy, dice, focal, lovasz_softmax, boundary_cross_entropy]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_pixel_cross_entropy_pixel_by_pixel(smoothing: float, is_weighted: bool) -> None:
    logits, labels = drawn_map()
    weights = [0.5, 1.0, 2.0, 4.0] if is_weighted else [1.0] * 4
    total = norm = 0.0
    for image, row, column in (labels != IGNORE).nonzero().tolist():
        values = logits[image, :, row, column].tolist()
        log_sum = math.log(sum(math.exp(value) for value in values))
        label = int(labels[image, row, column])
        total += (1 - smoothing) * weights[label] * (log_sum - values[label])
        total += smoothing / 4 * sum(weight * (log_sum - value) for weight, value in zip(weights, values, strict=True))
        norm += weights[label]
    weight = torch.tensor(weights) if is_weighted else None
    mean = pixel_cross_entropy(logits, labels, weight=weight, smoothing=smoothing)
    assert float(mean) == pytest.approx(total / norm, rel=1e-5)
    summed = pixel_cross_entropy(logits, labels, weight=weight, smoothing=smoothing, reduction="sum")
    assert float(summed) == pytest.approx(total, rel=1e-5)


def test_pixel_cross_entropy_of_equal_logits_is_log_k() -> None:
    _, labels = drawn_map()
    known = int((labels != IGNORE).sum())
    assert float(pixel_cross_entropy(torch.zeros(2, 4, 5, 6), labels)) == pytest.approx(math.log(4))
    summed = pixel_cross_entropy(torch.zeros(2, 4, 5, 6), labels, reduction="sum")
    assert float(summed) == pytest.approx(known * math.log(4))


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_a_map_without_a_labelled_pixel_teaches_nothing(loss) -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(logits, torch.full((2, 4, 5), IGNORE))
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_pixels_of_classes_without_weight_teach_nothing() -> None:
    logits, labels = drawn_map()
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    kept = labels.masked_fill(labels == 0, IGNORE)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, weight=weight), pixel_cross_entropy(logits, kept))
    assert float(pixel_cross_entropy(logits, torch.zeros_like(labels), weight=weight)) == 0


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_ignored_pixels_do_not_matter(loss) -> None:
    logits, labels = drawn_map()
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert logits.grad is not None
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].any()
    other = torch.where(ignored, torch.full_like(logits, 9.0), logits).detach()
    torch.testing.assert_close(loss(other, labels), value.detach())


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_map_losses_are_float32_and_fall_down_their_gradient(loss) -> None:
    logits, labels = drawn_map(3)
    assert loss(logits.bfloat16(), labels).dtype == torch.float32
    logits.requires_grad_()
    before = loss(logits, labels)
    before.backward()
    assert logits.grad is not None
    step = 0.02 * logits.grad / logits.grad.norm()
    after = loss(logits.detach() - step, labels)
    # The first order: the loss falls by the length of the step times the length of the gradient.
    fallen = float(before.detach() - after)
    assert fallen == pytest.approx(0.02 * float(logits.grad.norm()), rel=0.1)


@pytest.mark.parametrize("loss", MAP_LOSSES)
@pytest.mark.parametrize("label", [-1, 4])
def test_a_pixel_outside_the_classes_is_named(loss, label: int) -> None:
    logits, labels = drawn_map()
    labels[1, 2, 3] = label
    with pytest.raises(InputError, match=rf"label {label} is no class.*0 to 3, or 255"):
        loss(logits, labels)


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_maps_of_another_size_are_refused(loss) -> None:
    with pytest.raises(InputError, match=r"\(2, 5, 7\).*\(2, 5, 6\)"):
        loss(torch.zeros(2, 4, 5, 6), torch.zeros(2, 5, 7, dtype=torch.int64))


def test_dice_of_the_truth_is_zero_and_of_the_opposite_one() -> None:
    labels = torch.tensor([[[0, 0, 1], [1, 1, 0]]])
    assert float(dice(sure(labels, 2), labels)) == pytest.approx(0, abs=1e-6)
    assert float(dice(sure(1 - labels, 2), labels, smooth=0)) == pytest.approx(1, abs=1e-6)
    # With one pixel of smoothing: 3 true and 3 wrong pixels of each class leave 1 / 7.
    assert float(dice(sure(1 - labels, 2), labels)) == pytest.approx(1 - 1 / 7, abs=1e-6)


def test_dice_by_hand() -> None:
    # Probabilities of class 1: 0.8, 0.6 where it is true, 0.4, 0.2 where it is not.
    scores = torch.tensor([[0.8, 0.6], [0.4, 0.2]])
    logits = torch.stack([torch.zeros(2, 2), torch.logit(scores)])[None]
    labels = torch.tensor([[[1, 1], [0, 0]]])
    ones = (2 * 1.4 + 1) / (2.0 + 2 + 1)
    zeros = (2 * 1.4 + 1) / (2.0 + 2 + 1)
    assert float(dice(logits, labels)) == pytest.approx(1 - (ones + zeros) / 2)
    labels[0, 1, 1] = IGNORE
    ones = (2 * 1.4 + 1) / (1.8 + 2 + 1)
    zeros = (2 * 0.6 + 1) / (1.2 + 1 + 1)
    assert float(dice(logits, labels)) == pytest.approx(1 - (ones + zeros) / 2)


def test_dice_and_lovasz_leave_out_classes_without_a_pixel() -> None:
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    scores = torch.tensor([0.5, 0.25, 0.25])
    logits = scores.log()[None, :, None, None].expand(1, 3, 2, 2)
    assert float(dice(logits, labels)) == pytest.approx(1 - (2 * 2 + 1) / (2 + 4 + 1))
    # One class that is everywhere: the loss is the mean error.
    assert float(lovasz_softmax(logits, labels)) == pytest.approx(0.5)


def test_focal_without_gamma_is_the_cross_entropy() -> None:
    logits, labels = drawn_map()
    torch.testing.assert_close(focal(logits, labels, gamma=0), pixel_cross_entropy(logits, labels))


def test_focal_by_hand() -> None:
    # Two pixels of class 0, given 3/4 and 1/4.
    logits = torch.tensor([[[[math.log(3), -math.log(3)]], [[0.0, 0.0]]]])
    labels = torch.zeros(1, 1, 2, dtype=torch.int64)
    for gamma in (1.0, 2.0):
        expected = (0.25**gamma * -math.log(0.75) + 0.75**gamma * -math.log(0.25)) / 2
        assert float(focal(logits, labels, gamma=gamma)) == pytest.approx(expected)


def test_focal_turns_from_pixels_that_are_right() -> None:
    # How much of the pull of cross-entropy is left, from a pixel that is right to one that is wrong.
    logits = torch.tensor([[[[4.0, 2.0, 0.0, -2.0]], [[0.0] * 4]]])
    labels = torch.zeros(1, 1, 4, dtype=torch.int64)
    pulls = []
    for gamma in (0.0, 2.0):
        leaf = logits.clone().requires_grad_()
        focal(leaf, labels, gamma=gamma).backward()
        assert leaf.grad is not None
        pulls.append(leaf.grad[0, 0, 0].abs())
    left = pulls[1] / pulls[0]
    assert (left.diff() > 0).all()
    assert left[0] < 0.01


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_a_pixel_is_entirely_right(gamma: float) -> None:
    labels = torch.tensor([[[0, 1, IGNORE]]])
    logits = sure(labels % 2, 2, margin=200).requires_grad_()
    focal(logits, labels, gamma=gamma).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_lovasz_of_hard_maps_is_one_minus_the_mean_iou() -> None:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (2, 6, 7), generator=generator)
    predicted = torch.randint(0, 4, (2, 6, 7), generator=generator)
    labels[1, :3] = IGNORE
    known = labels != IGNORE
    ious = []
    for label in range(3):  # class 3 is nowhere in the truth
        true, found = (labels == label) & known, (predicted == label) & known
        ious.append(float((true & found).sum() / (true | found).sum()))
    assert float(lovasz_softmax(sure(predicted, 4), labels)) == pytest.approx(1 - sum(ious) / 3, abs=1e-5)


def test_lovasz_by_hand() -> None:
    # Scores of class 1: 0.9 and 0.2 where it is true, 0.4 where it is not. The errors of both classes, sorted: 0.8 at a
    # pixel of class 1, 0.4 at one of class 0, 0.1 at one of class 1.
    logits = torch.stack([torch.zeros(1, 3), torch.logit(torch.tensor([[0.9, 0.2, 0.4]]))])[None]
    labels = torch.tensor([[[1, 1, 0]]])
    # IoU lost when the first, the first two, all three are wrong: class 1 has two pixels, class 0 one.
    one = 0.8 * (1 / 2) + 0.4 * (2 / 3 - 1 / 2) + 0.1 * (1 - 2 / 3)
    zero = 0.8 * (1 / 2) + 0.4 * (1 - 1 / 2) + 0.1 * 0
    assert float(lovasz_softmax(logits, labels)) == pytest.approx((one + zero) / 2)


def test_lovasz_falls_with_every_pixel_that_gets_better() -> None:
    labels = torch.tensor([[[0, 1, 1, 0, 1]]])
    values = []
    for right in range(6):
        predicted = torch.where(torch.arange(5) < right, labels, 1 - labels)
        values.append(float(lovasz_softmax(sure(predicted, 2), labels)))
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[-1] == pytest.approx(0, abs=1e-6)
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_near_boundary_by_hand() -> None:
    labels = torch.tensor(
        [
            [
                [0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 255],
                [0, 0, 0, 0, 255, 1],
                [0, 0, 0, 2, 2, 2],
            ]
        ]
    )
    one = [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 1],
        [0, 0, 1, 1, 1, 1],
    ]
    two = [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0, 1],
        [0, 1, 1, 1, 1, 1],
    ]
    for width, expected in ((1, one), (2, two)):
        found = near_boundary(labels, width)
        assert found.dtype == torch.bool
        assert found[0].int().tolist() == expected


def test_an_ignored_region_is_no_boundary() -> None:
    labels = torch.zeros(1, 6, 6, dtype=torch.int64)
    labels[0, 2:4, 2:4] = IGNORE
    assert not near_boundary(labels, 2).any()


def test_the_boundary_loss_is_the_cross_entropy_of_the_pixels_near_one() -> None:
    logits = torch.randn(1, 2, 4, 10, generator=torch.Generator().manual_seed(6))
    labels = (torch.arange(10) >= 4).long().expand(1, 4, 10)
    near = boundary_cross_entropy(logits, labels, width=2)
    torch.testing.assert_close(near, pixel_cross_entropy(logits[..., 2:6], labels[..., 2:6]))
    logits[..., :2], logits[..., 6:] = 50, -50
    torch.testing.assert_close(boundary_cross_entropy(logits, labels, width=2), near)
    assert float(boundary_cross_entropy(logits, torch.zeros_like(labels))) == 0


def test_clip_loss_by_hand() -> None:
    """Two pictures whose texts are at right angles: each picks its own with probability 1 / (1 + exp(-scale))."""
    vectors = torch.eye(2)
    expected = math.log(1 + math.exp(-3.0))
    assert float(clip_loss(vectors, vectors, torch.tensor(3.0))) == pytest.approx(expected)
    wrong = clip_loss(vectors, vectors.flip(0), torch.tensor(3.0))
    assert float(wrong) == pytest.approx(3 + expected)
    assert float(clip_loss(torch.ones(4, 2), torch.ones(4, 2), torch.tensor(3.0))) == pytest.approx(math.log(4))


def test_clip_loss_asks_both_ways() -> None:
    """All pictures lie at text 0, so every picture picks it; no text can choose among the pictures."""
    image, text = torch.tensor([[1.0, 0], [1, 0]]), torch.eye(2)
    by_picture = (2 * math.log(1 + math.exp(-5.0)) + 5) / 2
    assert float(clip_loss(image, text, torch.tensor(5.0))) == pytest.approx((by_picture + math.log(2)) / 2)


def test_equal_texts_share_in_the_clip_loss() -> None:
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    # Two pictures of three see two equal columns: log(2 + exp(-s)); the third log(1 + 2 exp(-s)).
    scale = 4.0
    expected = (2 * math.log(2 + math.exp(-scale)) + math.log(1 + 2 * math.exp(-scale))) / 3
    assert float(clip_loss(vectors, vectors, torch.tensor(scale), same)) == pytest.approx(expected)
    plain = clip_loss(vectors, vectors, torch.tensor(scale))
    assert float(clip_loss(vectors, vectors, torch.tensor(scale), torch.eye(3).bool())) == pytest.approx(float(plain))


def test_a_text_that_is_true_of_two_pictures_counts_by_row_and_by_column() -> None:
    """Text 0 is true of both pictures, text 1 of the second alone."""
    image, text = torch.tensor([[1.0, 0], [0, 1]]), torch.eye(2)
    right = torch.tensor([[1, 0], [1, 1]], dtype=torch.bool)
    low, high = math.log(1 + math.exp(-3.0)), math.log(1 + math.exp(3.0))
    by_picture = (low + (low + high) / 2) / 2  # the second picture wants both texts and picks one
    by_text = ((low + high) / 2 + low) / 2  # the first text wants both pictures and picks one
    found = clip_loss(image, text, torch.tensor(3.0), right)
    assert float(found) == pytest.approx((by_picture + by_text) / 2)


def test_siglip_loss_by_hand() -> None:
    vectors, scale, bias = torch.eye(2), torch.tensor(3.0), torch.tensor(-1.0)
    # Per picture one right pair with logit 2 and one wrong pair with logit -1.
    expected = math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(-1.0))
    assert float(siglip_loss(vectors, vectors, scale, bias)) == pytest.approx(expected)
    everything = torch.ones(2, 2, dtype=torch.bool)
    expected = math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(1.0))
    assert float(siglip_loss(vectors, vectors, scale, bias, everything)) == pytest.approx(expected)
