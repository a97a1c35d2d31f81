"""GTPO and GRPO-S: shaped rewards by hand, and what each normalisation makes of them."""

from __future__ import annotations

import pytest
import torch
from groups import batch_of, reordered
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit import CreditEstimator
from threefold.credit.gtpo import GRPOS, GTPO, shaped_rewards

nan = float("nan")


def shaped(entropy: list[list[float]], right: list[bool], lengths: list[int]) -> torch.Tensor:
    entropy_BT = torch.tensor(entropy)
    mask_BT = torch.arange(entropy_BT.size(1)) < torch.tensor(lengths)[:, None]
    group_B = torch.zeros(len(right), dtype=torch.int64)
    return shaped_rewards(entropy_BT, mask_BT, torch.tensor(right), group_B)


def test_two_right_and_a_wrong_episode_by_hand() -> None:
    """At each position the right ones share 2 * 0.1 as 3 : 1; the wrong one has its 0.1 to itself."""
    values_BT = shaped([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]], [True, True, False], [2, 2, 2])
    assert torch.allclose(values_BT, torch.tensor([[1.15, 1.05], [1.05, 1.15], [-1.1, -1.1]]))


def test_wrong_episodes_share_by_inverse_entropy() -> None:
    """1/4 and 1: shares of 1/5 and 4/5 of 2 * 0.1."""
    values_BT = shaped([[4.0, 1.0], [1.0, 4.0]], [False, False], [2, 2])
    assert torch.allclose(values_BT, torch.tensor([[-1.04, -1.16], [-1.16, -1.04]]))


def test_only_episodes_that_are_still_alive_share_a_position() -> None:
    """At the second position one right episode is left: d = 1, and it takes all of 0.1."""
    values_BT = shaped([[3.0, 7.0], [1.0, 9.0]], [True, True], [2, 1])
    assert torch.allclose(values_BT, torch.tensor([[1.15, 1.1], [1.05, 0.0]]))


def test_positions_without_any_entropy_are_shared_equally() -> None:
    values_BT = shaped([[0.0], [0.0], [0.0], [0.0]], [True, True, False, False], [1, 1, 1, 1])
    assert torch.allclose(values_BT, torch.tensor([[1.1], [1.1], [-1.1], [-1.1]]))


def test_apart_gives_right_and_wrong_tokens_mean_zero_and_joint_does_not() -> None:
    """Two right, two wrong episodes of one token, entropies 3 : 1: rewards 1.15, 1.05, -1.05, -1.15."""
    batch = batch_of([1, 1, 0, 0], entropy_BT=torch.tensor([[3.0], [1.0], [3.0], [1.0]]))
    apart_B = GTPO("accuracy", eps=1e-9).assign(batch).values[:, 0]
    assert apart_B.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5), 0.5**0.5, -(0.5**0.5)], rel=1e-4)
    joint_B = GTPO("accuracy", normalise="joint", eps=1e-9).assign(batch).values[:, 0]
    deviation = ((1.15**2 + 1.05**2) * 2 / 3) ** 0.5
    assert joint_B.tolist() == pytest.approx([r / deviation for r in (1.15, 1.05, -1.05, -1.15)], rel=1e-4)


def test_grpo_s_by_hand() -> None:
    """Mean entropies 4 and 1, both wrong: -1.04 and -1.16, z-scores 1/sqrt 2 apart."""
    result = GRPOS("accuracy", eps=1e-9).assign(
        batch_of([0, 0], entropy_BT=torch.tensor([[3.0, 5.0], [1.0, 1.0]]))
    )
    assert result.reward_B.tolist() == pytest.approx([-1.04, -1.16])
    assert result.values.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-4)


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 2**31))
def test_with_weights_that_sum_to_one_the_reward_at_a_position_is_kept(right: list[bool], seed: int) -> None:
    """The paper's Proposition 2.2: the shaping divides what there is, and adds nothing."""
    generator = torch.Generator().manual_seed(seed)
    entropy_BT = torch.rand(6, 4, generator=generator) + 0.01
    mask_BT = torch.arange(4) < torch.randint(0, 5, (6, 1), generator=generator)
    group_B = torch.tensor([0, 0, 0, 5, 5, 5])
    correct_B = torch.tensor(right)
    weights = {"outcome_weight": 0.9, "entropy_weight": 0.1}
    values_BT = shaped_rewards(entropy_BT, mask_BT, correct_B, group_B, **weights)
    for group in (0, 5):
        for side in (correct_B, ~correct_B):
            rows = (group_B == group) & side
            alive_T = mask_BT[rows].sum(dim=0).float()
            assert torch.allclose(values_BT[rows].sum(dim=0).abs(), alive_T, atol=1e-5)


@pytest.mark.parametrize(
    "estimator", [GTPO("accuracy"), GTPO("accuracy", normalise="joint"), GRPOS("accuracy")]
)
@given(
    outcome=st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=8, max_size=8),
    order=st.permutations(range(8)),
    seed=st.integers(0, 2**31),
)
def test_masked_tokens_get_nothing_and_order_does_not_matter(
    estimator, outcome: list[float], order: list[int], seed: int
) -> None:
    entropy_BT = torch.rand(8, 5, generator=torch.Generator().manual_seed(seed)) + 0.1
    batch = batch_of(outcome, group_size=4, lengths=[0, 1, 2, 3, 4, 5, 5, 2], entropy_BT=entropy_BT)
    values = estimator.assign(batch).values
    if values.dim() == 2:
        assert (values[~batch.mask_BT] == 0).all()
    assert (values[batch.rewards["accuracy"].isnan()] == 0).all()
    assert torch.allclose(values[order], estimator.assign(reordered(batch, order)).values, atol=2e-3)


def test_an_entropy_that_is_not_finite_is_left_out_and_counted() -> None:
    entropy_BT = torch.tensor([[nan, 1.0], [1.0, 2.0], [2.0, 1.0]])
    result = GTPO("accuracy").assign(batch_of([1, 1, 1], entropy_BT=entropy_BT))
    assert result.values[0].tolist() == [0, 0]
    assert result.values.isfinite().all()
    assert result.metrics["gtpo/non_finite_signals"] == 1


def test_bad_input_is_named() -> None:
    for estimator in (GTPO("accuracy"), GRPOS("accuracy")):
        assert isinstance(estimator, CreditEstimator)
        assert estimator.needs == {"policy"}
        with pytest.raises(ValueError, match="was handed no entropy_BT"):
            estimator.assign(batch_of([1, 0]))
        with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
            estimator.check(["accuracy"], 1)
    assert GTPO("accuracy").per_token
    assert not GRPOS("accuracy").per_token
    with pytest.raises(ValueError, match="normalise is 'separate'"):
        GTPO("accuracy", normalise="separate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"entropy_weight is -1\.0"):
        GRPOS("accuracy", entropy_weight=-1.0)
