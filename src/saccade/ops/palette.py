"""Colours of classes: the same for the same place everywhere, apart for colour-blind eyes.

K classes
"""

from __future__ import annotations

import torch
from torch import Tensor

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
"""Eight colours that stay apart under every common colour blindness (Okabe and Ito 2008; grey for their black)."""


def class_colours(count: int) -> Tensor:
    """A colour for each of ``count`` classes, ``[K, 3]`` uint8: the eight, then lighter versions of them."""
    table = torch.tensor([[int(code[place : place + 2], 16) for place in (1, 3, 5)] for code in OKABE_ITO])
    turns, places = torch.arange(count) // len(OKABE_ITO), torch.arange(count) % len(OKABE_ITO)
    weights = (0.55**turns)[:, None]
    return (255 + weights * (table[places] - 255)).round().to(torch.uint8)


def categorical(index: int) -> str:
    """The colour of the class at ``index`` as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*class_colours(index + 1)[index].tolist())
