"""GRPO on one sum of everything: what T²-GRPO and GDPO are compared with in caregiver episodes.

    R_i = Σ_k w_k R^k_i + Σ_t Σ_k r^k_{i,t} - penalty x violation_i  (arXiv 2606.08875, Eqs. 12 and 16)
    A_i = (R_i - mean(R)) / (std(R) + eps)                       inside the group, the same in all turns

Channels of little spread drown in those of much: with the paper's variances of 4.0 for the goal and 0.3 for a
distress reward, turns make less than a tenth of the sum's. The paper's penalty is 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from threefold.credit import Advantages, CreditBatch, Signal, grpo, turns


@dataclass(frozen=True)
class SummedGRPO:
    """GRPO on reward functions, turn rewards and violations, as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    turns: tuple[str, ...] = ("D", "R")
    """Names of the turn channels."""
    violation_penalty: float = 5.0
    """Taken off a violator's reward, 0 or more."""
    scale: grpo.Scale = "group"
    """What advantages are measured in, as in `grpo.GRPO`."""
    eps: float = 1e-4
    """Added to the standard deviation; above 0."""

    def __post_init__(self) -> None:
        grpo.check_range("violation_penalty", self.violation_penalty, least=0.0)
        grpo.check_choice("scale", self.scale, get_args(grpo.Scale))
        grpo.check_range("eps", self.eps, above=0.0)
        turns.check_names("SummedGRPO's turns", self.turns)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, groups in which nothing can be compared."""
        grpo.check_group_size(group_size)

    def assign(self, batch: CreditBatch) -> Advantages:
        """(B,) credit.

        Raises:
            ValueError: A turn channel is missing from the episodes.
        """
        reward_B = turns.plain_sum(batch, self.turns, self.violation_penalty)
        values_B = grpo.advantages(reward_B, batch.group_B, scale=self.scale, eps=self.eps)
        return turns.credited(batch, values_B, reward_B=reward_B)
