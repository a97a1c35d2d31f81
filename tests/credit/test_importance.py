"""The importance ratio against numbers worked out by hand, and what must hold for any log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit.importance import Importance, figures, ratios

LOG2, LOG3, LOG8 = math.log(2), math.log(3), math.log(8)

# Two episodes of three tokens; the last token of the second is not trained.
POLICY = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -2.0, -2.0]])
ENGINE = torch.tensor([[-1.0 - LOG2, -1.0 + LOG2, -1.0 - LOG8], [-2.0, -2.0 + LOG3, 5.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_a_ratio_for_each_token_by_hand():
    """p/q is 2, 1/2 and 8 in the first episode (8 becomes the cap, 3), 1 and 1/3 in the second."""
    weights = ratios(POLICY, ENGINE, MASK, Importance())
    torch.testing.assert_close(weights.values, torch.tensor([[2.0, 0.5, 3.0], [1.0, 1 / 3, 0.0]]))
    assert weights.capped.tolist() == [[False, False, True], [False, False, False]]
    folded = weights.fold(torch.tensor([1.0, -6.0]))
    torch.testing.assert_close(folded, torch.tensor([[2.0, 0.5, 3.0], [-6.0, -2.0, 0.0]]))
    by_token = torch.tensor([[1.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
    torch.testing.assert_close(weights.fold(by_token), torch.tensor([[2.0, 1.0, 3.0], [3.0, 1.0, 0.0]]))


def test_a_ratio_for_each_episode_by_hand():
    """2 * 1/2 * 8 = 8 becomes the cap, 4; 1 * 1/3 stays."""
    weights = ratios(POLICY, ENGINE, MASK, Importance("sequence", cap=4.0))
    torch.testing.assert_close(weights.values, torch.tensor([4.0, 1 / 3]))
    assert weights.capped.tolist() == [True, False]
    folded = weights.fold(torch.tensor([1.0, -6.0]))
    assert folded.shape == (2,)  # constant over a row stays so: losses by row go with it
    torch.testing.assert_close(folded, torch.tensor([4.0, -2.0]))
    by_token = torch.tensor([[1.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
    torch.testing.assert_close(weights.fold(by_token), torch.tensor([[4.0, 8.0, 4.0], [1.0, 1.0, 0.0]]))


def test_the_figures_by_hand():
    tokens = figures(ratios(POLICY, ENGINE, MASK, Importance()).tallies(MASK))
    assert tokens["importance/ratio"] == pytest.approx((2 + 0.5 + 3 + 1 + 1 / 3) / 5)
    assert tokens["importance/capped"] == pytest.approx(1 / 5)
    assert tokens["importance/gap"] == pytest.approx((LOG2 + LOG2 + LOG8 + 0 + LOG3) / 5)
    episodes = figures(ratios(POLICY, ENGINE, MASK, Importance("sequence", cap=4.0)).tallies(MASK))
    assert episodes["importance/ratio"] == pytest.approx((4 + 1 / 3) / 2)
    assert episodes["importance/capped"] == pytest.approx(1 / 2)
    assert episodes["importance/gap"] == tokens["importance/gap"]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_an_episode_without_trained_tokens_does_not_count(level):
    mask = torch.tensor([[True, True, True], [False, False, False]])
    alone = figures(ratios(POLICY[:1], ENGINE[:1], mask[:1], Importance(level)).tallies(mask[:1]))
    assert figures(ratios(POLICY, ENGINE, mask, Importance(level)).tallies(mask)) == alone
    assert figures(ratios(POLICY[1:], ENGINE[1:], mask[1:], Importance(level)).tallies(mask[1:])) == {}


def test_what_is_not_a_number_is_not_corrected():
    engine = torch.tensor([[math.nan, -1.0, -1.0 - LOG2]])
    weights = ratios(POLICY[:1], engine, MASK[:1], Importance())
    torch.testing.assert_close(weights.values, torch.tensor([[1.0, 1.0, 2.0]]))


def test_no_gradient_flows_through_it():
    policy = POLICY.clone().requires_grad_()
    assert not ratios(policy, ENGINE, MASK, Importance()).values.requires_grad


logps = st.lists(st.lists(st.floats(-20, 0, width=32), min_size=4, max_size=4), min_size=3, max_size=3).map(
    torch.tensor
)
masks = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=3).map(torch.tensor)
settings = st.builds(Importance, st.sampled_from(["token", "sequence"]), st.floats(1, 50))


@given(logps, masks, settings)
def test_where_policy_and_engine_agree_nothing_changes(logp, mask, importance):
    advantages = torch.randn(3, 4) * mask
    assert torch.equal(ratios(logp, logp, mask, importance).fold(advantages), advantages)


@given(logps, logps, masks, settings)
def test_ratios_are_bounded_keep_signs_and_ignore_masked_tokens(policy, engine, mask, importance):
    weights = ratios(policy, engine, mask, importance)
    assert (weights.values >= 0).all()
    assert (weights.values <= importance.cap).all()
    advantages = torch.tensor([1.0, -1.0, 0.0])
    folded = weights.fold(advantages)
    signs = advantages if folded.dim() == 1 else advantages[:, None].expand_as(folded)
    assert (folded * signs >= 0).all()
    elsewhere = ratios(torch.where(mask, policy, -7.0), torch.where(mask, engine, -1.0), mask, importance)
    assert torch.equal(elsewhere.values, weights.values)


def test_over_the_engines_own_samples_the_weighted_mean_is_the_policys():
    """What the correction is for: E_q[w f] = E_p[f], where no ratio reaches the cap."""
    policy, engine = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    value = torch.tensor([1.0, -2.0, 5.0])
    weights = ratios(
        policy.log()[:, None], engine.log()[:, None], torch.ones(3, 1, dtype=torch.bool), Importance()
    )
    corrected = (engine * weights.fold(value[:, None])[:, 0]).sum()
    torch.testing.assert_close(corrected, (policy * value).sum())
    assert (engine * value).sum() - corrected > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": "row"}, "'token' or 'sequence', got 'row'"), ({"cap": 0.5}, "at least 1.*got 0.5")],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Importance(**options)
