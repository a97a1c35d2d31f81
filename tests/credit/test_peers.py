"""GDPO, GiGPO, MT-GRPO and GRPO on the plain sum: what T²-GRPO is compared with."""

from __future__ import annotations

import math

import pytest
import torch
from four_dialogues import CHANNELS, GROUP, MASK, TURNS, VIOLATION, batch_of

from threefold import GDPO, GRPO, ISPO, MTGRPO, T2GRPO, GiGPO, SummedGRPO
from threefold.credit import CreditEstimator, gdpo, gigpo, grpo, mt_grpo
from threefold.credit.normalise import zscore

NAN = math.nan
PEERS = (GDPO(turns=("D", "R")), GiGPO(), MTGRPO(), SummedGRPO())


def total_turns() -> torch.Tensor:
    return torch.where(MASK, TURNS["D"] + TURNS["R"], 0)


# GDPO


def test_gdpo_tells_pairs_apart_that_grpo_confuses():
    """Two episodes, two binary rewards: (0,0)/(0,1), (0,0)/(1,1) and (1,0)/(1,1)."""
    first = torch.tensor([0.0, 0, 0, 1, 1, 1])
    second = torch.tensor([0.0, 1, 0, 1, 0, 1])
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    summed = grpo.advantages(first + second, group, eps=1e-8)
    torch.testing.assert_close(summed, torch.tensor([-0.7071, 0.7071] * 3), atol=1e-4, rtol=0)
    apart = gdpo.advantages({"a": first, "b": second}, group, eps=1e-8)
    expected = torch.tensor([-0.7071, 0.7071, -1.4142, 1.4142, -0.7071, 0.7071])
    torch.testing.assert_close(apart, expected, atol=1e-4, rtol=0)


def test_gdpo_estimator_is_t2grpo_with_all_switches_off():
    answer = GDPO(turns=("D", "R")).assign(batch_of())
    off = T2GRPO(normalise="zscore", horizons="summed", veto=None).assign(batch_of())
    torch.testing.assert_close(answer.values, off.values)
    assert answer.values.shape == (4,)
    torch.testing.assert_close(answer.outcome_B, off.outcome_B)


def test_gdpo_without_turns_works_on_any_batch():
    plain = batch_of(turn_rewards={}, turn_state={}, turn_mask_BK=None, violation_B=None)
    answer = GDPO().assign(plain)
    torch.testing.assert_close(answer.values, sum(zscore(x, GROUP) for x in CHANNELS.values()))
    weighted = GDPO().assign(batch_of(violation_B=None, weights={"goal": 2.0, "fit": 0.5, "term": 0.0}))
    expected = 2 * zscore(CHANNELS["goal"], GROUP) + 0.5 * zscore(CHANNELS["fit"], GROUP)
    torch.testing.assert_close(weighted.values, expected)


def test_whitening_standardises_what_was_scored():
    values, where = torch.tensor([1.0, 2.0, 3.0, 50.0]), torch.tensor([True, True, True, False])
    got = gdpo.whiten(values, where, eps=0.0)
    torch.testing.assert_close(got, torch.tensor([-1.0, 0.0, 1.0, 0.0]))
    assert torch.equal(gdpo.whiten(values, torch.zeros(4, dtype=torch.bool)), torch.zeros(4))
    failed = {"a": torch.tensor([1.0, 0.0, NAN]), "b": torch.tensor([2.0, 5.0, NAN])}
    got = gdpo.advantages(failed, torch.zeros(3), batch_whitening=True)
    assert got[2] == 0


def test_whitening_after_a_veto_destroys_it():
    """At 14.1 % violations (the paper's warm start) clean episodes that deserve nothing are reinforced."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(8590, generator=generator) * 1.34  # mean |A| about 1.07, as of five ranks
    values = torch.cat([clean - clean.mean(), torch.full((1410,), -16.0)])
    assert float(values.mean()) == pytest.approx(-2.26, abs=0.01)
    assert float(values.std()) == pytest.approx(5.70, abs=0.05)
    white = gdpo.whiten(values, torch.ones(10_000, dtype=torch.bool))
    of_zero = float((0 - values.mean()) / values.std())
    assert of_zero == pytest.approx(0.40, abs=0.01)
    assert float((white[:8590] > 0).float().mean()) > 0.9  # half of them before
    assert float(white.min()) > -2.5  # -16 before
    # Nobody can put that right by a larger veto: the floor tends to -sqrt(0.859 / 0.141).
    deeper = torch.cat([clean, torch.full((1410,), -1e6)])
    assert float(gdpo.whiten(deeper, deeper > -1e9).min()) == pytest.approx(-2.468, abs=0.001)


@pytest.mark.parametrize(("share", "weight"), [(0.141, 0.71), (0.076, 0.56), (0.021, 0.25)])
def test_how_much_of_the_gradient_a_veto_of_16_takes(share, weight):
    """Share of Σ|A| that is the violators', with a mean |A| of 1.05 for clean episodes: docs/t2grpo.md."""
    assert 16 * share / (16 * share + 1.05 * (1 - share)) == pytest.approx(weight, abs=0.01)


# GRPO on the plain sum


def test_plain_sum():
    answer = SummedGRPO().assign(batch_of())
    total = sum(CHANNELS.values()) + total_turns().sum(dim=1) - 5 * VIOLATION.float()
    torch.testing.assert_close(answer.reward_B, total)
    torch.testing.assert_close(answer.values, grpo.advantages(total, GROUP))
    torch.testing.assert_close(SummedGRPO(scale="none").assign(batch_of()).values, total - total.mean())


def test_plain_grpo_and_ispo_do_not_see_turns_or_violations():
    blind = batch_of(turn_rewards={}, turn_state={}, turn_mask_BK=None, violation_B=None)
    assert torch.equal(GRPO().assign(batch_of()).values, GRPO().assign(blind).values)
    rewards = {"right": torch.tensor([1.0, 0, 1, 0])}
    ispo = ISPO("right", lambda_ifd=0.0, lambda_token=0.0)
    one = ispo.assign(batch_of(rewards=rewards, weights={"right": 1.0}))
    assert torch.equal(one.values, grpo.advantages(rewards["right"], GROUP))


# MT-GRPO


def test_mt_grpo_gives_the_turn_its_own_reward_and_the_last_the_outcome():
    """Two turns of one tool call, as in the paper; the last episode never calls it."""
    outcome = torch.tensor([1.0, 0.0, 0.0, 1.0])
    rewards = torch.tensor([[0.2, 9.0], [0.0, 9.0], [0.4, 9.0], [0.5, NAN]])
    mask = torch.tensor([[True, True]] * 3 + [[True, False]])
    got = mt_grpo.advantages(outcome, {"tool": rewards}, mask, GROUP, turn_weight=0.5)
    of_outcome = zscore(outcome, GROUP)
    of_turn = zscore(torch.tensor([0.2, 0.0, 0.4, NAN]), GROUP)
    torch.testing.assert_close(got[:3, 0], (of_outcome + 0.5 * of_turn)[:3])
    torch.testing.assert_close(got[:3, 1], of_outcome[:3])
    assert got[3, 1] == 0
    # Its reward of 0.5 joins the outcome; in the others' sums the unused reward of their last turn is 9.
    combined = zscore(outcome + torch.tensor([9.2, 9.0, 9.4, 0.5]), GROUP)
    torch.testing.assert_close(got[3, 0], combined[3])
    everywhere = mt_grpo.advantages(outcome, {"tool": rewards}, mask, GROUP, final_turn=True)
    torch.testing.assert_close(everywhere[:3, 1], of_outcome[:3])  # all three have 9
    torch.testing.assert_close(everywhere[3, 0], (of_outcome + zscore(rewards[:, 0], GROUP))[3])


def test_mt_grpo_through_the_door():
    answer = MTGRPO(turn_weight=0.0).assign(batch_of())
    outcome = sum(CHANNELS.values()) - 5 * VIOLATION.float()
    expected = torch.where(batch_of().mask_BT, grpo.advantages(outcome, GROUP)[:, None], 0)
    torch.testing.assert_close(answer.values, expected)
    assert not torch.equal(MTGRPO().assign(batch_of()).values, answer.values)


# GiGPO


def test_discounted_returns_end_with_the_outcome():
    outcome = torch.tensor([10.0, 1.0])
    mask = torch.tensor([[True, True], [True, False]])
    got = gigpo.discounted_returns(outcome, {"r": torch.tensor([[1.0, 2.0], [3.0, NAN]])}, mask, gamma=0.5)
    torch.testing.assert_close(got, torch.tensor([[1 + 0.5 * 12, 12.0], [4.0, NAN]]), equal_nan=True)


def test_gigpo_compares_turns_of_equal_state_anywhere_in_the_group():
    """Two groups alike but for the second's level; distress 2 is met in turns 0, 0 and 1 of a group."""
    states = {"D": torch.tensor([[2.0, 1.0], [2.0, 2.0]] * 2)}
    rewards = {"D": torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 0.0], [4.0, 6.0]])}
    mask, group = torch.ones(4, 2, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    got = gigpo.advantages(torch.zeros(4), rewards, states, mask, group, gamma=1.0, scale="none")
    # Returns of group 0: [1, 0], [2, 2]; of distress 2: 1, 2, 2, mean 5/3; distress 1 stands alone.
    episode = torch.tensor([-0.5, 0.5])
    step = torch.tensor([[-2 / 3, 0.0], [1 / 3, 1 / 3]])
    torch.testing.assert_close(got[:2], episode[:, None] + step)
    # Group 1: returns [5, 0], [10, 6]; of distress 2: 5, 10, 6, mean 7.
    torch.testing.assert_close(
        got[2:], torch.tensor([[-2.5], [2.5]]) + torch.tensor([[-2.0, 0.0], [3.0, -1.0]])
    )


def test_gigpo_without_shared_states_is_grpo_on_the_total():
    states = {"D": torch.arange(12.0).view(4, 3)}
    got = gigpo.advantages(CHANNELS["goal"], TURNS, states, MASK, GROUP)
    total = CHANNELS["goal"] + total_turns().sum(dim=1)
    torch.testing.assert_close(got, torch.where(MASK, grpo.advantages(total, GROUP)[:, None], 0))
    unknown = {"D": torch.full((4, 3), NAN)}
    torch.testing.assert_close(gigpo.advantages(CHANNELS["goal"], TURNS, unknown, MASK, GROUP), got)


def test_gigpo_reads_states_from_the_batch():
    answer = GiGPO().assign(batch_of())
    # (D, R) before the turns: (2,1) five times, for the fourth stays there; (1,1) twice; four others once.
    assert answer.metrics["gigpo/shared_anchors"] == pytest.approx(7 / 11)
    with pytest.raises(ValueError, match="the state is 'mood'"):
        GiGPO(states=("mood",)).assign(batch_of())
    with pytest.raises(ValueError, match="name the states"):
        GiGPO(states=())


# All


@pytest.mark.parametrize("estimator", [*PEERS, T2GRPO()], ids=lambda e: type(e).__name__)
def test_each_is_an_estimator_that_knows_violations_and_stays_silent_on_failures(estimator):
    assert isinstance(estimator, CreditEstimator)
    estimator.check(["goal", "fit", "term"], 4)
    with pytest.raises(ValueError, match="group of 1"):
        estimator.check(["goal"], 1)
    answer = estimator.assign(batch_of())
    assert answer.values.isfinite().all()
    assert not answer.values.requires_grad
    clean = estimator.assign(batch_of(violation_B=torch.zeros(4, dtype=torch.bool)))
    assert answer.values[2].sum() < clean.values[2].sum()
    nothing = torch.full((4,), NAN)
    failed = estimator.assign(
        batch_of(
            rewards=dict.fromkeys(CHANNELS, nothing),
            turn_rewards={},
            turn_state={},
            violation_B=torch.zeros(4, dtype=torch.bool),
        )
    )
    assert not failed.values.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GDPO(eps=0.0), "eps is 0.0"),
        (lambda: GDPO(turns="D"), "give a tuple"),
        (lambda: GDPO().check([], 4), "no reward function and no turn channel"),
        (lambda: MTGRPO(turn_weight=-1.0), "turn_weight is -1.0"),
        (lambda: GiGPO(gamma=1.5), "gamma is 1.5"),
        (lambda: GiGPO(scale="batch"), "scale is 'batch'"),
        (lambda: SummedGRPO(violation_penalty=-5.0), "violation_penalty is -5.0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
