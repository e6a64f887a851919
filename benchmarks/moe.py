"""A mixture of 8 experts, one active, against the dense layer of the same active width: what does the routing cost?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from measure import Row, compare, parser, report
from saccade.nn.mlp import MLP
from saccade.nn.moe import MixtureOfExperts, MoEConfig

WIDTHS = {"ViT-S": 384, "ViT-B": 768}
TOKENS = 197
EXPERTS = 8


def forward_of(layer: nn.Module, tokens: Tensor) -> Callable[[], object]:
    """The forward pass without a graph."""

    def run() -> object:
        with torch.no_grad():
            return layer(tokens)

    return run


def step_of(layer: nn.Module, tokens: Tensor) -> Callable[[], object]:
    """Forward and backward."""
    tokens = tokens.clone().requires_grad_()

    def run() -> None:
        layer.zero_grad()
        tokens.grad = None
        result = layer(tokens)
        (result[0] if isinstance(result, tuple) else result).sum().backward()

    return run


def measure(name: str, repeats: int, batch: int) -> list[Row]:
    """The two rows of one width, with the routing that random tokens get from a fresh router."""
    width = WIDTHS[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = MoEConfig(num_experts=EXPERTS, every=1)
    experts = MixtureOfExperts(config, width, "mlp", 4.0, "gelu", 0.0).to(device)
    nn.init.trunc_normal_(experts.router.weight, std=0.02)
    dense = MLP(width, 4 * width).to(device)
    tokens = torch.randn(batch, TOKENS, width, device=device)
    counts = torch.bincount(experts.eval()(tokens)[1].experts.flatten(), minlength=EXPERTS)
    rows = []
    for what in ("forward", "forward and backward"):
        make = forward_of if what == "forward" else step_of
        experts.train(what != "forward"), dense.train(what != "forward")
        times = compare({"experts": make(experts, tokens), "dense": make(dense, tokens)}, repeats, warmup=3)
        rows.append(
            {
                "layer": f"{name} {EXPERTS} experts top-1",
                "what": what,
                "tokens": batch * TOKENS,
                "experts_s": times["experts"],
                "dense_s": times["dense"],
                "ratio": times["ratio"],
                "fullest_share": float(counts.max() / counts.sum()),
            }
        )
    return rows


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    options.add_argument("--batch", type=int, default=32)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = [row for name in WIDTHS for row in measure(name, given.repeats, given.batch)]
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
