"""A balanced handful of boxes to learn from, because nearly all of them are background.

Ren et al. 2015, arXiv 1506.01497, section 3.1.3.

R boxes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.matching.assign import BACKGROUND


@dataclass(frozen=True, kw_only=True)
class BalancedSampler(Config):
    """At most so many boxes of one picture, at most so large a share of them positive; the rest is background."""

    size: int = 256
    """Most boxes of one picture."""
    positive_share: float = 0.5
    """Largest share of ``size`` that is positive; where there are fewer, background takes their place."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.positive_share <= 1:
            raise ConfigError(
                f"size {self.size} or positive_share {self.positive_share} is out of range",
                where="sampler",
                expected="size of at least 1, positive_share in (0, 1]",
            )

    def __call__(self, matched: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from what ``IoUAssigner`` matched ``[R]``: indices of positive and of negative boxes.

        The draw is torch's global one. Of a set that is small enough everything is taken, in its order, so to draw
        again from what was drawn changes nothing.
        """
        positive = torch.nonzero(matched >= 0)[:, 0]
        negative = torch.nonzero(matched == BACKGROUND)[:, 0]
        positive = _some(positive, max(int(self.size * self.positive_share), 1))
        return positive, _some(negative, self.size - len(positive))


def _some(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    # Drawn on the CPU: there the seed of a step is set, and the choice does not depend on the device.
    order = torch.randperm(len(indices))[:count]
    return indices[order.to(indices.device)]
