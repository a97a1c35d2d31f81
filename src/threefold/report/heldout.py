"""The page of held-out problems or tasks: scores before and after training, by group, by turn, and
elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from threefold.report.calibration import calibration_html
from threefold.report.curves import Chart, Series, chart_html
from threefold.report.evaluations import Evaluation, Swap
from threefold.report.intervals import MISSING, Interval, interval_html
from threefold.report.reading import Run


def heldout_html(run: Run, *, elsewhere: bool = False) -> str:
    """The page, "" where nothing was evaluated.

    Args:
        run: What was read.
        elsewhere: Turns, groups and swaps stand on a page of their own, so leave them out here.
    """
    return (
        _results(run)
        + calibration_html(run.evaluations)
        + ("" if elsewhere else in_environment_html(run.evaluations, run.swaps))
    )


def in_environment_html(evaluations: Sequence[Evaluation], swaps: Sequence[Swap]) -> str:
    """What only an environment has: states by turn, groups of tasks, a changed simulator."""
    return courses_html(evaluations) + groups_html(evaluations) + "".join(map(swap_html, swaps))


def _results(run: Run) -> str:
    if not run.evaluations:
        return ""
    rows = []
    for mode in dict.fromkeys(evaluation.mode for evaluation in run.evaluations):
        before = next((e for e in run.evaluations if e.mode == mode and e.when == "before"), None)
        after = next((e for e in reversed(run.evaluations) if e.mode == mode and e.when != "before"), None)
        names = dict.fromkeys(name for e in (before, after) if e for name in e.scores)
        for name in names:
            gain = next((g.value for g in run.gains if (g.score, g.mode) == (name, mode)), None)
            percent = not any(e and name in e.in_own_units for e in (before, after))
            rows.append(
                f"<tr><th scope=row>{escape(name)}</th><td>{escape(mode)}</td>"
                f"<td>{interval_html(before.scores.get(name) if before else None, percent=percent)}</td>"
                f"<td>{interval_html(after.scores.get(name) if after else None, percent=percent)}</td>"
                f"<td>{interval_html(gain, signed=True, percent=percent)}</td></tr>"
            )
    return (
        "<section><h2>Result</h2><p class=lead>Score on held-out problems before and after training, in "
        "percent (reward channels of an environment in their own units), with its interval; the gain is "
        "paired by problem.</p>"
        "<div class=scroll><table class=results><thead><tr>"
        "<th>score</th><th>mode</th><th>before</th><th>after</th><th>gain</th></tr></thead><tbody>"
        f"{''.join(rows)}</tbody></table></div>{_conditions(run.evaluations)}{_by_difficulty(run.evaluations)}</section>"
    )


def courses_html(evaluations: Sequence[Evaluation]) -> str:
    """States by turn with intervals, before and after training; "" where none was measured."""
    charts = []
    for mode in dict.fromkeys(e.mode for e in evaluations if e.courses):
        mine = [e for e in evaluations if e.mode == mode and e.courses]
        for name in dict.fromkeys(name for e in mine for name in e.courses):
            series = tuple(
                course_series(e.when, e.courses[name], colour)
                for colour, e in enumerate(mine[:6])
                if e.courses.get(name)
            )
            about = "Mean over tasks with its 95 % interval; turn 0 is the opening."
            charts.append(chart_html(Chart(f"{name} by turn, {mode}", series, about, axis="turn")))
    if not charts:
        return ""
    lead = (
        "Later turns are those of the episodes that got so far: where many end early, the curve is of the "
        "others."
    )
    return (
        f"<section><h2>By turn, held out</h2><p class=lead>{lead}</p>"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def course_series(name: str, course: Sequence[Interval], colour: int) -> Series:
    """A curve over turns with the band of its intervals."""
    return Series(
        name,
        {turn: at.mean for turn, at in enumerate(course)},
        colour,
        {
            turn: (at.low, at.high)
            for turn, at in enumerate(course)
            if at.low is not None and at.high is not None
        },
    )


def groups_html(evaluations: Sequence[Evaluation]) -> str:
    """Scores by group of tasks, a table for each way of decoding; "" where no groups were named."""
    tables = []
    for mode in dict.fromkeys(e.mode for e in evaluations if e.by_group):
        mine = [e for e in evaluations if e.mode == mode and e.by_group]
        last, before = mine[-1], next((e for e in mine if e.when == "before"), None)
        scores = list(dict.fromkeys(name for scores in last.by_group.values() for name in scores))
        head = "".join(f"<th>{escape(name)}</th>" for name in scores)
        rows = []
        for group, values in last.by_group.items():
            cells = []
            for name in scores:
                percent = name not in last.in_own_units
                old = before.by_group.get(group, {}).get(name) if before and before is not last else None
                was = ""
                if old is not None:
                    scale, form = (100, ".1f") if percent else (1, ".3f")
                    was = f'<span class="muted was">was {scale * old.mean:{form}}</span>'
                cells.append(f"<td>{interval_html(values.get(name), percent=percent)}{was}</td>")
            size = last.group_sizes.get(group)
            rows.append(
                f"<tr><th scope=row>{escape(group)}</th><td>{'' if size is None else size}</td>"
                f"{''.join(cells)}</tr>"
            )
        tables.append(
            f"<h3>{escape(last.when)} training, {escape(mode)}</h3>"
            f'<div class=scroll tabindex="0" role="region" aria-label="Scores by group, {escape(mode)}">'
            f"<table class='results groups'><thead><tr><th>group</th><th>tasks</th>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )
    if not tables:
        return ""
    return (
        "<section><h2>By group of tasks, held out</h2><p class=lead>Shares in percent, other scores in their "
        "own units, each with its interval over the group's tasks. Groups of few tasks have wide "
        "intervals, and "
        f"among many groups some differ by chance.</p>{''.join(tables)}</section>"
    )


def swap_html(swap: Swap) -> str:
    """Every score at home and in the changed environment, with the paired change."""
    own, other = ({e.mode: e for e in side} for side in (swap.own, swap.swapped))
    rows = []
    for change in swap.changes:
        at_home, elsewhere = own.get(change.mode), other.get(change.mode)
        percent = at_home is None or change.score not in at_home.in_own_units
        cells = [
            interval_html(e.scores.get(change.score) if e else None, percent=percent)
            for e in (at_home, elsewhere)
        ]
        moved = interval_html(change.value, percent=percent, signed=True)
        rows.append(
            f"<tr><th scope=row>{escape(change.score)}</th><td>{escape(change.mode)}</td>"
            f"<td>{cells[0]}</td><td>{cells[1]}</td><td>{moved}</td></tr>"
        )
    found = [f"{change.score} ({change.mode})" for change in swap.changes if change.value.sign]
    said = ", ".join(found) or "none"
    return (
        f"<section><h2>Swapped: {escape(' '.join(swap.overrides)[:400])}</h2><p class=lead>The same policy "
        f"on the "
        "same tasks from the same seeds in a changed environment; the change is paired by task. It says how "
        f"much the levels depend on the simulator. Scores whose interval excludes zero: {escape(said)}. "
        f"From {escape(swap.file)}.</p>"
        "<div class=scroll><table class=results><thead><tr><th>score</th><th>mode</th><th>own</th>"
        f"<th>swapped</th><th>change</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _conditions(evaluations: Iterable[Evaluation]) -> str:
    parts = []
    for e in evaluations:
        details = {"temperature": e.temperature, "problems": e.problems, "samples each": e.samples}
        known = ", ".join(f"{name} {_said(value)}" for name, value in details.items() if value is not None)
        step = "" if e.step is None else f" (step {_said(e.step)})"
        parts.append(f"{e.when}{step}, {e.mode}: {known or 'conditions not recorded'}")
    return f'<p class="muted">{escape("; ".join(parts))}.</p>'


def _by_difficulty(evaluations: tuple[Evaluation, ...]) -> str:
    columns = [e for e in evaluations if e.by_difficulty]
    if not columns:
        return ""
    keys = dict.fromkeys(
        (difficulty, score)
        for e in columns
        for difficulty, scores in e.by_difficulty.items()
        for score in scores
    )
    head = "".join(f"<th>{escape(e.when)}, {escape(e.mode)}</th>" for e in columns)
    rows = "".join(
        f"<tr><th scope=row>{escape(difficulty)}</th><td>{escape(score)}</td>"
        + "".join(f"<td>{_percent(e.by_difficulty.get(difficulty, {}).get(score))}</td>" for e in columns)
        + "</tr>"
        for difficulty, score in sorted(keys)
    )
    return (
        "<details><summary>By difficulty</summary><div class=scroll><table class=results><thead><tr>"
        f"<th>difficulty</th><th>score</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
