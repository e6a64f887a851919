"""One transformer block, pre-norm or post-norm, and the two things that tame its residual branches.

Pre-norm: Xiong et al. 2020, arXiv 2002.04745; post-norm as in Vaswani et al. 2017, arXiv 1706.03762. Layer scale:
Touvron et al. 2021, arXiv 2103.17239. Drop path (stochastic depth): Huang et al. 2016, arXiv 1603.09382.

B batch · T tokens · C width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.nn.moe import Decision, MixtureOfExperts


class DropPath(nn.Module):
    """Leaves a residual branch out for a random share of pictures in training and scales the rest to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Branch ``[B, ...]`` with whole pictures set to zero."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        mask = torch.empty(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device).bernoulli_(keep)
        return branch * (mask / keep).to(branch.dtype)


class LayerScale(nn.Module):
    """A learned factor per channel, small at the start, so that every block begins near the identity."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        """Branch ``[B, T, C]``, scaled."""
        return branch * self.scale


class Block(nn.Module):
    """Attention and feed-forward layer, each on a residual branch.

    Args:
        attention: maps (tokens, rotation) to tokens.
        mlp: maps tokens to tokens; a MixtureOfExperts also tells what its router decided.
        norms: the two normalisations.
        is_pre_norm: whether they stand before the branches or after the sums.
        layer_scale: initial factor of the branches; 0 leaves layer scale out.
        drop_path: rate.
    """

    def __init__(
        self,
        attention: nn.Module,
        mlp: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        *,
        width: int,
        is_pre_norm: bool = True,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.is_pre_norm = is_pre_norm
        self.norm1, self.norm2 = norms
        self.attention = attention
        self.mlp = mlp
        self.scale1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.scale2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.output = nn.Identity()  # what leaves the block is one tensor here, for explanation to record

    def forward(self, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Decision | None]:
        """Tokens ``[B, T, C]`` to tokens ``[B, T, C]`` and, with experts, the decision of the router."""
        if self.is_pre_norm:
            tokens = tokens + self.drop_path(self.scale1(self.attention(self.norm1(tokens), rotation)))
            branch, decision = self._feed_forward(self.norm2(tokens))
            tokens = tokens + self.drop_path(self.scale2(branch))
        else:
            tokens = self.norm1(tokens + self.drop_path(self.scale1(self.attention(tokens, rotation))))
            branch, decision = self._feed_forward(tokens)
            tokens = self.norm2(tokens + self.drop_path(self.scale2(branch)))
        return self.output(tokens), decision

    def values(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T, C]`` behind this block if none looked at another, as MaskCLIP reads the last block.

        Zhou et al. 2021, arXiv 2112.01071, section 3.2.
        """
        if self.is_pre_norm:
            tokens = tokens + self.scale1(self.attention.values(self.norm1(tokens)))  # type: ignore[operator]
            return tokens + self.scale2(self._feed_forward(self.norm2(tokens))[0])  # type: ignore[no-any-return]
        tokens = self.norm1(tokens + self.scale1(self.attention.values(tokens)))  # type: ignore[operator]
        return self.norm2(tokens + self.scale2(self._feed_forward(tokens)[0]))  # type: ignore[no-any-return]

    def _feed_forward(self, tokens: Tensor) -> tuple[Tensor, Decision | None]:
        if isinstance(self.mlp, MixtureOfExperts):
            return self.mlp(tokens)  # type: ignore[no-any-return]
        return self.mlp(tokens), None
