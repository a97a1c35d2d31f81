"""RLPR: the gain in the reference's mean probability, by hand."""

from __future__ import annotations

import pytest
import torch
from groups import batch_of
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit import CreditEstimator
from threefold.credit.reference_answer import ReferenceAnswer, probability_gain

nan, inf = float("nan"), float("inf")


def log(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_the_gain_is_in_probabilities_and_never_negative() -> None:
    """(0.9 + 0.5) / 2 - (0.3 + 0.1) / 2 = 0.5; 0.2 - 0.4 is floored; a row without a reference has 0."""
    after_BR = log([0.9, 0.5], [0.2, nan], [nan, nan])
    alone_BR = log([0.3, 0.1], [0.4, nan], [nan, nan])
    reference_BR = torch.tensor([[True, True], [True, False], [False, False]])
    assert probability_gain(after_BR, alone_BR, reference_BR).tolist() == pytest.approx([0.5, 0, 0])


def test_advantages_by_hand_and_the_outcome_beside_them() -> None:
    signals = {
        "reference_logp_BR": log([0.9], [0.5]),
        "ablated_reference_logp_BR": log([0.1], [0.1]),
        "reference_BR": torch.ones(2, 1, dtype=torch.bool),
    }
    result = ReferenceAnswer(eps=1e-9).assign(batch_of([0, 0], **signals))
    assert result.reward_B.tolist() == pytest.approx([0.8, 0.4])
    assert result.values.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-5)
    assert result.outcome_B.tolist() == [0, 0]
    assert result.metrics["reference_answer/gain"] == pytest.approx(0.6)
    added = ReferenceAnswer(outcome_weight=2.0).assign(batch_of([0, 1], **signals))
    assert added.reward_B.tolist() == pytest.approx([0.8, 2.4])


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=8))
def test_it_lies_in_0_to_1(pairs: list[tuple[float, float]]) -> None:
    after_BR, alone_BR = (torch.tensor([[pair[i] for pair in pairs]]) for i in (0, 1))
    gain = probability_gain(after_BR, alone_BR, torch.ones_like(after_BR, dtype=torch.bool))
    assert 0 <= gain.item() <= 1


def test_a_value_that_is_not_finite_is_unscorable_and_a_missing_answer_is_counted() -> None:
    result = ReferenceAnswer().assign(
        batch_of(
            [0, 0, 0],
            reference_logp_BR=torch.tensor([[nan], [-1.0], [0.0]]),
            ablated_reference_logp_BR=torch.tensor([[0.0], [-2.0], [0.0]]),
            reference_BR=torch.tensor([[True], [True], [False]]),
        )
    )
    assert result.reward_B[0].isnan()
    assert result.values[0] == 0
    assert result.reward_B[2] == 0
    assert result.metrics["reference_answer/non_finite_signals"] == 1
    assert result.metrics["reference_answer/no_answer"] == pytest.approx(1 / 3)


def test_bad_input_is_named() -> None:
    assert isinstance(ReferenceAnswer(), CreditEstimator)
    assert ReferenceAnswer().needs == {"policy", "reference_answer"}
    with pytest.raises(ValueError, match=r"eps is 0\.0"):
        ReferenceAnswer(eps=0.0)
    with pytest.raises(ValueError, match="RLPR was handed no reference_logp_BR"):
        ReferenceAnswer().assign(batch_of([1, 0]))
    with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
        ReferenceAnswer().check(["accuracy"], 1)
