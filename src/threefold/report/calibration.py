"""The report's section on calibration: is the policy as often right as it is sure?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from threefold.report.reading import Evaluation

_SIZE, _LEFT, _TOP, _BOTTOM = 210, 46, 10, 34
_FIGURES = {
    "confidence": "confidence",
    "accuracy": "right",
    "brier": "Brier",
    "ece_width": "ECE, width",
    "ece_mass": "ECE, mass",
}


def calibration_html(evaluations: Sequence[Evaluation]) -> str:
    """A reliability plot of every evaluation that measured confidence, with figures; "" where none did."""
    measured = [e for e in evaluations if e.calibration]
    if not measured:
        return ""
    return (
        "<section><h2>Calibration</h2><p class=lead>How sure the policy is of an answer, and how often it is "
        "right. Confidence is the probability of the whole answer after its own reasoning; samples without "
        "an answer are left out. On the dashed line the two agree; below it the policy is too sure.</p>"
        f'<div class="charts">{"".join(_plot(e) for e in measured)}</div>{_table(measured)}</section>'
    )


def _plot(evaluation: Evaluation) -> str:
    rows = evaluation.calibration["table"]
    name = f"{evaluation.when}, {evaluation.mode}"

    def x(value: float) -> float:
        return _LEFT + value * _SIZE

    def y(value: float) -> float:
        return _TOP + (1 - value) * _SIZE

    words = "; ".join(f"confidence {r['confidence']:.2f}, right {r['accuracy']:.2f}" for r in rows)
    width, height = _LEFT + _SIZE + 12, _TOP + _SIZE + _BOTTOM
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}: {escape(words)}">']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{x(1):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x(tick):.1f}" y="{y(0) + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="diagonal" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>')
    parts.append(f'<text x="{x(0.5)}" y="{y(0) + 31}" text-anchor="middle">confidence</text>')
    points = [(x(row["confidence"]), y(row["accuracy"])) for row in rows]
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    parts.append(f'<path class="line c0" d="M{line}"/>')
    most = max(row["samples"] for row in rows)
    for (a, b), row in zip(points, rows, strict=True):
        radius = 2.5 + 4 * (row["samples"] / most) ** 0.5
        parts.append(f'<circle class="dot c0" cx="{a:.1f}" cy="{b:.1f}" r="{radius:.1f}"/>')
    return (
        f'<figure class="chart"><figcaption>Reliability {escape(name)}</figcaption>'
        '<p class="about">Share right by confidence; larger dots hold more samples.</p>'
        f"{''.join(parts)}</svg>{_bins(rows)}</figure>"
    )


def _bins(rows: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{row['low']:.2g} to {row['high']:.2g}</td><td>{row['samples']}</td>"
        f"<td>{row['confidence']:.3f}</td><td>{row['accuracy']:.3f}</td></tr>"
        for row in rows
    )
    return (
        "<details><summary>Numbers</summary><div class=scroll><table><thead><tr><th>confidence</th>"
        f"<th>samples</th><th>mean confidence</th><th>right</th></tr></thead><tbody>{body}</tbody></table>"
        "</div></details>"
    )


def _table(measured: Sequence[Evaluation]) -> str:
    rows = []
    for e in measured:
        levels = {"all": e.calibration, **e.calibration["by_difficulty"]}
        for level, figures in levels.items():
            cells = "".join(f"<td>{figures[name]:.3f}</td>" for name in _FIGURES)
            rows.append(
                f"<tr><th scope=row>{escape(e.when)}, {escape(e.mode)}</th><td>{escape(level)}</td>{cells}"
                f"<td>{figures['samples']}</td><td>{figures['no_answer']}</td></tr>"
            )
    head = "".join(f"<th>{label}</th>" for label in _FIGURES.values())
    return (
        "<details><summary>By difficulty</summary><div class=scroll><table class=results><thead><tr>"
        f"<th>held out</th><th>difficulty</th>{head}<th>samples</th><th>no answer</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )
