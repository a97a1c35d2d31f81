"""What a person sees while a run goes on: a bar, a line a step in words, warnings, and what was learned."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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


_SCORES_A_LINE = 4
"""Scores that the line of an evaluation in between has room for; metrics.jsonl has all."""
_PACE_OVER = 10
"""Steps whose mean duration says what is left."""


@dataclass
class Pace:
    """How fast a run goes: seconds a step over the newest steps, and the time that the rest will take.

    Whole steps are timed by the clock, from one to the next, so checkpoints and the record count too.
    """

    _marks: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_PACE_OVER + 1))

    def seconds(self, step: int, now: float, first: float) -> float:
        """Mark that `step` is done at the clock's `now`.

        Args:
            step: Steps done, this one included.
            now: Seconds of any steady clock.
            first: What to answer where nothing can be compared yet: what the step itself took.

        Returns:
            Seconds a step.
        """
        self._marks.append((step, now))
        (from_step, since), (to_step, until) = self._marks[0], self._marks[-1]
        return (until - since) / (to_step - from_step) if to_step > from_step else first


def duration(seconds: float) -> str:
    """A length of time as people say it: "40 s", "12 min", "3.5 h", "2.0 days"."""
    for unit, size, until in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"


class Console:
    """Prints to the terminal; `quiet` leaves only results and errors.

    With `json` standard output holds JSON alone, one object a line: `{"event": "start", ...}`,
    `{"event": "step", ...}` for each generation step, `{"event": "result", ...}` where the run evaluates,
    `{"event": "end", ...}`; everything else goes to standard error.

    `silent` prints nothing at all: of several processes one is enough.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False, silent: bool = False) -> None:
        self._console = rich.console.Console(highlight=False, soft_wrap=True, stderr=json, quiet=silent)
        self._quiet = quiet or silent
        self._json = json and not silent
        self._watch = Watch()
        self._pace = Pace()
        self._episodes = 0
        self._bars = self._make_bars(TextColumn("{task.fields[pace]}"))
        self._training: Any = None

    def _make_bars(self, pace: Any, **options: Any) -> Bars:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = self._quiet or not self._console.is_terminal
        return Bars(*columns, pace, console=self._console, disable=hidden, **options)

    def print(self, text: str) -> None:
        """A result, or what somebody has to know: `quiet` does not silence it."""
        self._console.print(text, markup=False)

    def note(self, text: str) -> None:
        """What is good to know while one watches."""
        if not self._quiet:
            self.print(text)

    def batch_table(self, plan: BatchPlan, longest_prompt: int) -> None:
        table = Table("batch", "", "meaning")
        for name, number, meaning in [*plan.table(), ("longest prompt", longest_prompt, "tokens")]:
            table.add_row(name, f"{number:,}", meaning)
        self._console.print(table)

    def started(self, recipe: Recipe, plan: BatchPlan, work: Work, *, seconds: float) -> None:
        """What is about to be trained, and how the batch is made up, before the first step."""
        self._watch = Watch(work.rewards)
        self._episodes = plan.episodes
        if self._json:
            batch = {name: number for name, number, _ in plan.table()}
            names = {"model": recipe.model.name, "method": recipe.credit.method, "work": work.title}
            run = {"run": recipe.run.dir, "seed": recipe.run.seed, "steps": recipe.training.steps}
            self._emit("start", **names, **run, batch=batch)
        self.note(
            f"{recipe.model.name} learns {work.title} with {recipe.credit.method}: "
            f"{recipe.training.steps} steps of {plan.prompts_per_step} {work.unit} x {plan.group_size} "
            f"episodes, seed {recipe.run.seed} (loaded in {seconds:.0f} s)"
        )
        if not self._quiet:
            self.batch_table(plan, work.longest_prompt)

    def training(self, steps: int, done: int = 0) -> None:
        """The bar of the run, from before its first step on; `done` steps were made before a resume."""
        if self._training is None:
            self._bars.start()
            self._training = self._bars.add_task("training", total=steps, completed=done, pace="")

    def step(self, step: int, steps: int, logs: Mapping[str, Any], words: str) -> None:
        """One line for each generation step, and the warnings that are new."""
        if "reward" not in logs:  # a further update on the same episodes
            return
        alarms = self._watch.step(logs)
        took = float(logs.get("step_time", 0.0))
        seconds = self._pace.seconds(step, time.perf_counter(), first=took)
        length = float(logs.get("completions/mean_length", 0.0))
        rate = self._episodes * length / took if took > 0 else 0.0
        if self._json:
            self._emit(
                "step",
                step=step,
                steps=steps,
                words=words,
                warnings=[{"cause": a.cause, "text": a.text, "remedy": a.remedy} for a in alarms],
                tokens_per_second=_plain(rate),
                seconds_left=_plain(seconds * (steps - step)),
                metrics={name: _plain(value) for name, value in logs.items()},
            )
        if self._quiet or self._json:
            return
        self.training(steps, step - 1)
        left = f"{duration(seconds * (steps - step))} left"
        self._bars.update(self._training, completed=step, pace=f"{seconds:.1f} s/step, {left}")
        right, norm = logs.get("signal/outcome"), logs.get("grad_norm")
        parts = [
            f"step {step}/{steps}",
            f"right {right:.0%}" if right is not None else f"reward {logs['reward']:.3f}",
            f"length {length:.0f}",
            f"gradient {norm:.2g}" if isinstance(norm, float) else "",
            f"{took:.1f} s",
            f"{rate:,.0f} tokens/s" if rate else "",
            left if self._bars.disable and step < steps else "",  # else the bar says it
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
        self._training = None

    @contextmanager
    def evaluating(self, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """A bar for an evaluation; the yielded function takes (done, total)."""
        # A batch may take minutes, and rich forgets what is older than 30 s unless told.
        if self._training is not None:  # two bars of their own cannot be on a terminal at once
            task = self._bars.add_task(f"evaluating {what}", total=total, pace="")
            yield lambda done, total: self._bars.update(task, completed=done, total=total)
            self._bars.remove_task(task)
            return
        bars = self._make_bars(TimeRemainingColumn(), transient=True, speed_estimate_period=86400.0)
        if bars.disable:
            self.note(f"evaluating {what} on {total} samples")
        with bars:
            task = bars.add_task(f"evaluating {what}", total=total)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    def held_out(self, step: int, evaluations: Sequence[Any], gains: Sequence[Mapping[str, Any]]) -> None:
        """An evaluation in between: its first scores, and what each gained since the start."""
        if self._json:
            entries = [e.to_json(when="between", step=step) for e in evaluations]
            self._emit("held_out", step=step, evaluations=entries, gains=list(gains))
            return
        gained = {(g["score"], g["mode"]): g for g in gains}
        for made in evaluations:
            own_units = made.to_json().get("in_own_units", ())
            parts = []
            for name, value in list(made.scores.items())[:_SCORES_A_LINE]:
                form = ".3f" if name in own_units else ".1%"
                gain = gained.get((name, made.mode))
                since = f" ({_gain(gain, form)})" if gain else ""
                parts.append(f"{_SCORES.get(name, name)} {value.mean:{form}}{since}")
            self.note(f"held out after step {step}, {made.mode}: {', '.join(parts)}")

    def learned(self, summary: Mapping[str, Any]) -> None:
        """The result: held-out success before and after with intervals, and the paired gain."""
        if self._json:
            self._emit("result", **summary)
            return
        table = Table()
        for head in ("held out", "decoding", "before", "after", "gain, paired 95 % interval"):
            table.add_column(head, overflow="fold")  # a narrow terminal breaks figures, and never cuts them
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
                    _gain(gain, form) if gain else "",
                )
        self._console.print(table)
        count, unit = summary["evaluations"][-1]["problems"], summary["unit"]
        self.print(f"{count} held-out {unit}; intervals are bootstrapped over {unit}")

    def ended(self, run: Path, report: Path, *, step: int, stopped: bool) -> None:
        """Where everything lies, and whether an interrupt ended the run early."""
        if self._json:
            self._emit("end", run=str(run), report=str(report), step=step, stopped=stopped)
        if stopped:
            self.print(f"stopped at step {step}; continue with --resume")
        self.print(f"report: {report}")


def _plain(value: Any) -> Any:
    """A number that JSON can hold; None for what is not finite."""
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _gain(gain: Mapping[str, Any], form: str) -> str:
    """A paired difference with its interval."""
    return "{mean:+{form}} [{low:+{form}}, {high:+{form}}]".format(**gain, form=form)
