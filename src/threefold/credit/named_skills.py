"""Credit of their own for the tokens that name a skill, on top of any method.

An agent that may choose among skills says which one it takes in a few tokens ("following ask-before-open,
..."). A method that gives every token of an episode the same advantage hands these few a vanishing share of
it, with a sign that depends on everything else that was said: the choice is hardly ever learnt ("selector
credit starvation", SkillGate, arXiv 2608.18852). Here they are asked what the choice itself was worth. For
episode i of a group, skill s that it named, and M the members of the group that were shown s and did not name
it:

    A_is = w (R_i - mean of R over M) / (std of R over the group + eps)

on the tokens that name s; all other tokens keep the advantage of the method. The baseline depends on other
episodes alone, so for w = 1 and no division the expected gradient is that of the reward, as in any leave-one-
out scheme: what changes is that taking the skill is compared with not taking it. w > 1 makes up for how few
the tokens are; it weighs a part of the gradient and is then no longer the gradient of the reward.

Where M is empty there is nothing to compare, and the method's advantage stays. So it does in an episode that
broke a safety rule: a veto is the last word. Not in ReSkill's paper (arXiv 2606.01619), whose skills fire by
triggers and are not chosen; of use where the agent reasons aloud.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, CreditEstimator, Signal, grpo
from threefold.credit.normalise import group_std

Scale = Literal["group", "none"]


@torch.no_grad()
def naming_advantages(
    rewards_B: Tensor,
    named_BS: Tensor,
    shown_BS: Tensor,
    group_B: Tensor,
    *,
    scale: Scale = "group",
    eps: float = 1e-4,
) -> Tensor:
    """What naming each skill was worth, against members of the group that could have named it and did not.

    Args:
        rewards_B: (B,) rewards; NaN where unscorable.
        named_BS: (B, S) bool, the episode named the skill.
        shown_BS: (B, S) bool, the skill stood in the episode's prompt.
        group_B: (B,) int64 group of each episode.
        scale: Divide by the standard deviation of the "group", or by nothing ("none").
        eps: Added to the standard deviation, in units of the reward.

    Returns:
        (B, S); NaN where the episode did not name the skill or there is nothing to compare with.
    """
    _, group_B = group_B.unique(return_inverse=True)
    n_groups = int(group_B.max()) + 1 if len(group_B) else 0
    scored_B = ~rewards_B.isnan()
    other_BS = (shown_BS & ~named_BS & scored_B[:, None]).to(rewards_B.dtype)
    shape = (n_groups, named_BS.size(1))
    sum_GS = rewards_B.new_zeros(shape).index_add_(0, group_B, other_BS * rewards_B.nan_to_num(0.0)[:, None])
    count_GS = rewards_B.new_zeros(shape).index_add_(0, group_B, other_BS)
    worth_BS = rewards_B[:, None] - (sum_GS / count_GS)[group_B]  # 0 / 0 is NaN: nothing to compare with
    if scale == "group":
        worth_BS = worth_BS / (group_std(rewards_B, group_B) + eps)[:, None]
    return worth_BS.masked_fill(~named_BS, torch.nan)


@dataclass(frozen=True)
class NamedSkills:
    """A method whose tokens that name a skill get `naming_advantages` in place of the method's own.

    Everything else (signals, checks, outcome, turns, loss) is the method's.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    method: CreditEstimator
    """Who gives credit to all other tokens."""
    weight: float = 1.0
    """w, above 0: how much a naming token counts beside another."""
    scale: Scale = "group"
    """What the difference is divided by."""
    eps: float = 1e-4
    """Added to the standard deviation, in units of the reward; above 0."""

    names_skills = True
    """The trainer looks for the names."""
    per_token = True

    def __post_init__(self) -> None:
        grpo.check_range("weight", self.weight, above=0.0)
        grpo.check_range("eps", self.eps, above=0.0)
        grpo.check_choice("scale", self.scale, get_args(Scale))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "method":
            raise AttributeError(name)
        return getattr(self.method, name)

    @property
    def needs(self) -> frozenset[Signal]:
        return self.method.needs

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """The method's own check."""
        self.method.check(reward_names, group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """The method's credit with that of the naming tokens; the method's answer where none were said.

        Raises:
            ValueError: The batch does not say which tokens name a skill.
        """
        answer = self.method.assign(batch)
        skill_BT, shown_BS = batch.named_skill_BT, batch.shown_skill_BS
        if skill_BT is None or shown_BS is None:
            raise ValueError(
                "NamedSkills needs the skills that episodes name, and the batch has none of them"
            )
        named_BS = torch.zeros_like(shown_BS)
        rows_N, tokens_N = (skill_BT >= 0).nonzero(as_tuple=True)
        skills_N = skill_BT[rows_N, tokens_N]
        named_BS[rows_N, skills_N] = True
        worth_BS = naming_advantages(
            answer.reward_B, named_BS, shown_BS, batch.group_B, scale=self.scale, eps=self.eps
        )
        if batch.violation_B is not None:
            worth_BS = worth_BS.masked_fill(batch.violation_B[:, None], torch.nan)
        worth_N = self.weight * worth_BS[rows_N, skills_N]
        known_N = worth_N.isfinite()
        metrics = {
            **answer.metrics,
            "skills/naming_tokens": len(rows_N) / max(1, int(batch.mask_BT.sum())),
            "skills/naming_episodes": float(named_BS.any(dim=1).float().mean()),
            "skills/naming_compared": float(known_N.float().mean()) if len(rows_N) else 0.0,
        }
        if not known_N.any():
            return replace(answer, metrics=metrics)
        values = answer.values
        values_BT = values.clone() if values.dim() == 2 else values[:, None] * batch.mask_BT
        values_BT[rows_N[known_N], tokens_N[known_N]] = worth_N[known_N].to(values_BT.dtype)
        return replace(answer, values=values_BT, metrics=metrics)
