"""The noise control of T²-GRPO: the same credits on other turns, and no word about the episode left."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from four_dialogues import CHANNELS, GROUP, MASK, TURNS, VIOLATION, batch_of, episodes
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.credit.noise_control import Deal, dealt_episodes
from threefold.credit.turn_credit import compared, relative_turns
from threefold.credit.turn_trajectory import T2GRPO, advantages

NAN = math.nan
OWN = T2GRPO()
TURN_NOISE = T2GRPO(noise_control="turns")
ALL_NOISE = T2GRPO(noise_control="all")


def sorted_in(values, cells, cell):
    return values[cells == cell].sort().values


@settings(deadline=None, max_examples=100)
@given(episodes(), st.integers(0, 99))
def test_every_comparison_keeps_its_credits(batch, seed):
    """The same credits at every turn of every group, in whatever way they are compared."""
    _, turns, mask, violation, group, options = batch
    left_out = violation if options.pop("exclude_violators_from_rank") else torch.zeros_like(violation)
    del options["alpha"]
    own = relative_turns(turns["D"], mask, group, left_out_B=left_out, **options)
    dealt = relative_turns(turns["D"], mask, group, left_out_B=left_out, deal=Deal(seed, 0, ""), **options)
    how = {key: options[key] for key in ("turn_credit", "ended")}
    values, cells = compared(turns["D"], mask, group, left_out_B=left_out, **how)
    assert (dealt[~mask | values.isnan()] == 0).all()
    if options["ended"] == "absent":  # else an ended member's credit, which no token has, moves too
        for cell in cells.unique():
            torch.testing.assert_close(sorted_in(dealt, cells, cell), sorted_in(own, cells, cell))


def test_a_turn_gets_each_credit_of_its_comparison_equally_often():
    """3,000 deals of ranks 1, 0, -1: each to each turn 1,000 times, give or take four deviations of 25.8.

    So what a turn is given has expectation 0, and its covariance with what the turn earned is 0.
    """
    rewards, mask = torch.tensor([[2.0], [1.0], [0.0]]), torch.ones(3, 1, dtype=torch.bool)
    group = torch.zeros(3, dtype=torch.int64)
    own = relative_turns(rewards, mask, group)[:, 0]
    deals = torch.stack(
        [relative_turns(rewards, mask, group, deal=Deal(0, step, ""))[:, 0] for step in range(3000)]
    )
    assert own.tolist() == [1, 0, -1]
    for turn in range(3):
        for credit in (1, 0, -1):
            assert abs(int((deals[:, turn] == credit).sum()) - 1000) < 104
    covariance = (deals * own).mean(dim=1)  # 2/3 where every turn keeps its own
    assert abs(float(covariance.mean())) < 4 * float(covariance.std()) / math.sqrt(3000)


def test_channels_of_one_comparison_move_together():
    values = torch.arange(6.0).reshape(3, 2)
    cells = torch.arange(2).repeat(3, 1)
    deal = Deal(4, 0, "turns")
    torch.testing.assert_close(deal(10 * values, cells), 10 * deal(values, cells))
    assert any(not torch.equal(Deal(4, step, "")(values, cells), values) for step in range(5))


def test_what_was_not_scored_stays_where_it_is_and_is_dealt_nothing():
    values, cells = torch.tensor([1.0, NAN, 2.0, 3.0, NAN]), torch.zeros(5, dtype=torch.int64)
    for step in range(20):
        dealt = Deal(0, step, "")(values, cells)
        assert dealt.isnan().tolist() == [False, True, False, False, True]
        assert sorted(dealt[~dealt.isnan()].tolist()) == [1, 2, 3]


class TestTurns:
    """The golden dialogues: the third violates, the fourth ends after two turns."""

    def test_trajectory_credit_and_veto_stay_and_turn_credit_is_dealt_out(self):
        own, noise = OWN.assign(batch_of()), TURN_NOISE.assign(batch_of())
        trajectory = own.episode_signals["trajectory_credit"]
        assert torch.equal(noise.episode_signals["trajectory_credit"], trajectory)
        assert (noise.values[2, [0, 3, 6]] == -16).all()
        turn_BT = noise.token_signals["turn_credit"]
        clean = [0, 1, 3]
        torch.testing.assert_close(
            noise.values[clean][:, [0, 3]], trajectory[clean, None] + turn_BT[clean][:, [0, 3]]
        )
        for token in (0, 3):
            credits = own.token_signals["turn_credit"][:, token]
            torch.testing.assert_close(turn_BT[:, token].sort().values, credits.sort().values)
        assert turn_BT[3, 6] == 0  # an ended dialogue is dealt nothing

    def test_what_the_report_compares_with_is_the_real_reward(self):
        own, noise = OWN.assign(batch_of()), TURN_NOISE.assign(batch_of())
        assert torch.equal(noise.reward_B, own.reward_B)
        assert torch.equal(noise.outcome_B, own.outcome_B)

    def test_moved_turns_are_counted(self):
        answer = TURN_NOISE.assign(batch_of())
        own_BT = OWN.assign(batch_of()).values
        moved = [
            bool(answer.values[row, token] != own_BT[row, token])
            for row in range(4)
            for token in ((0, 3, 6) if row < 3 else (0, 3))
        ]
        assert answer.metrics["turns/noise_moved"] == pytest.approx(sum(moved) / 11)
        assert sum(moved) > 0
        assert "turns/noise_moved" not in OWN.assign(batch_of()).metrics

    def test_summed_turns_are_dealt_out_among_the_group(self):
        """Sums of D: 2, 2, 0, 0. Each of the four is somebody's, none of them need be one's own."""
        summed = replace(OWN, horizons="summed", trajectory=("goal",), turns=("D",))
        goal = summed.assign(batch_of()).values - torch.tensor([2 / 3, 2 / 3, 0, -2 / 3])
        seen = set()
        for step in range(30):
            noise = replace(summed, noise_control="turns").assign(batch_of(step=step))
            credit = noise.values - goal
            assert noise.values[2] == -16
            seen.add(tuple(round(float(c), 3) for c in credit[[0, 1, 3]]))
        assert len(seen) > 2


class TestAll:
    def test_scores_and_violation_of_an_episode_go_to_one_other_of_its_group(self):
        scores = {"goal": torch.tensor([0.0, 1, 2, 3, 10, 11]), "fit": torch.tensor([0.0, 2, 4, 6, 20, 22])}
        group = torch.tensor([0, 0, 0, 0, 1, 1])
        violation = torch.tensor([False, True, False, False, True, False])
        for step in range(20):
            dealt, dealt_violation = dealt_episodes(
                scores, violation, torch.ones(6, dtype=torch.bool), group, Deal(0, step, "")
            )
            assert sorted(dealt["goal"][:4].tolist()) == [0, 1, 2, 3]
            assert sorted(dealt["goal"][4:].tolist()) == [10, 11]
            assert torch.equal(dealt["fit"], 2 * dealt["goal"])
            assert torch.equal(dealt_violation, (dealt["goal"] == 1) | (dealt["goal"] == 10))

    def test_an_episode_of_which_nothing_is_known_is_dealt_no_violation(self):
        scores = {"goal": torch.tensor([1.0, NAN, 2.0])}
        violation, scored = torch.tensor([True, False, False]), torch.tensor([True, False, True])
        seen = {
            tuple(
                dealt_episodes(
                    scores, violation, scored, torch.zeros(3, dtype=torch.int64), Deal(0, step, "")
                )[1].tolist()
            )
            for step in range(20)
        }
        assert seen == {(True, False, False), (False, False, True)}

    def test_as_many_vetoes_on_dialogues_that_chance_picks(self):
        vetoed = []
        for step in range(200):
            answer = ALL_NOISE.assign(batch_of(step=step))
            rows = (answer.values[:, 0] == -16).nonzero().flatten().tolist()
            assert len(rows) == 1
            vetoed += rows
        assert all(abs(vetoed.count(row) - 50) < 4 * math.sqrt(200 * 3 / 16) for row in range(4))

    def test_clean_entries_still_lie_above_the_veto(self):
        for step in range(50):
            values = ALL_NOISE.assign(batch_of(step=step)).values
            vetoed = values[:, 0] == -16
            assert values[~vetoed].min() > -6

    def test_without_a_veto_the_violation_is_one_more_channel_that_is_dealt(self):
        own = replace(OWN, veto=None, alpha=0.0).assign(batch_of()).values
        totals = {
            round(float(replace(ALL_NOISE, veto=None, alpha=0.0).assign(batch_of(step=s)).values.sum()), 4)
            for s in range(10)
        }
        assert totals == {round(float(own.sum()), 4)}


@pytest.mark.parametrize("control", [TURN_NOISE, ALL_NOISE])
class TestDrawing:
    def test_a_seed_and_a_step_give_one_deal_whatever_the_global_random_state(self, control):
        def dealt(seed: int, step: int) -> list[float]:
            torch.manual_seed(torch.seed() % 2**31)
            return replace(control, noise_seed=seed).assign(batch_of(step=step)).values.flatten().tolist()

        assert dealt(0, 3) == dealt(0, 3)
        assert len({tuple(dealt(seed, step)) for seed in range(4) for step in range(4)}) > 8

    def test_it_leaves_global_random_numbers_alone(self, control):
        before = torch.get_rng_state()
        control.assign(batch_of())
        assert torch.equal(torch.get_rng_state(), before)

    def test_where_everything_failed_nothing_is_dealt(self, control):
        nothing = torch.full((4, 3), NAN)
        batch = batch_of(
            rewards={name: torch.full((4,), NAN) for name in CHANNELS},
            turn_rewards={"D": nothing, "R": nothing},
            violation_B=torch.zeros(4, dtype=torch.bool),
        )
        assert (control.assign(batch).values == 0).all()


def test_the_function_without_a_deal_is_the_method():
    own = advantages(CHANNELS, TURNS, MASK, VIOLATION, GROUP)
    assert torch.equal(advantages(CHANNELS, TURNS, MASK, VIOLATION, GROUP, deal=None), own)
    turned = [advantages(CHANNELS, TURNS, MASK, VIOLATION, GROUP, deal=Deal(0, s, "")) for s in range(5)]
    assert any(not torch.equal(values, own) for values in turned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_control": "shuffle"}, "noise_control is 'shuffle', valid: 'turns', 'all'"),
        ({"noise_control": "turns", "alpha": 0.0}, r"alpha=0 and turns=\('D', 'R'\) none count; use 'all'"),
        ({"noise_control": "turns", "turns": ()}, "none count; use 'all'"),
        ({"noise_control": "all", "veto_from_turn": True}, "leave veto_from_turn at False"),
    ],
)
def test_what_has_no_meaning_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        T2GRPO(**options)
