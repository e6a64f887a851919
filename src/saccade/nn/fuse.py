"""Batch norms folded into the convolutions before them: in inference the same function in fewer passes over maps.

Ioffe and Szegedy 2015, arXiv 1502.03167, section 3.1: in evaluation the norm is linear, and so is the convolution.
"""

from __future__ import annotations

import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_batch_norms(model: nn.Module) -> int:
    """Fold every batch norm that directly follows a convolution into it, in place; returns how many.

    Two modules count as neighbours when they are declared one after the other with fitting widths. That is a
    convention, not a proof, which is why the caller compares outputs afterwards.
    """
    count = 0
    children = list(model.named_children())
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if conv.out_channels != norm.num_features or norm.running_mean is None:
            continue
        setattr(model, conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's BatchNormAct2d carries the activation that follows it.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        setattr(model, norm_name, nn.Sequential(*rest) if rest else nn.Identity())
        count += 1
    return count + sum(fuse_batch_norms(child) for child in model.children())
