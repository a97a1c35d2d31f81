"""T²-GRPO as an estimator: from a batch to each token's advantage, with its figures."""

from __future__ import annotations

import pytest
import torch
from four_dialogues import (
    CHANNELS,
    FIT,
    GOAL,
    GROUP,
    MASK,
    NAN,
    TERM,
    TURNS,
    VIOLATION,
    batch_of,
    golden,
)

from threefold.credit import grpo
from threefold.credit.normalise import centred_rank
from threefold.credit.turn_credit import tied_share
from threefold.credit.turn_trajectory import T2GRPO, advantages


def test_each_token_gets_its_turns_credit():
    answer = T2GRPO().assign(batch_of())
    values = golden()
    assert answer.values.shape == (4, 8)
    assert (answer.values[:, [2, 5]] == 0).all()
    for token, turn in ((0, 0), (1, 0), (3, 1), (4, 1), (6, 2), (7, 2)):
        assert torch.equal(answer.values[:, token], values[:, turn])
    total = GOAL + FIT + TERM + torch.where(MASK, TURNS["D"] + TURNS["R"], 0).sum(dim=1)
    torch.testing.assert_close(answer.reward_B, total - 5 * VIOLATION.float())
    torch.testing.assert_close(answer.outcome_B, grpo.advantages(answer.reward_B, GROUP))
    assert answer.episode_signals["violation"].tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(
        answer.episode_signals["trajectory_credit"], torch.tensor([7 / 3, 0, 2 / 3, -3])
    )
    assert answer.token_signals["turn_credit"][3, 3] == pytest.approx(-5 / 3)


def test_where_turns_make_no_difference_the_answer_is_one_number_an_episode():
    assert T2GRPO(alpha=0.0).assign(batch_of()).values.shape == (4,)
    assert T2GRPO(horizons="summed").assign(batch_of()).values.shape == (4,)
    assert T2GRPO(horizons="summed", veto_from_turn=True).assign(batch_of()).values.shape == (4, 8)
    plain = batch_of(turn_rewards={}, turn_mask_BK=None, turn_state={})
    expected = golden(alpha=0.0)[:, 0]
    torch.testing.assert_close(T2GRPO(turns=()).assign(plain).values, expected)


def test_no_trajectory_channel_is_not_all_of_them():
    answer = T2GRPO(trajectory=()).assign(batch_of())
    assert (answer.episode_signals["trajectory_credit"] == 0).all()
    torch.testing.assert_close(
        answer.reward_B, torch.where(MASK, TURNS["D"] + TURNS["R"], 0).sum(dim=1) - 5 * VIOLATION.float()
    )
    T2GRPO(trajectory=(), veto=3.0).check(["goal", "fit", "term"], 4)  # more than the two turn channels


def test_figures():
    figures = T2GRPO().assign(batch_of()).metrics
    assert figures["turns/violations"] == 0.25
    assert figures["turns/all_violating"] == 0.0
    assert figures["turns/per_episode"] == 11 / 4
    assert figures["turns/compared"] == 1.0
    values, clean = golden(), [0, 1, 3]
    assert figures["turns/violating_weight"] == pytest.approx(48 / float(values.abs().sum()))
    assert figures["turns/clean_mean"] == pytest.approx(float(values[clean].sum()) / 8)
    # D: 1 0 -1 0 | 1 1 0 0 | 0 1 1: two, four and two of eleven values have an equal in their turn.
    assert figures["turns/tied/D"] == pytest.approx(8 / 11)
    assert figures["turns/tied_episode/goal"] == 0.5
    assert figures["turns/tied_episode/term"] == 0.0
    thin = T2GRPO(min_valid=4).assign(batch_of()).metrics
    assert thin["turns/compared"] == pytest.approx(8 / 11)


def test_headroom_reads_the_states_of_the_turn_channels():
    answer = T2GRPO(turn_credit="headroom").assign(batch_of())
    levels = batch_of().turn_state
    torch.testing.assert_close(answer.values[:, 0], golden(turn_credit="headroom", levels=levels)[:, 0])
    with pytest.raises(ValueError, match="the state is 'R'"):
        T2GRPO(turn_credit="headroom").assign(batch_of(turn_state={"D": torch.zeros(4, 3)}))


def test_missing_channels_are_named():
    with pytest.raises(ValueError, match="the turn channel is 'R', valid: 'D'"):
        T2GRPO().assign(batch_of(turn_rewards={"D": TURNS["D"]}))
    with pytest.raises(ValueError, match="environment="):
        T2GRPO().assign(batch_of(turn_mask_BK=None))
    with pytest.raises(ValueError, match="did you mean 'goal'"):
        T2GRPO(trajectory=("goals",)).check(["goal"], 8)
    with pytest.raises(ValueError, match="give a tuple"):
        T2GRPO(turns="DR")
    with pytest.raises(ValueError, match="once"):
        T2GRPO(turns=("D", "D"))


def test_a_batch_in_which_everything_failed_is_credited_zero():
    nothing = torch.full((4,), NAN)
    answer = T2GRPO().assign(
        batch_of(
            rewards=dict.fromkeys(CHANNELS, nothing),
            turn_rewards={},
            turn_state={},
            violation_B=torch.zeros(4, dtype=torch.bool),
        )
    )
    assert torch.equal(answer.values, torch.zeros(4, 8))
    assert answer.reward_B.isnan().all()


def test_weights_multiply_channels():
    weights = {"goal": 2.0, "fit": 1.0, "term": 0.0}
    answer = T2GRPO(alpha=0.0).assign(batch_of(weights=weights))
    expected = 2 * centred_rank(GOAL, GROUP) + centred_rank(FIT, GROUP)
    torch.testing.assert_close(answer.values, torch.where(VIOLATION, -16.0, expected))


def test_tied_share_without_company_says_nothing():
    assert tied_share(torch.tensor([[1.0, NAN]]), torch.tensor([[0, 1]])) is None


@pytest.mark.parametrize("options", [{}, {"normalise": "zscore"}, {"horizons": "summed"}, {"veto": None}])
def test_whole_numbers_are_scores_too(options):
    """Judges' points and falls of tiers are whole numbers; they may come as such."""
    goal, fallen = torch.tensor([8, 5, 8, 2]), torch.tensor([[1, 1], [0, 1], [-1, 0], [0, 0]])
    rest = (torch.ones(4, 2).bool(), torch.tensor([False, False, True, False]), torch.zeros(4).long())
    whole = advantages({"goal": goal}, {"D": fallen}, *rest, **options)
    assert torch.equal(whole, advantages({"goal": goal.float()}, {"D": fallen.float()}, *rest, **options))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_episodes_or_no_turns_get_no_credit(shape):
    """Of a group of dialogues in which nobody came to speak, nothing is said and nothing fails."""
    none, size = torch.zeros(shape), shape[0]
    got = advantages(
        {"goal": torch.full((size,), torch.nan)},
        {"D": none},
        none.bool(),
        torch.zeros(size, dtype=torch.bool),
        torch.zeros(size, dtype=torch.int64),
    )
    assert got.shape == shape
