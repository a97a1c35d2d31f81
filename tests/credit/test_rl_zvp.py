"""RL-ZVP: Eq. 5 by hand where all rewards of a group are equal, and GRPO, bit for bit, where they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from groups import batch_of, reordered
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit import CreditEstimator, Signals
from threefold.credit.grpo import GRPO
from threefold.credit.rl_zvp import RLZVP, entropy_guided

nan = float("nan")


def test_equation_5_by_hand() -> None:
    """Right: 0.1 H. Wrong: -0.1 (max H - H), the maximum of the two unmasked tokens being 2."""
    entropy_BT = torch.tensor([[0.5, 2.0, 9.0], [0.5, 2.0, 9.0]])
    mask_BT = torch.tensor([[True, True, False]]).repeat(2, 1)
    values_BT = entropy_guided(entropy_BT, mask_BT, torch.tensor([True, False]), alpha=0.1)
    assert torch.allclose(values_BT, torch.tensor([[0.05, 0.2, 0.0], [-0.15, 0.0, 0.0]]))


def test_a_dead_group_of_each_kind_and_a_mixed_one() -> None:
    entropy_BT = torch.tensor([[1.0, 3.0]]).repeat(6, 1)
    result = RLZVP("accuracy", alpha=0.2).assign(
        batch_of([1, 1, 0, 0, 1, 0], group_size=2, entropy_BT=entropy_BT)
    )
    half = 0.5 / (0.5**0.5 + 1e-4)  # the z-score of 1 in {1, 0}
    expected = [[0.2, 0.6]] * 2 + [[-0.4, 0.0]] * 2 + [[half, half], [-half, -half]]
    assert torch.allclose(result.values, torch.tensor(expected))
    assert result.outcome_B.tolist() == pytest.approx([0, 0, 0, 0, half, -half])
    assert result.metrics["rl_zvp/zero_variance"] == pytest.approx(4 / 6)


@given(st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=8, max_size=8), st.integers(0, 2**31))
def test_groups_whose_rewards_differ_are_grpo_bit_for_bit(outcome: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outcome[0], outcome[1], outcome[4], outcome[5] = 1.0, 0.0, 0.0, 1.0
    batch = batch_of(
        outcome,
        group_size=4,
        lengths=[3, 5, 0, 1, 5, 2, 4, 5],
        entropy_BT=torch.rand(8, 5, generator=generator),
    )
    result, expected = RLZVP("accuracy").assign(batch), GRPO().assign(batch)
    assert torch.equal(result.values, expected.values[:, None] * batch.mask_BT)
    assert torch.equal(result.outcome_B, expected.values)


@given(st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=8, max_size=8), st.integers(0, 2**31))
def test_masked_tokens_get_nothing_and_signs_follow_the_outcome(outcome: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    entropy_BT = torch.rand(8, 5, generator=generator)
    batch = batch_of(outcome, group_size=4, lengths=[0, 1, 2, 3, 4, 5, 5, 2], entropy_BT=entropy_BT)
    values_BT = RLZVP("accuracy").assign(batch).values
    outcome_B = batch.rewards["accuracy"]
    assert (values_BT[~batch.mask_BT] == 0).all()
    assert (values_BT[outcome_B == 1] >= 0).all()
    assert (values_BT[outcome_B == 0] <= 0).all()
    assert (values_BT[outcome_B.isnan()] == 0).all()


@given(st.permutations(range(8)), st.integers(0, 2**31))
def test_goes_along_with_any_permutation_of_the_batch(order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outcome = (torch.rand(8, generator=generator) < 0.5).float().tolist()
    batch = batch_of(outcome, group_size=4, entropy_BT=torch.rand(8, 5, generator=generator))
    straight = RLZVP("accuracy").assign(batch).values[order]
    assert torch.allclose(straight, RLZVP("accuracy").assign(reordered(batch, order)).values, atol=1e-5)


def test_with_a_format_reward_right_is_still_what_the_outcome_says() -> None:
    """Both wrong, both in format: the group's reward is 0.1, above 0, and still it is pushed down."""
    batch = batch_of([0, 0], extra={"format": ([0.1, 0.1], 1.0)}, entropy_BT=torch.tensor([[1.0, 2.0]] * 2))
    assert (RLZVP("accuracy").assign(batch).values <= 0).all()


def test_an_entropy_that_is_not_finite_gives_nothing_and_is_counted() -> None:
    entropy_BT = torch.tensor([[1.0, nan], [1.0, 2.0]])
    result = RLZVP("accuracy").assign(batch_of([1, 1], entropy_BT=entropy_BT))
    assert torch.allclose(result.values, torch.tensor([[0.0, 0.0], [0.1, 0.2]]))
    assert result.metrics["rl_zvp/non_finite_signals"] == 1


def test_is_a_credit_estimator_that_says_it_answers_per_token() -> None:
    estimator = RLZVP("accuracy")
    assert isinstance(estimator, CreditEstimator)
    assert estimator.needs == {"policy"}
    assert estimator.per_token


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"alpha is -1\.0, it must be a finite number at least 0"):
        RLZVP("accuracy", alpha=-1.0)
    with pytest.raises(ValueError, match="RL-ZVP's outcome is 'acuracy', did you mean 'accuracy'"):
        RLZVP("acuracy").check(["accuracy"], 8)
    with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
        RLZVP("accuracy").check(["accuracy"], 1)
    batch = batch_of([1, 0])
    with pytest.raises(ValueError, match="RL-ZVP was handed no entropy_BT"):
        RLZVP("accuracy").assign(replace(batch, signals=Signals()))
    with pytest.raises(ValueError, match=r"episode 1 of the batch 2: RL-ZVP's outcome must lie in \[0, 1\]"):
        RLZVP("accuracy").assign(batch_of([1, 2], entropy_BT=torch.zeros(2, 3)))
