"""RL-ZVP: where all episodes of a group have one reward, a token's entropy says how much it is to move.

"No Prompt Left Behind: Exploiting Zero-Variance Prompts in LLM Reinforcement Learning via Entropy-Guided
Advantage Shaping", Le et al., arXiv 2509.21880 (ICLR 2026). For token t of episode i:

    A_it = (R_i - mean R) / (std R + eps)        in a group whose rewards differ: GRPO
         = α H_it                                in a group of one reward, if right                 (Eq. 5)
         = -α (max_k H_ik - H_it)                in a group of one reward, if wrong                 (Eq. 5)

H is the entropy of the policy that sampled, in nats, without gradient; the maximum runs over the episode's
own trained tokens. All-right groups are pushed up, most at their uncertain tokens; all-wrong groups are
pushed down, least at their uncertain tokens. α is `alpha`: the paper uses 0.1 to 0.2 and calls 0.05 weak and
0.3 unstable.

Where we read or deviate:
  * "Right" is an outcome of 0.5 or more; the paper says R > 0, which is the same for its rewards, but not
    once another reward function (a format's, say) pays wrong answers too.
  * A group of one reward is decided by equality, not by a float standard deviation. An unscorable episode
    belongs to no group and gets 0; an episode with an entropy that is not finite gets 0 in a group of one
    reward, and is counted.
  * Eq. 5 is not normalised, so its size against GRPO's depends on entropies: watch
    `signal/gradient_share_dead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo
from threefold.credit.normalise import dead_groups
from threefold.credit.outcomes import measured, outcome_of


@torch.no_grad()
def entropy_guided(entropy_BT: Tensor, mask_BT: Tensor, correct_B: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Advantages of the tokens of groups in which all episodes are right or all are wrong (Eq. 5).

    Args:
        entropy_BT: (B, T) entropies, nats; what stands outside `mask_BT` is not read.
        mask_BT: (B, T) bool, the trained tokens.
        correct_B: (B,) bool.
        alpha: Advantage of a nat of entropy.

    Returns:
        (B, T) advantages: >= 0 for right episodes, <= 0 for wrong ones, 0 where masked.
    """
    entropy_BT = torch.where(mask_BT, entropy_BT, 0)
    highest_B1 = entropy_BT.masked_fill(~mask_BT, -torch.inf).amax(dim=1, keepdim=True)
    values_BT = torch.where(correct_B[:, None], alpha * entropy_BT, -alpha * (highest_B1 - entropy_BT))
    return torch.where(mask_BT, values_BT, 0)


@dataclass(frozen=True)
class RLZVP:
    """RL-ZVP as a credit estimator; groups whose rewards differ get exactly what `grpo.GRPO` gives them.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    outcome: str
    """Name of the reward function that says right or wrong; its rewards must lie in [0, 1]."""
    alpha: float = 0.1
    """Advantage of a nat of entropy in groups of one reward, 0 or more; 0 is GRPO."""
    scale: grpo.Scale = "group"
    """What advantages are measured in where rewards differ, as in `grpo.GRPO`."""
    eps: float = 1e-4
    """Added to the standard deviation, in units of the reward; above 0."""

    per_token = True

    def __post_init__(self) -> None:
        grpo.check_range("alpha", self.alpha, least=0.0)
        grpo.GRPO(scale=self.scale, eps=self.eps)  # checks these two

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({"policy"})

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: No reward function is called `outcome`, or a group has fewer than two episodes.
        """
        grpo.check_choice("RL-ZVP's outcome", self.outcome, reward_names)
        grpo.check_group_size(group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit per token.

        Raises:
            ValueError: The outcome is missing or outside [0, 1], or the entropies are missing.
        """
        outcome_B = outcome_of("RL-ZVP", self.outcome, batch)
        (entropy_BT,) = measured("RL-ZVP", batch.signals, "entropy_BT")
        reward_B = grpo.combine(batch.rewards, batch.weights).masked_fill(outcome_B.isnan(), torch.nan)
        base_B = grpo.advantages(reward_B, batch.group_B, scale=self.scale, eps=self.eps)
        dead_B = dead_groups(reward_B, batch.group_B) & ~reward_B.isnan()
        broken_B = (batch.mask_BT & ~entropy_BT.isfinite()).any(dim=1)
        guided_BT = entropy_guided(
            entropy_BT, batch.mask_BT & ~broken_B[:, None], outcome_B >= 0.5, alpha=self.alpha
        )
        values_BT = torch.where(dead_B[:, None], guided_BT, base_B[:, None] * batch.mask_BT)
        return Advantages(
            values=values_BT,
            outcome_B=base_B,
            reward_B=reward_B,
            metrics={
                "rl_zvp/zero_variance": float(dead_B.float().mean()),
                "rl_zvp/non_finite_signals": float((dead_B & broken_B).sum()),
            },
            episode_signals={"reward": reward_B},
            token_signals={"entropy": entropy_BT},
        )
