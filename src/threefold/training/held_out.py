"""What a run measures on held-out problems or tasks: before training, in between and after, and what was
learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from threefold.evaluation.share import Share
from threefold.training.console import Console
from threefold.training.gathering import gather_list
from threefold.training.work import Episodes, Work


def can_evaluate(trainer: Any) -> bool:
    """Whether each process holds the whole model."""
    return not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)


def evaluate(work: Work, trainer: Any, console: Console, when: str) -> list[Any]:
    """The held-out evaluations, divided among the processes; empty where none of them holds the whole
    model."""
    if not can_evaluate(trainer):
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
    return {
        "unit": work.unit,
        "evaluations": [e.to_json(when="before", step=0) for e in before]
        + [e.to_json(when="after", step=step) for e in after],
        "gains": gains_of(work, before, after),
    }


def gains_of(work: Work, before: Sequence[Any], after: Sequence[Any]) -> list[dict[str, Any]]:
    """The paired gain of each score in each mode that both have, as plain JSON values."""
    gains = []
    last_of = {made.mode: made for made in after}
    for first in before:
        for name in first.scores if first.mode in last_of else ():
            gain = work.gain(first, last_of[first.mode], name)
            if gain is not None:
                interval = {"mean": gain.mean, "low": gain.low, "high": gain.high}
                gains.append({"score": name, "mode": first.mode, **interval})
    return gains


def as_metrics(evaluations: Sequence[Any]) -> dict[str, float]:
    """A line of metrics.jsonl: the mean as "MODE/SCORE", the ends of its interval with "/low" and "/high"."""
    line = {}
    for made in evaluations:
        for name, interval in made.scores.items():
            for end, value in (("", interval.mean), ("/low", interval.low), ("/high", interval.high)):
                line[f"{made.mode}/{name}{end}"] = value
    return line


class InBetween(TrainerCallback):
    """Measures every so many optimizer updates; the last one is left to the evaluation after training."""

    def __init__(self, every: int, measure: Callable[[int], None], *, last: bool) -> None:
        """
        Args:
            every: Updates from one measurement to the next.
            measure: Called with the number of updates made; on every process.
            last: Measure after the last update too, since nothing else does.
        """
        self._every, self._measure, self._last = every, measure, last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 and (self._last or state.global_step < state.max_steps):
            self._measure(state.global_step)
