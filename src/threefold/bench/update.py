"""The policy's update alone: TRL's beside that with the exact speed-ups, on given episodes.

Completions are random tokens of different lengths, so that nothing is generated: what is timed is forward,
backward and optimizer, and the two gradients are compared.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from threefold.bench import parts
from threefold.bench.record import Cell, Options


def measure(options: Options) -> list[Cell]:
    """None of the groups dead, and half of them."""
    shares = sorted({options.dead, 0.5}) if options.groups > 1 else [options.dead]
    return [compare(f"{share:.0%} of the groups dead", replace(options, dead=share)) for share in shares]


def compare(name: str, options: Options) -> Cell:
    """One cell."""
    gradients: dict[str, list[Any]] = {}
    arms = {arm: _Arm(arm, options, gradients) for arm in ("TRL", "Threefold")}
    seconds, _ = parts.take_turns(arms, options)
    pairs = list(zip(*gradients.values(), strict=True))
    apart = sum(float(((a - b) ** 2).sum()) for a, b in pairs) ** 0.5
    size = sum(float((a**2).sum()) for a, _ in pairs) ** 0.5
    del arms, gradients, pairs
    gc.collect()
    return Cell(name, seconds, figures={"gradients_apart": apart / size if size else 0.0})


class _Arm:
    """One trainer on the given episodes; its first gradient is kept for comparison."""

    def __init__(self, name: str, options: Options, gradients: dict[str, list[Any]]) -> None:
        import torch
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOTrainer

        from threefold.training.trainer import ThreefoldTrainer
        from threefold.training.trl_seam import Speedups

        model, tokenizer = parts.load(options.model)
        chance = torch.Generator().manual_seed(options.seed)

        def tokens(count: int) -> list[int]:
            return torch.randint(10, len(tokenizer), (count,), generator=chance).tolist()

        prompts = [tokens(options.prompt) for _ in range(options.groups)]
        lengths = torch.linspace(options.completion / 2, options.completion, options.group).int().tolist()
        rows = [(prompt, tokens(max(length, 1))) for prompt in prompts for length in lengths]
        alive = options.groups - round(options.dead * options.groups)
        rewards = [float(i % 2) if i // options.group < alive else 1.0 for i in range(len(rows))]

        def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
            ids = {"prompt_ids": [row[0] for row in rows], "completion_ids": [row[1] for row in rows]}
            return {**ids, "logprobs": None}

        def reward(completions: list[Any], **columns: Any) -> list[float]:
            return rewards

        class KeepGradient(TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
                if name not in gradients:
                    trained = [p for p in model.parameters() if p.requires_grad]
                    gradients[name] = [p.grad.detach().clone() for p in trained]

        callback, self._watch = parts.step_watch()
        ours: dict[str, Any] = {"speedups": Speedups()} if name == "Threefold" else {}
        kind: Any = ThreefoldTrainer if ours else GRPOTrainer
        self._trainer = kind(
            model=model,
            reward_funcs=reward,
            args=parts.config(options),
            train_dataset=Dataset.from_list([{"prompt": "x"} for _ in range(options.groups)]),
            processing_class=tokenizer,
            rollout_func=rollout,
            callbacks=[callback, KeepGradient()],
            **ours,
        )
        parts.without_log(self._trainer)

    def __call__(self) -> Mapping[str, float]:
        self._trainer.train()
        return {"": self._watch.read()}
