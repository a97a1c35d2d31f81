"""GRPO: an episode's credit is its reward less the mean reward of its group, in units of the group's spread.

    A_i = (R_i - mean(R)) / (std(R) + eps)            (DeepSeekMath, arXiv 2402.03300)

R_i is the weighted sum of the reward functions. Mean and unbiased standard deviation run over the episodes of
one prompt. The spread may also be taken over the whole batch, or left out (Dr. GRPO, arXiv 2503.20783).

This is TRL 1.16's arithmetic for `multi_objective_aggregation="sum_then_normalize"`, equal bit for bit in
float32: the baseline against which the other estimators are measured, and what they return when told to add
nothing. An episode that no function could score has reward NaN: it is left out of the baseline and gets
advantage 0.

The known gap, and the reason for the rest of this package: where all rewards of a group are equal, all its
advantages are 0.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal
from threefold.credit.normalise import group_mean, nan_std, zscore

Scale = Literal["group", "batch", "none"]
"""Unit of the advantages: the reward's spread in the "group", in the whole "batch", or plain reward."""


@torch.no_grad()
def combine(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """One reward per episode: the weighted sum over the functions that gave a score.

    Args:
        rewards: (B,) by reward function, NaN where it gave no score; summed in the mapping's order.
        weights: Weight of each of these functions.

    Returns:
        (B,) float32 rewards; NaN where no function gave a score.

    Raises:
        ValueError: There is no reward function, or one of them has no weight.
    """
    if not rewards:
        raise ValueError("no reward function: at least one is needed to give credit")
    for name in rewards:
        if name not in weights:
            raise ValueError(f"reward function {name!r} has no weight, {suggestion(name, weights)}")
    rewards_BF = torch.stack([reward_B.float() for reward_B in rewards.values()], dim=1)
    weights_F = torch.tensor(
        [weights[name] for name in rewards], dtype=torch.float32, device=rewards_BF.device
    )
    combined_B = (rewards_BF * weights_F.unsqueeze(0)).nansum(dim=1)
    return combined_B.masked_fill(rewards_BF.isnan().all(dim=1), torch.nan)


@torch.no_grad()
def advantages(
    rewards_B: Tensor, group_B: Tensor, *, scale: Scale = "group", eps: float = 1e-4, std_floor: float = 0.0
) -> Tensor:
    """Rewards relative to the mean of their group.

    Args:
        rewards_B: (B,) rewards; NaN where unscorable.
        group_B: (B,) group of each episode, any integers.
        scale: What to divide by: the standard deviation of the "group", that of the whole "batch", or "none".
        eps: Added to the standard deviation.
        std_floor: The standard deviation counts as at least this.

    Returns:
        (B,) advantages; 0 for NaN.

    Raises:
        ValueError: `scale` is none of the three, or the arguments are not two vectors of one length.
    """
    check_choice("scale", scale, get_args(Scale))
    if scale == "group":
        return zscore(rewards_B, group_B, eps=eps, std_floor=std_floor)
    centred_B = rewards_B - group_mean(rewards_B, group_B)
    if scale == "batch":
        std = nan_std(rewards_B)
        centred_B = centred_B / ((std.clamp(min=std_floor) if std_floor else std) + eps)
    return torch.nan_to_num(centred_B, nan=0.0)


@dataclass(frozen=True)
class GRPO:
    """Group-relative policy optimisation as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    scale: Scale = "group"
    """What advantages are measured in: "group" (the paper), "batch", or "none" (Dr. GRPO)."""
    eps: float = 1e-4
    """Added to the standard deviation, in units of the reward; above 0. TRL's value."""

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, get_args(Scale))
        check_range("eps", self.eps, above=0.0)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, groups in which nothing can be compared.

        Raises:
            ValueError: There is no reward function, or a group has fewer than two episodes.
        """
        if not reward_names:
            raise ValueError("no reward function: at least one is needed to give credit")
        check_group_size(group_size)

    def assign(self, batch: CreditBatch) -> Advantages:
        reward_B = combine(batch.rewards, batch.weights)
        values_B = advantages(reward_B, batch.group_B, scale=self.scale, eps=self.eps)
        return Advantages(
            values=values_B, outcome_B=values_B, reward_B=reward_B, episode_signals={"reward": reward_B}
        )


def check_group_size(group_size: int) -> None:
    """Raise ValueError for groups of fewer than two episodes, in which nothing can be compared."""
    if group_size < 2:
        raise ValueError(
            f"a group of {group_size} cannot be compared with itself: num_generations must be 2 or more"
        )


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError if `value` is none of `choices`; the message names the nearest one."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{field} is {value!r}, {suggestion(value, choices)}")


def check_range(
    field: str, value: float, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    """Raise ValueError unless `value` is finite, greater than `above` and in [`least`, `most`]."""
    if not (math.isfinite(value) and above < value and least <= value <= most):
        lower = (
            f"above {above:g}" if above > -math.inf else f"at least {least:g}" if least > -math.inf else ""
        )
        upper = f"at most {most:g}" if most < math.inf else ""
        wanted = " and ".join(part for part in (lower, upper) if part)
        raise ValueError(f"{field} is {value!r}, it must be a finite number {wanted}".rstrip())


def suggestion(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest valid one and all of them."""
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=1)
    return (
        f"did you mean {close[0]!r}? " if close else ""
    ) + f"valid: {', '.join(map(repr, names)) or 'none'}"
