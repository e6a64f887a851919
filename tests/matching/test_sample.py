from __future__ import annotations

import pytest
import torch

from saccade.errors import ConfigError
from saccade.matching.assign import BACKGROUND, IGNORED
from saccade.matching.sample import BalancedSampler


def matched(positive: int, background: int, ignored: int = 3) -> torch.Tensor:
    parts = [torch.arange(positive), torch.full((background,), BACKGROUND), torch.full((ignored,), IGNORED)]
    return torch.cat(parts)[torch.randperm(positive + background + ignored)]


@pytest.mark.parametrize(
    ("positive", "background", "expected"),
    [(50, 100, (4, 12)), (2, 100, (2, 14)), (50, 5, (4, 5)), (0, 3, (0, 3)), (0, 0, (0, 0))],
)
def test_background_takes_the_place_of_missing_objects(
    positive: int, background: int, expected: tuple[int, int]
) -> None:
    given = matched(positive, background)
    chosen, rest = BalancedSampler(size=16, positive_share=0.25)(given)
    assert (len(chosen), len(rest)) == expected
    assert bool((given[chosen] >= 0).all())
    assert bool((given[rest] == BACKGROUND).all())
    assert len(set(chosen.tolist())) == len(chosen)
    assert len(set(rest.tolist())) == len(rest)


def test_the_draw_is_the_global_one_and_reaches_everything() -> None:
    given = matched(40, 40)
    sampler = BalancedSampler(size=8, positive_share=0.5)
    torch.manual_seed(1)
    first = sampler(given)
    torch.manual_seed(1)
    again = sampler(given)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    reached = {int(index) for _ in range(200) for part in sampler(given) for index in part}
    assert len(reached) == 80


def test_to_draw_again_changes_nothing() -> None:
    given = matched(100, 100)
    sampler = BalancedSampler(size=16, positive_share=0.25)
    kept = given[torch.cat(sampler(given))]
    positive, negative = sampler(kept)
    assert positive.tolist() == list(range(4))
    assert negative.tolist() == list(range(4, 16))


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="size of at least 1"):
        BalancedSampler(size=0)
