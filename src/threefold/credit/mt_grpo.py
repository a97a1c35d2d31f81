"""MT-GRPO: a turn gets the outcome's advantage, plus that of its own reward among the group's same turns.

"Reinforcing Multi-Turn Reasoning in LLM Agents via Turn-Level Credit Assignment", arXiv 2505.11821. There an
agent calls a tool once: its first turn is scored by what the tool answered, its second gives the answer. With
z-scores A^O of outcomes and A^T of turn rewards inside the group:

    A = A^O + λ A^T    in the turn before the tool's answer
    A = A^O            after it
    A = z-score of outcome + turn reward, where the tool was never called

λ is `turn_weight`. Our adaptation to any number of turns: every turn but an episode's last is one "before
the answer", compared with the group's turns of the same index that are not their episode's last either; an
episode of a single turn is one without a tool call. `final_turn=True` credits the last turn's reward too, as
an environment that answers every turn wants it. The paper has no violations: `violation_penalty` is taken off
the outcome. A value of NaN takes no part and adds 0.

The turn's part is myopic, and its comparison leaves out whoever has ended: docs/turn-credit.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo, turns
from threefold.credit.normalise import zscore
from threefold.credit.turn_credit import relative_turns


@torch.no_grad()
def advantages(
    outcome_B: Tensor,
    turn_channels: Mapping[str, Tensor],
    turn_mask_BK: Tensor,
    group_B: Tensor,
    *,
    turn_weight: float = 1.0,
    final_turn: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """The advantage of every turn.

    Args:
        outcome_B: (B,) reward of the whole episode, NaN where unscorable.
        turn_channels: (B, K) by channel, summed to one reward a turn; NaN where one could not be scored.
        turn_mask_BK: (B, K) bool, the turns that took place.
        group_B: (B,) group of each episode, any integers.
        turn_weight: λ.
        final_turn: Credit the last turn's own reward too.
        eps: Added to the standard deviations.

    Returns:
        (B, K) advantages, 0 for turns that did not take place.
    """
    rewards_BK = torch.zeros(turn_mask_BK.shape, device=turn_mask_BK.device)
    for channel_BK in turn_channels.values():
        rewards_BK = rewards_BK + torch.where(turn_mask_BK, channel_BK, 0)
    turns_B = turn_mask_BK.sum(dim=1)
    scored_BK = turn_mask_BK
    if not final_turn:
        index_K = torch.arange(turn_mask_BK.shape[1], device=turn_mask_BK.device)
        scored_BK = turn_mask_BK & (index_K < turns_B.unsqueeze(1) - 1)
    turn_BK = relative_turns(rewards_BK, scored_BK, group_B, normalise="zscore", eps=eps)
    values_BK = zscore(outcome_B, group_B, eps=eps).unsqueeze(1) + turn_weight * turn_BK
    if not final_turn:
        combined_B = zscore(outcome_B + rewards_BK.sum(dim=1), group_B, eps=eps)
        values_BK = torch.where((turns_B == 1).unsqueeze(1), combined_B.unsqueeze(1), values_BK)
    return torch.where(turn_mask_BK, values_BK, 0)


@dataclass(frozen=True)
class MTGRPO:
    """Multi-turn GRPO as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    per_token: ClassVar[bool] = True

    turns: tuple[str, ...] = ("D", "R")
    """Names of the turn channels."""
    turn_weight: float = 1.0
    """λ, 0 or more."""
    final_turn: bool = False
    """Credit the last turn's own reward too."""
    violation_penalty: float = 5.0
    """Taken off a violator's outcome, 0 or more."""
    eps: float = 1e-4
    """Added to the standard deviations; above 0."""

    def __post_init__(self) -> None:
        grpo.check_range("turn_weight", self.turn_weight, least=0.0)
        grpo.check_range("violation_penalty", self.violation_penalty, least=0.0)
        grpo.check_range("eps", self.eps, above=0.0)
        turns.check_names("MTGRPO's turns", self.turns)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, groups in which nothing can be compared."""
        grpo.GRPO(eps=self.eps).check(reward_names, group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """(B, T) credit.

        Raises:
            ValueError: A turn channel is missing from the episodes.
        """
        channels, mask_BK = turns.channels(batch, self.turns)
        values_BK = advantages(
            turns.plain_sum(batch, (), self.violation_penalty),
            channels,
            mask_BK,
            batch.group_B,
            turn_weight=self.turn_weight,
            final_turn=self.final_turn,
            eps=self.eps,
        )
        reward_B = turns.plain_sum(batch, self.turns, self.violation_penalty)
        return turns.credited(batch, values_BK, reward_B=reward_B)
