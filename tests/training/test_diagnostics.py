"""Golden figures of one constructed batch: three groups of two, one all right, one all wrong, one mixed."""

import pytest
import torch

from threefold.credit import Advantages, CreditBatch, Signals
from threefold.signals import AnswerTokens
from threefold.training.diagnostics import (
    answer_logp,
    certainty,
    confidence,
    critical_certainty,
    diagnose,
    in_words,
    initial_kl,
)

NAN = float("nan")
OUTCOME_B = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
GROUP_B = torch.tensor([0, 0, 1, 1, 2, 2])
MASK_BT = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [1, 1]], dtype=torch.bool)
ENTROPY_BT = torch.tensor([[1.0, 3.0], [2.0, 9.0], [0.5, 0.1], [0.3, 0.7], [2.0, 4.0], [1.0, 0.2]])


def _batch(outcome_B: torch.Tensor = OUTCOME_B, signals: Signals | None = None) -> CreditBatch:
    return CreditBatch(
        rewards={"accuracy": outcome_B},
        weights={"accuracy": 1.0},
        group_B=GROUP_B,
        mask_BT=MASK_BT,
        turn_BT=MASK_BT.long() - 1,
        signals=signals or Signals(),
    )


def _advantages(values_B: list[float], reward_B: list[float]) -> Advantages:
    values = torch.tensor(values_B)
    return Advantages(values=values, outcome_B=values, reward_B=torch.tensor(reward_B))


def test_dead_groups_and_where_the_gradient_comes_from() -> None:
    # Group 0 is dead in the outcome and spans 0.005 in the composite reward, group 1 spans 0.
    figures = diagnose(
        _batch(), _advantages([1.0, -1.0, 0.0, 0.0, 2.0, -2.0], [1.0, 1.005, 0.0, 0.0, 1.0, 0.0]), OUTCOME_B
    )
    assert figures["signal/groups"] == 3
    assert figures["signal/dead_outcome"] == pytest.approx(2 / 3)
    assert figures["signal/dead_all_right"] == pytest.approx(1 / 3)
    assert figures["signal/dead_all_wrong"] == pytest.approx(1 / 3)
    assert figures["signal/dead_composite@0"] == pytest.approx(1 / 3)
    assert figures["signal/dead_composite@0.0001"] == pytest.approx(1 / 3)
    assert figures["signal/dead_composite@0.01"] == pytest.approx(2 / 3)
    # |A| summed over tokens: 2 + 1 in group 0, 4 + 4 in group 2.
    assert figures["signal/gradient_share_dead"] == pytest.approx(3 / 11)
    assert figures["signal/trained_tokens"] == 11
    assert figures["signal/effective_tokens"] == 7
    assert figures["signal/outcome"] == pytest.approx(0.5)
    words = in_words(figures, "ISPO")
    assert words.startswith("2 of 3 groups gave no signal from outcomes (1 all wrong, 1 all right)")
    assert "ISPO revived 1, 27% of the gradient's weight" in words


def test_advantages_of_tokens_are_summed_up_over_trained_tokens_alone() -> None:
    """Padding is no token: the same episodes beside a longer one have the same figures."""
    values_BT = torch.tensor([[1.0, 3.0], [5.0, -99.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    told = Advantages(values=values_BT, outcome_B=OUTCOME_B, reward_B=OUTCOME_B)
    figures = diagnose(_batch(), told, OUTCOME_B)
    trained = [1.0, 3.0, 5.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert figures["signal/advantage_mean"] == pytest.approx(sum(trained) / 11)
    assert figures["signal/advantage_std"] == pytest.approx(float(torch.tensor(trained).std(unbiased=False)))
    assert figures["signal/advantage_max"] == 5


def test_words_do_not_say_revived_where_no_token_has_an_advantage() -> None:
    """Group 0's rewards differ, but its advantages do not; then no group's do."""
    rewards = [1.0, 1.005, 0.0, 0.0, 1.0, 0.0]
    for values in ([0.0, 0.0, 0.0, 0.0, 2.0, -2.0], [0.0] * 6):
        words = in_words(diagnose(_batch(), _advantages(values, rewards), OUTCOME_B), "ISPO")
        assert "ISPO's rewards differ in 1 of them, without any advantage" in words
        assert "revived" not in words


def test_words_for_dead_groups_that_move_without_a_difference_of_rewards() -> None:
    """All-wrong group 1 is pushed down as one: 4 of 8 parts of |A|, and its rewards still span 0."""
    figures = diagnose(
        _batch(), _advantages([0.0, 0.0, -1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]), OUTCOME_B
    )
    assert "; NGRPO gave them 50% of the gradient's weight" in in_words(figures, "NGRPO")


def test_words_do_not_round_a_small_share_to_nothing() -> None:
    figures = diagnose(
        _batch(), _advantages([0.01, -0.01, 0.0, 0.0, 2.0, -2.0], [1.0, 1.005, 0.0, 0.0, 1.0, 0.0]), OUTCOME_B
    )
    assert "ISPO revived 1, less than 1% of the gradient's weight" in in_words(figures, "ISPO")


def test_distance_from_the_initial_model_is_over_trained_tokens_that_were_scored() -> None:
    """11 trained tokens; row 0 has one without a score, row 1's second token is masked."""
    logp_BT = torch.full((6, 2), -1.0)
    base_BT = torch.tensor([[-1.5, NAN], [-1.5, 99.0]] + [[-1.25, -0.75]] * 4)
    signals = Signals(logp_BT=logp_BT, base_logp_BT=base_BT)
    assert initial_kl(_batch(signals=signals)) == {"signal/kl_initial": pytest.approx((0.5 + 0.5) / 10)}
    assert initial_kl(_batch(signals=Signals(logp_BT=logp_BT))) == {}
    assert "signal/kl_initial" in diagnose(
        _batch(signals=signals), _advantages([0.0] * 6, [0.0] * 6), OUTCOME_B
    )


def test_certainty_by_outcome() -> None:
    figures = certainty(ENTROPY_BT, MASK_BT, OUTCOME_B, top_fraction=0.1)
    assert figures["certainty/entropy_all_right"] == pytest.approx((1 + 3 + 2 + 2 + 4) / 5)
    assert figures["certainty/entropy_all_wrong"] == pytest.approx((0.5 + 0.1 + 0.3 + 0.7 + 1 + 0.2) / 6)
    assert figures["certainty/entropy_top_right"] == pytest.approx((3 + 2 + 4) / 3)
    assert figures["certainty/entropy_top_wrong"] == pytest.approx((0.5 + 0.7 + 1) / 3)


def test_confidence_counts_only_answers_and_an_unscorable_episode_is_in_neither() -> None:
    logp_B = torch.tensor([0.5, 0.25, 0.1]).log()
    figures = confidence(torch.cat([logp_B, torch.tensor([NAN])]), torch.tensor([1.0, 1.0, NAN, 0.0]))
    assert figures == {
        "certainty/confidence_right": pytest.approx(0.375),
        "certainty/brier": pytest.approx((0.5**2 + 0.75**2) / 2),
        "certainty/ece": pytest.approx((0.5 + 0.75) / 2),
    }


def test_answers_are_scored_whole_and_only_where_they_stand() -> None:
    logp_BT = torch.tensor([[-1.0, -0.5, -0.25], [-1.0, -2.0, -4.0]])
    logp_B = answer_logp(logp_BT, [AnswerTokens(0, 1, 3), None])
    assert logp_B[0] == -0.75
    assert logp_B[1].isnan()


def test_certainty_on_critical_tokens_is_the_papers_for_every_method() -> None:
    """Of each row's reasoning the one token of highest entropy, where it drifted by 0.3 nats or more."""
    drift_BT = torch.tensor([[0.0, 0.4], [0.2, 9.0], [0.5, 0.0], [0.0, 0.3], [9.0, 0.1], [0.4, 0.0]])
    signals = Signals(
        logp_BT=drift_BT - 5, entropy_BT=ENTROPY_BT, base_logp_BT=torch.full_like(drift_BT, -5.0)
    )
    # Critical: rows 0 (3.0), 2 (0.5), 3 (0.7), 5 (1.0); the highest of 1 and 4 have not drifted so far.
    assert critical_certainty(_batch(signals=signals), OUTCOME_B) == {
        "certainty/entropy_drifted_right": pytest.approx(3.0),
        "certainty/entropy_drifted_wrong": pytest.approx((0.5 + 0.7 + 1.0) / 3),
    }
    assert critical_certainty(_batch(signals=Signals(entropy_BT=ENTROPY_BT)), OUTCOME_B) == {}


@pytest.mark.parametrize(
    ("outcome", "mask", "reason"),
    [
        ([0.0] * 6, MASK_BT, "all members of every group have the same outcome"),
        ([NAN] * 6, MASK_BT, "the reward functions scored nothing"),
        ([1.0, 0.0] * 3, torch.zeros_like(MASK_BT), "every completion is masked"),
    ],
)
def test_why_a_loss_is_zero(outcome: list[float], mask: torch.Tensor, reason: str) -> None:
    outcome_B = torch.tensor(outcome)
    batch = CreditBatch(
        rewards={"accuracy": outcome_B},
        weights={"accuracy": 1.0},
        group_B=GROUP_B,
        mask_BT=mask,
        turn_BT=mask.long() - 1,
    )
    figures = diagnose(batch, _advantages([0.0] * 6, outcome), outcome_B)
    assert reason in in_words(figures, "GRPO")


def test_a_kl_term_moves_the_policy_where_no_token_has_an_advantage() -> None:
    outcome_B = torch.zeros(6)
    figures = diagnose(_batch(outcome_B), _advantages([0.0] * 6, [0.0] * 6), outcome_B)
    assert in_words(figures, "GRPO", kl=0.04).endswith("the KL term, of weight 0.04, alone moves the policy")
    assert "KL" not in in_words(figures, "GRPO")
    mixed = diagnose(_batch(), _advantages([1.0, -1.0] * 3, [1.0, 0.0] * 3), OUTCOME_B)
    assert "KL" not in in_words(mixed, "GRPO", kl=0.04)
