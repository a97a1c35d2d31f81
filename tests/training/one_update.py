"""One update whose change of the weights is its gradient, and what it has forwarded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threefold import ThreefoldTrainer

ONE_STEP = {
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "steps_per_generation": 4,
}
"""One update whose change of the weights is the gradient itself."""


def gradient(trainer: Any) -> list[Tensor]:
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    return [b - p.detach() for b, p in zip(before, trainer.model.parameters(), strict=True)]


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    difference = sum(float(((a - b) ** 2).sum()) for a, b in zip(one, other, strict=True))
    return (difference / sum(float((a**2).sum()) for a in one)) ** 0.5


def some_dead(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """Half of the groups get equal rewards, whatever was said."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    alive = [int(a) % 2 for a in answer]
    return [float(len(text) + ord((text or "a")[0])) * a for text, a in zip(texts, alive, strict=True)]


def rows_forwarded(trainer: ThreefoldTrainer) -> list[int]:
    """Rows of every scoring forward with a gradient from now on."""
    counts: list[int] = []
    original = trainer._get_per_token_logps_and_entropies

    def counting(model: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            counts.append(len(input_ids))
        return original(model, input_ids, *args, **kwargs)

    trainer._get_per_token_logps_and_entropies = counting
    return counts
