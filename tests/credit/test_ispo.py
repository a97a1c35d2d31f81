"""ISPO's functions against values worked by hand and the paper's identities, right and wrong ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from threefold.credit.ispo import (
    conditional_ifd,
    critical_tokens,
    drifted_tokens,
    high_entropy_tokens,
    reward,
    token_reward,
)

nan, inf = float("nan"), float("inf")


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


class TestConditionalIFD:
    def test_is_the_mean_gap_over_the_answer(self) -> None:
        # (-0.1 + 1.1 + -0.4 + 2.0) / 2; padding holds garbage
        ifd_B = conditional_ifd(
            rows([-0.1, -0.4, nan]), rows([-1.1, -2.0, inf]), torch.tensor([[True, True, False]])
        )
        assert ifd_B.tolist() == pytest.approx([1.3])

    def test_without_an_answer_it_is_zero(self) -> None:
        assert conditional_ifd(
            rows([nan, inf]), rows([0, 0]), torch.zeros(1, 2, dtype=torch.bool)
        ).tolist() == [0]
        assert conditional_ifd(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0).bool()).tolist() == [
            0,
            0,
        ]

    def test_expected_unnormalised_gap_is_the_kl_divergence(self) -> None:
        """Proposition 1, summed over all answers of two tokens of a toy policy, not sampled."""
        first_p, first_q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
        second_p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
        second_q = torch.tensor([[0.3, 0.3, 0.4], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]])
        answers = list(itertools.product(range(3), repeat=2))
        with_trace_BA = torch.stack([torch.stack([first_p[a], second_p[a, b]]) for a, b in answers]).log()
        without_BA = torch.stack([torch.stack([first_q[a], second_q[a, b]]) for a, b in answers]).log()
        ifd_B = conditional_ifd(with_trace_BA, without_BA, torch.ones(9, 2, dtype=torch.bool))
        p_B, q_B = with_trace_BA.sum(1).exp(), without_BA.sum(1).exp()
        kl = torch.nn.functional.kl_div(q_B.log(), p_B, reduction="sum")
        assert (p_B * 2 * ifd_B).sum().item() == pytest.approx(kl.item(), abs=1e-6)
        assert kl > 0
        assert ifd_B.min() < 0, "a single sample may be negative although the mean is not"

        generator = torch.Generator().manual_seed(0)
        samples = torch.multinomial(p_B, 20_000, replacement=True, generator=generator)
        assert (2 * ifd_B[samples]).mean().item() == pytest.approx(kl.item(), abs=0.03)


class TestCriticalTokens:
    @pytest.mark.parametrize(("n", "k"), [(1, 1), (9, 1), (10, 1), (11, 2), (70, 7), (71, 8), (100, 10)])
    def test_the_entropy_set_has_ceil_of_a_tenth(self, n: int, k: int) -> None:
        """0.1 * 70 is 7.000000000000001 in floats: a plain ceiling would take eight."""
        mask_BT = torch.zeros(1, 120, dtype=torch.bool)
        mask_BT[0, :n] = True
        assert high_entropy_tokens(torch.rand(1, 120), mask_BT).sum() == k

    def test_the_earlier_token_wins_a_tie(self) -> None:
        entropy_BT = rows([1, 2, 2, 2, 0, 2], [0, 0, 0, 0, 0, 0])
        chosen_BT = high_entropy_tokens(entropy_BT, torch.ones(2, 6, dtype=torch.bool), top_fraction=1 / 3)
        assert chosen_BT.nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 1]]

    def test_each_episode_is_ranked_by_itself(self) -> None:
        entropy_BT = rows([0.1, 0.2, 0.15], [5.0, 9.0, 8.0])
        chosen_BT = high_entropy_tokens(entropy_BT, torch.ones(2, 3, dtype=torch.bool), top_fraction=0.1)
        assert chosen_BT.nonzero().tolist() == [[0, 1], [1, 1]]

    @pytest.mark.parametrize("garbage", [nan, inf, 99.0])
    def test_masked_tokens_are_never_critical_nor_counted(self, garbage: float) -> None:
        entropy_BT = rows([garbage, 0.3, 0.5, garbage], [garbage] * 4)
        mask_BT = torch.tensor([[False, True, True, False], [False] * 4])
        for fraction in (0.1, 0.5, 1.0):
            expected = [[0, 2]] if fraction <= 0.5 else [[0, 1], [0, 2]]
            chosen_BT = high_entropy_tokens(entropy_BT, mask_BT, top_fraction=fraction)
            assert chosen_BT.nonzero().tolist() == expected

    def test_drift_is_signed(self) -> None:
        drifted_BT = drifted_tokens(
            rows([-1.0, -1.0, -1.0, -2.0]), rows([-1.5, -1.25, -1.0, -1.0]), torch.tensor([[True] * 4])
        )
        assert drifted_BT.tolist() == [[True, False, False, False]]

    @pytest.mark.parametrize(
        ("combine", "expected"),
        [("intersection", [1]), ("entropy", [0, 1]), ("drift", [1, 2]), ("union", [0, 1, 2])],
    )
    def test_combinations(self, combine, expected: list[int]) -> None:
        entropy_BT, mask_BT = rows([2.0, 1.0, 0.1, 0.0]), torch.tensor([[True] * 4])
        logp_BT, base_BT = rows([-1.0, -1.0, -1.0, -1.0]), rows([-1.0, -2.0, -2.0, -1.0])
        critical_BT = critical_tokens(
            entropy_BT, logp_BT, base_BT, mask_BT, top_fraction=0.5, combine=combine
        )
        assert critical_BT[0].nonzero().flatten().tolist() == expected

    def test_at_step_0_nothing_is_critical(self) -> None:
        logp_BT, mask_BT = -torch.rand(3, 20), torch.ones(3, 20, dtype=torch.bool)
        critical_BT = critical_tokens(torch.rand(3, 20), logp_BT, logp_BT.clone(), mask_BT)
        assert not critical_BT.any()
        assert token_reward(torch.rand(3, 20), logp_BT, critical_BT, torch.tensor([1, 0, 1])).tolist() == [
            0,
            0,
            0,
        ]

    def test_the_initial_model_is_needed_except_for_entropy_alone(self) -> None:
        entropy_BT, mask_BT = rows([2.0, 1.0]), torch.tensor([[True, True]])
        assert critical_tokens(entropy_BT, entropy_BT, None, mask_BT, combine="entropy").tolist() == [
            [True, False]
        ]
        with pytest.raises(ValueError, match="combine='drift' needs base_logp_BT"):
            critical_tokens(entropy_BT, entropy_BT, None, mask_BT, combine="drift")
        with pytest.raises(ValueError, match=r"combine is 'intersect', did you mean 'intersection'\?"):
            critical_tokens(entropy_BT, entropy_BT, None, mask_BT, combine="intersect")  # type: ignore[arg-type]

    @given(st.integers(1, 40), st.integers(0, 2**31), st.floats(0.01, 1))
    def test_set_size_and_threshold_for_any_episode(self, width: int, seed: int, fraction: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        entropy_BT = torch.randint(0, 5, (3, width), generator=generator).float()
        mask_BT = torch.rand(3, width, generator=generator) < 0.7
        chosen_BT = high_entropy_tokens(entropy_BT, mask_BT, top_fraction=fraction)
        assert not (chosen_BT & ~mask_BT).any()
        for entropy_T, mask_T, chosen_T in zip(entropy_BT, mask_BT, chosen_BT, strict=True):
            n, k = int(mask_T.sum()), int(chosen_T.sum())
            assert (k >= 1) == (n >= 1)
            assert fraction * n - 1e-3 <= k < max(fraction * n + 1 + 1e-3, 1.5)
            if 0 < k < n:
                assert entropy_T[chosen_T].min() >= entropy_T[mask_T & ~chosen_T].max()


class TestTokenReward:
    @pytest.mark.parametrize(("entropy", "expected"), [(0.1, -0.1), (0.3, 0.3), (1.0, 1.0), (0.0, -0.3)])
    def test_hinge_of_a_wrong_episode(self, entropy: float, expected: float) -> None:
        # 0.1 - (0.3 - 0.1) = -0.1; from the hinge on, the entropy itself
        token_B = token_reward(
            rows([entropy]), rows([-9.0]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([False])
        )
        assert token_B.item() == pytest.approx(expected)

    def test_right_episodes_get_mean_logp_over_critical_tokens_only(self) -> None:
        critical_BT = torch.tensor([[True, False, True, False]])
        token_B = token_reward(
            rows([9, nan, 9, inf]), rows([-1.0, nan, -3.0, -inf]), critical_BT, torch.tensor([True])
        )
        assert token_B.tolist() == [-2.0]

    def test_alpha_and_beta_weigh_entropy_and_penalty(self) -> None:
        # mean of 2 * 0.1 - 3 * 0.2 and 2 * 1.0
        token_B = token_reward(
            rows([0.1, 1.0]), rows([0, 0]), torch.ones(1, 2).bool(), torch.tensor([False]), alpha=2, beta=3
        )
        assert token_B.item() == pytest.approx((-0.4 + 2.0) / 2)

    def test_fractional_outcomes_mix_the_two_linearly(self) -> None:
        args = (rows([1.0]).repeat(4, 1), rows([-2.0]).repeat(4, 1), torch.ones(4, 1).bool())
        mixed_B = token_reward(*args, torch.tensor([1.0, 0.25, 0.0, nan]))
        assert mixed_B.tolist() == [-2.0, 0.25 * -2.0 + 0.75 * 1.0, 1.0, 0.0]

    def test_the_other_branch_cannot_spoil_a_pure_outcome(self) -> None:
        token_B = token_reward(
            rows([1.0], [inf]), rows([-inf], [-2.0]), torch.ones(2, 1).bool(), rows([0, 1])[0]
        )
        assert token_B.tolist() == [1.0, -2.0]

    @pytest.mark.parametrize(("symmetric", "expected"), [("correct", [-2.0, -2.0]), ("wrong", [1.0, 1.0])])
    def test_symmetric_ablation_in_both_readings(self, symmetric, expected: list[float]) -> None:
        args = (
            rows([1.0], [1.0]),
            rows([-2.0], [-2.0]),
            torch.ones(2, 1).bool(),
            torch.tensor([True, False]),
        )
        assert token_reward(*args, symmetric=symmetric).tolist() == expected


class TestReward:
    def test_by_hand(self) -> None:
        # 1 + 0.5 * 0.4 - 0.1 * 1.5 and 0 - 0.5 * 0.2 + 0.1 * 1.5: section 5's compressed gap
        reward_B = reward(rows([1, 0])[0], rows([0.4, 0.2])[0], rows([-1.5, 1.5])[0])
        assert reward_B.tolist() == pytest.approx([1.05, 0.05])

    def test_a_weight_of_zero_keeps_nan_out(self) -> None:
        outcome_B, nan_B = rows([1, 0])[0], rows([nan, nan])[0]
        assert torch.equal(reward(outcome_B, nan_B, nan_B, lambda_ifd=0, lambda_token=0), outcome_B)

    @pytest.mark.parametrize("outcome", [0.0, 1.0])
    def test_equation_9_needs_the_sign_of_the_outcome(self, outcome: float) -> None:
        generator = torch.Generator().manual_seed(3)
        ifd_B = torch.randn(50, generator=generator, dtype=torch.float64)
        token_B = 0.8 * ifd_B + torch.randn(50, generator=generator, dtype=torch.float64)
        variance = reward(torch.full_like(ifd_B, outcome), ifd_B, token_B).var().item()
        cov = torch.cov(torch.stack([ifd_B, token_B]))
        apart = (0.25 * cov[0, 0] + 0.01 * cov[1, 1]).item()
        cross = (2 * 0.5 * 0.1 * cov[0, 1]).item()
        assert variance == pytest.approx(apart + (2 * outcome - 1) * cross)
        if outcome == 0.0:
            assert variance != pytest.approx(apart + cross, rel=0.1), (
                "as printed, Eq. 9 fails for wrong answers"
            )

    def test_proposition_2_fails_where_the_terms_cancel(self) -> None:
        """All wrong, every IFD different, and yet no spread: -0.5 IFD + 0.1 (5 IFD) = 0."""
        ifd_B = torch.arange(8, dtype=torch.float32) / 8
        assert reward(torch.zeros(8), ifd_B, 5 * ifd_B).std() < 1e-7
