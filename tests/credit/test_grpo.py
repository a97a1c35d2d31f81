"""GRPO is TRL's arithmetic, bit for bit, unscorable episodes included."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from threefold.credit import CreditBatch, CreditEstimator
from threefold.credit.grpo import GRPO, advantages, check_range, combine

nan = float("nan")


def trl_advantages(
    rewards_BF: Tensor, weights_F: Tensor, group_size: int, scale: str
) -> tuple[Tensor, Tensor]:
    """GRPOTrainer's inline "sum_then_normalize" with its own `nanstd`: combined rewards and advantages."""
    unscorable_B = torch.isnan(rewards_BF).all(dim=1)
    rewards_B = (rewards_BF * weights_F.unsqueeze(0)).nansum(dim=1)
    rewards_B[unscorable_B] = nan
    mean_B = torch.nanmean(rewards_B.view(-1, group_size), dim=1).repeat_interleave(group_size, dim=0)
    if scale == "batch":
        std_B = nanstd(rewards_B).expand_as(rewards_B)
    else:
        std_B = nanstd(rewards_B.view(-1, group_size), dim=1).repeat_interleave(group_size, dim=0)
    values_B = rewards_B - mean_B
    if scale != "none":
        values_B = values_B / (std_B + 1e-4)
    return rewards_B, torch.nan_to_num(values_B, nan=0.0)


def batch_of(rewards: dict[str, Tensor], weights: dict[str, float], group_size: int) -> CreditBatch:
    count = len(next(iter(rewards.values())))
    return CreditBatch(
        rewards=rewards,
        weights=weights,
        group_B=torch.arange(count) // group_size,
        mask_BT=torch.ones(count, 3, dtype=torch.bool),
        turn_BT=torch.zeros(count, 3, dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("scale", "group_size", "missing"),
    list(itertools.product(["group", "batch", "none"], [2, 8, 16], [0.0, 0.4])),
)
def test_rewards_and_advantages_are_bit_equal_to_trl(scale, group_size: int, missing: float) -> None:
    generator = torch.Generator().manual_seed(7)
    weights = {"accuracy": 1.0, "format": 0.1, "length": -0.37}
    for _ in range(10):
        rewards_BF = torch.randn(5 * group_size, 3, generator=generator)
        rewards_BF[torch.rand(rewards_BF.shape, generator=generator) < missing] = nan
        rewards = {name: rewards_BF[:, f].clone() for f, name in enumerate(weights)}
        result = GRPO(scale=scale).assign(batch_of(rewards, weights, group_size))
        weights_F = torch.tensor(list(weights.values()), dtype=torch.float32)
        reward_B, values_B = trl_advantages(rewards_BF, weights_F, group_size, scale)
        assert torch.equal(result.reward_B.nan_to_num(nan=99.0), reward_B.nan_to_num(nan=99.0))
        assert torch.equal(result.values, values_B)
        assert torch.equal(result.outcome_B, values_B)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # group means 0.5 and 3, unbiased variances 1/3 and 12; all eight: mean 1.75, variance (74 - 24.5) / 7
        ("none", (0.5, -0.5, 0.5, -0.5, -3, 3, 3, -3)),
        (
            "group",
            (0.75**0.5, -(0.75**0.5), 0.75**0.5, -(0.75**0.5), *(s * 0.75**0.5 for s in (-1, 1, 1, -1))),
        ),
        ("batch", tuple(v / (49.5 / 7) ** 0.5 for v in (0.5, -0.5, 0.5, -0.5, -3, 3, 3, -3))),
    ],
)
def test_three_scalings_by_hand(scale, expected: tuple[float, ...]) -> None:
    rewards_B = torch.tensor([1.0, 0, 1, 0, 0, 6, 6, 0])
    values_B = advantages(rewards_B, torch.arange(8) // 4, scale=scale, eps=1e-9)
    assert torch.allclose(values_B, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_an_unscorable_episode_gets_zero_and_leaves_the_baseline_alone(scale) -> None:
    with_it = advantages(torch.tensor([1.0, nan, 0.0]), torch.zeros(3, dtype=torch.int64), scale=scale)
    without = advantages(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64), scale=scale)
    assert with_it[1] == 0
    assert torch.equal(with_it[[0, 2]], without)


def test_a_missing_score_counts_nothing_but_a_row_of_them_is_unscorable() -> None:
    rewards = {"a": torch.tensor([1.0, nan, nan]), "b": torch.tensor([nan, 3.0, nan])}
    combined_B = combine(rewards, {"a": 2.0, "b": 0.5})
    assert combined_B[:2].tolist() == [2.0, 1.5]
    assert combined_B[2].isnan()


def test_is_a_credit_estimator_that_measures_nothing() -> None:
    estimator = GRPO()
    assert isinstance(estimator, CreditEstimator)
    assert estimator.needs == frozenset()
    estimator.check(["accuracy"], 8)


def test_no_gradient_comes_out() -> None:
    rewards = {"accuracy": torch.tensor([1.0, 0.0], requires_grad=True)}
    for scale in ("group", "batch", "none"):
        result = GRPO(scale=scale).assign(batch_of(rewards, {"accuracy": 1.0}, 2))
        assert not any(t.requires_grad for t in (result.values, result.outcome_B, result.reward_B))


def test_bad_input_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"scale is 'groups', did you mean 'group'\? valid: 'group', 'batch', 'none'"
    ):
        GRPO(scale="groups")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eps is 0\.0, it must be a finite number above 0"):
        GRPO(eps=0.0)
    with pytest.raises(ValueError, match="scale is 'std'"):
        advantages(torch.zeros(2), torch.zeros(2, dtype=torch.int64), scale="std")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'acuracy' has no weight, did you mean 'accuracy'\?"):
        combine({"acuracy": torch.zeros(2)}, {"accuracy": 1.0})
    with pytest.raises(ValueError, match="no reward function"):
        combine({}, {})
    with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
        GRPO().check(["accuracy"], 1)
    with pytest.raises(ValueError, match="no reward function"):
        GRPO().check([], 8)
    with pytest.raises(ValueError, match="k is nan, it must be a finite number above 0 and at most 1"):
        check_range("k", nan, above=0.0, most=1.0)
