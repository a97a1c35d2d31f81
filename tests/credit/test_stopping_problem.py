"""A problem with a known answer: the policy decides in every turn whether to stop. No sampling, no tolerance.

Turn t of three: stop (reward s_t, the end) or go on (reward g_t; after the last turn it is the end too). The
four possible episodes and their probabilities are known, so the expectation of any estimator over all groups
of N episodes is a finite sum, and so is the true gradient. docs/turn-credit.md derives what is found here.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from threefold.credit import gigpo, mt_grpo
from threefold.credit.normalise import group_mean
from threefold.credit.turn_credit import relative_turns
from threefold.credit.turn_trajectory import advantages

TURNS, N = 3, 3
UNBIASED = {"turn_credit": "return_to_go", "normalise": "leave_one_out", "ended": "zero"}


@dataclass(frozen=True)
class Stopping:
    """Rewards of stopping and of going on in each turn, and the policy's chance to go on."""

    stop: tuple[float, ...]
    go: tuple[float, ...]
    p_go: tuple[float, ...] = (0.7, 0.5, 0.4)

    @property
    def logits(self) -> Tensor:
        p = torch.tensor(self.p_go, dtype=torch.float64)
        return torch.log(p / (1 - p)).requires_grad_()

    def episodes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The four episodes: rewards (4, K), mask (4, K) and whether it went on (4, K)."""
        rewards, mask, went = (torch.zeros(TURNS + 1, TURNS, dtype=torch.float64) for _ in range(3))
        for length in range(TURNS + 1):  # goes on `length` times, then stops
            for turn in range(min(length + 1, TURNS)):
                mask[length, turn] = 1
                went[length, turn] = float(turn < length)
                rewards[length, turn] = self.go[turn] if turn < length else self.stop[turn]
        return rewards, mask.bool(), went

    def log_probability(self, logits: Tensor) -> Tensor:
        """(4, K) log-probability of each decision; 0 where there was none."""
        _, mask, went = self.episodes()
        sure = torch.nn.functional.logsigmoid
        return torch.where(mask, torch.where(went.bool(), sure(logits), sure(-logits)), 0)

    def true_gradient(self, value_E: Tensor | None = None) -> Tensor:
        """Of the expected sum of rewards, or of another value of whole episodes, by autograd."""
        logits, value = self.logits, self.episodes()[0].sum(dim=1) if value_E is None else value_E
        expected = (self.log_probability(logits).sum(dim=1).exp() * value).sum()
        return torch.autograd.grad(expected, logits)[0]

    def scores(self) -> Tensor:
        """(4, K) derivative of each decision's log-probability by its own logit."""
        _, mask, went = self.episodes()
        return torch.where(mask, went - torch.tensor(self.p_go, dtype=torch.float64), 0)

    def groups(self) -> tuple[Tensor, Tensor, Tensor]:
        """All 4^N groups: episode of each member (B,), group (B,), and probability of each group."""
        members = torch.tensor(list(itertools.product(range(TURNS + 1), repeat=N)))
        p_E = self.log_probability(self.logits).sum(dim=1).exp().detach()
        group_B = torch.arange(len(members)).repeat_interleave(N)
        return members.flatten(), group_B, p_E[members].prod(dim=1)

    def expectation(self, credit_BK: Tensor) -> Tensor:
        """(K,) expected gradient by each logit, of an estimator that gave this credit in all groups."""
        episode_B, group_B, p_G = self.groups()
        per_episode_BK = self.scores()[episode_B] * credit_BK
        return (p_G[group_B, None] * per_episode_BK).sum(dim=0) / N

    def credit(self, **options) -> Tensor:
        """(B, K) turn credit in all groups at once."""
        rewards, mask, _ = self.episodes()
        episode_B, group_B, _ = self.groups()
        return relative_turns(rewards[episode_B], mask[episode_B], group_B, **options)

    def alive(self) -> Tensor:
        """(K,) probability that a turn takes place."""
        return torch.tensor([1.0, self.p_go[0], self.p_go[0] * self.p_go[1]], dtype=torch.float64)

    def turn_parts(self) -> tuple[Tensor, Tensor]:
        """(K,) the true gradient, and its part that comes of each turn's own reward alone."""
        rewards, mask, _ = self.episodes()
        p_E = self.log_probability(self.logits).sum(dim=1).exp().detach()
        to_go = torch.where(mask, rewards.flip(1).cumsum(1).flip(1), 0)
        weight = p_E[:, None] * self.scores()
        return (weight * to_go).sum(dim=0), (weight * rewards).sum(dim=0)


PAYS_LATER = Stopping(stop=(0.5, 0.5, 0.0), go=(0.0, 0.0, 3.0))
PAYS_A_TURN = Stopping(stop=(1.0, 1.0, 1.0), go=(1.0, 1.0, 1.0))
ODD = Stopping(stop=(0.3, -1.2, 2.0), go=(-0.7, 0.4, 1.1), p_go=(0.35, 0.8, 0.55))
PROBLEMS = pytest.mark.parametrize("problem", [PAYS_LATER, PAYS_A_TURN, ODD], ids=["later", "a turn", "odd"])


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@PROBLEMS
def test_the_enumeration_is_right(problem):
    _, _, p_G = problem.groups()
    assert float(p_G.sum()) == pytest.approx(1.0)
    close(problem.turn_parts()[0], problem.true_gradient())
    assert problem.true_gradient().abs().max() > 0.01


@PROBLEMS
def test_return_to_go_against_the_whole_group_is_the_true_gradient(problem):
    close(problem.expectation(problem.credit(**UNBIASED)), problem.true_gradient())


@PROBLEMS
def test_with_episode_scores_it_is_the_gradient_of_the_sum(problem):
    """Through the public function, both horizons: E = gradient of E[R + α Σ r]."""
    rewards, mask, _ = problem.episodes()
    episode_B, group_B, _ = problem.groups()
    score_E = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    credit_BK = advantages(
        {"score": score_E[episode_B]},
        {"r": rewards[episode_B]},
        mask[episode_B],
        torch.zeros(len(group_B), dtype=torch.bool),
        group_B,
        alpha=0.7,
        veto=None,
        **UNBIASED,
    )
    expected = problem.true_gradient(score_E + 0.7 * rewards.sum(dim=1))
    close(problem.expectation(credit_BK), expected)


@PROBLEMS
def test_alive_only_shrinks_late_turns_by_the_chance_of_company(problem):
    """Leave-one-out among the living: turn t counts with P(another lives) = 1 - (1 - p_t)^(N-1)."""
    credit = problem.credit(turn_credit="return_to_go", normalise="leave_one_out")
    shrink = 1 - (1 - problem.alive()) ** (N - 1)
    close(problem.expectation(credit), shrink * problem.true_gradient())
    assert shrink.min() < 0.7


@PROBLEMS
def test_a_mean_with_oneself_in_it_shrinks_them_further(problem):
    """The mean of the living, oneself included: 1 - (1 - (1 - p_t)^N) / (N p_t)."""
    rewards, mask, _ = problem.episodes()
    episode_B, group_B, _ = problem.groups()
    to_go = rewards.flip(1).cumsum(1).flip(1)[episode_B].masked_fill(~mask[episode_B], torch.nan)
    columns = [to_go[:, t] - group_mean(to_go[:, t], group_B) for t in range(TURNS)]
    p = problem.alive()
    close(
        problem.expectation(torch.stack(columns, dim=1).nan_to_num()),
        (1 - (1 - (1 - p) ** N) / (N * p)) * problem.true_gradient(),
    )


@PROBLEMS
def test_gigpo_anchored_on_the_turn_is_the_same_beside_the_episode(problem):
    rewards, mask, _ = problem.episodes()
    episode_B, group_B, _ = problem.groups()
    credit = gigpo.advantages(
        torch.zeros(len(group_B), dtype=torch.float64),
        {"r": rewards[episode_B]},
        {"turn": torch.arange(TURNS).expand(len(group_B), TURNS).double()},
        mask[episode_B],
        group_B,
        gamma=1.0,
        scale="none",
    )
    p = problem.alive()
    shrink = (N - 1) / N + 1 - (1 - (1 - p) ** N) / (N * p)
    close(problem.expectation(credit), shrink * problem.true_gradient())


@PROBLEMS
def test_delta_credit_is_the_myopic_gradient(problem):
    """The paper's choice of a turn's value: unbiased for what the turn itself pays, and for nothing later."""
    credit = problem.credit(turn_credit="delta", normalise="leave_one_out", ended="zero")
    _, myopic = problem.turn_parts()
    close(problem.expectation(credit), myopic)


def test_delta_credit_may_point_the_wrong_way():
    """Going on pays at the end: every turn should learn to go on; by deltas two of three learn to stop."""
    assert (PAYS_LATER.true_gradient() > 0).all()
    for how in ("leave_one_out", "zscore", "rank"):
        for ended in ("absent", "zero"):
            credit = PAYS_LATER.credit(turn_credit="delta", normalise=how, ended=ended)
            assert (PAYS_LATER.expectation(credit)[:2] < 0).all()


def accumulated(problem: Stopping, ended: str) -> tuple[Tensor, Tensor]:
    """(B, K) rewards centred turn by turn and then added up, and the baseline that this subtracts."""
    rewards, mask, _ = problem.episodes()
    episode_B, _, _ = problem.groups()
    credit = problem.credit(turn_credit="delta", normalise="leave_one_out", ended=ended)
    to_go = torch.where(mask[episode_B], credit.flip(1).cumsum(1).flip(1), 0)
    plain = torch.where(mask, rewards.flip(1).cumsum(1).flip(1), 0)[episode_B]
    return to_go, plain - to_go


@PROBLEMS
def test_centring_by_turn_and_adding_up_is_biased_by_the_accumulated_mean(problem):
    """verl#7244: the baseline has as many terms as the episode has turns, and these the policy chooses."""
    credit, baseline = accumulated(problem, "absent")
    bias = problem.expectation(credit) - problem.true_gradient()
    close(bias, -problem.expectation(baseline))
    assert bias.abs().max() > 0.05


def test_centring_by_turn_is_blind_to_what_every_turn_pays():
    """Each turn pays 1, so staying is all that matters; centred by turn index nothing is left of it."""
    assert (PAYS_A_TURN.true_gradient()[:2] > 0.05).all()
    for how in ("leave_one_out", "zscore", "rank"):
        # Alone in a turn or not, there is nothing to compare.
        assert PAYS_A_TURN.credit(turn_credit="delta", normalise=how).abs().max() < 1e-9
    assert accumulated(PAYS_A_TURN, "absent")[0].abs().max() == 0


@PROBLEMS
def test_counting_the_ended_as_zero_in_every_turn_cures_the_sum(problem):
    """Σ_k (r_k - mean of all others' r_k) over all K turns, after one's own end too, is return-to-go's."""
    rewards, mask, _ = problem.episodes()
    episode_B, group_B, _ = problem.groups()
    padded, everyone = torch.where(mask, rewards, 0)[episode_B], torch.ones_like(mask)[episode_B]
    centred = relative_turns(padded, everyone, group_B, normalise="leave_one_out")
    to_go = torch.where(mask[episode_B], centred.flip(1).cumsum(1).flip(1), 0)
    close(to_go, problem.credit(**UNBIASED))


@PROBLEMS
def test_a_veto_adds_the_gradient_of_violating(problem):
    """Stopping in turn 1 violates: E = gradient of E[(Σr - b) 1_clean] - λ P(violation), b the mean score."""
    rewards, mask, _ = problem.episodes()
    episode_B, group_B, p_G = problem.groups()
    violates_E = torch.tensor([False, True, False, False])
    score_E = rewards.sum(dim=1)
    credit_BK = advantages(
        {"score": score_E[episode_B]},
        {},
        mask[episode_B],
        violates_E[episode_B],
        group_B,
        veto=16.0,
        normalise="leave_one_out",
    )
    mean = float((p_G[:, None] * score_E[episode_B].view(-1, N)).sum() / N)
    value_E = torch.where(violates_E, -16.0, score_E - mean)
    close(problem.expectation(credit_BK), problem.true_gradient(value_E))


# What each credit learns, by exact ascent on the expected update: the table in docs/turn-credit.md

COSTS_A_TURN = Stopping(stop=(-1.0, -1.0, -1.0), go=(-1.0, -1.0, -1.0))
START = (0.5, 0.5, 0.5)


def turn_only(**options):
    return lambda problem: problem.credit(**options)


def of_verl_7244(problem: Stopping) -> Tensor:
    return accumulated(problem, "absent")[0]


def t2grpo(**options):
    """Both horizons: the summed reward as the episode's only channel, beside the turns'."""

    def credit(problem: Stopping) -> Tensor:
        rewards, mask, _ = problem.episodes()
        episode_B, group_B, _ = problem.groups()
        clean_B = torch.zeros(len(group_B), dtype=torch.bool)
        outcome = {"sum": rewards.sum(dim=1)[episode_B]}
        channels = {"r": rewards[episode_B]}
        return advantages(outcome, channels, mask[episode_B], clean_B, group_B, veto=None, **options)

    return credit


def mt(problem: Stopping) -> Tensor:
    rewards, mask, _ = problem.episodes()
    episode_B, group_B, _ = problem.groups()
    outcome_B, channels = rewards.sum(dim=1)[episode_B], {"r": rewards[episode_B]}
    return mt_grpo.advantages(outcome_B, channels, mask[episode_B], group_B, final_turn=True)


def gi(problem: Stopping) -> Tensor:
    rewards, mask, _ = problem.episodes()
    episode_B, group_B, _ = problem.groups()
    state = {"turn": torch.arange(TURNS).expand(len(group_B), TURNS).double()}
    nothing_B, channels = torch.zeros(len(group_B)), {"r": rewards[episode_B]}
    return gigpo.advantages(nothing_B, channels, state, mask[episode_B], group_B)


CREDITS = {
    "delta, rank (the paper's turn part alone)": turn_only(turn_credit="delta"),
    "delta, rank, ended count zero": turn_only(turn_credit="delta", ended="zero"),
    "centred by turn index, then summed to go (verl#7244)": of_verl_7244,
    "return to go, rank": turn_only(turn_credit="return_to_go"),
    "return to go, rank, ended count zero": turn_only(turn_credit="return_to_go", ended="zero"),
    "return to go, leave one out, ended count zero": turn_only(**UNBIASED),
    "T²-GRPO, trajectory alone (α = 0)": t2grpo(alpha=0.0),
    "T²-GRPO, both horizons (α = 0.25)": t2grpo(alpha=0.25),
    "T²-GRPO, both horizons (α = 1)": t2grpo(),
    "T²-GRPO, both horizons (α = 1), return to go, ended count zero": t2grpo(
        turn_credit="return_to_go", ended="zero"
    ),
    "MT-GRPO": mt,
    "GiGPO": gi,
}


def learnt(problem: Stopping, credit, *, steps: int = 300, rate: float = 2.0) -> float:
    """Expected reward after ascent along the exact expectation of an estimator's gradient."""
    for _ in range(steps):
        logits = problem.logits.detach() + rate * problem.expectation(credit(problem))
        problem = replace(problem, p_go=tuple(torch.sigmoid(logits.clamp(-8, 8)).tolist()))
    p_E = problem.log_probability(problem.logits.detach()).sum(dim=1).exp()
    return (p_E * problem.episodes()[0].sum(dim=1)).sum().item()


def table() -> dict[str, tuple[float, float]]:
    later, costs = (replace(problem, p_go=START) for problem in (PAYS_LATER, COSTS_A_TURN))
    return {name: (learnt(later, credit), learnt(costs, credit)) for name, credit in CREDITS.items()}


@pytest.mark.slow
def test_what_each_credit_learns_is_as_the_page_says():
    page = (Path(__file__).parents[2] / "docs" / "turn-credit.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+?) \| (-?[\d.]+ \| -?[\d.]+) \|$", page, re.MULTILINE))
    assert {name: f"{later:.2f} | {costs:.2f}" for name, (later, costs) in table().items()} == rows
