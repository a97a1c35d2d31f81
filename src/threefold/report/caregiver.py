"""The page of care dialogues: distress and resistance by turn, how far they fell, and which rules were
broken.

Held-out figures are those of `evaluation.json`; those of training are counted over every recorded episode
(`tallies`), with intervals over groups.
"""

from __future__ import annotations

from collections import Counter
from html import escape

from threefold.report.curves import Chart, Series, chart_html
from threefold.report.heldout import course_series, courses_html, groups_html, swap_html
from threefold.report.intervals import Interval, interval_html
from threefold.report.overview import scope_html
from threefold.report.reading import Run
from threefold.report.tallies import Stretch, Tallies

LEVELS = {"D": "distress", "R": "resistance"}
"""States of the caregiver's environment that a good dialogue lowers; both run from 0 to 3."""
SCOPE = "Research and training simulation, not for clinical use."
"""Said where a run does not say it itself."""
_RULES = 6
"""Rules that are drawn apart: there are six colours."""


def is_caregiver(run: Run) -> bool:
    """Whether the run's dialogues are care dialogues, by its recipe or by its record."""
    environment = run.config.get("environment")
    named = environment.get("name") if isinstance(environment, dict) else None
    played = run.episodes.tallies.environments
    return any("caregiver" in str(name).lower() for name in (named, *played) if name)


def caregiver_html(run: Run) -> str:
    """The page, "" where the run holds no care dialogue."""
    if not is_caregiver(run):
        return ""
    tallies = run.episodes.tallies
    return (
        (scope_html(run) or f'<aside class="notes"><h2>Scope</h2><p>{escape(SCOPE)}</p></aside>')
        + _drops(run)
        + courses_html(run.evaluations)
        + _training_by_turn(tallies)
        + _violations(tallies)
        + groups_html(run.evaluations)
        + _swaps(run)
    )


def _drops(run: Run) -> str:
    """From the opening to the last turn: held out before and after training, and over the course of
    training."""
    rows = []
    last = [e for e in run.evaluations if e.when != "before"]
    for after in last:
        before = next((e for e in run.evaluations if e.when == "before" and e.mode == after.mode), None)
        for state, channel in LEVELS.items():
            for score, label in (
                (f"{channel}, summed over turns", f"{state} fell by"),
                (f"{state}, last turn", f"{state} at the end"),
            ):
                if score not in after.scores:
                    continue
                gain = next((g.value for g in run.gains if (g.score, g.mode) == (score, after.mode)), None)
                was = before.scores.get(score) if before else None
                rows.append(
                    f"<tr><th scope=row>{escape(label)}</th><td>{escape(after.mode)}</td>"
                    f"<td>{interval_html(was, percent=False)}</td>"
                    f"<td>{interval_html(after.scores[score], percent=False)}</td>"
                    f"<td>{interval_html(gain, percent=False, signed=True)}</td></tr>"
                )
    charts = []
    for state, channel in LEVELS.items():
        series = _over_training(run.episodes.tallies, state)
        if series is not None:
            about = (
                f"{channel.capitalize()} at the opening minus that after the last turn, mean over groups "
                f"with "
                "its 95 % interval; higher is better. It falls too where dialogues are ended early."
            )
            charts.append(chart_html(Chart(f"How far {state} fell, in training", (series,), about)))
    if not rows and not charts:
        return ""
    table = (
        "<div class=scroll><table class=results><thead><tr><th>held out</th><th>mode</th><th>before "
        "training</th>"
        f"<th>after</th><th>change, paired</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    return (
        "<section><h2>From the opening to the last turn</h2><p class=lead>Distress (D) and resistance (R) "
        "are "
        "tiers from 0 to 3, read from what the simulated patient says and shows; lower is calmer. Read them "
        "beside how long dialogues were and how they ended: a patient who walks off is not calm.</p>"
        f"{table if rows else ''}{_endings(run)}<div class='charts'>{''.join(charts)}</div></section>"
    )


def _endings(run: Run) -> str:
    """How held-out dialogues ended, before and after training."""
    said = []
    for e in run.evaluations:
        total = sum(e.ended.values())
        if total:
            ends = ", ".join(f"{why} {count / total:.0%}" for why, count in e.ended.items())
            said.append(f"{e.name}: {ends}")
    return f'<p class="muted">How dialogues ended. {escape("; ".join(said))}.</p>' if said else ""


def _over_training(tallies: Tallies, state: str) -> Series | None:
    found = {
        (stretch.first + stretch.last) // 2: stretch.drops[state].interval()
        for stretch in tallies.pooled()
        if state in stretch.drops
    }
    return course_over_steps(state, found) if found else None


def course_over_steps(name: str, by_step: dict[int, Interval], colour: int = 0) -> Series:
    """A curve over steps with the band of its intervals."""
    band = {s: (i.low, i.high) for s, i in by_step.items() if i.low is not None and i.high is not None}
    return Series(name, {step: interval.mean for step, interval in by_step.items()}, colour, band)


def _training_by_turn(tallies: Tallies) -> str:
    """D and R by turn in the first and the last fifth of training."""
    parts = [
        (name, part)
        for name, part in (("first fifth", tallies.part(0, 0.2)), ("last fifth", tallies.part(0.8, 1)))
        if part is not None
    ]
    if len(tallies.stretches) < 2:
        parts = [("training", part) for _, part in parts[:1]]
    charts = []
    for state, channel in LEVELS.items():
        series = tuple(
            course_series(f"{name}, steps {part.first} to {part.last}", course, colour)
            for colour, (name, part) in enumerate(parts)
            if (course := _course(part, state))
        )
        if series:
            about = f"{channel.capitalize()} after each turn, mean over groups with its 95 % interval."
            charts.append(chart_html(Chart(f"{state} by turn, in training", series, about, axis="turn")))
    if not charts:
        return ""
    reached = "; ".join(f"{name}: {_reached(part)}" for name, part in parts)
    return (
        "<section><h2>By turn, in training</h2><p class=lead>All recorded dialogues of the policy as it "
        "learned, "
        "turn 0 being the opening. Later turns are those of the dialogues that got so far. "
        f"Groups with a dialogue at each turn, {escape(reached)}.</p>"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _course(part: Stretch, state: str) -> list[Interval]:
    course: list[Interval] = []
    while (moments := part.levels.get((state, len(course)))) is not None:
        course.append(moments.interval())
    return course


def _reached(part: Stretch) -> str:
    counts = {turn: moments.count for (state, turn), moments in part.levels.items() if state == "D"}
    return ", ".join(str(counts[turn]) for turn in sorted(counts)) or "none"


# Broken rules


def _violations(tallies: Tallies) -> str:
    whole = tallies.part(0, 1)
    if whole is None or not whole.episodes:
        return ""
    broken = sum(whole.rules.values())
    share = interval_html(whole.violating.interval((0, 1)))
    lead = (
        f"Of {whole.episodes:,} recorded episodes of training {broken:,} broke a rule: {share} percent of a "
        "group's episodes. These are the rules that the safety detector knows."
    )
    if tallies.failed:
        lead += f" {tallies.failed:,} more are left out, as the environment failed in them."
    body = _by_step(tallies, whole.rules) if broken else ""
    body += _by_rule_and_subtype(tallies, whole)
    body += _by_turn(tallies) if broken else ""
    return f"<section><h2>Broken rules, in training</h2><p class=lead>{lead}</p>{body}</section>"


def _by_step(tallies: Tallies, rules: Counter[str]) -> str:
    drawn = [rule for rule, _ in rules.most_common(_RULES)]
    by_rule = Chart(
        "Violations by rule",
        tuple(
            Series(rule, {_middle(s): s.rules[rule] / s.episodes for s in tallies.pooled()}, colour)
            for colour, rule in enumerate(drawn)
        ),
        "Share of the episodes that broke each rule, on top of each other; an episode counts for its first "
        "one.",
        stacked=True,
    )
    shares = {_middle(s): s.violating.interval((0, 1)) for s in tallies.pooled()}
    whole = Chart(
        "Violations by step",
        (course_over_steps("broke a rule", shares, 1),),
        "Share of a group's episodes that broke any rule, with its 95 % interval.",
    )
    return f'<div class="charts">{chart_html(whole)}{chart_html(by_rule)}</div>'


def _middle(stretch: Stretch) -> int:
    return (stretch.first + stretch.last) // 2


def _by_rule_and_subtype(tallies: Tallies, whole: Stretch) -> str:
    rules, all_of_them = whole.rules, whole.violating.interval((0, 1))
    names = [rule for rule, _ in rules.most_common()]
    if not tallies.subtypes:
        return ""
    rows = []
    for name, subtype in sorted(tallies.subtypes.items()):
        share = interval_html(subtype.groups.interval((0, 1)))
        counts = "".join(f"<td>{subtype.rules[rule] or ''}</td>" for rule in names)
        rows.append(
            f"<tr><th scope=row>{escape(name)}</th><td>{subtype.episodes:,}</td><td>{share}</td>{counts}</tr>"
        )
    total = "".join(f"<td>{rules[rule]:,}</td>" for rule in names)
    rows.append(
        f"<tr><th scope=row>all</th><td>{sum(s.episodes for s in tallies.subtypes.values()):,}</td>"
        f"<td>{interval_html(all_of_them)}</td>{total}</tr>"
    )
    head = "".join(f"<th>{escape(rule)}</th>" for rule in names)
    return (
        "<h3>By subtype and rule</h3>"
        '<div class=scroll tabindex="0" role="region" aria-label="Violations by subtype and rule">'
        "<table class='results groups'><thead><tr><th>subtype</th><th>episodes</th><th>broke a rule, %</th>"
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _by_turn(tallies: Tallies) -> str:
    counts = tallies.violation_turns
    if not counts:
        return ""
    most = max(counts.values())
    bars = "".join(
        f"<tr><th scope=row>turn {turn + 1}</th><td>{counts[turn]}</td>"
        f'<td class="barcell"><svg viewBox="0 0 100 10" preserveAspectRatio="none" role="presentation">'
        f'<rect class="bar1" width="{100 * counts[turn] / most:.1f}" height="10"/></svg></td></tr>'
        for turn in range(max(counts) + 1)
    )
    return (
        "<h3>By turn</h3><p class=muted>The caregiver's turn in which the rule was broken.</p>"
        f"<table class='results bars'><tbody>{bars}</tbody></table>"
    )


def _swaps(run: Run) -> str:
    if run.swaps:
        return "".join(swap_html(swap) for swap in run.swaps)
    directory = escape(run.directory.resolve().name)
    return (
        "<section><h2>Another simulator</h2><p class=lead>Not measured. What is learned on one simulated "
        "patient "
        "counts for something only if it holds on another one: <code>threefold eval RUN --swap "
        f"environment.options.perturb=0.5 --output {directory}/swap.json</code> plays the same scenarios "
        f"with "
        "other coefficients, and this page then shows the change.</p></section>"
    )
