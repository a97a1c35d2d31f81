"""What a person sees while a run goes on: a bar, a line a step in words, warnings, and what was learned."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from threefold.recipe import Recipe
from threefold.training.batch import BatchPlan
from threefold.training.warnings import Alarm, Watch
from threefold.training.work import Work

_SCORES = {
    "strict": "right, in the asked format",
    "last_number": "right, by the last number",
    "format": "in the asked format",
    "success": "succeeded",
    "violation": "broke a rule",
}


class Console:
    """Prints to the terminal; `quiet` leaves only results and errors.

    With `json` standard output holds JSON alone, one object a line: `{"event": "step", ...}` for each
    generation step, `{"event": "result", ...}` at the end; everything else goes to standard error.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self._console = rich.console.Console(highlight=False, soft_wrap=True, stderr=json)
        self._quiet = quiet
        self._json = json
        self._watch = Watch()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._training: Any = None
        self.words: Callable[[], str] = lambda: ""

    def print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def batch_table(self, plan: BatchPlan, longest_prompt: int) -> None:
        table = Table("batch", "", "meaning")
        for name, number, meaning in [*plan.table(), ("longest prompt", longest_prompt, "tokens")]:
            table.add_row(name, f"{number:,}", meaning)
        self._console.print(table)

    def started(self, recipe: Recipe, plan: BatchPlan, work: Work, *, seconds: float) -> None:
        self._watch = Watch(work.rewards)
        self.print(
            f"{recipe.model.name} learns {work.title} with {recipe.credit.method}: "
            f"{recipe.training.steps} steps of {plan.prompts_per_step} {work.unit} x {plan.group_size} "
            f"episodes, seed {recipe.run.seed} (loaded in {seconds:.0f} s)"
        )

    def step(self, step: int, steps: int, logs: Mapping[str, Any], words: str) -> None:
        """One line for each generation step, and the warnings that are new."""
        generated = "reward" in logs  # else a further update on the same episodes
        alarms = self._watch.step(logs) if generated else []
        if self._json and generated:
            figures = {name: _plain(value) for name, value in logs.items()}
            warnings = [{"cause": a.cause, "text": a.text, "remedy": a.remedy} for a in alarms]
            self._emit("step", step=step, steps=steps, words=words, warnings=warnings, metrics=figures)
        if self._quiet or self._json:
            return
        if self._training is None:
            self._bars.start()
            self._training = self._bars.add_task("training", total=steps, completed=step - 1)
        self._bars.update(self._training, completed=step)
        if not generated:
            return
        right = logs.get("signal/outcome")
        parts = [
            f"step {step}/{steps}",
            f"right {right:.0%}" if right is not None else f"reward {logs['reward']:.3f}",
            f"length {logs.get('completions/mean_length', 0):.0f}",
            f"{logs.get('step_time', 0):.1f} s",
            words,
        ]
        self._bars.console.print("  ".join(part for part in parts if part), markup=False)
        for alarm in alarms:
            self._warn(alarm)
        if step >= steps:
            self.finish()

    def _warn(self, alarm: Alarm) -> None:
        console = self._bars.console
        console.print(f"warning, {alarm.cause}: {alarm.text}.", markup=False, style="yellow")
        console.print(f"  {alarm.remedy}.", markup=False)

    def _emit(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}, ensure_ascii=False, allow_nan=False), flush=True)

    def finish(self) -> None:
        """Take the bar away; safe to call twice."""
        self._bars.stop()

    @contextmanager
    def evaluating(self, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """A bar for an evaluation; the yielded function takes (done, total)."""
        bars = Bars(*self._bars.columns, console=self._console, transient=True, disable=self._bars.disable)
        with bars:
            task = bars.add_task(f"evaluating {what}", total=total)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    def learned(self, summary: Mapping[str, Any]) -> None:
        """The result: held-out success before and after with intervals, and the paired gain."""
        if self._json:
            self._emit("result", **summary)
            return
        table = Table("held out", "decoding", "before", "after", "gain, paired 95 % interval")
        gains = {(g["score"], g["mode"]): g for g in summary["gains"]}
        before = {e["mode"]: e for e in summary["evaluations"] if e["when"] == "before"}
        for after in (e for e in summary["evaluations"] if e["when"] == "after"):
            for name, value in after["scores"].items():
                form = ".3f" if name in after.get("in_own_units", ()) else ".1%"
                first = before.get(after["mode"], {}).get("scores", {}).get(name)
                gain = gains.get((name, after["mode"]))
                table.add_row(
                    _SCORES.get(name, name),
                    after["mode"],
                    f"{first['mean']:{form}}" if first else "",
                    f"{value['mean']:{form}}",
                    "{mean:+{form}} [{low:+{form}}, {high:+{form}}]".format(**gain, form=form)
                    if gain
                    else "",
                )
        self._console.print(table)
        count, unit = next(iter(summary["evaluations"]))["problems"], summary["unit"]
        self.print(f"{count} held-out {unit}; intervals are bootstrapped over {unit}")


def _plain(value: Any) -> Any:
    """A number that JSON can hold; None for what is not finite."""
    return value if not isinstance(value, float) or math.isfinite(value) else None
