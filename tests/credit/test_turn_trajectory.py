"""T²-GRPO's credit: golden vectors by hand, its switches and its veto."""

from __future__ import annotations

import pytest
import torch
from four_dialogues import (
    CHANNELS,
    DISTRESS,
    FIT,
    GOAL,
    GROUP,
    MASK,
    NAN,
    TERM,
    TURNS,
    VIOLATION,
    golden,
)

from threefold.credit import gdpo, grpo
from threefold.credit.normalise import centred_rank, zscore
from threefold.credit.turn_credit import relative_turns
from threefold.credit.turn_trajectory import T2GRPO, advantages
from threefold.credit.veto import apply_veto, largest_clean


def test_golden_vectors():
    third = 1 / 3
    for values, expected in (
        (GOAL, [2 * third, -third, 2 * third, -1]),
        (FIT, [2 * third, 2 * third, -third, -1]),
        (TERM, [1, -third, third, -1]),
    ):
        torch.testing.assert_close(centred_rank(values, GROUP), torch.tensor(expected))
    trajectory = golden(alpha=0.0, veto=None)[:, 0] - centred_rank(-VIOLATION.float(), GROUP)
    torch.testing.assert_close(trajectory, torch.tensor([7 * third, 0, 2 * third, -3]))
    turns_D = relative_turns(TURNS["D"], MASK, GROUP)
    turns_R = relative_turns(TURNS["R"], MASK, GROUP)
    expected_D = [[1, 2 * third, -1], [0, 2 * third, 0.5], [-1, -2 * third, 0.5], [0, -2 * third, 0]]
    expected_R = [[third, third, 0], [-1, third, 0], [third, third, 0], [third, -1, 0]]
    torch.testing.assert_close(turns_D, torch.tensor(expected_D))
    torch.testing.assert_close(turns_R, torch.tensor(expected_R))
    expected = [[11 * third, 10 * third, 4 * third], [-1, 1, 0.5], [-16] * 3, [-8 * third, -14 * third, 0]]
    torch.testing.assert_close(golden(), torch.tensor(expected))


def test_centred_rank_of_ties():
    for values, expected in (
        ([1, 2, 2, 3], [-1, 0, 0, 1]),
        ([0] * 9 + [1], [-1 / 9] * 9 + [1]),
        ([0] * 5 + [1] * 5, [-5 / 9] * 5 + [5 / 9] * 5),
        ([0.1] * 10, [0] * 10),
    ):
        x = torch.tensor(values, dtype=torch.float64)
        got = centred_rank(x, torch.zeros(len(x)))
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [[1] * 10, [9, 1], [8, 1, 1], [5, 5], [10]])
def test_variance_of_centred_ranks_falls_with_ties(sizes):
    """Var = (N+1)/(3(N-1)) (1 - Σ(t³-t)/(N³-N)): the figures in docs/t2grpo.md."""
    n = sum(sizes)
    x = torch.cat([torch.full((size,), float(i)) for i, size in enumerate(sizes)]).double()
    ranks = centred_rank(x, torch.zeros(n))
    ties = sum(t**3 - t for t in sizes) / (n**3 - n)
    assert float((ranks**2).mean()) == pytest.approx((n + 1) / (3 * (n - 1)) * (1 - ties))


def test_floor_effect_and_what_the_variants_make_of_it():
    """Keeping a calm patient calm, against repairing, and leaving, a crisis."""
    before = torch.tensor([[0.0], [0], [3], [3], [3]])
    after = torch.tensor([[0.0], [0], [2], [1], [3]])
    mask, group = torch.ones(5, 1, dtype=torch.bool), torch.zeros(5, dtype=torch.int64)

    def credit(kind: str) -> list[float]:
        return relative_turns(before - after, mask, group, turn_credit=kind, levels_BK=before)[:, 0].tolist()

    assert credit("delta") == [-0.5, -0.5, 0.5, 1.0, -0.5]
    assert credit("headroom") == [0.75, 0.75, -0.5, 0.0, -1.0]  # what was possible: all, all, 1/3, 2/3, 0


def test_strata_compare_turns_that_start_from_the_same_level():
    levels = torch.tensor([[2.0, 1, 1], [2, 1, 0], [2, 3, 2], [2, 3, 3]])  # before turn 0, after 0, after 1
    rewards, mask = levels[:, :-1] - levels[:, 1:], torch.ones(4, 2, dtype=torch.bool)
    got = relative_turns(rewards, mask, GROUP, turn_credit="stratified")
    # Turn 0: all start from 2. Turn 1: the first two start from 1, the others from 3.
    torch.testing.assert_close(got, torch.tensor([[2 / 3, -1], [2 / 3, 1], [-2 / 3, 1], [-2 / 3, -1]]))


def test_return_to_go_telescopes_to_the_level_before_less_the_last():
    rewards, mask = TURNS["D"], MASK
    got = relative_turns(rewards, mask, GROUP, turn_credit="return_to_go")
    for turn in range(3):
        to_go = torch.tensor([row[turn] - row[-1] if turn < len(row) - 1 else NAN for row in DISTRESS])
        torch.testing.assert_close(got[:, turn], centred_rank(to_go.float(), GROUP))


def test_all_switches_off_is_gdpo():
    off = {"normalise": "zscore", "horizons": "summed", "veto": None}
    total = torch.where(MASK, TURNS["D"] + TURNS["R"], 0).sum(dim=1)
    channels = {**CHANNELS, "turns": total, "violation": -VIOLATION.float()}
    expected = gdpo.advantages(channels, GROUP)
    got = golden(**off)
    torch.testing.assert_close(got, torch.where(MASK, expected.unsqueeze(1), 0))
    assert expected[0] == pytest.approx(
        float(sum(zscore(channel, GROUP)[0] for channel in channels.values())), abs=1e-6
    )


def test_one_channel_summed_is_grpo():
    got = advantages(
        {"goal": GOAL},
        {},
        MASK,
        torch.zeros(4, dtype=torch.bool),
        GROUP,
        normalise="zscore",
        horizons="summed",
        veto=None,
    )
    torch.testing.assert_close(got[:, 0], grpo.advantages(GOAL, GROUP))


@pytest.mark.parametrize("rank", [True, False])
@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_each_of_the_eight_combinations_is_what_its_switches_say(rank, dual, hard):
    """Panel B of the paper's Table 1, put together here from single comparisons."""
    compare = centred_rank if rank else zscore
    expected = torch.zeros(4, 3)
    for channel in CHANNELS.values():
        expected += compare(channel, GROUP)[:, None]
    if dual:
        for rewards in TURNS.values():
            for turn in range(3):
                alive = torch.where(MASK[:, turn], rewards[:, turn], NAN)
                expected[:, turn] += compare(alive, GROUP)
    else:
        summed = torch.where(MASK, TURNS["D"] + TURNS["R"], 0).sum(dim=1)
        expected += compare(summed, GROUP)[:, None]
    if hard:
        expected[VIOLATION] = -16.0
    else:
        expected += compare(-VIOLATION.float(), GROUP)[:, None]
    expected[~MASK] = 0.0
    got = golden(
        normalise="rank" if rank else "zscore",
        horizons="dual" if dual else "summed",
        veto=16.0 if hard else None,
    )
    torch.testing.assert_close(got, expected)


def test_alpha_zero_is_the_trajectory_alone():
    alone = advantages(CHANNELS, {}, MASK, VIOLATION, GROUP)
    torch.testing.assert_close(golden(alpha=0.0), alone)
    assert (alone[0] == alone[0, 0]).all()


def test_a_judge_that_failed_counts_in_its_own_channel_only():
    broken = {**CHANNELS, "fit": torch.tensor([6.0, NAN, 3, 0])}
    got = advantages(broken, TURNS, MASK, VIOLATION, GROUP)
    without = advantages({"goal": GOAL, "term": TERM}, TURNS, MASK, VIOLATION, GROUP)
    torch.testing.assert_close(got[1], without[1])  # its fit is 0
    assert got[0, 0] - without[0, 0] == pytest.approx(1.0)  # the best of the three that have one
    turns = {**TURNS, "D": TURNS["D"].clone()}
    turns["D"][1, 0] = NAN
    turn = advantages({}, {"D": turns["D"]}, MASK, VIOLATION, GROUP)
    assert turn[1, 0] == 0
    assert turn[0, 0] == 1  # 1, -1 and 0 are compared
    assert turn[3, 0] == 0
    assert torch.equal(turn[:, 1], advantages({}, {"D": TURNS["D"]}, MASK, VIOLATION, GROUP)[:, 1])


def test_an_episode_that_failed_is_not_praised_for_its_safety():
    channels = {"goal": torch.tensor([1.0, 2.0, 3.0, NAN])}
    turns = {"D": torch.full((4, 3), NAN)}
    got = advantages(channels, turns, MASK, VIOLATION, GROUP, veto=None)
    assert torch.equal(got[3], torch.zeros(3))
    assert got[0, 0] == 0.0 + -1 + 0.5  # goal lowest of three; clean, beside a clean one and a violator


def test_min_valid_silences_thin_turns():
    assert golden()[0, 2] != golden(alpha=0.0)[0, 2]
    assert golden(min_valid=4)[0, 2] == golden(alpha=0.0)[0, 2]
    assert torch.equal(golden(min_valid=4)[:, :2], golden()[:, :2])
    alone = torch.tensor([[True, True], [True, False]])
    rewards = torch.tensor([[1.0, 5.0], [0.0, NAN]])
    got = relative_turns(rewards, alone, torch.zeros(2), normalise="leave_one_out")
    assert got.tolist() == [[1.0, 0.0], [-1.0, 0.0]]


def test_ended_dialogues_are_outside_or_count_zero():
    rewards, group = torch.tensor([[1.0, -1.0], [0.0, NAN]]), torch.zeros(2)
    mask = torch.tensor([[True, True], [True, False]])
    out = relative_turns(rewards, mask, group)
    assert out.tolist() == [[1.0, 0.0], [-1.0, 0.0]]
    kept = relative_turns(rewards, mask, group, ended="zero")
    assert kept.tolist() == [[1.0, -1.0], [-1.0, 0.0]]  # going on was worse than having stopped


def test_a_failed_dialogue_does_not_count_as_one_that_ended():
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    rewards = torch.tensor([[1.0, -1.0], [NAN, NAN], [NAN, NAN]])
    kept = relative_turns(rewards, mask, torch.zeros(3), ended="zero")
    assert torch.equal(kept, torch.zeros(3, 2))


# The veto


@pytest.mark.parametrize("normalise", ["rank", "zscore", "leave_one_out"])
def test_veto_is_the_last_word(normalise):
    got = golden(normalise=normalise)
    assert (got[2] == got.min()).all()
    assert got[2, 0] < got[[0, 1, 3]].min()


def test_a_veto_that_is_none_is_refused():
    for alpha in (0.5, 1.0, 2.0):
        bound = 3 + 2 * alpha
        with pytest.raises(ValueError, match=f"does not exceed {bound:g}"):
            golden(alpha=alpha, veto=bound)
        golden(alpha=alpha, veto=bound + 0.1)
        with pytest.raises(ValueError, match="does not exceed"):
            T2GRPO(alpha=alpha, veto=bound).check(["goal", "fit", "term"], 10)
        T2GRPO(alpha=alpha, veto=bound + 0.1).check(["goal", "fit", "term"], 10)
    # z-scores of ten reach 9/sqrt(10) = 2.846 each, so 16 does just for five channels and not for six.
    T2GRPO(normalise="zscore").check(["goal", "fit", "term"], 10)
    with pytest.raises(ValueError, match="such as 19"):
        T2GRPO(normalise="zscore").check(["goal", "fit", "term", "tone"], 10)
    with pytest.raises(ValueError, match="does not exceed 32"):
        advantages(CHANNELS, TURNS, MASK, VIOLATION, GROUP, weights=dict.fromkeys(CHANNELS, 10.0))


def test_the_bound_is_reached():
    best = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).double()
    group, mask = torch.zeros(10), torch.ones(10, 1, dtype=torch.bool)
    for normalise in ("rank", "zscore"):
        got = advantages(
            {"a": best, "b": best},
            {"D": best[:, None]},
            mask,
            torch.zeros(10, dtype=torch.bool),
            group,
            normalise=normalise,
            alpha=2.0,
            eps=1e-12,
        )
        assert float(got.max()) == pytest.approx(
            largest_clean(2, 1, alpha=2.0, normalise=normalise, group_size=10)
        )


def test_without_a_bound_the_floor_sinks_below_the_batch():
    values = torch.tensor([[100.0], [-50.0], [3.0]])
    mask, violation = torch.ones(3, 1, dtype=torch.bool), torch.tensor([False, False, True])
    assert apply_veto(values, mask, violation, 16.0).tolist() == [[100.0], [-50.0], [-101.0]]
    assert apply_veto(values / 10, mask, violation, 16.0).tolist() == [[10.0], [-5.0], [-16.0]]


def test_veto_from_the_turn_of_the_violation():
    at = torch.tensor([-1, -1, 1, -1])
    got = golden(veto_from_turn=True, violation_turn_B=at)
    free = golden(veto=None)[2, 0] - centred_rank(-VIOLATION.float(), GROUP)[2]
    assert free == pytest.approx(0.0, abs=1e-6)  # 2/3 + (-1 + 1/3): its first turn deserves nothing
    assert got[2].tolist() == [pytest.approx(0.0, abs=1e-6), -16, -16]
    praised = {**CHANNELS, "fit": torch.tensor([6.0, 6, 9, 0])}
    got = advantages(praised, TURNS, MASK, VIOLATION, GROUP, veto_from_turn=True, violation_turn_B=at)
    assert got[2].tolist() == [0, -16, -16]  # never reinforced
    unknown = golden(veto_from_turn=True, violation_turn_B=torch.full((4,), -1))
    assert torch.equal(unknown, golden())
    assert torch.equal(golden(veto_from_turn=True), golden())
    beyond = golden(veto_from_turn=True, violation_turn_B=torch.full((4,), 3))
    assert torch.equal(beyond, golden())  # a turn that never was cannot spare the ones before it


def test_violators_may_be_left_out_of_the_comparison():
    got = golden(exclude_violators_from_rank=True)
    keep = torch.tensor([0, 1, 3])
    alone = advantages(
        {name: x[keep] for name, x in CHANNELS.items()},
        {name: x[keep] for name, x in TURNS.items()},
        MASK[keep],
        VIOLATION[keep],
        GROUP[keep],
    )
    torch.testing.assert_close(got[keep], alone)
    assert (got[2] == -16).all()


def test_an_all_violating_group_has_no_contrast():
    got = advantages(CHANNELS, TURNS, MASK, torch.ones(4, dtype=torch.bool), GROUP)
    assert torch.equal(got, torch.where(MASK, -16.0, 0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"normalise": "ranks"}, "did you mean 'rank'"),
        ({"horizons": "both"}, "horizons is 'both'"),
        ({"turn_credit": "deltas"}, "did you mean 'delta'"),
        ({"ended": "no"}, "ended is 'no'"),
        ({"min_valid": 1}, "min_valid is 1"),
        ({"veto": 0.0}, "veto is 0.0"),
        ({"veto": NAN}, "veto is nan"),
        ({"turn_credit": "headroom"}, "give `levels`"),
        ({"horizons": "summed", "turn_credit": "return_to_go"}, "no effect"),
        ({"veto": None, "veto_from_turn": True}, "veto_from_turn=True"),
        ({"veto": None, "exclude_violators_from_rank": True}, "exclude_violators_from_rank=True"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"top_level": 0.0}, "top_level is 0.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        golden(**options)
    if "headroom" not in options.values():  # the estimator finds levels in the batch
        with pytest.raises(ValueError, match=message):
            T2GRPO(**options)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="weighted trajectory channel is 'goal'"):
        golden(weights={"fit": 1.0, "term": 1.0})
    with pytest.raises(ValueError, match="the weight of 'fit' is nan"):
        golden(weights={"goal": 1.0, "fit": NAN, "term": 1.0})


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="turn channel 'D'"):
        advantages(CHANNELS, {"D": torch.zeros(4, 2)}, MASK, VIOLATION, GROUP)
    with pytest.raises(ValueError, match="trajectory channel 'goal'"):
        advantages({"goal": torch.zeros(3)}, TURNS, MASK, VIOLATION, GROUP)
    with pytest.raises(ValueError, match="must be bool"):
        advantages(CHANNELS, TURNS, MASK.long(), VIOLATION, GROUP)
    with pytest.raises(ValueError, match=r"turn_mask_BK \(B, K\)"):
        advantages(CHANNELS, TURNS, MASK[:, 0], VIOLATION, GROUP)
