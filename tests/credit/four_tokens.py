"""A batch of ISPO's signals: four tokens of reasoning, of which one is critical, and an answer of one."""

from __future__ import annotations

import torch
from torch import Tensor

from threefold.credit import CreditBatch, Signals


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def batch_of(
    outcome: list[float], ifd: list[float] | None = None, group_size: int | None = None
) -> CreditBatch:
    """Episodes of four tokens of reasoning and an answer of one; token 0 alone is critical.

    Token 0 has entropy 1 and log-probability -0.5, initially -1; the others entropy 0.1 and no drift.
    """
    count = len(outcome)
    ifd_B = torch.zeros(count) if ifd is None else torch.tensor(ifd)
    signals = Signals(
        logp_BT=rows([-0.5, -0.1, -0.1, -0.1]).repeat(count, 1),
        entropy_BT=rows([1.0, 0.1, 0.1, 0.1]).repeat(count, 1),
        base_logp_BT=rows([-1.0, -0.1, -0.1, -0.1]).repeat(count, 1),
        thinking_BT=torch.ones(count, 4, dtype=torch.bool),
        answer_BA=torch.ones(count, 1, dtype=torch.bool),
        answer_ids_BA=torch.arange(count)[:, None],
        answer_logp_BA=ifd_B[:, None] - 2.0,
        ablated_answer_logp_BA=torch.full((count, 1), -2.0),
    )
    return CreditBatch(
        rewards={"accuracy": torch.tensor(outcome, dtype=torch.float32)},
        weights={"accuracy": 1.0},
        group_B=torch.arange(count) // (group_size or count),
        mask_BT=torch.ones(count, 4, dtype=torch.bool),
        turn_BT=torch.zeros(count, 4, dtype=torch.int64),
        signals=signals,
    )
