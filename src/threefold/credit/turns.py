"""Between a batch of episodes and credit by turn: what T²-GRPO, GDPO, GiGPO and MT-GRPO have in common.

An estimator of turns reads channels (B, K) off a `CreditBatch`, and what it answers per turn (B, K) goes to
the tokens (B, T) that the agent wrote in that turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, grpo
from threefold.credit.turn_credit import Ended, TurnCredit, compared, others, summed_turns, tied_share


def check_names(what: str, names: Sequence[str]) -> None:
    """Raise ValueError for a bare string where a tuple of names is wanted, or for a name given twice."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} is {names!r}; give a tuple of names, such as ('D', 'R')")
    if len(set(names)) < len(names):
        raise ValueError(f"{what} is {names!r}; each name may stand there once")


def check_shapes(
    trajectory_channels: Mapping[str, Tensor],
    turn_channels: Mapping[str, Tensor],
    turn_mask_BK: Tensor,
    violation_B: Tensor,
    group_B: Tensor,
) -> None:
    """Raise ValueError where a channel, mask or violation is not of the batch's shape or kind."""
    if group_B.ndim != 1 or turn_mask_BK.ndim != 2 or len(turn_mask_BK) != len(group_B):
        raise ValueError(
            f"group_B must be (B,) and turn_mask_BK (B, K), got {tuple(group_B.shape)} and "
            f"{tuple(turn_mask_BK.shape)}"
        )
    if turn_mask_BK.dtype != torch.bool or violation_B.dtype != torch.bool:
        raise ValueError(
            f"turn_mask_BK and violation_B must be bool, got {turn_mask_BK.dtype}, {violation_B.dtype}"
        )
    wanted = {
        **{f"trajectory channel {name!r}": (x, group_B) for name, x in trajectory_channels.items()},
        **{f"turn channel {name!r}": (x, turn_mask_BK) for name, x in turn_channels.items()},
        "violation_B": (violation_B, group_B),
    }
    for what, (tensor, like) in wanted.items():
        if tensor.shape != like.shape:
            raise ValueError(f"{what} has shape {tuple(tensor.shape)}, expected {tuple(like.shape)}")


def turn_mask(batch: CreditBatch) -> Tensor:
    """(B, K) bool, the turns that took place.

    Raises:
        ValueError: The batch's episodes have no turns: they were not played by the trainer.
    """
    if batch.turn_mask_BK is None:
        raise ValueError(
            "credit by turn needs episodes with turns, and this batch has none: give the trainer "
            "environment=..., whose step() answers Observation(rewards={...})"
        )
    return batch.turn_mask_BK


def channels(batch: CreditBatch, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """The named turn channels, (B, K) each, and the (B, K) mask of turns.

    Where no turn of the whole batch was rewarded (every environment failed) the channels are NaN.

    Raises:
        ValueError: Turns are rewarded in other channels but not in this one; the nearest name is given.
    """
    if not names and batch.turn_mask_BK is None:
        return {}, batch.mask_BT.any(dim=1, keepdim=True)  # one turn an episode, and nothing said of it
    mask_BK = turn_mask(batch)
    if batch.turn_rewards:
        for name in names:
            grpo.check_choice("the turn channel", name, batch.turn_rewards)
    nothing_BK = torch.full(mask_BK.shape, torch.nan, device=mask_BK.device)
    return {name: batch.turn_rewards.get(name, nothing_BK) for name in names}, mask_BK


def levels(batch: CreditBatch, names: Sequence[str]) -> dict[str, Tensor]:
    """(B, K) by name, the state before each turn.

    Raises:
        ValueError: The environment's states lack one of the names.
    """
    if batch.turn_state:
        for name in names:
            grpo.check_choice("the state", name, batch.turn_state)
    nothing_BK = torch.full(turn_mask(batch).shape, torch.nan, device=turn_mask(batch).device)
    return {name: batch.turn_state.get(name, nothing_BK) for name in names}


def violations(batch: CreditBatch) -> Tensor:
    """(B,) bool; False throughout where the batch says nothing."""
    if batch.violation_B is None:
        return torch.zeros(len(batch.group_B), dtype=torch.bool, device=batch.group_B.device)
    return batch.violation_B


def plain_sum(
    batch: CreditBatch, turn_names: Sequence[str], penalty: float, *, names: Sequence[str] | None = None
) -> Tensor:
    """(B,) one reward an episode: weighted reward functions plus turn rewards minus penalty x violation.

    What GRPO is given in the paper's comparison (Eq. 16); NaN where a part could not be scored.
    """
    rewards = batch.rewards if names is None else {name: batch.rewards[name] for name in names}
    total_B = torch.zeros(len(batch.group_B), device=batch.group_B.device)
    if rewards:
        total_B = total_B + grpo.combine(rewards, batch.weights)
    if turn_names:
        total_B = total_B + summed_turns(*channels(batch, turn_names))
    return total_B - penalty * violations(batch)


def to_tokens(values_BK: Tensor, turn_BT: Tensor) -> Tensor:
    """(B, T): each token gets its turn's value, those of no turn (-1) get 0."""
    return torch.where(turn_BT >= 0, values_BK.gather(1, turn_BT.clamp(min=0)), 0)


def credited(
    batch: CreditBatch,
    values: Tensor,
    *,
    reward_B: Tensor,
    figures: Mapping[str, float] | None = None,
    episode_signals: Mapping[str, Tensor] | None = None,
    turn_signals: Mapping[str, Tensor] | None = None,
) -> Advantages:
    """Hand out credit by turn, with the figures and signals that all methods of this kind share.

    Args:
        batch: The episodes.
        values: (B, K) advantages of turns, or (B,) where all turns of an episode have the same.
        reward_B: (B,) the scalar reward that GRPO would have normalised.
        figures: More metrics.
        episode_signals: (B,) each, more signals for the record.
        turn_signals: (B, K) each, spread to the tokens for the record.
    """
    if values.dim() == 2:
        values = to_tokens(values, batch.turn_BT)
    violation_B = violations(batch)
    weights_BT = (values if values.dim() == 2 else values.unsqueeze(1)) * batch.mask_BT
    return Advantages(
        values=values,
        outcome_B=grpo.advantages(reward_B, batch.group_B),
        reward_B=reward_B,
        metrics={**_violation_figures(batch, weights_BT), **(figures or {})},
        episode_signals={"reward": reward_B, "violation": violation_B.float(), **(episode_signals or {})},
        token_signals={n: to_tokens(v, batch.turn_BT) for n, v in (turn_signals or {}).items()},
    )


def _violation_figures(batch: CreditBatch, weights_BT: Tensor) -> dict[str, float]:
    """How many violate, and how much of the gradient's weight is theirs."""
    violation_B = violations(batch)
    groups, inverse_B = batch.group_B.unique(return_inverse=True)
    clean_N = torch.zeros(len(groups), device=weights_BT.device).index_add_(
        0, inverse_B, (~violation_B).float()
    )
    figures = {
        "turns/violations": float(violation_B.float().mean()),
        "turns/all_violating": float((clean_N == 0).float().mean()),
    }
    if batch.turn_mask_BK is not None:
        figures["turns/per_episode"] = float(batch.turn_mask_BK.sum(dim=1).float().mean())
    total = weights_BT.abs().sum()
    if total > 0:
        figures["turns/violating_weight"] = float(weights_BT[violation_B].abs().sum() / total)
    clean_BT = batch.mask_BT & ~violation_B.unsqueeze(1)
    if clean_BT.any():
        figures["turns/clean_mean"] = float(weights_BT[clean_BT].mean())
    return figures


def comparison_figures(
    batch: CreditBatch,
    turn_names: Sequence[str],
    names: Sequence[str],
    *,
    min_valid: int = 2,
    turn_credit: TurnCredit = "delta",
    ended: Ended = "absent",
    levels: Mapping[str, Tensor] | None = None,
    top_level: float = 3.0,
) -> dict[str, float]:
    """How much there was to compare: the share of turns with company, and the ties of every channel."""
    figures: dict[str, float] = {}
    turn_channels, mask_BK = channels(batch, turn_names)
    shares = []
    for name, rewards_BK in turn_channels.items():
        values_BK, cells_BK = compared(
            rewards_BK,
            mask_BK,
            batch.group_B,
            turn_credit=turn_credit,
            ended=ended,
            levels_BK=None if levels is None else levels[name],
            top_level=top_level,
        )
        there_BK = ~values_BK.isnan() & mask_BK
        if there_BK.any():
            company_BK = others(values_BK, cells_BK) + 1 >= min_valid
            shares.append(float(company_BK[there_BK].float().mean()))
        _add(figures, f"turns/tied/{name}", tied_share(values_BK, cells_BK))
    for name in names:
        scores_B1, group_B1 = batch.rewards[name].unsqueeze(1), batch.group_B.unsqueeze(1)
        _add(figures, f"turns/tied_episode/{name}", tied_share(scores_B1, group_B1))
    if shares:
        figures["turns/compared"] = sum(shares) / len(shares)
    return figures


def _add(figures: dict[str, float], name: str, value: float | None) -> None:
    if value is not None:
        figures[name] = value
