"""What a turn is credited with, and whom it is compared with: the turn half of T²-GRPO and its variants.

A turn channel k gives the reward r_t = L_{t-1} - L_t of turn t, the fall of a level L such as a patient's
distress (arXiv 2606.08875, Eq. 2). The value of turn t is

    delta          r_t                                                        the paper's
    return_to_go   r_t + r_{t+1} + ... + r_T = L_{t-1} - L_T
    stratified     r_t, compared only with turns that started from the same level L_{t-1}
    headroom       r_t / L_{t-1} where the level fell, r_t / (L_max - L_{t-1}) where it rose; 1 where it
                   stayed at 0

and is then ranked, standardised or centred among the members of the group at the same turn index. Members
that have ended are `absent` from that comparison (the paper's V_{k,t}), or stay in it with turns of value
`zero`. Why this matters where the policy decides when an episode ends: docs/turn-credit.md.

Why there are four. A delta is myopic: it says nothing of later turns. And it has a floor: who keeps a calm
patient calm (0) ranks below who repairs half of a crisis (1), and level with who leaves a crisis as it is.
Strata compare like with like; headroom asks which share of what was possible was reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from threefold.credit.noise_control import Deal
from threefold.credit.normalise import centred_rank, leave_one_out, zscore

TurnCredit = Literal["delta", "return_to_go", "stratified", "headroom"]
"""The value of a turn."""
Normalise = Literal["rank", "zscore", "leave_one_out"]
"""How values are compared: centred rank (the paper), z-score (GDPO), distance to the mean of the others."""
Ended = Literal["absent", "zero"]
"""Members that have ended: left out of later turns' comparisons (the paper), or in them with value 0."""


def within(values: Tensor, cells: Tensor, how: Normalise, *, eps: float = 1e-4) -> Tensor:
    """Values relative to the others of their cell; both (B,). NaN takes no part and gets 0."""
    if how == "rank":
        return centred_rank(values, cells)
    if how == "zscore":
        return zscore(values, cells, eps=eps)
    return leave_one_out(values, cells)


@torch.no_grad()
def relative_turns(
    rewards_BK: Tensor,
    turn_mask_BK: Tensor,
    group_B: Tensor,
    *,
    turn_credit: TurnCredit = "delta",
    normalise: Normalise = "rank",
    ended: Ended = "absent",
    min_valid: int = 2,
    eps: float = 1e-4,
    levels_BK: Tensor | None = None,
    top_level: float = 3.0,
    left_out_B: Tensor | None = None,
    deal: Deal | None = None,
) -> Tensor:
    """The credit of every turn in one channel, relative to the group at the same turn index (Eq. 5).

    Args:
        rewards_BK: (B, K) turn rewards; NaN where the channel could not be scored.
        turn_mask_BK: (B, K) bool, the turns that took place.
        group_B: (B,) group of each episode.
        turn_credit: The value of a turn, see above.
        normalise: How values are compared.
        ended: Whether members that have ended take part in later turns' comparisons.
        min_valid: Smallest number of values that are compared; fewer get 0.
        eps: Added to the standard deviation of z-scores.
        levels_BK: (B, K) level before each turn, for "headroom"; lower is better, in [0, `top_level`].
        top_level: Highest level.
        left_out_B: (B,) bool, episodes that take no part and get 0.
        deal: Gives the values to other turns of their comparison, for the noise control.

    Returns:
        (B, K); 0 for turns that did not take place, were not scored, or had too few others.
    """
    values_BK, cells_BK = compared(
        rewards_BK,
        turn_mask_BK,
        group_B,
        turn_credit=turn_credit,
        ended=ended,
        levels_BK=levels_BK,
        top_level=top_level,
        left_out_B=left_out_B,
    )
    if deal is not None:
        values_BK = deal(values_BK, cells_BK)
    relative_BK = within(values_BK.flatten(), cells_BK.flatten(), normalise, eps=eps).view_as(values_BK)
    enough_BK = others(values_BK, cells_BK) + 1 >= min_valid
    return torch.where(enough_BK & turn_mask_BK & ~values_BK.isnan(), relative_BK, 0)


@torch.no_grad()
def compared(
    rewards_BK: Tensor,
    turn_mask_BK: Tensor,
    group_B: Tensor,
    *,
    turn_credit: TurnCredit = "delta",
    ended: Ended = "absent",
    levels_BK: Tensor | None = None,
    top_level: float = 3.0,
    left_out_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What is compared with what: (B, K) values, NaN where there is none, and (B, K) int64 cells.

    Turns are compared with the turns of their cell: group and turn index, and the level where stratified.
    """
    rewards_BK = rewards_BK if rewards_BK.is_floating_point() else rewards_BK.float()
    rewards_BK = torch.where(turn_mask_BK, rewards_BK, 0)
    if turn_credit == "return_to_go":
        values_BK = rewards_BK.flip(1).cumsum(1).flip(1)
    elif turn_credit == "headroom":
        if levels_BK is None:
            raise ValueError("turn_credit='headroom' needs the level before each turn: give `levels`")
        values_BK = _headroom(rewards_BK, levels_BK, top_level)
    else:
        values_BK = rewards_BK
    values_BK = values_BK.masked_fill(~turn_mask_BK, torch.nan if ended == "absent" else 0.0)
    # After a turn that was not scored, or with no turn at all, nobody knows what an ended episode was worth.
    lost_BK = (rewards_BK.isnan().cumsum(1) > 0) | ~turn_mask_BK.any(dim=1, keepdim=True)
    values_BK = values_BK.masked_fill(lost_BK & ~turn_mask_BK, torch.nan)
    if left_out_B is not None:
        values_BK = values_BK.masked_fill(left_out_B.unsqueeze(1), torch.nan)
    keys = [group_B.unsqueeze(1), torch.arange(rewards_BK.shape[1], device=group_B.device)]
    if turn_credit == "stratified":
        # The members of a group start from one level, so equal falls so far mean equal levels.
        fallen_BK = torch.nn.functional.pad(rewards_BK.cumsum(1)[:, :-1], (1, 0))
        values_BK = values_BK.masked_fill(fallen_BK.isnan(), torch.nan)
        keys.append((fallen_BK.nan_to_num() * 1e4).round().long())
    return values_BK, cells(*keys)


def cells(*keys: Tensor) -> Tensor:
    """int64, numbered from 0: equal where all keys are. The keys are broadcast to one shape."""
    number = torch.zeros(1, dtype=torch.int64, device=keys[0].device)
    for key in torch.broadcast_tensors(*keys):
        values, index = key.unique(return_inverse=True)
        number = (number * len(values) + index).unique(return_inverse=True)[1]  # small again: no overflow
    return number


@torch.no_grad()
def others(values_BK: Tensor, cells_BK: Tensor) -> Tensor:
    """(B, K) number of other values in each one's cell."""
    there_BK = ~values_BK.isnan()
    if not cells_BK.numel():
        return there_BK.long()
    count = torch.zeros(int(cells_BK.max()) + 1, dtype=torch.int64, device=values_BK.device)
    count.index_add_(0, cells_BK.flatten(), there_BK.flatten().long())
    return count[cells_BK] - there_BK.long()


@torch.no_grad()
def tied_share(values_BK: Tensor, cells_BK: Tensor) -> float | None:
    """Share of the values that equal another one of their cell, None without values in company.

    Ties shrink the spread of centred ranks, so a channel of many ties has little say (docs/t2grpo.md).
    """
    company_BK = ~values_BK.isnan() & (others(values_BK, cells_BK) > 0)
    if not company_BK.any():
        return None
    equal = cells(cells_BK[company_BK], values_BK[company_BK])
    return float((equal.bincount()[equal] > 1).double().mean())


def summed_turns(turn_channels: Mapping[str, Tensor], turn_mask_BK: Tensor) -> Tensor:
    """(B,) the rewards of all turns and channels; NaN with a turn that was not scored, or without one."""
    total_B = torch.zeros(len(turn_mask_BK), device=turn_mask_BK.device)
    for rewards_BK in turn_channels.values():
        total_B = total_B + torch.where(turn_mask_BK, rewards_BK, 0).sum(dim=1)
    return total_B.masked_fill(~turn_mask_BK.any(dim=1), torch.nan) if turn_channels else total_B


def scored_episodes(
    trajectory_channels: Mapping[str, Tensor], turn_channels: Mapping[str, Tensor], turn_mask_BK: Tensor
) -> Tensor:
    """(B,) bool, the episodes of which at least one channel says something."""
    scored_B = torch.zeros(len(turn_mask_BK), dtype=torch.bool, device=turn_mask_BK.device)
    for scores_B in trajectory_channels.values():
        scored_B = scored_B | ~scores_B.isnan()
    for rewards_BK in turn_channels.values():
        scored_B = scored_B | (turn_mask_BK & ~rewards_BK.isnan()).any(dim=1)
    return scored_B


def _headroom(rewards_BK: Tensor, levels_BK: Tensor, top_level: float) -> Tensor:
    """Share of the possible fall that was reached, minus the share of the possible rise."""
    fall_BK = torch.where(levels_BK > 0, rewards_BK / levels_BK.clamp(min=1e-6), 1.0)
    rise_BK = rewards_BK / (top_level - levels_BK).clamp(min=1e-6)
    return torch.where(rewards_BK < 0, rise_BK, fall_BK).masked_fill(
        rewards_BK.isnan() | levels_BK.isnan(), torch.nan
    )
