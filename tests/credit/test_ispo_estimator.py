"""ISPO as an estimator: a step by hand, the traps that its docstring warns of, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from four_tokens import batch_of, rows
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from threefold.credit import CreditEstimator, Signals, grpo
from threefold.credit.ispo import ISPO, conditional_ifd, reward, token_reward

nan, inf = float("nan"), float("inf")


def measured(signals: Signals) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in vars(signals).items() if tensor is not None]


class TestTraps:
    def test_dividing_by_the_deviation_undoes_a_small_lambda(self) -> None:
        """All wrong, two rewards of each sign: advantages of sqrt(3/4) whatever the spread of IFD."""
        for spread in (0.2, 0.05, 0.005):
            batch = batch_of([0.0] * 4, [spread, -spread, spread, -spread])
            advantage = ISPO("accuracy", lambda_token=0, eps=1e-6).assign(batch).values.abs().max().item()
            assert advantage == pytest.approx(0.75**0.5, rel=2e-3)

    def test_eps_is_a_soft_floor_and_scale_none_keeps_lambda(self) -> None:
        # R = -+5e-5, deviation 1e-4 / sqrt 3 = 5.774e-5: 5e-5 / (5.774e-5 + 1e-4) = 0.317
        batch = batch_of([0.0] * 4, [1e-4, -1e-4, 1e-4, -1e-4])
        values_B = ISPO("accuracy", lambda_token=0, eps=1e-4).assign(batch).values
        assert values_B.tolist() == pytest.approx([-0.317, 0.317, -0.317, 0.317], abs=1e-3)
        values_B = ISPO("accuracy", lambda_token=0, scale="none").assign(batch).values
        assert values_B.tolist() == pytest.approx([-5e-5, 5e-5, -5e-5, 5e-5], rel=1e-2)

    @pytest.mark.parametrize(("delta", "expected"), [(0.30, 0.014), (0.40, -0.030)])
    def test_a_right_answer_can_get_a_negative_advantage(self, delta: float, expected: float) -> None:
        """Seven of eight right; rewards 1.15 and -0.01; one right IFD lies delta below its peers' 0.30.

        R - mean R = 1.16 / 8 - 0.5 * delta * 7 / 8, which changes sign at delta = 0.331.
        """
        batch = batch_of([1.0] * 7 + [0.0], [0.30 - delta] + [0.30] * 6 + [0.02])
        plain = ISPO("accuracy", lambda_token=0, scale="none")
        values_B = plain.assign(batch).values
        assert values_B[0].item() == pytest.approx(expected, abs=5e-4)
        clamped_B = replace(plain, preserve_sign=True).assign(batch).values
        assert clamped_B[0].item() == pytest.approx(max(values_B[0].item(), 0.0))
        assert torch.equal(clamped_B[1:], values_B[1:])

    def test_a_right_episode_without_critical_tokens_beats_its_peers(self) -> None:
        batch = batch_of([1.0, 1.0])
        base_BT = batch.signals.base_logp_BT.clone()
        base_BT[0] = batch.signals.logp_BT[0]
        values_B = (
            ISPO("accuracy")
            .assign(replace(batch, signals=replace(batch.signals, base_logp_BT=base_BT)))
            .values
        )
        assert values_B[0] > 0 > values_B[1]


class TestEstimator:
    def test_the_paper_s_step_by_hand(self) -> None:
        batch = batch_of([1.0, 1.0, 0.0, 0.0], [0.4, 0.0, 0.4, 0.0])
        result = ISPO.paper("accuracy").assign(batch)
        # right: 1 + 0.5 IFD + 0.1 * -0.5; wrong: -0.5 IFD + 0.1 * 1.0
        rewards = [1.15, 0.95, -0.1, 0.1]
        assert result.reward_B.tolist() == pytest.approx(rewards)
        mean = sum(rewards) / 4
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 3)
        assert result.values.tolist() == pytest.approx([(r - mean) / (deviation + 1e-4) for r in rewards])
        assert result.outcome_B.tolist() == pytest.approx([0.8658, 0.8658, -0.8658, -0.8658], abs=1e-4)
        assert result.episode_signals["ifd"].tolist() == pytest.approx([0.4, 0.0, 0.4, 0.0])
        assert result.episode_signals["token_reward"].tolist() == pytest.approx([-0.5, -0.5, 1.0, 1.0])
        assert torch.equal(result.episode_signals["reward"], result.reward_B)
        assert torch.equal(result.token_signals["critical"], rows([1, 0, 0, 0]).repeat(4, 1))
        assert torch.equal(result.token_signals["entropy"], batch.signals.entropy_BT)
        assert dict(result.metrics) == pytest.approx(
            {
                "ispo/unscorable": 0,
                "ispo/non_finite_signals": 0,
                "ispo/no_answer": 0,
                "ispo/ifd_right": 0.2,
                "ispo/ifd_wrong": 0.2,
                "ispo/entropy_set": 0.25,
                "ispo/drift_set": 0.25,
                "ispo/critical_set": 0.25,
                "ispo/empty_critical": 0,
                "ispo/token_reward_right": -0.5,
                "ispo/token_reward_wrong": 1.0,
                "ispo/hinge_active": 0,
                "certainty/entropy_critical_right": 1.0,
                "certainty/entropy_critical_wrong": 1.0,
            }
        )

    def test_hinge_active_counts_critical_tokens_of_wrong_episodes_below_the_hinge(self) -> None:
        batch = batch_of([1.0, 0.0, 0.0])
        entropy_BT = batch.signals.entropy_BT.clone()
        entropy_BT[:2] = 0.0  # the first is right and does not count
        result = ISPO("accuracy").assign(
            replace(batch, signals=replace(batch.signals, entropy_BT=entropy_BT))
        )
        assert result.metrics["ispo/hinge_active"] == 0.5

    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    def test_with_both_weights_zero_it_is_grpo_bit_for_bit(self, scale) -> None:
        """Other rewards, NaN and poisoned signals included; nothing need be measured."""
        generator = torch.Generator().manual_seed(11)
        outcome_B = (torch.rand(16, generator=generator) < 0.5).float()
        outcome_B[[3, 9]] = nan
        style_B = torch.randn(16, generator=generator)
        style_B[[3, 5]] = nan
        batch = replace(
            batch_of([0.0] * 16, [nan] * 16, group_size=8),
            rewards={"accuracy": outcome_B, "style": style_B},
            weights={"accuracy": 1.0, "style": 0.3},
        )
        estimator = ISPO("accuracy", lambda_ifd=0, lambda_token=0, scale=scale, preserve_sign=True)
        assert estimator.needs == frozenset()
        expected = grpo.GRPO(scale=scale).assign(batch)
        for handed in (batch, replace(batch, signals=Signals())):
            result = estimator.assign(handed)
            assert torch.equal(result.values, expected.values)
            assert torch.equal(result.outcome_B, expected.outcome_B)
            assert torch.equal(result.reward_B.nan_to_num(nan=99), expected.reward_B.nan_to_num(nan=99))

    def test_at_step_0_only_ifd_moves_the_reward(self) -> None:
        batch = batch_of([1.0, 0.0], [0.4, 0.2])
        signals = replace(batch.signals, base_logp_BT=batch.signals.logp_BT)
        result = ISPO("accuracy").assign(replace(batch, signals=signals))
        assert result.reward_B.tolist() == pytest.approx([1.2, -0.1])
        assert result.metrics["ispo/empty_critical"] == 1.0
        assert "ispo/hinge_active" not in result.metrics
        assert "certainty/entropy_critical_wrong" not in result.metrics

    def test_other_rewards_are_unsigned_and_weights_leave_ifd_alone(self) -> None:
        batch = replace(
            batch_of([1.0, 0.0], [0.4, 0.4]),
            rewards={"accuracy": torch.tensor([1.0, 0.0]), "style": torch.tensor([0.5, 0.5])},
            weights={"accuracy": 3.0, "style": 2.0},
        )
        result = ISPO("accuracy", lambda_token=0).assign(batch)
        assert result.reward_B.tolist() == pytest.approx([3.0 + 1.0 + 0.2, 0.0 + 1.0 - 0.2])

    def test_an_unscorable_outcome_is_out_of_the_baseline(self) -> None:
        scored = ISPO("accuracy").assign(batch_of([1.0, 0.0], [0.4, 0.2]))
        batch = batch_of([1.0, nan, 0.0], [0.4, 5.0, 0.2])
        batch = replace(
            batch,
            rewards={**batch.rewards, "style": torch.ones(3)},
            weights={"accuracy": 1.0, "style": 0.0},
        )
        result = ISPO("accuracy").assign(batch)
        assert result.values[1] == 0
        assert result.outcome_B[1] == 0
        assert result.reward_B[1].isnan()
        assert torch.allclose(result.values[[0, 2]], scored.values)
        assert result.metrics["ispo/unscorable"] == 1

    @pytest.mark.parametrize("value", [nan, inf, -inf])
    def test_a_signal_that_is_not_finite_adds_nothing_and_is_counted(self, value: float) -> None:
        batch = batch_of([1.0, 1.0, 0.0], [0.4, 0.2, 0.0])
        entropy_BT, answer_BA = batch.signals.entropy_BT.clone(), batch.signals.answer_logp_BA.clone()
        entropy_BT[0, 2] = value
        answer_BA[1, 0] = value
        signals = replace(batch.signals, entropy_BT=entropy_BT, answer_logp_BA=answer_BA)
        result = ISPO("accuracy").assign(replace(batch, signals=signals))
        assert result.reward_B.tolist() == pytest.approx([1 + 0.2, 1 - 0.05, 0.1])
        assert result.metrics["ispo/non_finite_signals"] == 2
        assert all(math.isfinite(value) for value in result.metrics.values())

    def test_only_trained_tokens_of_the_reasoning_are_eligible(self) -> None:
        batch = batch_of([1.0, 0.0])
        base_BT = torch.full((2, 4), -9.0)  # all have drifted
        thinking_BT = torch.tensor([[False, True, True, True]]).repeat(2, 1)
        mask_BT = torch.tensor([[True, False, True, True]]).repeat(2, 1)
        signals = replace(batch.signals, base_logp_BT=base_BT, thinking_BT=thinking_BT)
        result = ISPO("accuracy").assign(replace(batch, signals=signals, mask_BT=mask_BT))
        assert torch.equal(result.token_signals["critical"], rows([0, 0, 1, 0]).repeat(2, 1))
        signals = replace(signals, thinking_BT=None)
        result = ISPO("accuracy").assign(replace(batch, signals=signals, mask_BT=mask_BT))
        assert torch.equal(result.token_signals["critical"], rows([1, 0, 0, 0]).repeat(2, 1))

    def test_an_episode_without_an_answer_has_ifd_zero_and_keeps_its_token_reward(self) -> None:
        batch = batch_of([0.0, 0.0], [0.4, 0.4])
        answer_BA = torch.tensor([[True], [False]])
        result = ISPO("accuracy").assign(replace(batch, signals=replace(batch.signals, answer_BA=answer_BA)))
        assert result.reward_B.tolist() == pytest.approx([-0.2 + 0.1, 0.1])
        assert result.metrics["ispo/no_answer"] == 0.5
        assert result.metrics["ispo/ifd_wrong"] == pytest.approx(0.4)

    @given(st.permutations(range(8)), st.integers(0, 2**31))
    def test_goes_along_with_any_permutation_of_the_batch(self, order: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        outcome_B = (torch.rand(8, generator=generator) < 0.5).float()
        batch = batch_of(outcome_B.tolist(), torch.randn(8, generator=generator).tolist(), group_size=4)
        shuffled = replace(
            batch_of(outcome_B[order].tolist()),
            group_B=batch.group_B[order],
            signals=Signals(**{name: tensor[order] for name, tensor in measured(batch.signals)}),
        )
        straight, mixed = ISPO("accuracy").assign(batch), ISPO("accuracy").assign(shuffled)
        # A group in another order is summed in another order, hence the tolerance.
        assert torch.allclose(straight.values[order], mixed.values, atol=1e-4)

    def test_no_gradient_comes_out(self) -> None:
        batch = batch_of([1.0, 0.0], [0.4, 0.2])
        signals = Signals(
            **{
                name: tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
                for name, tensor in measured(batch.signals)
            }
        )
        rewards = {"accuracy": batch.rewards["accuracy"].clone().requires_grad_()}
        batch = replace(batch, signals=signals, rewards=rewards)
        for estimator in (ISPO("accuracy"), ISPO("accuracy", lambda_ifd=0, lambda_token=0)):
            result = estimator.assign(batch)
            outputs = [result.values, result.outcome_B, result.reward_B]
            outputs += [*result.episode_signals.values(), *result.token_signals.values()]
            assert not any(tensor.requires_grad for tensor in outputs)
        outcome_B = rewards["accuracy"]
        assert not reward(outcome_B, outcome_B, outcome_B).requires_grad
        assert not reward(outcome_B, outcome_B, outcome_B, lambda_ifd=0, lambda_token=0).requires_grad
        assert not conditional_ifd(
            signals.answer_logp_BA, signals.ablated_answer_logp_BA, signals.answer_BA
        ).requires_grad
        critical_BT = torch.ones(2, 4, dtype=torch.bool)
        assert not token_reward(signals.entropy_BT, signals.logp_BT, critical_BT, outcome_B).requires_grad


class TestWhatIsNeeded:
    @pytest.mark.parametrize(
        ("fields", "needs"),
        [
            ({}, {"policy", "base", "ablated_answer"}),
            ({"lambda_token": 0.0}, {"policy", "ablated_answer"}),
            ({"lambda_ifd": 0.0}, {"policy", "base"}),
            ({"lambda_ifd": 0.0, "combine": "entropy"}, {"policy"}),
            ({"lambda_ifd": 0.0, "lambda_token": 0.0}, set()),
        ],
    )
    def test_only_what_the_configuration_uses(self, fields: dict, needs: set[str]) -> None:
        estimator = ISPO("accuracy", **fields)
        assert isinstance(estimator, CreditEstimator)
        assert estimator.needs == needs

    @pytest.mark.parametrize(
        ("fields", "unused"),
        [
            ({"lambda_token": 0.0}, ("logp_BT", "entropy_BT", "base_logp_BT", "thinking_BT")),
            ({"lambda_ifd": 0.0}, ("answer_BA", "answer_logp_BA", "ablated_answer_logp_BA")),
            ({"combine": "entropy"}, ("base_logp_BT",)),
        ],
    )
    def test_what_is_not_used_is_not_read(self, fields: dict, unused: tuple[str, ...]) -> None:
        batch = batch_of([1.0, 0.0, 1.0], [0.4, 0.2, 0.0])
        estimator = ISPO("accuracy", **fields)
        whole = estimator.assign(batch)
        without = estimator.assign(replace(batch, signals=replace(batch.signals, **dict.fromkeys(unused))))
        assert torch.equal(whole.values, without.values)
        assert whole.metrics == without.metrics
        poison = {
            name: torch.full_like(getattr(batch.signals, name), nan) for name in unused if "logp" in name
        }
        poisoned = estimator.assign(replace(batch, signals=replace(batch.signals, **poison)))
        assert torch.equal(whole.values, poisoned.values)

    @pytest.mark.parametrize("name", ["logp_BT", "entropy_BT", "base_logp_BT", "answer_BA", "answer_logp_BA"])
    def test_a_missing_signal_is_named(self, name: str) -> None:
        batch = batch_of([1.0, 0.0])
        with pytest.raises(ValueError, match=f"ISPO was handed no {name}"):
            ISPO("accuracy").assign(replace(batch, signals=replace(batch.signals, **{name: None})))


class TestBadInput:
    @pytest.mark.parametrize("outcome", [1.5, -1.0, inf])
    def test_an_outcome_outside_0_to_1_names_episode_and_value(self, outcome: float) -> None:
        with pytest.raises(
            ValueError, match=rf"'accuracy' gave episode 2 of the batch {outcome:g}: .* in \[0, 1\]"
        ):
            ISPO("accuracy").assign(batch_of([1.0, nan, outcome]))

    def test_an_unknown_outcome_is_refused_with_the_nearest_name(self) -> None:
        with pytest.raises(ValueError, match=r"ISPO's outcome is 'acuracy', did you mean 'accuracy'\?"):
            ISPO("acuracy").check(["format", "accuracy"], 8)
        with pytest.raises(ValueError, match="ISPO's outcome is 'zzz', valid: 'accuracy'"):
            ISPO("zzz").assign(batch_of([1.0, 0.0]))

    def test_groups_of_one_are_refused(self) -> None:
        with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
            ISPO("accuracy").check(["accuracy"], 1)
        ISPO("accuracy").check(["accuracy"], 2)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"lambda_ifd": -0.1}, "lambda_ifd is -0.1, it must be a finite number at least 0"),
            ({"lambda_token": nan}, "lambda_token is nan, it must be a finite number at least 0"),
            ({"top_fraction": 0.0}, "top_fraction is 0.0, it must be a finite number above 0 and at most 1"),
            ({"top_fraction": 10}, "top_fraction is 10, it must be a finite number above 0 and at most 1"),
            ({"drift_threshold": -1.0}, "drift_threshold is -1.0"),
            ({"hinge": inf}, "hinge is inf"),
            ({"eps": 0.0}, "eps is 0.0, it must be a finite number above 0"),
            ({"combine": "both"}, "combine is 'both', valid: 'intersection', 'entropy', 'drift', 'union'"),
            ({"symmetric": "right"}, "symmetric is 'right', valid: 'none', 'correct', 'wrong'"),
            ({"scale": "batches"}, "scale is 'batches', did you mean 'batch'"),
        ],
    )
    def test_a_field_outside_its_range_is_named(self, fields: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            ISPO("accuracy", **fields)
