"""Several runs side by side as one HTML file: paired differences, what stands beside them, curves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from threefold.report.arms import Arm
from threefold.report.compare import Comparison, Difference, compare, spread
from threefold.report.curves import Chart, Series, chart_html
from threefold.report.document import document, navigation, pages, write_page
from threefold.report.outcomes import SHARES
from threefold.report.overview import cards_html, notes_html
from threefold.report.questions import Answer, Finding, answers

DRAWN_ARMS = 6
"""Most arms in a chart: there are six colours that can be told apart."""

_CURVES = {
    "signal/outcome": ("Success in training", "Mean outcome of the scored episodes of a step.", True),
    "reward": (
        "Reward in training",
        "Mean reward of the episodes; rewards of different methods differ.",
        False,
    ),
    "signal/dead_outcome": ("Dead groups", "Share of groups whose outcomes are all equal.", True),
    "signal/gradient_share_dead": (
        "Weight of dead groups",
        "Share of the summed absolute advantage that they have.",
        True,
    ),
    "certainty/entropy_all_right": ("Entropy of right episodes", "Nats, all tokens.", False),
    "certainty/entropy_all_wrong": (
        "Entropy of wrong episodes",
        "Nats, all tokens. Where it falls while the other does not, the policy grows sure of mistakes.",
        False,
    ),
    "certainty/confidence_wrong": ("Confidence in wrong answers", "Probability of the whole answer.", True),
    "certainty/ece": ("Calibration error", "ECE over the episodes of a step; 0 is best.", True),
    "turns/violations": ("Violations", "Share of episodes that broke a safety rule.", True),
    "completions/mean_length": ("Completion length", "Tokens.", False),
    "kl": ("KL from the initial model", "Nats a token.", False),
    "step_time": ("Seconds per step", "", False),
}
"""Metric -> (title, what it is, whether it is a share)."""


def write_comparison(
    run_dirs: Sequence[Path],
    output: Path | None = None,
    *,
    scores: Sequence[str] = (),
    baseline: Path | None = None,
    reload: float | None = None,
) -> Path:
    """Write several runs side by side as one self-contained HTML file.

    Args:
        run_dirs: Two run directories or more, finished or not.
        output: The file to write; `comparison.html` beside the first run where None.
        scores, baseline: As for `compare.compare`.
        reload: Seconds after which an open page loads itself again; None for never.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError, ValueError: As `compare.compare`.
    """
    comparison = compare([Path(run_dir) for run_dir in run_dirs], scores=scores, baseline=baseline)
    path = Path(run_dirs[0]).resolve().parent / "comparison.html" if output is None else Path(output)
    return write_page(path, comparison_html(comparison, reload=reload))


def comparison_html(comparison: Comparison, *, reload: float | None = None) -> str:
    """The whole file as text."""
    runs = sum(len(arm.entries) for arm in comparison.arms)
    title = f"Comparison of {runs} runs"
    facts = {"Arms": str(len(comparison.arms)), "Runs": str(runs), "Compared with": comparison.baseline}
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    parts = {
        "Overview": _overview(comparison, items),
        "Differences": _differences(comparison),
        "Side by side": _beside(comparison),
        "Curves": _curves(comparison.arms),
        "Settings": _settings(comparison),
        "Runs": _runs(comparison.arms),
    }
    body = "".join(
        [
            f"<header><h1>{escape(title)}</h1></header>",
            navigation(parts),
            pages(parts),
        ]
    )
    return document(f"{title} - Threefold", body, {}, reload=reload)


def _overview(comparison: Comparison, facts: str) -> str:
    """The three questions to every arm: how many of its seeds give which verdict, and each one's findings."""
    rows, details = [], []
    for arm in comparison.arms:
        found = [answers(entry.run, _controls(comparison, arm)) for entry in arm.entries]
        cells = "".join(f"<td>{_verdicts([three[i] for three in found])}</td>" for i in range(3))
        mark = ' class="control"' if arm.noise is not None else ""
        rows.append(f"<tr{mark}><th scope=row>{escape(arm.name)}</th>{cells}</tr>")
        for entry, three in zip(arm.entries, found, strict=True):
            seed = "" if entry.seed is None else f", seed {entry.seed}"
            details.append(
                f"<details><summary>{escape(arm.name)}{seed}</summary>{cards_html(three, ())}</details>"
            )
    questions = [answer.question for answer in answers(comparison.arms[0].entries[0].run)]
    head = "".join(f"<th>{escape(question)}</th>" for question in questions)
    return (
        f'<dl class="facts">{facts}</dl><section><h2>Three questions to each arm</h2><p class=lead>'
        f"{escape(comparison.multiplicity())}</p>"
        '<div class=scroll tabindex="0" role="region" aria-label="Three questions to each arm">'
        f'<table class="verdicts beside"><thead><tr><th>arm</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><h3>What they rest on</h3>{''.join(details)}</section>"
        f"{notes_html(comparison.notes)}"
    )


def _verdicts(found: Sequence[Answer]) -> str:
    """The verdicts of an arm's runs, each with the number of seeds that give it."""
    tones = {answer.verdict: answer.tone for answer in found}
    counts = Counter(answer.verdict for answer in found)
    return "".join(
        f'<span class="verdict-of t-{tones[verdict]}">{escape(verdict)}'
        f"{f' ({count} of {len(found)} seeds)' if len(found) > 1 else ''}</span>"
        for verdict, count in counts.most_common()
    )


def _controls(comparison: Comparison, arm: Arm) -> list[Finding]:
    """What the noise controls of an arm say of it, sampled decoding first.

    Where T²-GRPO has both, the one of its turns comes first: it asks what the method adds, the other one
    whether anything is learnt.
    """
    mine = [d for d in comparison.differences if d.control and d.second == arm.name]
    kinds = {other.name: other.noise for other in comparison.arms}
    tones = {1: "good", 0: "plain", -1: "bad"}
    return [
        Finding(
            f"Minus its noise control ({kinds[d.first]}), {d.score} ({d.mode}): {spread(d.interval, d.share)}"
            f"{' points' if d.share else ''}, {d.verdict()}; {d.chance}.",
            tones[(d.interval.low > 0) - (d.interval.high < 0)],  # type: ignore[arg-type]
        )
        for d in sorted(mine, key=lambda d: (d.mode != "sampled", kinds[d.first] == "all"))
    ]


def _differences(comparison: Comparison) -> str:
    controls = [d for d in comparison.differences if d.control]
    others = [d for d in comparison.differences if not d.control]
    parts = []
    if others:
        lead = (
            f"Each arm minus {comparison.baseline}, paired on the same held-out problems. The thick bar is "
            "the interval at 95 %; the thin one allows for all comparisons here. Small marks are seeds."
        )
        parts.append(_group("Differences", lead, others))
    if controls:
        lead = (
            "Each method minus its noise control: the same recipe with the rewards of its signal dealt out "
            "at random. What the control gains too is no merit of the signal."
        )
        parts.append(_group("More than noise?", lead, controls))
    words = f"<p class=verdict>{escape(comparison.multiplicity())}</p>"
    return f"<section><h2>Is there a difference?</h2>{words}</section>{''.join(parts)}"


def _group(title: str, lead: str, differences: Sequence[Difference]) -> str:
    blocks = []
    for key in dict.fromkeys((d.mode, d.score) for d in differences):
        rows = [d for d in differences if (d.mode, d.score) == key]
        ends = [abs(e) for d in rows for e in (d.family.low, d.family.high, *d.by_seed)]
        reach = max(ends) or 1.0
        unit = "points" if rows[0].share else "in its own unit"
        blocks.append(
            f"<h3>{escape(key[1])}, {escape(key[0])} <span class=muted>({unit})</span></h3>"
            f"<div class=forest>{''.join(_forest_row(d, reach) for d in rows)}</div>"
        )
    return f"<section><h2>{escape(title)}</h2><p class=lead>{escape(lead)}</p>{''.join(blocks)}</section>"


def _forest_row(d: Difference, reach: float) -> str:
    def x(value: float) -> float:
        return 150 + 145 * value / reach

    found = d.excludes_zero
    colour = "c5" if not found else "c2" if d.interval.mean > 0 else "c1"
    seeds = "".join(f'<path class="tick" d="M{x(v):.1f} 6V22"/>' for v in d.by_seed if len(d.by_seed) > 1)
    label = escape(f"{d.title}: {spread(d.interval, d.share)}")
    svg = (
        f'<svg viewBox="0 0 300 28" role="img" aria-label="{label}"><path class="zero" d="M150 0V28"/>'
        f'<path class="thin {colour}" d="M{x(d.family.low):.1f} 14H{x(d.family.high):.1f}"/>'
        f'<path class="thick {colour}" d="M{x(d.interval.low):.1f} 14H{x(d.interval.high):.1f}"/>{seeds}'
        f'<circle class="dot {colour}" cx="{x(d.interval.mean):.1f}" cy="14" r="4.5"/></svg>'
    )
    family = spread(d.family, d.share).partition("[")[2]
    number = f"<strong>{spread(d.interval, d.share)}</strong>" if found else spread(d.interval, d.share)
    return (
        f"<div class=row><div class=what>{escape(d.title)}</div>{svg}"
        f"<div class=number>{number}<span class=muted> all: [{family}</span></div>"
        f"<div class=muted>{escape(d.verdict())}; {escape(d.chance)}</div></div>"
    )


def _beside(comparison: Comparison) -> str:
    scores = list(dict.fromkeys(name for beside in comparison.beside for name in beside.scores))
    figures = [
        name
        for name in comparison.beside[0].figures
        if any(beside.figures[name] is not None for beside in comparison.beside)
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("arm", "seeds", *scores, *figures))
    rows = []
    for beside in comparison.beside:
        seeds = ", ".join("unknown" if seed is None else str(seed) for seed in beside.seeds)
        cells = [_cell(beside.scores.get(name), percent=name.partition(": ")[2] in SHARES) for name in scores]
        cells += [_cell(beside.figures[name]) for name in figures]
        mark = ' class="control"' if beside.noise is not None else ""
        rows.append(
            f"<tr{mark}><th scope=row>{escape(beside.arm)}</th><td>{escape(seeds)}</td>{''.join(cells)}</tr>"
        )
    return (
        "<section><h2>Side by side</h2><p class=lead>Scores after training are means over an arm's seeds, "
        "shares in percent. Dead groups are means over the whole run; entropies (nats), confidences and "
        "calibration over its last tenth; a noise control stands under its method.</p>"
        '<div class=scroll tabindex="0" role="region" aria-label="Side by side">'
        f"<table class='results beside'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _cell(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return '<td class="muted">none</td>'
    return f"<td>{100 * value:.1f}</td>" if percent else f"<td>{value:.3g}</td>"


def _curves(arms: Sequence[Arm]) -> str:
    drawn = arms[:DRAWN_ARMS]
    charts = []
    for metric, (title, about, share) in _CURVES.items():
        series = tuple(
            Series(arm.name, values, number)
            for number, arm in enumerate(drawn)
            if (values := _mean_curve([entry.run.metrics.columns.get(metric, {}) for entry in arm.entries]))
        )
        if series:
            charts.append(chart_html(Chart(title, series, about, share)))
    if not charts:
        return ""
    lead = "Each curve is the mean over an arm's seeds at the steps that all of them have."
    if len(arms) > len(drawn):
        lead += f" The first {len(drawn)} of {len(arms)} arms are drawn."
    return (
        f"<section><h2>Curves</h2><p class=lead>{lead}</p>"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _mean_curve(columns: Sequence[Mapping[int, float]]) -> dict[int, float]:
    common = [step for step in columns[0] if all(step in column for column in columns[1:])]
    return {step: math.fsum(column[step] for column in columns) / len(columns) for step in common}


def _settings(comparison: Comparison) -> str:
    if not comparison.settings:
        return ""
    head = "".join(f"<th>{escape(arm.name)}</th>" for arm in comparison.arms)
    rows = "".join(
        f"<tr><th scope=row>{escape(key)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for key, values in comparison.settings
    )
    outside = [key for key, _ in comparison.settings if not key.startswith("credit.")]
    lead = (
        f"Beside the credit they differ in {', '.join(outside)}: a difference above may come from there."
        if outside
        else "They differ in their credit alone."
    )
    return (
        f"<section><h2>What differs between the arms</h2><p class=lead>{escape(lead)}</p><details><summary>"
        f"{len(comparison.settings)} settings</summary><div class=scroll><table class=results><thead><tr>"
        f"<th>setting</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details></section>"
    )


def _runs(arms: Sequence[Arm]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(arm.name)}</th><td>{escape(str(entry.seed))}</td>"
        f"<td class=prose>{escape(str(entry.run.directory))}</td></tr>"
        for arm in arms
        for entry in arm.entries
    )
    return (
        "<section><h2>Runs</h2><p class=lead>Each has its own report with groups and episodes: "
        "<code>threefold view RUN</code>.</p><div class=scroll><table><thead><tr><th>arm</th><th>seed</th>"
        f"<th>directory</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )
