"""The noise control: the same numbers on other episodes, drawn alike on every process and after a resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from four_tokens import batch_of
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit.ispo import ISPO
from threefold.credit.noise_control import gaussian, generator, shuffled
from threefold.credit.outcomes import same_outcome

nan = float("nan")
IFD = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(-3, 3)), max_size=30), st.integers(0, 1000))
def test_every_cell_keeps_its_values(pairs: list[tuple[float, int]], seed: int) -> None:
    values_N, cell_N = torch.tensor([v for v, _ in pairs]), torch.tensor([c for _, c in pairs]).long()
    dealt_N = shuffled(values_N, cell_N, generator(seed, 0))
    for cell in cell_N.unique():
        assert torch.equal(dealt_N[cell_N == cell].sort().values, values_N[cell_N == cell].sort().values)


def test_all_orders_of_three_come_up_alike() -> None:
    """3,000 deals: each of the six orders 500 times, give or take four standard deviations of 20.4."""
    values_N, cell_N = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.int64)
    deals = [tuple(shuffled(values_N, cell_N, generator(0, step)).tolist()) for step in range(3000)]
    counts = [deals.count(order) for order in set(deals)]
    assert len(counts) == 6
    assert all(abs(count - 500) < 82 for count in counts)


def test_gaussian_has_the_mean_and_deviation_of_its_cell_and_leaves_the_lonely_alone() -> None:
    values_N = torch.cat([torch.linspace(2, 4, 4000), torch.tensor([9.0])])
    cell_N = torch.cat([torch.zeros(4000), torch.ones(1)]).long()
    noise_N = gaussian(values_N, cell_N, generator(0, 0))
    assert noise_N[:4000].mean().item() == pytest.approx(3, abs=0.04)
    assert noise_N[:4000].std().item() == pytest.approx(values_N[:4000].std().item(), rel=0.05)
    assert noise_N[4000] == 9


def test_cells_are_the_outcomes_of_a_group() -> None:
    cells_B = same_outcome(torch.tensor([1, 0, nan, 1, 0.5, 0.4]), torch.tensor([0, 0, 0, 0, 7, 7]))
    assert cells_B.tolist() == [1, 0, 2, 1, 4, 3]


class TestInTheEstimator:
    plain = ISPO("accuracy", lambda_token=0)
    batch = batch_of([0, 0, 0, 0, 1, 1, 0, 0], IFD, group_size=4)

    def test_rewards_are_dealt_out_among_the_same_outcome_of_the_same_group(self) -> None:
        control = replace(self.plain, noise_control="shuffle", noise_seed=1)
        before_B = self.plain.assign(self.batch).reward_B
        result = control.assign(self.batch)
        assert not torch.equal(result.reward_B, before_B)
        for cell in (slice(0, 4), slice(4, 6), slice(6, 8)):
            assert torch.allclose(result.reward_B[cell].sort().values, before_B[cell].sort().values)
        assert torch.allclose(result.values.sort().values, self.plain.assign(self.batch).values.sort().values)
        moved = (result.reward_B - before_B).abs() > 1e-6
        assert result.metrics["ispo/noise_moved"] == pytest.approx(moved.float().mean().item())

    def test_a_seed_and_a_step_give_one_deal_whatever_the_global_random_state(self) -> None:
        def dealt(seed: int, step: int) -> list[float]:
            torch.manual_seed(torch.seed() % 2**31)
            control = replace(self.plain, noise_control="shuffle", noise_seed=seed)
            return control.assign(replace(self.batch, step=step)).reward_B.tolist()

        assert dealt(0, 3) == dealt(0, 3)
        deals = {tuple(dealt(seed, step)) for seed in range(4) for step in range(4)}
        assert len(deals) > 8

    def test_it_leaves_global_random_numbers_alone(self) -> None:
        before = torch.get_rng_state()
        replace(self.plain, noise_control="gaussian").assign(self.batch)
        assert torch.equal(torch.get_rng_state(), before)

    def test_episodes_that_are_alone_with_their_outcome_cannot_move(self) -> None:
        result = replace(self.plain, noise_control="shuffle").assign(batch_of([1, 0], [0.4, 0.2]))
        assert result.metrics["ispo/noise_moved"] == 0
        assert torch.equal(result.reward_B, self.plain.assign(batch_of([1, 0], [0.4, 0.2])).reward_B)

    def test_with_nothing_measured_it_is_grpo(self) -> None:
        control = ISPO("accuracy", lambda_ifd=0, lambda_token=0, noise_control="shuffle")
        grpo = ISPO("accuracy", lambda_ifd=0, lambda_token=0)
        assert torch.equal(control.assign(self.batch).values, grpo.assign(self.batch).values)

    @pytest.mark.parametrize("kind", ["shuffle", "gaussian"])
    def test_credit_of_tokens_is_dealt_out_too_and_stays_on_critical_tokens(self, kind) -> None:
        """Only token 0 is critical; its credit differs between episodes by their log-probability."""
        logp_BT = self.batch.signals.logp_BT.clone()
        logp_BT[:, 0] = -torch.linspace(0.1, 0.8, 8)
        entropy_BT = self.batch.signals.entropy_BT.clone()
        entropy_BT[:, 0] = torch.linspace(1.0, 2.0, 8)
        signals = replace(self.batch.signals, logp_BT=logp_BT, entropy_BT=entropy_BT)
        batch = replace(self.batch, signals=signals)
        plain = ISPO("accuracy", lambda_ifd=0, token_credit=True)
        plain_BT = plain.assign(batch).values
        result = replace(plain, noise_control=kind, noise_seed=2).assign(batch)
        assert result.metrics["ispo/noise_moved"] > 0
        assert torch.equal(result.values[:, 1:], plain_BT[:, 1:])
        assert not torch.equal(result.values[:, 0], plain_BT[:, 0])
        if kind == "shuffle":
            assert torch.allclose(result.values[:4, 0].sort().values, plain_BT[:4, 0].sort().values)
