"""What a run measures on held-out problems or tasks, before training and after, and what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from threefold.evaluation.share import Share
from threefold.training.console import Console
from threefold.training.gathering import gather_list
from threefold.training.work import Episodes, Work


def evaluate(work: Work, trainer: Any, console: Console, when: str) -> list[Any]:
    """The held-out evaluations, divided among the processes; empty where none of them holds the whole
    model."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        console.print("a sharded model is not evaluated here; run `threefold eval` on the run afterwards")
        return []
    accelerator = trainer.accelerator
    share = Share(
        accelerator.process_index, accelerator.num_processes, lambda items: gather_list(accelerator, items)
    )
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(work, Episodes) and trainer.skills is not None:
        work = replace(work, bank=trainer.skills.bank)  # one version, whatever is under test
    return work.evaluate(
        model, lambda mode, total: console.evaluating(f"{when} training, {mode}", total), share
    )


def summarise(work: Work, before: Sequence[Any], after: Sequence[Any], step: int) -> dict[str, Any]:
    """evaluation.json: both evaluations and the paired gain of each score, with bootstrap intervals over
    problems or tasks."""
    gains = []
    for first, last in zip(before, after, strict=False):
        for name in first.scores:
            gain = work.gain(first, last, name)
            if gain is not None:
                interval = {"mean": gain.mean, "low": gain.low, "high": gain.high}
                gains.append({"score": name, "mode": first.mode, **interval})
    return {
        "unit": work.unit,
        "evaluations": [e.to_json(when="before", step=0) for e in before]
        + [e.to_json(when="after", step=step) for e in after],
        "gains": gains,
    }
