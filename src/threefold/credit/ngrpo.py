"""NGRPO: every group is compared with one more episode that does not exist and is perfect.

"NGRPO: Negative-enhanced Group Relative Policy Optimization", Nan et al., arXiv 2509.18851. With the group's
rewards r_1 .. r_G and a virtual one r_max:

    A_i = (r_i - mean(r_1 .. r_G, r_max)) / (std(r_1 .. r_G, r_max) + eps)

So an all-wrong group is no longer dead: each of its G episodes gets -(1 / (G+1)) / (std + eps), which for
G = 8 is -0.33: wrong answers are pushed down together, and nothing tells them apart. An all-right group stays
dead, since r_max equals its rewards. In a mixed group right answers get less than GRPO gives them and wrong
ones a larger penalty.

Source: the formula, r_max = 1, one virtual sample and eps = 1e-6 are those of the authors' released script as
our notes of it give them; the unbiased deviation is our reading. The script goes with a stricter clip for
negative advantages (0.16 below, 0.24 above: `training.clip_low`, `training.clip_high`) and drops all-right
groups, whose advantages are 0 here as well.

Rewards above r_max would turn the virtual episode from the best into a mediocre one: they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo
from threefold.credit.normalise import dead_groups, group_mean, group_std


@torch.no_grad()
def advantages_with_virtual_best(
    rewards_B: Tensor, group_B: Tensor, *, max_reward: float = 1.0, eps: float = 1e-6
) -> Tensor:
    """Rewards relative to a group that has one perfect episode more.

    Args:
        rewards_B: (B,) rewards; NaN where unscorable.
        group_B: (B,) group of each episode, any integers.
        max_reward: Reward of the virtual episode.
        eps: Added to the standard deviation.

    Returns:
        (B,) advantages; 0 for NaN.
    """
    groups_N = group_B.unique()
    with_best = torch.cat([rewards_B, rewards_B.new_full((len(groups_N),), max_reward)])
    groups = torch.cat([group_B, groups_N])
    mean_B = group_mean(with_best, groups)[: len(rewards_B)]
    std_B = group_std(with_best, groups)[: len(rewards_B)]
    # The deviation of equal rewards is rounding dust, which an eps this small would blow up.
    dead_B = dead_groups(with_best, groups, tol=1e-6)[: len(rewards_B)]
    values_B = torch.nan_to_num((rewards_B - mean_B) / (std_B + eps), nan=0.0)
    return values_B.masked_fill(dead_B, 0.0)


@dataclass(frozen=True)
class NGRPO:
    """NGRPO as a credit estimator. It measures nothing and costs nothing.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    max_reward: float = 1.0
    """Reward of the virtual episode: the largest that the weighted sum of the reward functions can reach."""
    eps: float = 1e-6
    """Added to the standard deviation, in units of the reward; above 0."""

    per_token = False

    def __post_init__(self) -> None:
        grpo.check_range("max_reward", self.max_reward)
        grpo.check_range("eps", self.eps, above=0.0)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: There is no reward function, or a group has fewer than two episodes.
        """
        grpo.GRPO().check(reward_names, group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit from rewards.

        Raises:
            ValueError: A reward is larger than `max_reward`.
        """
        reward_B = grpo.combine(batch.rewards, batch.weights)
        over_B = reward_B > self.max_reward + 1e-6
        if over_B.any():
            episode = int(over_B.nonzero()[0])
            raise ValueError(
                f"episode {episode} of the batch has reward {reward_B[episode].item():g}, more than NGRPO's "
                f"max_reward {self.max_reward:g}: set max_reward to the largest sum that the weighted reward "
                "functions can reach"
            )
        values_B = advantages_with_virtual_best(
            reward_B, batch.group_B, max_reward=self.max_reward, eps=self.eps
        )
        return Advantages(
            values=values_B,
            outcome_B=grpo.advantages(reward_B, batch.group_B),
            reward_B=reward_B,
            episode_signals={"reward": reward_B},
        )
