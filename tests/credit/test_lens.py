"""LENS: section 5.1's calibrated reward by hand."""

from __future__ import annotations

import math

import pytest
import torch
from groups import batch_of, reordered
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from threefold.credit import CreditBatch, CreditEstimator
from threefold.credit.lens import LENS, calibrated_reward

nan = float("nan")


def confident(outcome: list[float], confidence: list[float], group_size: int | None = None) -> CreditBatch:
    """Episodes of two tokens whose mean log-probability is the logarithm of the confidence."""
    logp_B = torch.tensor(confidence).log()
    return batch_of(outcome, group_size=group_size, logp_BT=torch.stack([logp_B * 0.5, logp_B * 1.5], dim=1))


def test_a_negative_group_by_hand() -> None:
    """p = 1/2, 1/4: D = 1, odds 1 and 1/3, over G = 2: rewards -1/2 and -1/6; centred and times 1/4."""
    result = LENS("accuracy").assign(confident([0, 0], [0.5, 0.25]))
    assert result.reward_B.tolist() == pytest.approx([-1 / 2, -1 / 6])
    assert result.values.tolist() == pytest.approx([-1 / 24, 1 / 24])
    assert result.outcome_B.tolist() == [0, 0]
    assert result.metrics["lens/penalty_wrong"] == pytest.approx(1 / 3)
    assert result.metrics["lens/confidence_wrong"] == pytest.approx(3 / 8)


def test_a_mixed_group_by_hand() -> None:
    """D_imp = 1 / mean(1 / 0.5, 0) = 1 = 2 max p: rewards 1 and -1/6, whose z-scores are 1/sqrt 2 each."""
    result = LENS("accuracy", eps=1e-9).assign(confident([1, 0], [0.5, 0.25]))
    assert result.reward_B.tolist() == pytest.approx([1, -1 / 6])
    assert result.values.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_a_rare_right_answer_makes_the_question_easier_than_it_looks() -> None:
    """Right at p = 0.9, wrong at 0.1: D = max(0.9 * 2, 1.8) = 1.8; of four, D_imp = 3.6 wins over 1.8."""
    group_B = torch.zeros(4, dtype=torch.int64)
    reward_B = calibrated_reward(torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.9, 0.1, 0.1, 0.1]), group_B)
    assert reward_B.tolist() == pytest.approx([1, *[-0.1 / 3.5 / 4] * 3])


def test_an_all_right_group_stays_dead() -> None:
    assert LENS("accuracy").assign(confident([1, 1], [0.9, 0.2])).values.tolist() == [0, 0]


@st.composite
def scored(draw) -> tuple[list[float], list[float]]:
    outcome = draw(st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=8, max_size=8))
    return outcome, draw(st.lists(st.floats(1e-3, 1.0), min_size=8, max_size=8))


@given(scored())
def test_the_surer_of_two_mistakes_costs_more_and_right_stays_above_wrong(
    case: tuple[list[float], list[float]],
) -> None:
    outcome, confidence = case
    batch = confident(outcome, confidence, group_size=4)
    result = LENS("accuracy").assign(batch)
    outcome_B, confidence_B = batch.rewards["accuracy"], torch.tensor(confidence)
    for first in (0, 4):
        rows = slice(first, first + 4)
        right_B, wrong_B = outcome_B[rows] == 1, outcome_B[rows] == 0
        values_B = result.values[rows]
        if right_B.any() and wrong_B.any():
            assert values_B[right_B].min() > values_B[wrong_B].max()
            assert values_B[wrong_B].max() < 0  # the sign that 1/G is there to keep
        order = confidence_B[rows][wrong_B].argsort()
        assert (values_B[wrong_B][order].diff() <= 1e-6).all()
    rewards_B: Tensor = result.reward_B[~outcome_B.isnan()]
    assert ((rewards_B >= -1 - 1e-6) & (rewards_B <= 1)).all()
    assert (result.values[outcome_B.isnan()] == 0).all()


@given(scored(), st.permutations(range(8)))
def test_goes_along_with_any_permutation_of_the_batch(
    case: tuple[list[float], list[float]], order: list[int]
) -> None:
    batch = confident(*case, group_size=4)
    straight = LENS("accuracy").assign(batch).values[order]
    assert torch.allclose(straight, LENS("accuracy").assign(reordered(batch, order)).values, atol=1e-4)


def test_other_rewards_are_added_and_what_is_not_finite_is_left_out_and_counted() -> None:
    batch = batch_of(
        [0, 0, 0],
        extra={"format": ([0.0, 1.0, 0.0], 0.1)},
        logp_BT=torch.tensor([[math.log(0.5)], [math.log(0.25)], [nan]]),
    )
    result = LENS("accuracy").assign(batch)
    assert result.reward_B.tolist() == pytest.approx([-1 / 3, 0.1 - 1 / 9, 0])
    assert result.metrics["lens/non_finite_signals"] == 1


def test_bad_input_is_named() -> None:
    assert isinstance(LENS("accuracy"), CreditEstimator)
    assert LENS("accuracy").needs == {"policy"}
    with pytest.raises(ValueError, match=r"alpha is -0\.1"):
        LENS("accuracy", alpha=-0.1)
    with pytest.raises(ValueError, match=r"eps is 0\.0"):
        LENS("accuracy", eps=0.0)
    with pytest.raises(ValueError, match="LENS's outcome is 'right', valid: 'accuracy'"):
        LENS("right").check(["accuracy"], 8)
    with pytest.raises(ValueError, match="LENS was handed no logp_BT"):
        LENS("accuracy").assign(batch_of([1, 0]))
    with pytest.raises(ValueError, match=r"LENS's outcome must lie in \[0, 1\]"):
        LENS("accuracy").assign(confident([1, -1], [0.5, 0.5]))
