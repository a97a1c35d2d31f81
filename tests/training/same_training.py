"""Whether two trainers have trained alike, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def weights(trainer: Any) -> list[Tensor]:
    return [parameter.detach() for parameter in trainer.model.parameters()]


def losses(trainer: Any) -> list[tuple[float, float]]:
    return [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]


def assert_same_training(one: Any, other: Any) -> None:
    assert losses(one) == losses(other)
    assert len(losses(one)) == one.args.max_steps
    for a, b in zip(weights(one), weights(other), strict=True):
        assert torch.equal(a, b)


def trained(build: Any, *args: Any, **options: Any) -> Any:
    trainer = build(*args, **options)
    trainer.train()
    return trainer
