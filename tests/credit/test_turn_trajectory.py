"""T²-GRPO's credit: golden vectors by hand, and what must hold for any rewards."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.credit import CreditBatch, gdpo, grpo
from threefold.credit.normalise import centred_rank, zscore
from threefold.credit.turn_credit import relative_turns, tied_share
from threefold.credit.turn_trajectory import T2GRPO, advantages
from threefold.credit.veto import apply_veto, largest_clean

NAN = math.nan

# Four dialogues of one scenario: the third violates, the fourth ends after two turns. Worked out by hand.
GOAL, FIT, TERM = (torch.tensor(x) for x in ([8.0, 5, 8, 2], [6.0, 6, 3, 0], [4.0, 2, 3, 1]))
CHANNELS = {"goal": GOAL, "fit": FIT, "term": TERM}
DISTRESS = ([2, 1, 0, 0], [2, 2, 1, 0], [2, 3, 3, 2], [2, 2, 2])
RESISTANCE = ([1, 1, 0, 0], [1, 2, 1, 1], [1, 1, 0, 0], [1, 1, 3])
GROUP = torch.zeros(4, dtype=torch.int64)
VIOLATION = torch.tensor([False, False, True, False])
MASK = torch.tensor([[True, True, True]] * 3 + [[True, True, False]])


def falls(levels) -> torch.Tensor:
    rows = [[float(a - b) for a, b in itertools.pairwise(row)] for row in levels]
    return torch.tensor([row + [NAN] * (3 - len(row)) for row in rows])


TURNS = {"D": falls(DISTRESS), "R": falls(RESISTANCE)}


def golden(**options) -> torch.Tensor:
    return advantages(CHANNELS, TURNS, MASK, VIOLATION, GROUP, **options)


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
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        golden(**options)
    if "headroom" not in options.values():  # the estimator finds levels in the batch
        with pytest.raises(ValueError, match=message):
            T2GRPO(**options)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="turn channel 'D'"):
        advantages(CHANNELS, {"D": torch.zeros(4, 2)}, MASK, VIOLATION, GROUP)
    with pytest.raises(ValueError, match="trajectory channel 'goal'"):
        advantages({"goal": torch.zeros(3)}, TURNS, MASK, VIOLATION, GROUP)
    with pytest.raises(ValueError, match="must be bool"):
        advantages(CHANNELS, TURNS, MASK.long(), VIOLATION, GROUP)
    with pytest.raises(ValueError, match=r"turn_mask_BK \(B, K\)"):
        advantages(CHANNELS, TURNS, MASK[:, 0], VIOLATION, GROUP)


# For any rewards

tiers = st.integers(-3, 3)


@st.composite
def episodes(draw, normalise=("rank", "zscore", "leave_one_out")):
    """A batch of one or two groups of ragged episodes, with ties, failures and violations."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=2))
    group = torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)])
    count = len(group)
    lengths = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    score = st.one_of(st.integers(0, 8).map(float), st.just(NAN))
    column = st.lists(score, min_size=count, max_size=count)
    channels = {name: torch.tensor(draw(column)) for name in ("goal", "fit")[: draw(st.integers(1, 2))]}
    rewards = st.lists(
        st.lists(st.one_of(tiers.map(float), st.just(NAN)), min_size=3, max_size=3),
        min_size=count,
        max_size=count,
    )
    turns = {"D": torch.tensor(draw(rewards))}
    violation = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    options = {
        "normalise": draw(st.sampled_from(normalise)),
        "alpha": draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        "turn_credit": draw(st.sampled_from(["delta", "return_to_go", "stratified"])),
        "ended": draw(st.sampled_from(["absent", "zero"])),
        "exclude_violators_from_rank": draw(st.booleans()),
    }
    return channels, turns, mask, violation, group, options


@settings(deadline=None, max_examples=150)
@given(episodes(), st.floats(1e-3, 10))
def test_any_violator_lies_strictly_below_every_clean_entry(batch, margin):
    channels, turns, mask, violation, group, options = batch
    bound = largest_clean(
        len(channels),
        1,
        alpha=options["alpha"],
        normalise=options["normalise"],
        group_size=int(group.bincount().max()),
    )
    got = advantages(channels, turns, mask, violation, group, veto=bound + margin, **options)
    assert got.isfinite().all()
    assert (got[~mask] == 0).all()
    bad, clean = got[mask & violation[:, None]], got[mask & ~violation[:, None]]
    if len(bad):
        assert (bad < 0).all()
        if len(clean):
            assert bad.max() < clean.min()


@settings(deadline=None, max_examples=60)
@given(episodes(), st.randoms(use_true_random=False))
def test_the_order_of_episodes_does_not_matter(batch, random):
    channels, turns, mask, violation, group, options = batch
    order = list(range(len(group)))
    random.shuffle(order)
    got = advantages(channels, turns, mask, violation, group, veto=40.0, **options)
    shuffled = advantages(
        {name: x[order] for name, x in channels.items()},
        {name: x[order] for name, x in turns.items()},
        mask[order],
        violation[order],
        group[order],
        veto=40.0,
        **options,
    )
    torch.testing.assert_close(shuffled, got[order])


@settings(deadline=None, max_examples=60)
@given(episodes(normalise=("rank",)))
def test_ranks_see_order_alone(batch):
    channels, turns, mask, violation, group, options = batch
    options = {**options, "turn_credit": "delta", "ended": "absent"}
    bent = {name: x.exp() * 3 - 7 for name, x in channels.items()}
    bent_turns = {name: x**3 + x for name, x in turns.items()}
    torch.testing.assert_close(
        advantages(bent, bent_turns, mask, violation, group, **options),
        advantages(channels, turns, mask, violation, group, **options),
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_centred_ranks_have_mean_zero_and_keep_the_order(values):
    x = torch.tensor(values).double()
    ranks = centred_rank(x, torch.zeros(len(x)))
    assert float(ranks.mean()) == pytest.approx(0, abs=1e-12)
    assert ranks.abs().max() <= 1
    for i, j in itertools.product(range(len(x)), repeat=2):
        assert (x[i] > x[j]) == (ranks[i] > ranks[j])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-5, 5), st.floats(0.1, 9))
def test_of_two_values_ranks_are_z_scores_but_for_a_factor(low, high, value, gap):
    """So an outlier hurts ties exactly as much: what the paper says of ranks does not hold."""
    x = torch.tensor([value] * low + [value + gap] * high).double()
    ranks, scores = (f(x, torch.zeros(len(x))) for f in (centred_rank, zscore))
    torch.testing.assert_close(ranks / ranks[-1], scores / scores[-1])


# Through the door


def batch_of(**changes) -> CreditBatch:
    """The golden episodes with two tokens a turn, the environment's token between turns."""
    turn = torch.tensor([0, 0, -1, 1, 1, -1, 2, 2])
    turn_BT = turn.repeat(4, 1)
    turn_BT[3, 5:] = -1
    fields = {
        "rewards": CHANNELS,
        "weights": dict.fromkeys(CHANNELS, 1.0),
        "group_B": GROUP,
        "mask_BT": turn_BT >= 0,
        "turn_BT": turn_BT,
        "turn_rewards": TURNS,
        "turn_state": {
            "D": torch.tensor([[float(x) for x in (*row, NAN)[:3]] for row in DISTRESS]),
            "R": torch.tensor([[float(x) for x in (*row, NAN)[:3]] for row in RESISTANCE]),
        },
        "turn_mask_BK": MASK,
        "violation_B": VIOLATION,
        "violation_turn_B": torch.tensor([-1, -1, 1, -1]),
    }
    return CreditBatch(**{**fields, **changes})


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
