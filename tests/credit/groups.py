"""Batches of hand-made groups for the tests of credit estimators."""

from __future__ import annotations

import torch
from torch import Tensor

from threefold.credit import CreditBatch, Signals


def batch_of(
    outcome: list[float],
    *,
    group_size: int | None = None,
    lengths: list[int] | None = None,
    extra: dict[str, tuple[list[float], float]] | None = None,
    **signals: Tensor,
) -> CreditBatch:
    """Episodes with an "accuracy" reward, groups side by side; T from the signals, else 3.

    Args:
        outcome: Outcome of each episode.
        group_size: Members of a group; all by default.
        lengths: Trained tokens of each episode, from the left; all by default.
        extra: Other rewards, by name, with their weight.
        signals: Fields of `Signals`.
    """
    count = len(outcome)
    width = next((value.size(1) for name, value in signals.items() if name.endswith("_BT")), 3)
    ends_B = torch.tensor([width] * count if lengths is None else lengths)
    mask_BT = torch.arange(width) < ends_B[:, None]
    others = {name: torch.tensor(values) for name, (values, _) in (extra or {}).items()}
    return CreditBatch(
        rewards={"accuracy": torch.tensor(outcome, dtype=torch.float32), **others},
        weights={"accuracy": 1.0, **{name: weight for name, (_, weight) in (extra or {}).items()}},
        group_B=torch.arange(count) // (group_size or count),
        mask_BT=mask_BT,
        turn_BT=torch.zeros(count, width, dtype=torch.int64).masked_fill(~mask_BT, -1),
        signals=Signals(**signals),
    )


def reordered(batch: CreditBatch, order: list[int]) -> CreditBatch:
    """The same episodes in another order."""
    return CreditBatch(
        rewards={name: value[order] for name, value in batch.rewards.items()},
        weights=batch.weights,
        group_B=batch.group_B[order],
        mask_BT=batch.mask_BT[order],
        turn_BT=batch.turn_BT[order],
        signals=Signals(
            **{name: v[order] for name, v in vars(batch.signals).items() if isinstance(v, Tensor)}
        ),
    )
