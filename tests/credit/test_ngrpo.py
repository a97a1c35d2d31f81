"""NGRPO: the virtual perfect episode, by hand."""

from __future__ import annotations

import pytest
import torch
from groups import batch_of, reordered
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit import CreditEstimator
from threefold.credit.grpo import GRPO
from threefold.credit.ngrpo import NGRPO, advantages_with_virtual_best

nan = float("nan")


def test_an_all_wrong_group_by_hand() -> None:
    """{0, 0, 0} and 1: mean 1/4, unbiased variance (3/16 + 9/16) / 3 = 1/4: -0.25 / 0.5 = -0.5 each."""
    values_B = advantages_with_virtual_best(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    assert values_B.tolist() == pytest.approx([-0.5] * 3, abs=1e-5)


def test_a_mixed_and_an_all_right_group_by_hand() -> None:
    """{1, 0} and 1: mean 2/3, variance (1/9 + 4/9 + 1/9) / 2 = 1/3: 0.577 and -1.155. All right: 0."""
    result = NGRPO().assign(batch_of([1, 0, 1, 1], group_size=2))
    assert result.values.tolist() == pytest.approx([3**0.5 / 3, -2 * 3**0.5 / 3, 0, 0], abs=1e-5)
    assert result.outcome_B.tolist() == pytest.approx([0.70701, -0.70701, 0, 0], abs=1e-4)


@given(st.integers(2, 12))
def test_an_all_wrong_group_of_any_size(size: int) -> None:
    """mean 1/(G+1), variance (G/(G+1)^2 + (G/(G+1))^2) / G = 1/(G+1): the value is -1/sqrt(G+1)."""
    values_B = NGRPO().assign(batch_of([0.0] * size)).values
    assert values_B.tolist() == pytest.approx([-((size + 1) ** -0.5)] * size, rel=1e-3)


@given(st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=8, max_size=8), st.permutations(range(8)))
def test_bounded_by_grpo_and_permutation_equivariant(outcome: list[float], order: list[int]) -> None:
    """Never above GRPO's rank: right episodes >= 0, wrong ones < 0 whoever is beside them, NaN 0."""
    batch = batch_of(outcome, group_size=4)
    values_B, outcome_B = NGRPO().assign(batch).values, batch.rewards["accuracy"]
    assert (values_B[outcome_B == 1] >= 0).all()
    assert (values_B[outcome_B == 0] < 0).all()
    assert (values_B[outcome_B.isnan()] == 0).all()
    assert torch.allclose(values_B[order], NGRPO().assign(reordered(batch, order)).values, atol=1e-6)


@pytest.mark.parametrize("best", [0.1, 1.1, 0.7, 3.3])
def test_rounding_dust_of_an_all_right_group_is_not_blown_up(best: float) -> None:
    rewards_B, group_B = torch.full((8,), best), torch.zeros(8, dtype=torch.int64)
    assert advantages_with_virtual_best(rewards_B, group_B, max_reward=best).tolist() == [0] * 8


def test_groups_need_not_lie_side_by_side() -> None:
    rewards_B, group_B = torch.tensor([0.0, 1, 0, 0]), torch.tensor([7, 3, 7, 3])
    values_B = advantages_with_virtual_best(rewards_B, group_B)
    assert values_B.tolist() == pytest.approx([-(3**-0.5), 3**0.5 / 3, -(3**-0.5), -2 * 3**0.5 / 3], abs=1e-5)


def test_a_virtual_episode_at_the_mean_is_grpo_with_a_smaller_deviation() -> None:
    """At r_max = mean the mean stays, and the deviation shrinks by sqrt((G - 1) / G)."""
    rewards_B, group_B = torch.tensor([0.0, 0.2, 0.4, 0.6]), torch.zeros(4, dtype=torch.int64)
    values_B = advantages_with_virtual_best(rewards_B, group_B, max_reward=0.3, eps=1e-9)
    grpo_B = GRPO(eps=1e-9).assign(batch_of(rewards_B.tolist())).values
    assert torch.allclose(values_B, grpo_B * (4 / 3) ** 0.5)


def test_bad_input_is_named() -> None:
    assert isinstance(NGRPO(), CreditEstimator)
    assert NGRPO().needs == frozenset()
    with pytest.raises(ValueError, match=r"eps is 0\.0"):
        NGRPO(eps=0.0)
    with pytest.raises(ValueError, match="max_reward is inf"):
        NGRPO(max_reward=float("inf"))
    with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
        NGRPO().check(["accuracy"], 1)
    with pytest.raises(
        ValueError, match=r"episode 1 of the batch has reward 1\.1, more than NGRPO's max_reward 1"
    ):
        NGRPO().assign(batch_of([0, 1], extra={"format": ([0.0, 1.0], 0.1)}))
