"""From one process's episodes to the batch that credit sees: all processes' episodes, the same on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from threefold.credit import CreditBatch, Signals
from threefold.training.turns import EpisodeTurns, turn_tensors

Item = TypeVar("Item")


def gather_rows(accelerator: Accelerator, value: Tensor, fill: int = 0) -> Tensor:
    """The rows of all processes, in the order of the processes; second dimensions are padded with `fill`."""
    if accelerator.num_processes == 1:
        return value
    if value.dtype == torch.bool:  # padding would make it int64, and only on the processes that pad
        return gather_rows(accelerator, value.to(torch.uint8), fill).bool()
    if value.dim() > 1:
        value = accelerator.pad_across_processes(value, dim=1, pad_index=fill)
    return accelerator.gather(value)


def gather_list(accelerator: Accelerator, items: list[Item]) -> list[Item]:
    """The items of all processes, in the order of the processes."""
    return items if accelerator.num_processes == 1 else gather_object(items)


def gather_batch(
    accelerator: Accelerator,
    *,
    rewards_BF: Tensor,
    weights: Mapping[str, float],
    group_size: int,
    mask_BT: Tensor,
    turn_BT: Tensor,
    signals: Signals,
    truncated: list[bool],
    step: int,
    episodes: list[EpisodeTurns] | None,
    skills: Mapping[str, Any],
) -> CreditBatch:
    """The batch of all processes' episodes, in the order of the gathered rewards.

    Args:
        accelerator: Joins the processes.
        rewards_BF: (B, F) of all processes already, a column for each of `weights`; NaN without a score.
        weights: Of each reward function, by name and in the order of the columns.
        group_size: Episodes of a group, which stand together.
        mask_BT: bool, this process's tokens that the agent wrote.
        turn_BT: int64, this process's turns, -1 where the agent did not write.
        signals: Of this process's tokens.
        truncated: Of this process's episodes.
        step: Optimizer steps taken so far.
        skills: The batch's fields about named skills (`naming`), of all processes' episodes.
        episodes: The turns of all processes' episodes, where they were played against an environment.
    """
    device = mask_BT.device
    measured = {
        name: gather_rows(accelerator, value)
        for name, value in vars(signals).items()
        if isinstance(value, Tensor)
    }
    turns: dict[str, Any] = turn_tensors(episodes, device) if episodes is not None else {}
    return CreditBatch(
        rewards=dict(zip(weights, rewards_BF.unbind(dim=1), strict=True)),
        weights=dict(weights),
        group_B=torch.arange(len(rewards_BF), device=device) // group_size,
        mask_BT=gather_rows(accelerator, mask_BT),
        turn_BT=gather_rows(accelerator, turn_BT, fill=-1),
        signals=Signals(**measured),
        truncated_B=gather_rows(accelerator, torch.tensor(truncated, device=device)),
        step=step,
        **turns,
        **skills,
    )
