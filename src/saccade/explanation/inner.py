"""Attention inside modules that show nothing of it: the functions of torch are watched while the module runs.

B images · Q queries · N keys · C channels · d channels of a head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saccade.types import AttentionSite


@dataclass(frozen=True)
class InnerAttention(AttentionSite):
    """A module that computes attention inside itself, fused or by hand, with no module between softmax and values.

    While it runs, ``F.scaled_dot_product_attention``, ``F.multi_head_attention_forward`` and softmaxes over ``[B,
    heads, Q, N]`` are watched; the fused ones are computed step by step instead, which gives the same numbers.
    """


_PACKED = (
    *("embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "add_zero_attn"),
    *("dropout_p", "out_proj_weight", "out_proj_bias"),
)
"""Positional parameters of ``F.multi_head_attention_forward`` after query, key and value."""


class AttentionWatch(TorchFunctionMode):
    """Sees the attention functions of torch while an ``InnerAttention`` module runs."""

    def __init__(self, take: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self._take = take
        self._paths: list[str] = []

    def entering(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A hook that opens the watch on one module."""

        def enter(_: nn.Module, __: tuple[Any, ...]) -> None:
            self._paths.append(path)

        return enter

    def leaving(self) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """A hook that closes it."""

        def leave(_: nn.Module, __: tuple[Any, ...], ___: Any) -> None:
            self._paths.pop()

        return leave

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._paths:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attend_packed(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in (F.softmax, torch.softmax, Tensor.softmax) and result.ndim == 4:
            return self._take(self._paths[-1], result)
        return result

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention step by step; dropout is off in evaluation mode."""
        del dropout_p
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            logits = logits + attn_mask
        return self._take(self._paths[-1], logits.softmax(dim=-1)) @ value

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``nn.MultiheadAttention``, step by step where one matrix projects queries, keys and values.

        With masks, or with keys and values that are added to those given, it keeps to its own road and goes unrecorded.
        """
        given = dict(zip(_PACKED, args, strict=False)) | kwargs
        extras = ("bias_k", "bias_v", "key_padding_mask", "attn_mask", "static_k", "static_v")
        is_special = given.get("add_zero_attn") or any(given.get(extra) is not None for extra in extras)
        if given.get("in_proj_weight") is None or query.ndim != 3 or is_special:
            return F.multi_head_attention_forward(query, key, value, *args, **kwargs)
        weights = given["in_proj_weight"].chunk(3)
        biases = (None, None, None) if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
        heads = given["num_heads"]

        # [N, B, C] -> [B, heads, N, d]
        def project(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.linear(tokens, weight, bias).view(*tokens.shape[:2], heads, -1).permute(1, 2, 0, 3)

        queries, keys, values = map(project, (query, key, value), weights, biases)
        probabilities = self._take(self._paths[-1], (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(dim=-1))
        attended = (probabilities @ values).permute(2, 0, 1, 3).flatten(2)  # [Q, B, C]
        projected = F.linear(attended, given["out_proj_weight"], given["out_proj_bias"])
        if not given.get("need_weights", True):
            return projected, None
        return projected, probabilities.mean(1) if given.get("average_attn_weights", True) else probabilities
