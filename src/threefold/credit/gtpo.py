"""GTPO and GRPO-S: a right answer's uncertain tokens earn more, a wrong answer's certain tokens cost more.

"GTPO and GRPO-S: Token and Sequence-Level Reward Shaping with Policy Entropy", Tan et al., arXiv 2508.04349
(not "GTPO: ... Gradient and Entropy Control", 2508.03772). In a group with n right and m wrong episodes, H
the policy's entropies in nats, d_t and h_t the right and wrong episodes that have a token t:

    GTPO     r~_it = α1 + α2 d_t H_it / sum_k H_kt                     right, sum over right episodes
             r~_jt = -(α1 + α2 h_t (1/H_jt) / sum_k (1/H_kt))          wrong, sum over wrong episodes
             A_it  = (r~_it - mean r~) / std r~                        over the tokens of right episodes, and
                                                                       over those of wrong ones, apart
    GRPO-S   the same with an episode's mean entropy in place of H_it and n, m in place of d_t, h_t; one
             reward and one advantage an episode, normalised over the group

α1 is `outcome_weight` (1), α2 `entropy_weight` (0.1). 1/H is taken of H + 1e-8.

Source: **secondary**. The shaping is given alike by the paper's abstract and two public third-party
implementations; that tokens of right and wrong episodes are normalised apart is one of these, which cites the
paper's Eq. 6. So normalised, right tokens have mean advantage 0, and so have wrong ones: outcomes themselves
push nothing, and even dead groups move. `normalise="joint"` takes mean and deviation over all tokens of the
group instead, which keeps right above wrong; it is our variant. Deviations are unbiased, eps 1e-4 (TRL's).

The episode at position t is any with a trained token at column t. Right is an outcome of 0.5 or more, other
reward functions do not count, and unscorable episodes or those with an entropy that is not finite get 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo
from threefold.credit.normalise import zscore
from threefold.credit.outcomes import measured, outcome_of

Normalise = Literal["apart", "joint"]
"""Tokens of right and wrong episodes compared among themselves ("apart"), or all of a group's ("joint")."""


@torch.no_grad()
def shaped_rewards(
    entropy_BT: Tensor,
    mask_BT: Tensor,
    correct_B: Tensor,
    group_B: Tensor,
    *,
    outcome_weight: float = 1.0,
    entropy_weight: float = 0.1,
) -> Tensor:
    """Rewards of tokens, or of episodes where T is 1 (GRPO-S).

    Args:
        entropy_BT: (B, T) entropies, nats; what stands outside `mask_BT` is not read.
        mask_BT: (B, T) bool, the tokens that take part.
        correct_B: (B,) bool.
        group_B: (B,) group of each episode, any integers.
        outcome_weight: α1.
        entropy_weight: α2.

    Returns:
        (B, T) rewards, > 0 for right episodes, < 0 for wrong ones, 0 where masked.
    """
    entropy_BT = torch.where(mask_BT, entropy_BT, 0)
    weight_BT = torch.where(correct_B[:, None], entropy_BT, 1 / (entropy_BT + 1e-8)) * mask_BT
    _, side_B = torch.stack([group_B, correct_B.long()], dim=1).unique(dim=0, return_inverse=True)
    sides = (int(side_B.max()) + 1, entropy_BT.shape[1])
    sum_BT = weight_BT.new_zeros(sides).index_add(0, side_B, weight_BT)[side_B]
    alive_BT = weight_BT.new_zeros(sides).index_add(0, side_B, mask_BT.to(weight_BT.dtype))[side_B]
    # Where all entropies at a position are 0 nobody is more certain than the others: equal shares.
    share_BT = torch.where(sum_BT > 0, weight_BT / sum_BT, 1 / alive_BT.clamp(min=1))
    sign_B1 = torch.where(correct_B, 1.0, -1.0)[:, None]
    return sign_B1 * (outcome_weight + entropy_weight * alive_BT * share_BT) * mask_BT


@dataclass(frozen=True)
class GTPO:
    """GTPO as a credit estimator, per token.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    outcome: str
    """Name of the reward function that says right or wrong; its rewards must lie in [0, 1]."""
    outcome_weight: float = 1.0
    """α1, the share of a reward that all tokens get, 0 or more."""
    entropy_weight: float = 0.1
    """α2, the share that entropies divide, 0 or more."""
    normalise: Normalise = "apart"
    """Which tokens are compared with each other."""
    eps: float = 1e-4
    """Added to the standard deviation; above 0."""

    per_token = True

    def __post_init__(self) -> None:
        _check_fields(self.outcome_weight, self.entropy_weight, self.eps)
        grpo.check_choice("normalise", self.normalise, get_args(Normalise))

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({"policy"})

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: No reward function is called `outcome`, or a group has fewer than two episodes.
        """
        grpo.check_choice("GTPO's outcome", self.outcome, reward_names)
        grpo.check_group_size(group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit per token.

        Raises:
            ValueError: The outcome is missing or outside [0, 1], or the entropies are missing.
        """
        outcome_B, entropy_BT, usable_BT = _inputs("GTPO", self.outcome, batch)
        correct_B = outcome_B >= 0.5
        weights = {"outcome_weight": self.outcome_weight, "entropy_weight": self.entropy_weight}
        shaped_BT = shaped_rewards(entropy_BT, usable_BT, correct_B, batch.group_B, **weights)
        side_B = 2 * batch.group_B + correct_B if self.normalise == "apart" else batch.group_B
        side_BT = side_B[:, None].expand_as(shaped_BT)
        values_BT = torch.zeros_like(shaped_BT)
        values_BT[usable_BT] = zscore(shaped_BT[usable_BT], side_BT[usable_BT], eps=self.eps)
        tokens_B = usable_BT.sum(dim=1)
        reward_B = (shaped_BT.sum(dim=1) / tokens_B.clamp(min=1)).masked_fill(tokens_B == 0, torch.nan)
        return Advantages(
            values=values_BT,
            outcome_B=grpo.advantages(outcome_B, batch.group_B),
            reward_B=reward_B,
            metrics={"gtpo/non_finite_signals": _broken(entropy_BT, batch.mask_BT)},
            episode_signals={"reward": reward_B},
            token_signals={"entropy": entropy_BT, "shaped_reward": shaped_BT},
        )


@dataclass(frozen=True)
class GRPOS:
    """GRPO-S as a credit estimator: GTPO's shaping with one number an episode.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    outcome: str
    """Name of the reward function that says right or wrong; its rewards must lie in [0, 1]."""
    outcome_weight: float = 1.0
    """β1, the share of a reward that all episodes get, 0 or more."""
    entropy_weight: float = 0.1
    """β2, the share that mean entropies divide, 0 or more."""
    eps: float = 1e-4
    """Added to the standard deviation; above 0."""

    per_token = False

    def __post_init__(self) -> None:
        _check_fields(self.outcome_weight, self.entropy_weight, self.eps)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({"policy"})

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: No reward function is called `outcome`, or a group has fewer than two episodes.
        """
        grpo.check_choice("GRPO-S's outcome", self.outcome, reward_names)
        grpo.check_group_size(group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit per episode.

        Raises:
            ValueError: The outcome is missing or outside [0, 1], or the entropies are missing.
        """
        outcome_B, entropy_BT, usable_BT = _inputs("GRPO-S", self.outcome, batch)
        tokens_B1 = usable_BT.sum(dim=1, keepdim=True)
        mean_B1 = torch.where(usable_BT, entropy_BT, 0).sum(dim=1, keepdim=True) / tokens_B1.clamp(min=1)
        weights = {"outcome_weight": self.outcome_weight, "entropy_weight": self.entropy_weight}
        shaped_B1 = shaped_rewards(mean_B1, tokens_B1 > 0, outcome_B >= 0.5, batch.group_B, **weights)
        reward_B = shaped_B1[:, 0].masked_fill(tokens_B1[:, 0] == 0, torch.nan)
        return Advantages(
            values=grpo.advantages(reward_B, batch.group_B, eps=self.eps),
            outcome_B=grpo.advantages(outcome_B, batch.group_B),
            reward_B=reward_B,
            metrics={"grpo_s/non_finite_signals": _broken(entropy_BT, batch.mask_BT)},
            episode_signals={"mean_entropy": mean_B1[:, 0], "reward": reward_B},
            token_signals={"entropy": entropy_BT},
        )


def _check_fields(outcome_weight: float, entropy_weight: float, eps: float) -> None:
    grpo.check_range("outcome_weight", outcome_weight, least=0.0)
    grpo.check_range("entropy_weight", entropy_weight, least=0.0)
    grpo.check_range("eps", eps, above=0.0)


def _inputs(method: str, outcome: str, batch: CreditBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) outcomes, (B, T) entropies and (B, T) bool, the trained tokens of episodes that take part."""
    outcome_B = outcome_of(method, outcome, batch)
    (entropy_BT,) = measured(method, batch.signals, "entropy_BT")
    broken_B = (batch.mask_BT & ~entropy_BT.isfinite()).any(dim=1)
    return outcome_B, entropy_BT, batch.mask_BT & ~(broken_B | outcome_B.isnan())[:, None]


def _broken(entropy_BT: Tensor, mask_BT: Tensor) -> float:
    return float((mask_BT & ~entropy_BT.isfinite()).any(dim=1).sum())
