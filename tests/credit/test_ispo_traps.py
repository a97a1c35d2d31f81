"""Each trap of ISPO on a group made for it: there with the paper's defaults, closed with our option."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from four_tokens import batch_of, rows
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from threefold.credit import CreditBatch, Signals
from threefold.credit.grpo import GRPO
from threefold.credit.ispo import ISPO
from threefold.credit.ispo_options import (
    answers_coincide,
    measured_hinge,
    normalised_apart,
    towards_target,
)

nan = float("nan")
PAPER = ISPO.paper("accuracy")
IFD_ONLY = replace(PAPER, lambda_token=0.0)
TOKEN_ONLY = replace(PAPER, lambda_ifd=0.0)


def with_signals(batch: CreditBatch, **changed: Tensor) -> CreditBatch:
    return replace(batch, signals=replace(batch.signals, **changed))


class TestTrap1SmallSpreadsAreBlownUp:
    """An all-wrong group whose IFD differs by a thousandth, beside a mixed one."""

    batch = batch_of([0, 0, 0, 0, 1, 1, 0, 0], [1e-3, -1e-3, 1e-3, -1e-3, 0, 0, 0, 0], group_size=4)

    def test_with_the_paper_s_rule_it_pushes_nearly_as_hard_as_the_mixed_group(self) -> None:
        values_B = IFD_ONLY.assign(self.batch).values
        assert values_B[:4].abs().max() > 0.8 * values_B[4:].abs().max()

    def test_a_floor_keeps_it_small_and_leaves_the_mixed_group_alone(self) -> None:
        """Rewards of -+5e-4 over a floor of 0.1: 5e-3. The mixed group's deviation is 0.577."""
        values_B = replace(IFD_ONLY, std_floor=0.1).assign(self.batch).values
        assert values_B[:4].tolist() == pytest.approx([-5e-3, 5e-3, -5e-3, 5e-3], rel=1e-2)
        assert torch.equal(values_B[4:], IFD_ONLY.assign(self.batch).values[4:])

    def test_apart_and_capped_it_never_exceeds_the_cap(self) -> None:
        values_B = replace(IFD_ONLY, intrinsic_cap=0.2).assign(self.batch).values
        assert values_B[:4].tolist() == pytest.approx([-0.2, 0.2, -0.2, 0.2], rel=1e-4)

    def test_what_lies_within_the_cap_is_left_as_it_is(self) -> None:
        """A floor of 0.1 leaves 5e-3, far below a cap of 0.2: it is not stretched to it."""
        values_B = replace(IFD_ONLY, std_floor=0.1, intrinsic_cap=0.2).assign(self.batch).values
        assert values_B[:4].tolist() == pytest.approx([-5e-3, 5e-3, -5e-3, 5e-3], rel=1e-2)

    @given(
        st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=8, max_size=8),
        st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8),
        st.floats(0.05, 2),
    )
    def test_the_cap_bounds_what_signals_add_to_grpo(
        self, outcome: list[float], intrinsic: list[float], cap: float
    ) -> None:
        outcome_B, group_B = torch.tensor(outcome), torch.arange(8) // 4
        values_B = normalised_apart(outcome_B, torch.tensor(intrinsic), group_B, cap=cap)
        plain_B = GRPO().assign(batch_of(outcome, group_size=4)).values
        added_B = values_B - plain_B
        assert (added_B.abs() <= cap + 1e-5).all()
        assert (added_B[outcome_B.isnan()] == 0).all()
        for first in (0, 4):
            assert abs(added_B[first : first + 4].sum().item()) < 1e-4


class TestTrap3AllAnswersAreTheSame:
    """All right with the same answer: log p(A | Q) is one constant, IFD the confidence in it."""

    batch = with_signals(
        batch_of([1, 1, 1, 1], [0.01, 0.02, 0.03, 0.04]), answer_ids_BA=torch.full((4, 1), 7)
    )

    def test_with_the_paper_s_rule_confidence_alone_sets_the_advantages(self) -> None:
        assert IFD_ONLY.assign(self.batch).values.abs().max() > 1

    def test_with_the_option_such_a_group_stays_dead_and_is_counted(self) -> None:
        result = replace(IFD_ONLY, ifd_where_answers_coincide=False).assign(self.batch)
        assert result.values.tolist() == [0] * 4
        assert result.metrics["ispo/answers_coincide"] == 1.0
        assert result.metrics["ispo/ifd_right"] == pytest.approx(0.025)  # still measured

    def test_a_group_with_two_answers_is_left_alone(self) -> None:
        batch = with_signals(self.batch, answer_ids_BA=torch.tensor([[7], [7], [7], [8]]))
        expected = IFD_ONLY.assign(batch).values
        assert torch.equal(replace(IFD_ONLY, ifd_where_answers_coincide=False).assign(batch).values, expected)

    def test_padding_and_missing_answers_do_not_count_and_one_answer_is_no_agreement(self) -> None:
        ids_BA = torch.tensor([[7, 0], [7, 5], [0, 0], [7, 0], [7, 8], [9, 9]])
        answer_BA = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 0], [1, 1], [0, 0]]).bool()
        group_B = torch.tensor([0, 0, 0, 1, 1, 2])
        assert answers_coincide(ids_BA, answer_BA, group_B).tolist() == [True] * 3 + [False] * 3

    def test_it_needs_the_answers_tokens(self) -> None:
        estimator = replace(IFD_ONLY, ifd_where_answers_coincide=False)
        with pytest.raises(ValueError, match="ISPO was handed no answer_ids_BA"):
            estimator.assign(replace(self.batch, signals=replace(self.batch.signals, answer_ids_BA=None)))


class TestTrap4AllWrongGroupsArePaidForIgnoringTheReasoning:
    """All wrong; the first answer hangs on its reasoning, the second does not."""

    batch = batch_of([0, 0, 1, 0], [1.0, 0.0, 0.5, 0.5], group_size=2)

    def test_with_the_paper_s_rule_the_guess_wins(self) -> None:
        values_B = IFD_ONLY.assign(self.batch).values
        assert values_B[0] < 0 < values_B[1]

    def test_ifd_off_or_weight_zero_leaves_it_dead_and_a_weight_scales_it(self) -> None:
        paper_B = IFD_ONLY.assign(self.batch).values
        for closed, factor in (
            ({"all_wrong_ifd": False}, 0.0),
            ({"all_wrong_weight": 0.0}, 0.0),
            ({"all_wrong_weight": 0.25}, 0.25),
        ):
            values_B = replace(IFD_ONLY, **closed).assign(self.batch).values
            assert torch.allclose(values_B[:2], factor * paper_B[:2])
            assert torch.equal(values_B[2:], paper_B[2:]), "the mixed group is left alone"

    def test_ifd_is_still_measured(self) -> None:
        result = replace(IFD_ONLY, all_wrong_ifd=False).assign(self.batch)
        assert result.metrics["ispo/ifd_wrong"] == pytest.approx(0.5)


class TestTrap6CriticalTokensPay:
    """Two right, one of them without critical tokens; two wrong, likewise. Without drift C is empty."""

    @staticmethod
    def batch(outcome: list[float], empty: list[int]) -> CreditBatch:
        batch = batch_of(outcome)
        assert batch.signals.base_logp_BT is not None
        assert batch.signals.logp_BT is not None
        base_BT = batch.signals.base_logp_BT.clone()
        base_BT[empty] = batch.signals.logp_BT[empty]
        return with_signals(batch, base_logp_BT=base_BT)

    def test_with_the_paper_s_rule_avoiding_them_pays_where_right_and_having_them_where_wrong(self) -> None:
        right_B = TOKEN_ONLY.assign(self.batch([1, 1, 1], [0])).values
        assert right_B[0] > 0 > right_B[1]
        wrong_B = TOKEN_ONLY.assign(self.batch([0, 0, 0], [0])).values
        assert wrong_B[0] < 0 < wrong_B[1]

    def test_with_a_baseline_it_does_not_and_differences_among_those_that_have_them_stay(self) -> None:
        closed = replace(TOKEN_ONLY, token_baseline=True)
        for outcome in (1.0, 0.0):
            assert closed.assign(self.batch([outcome] * 3, [0])).values.tolist() == pytest.approx([0] * 3)
        batch = self.batch([1, 1, 1], [0])
        assert batch.signals.logp_BT is not None
        logp_BT = batch.signals.logp_BT.clone()
        logp_BT[1, 0], logp_BT[2, 0] = -0.3, -0.5  # mean -0.4: rewards of 1 + 0.1 * (0, 0.1, -0.1)
        result = closed.assign(with_signals(batch, logp_BT=logp_BT))
        assert result.reward_B.tolist() == pytest.approx([1.0, 1.01, 0.99])

    def test_the_outcome_s_gap_is_narrowed_and_with_a_baseline_whole(self) -> None:
        """Paper: 1 - 0.1 * 0.5 against 0.1 * 1.0, a gap of 0.85; with a baseline 1."""
        batch = self.batch([1, 1, 0, 0], [])
        paper_B = TOKEN_ONLY.assign(batch).reward_B
        assert (paper_B[0] - paper_B[2]).item() == pytest.approx(0.85)
        closed_B = replace(TOKEN_ONLY, token_baseline=True).assign(batch).reward_B
        assert (closed_B[0] - closed_B[2]).item() == pytest.approx(1.0)


class TestTrap7AnEntropyBonusIsNoTarget:
    """One prefix, four possible tokens: the expected policy gradient, summed over all of them."""

    logits_V = torch.tensor([2.0, 0.5, 0.0, -1.0])

    def expected_gradient(self, credit) -> Tensor:
        """E_y[credit(y) grad log p(y)], exact, for credit as a function of (H, log p(y))."""
        logits_V = self.logits_V.clone().requires_grad_()
        logp_V = logits_V.log_softmax(0)
        p_V = logp_V.detach().exp()
        entropy = -(p_V * logp_V.detach()).sum()
        (p_V * credit(entropy.expand(4), logp_V.detach()) * logp_V).sum().backward()
        assert logits_V.grad is not None
        return logits_V.grad

    def test_the_paper_s_bonus_pushes_no_entropy(self) -> None:
        gradient_V = self.expected_gradient(lambda entropy_V, _: entropy_V)
        assert torch.allclose(gradient_V, torch.zeros(4), atol=1e-6)

    @pytest.mark.parametrize("target", [0.2, 0.9, 2.0])
    def test_the_target_s_credit_is_the_gradient_of_the_distance_to_it(self, target: float) -> None:
        logits_V = self.logits_V.clone().requires_grad_()
        logp_V = logits_V.log_softmax(0)
        (-((-(logp_V.exp() * logp_V).sum() - target) ** 2) / 2).backward()
        gradient_V = self.expected_gradient(lambda h, lp: towards_target(h, lp, target))
        assert logits_V.grad is not None
        assert gradient_V.abs().max() > 1e-3
        assert torch.allclose(gradient_V, logits_V.grad, atol=1e-6)

    def test_the_estimator_gives_it_to_critical_tokens_of_wrong_episodes(self) -> None:
        """H = 1, log p = -0.5, target 1.5: 0.1 * (1.5 - 1) * (0.5 - 1) = -0.025 on token 0."""
        closed = replace(TOKEN_ONLY, token_credit=True, entropy_target=1.5)
        values_BT = closed.assign(batch_of([0, 0])).values
        assert torch.allclose(values_BT, rows([-0.025, 0, 0, 0]).repeat(2, 1))

    def test_it_needs_token_credit(self) -> None:
        with pytest.raises(ValueError, match=r"entropy_target is 1\.0.*set token_credit=True"):
            replace(PAPER, entropy_target=1.0)


class TestTrap8TheHingeSeldomFires:
    """Ten wrong episodes whose critical entropies run from 1.0 to 1.9 nats, far above 0.3."""

    batch = with_signals(
        batch_of([0.0] * 10),
        entropy_BT=torch.stack([torch.linspace(1.0, 1.9, 10), *[torch.zeros(10)] * 3], dim=1),
    )

    def test_with_the_paper_s_threshold_it_never_does(self) -> None:
        assert TOKEN_ONLY.assign(self.batch).metrics["ispo/hinge_active"] == 0

    def test_at_a_quantile_it_fires_on_that_share_and_punishes_the_surest(self) -> None:
        result = replace(TOKEN_ONLY, hinge_quantile=0.2).assign(self.batch)
        assert result.metrics["ispo/hinge_active"] == pytest.approx(0.2)
        assert result.metrics["ispo/hinge"] == pytest.approx(1.2)
        # 1.0 - (1.2 - 1.0) and 1.1 - (1.2 - 1.1); the others keep their entropy
        expected = [0.8, 1.0, *torch.linspace(1.2, 1.9, 8).tolist()]
        assert result.episode_signals["token_reward"].tolist() == pytest.approx(expected)

    def test_without_a_wrong_critical_token_the_fixed_threshold_stays(self) -> None:
        assert measured_hinge(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool), 0.2, 0.3) == 0.3
        assert replace(TOKEN_ONLY, hinge_quantile=0.2).assign(batch_of([1, 1])).metrics["ispo/hinge"] == 0.3


class TestTokenCredit:
    def test_critical_tokens_get_the_difference_to_their_peers_and_the_rest_the_episode_s(self) -> None:
        """Token 0 of two right and two wrong episodes: log p -0.3, -0.5; entropies 1.0, 2.0."""
        batch = batch_of([1, 1, 0, 0])
        logp_BT, entropy_BT = batch.signals.logp_BT.clone(), batch.signals.entropy_BT.clone()
        logp_BT[0, 0], entropy_BT[3, 0] = -0.3, 2.0
        result = replace(TOKEN_ONLY, token_credit=True).assign(
            with_signals(batch, logp_BT=logp_BT, entropy_BT=entropy_BT)
        )
        outcome_B = GRPO().assign(batch).values
        added_BT = result.values - outcome_B[:, None]
        expected = rows([0.01, 0, 0, 0], [-0.01, 0, 0, 0], [-0.05, 0, 0, 0], [0.05, 0, 0, 0])
        assert torch.allclose(added_BT, expected, atol=1e-6)
        assert torch.equal(result.reward_B, batch.rewards["accuracy"])

    def test_it_says_that_it_answers_per_token(self) -> None:
        assert not PAPER.per_token
        assert replace(PAPER, token_credit=True).per_token
        assert not replace(PAPER, token_credit=True, lambda_token=0.0).per_token

    def test_masked_tokens_unscorable_episodes_and_signs(self) -> None:
        batch = batch_of([1, 0, nan, 0])
        mask_BT = torch.tensor([[True, True, False, False]]).repeat(4, 1)
        logp_BT = batch.signals.logp_BT.clone()
        logp_BT[0, 0] = -9.0
        batch = replace(with_signals(batch, logp_BT=logp_BT), mask_BT=mask_BT)
        batch = with_signals(batch, base_logp_BT=batch.signals.base_logp_BT - 20)
        estimator = replace(TOKEN_ONLY, token_credit=True, lambda_token=5.0, preserve_sign=True)
        values_BT = estimator.assign(batch).values
        assert (values_BT[~mask_BT] == 0).all()
        assert (values_BT[2] == 0).all()
        assert (values_BT[0] >= 0).all()
        assert (values_BT[[1, 3]] <= 0).all()

    def test_the_cap_bounds_it_too(self) -> None:
        batch = batch_of([0, 0])
        entropy_BT = batch.signals.entropy_BT.clone()
        entropy_BT[0, 0] = 100.0
        estimator = replace(TOKEN_ONLY, token_credit=True, intrinsic_cap=0.2)
        values_BT = estimator.assign(with_signals(batch, entropy_BT=entropy_BT)).values
        assert values_BT[:, 0].tolist() == pytest.approx([0.2, -0.2])


class TestRecommended:
    def test_is_the_paper_s_signals_with_its_traps_closed(self) -> None:
        ours = ISPO.recommended("accuracy")
        assert ours.needs == PAPER.needs
        assert not ours.per_token
        for field in ("lambda_ifd", "lambda_token", "top_fraction", "drift_threshold", "alpha", "beta"):
            assert getattr(ours, field) == getattr(PAPER, field)

    @given(st.integers(0, 2**31))
    def test_right_is_never_below_wrong_and_dead_groups_never_above_the_cap(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        outcome = (torch.rand(16, generator=generator) < 0.4).float()
        ifd = torch.randn(16, generator=generator)
        values_B = ISPO.recommended("accuracy").assign(batch_of(outcome.tolist(), ifd.tolist(), 4)).values
        for first in range(0, 16, 4):
            right_B, group = outcome[first : first + 4] == 1, values_B[first : first + 4]
            if right_B.any() and (~right_B).any():
                assert group[right_B].min() >= 0 >= group[~right_B].max()
            else:
                assert group.abs().max() <= 0.5 + 1e-6

    def test_with_both_weights_zero_it_is_grpo_bit_for_bit(self) -> None:
        ours = replace(ISPO.recommended("accuracy"), lambda_ifd=0.0, lambda_token=0.0)
        batch = batch_of([1, 0, 0, nan, 1, 1, 0, 1], group_size=4)
        mixed = replace(ours, all_wrong_weight=1.0, preserve_sign=False)
        assert torch.equal(mixed.assign(batch).values, GRPO().assign(batch).values)
        assert ours.needs == frozenset()
        assert ours.assign(replace(batch, signals=Signals())).values.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"std_floor": -0.1}, r"std_floor is -0\.1, it must be a finite number at least 0"),
        ({"intrinsic_cap": 0.0}, r"intrinsic_cap is 0\.0, it must be a finite number above 0"),
        ({"all_wrong_weight": nan}, "all_wrong_weight is nan"),
        (
            {"hinge_quantile": 1.5},
            r"hinge_quantile is 1\.5, it must be .* above 0 and at most 1",
        ),
        ({"noise_control": "shufle"}, "noise_control is 'shufle', did you mean 'shuffle'"),
    ],
)
def test_an_option_outside_its_range_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ISPO("accuracy", **fields)
