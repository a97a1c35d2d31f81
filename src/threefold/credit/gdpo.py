"""GDPO: every reward is normalised on its own before the rewards are summed, so that none drowns another.

"GDPO", arXiv 2601.05242; for reward k of episode i, with weight w_k:

    A_i = Σ_k w_k (r^k_i - mean(r^k)) / (std(r^k) + eps)        mean and std inside the group
    A_i = (A_i - mean(A)) / (std(A) + eps)                      over the whole batch: `whiten`

GRPO sums first. With two binary rewards, the pairs of episodes (0,0)/(0,1), (0,0)/(1,1) and (1,0)/(1,1) all
give it -0.7071 and 0.7071. GDPO gives 0.7071, 1.4142 and 0.7071: a pair that differs in both counts double.

In caregiver episodes (arXiv 2606.08875, Eqs. 19 and 20) the channels are those of the episode, the sum of all
turn rewards, and the violation, whose sign the paper does not print: minus the violation here. Any penalty in
front of it would be undone by the normalisation. That comparison does not whiten, so `whiten` is off by
default; on, with eps 1e-4, it is what TRL 1.16 computes for `normalize_then_sum`.

Never whiten after a veto. A floor of -16 in 14 % of the episodes drags the mean to about -2.3, so clean
episodes of advantage 0 are all reinforced, and the violators' -16 shrinks to about -2.4
(tests/credit/test_peers.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo, turns
from threefold.credit.normalise import nan_std, zscore
from threefold.credit.turn_credit import summed_turns
from threefold.credit.veto import without_violation


@torch.no_grad()
def advantages(
    channels: Mapping[str, Tensor],
    group_B: Tensor,
    *,
    weights: Mapping[str, float] | None = None,
    batch_whitening: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """The weighted sum of each channel's z-scores.

    Args:
        channels: (B,) by channel; NaN where one could not be scored, which adds 0.
        group_B: (B,) group of each episode, any integers.
        weights: Weight of each channel; 1 by default.
        batch_whitening: Standardise the sum over the whole batch.
        eps: Added to the standard deviations.

    Returns:
        (B,) advantages; 0 for an episode that no channel could score.
    """
    total_B = torch.zeros(len(group_B), device=group_B.device)
    scored_B = torch.zeros(len(group_B), dtype=torch.bool, device=group_B.device)
    for name, scores_B in channels.items():
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        total_B = total_B + weight * zscore(scores_B, group_B, eps=eps)
        scored_B = scored_B | ~scores_B.isnan()
    return whiten(total_B, scored_B, eps=eps) if batch_whitening else total_B


@torch.no_grad()
def whiten(values: Tensor, where: Tensor, *, eps: float = 1e-4) -> Tensor:
    """Standardise the values where `where` holds, over all of them at once; 0 elsewhere. Undoes any veto."""
    chosen = values[where]
    spread = nan_std(chosen) if len(chosen) > 1 else chosen.new_tensor(0.0)
    mean = chosen.mean() if len(chosen) else values.new_tensor(0.0)
    return torch.where(where, (values - mean) / (spread + eps), 0)


@dataclass(frozen=True)
class GDPO:
    """Group reward-decoupled normalisation as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    turns: tuple[str, ...] = ()
    """Names of the turn channels, whose sum is one more channel; none by default."""
    batch_whitening: bool = False
    """Standardise over the batch: GDPO's own paper does, the caregiver paper's comparison does not."""
    eps: float = 1e-4
    """Added to the standard deviations; above 0."""
    violation_penalty: float = 5.0
    """What GRPO, the reference in `outcome_B` and the report, would take off a violator's reward."""

    def __post_init__(self) -> None:
        grpo.check_range("eps", self.eps, above=0.0)
        grpo.check_range("violation_penalty", self.violation_penalty, least=0.0)
        turns.check_names("GDPO's turns", self.turns)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, groups in which nothing can be compared, and having no channel."""
        if not reward_names and not self.turns:
            raise ValueError("no reward function and no turn channel: at least one is needed to give credit")
        grpo.check_group_size(group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """(B,) credit.

        Raises:
            ValueError: A turn channel is missing from the episodes.
        """
        channels = dict(batch.rewards)
        if self.turns:
            channels["sum of turns"] = summed_turns(*turns.channels(batch, self.turns))
        if batch.violation_B is not None:
            scored_B = ~torch.stack(list(channels.values())).isnan().all(dim=0)
            channels["no violation"] = without_violation(batch.violation_B, scored_B)
        values_B = advantages(
            channels,
            batch.group_B,
            weights=batch.weights,
            batch_whitening=self.batch_whitening,
            eps=self.eps,
        )
        reward_B = turns.plain_sum(batch, self.turns, self.violation_penalty)
        return turns.credited(batch, values_B, reward_B=reward_B)
