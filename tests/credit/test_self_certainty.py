"""INTUITOR: the mean distance from a blind guess, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from groups import batch_of, reordered
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit import CreditEstimator
from threefold.credit.self_certainty import SelfCertainty, self_certainty

nan = float("nan")


def test_it_is_the_divergence_of_the_uniform_distribution_and_a_constant() -> None:
    """Probabilities 3/4 and 1/4: the signal is KL(U || p) + log 2, whatever shifts the logits."""
    p_V = torch.tensor([0.75, 0.25])
    kl = float((0.5 * (0.5 / p_V).log()).sum())
    logits_V = p_V.log() + 7.0  # any shift of the logits
    certainty = logits_V.logsumexp(0) - logits_V.mean()
    assert certainty.item() - math.log(2) == pytest.approx(kl, abs=1e-6)
    uniform_V = torch.full((5,), 3.0)
    assert (uniform_V.logsumexp(0) - uniform_V.mean()).item() == pytest.approx(math.log(5))


def test_mean_over_trained_tokens_and_advantages_by_hand() -> None:
    """Means 2 and 4; z-scores 1/sqrt 2. The outcome does not count."""
    certainty_BT = torch.tensor([[1.0, 3.0, nan], [4.0, 4.0, 4.0]])
    result = SelfCertainty(eps=1e-9).assign(batch_of([1, 0], lengths=[2, 3], self_certainty_BT=certainty_BT))
    assert result.reward_B.tolist() == [2, 4]
    assert result.values.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert result.outcome_B.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])
    assert result.metrics["self_certainty/mean"] == 3


def test_the_outcome_can_be_added() -> None:
    certainty_BT = torch.tensor([[2.0], [4.0]])
    batch = batch_of([1, 0], self_certainty_BT=certainty_BT)
    assert SelfCertainty(outcome_weight=5.0).assign(batch).reward_B.tolist() == [7, 4]


def test_what_is_not_finite_or_empty_is_unscorable_and_counted() -> None:
    certainty_BT = torch.tensor([[nan], [1.0], [1.0], [3.0]])
    result = SelfCertainty(eps=1e-9).assign(
        batch_of([0] * 4, lengths=[1, 0, 1, 1], self_certainty_BT=certainty_BT)
    )
    assert result.values.tolist() == pytest.approx([0, 0, -(0.5**0.5), 0.5**0.5])
    assert result.metrics["self_certainty/non_finite_signals"] == 2


@given(st.permutations(range(8)), st.integers(0, 2**31))
def test_goes_along_with_any_permutation_of_the_batch(order: list[int], seed: int) -> None:
    certainty_BT = torch.rand(8, 3, generator=torch.Generator().manual_seed(seed))
    batch = batch_of([0] * 8, group_size=4, self_certainty_BT=certainty_BT)
    straight = SelfCertainty().assign(batch).values[order]
    assert torch.allclose(straight, SelfCertainty().assign(reordered(batch, order)).values, atol=1e-4)


def test_bad_input_is_named() -> None:
    assert isinstance(SelfCertainty(), CreditEstimator)
    assert SelfCertainty().needs == {"policy", "self_certainty"}
    with pytest.raises(ValueError, match=r"outcome_weight is -1\.0"):
        SelfCertainty(outcome_weight=-1.0)
    with pytest.raises(ValueError, match="INTUITOR was handed no self_certainty_BT"):
        SelfCertainty().assign(batch_of([1, 0]))
    with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
        SelfCertainty().check(["accuracy"], 1)
    mask_BT = torch.zeros(1, 2, dtype=torch.bool)
    assert self_certainty(torch.ones(1, 2), mask_BT).isnan().all()
