"""GiGPO: turns that started from the same state are compared with each other, wherever they stand.

"Group-in-Group Policy Optimization", arXiv 2505.10978:

    A = A^E + ω A^S
    A^E_i     = (R_i - mean(R)) / F                  of the episode, inside the group
    A^S_{i,t} = (Q_{i,t} - mean(Q)) / F              over all turns of the group that share an anchor state
    Q_{i,t}   = Σ_{k>=t} γ^(k-t) r_{i,k}             discounted return of the turn

ω is `step_weight`, F the standard deviation or 1 (`scale`). r holds the turn's rewards, and in an episode's
last turn the reward of the whole episode too. A state that nobody else met gives A^S = 0.

Our adaptation: in free dialogue texts never repeat, so the anchor is the environment's *state* before the
turn, such as the tiers (D, R) of distress and resistance. A violation takes `violation_penalty` off the
episode's reward, for the paper has none. γ 0.95 is that of published configurations. NaN takes no part.

An episode may meet one anchor twice; both turns are then in one comparison, as in the paper, so a baseline
can depend on what it is a baseline for: docs/turn-credit.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo, turns
from threefold.credit.turn_credit import cells, others

Scale = Literal["group", "none"]
"""F: the standard deviation of what is compared, or 1."""


@torch.no_grad()
def advantages(
    outcome_B: Tensor,
    turn_channels: Mapping[str, Tensor],
    states: Mapping[str, Tensor],
    turn_mask_BK: Tensor,
    group_B: Tensor,
    *,
    gamma: float = 0.95,
    step_weight: float = 1.0,
    scale: Scale = "group",
    eps: float = 1e-4,
) -> Tensor:
    """The advantage of every turn.

    Args:
        outcome_B: (B,) reward of the whole episode, NaN where unscorable.
        turn_channels: (B, K) by channel, summed to one reward a turn.
        states: (B, K) by name, the state before each turn; together they are the anchor.
        turn_mask_BK: (B, K) bool, the turns that took place.
        group_B: (B,) group of each episode, any integers.
        gamma: γ, in [0, 1].
        step_weight: ω.
        scale: F.
        eps: Added to the standard deviations.

    Returns:
        (B, K) advantages, 0 for turns that did not take place.

    Raises:
        ValueError: `scale` is unknown, or there is no state.
    """
    grpo.check_choice("scale", scale, get_args(Scale))
    returns_BK = discounted_returns(outcome_B, turn_channels, turn_mask_BK, gamma=gamma)
    anchors_BK = anchor_cells(states, group_B, turn_mask_BK)
    step_BK = grpo.advantages(returns_BK.flatten(), anchors_BK.flatten(), scale=scale, eps=eps)
    alone_BK = others(returns_BK, anchors_BK) == 0
    step_BK = step_BK.view_as(returns_BK).masked_fill(alone_BK, 0)
    total_B = outcome_B + _sum(turn_channels, turn_mask_BK).sum(dim=1)
    episode_B = grpo.advantages(total_B, group_B, scale=scale, eps=eps)
    return torch.where(turn_mask_BK, episode_B.unsqueeze(1) + step_weight * step_BK, 0)


@torch.no_grad()
def discounted_returns(
    outcome_B: Tensor, turn_channels: Mapping[str, Tensor], turn_mask_BK: Tensor, *, gamma: float
) -> Tensor:
    """(B, K) Q; NaN where a turn did not take place or its return could not be scored."""
    rewards_BK = _sum(turn_channels, turn_mask_BK)
    left_BK = turn_mask_BK.flip(1).cumsum(1).flip(1)
    rewards_BK = torch.where(left_BK == 1, rewards_BK + outcome_B.unsqueeze(1), rewards_BK)
    returns_BK, after_B = torch.zeros_like(rewards_BK), torch.zeros_like(rewards_BK[:, 0])
    for turn in reversed(range(rewards_BK.shape[1])):
        after_B = rewards_BK[:, turn] + gamma * after_B
        returns_BK[:, turn] = after_B
    return returns_BK.masked_fill(~turn_mask_BK, torch.nan)


@torch.no_grad()
def anchor_cells(states: Mapping[str, Tensor], group_B: Tensor, turn_mask_BK: Tensor) -> Tensor:
    """(B, K) int64: equal where group and state are; an unknown state, and no turn, is like no other."""
    if not states:
        raise ValueError("GiGPO compares turns of equal states, but no state is named: give `states`")
    known_BK = turn_mask_BK
    keys = [group_B.unsqueeze(1)]
    for state_BK in states.values():
        known_BK = known_BK & ~state_BK.isnan()
        keys.append(state_BK.nan_to_num())
    own_BK = torch.arange(1, turn_mask_BK.numel() + 1, device=group_B.device).view(turn_mask_BK.shape)
    return cells(*keys, own_BK.masked_fill(known_BK, 0))


def _sum(turn_channels: Mapping[str, Tensor], turn_mask_BK: Tensor) -> Tensor:
    total_BK = torch.zeros(turn_mask_BK.shape, device=turn_mask_BK.device)
    for rewards_BK in turn_channels.values():
        total_BK = total_BK + torch.where(turn_mask_BK, rewards_BK, 0)
    return total_BK


@dataclass(frozen=True)
class GiGPO:
    """Group-in-group policy optimisation as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    per_token: ClassVar[bool] = True

    turns: tuple[str, ...] = ("D", "R")
    """Names of the turn channels."""
    states: tuple[str, ...] = ("D", "R")
    """Names of the states that make the anchor: the keys of an environment's `Observation.state`."""
    gamma: float = 0.95
    """γ, discount of later turns, in [0, 1]."""
    step_weight: float = 1.0
    """ω, weight of the anchored comparison, 0 or more."""
    scale: Scale = "group"
    violation_penalty: float = 5.0
    """Taken off a violator's reward, 0 or more."""
    eps: float = 1e-4
    """Added to the standard deviations; above 0."""

    def __post_init__(self) -> None:
        grpo.check_range("gamma", self.gamma, least=0.0, most=1.0)
        grpo.check_range("step_weight", self.step_weight, least=0.0)
        grpo.check_range("violation_penalty", self.violation_penalty, least=0.0)
        grpo.check_range("eps", self.eps, above=0.0)
        grpo.check_choice("scale", self.scale, get_args(Scale))
        turns.check_names("GiGPO's turns", self.turns)
        turns.check_names("GiGPO's states", self.states)
        if not self.states:
            raise ValueError("GiGPO's states is (); name the states that make the anchor")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, groups in which nothing can be compared."""
        grpo.check_group_size(group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """(B, T) credit.

        Raises:
            ValueError: A turn channel or a state is missing from the episodes.
        """
        channels, mask_BK = turns.channels(batch, self.turns)
        states = turns.levels(batch, self.states)
        values_BK = advantages(
            turns.plain_sum(batch, (), self.violation_penalty),
            channels,
            states,
            mask_BK,
            batch.group_B,
            gamma=self.gamma,
            step_weight=self.step_weight,
            scale=self.scale,
            eps=self.eps,
        )
        cells_BK = anchor_cells(states, batch.group_B, mask_BK)
        shared_BK = others(torch.where(mask_BK, 0.0, torch.nan), cells_BK) > 0
        figures = {"gigpo/shared_anchors": float(shared_BK[mask_BK].float().mean())} if mask_BK.any() else {}
        reward_B = turns.plain_sum(batch, self.turns, self.violation_penalty)
        return turns.credited(batch, values_BK, reward_B=reward_B, figures=figures)
