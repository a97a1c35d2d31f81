"""Relative rewards: golden values by hand, equality with TRL's arithmetic, and what holds for any groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from trl.trainer.utils import nanstd

from threefold.credit.normalise import (
    centred_rank,
    clamp_to_outcome,
    dead_groups,
    group_max,
    group_mean,
    group_size,
    group_std,
    leave_one_out,
    zscore,
)

nan = float("nan")


def one_group(*values: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(values, dtype=torch.float32), torch.zeros(len(values), dtype=torch.int64)


def trl_group_advantages(rewards_B: Tensor, group_size: int) -> Tensor:
    """What GRPOTrainer computes inline for scale_rewards="group", with its own helper for the deviation."""
    mean_B = torch.nanmean(rewards_B.view(-1, group_size), dim=1).repeat_interleave(group_size, dim=0)
    std_B = nanstd(rewards_B.view(-1, group_size), dim=1).repeat_interleave(group_size, dim=0)
    return torch.nan_to_num((rewards_B - mean_B) / (std_B + 1e-4), nan=0.0)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Values with many ties, in groups of any size that lie in any order."""
    count = draw(st.integers(1, 24))
    values = draw(st.lists(st.integers(-8, 8), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(-2, 3), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float32) / 4, torch.tensor(groups)


class TestZscore:
    def test_is_mean_zero_and_unbiased_deviation_one(self) -> None:
        # mean 2, deviations -1 0 1, unbiased variance (1 + 0 + 1) / 2 = 1
        assert torch.allclose(zscore(*one_group(1, 2, 3), eps=0.0), torch.tensor([-1.0, 0.0, 1.0]))

    @pytest.mark.parametrize(
        ("rewards", "expected"),
        [
            ((10, 0, 10, 0), (0.866025, -0.866025, 0.866025, -0.866025)),
            ((1, 0, 0, 0, 0), (1.788850, -0.447213, -0.447213, -0.447213, -0.447213)),
        ],
    )
    def test_golden_advantages_of_reskill(self, rewards, expected) -> None:
        """Whole groups, whatever their bank versions; unbiased deviation, its 1e-6."""
        assert zscore(*one_group(*rewards), eps=1e-6).tolist() == pytest.approx(expected, abs=2e-6)

    def test_ddof_0_is_the_population_deviation(self) -> None:
        # variance 2/3
        expected = torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5
        assert torch.allclose(zscore(*one_group(1, 2, 3), ddof=0, eps=0.0), expected)

    def test_eps_is_added_to_the_deviation(self) -> None:
        assert torch.allclose(zscore(*one_group(1, 2, 3), eps=1.0), torch.tensor([-0.5, 0.0, 0.5]))

    def test_nan_is_left_out_and_gets_zero(self) -> None:
        assert torch.allclose(zscore(*one_group(1, nan, 2, 3), eps=0.0), torch.tensor([-1.0, 0.0, 0.0, 1.0]))

    @pytest.mark.parametrize("values", [(5.0,), (5.0, nan), (nan, nan)])
    def test_an_undefined_deviation_gives_zero(self, values: tuple[float, ...]) -> None:
        assert zscore(*one_group(*values)).tolist() == [0.0] * len(values)

    def test_ragged_interleaved_groups_are_their_own_worlds(self) -> None:
        values_B = torch.tensor([1.0, 10.0, 2.0, 7.0, 30.0, 3.0])
        group_B = torch.tensor([-4, 9, -4, 5, 9, -4])
        half = 0.5**0.5  # of two values each lies 1/sqrt(2) unbiased deviations from the mean
        assert torch.allclose(
            zscore(values_B, group_B, eps=0.0), torch.tensor([-1.0, -half, 0.0, 0.0, half, 1.0])
        )

    @pytest.mark.parametrize("group_size", [2, 3, 8, 16, 33])
    @pytest.mark.parametrize("missing", [0.0, 0.3])
    def test_is_bit_equal_to_trl(self, group_size: int, missing: float) -> None:
        generator = torch.Generator().manual_seed(group_size)
        for _ in range(20):
            rewards_B = torch.randn(6 * group_size, generator=generator) * 3
            rewards_B[torch.rand(len(rewards_B), generator=generator) < missing] = nan
            group_B = torch.arange(6).repeat_interleave(group_size)
            assert torch.equal(zscore(rewards_B, group_B), trl_group_advantages(rewards_B, group_size))

    @given(grouped())
    def test_sums_to_zero_in_every_group(self, batch: tuple[Tensor, Tensor]) -> None:
        scores_B = zscore(*batch)
        for group in batch[1].unique():
            assert scores_B[batch[1] == group].sum().abs() < 1e-4

    @given(grouped())
    def test_the_order_of_groups_in_the_batch_does_not_matter(self, batch: tuple[Tensor, Tensor]) -> None:
        values_B, group_B = batch
        order_B = torch.argsort(group_B, stable=True)
        assert torch.equal(zscore(values_B, group_B)[order_B], zscore(values_B[order_B], group_B[order_B]))


class TestCentredRank:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ((8, 5, 8, 2), (2 / 3, -1 / 3, 2 / 3, -1)),
            ((6, 6, 3, 0), (2 / 3, 2 / 3, -1 / 3, -1)),
            ((4, 2, 3, 1), (1, -1 / 3, 1 / 3, -1)),
            ((1, 2, 2, 3), (-1, 0, 0, 1)),
            ((0, 1, 1), (-1, 0.5, 0.5)),
            ((0,) * 9 + (1,), (-1 / 9,) * 9 + (1,)),
            ((0,) * 5 + (1,) * 5, (-5 / 9,) * 5 + (5 / 9,) * 5),
            ((7, 7, 7), (0, 0, 0)),
            ((7,), (0,)),
            ((1, nan, 2), (-1, 0, 1)),
            ((nan, 3), (0, 0)),
        ],
    )
    def test_golden_vectors(self, values: tuple[float, ...], expected: tuple[float, ...]) -> None:
        assert torch.allclose(centred_rank(*one_group(*values)), torch.tensor(expected, dtype=torch.float32))

    def test_values_that_take_no_part_do_not_count(self) -> None:
        valid_B = torch.tensor([True, True, False, True])
        assert centred_rank(*one_group(0, 1, 99, 1), valid_B=valid_B).tolist() == [-1.0, 0.5, 0.0, 0.5]

    def test_is_the_formula_with_mean_ranks(self) -> None:
        """Against 2 (rank - 1) / (n - 1) - 1, the rank being the mean place of a value among its equals."""
        values = [3.0, 1.0, 3.0, 2.0, 3.0, 1.0, 0.5]
        ranks = [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
        expected = torch.tensor([2 * (rank - 1) / (len(values) - 1) - 1 for rank in ranks])
        assert torch.allclose(centred_rank(*one_group(*values)), expected)

    def test_is_proportional_to_the_zscore_for_two_values(self) -> None:
        ranks_B, scores_B = (f(*one_group(*[0] * 9, 1)) for f in (centred_rank, zscore))
        assert torch.allclose(scores_B / ranks_B, (scores_B[0] / ranks_B[0]).expand(10))

    @given(grouped())
    def test_mean_is_zero_and_order_is_kept(self, batch: tuple[Tensor, Tensor]) -> None:
        values_B, group_B = batch
        ranks_B = centred_rank(values_B, group_B)
        assert ranks_B.abs().max() <= 1
        for group in group_B.unique():
            values_G, ranks_G = values_B[group_B == group], ranks_B[group_B == group]
            assert ranks_G.sum().abs() < 1e-5
            assert torch.equal(values_G[:, None] < values_G, ranks_G[:, None] < ranks_G)

    @given(grouped())
    def test_only_the_order_of_values_matters(self, batch: tuple[Tensor, Tensor]) -> None:
        values_B, group_B = batch
        assert torch.equal(centred_rank(values_B, group_B), centred_rank(values_B.exp() * 3 - 7, group_B))

    @given(grouped(), st.randoms())
    def test_goes_along_with_any_permutation(self, batch: tuple[Tensor, Tensor], random) -> None:
        values_B, group_B = batch
        order = list(range(len(values_B)))
        random.shuffle(order)
        assert torch.equal(
            centred_rank(values_B, group_B)[order], centred_rank(values_B[order], group_B[order])
        )


class TestDeadGroups:
    def test_is_told_per_episode(self) -> None:
        rewards_B = torch.tensor([1.0, 0.0, 1.0, 1.0, nan, nan])
        group_B = torch.tensor([7, 3, 7, 3, 5, 5])
        assert dead_groups(rewards_B, group_B).tolist() == [True, False, True, False, True, True]

    def test_rounding_dust_in_the_deviation_does_not_revive_a_group(self) -> None:
        rewards_B, group_B = one_group(*[0.1] * 8)
        assert group_std(rewards_B, group_B)[0] > 0, "without dust this test shows nothing"
        assert dead_groups(rewards_B, group_B).all()

    def test_a_difference_too_small_for_a_tolerance_on_the_deviation_still_counts(self) -> None:
        assert not dead_groups(*one_group(1.0, 1.0 + 1e-6)).any()
        assert dead_groups(*one_group(1.0, 1.0 + 1e-6), tol=1e-5).all()

    def test_unscorable_episodes_do_not_revive_a_group(self) -> None:
        assert dead_groups(*one_group(1, nan, 1)).all()

    def test_infinite_rewards_are_equal_to_themselves(self) -> None:
        assert dead_groups(*one_group(-float("inf"), -float("inf"))).all()
        assert not dead_groups(*one_group(-float("inf"), 0.0)).any()

    def test_whole_numbers_will_do(self) -> None:
        assert dead_groups(torch.tensor([1, 1]), torch.tensor([0, 0])).all()


def test_leave_one_out_is_the_distance_to_the_mean_of_the_others() -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, NaN, 6 - (1 + 2) / 2
    assert leave_one_out(*one_group(1, 2, nan, 6)).tolist() == [-3.0, -1.5, 0.0, 4.5]
    assert leave_one_out(*one_group(4)).tolist() == [0.0]


@given(arrays("float32", st.integers(1, 16), elements=st.floats(-4, 4, width=32)))
def test_mean_and_deviation_are_those_of_torch(values) -> None:
    values_B = torch.from_numpy(values)
    group_B = torch.full((len(values_B),), 3)
    assert torch.allclose(group_mean(values_B, group_B), values_B.mean().expand_as(values_B), atol=1e-6)
    if len(values_B) > 1:
        assert torch.allclose(group_std(values_B, group_B), values_B.std().expand_as(values_B), atol=1e-5)


def test_clamping_keeps_right_above_wrong_only_where_a_group_has_both() -> None:
    values_B = torch.tensor([-0.1, 0.2, 0.3, -0.4, -0.5, 0.5, 0.6])
    outcome_B = torch.tensor([1.0, 0.0, 1.0, nan, 1.0, 1.0, 1.0])
    group_B = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    clamped_B = clamp_to_outcome(values_B, outcome_B, group_B)
    assert torch.equal(clamped_B, torch.tensor([0.0, 0.0, 0.3, -0.4, -0.5, 0.5, 0.6]))


def test_an_empty_batch_is_an_empty_answer() -> None:
    empty = (torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert all(len(f(*empty)) == 0 for f in (zscore, centred_rank, dead_groups, leave_one_out))


@pytest.mark.parametrize(
    "function", [zscore, centred_rank, dead_groups, leave_one_out, group_mean, group_std]
)
def test_vectors_of_different_length_are_refused(function) -> None:
    with pytest.raises(ValueError, match=r"got values \(3,\) and group_B \(2,\)"):
        function(torch.zeros(3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("function", [zscore, centred_rank, leave_one_out])
def test_no_gradient_comes_out(function) -> None:
    values_B, group_B = one_group(1, 2, 4)
    assert not function(values_B.requires_grad_(), group_B).requires_grad


def test_a_floor_under_the_deviation_keeps_small_spreads_small() -> None:
    """Spread 1e-3 against a floor of 0.1: a hundredth of a unit. Above the floor nothing changes."""
    group_B = torch.zeros(2, dtype=torch.int64)
    small_B = zscore(torch.tensor([0.0, 1e-3]), group_B, eps=1e-9, std_floor=0.1)
    assert small_B.tolist() == pytest.approx([-5e-3, 5e-3])
    large_B = torch.tensor([0.0, 1.0])
    assert torch.equal(zscore(large_B, group_B, std_floor=0.1), zscore(large_B, group_B))


def test_largest_and_size_of_a_group_leave_nan_out() -> None:
    values_B, group_B = torch.tensor([1.0, nan, 3.0, nan, 2.0]), torch.tensor([0, 0, 0, 1, 2])
    assert torch.equal(group_max(values_B, group_B).nan_to_num(nan=99), torch.tensor([3.0, 3, 3, 99, 2]))
    assert group_size(values_B, group_B).tolist() == [2, 2, 2, 1, 1]
