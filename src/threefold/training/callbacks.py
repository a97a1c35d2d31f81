"""Callbacks of a training run: what Ctrl-C does, and what a person sees."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from threefold.training import launcher
from threefold.training.run_directory import RunDirectory
from threefold.training.warnings import Watch


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C finishes the running step, saves a checkpoint and stops; a second one stops at once.

    Of several processes a signal reaches some earlier than others, or one alone: they agree at the end of
    each update, or one would stop while the others wait for it.

    Used as a context manager around `train()`, so the handler is in place only then.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether this process was interrupted."""
        self._before: Any = None

    def __enter__(self) -> StopOnInterrupt:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if launcher.is_first():
            print(
                "\ninterrupted: finishing this step and saving a checkpoint; once more stops at once",
                file=sys.stderr,
                flush=True,
            )

    def agreed(self, device: Any) -> bool:
        """Whether any process was interrupted; all of them have to ask.

        Args:
            device: Where this process's tensors are.
        """
        if launcher.processes() == 1:
            return self.requested
        requested = torch.tensor(int(self.requested), device=device)
        torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
        return bool(requested)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.agreed(args.device):
            control.should_save = control.should_training_stop = True
        return control


class HoldWeights(TrainerCallback):
    """The weights do not move in the first so many optimizer updates: a bank evolves under a frozen policy.

    Gradients are thrown away before the optimizer's step, so neither weights nor its moments change, and
    weight decay does nothing. The schedule of the learning rate runs on.
    """

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step < self.updates:
            optimizer.zero_grad(set_to_none=True)


class Progress(TrainerCallback):
    """Hands each logged step to the console."""

    def __init__(self, show: Callable[[int, dict[str, Any]], None]) -> None:
        self._show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs is not None and "loss" in logs:
            self._show(state.global_step, logs)


class MetricsWriter(TrainerCallback):
    """Writes each logged step to metrics.jsonl: its metrics, the step in words, warnings that are new, and
    the time left for the update."""

    def __init__(self, run: RunDirectory, words: Callable[[], str]) -> None:
        self._run = run
        self._words = words
        self._watch: Watch | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        values = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        if "step_time" in values:
            spent = sum(seconds for name, seconds in values.items() if name.startswith("time/"))
            values["time/update"] = max(0.0, values["step_time"] - spent)
        line: dict[str, Any] = {**values, "words": self._words()}
        if "reward" in values:  # the first update on a generation batch
            self._watch = self._watch or self._watching(_weights(args, values))
            warnings = [str(alarm) for alarm in self._watch.step(values)]
            line |= {"warnings": warnings} if warnings else {}
        self._run.append_metrics(state.global_step, line)

    def _watching(self, weights: dict[str, float]) -> Watch:
        """A watch that has seen what the run wrote before it was resumed."""
        watch = Watch(weights)
        for earlier in self._run.read_metrics():
            if "reward" in earlier:
                watch.step(earlier)
        return watch


def _weights(args: Any, values: dict[str, Any]) -> dict[str, float]:
    """Weight by reward function, as TRL has them: in the order in which it logs the functions."""
    names = [name[len("rewards/") : -len("/mean")] for name in values if name.startswith("rewards/")
             and name.endswith("/mean")]  # fmt: skip
    weights = getattr(args, "reward_weights", None) or []
    return dict(zip(names, weights, strict=True)) if len(names) == len(weights) else {}
