"""Heat maps laid over pictures, as arrays.

Colour maps are perceptually uniform and safe for colour-blind eyes: viridis for evidence (Smith and van der Walt 2015),
and orange against blue for signed evidence. A failed map is crossed out.

h, w picture
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from saccade.errors import InputError

MIN_SIDE = 224
"""Pictures smaller than this are enlarged without smoothing before anything is drawn on them."""

BRIGHT = 0.1
"""Share of the evidence that may lie beyond what is drawn at full strength."""


def overlay(
    image: Tensor,
    heat: Tensor,
    signed: bool = False,
    *,
    scale: float | None = None,
    alpha: float = 0.8,
    is_failed: bool = False,
) -> Tensor:
    """A heat map laid over a picture, ``[3, h, w]`` uint8; where the map is zero the picture is unchanged.

    Args:
        image: ``[3, h, w]`` uint8.
        heat: ``[h, w]``; negative values are drawn only where ``signed``.
        signed: draw evidence against the score (blue) as well as for it (orange).
        scale: value drawn at full strength; None: ``full_strength`` of the map. Equal scales make pictures comparable.
        alpha: opacity at full strength.
        is_failed: cross the picture out, because its verdict is "failed".

    Raises:
        InputError: where the sizes differ or a value is not finite.
    """
    check_image(image)
    if heat.shape != image.shape[1:]:
        got = f"the map is {tuple(heat.shape)}, the picture {tuple(image.shape[1:])}"
        raise InputError(got, expected="one size", remedy="bring the map into the pixels of the picture first")
    values = heat.detach().float().cpu()
    if not bool(torch.isfinite(values).all()):
        raise InputError("the map holds numbers that are not finite", where="heat")
    if not signed:
        values = values.clamp(min=0)
    scale = full_strength(values) if scale is None else scale
    values = values / scale if scale > 0 else torch.zeros_like(values)
    values = values.clamp(-1, 1)
    # Opacity rises faster than the value at first, so that weak evidence can be seen, and is exactly 0 at 0.
    opacity = alpha * values.abs().pow(0.75)
    colours = _colours(values, signed)
    base = image.cpu().float()
    drawn = (base + opacity * (colours - base)).round().clamp(0, 255).to(torch.uint8)
    return crossed_out(drawn) if is_failed else drawn


def full_strength(values: Tensor) -> float:
    """The value from which on evidence is drawn at full strength: a tenth of all evidence lies in larger ones.

    Were it the largest, a few pixels would leave the others dark, as maps of first layers have them.
    """
    sizes = values.detach().float().abs().flatten().sort().values
    known = sizes.double().cumsum(0)
    if not len(sizes) or float(known[-1]) <= 0:
        return 0.0
    return float(sizes[torch.searchsorted(known, (1 - BRIGHT) * known[-1:]).clamp(max=len(sizes) - 1)])


def crossed_out(image: Tensor) -> Tensor:
    """The picture faded and hatched: nobody should read a failed map as if it were fine. ``[3, h, w]`` uint8."""
    check_image(image)
    height, width = image.shape[1:]
    grey = image.cpu().float().mean(0, keepdim=True)
    faded = 0.45 * image.cpu().float() + 0.25 * grey + 0.3 * 255
    unit = max(min(height, width) / 12, 3.0)
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None, :] + 0.5
    distance = ((rows + columns) % (2 * unit) - unit).abs()
    line = (distance < max(unit * 0.14, 0.6)).float()
    return (faded * (1 - 0.6 * line) + 60 * 0.6 * line).round().clamp(0, 255).to(torch.uint8)


def enlarged(image: Tensor, min_side: int = MIN_SIDE) -> Tensor:
    """The picture (or map) repeated pixel by pixel to a shorter side of about ``min_side``; large ones as they are."""
    factor = max(round(min_side / min(image.shape[-2:])), 1)
    return image.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


@cache
def colour_table(signed: bool) -> Tensor:
    """Colours ``[256, 3]`` of 0..1; signed: two halves, from strong against to strong for."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    steps = torch.linspace(0, 1, 256).numpy()
    if signed:
        colours = ["#003C86", "#2F7FD0", "#F2F2F2", "#F08A1D", "#A33B00"]
        table = LinearSegmentedColormap.from_list("against_for", colours)(steps)
    else:
        table = colormaps["viridis"](steps)
    return torch.tensor(table[:, :3] * 255, dtype=torch.float32)


def _colours(values: Tensor, signed: bool) -> Tensor:
    """Colours ``[3, h, w]`` of values in [-1, 1] (signed) or [0, 1]."""
    place = (values + 1) / 2 if signed else values
    return colour_table(signed)[(place * 255).round().long()].permute(2, 0, 1)


def check_image(image: Tensor) -> None:
    """Refuse what is no picture ``[3, h, w]`` uint8.

    Raises:
        InputError: telling what it is.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise InputError(f"the picture is {tuple(image.shape)} {image.dtype}", expected="[3, h, w] uint8 RGB")
