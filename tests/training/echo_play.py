"""Training against two-turn environments that reward echoes and digits."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from threefold import GRPO, Limits, ThreefoldTrainer
from threefold.envs.base import Observation
from threefold.envs.toy import EchoThenNext


def echo(completions: Any, trajectory: Any, **columns: Any) -> list[float | None]:
    return [episode.rewards.get("echo") for episode in trajectory]


DIGITS = Dataset.from_list([{"prompt": [{"role": "user", "content": str(i)}], "digit": i} for i in range(10)])


class Kept(ThreefoldTrainer):
    """Keeps the inputs of every loss, and may disturb what the environment's tokens contribute to it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.losses: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.batches: list[Any] = []
        self.disturb = 0.0
        super().__init__(*args, **options)

    def _generate_and_score_completions(self, inputs):
        self.outputs.append(super()._generate_and_score_completions(inputs))
        return self.outputs[-1]

    def _assign(self, batch, output):
        self.batches.append(batch)
        return super()._assign(batch, output)

    def _compute_loss(self, model, inputs):
        self.losses.append(inputs)
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *args, **options):
        logp, *rest = super()._get_per_token_logps_and_entropies(*args, **options)
        if self.disturb:
            logp = torch.where(self.losses[-1]["tool_mask"].bool(), logp, logp + self.disturb)
        return (logp, *rest)


def played(build, args=None, **options) -> Any:
    defaults = {
        "reward_funcs": echo,
        "train_dataset": DIGITS,
        "environment": EchoThenNext,
        "credit": GRPO(),
        "limits": Limits(turns=2, turn_tokens=4, completion_tokens=24),
    }
    args = {"max_completion_length": 24, **(args or {})}
    trainer = build(Kept, args=args, **{**defaults, **options})
    trainer.train()
    return trainer


def gradients(trainer: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


class SayDigits(EchoThenNext):
    """Rewards any digit said first in a turn: a tenth of random text earns it, so a few steps teach it."""

    def step(self, action_text: str) -> Observation:
        self._turn += 1
        right = float(action_text.strip()[:1].isdigit())
        self._right += int(right)
        done = self._turn == 2
        messages = () if done else ({"role": "user", "content": "+"},)
        return Observation(messages=messages, rewards={"echo": right}, terminated=done, success=None)
