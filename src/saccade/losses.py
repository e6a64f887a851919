"""Losses as pure functions: tensors in, one scalar out.

Cross-entropy with soft labels as in Szegedy et al. 2015, arXiv 1512.00567. Load balance: Fedus et al. 2021, arXiv
2101.03961, equation 4. Router z: Zoph et al. 2022, arXiv 2202.08906, equation 5. Smooth L1: Girshick 2015, arXiv
1504.08083, equation 3. Pictures and texts: Radford et al. 2021 (CLIP), arXiv 2103.00020, figure 3; Zhai et al. 2023
(SigLIP), arXiv 2303.15343, equation 1.

B batch · K classes · S tokens · E experts · D width of a shared space
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError
from saccade.types import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy ``[]`` of logits ``[B, K]``, in float32.

    Args:
        logits: ``[B, K]``.
        labels: ``[B]`` int64, or ``[B, K]`` probabilities.

    Raises:
        InputError: where a label is no class of the model. Checked on the CPU only; an accelerator would have to wait.
    """
    if labels.ndim == 1 and labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise InputError(
                f"label {low if low < 0 else high} is no class of this model",
                expected=f"0 to {logits.shape[1] - 1}",
                remedy="create the model with the classes of the data set",
            )
    if labels.ndim == 2 and labels.shape != logits.shape:
        raise InputError(f"soft labels have shape {tuple(labels.shape)}", expected=f"{tuple(logits.shape)}")
    return F.cross_entropy(logits.float(), labels.float() if labels.ndim == 2 else labels)


def load_balance(probabilities: Tensor, load: Tensor) -> Tensor:
    """Load-balance loss ``[]`` of one router: E times the dot product of use and probability; 1 where both are uniform.

    Args:
        probabilities: ``[S, E]`` softmax of the router.
        load: ``[E]`` share of assignments each expert was given; sums to 1.
    """
    return load.shape[0] * (load * probabilities.mean(dim=0)).sum()


def router_z(logits: Tensor) -> Tensor:
    """Router-z loss ``[]``: the mean square of the log-partition of logits ``[S, E]``, which keeps them small."""
    return logits.logsumexp(dim=-1).square().mean()


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy ``[]`` over all labelled pixels, in float32; 0 where no pixel is labelled or has a weight.

    Args:
        logits: ``[B, K, H, W]``.
        labels: ``[B, H, W]`` int64, ``IGNORE`` where nobody said.
        weight: ``[K]`` of each class; the mean is then the weighted mean, so that it stays of the same size.
        reduction: the mean over the labelled pixels, or their sum.
        smoothing: share of each label that is spread over all classes.

    Raises:
        InputError: where a label is no class of the model. Checked on the CPU only; an accelerator would have to wait.
    """
    _check_map(logits, labels)
    counts = labels != IGNORE
    if weight is not None:
        counts &= weight[labels.masked_fill(~counts, 0)] > 0
    if reduction == "mean" and not bool(counts.any()):
        # The mean over nothing is not a number; a crop without a pixel that counts has nothing to teach.
        return logits.float().sum() * 0.0
    return F.cross_entropy(
        logits.float(), labels, weight, ignore_index=IGNORE, reduction=reduction, label_smoothing=smoothing
    )


def dice(logits: Tensor, labels: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss ``[]``: 1 minus the mean Dice coefficient of the classes that the labels hold.

    Milletari et al. 2016, arXiv 1606.04797, with sums of probabilities in the denominator, over the whole batch.

    Args:
        logits: ``[B, K, H, W]``.
        labels: ``[B, H, W]`` int64.
        smooth: added to numerator and denominator, in pixels; keeps tiny classes from ruling.
    """
    scores, truth, is_there = _class_planes(logits, labels)
    both = (scores * truth).sum(dim=(0, 2))
    total = (scores + truth).sum(dim=(0, 2))
    coefficients = (2 * both + smooth) / (total + smooth)
    return 1 - coefficients[is_there].mean() if bool(is_there.any()) else scores.sum() * 0.0


def focal(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Mean softmax focal loss ``[]`` over the labelled pixels; the cross-entropy where ``gamma`` is 0.

    Lin et al. 2017, arXiv 1708.02002, with a softmax in the place of the sigmoid.

    Args:
        logits: ``[B, K, H, W]``.
        labels: ``[B, H, W]`` int64.
        gamma: how strongly pixels that are right already lose their say.
    """
    _check_map(logits, labels)
    pixels = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")  # 0 where ignored
    # Not quite 0 where a pixel is entirely right or ignored: for gamma below 1 the power has no derivative there.
    wrong = (-torch.expm1(-pixels)).clamp_min(1e-12)
    return (wrong**gamma * pixels).sum() / (labels != IGNORE).sum().clamp_min(1)


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovász-softmax loss ``[]``: the convex extension of 1 - IoU, the mean over the classes that the labels hold.

    Berman et al. 2018, arXiv 1705.08790, algorithm 1 and equation 9, over the pixels of the whole batch.

    Args:
        logits: ``[B, K, H, W]``.
        labels: ``[B, H, W]`` int64.
    """
    scores, truth, is_there = _class_planes(logits, labels)
    if not bool(is_there.any()):
        return scores.sum() * 0.0
    known = (labels != IGNORE).flatten()
    scores, truth = (planes.transpose(0, 1).flatten(1)[is_there][:, known] for planes in (scores, truth))  # [C, N]
    errors, order = (truth - scores).abs().sort(dim=1, descending=True)
    hits = truth.gather(1, order)
    total = hits.sum(1, keepdim=True)
    # The IoU that is left when the first pixels of the order are wrong; its growth weights their errors.
    jaccard = 1 - (total - hits.cumsum(1)) / (total + (1 - hits).cumsum(1))
    growth = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return (errors * growth).sum(1).mean()


def boundary_cross_entropy(logits: Tensor, labels: Tensor, *, width: int = 2) -> Tensor:
    """Mean cross-entropy ``[]`` over the labelled pixels within ``width`` pixels of another class; 0 without any.

    Args:
        logits: ``[B, K, H, W]``.
        labels: ``[B, H, W]`` int64.
        width: reach of a boundary on either side, in pixels.
    """
    _check_map(logits, labels)
    near = near_boundary(labels, width)
    pixels = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    return (pixels * near).sum() / near.sum().clamp_min(1)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, right: Tensor | None = None) -> Tensor:
    """Contrastive loss ``[]``: each picture has to find its text among all of the batch, and each text its picture.

    The mean of both cross-entropies, in float32.

    Args:
        image: ``[B, D]`` vectors of length 1.
        text: ``[B, D]`` vectors of length 1; row i belongs to picture i.
        scale: ``[]``, what cosines are multiplied with.
        right: ``[B, B]`` bool, which texts (columns) are true of which pictures (rows); the right ones share the
            probability equally. Each picture has its own text alone where it is None.
    """
    logits = scale.float() * image.float() @ text.float().T
    if right is None:
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    texts, pictures = (F.normalize(pairs.float(), p=1, dim=1) for pairs in (right, right.T))
    return (F.cross_entropy(logits, texts) + F.cross_entropy(logits.T, pictures)) / 2


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, right: Tensor | None = None) -> Tensor:
    """Pairwise sigmoid loss ``[]``: every pair of picture and text is a question of yes or no, in float32.

    The sum over all pairs, divided by the number of pictures.

    Args:
        image: ``[B, D]`` vectors of length 1.
        text: ``[B, D]`` vectors of length 1; row i belongs to picture i.
        scale: ``[]``, what cosines are multiplied with.
        bias: ``[]``, added after that; below zero, for most pairs do not belong together.
        right: ``[B, B]`` bool, which texts (columns) are true of which pictures (rows): all of these pairs belong
            together. Each picture has its own text alone where it is None.
    """
    logits = scale.float() * image.float() @ text.float().T + bias.float()
    right = torch.eye(len(logits), dtype=torch.bool, device=logits.device) if right is None else right
    signs = right.float() * 2 - 1
    return -F.logsigmoid(signs * logits).sum() / max(len(logits), 1)


def smooth_l1(given: Tensor, wanted: Tensor, *, beta: float = 1.0) -> Tensor:
    """Smooth L1 loss ``[]``, the sum over all numbers, in float32; 0 (with a gradient of 0) where there are none.

    Args:
        given: ``[...]``.
        wanted: ``[...]``, the same shape.
        beta: distance below which the loss is quadratic, and above which it is linear.
    """
    return F.smooth_l1_loss(given.float(), wanted.float(), reduction="sum", beta=beta)


def near_boundary(labels: Tensor, width: int) -> Tensor:
    """Which labelled pixels have another class within ``width`` pixels, ``[B, H, W]`` bool; ``IGNORE`` is no class.

    Args:
        labels: ``[B, H, W]`` int64.
        width: half the side of the square that is looked at, in pixels.
    """
    known = labels != IGNORE
    values = labels.float()[:, None]
    side = 2 * width + 1
    largest = F.max_pool2d(values.masked_fill(~known[:, None], -1.0), side, 1, width)
    smallest = -F.max_pool2d((-values).masked_fill(~known[:, None], -1e6), side, 1, width)
    return ((largest != smallest)[:, 0]) & known


def _class_planes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and truth ``[B, K, H * W]``, zero where nobody labelled; and which classes are there ``[K]``."""
    _check_map(logits, labels)
    known = (labels != IGNORE)[:, None]
    truth = F.one_hot(labels.masked_fill(labels == IGNORE, 0), logits.shape[1]).movedim(-1, 1) * known
    scores = logits.float().softmax(dim=1) * known
    return scores.flatten(2), truth.flatten(2).float(), truth.any(dim=0).flatten(1).any(dim=1)


def _check_map(logits: Tensor, labels: Tensor) -> None:
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != expected:
        raise InputError(f"the label maps have shape {tuple(labels.shape)}", expected=str(expected))
    if labels.device.type != "cpu" or not labels.numel():
        return
    known = labels[labels != IGNORE]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < logits.shape[1]:
        found = int(known.max()) if int(known.min()) >= 0 else int(known.min())
        raise InputError(
            f"label {found} is no class of this model",
            expected=f"0 to {logits.shape[1] - 1}, or {IGNORE} for pixels to ignore",
            remedy="create the model with the classes of the data set",
        )
