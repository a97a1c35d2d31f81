"""Plots of the study as SVG files that stand alone: lines with bands, and means with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from threefold.evaluation.calibration import reliability

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c98b1d", "#4a4e69", "#0f8b8d", "#a23b72", "#6b705c")
STYLE = "font: 12px sans-serif; background: white"
Point = tuple[float, float, float, float]
"""x, mean, low, high."""


def draw(
    results: Path, study: Mapping[str, Any], cells: Mapping[tuple[str, int], Any], arms: Sequence[str]
) -> None:
    """All plots of the study, beside its page."""
    by_arm = {arm: [cell for (name, _), cell in cells.items() if name == arm] for arm in arms}
    present = [arm for arm in arms if by_arm[arm]]
    rows = {
        f"{c['arm']} - {c['against']}": (c["mean"], *c["interval_bonferroni"]) for c in study["comparisons"]
    }
    label = "difference in success, interval with Bonferroni"
    intervals(results / "differences.svg", "Success against GRPO and noise", rows, label=label)
    lines(
        results / "dead.svg",
        "Groups dead by outcome (band: seeds)",
        {arm: _band(by_arm[arm], "signal/dead_outcome") for arm in present},
        x_label="step",
        y_label="share of groups",
        y_range=(0.0, 1.0),
    )
    shown = [arm for arm in ("grpo", "ispo-paper", "ispo") if arm in present]
    lines(
        results / "entropy.svg",
        "Entropy on top-entropy tokens (band: seeds)",
        {
            f"{arm}, {side}": _band(by_arm[arm], f"certainty/entropy_top_{side}")
            for arm in shown
            for side in ("right", "wrong")
        },
        x_label="step",
        y_label="nats",
    )
    curves, score = {}, "strict"
    for arm in present:
        sampled = [cell["_sampled"] for cell in by_arm[arm]]
        pairs = [
            (c, r)
            for s in sampled
            for confident, right in zip(s["confidences"], s["outcomes"][score], strict=True)
            for c, r in zip(confident, right, strict=True)
            if c is not None
        ]
        if pairs:
            bins = reliability([c for c, _ in pairs], [float(r) for _, r in pairs])
            curves[arm] = [(b.confidence, b.accuracy, b.accuracy, b.accuracy) for b in bins]
    lines(
        results / "reliability.svg",
        "Reliability: confidence in the answer against success",
        curves,
        x_label="confidence (mean of a bin of width 0.1)",
        y_label="share right",
        y_range=(0.0, 1.0),
        diagonal=True,
    )


def _band(cells: Sequence[Any], name: str, pieces: int = 20) -> list[Point]:
    """Mean, lowest and highest seed over stretches of the training."""
    points = []
    longest = max(len(cell["_curves"][name]) for cell in cells)
    width = max(1, longest // pieces)
    for first in range(0, longest, width):
        stretches = [cell["_curves"][name][first : first + width] for cell in cells]
        known = [[value for value in stretch if value is not None] for stretch in stretches]
        means = [statistics.fmean(values) for values in known if values]
        if means:
            points.append((first + width / 2, statistics.fmean(means), min(means), max(means)))
    return points


def lines(
    path: Path,
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> None:
    """Curves with a band from low to high around each; nothing is written where there are no points."""
    points = [point for curve in series.values() for point in curve]
    if not points:
        return
    xs = [point[0] for point in points]
    low, high = y_range or (min(p[2] for p in points), max(p[3] for p in points))
    left, top, width, height = 60, 34, 520, 260
    x = _scale(min(xs), max(xs), left, left + width)
    y = _scale(low, high, top + height, top)
    parts = _frame(title, left, top, width, height, (min(xs), max(xs)), (low, high), x_label, y_label)
    if diagonal:
        ends = max(min(xs), low), min(max(xs), high)
        parts.append(
            f'<path d="M{x(ends[0]):.1f} {y(ends[0]):.1f}L{x(ends[1]):.1f} {y(ends[1]):.1f}" stroke="#999" '
            'stroke-dasharray="4 4" fill="none"/>'
        )
    for i, (name, curve) in enumerate(series.items()):
        if not curve:
            continue
        colour = COLOURS[i % len(COLOURS)]
        band = [(p[0], p[3]) for p in curve] + [(p[0], p[2]) for p in reversed(curve)]
        parts.append(f'<path d="{_path(band, x, y)}Z" fill="{colour}" opacity="0.12"/>')
        middle = _path([(p[0], p[1]) for p in curve], x, y)
        parts.append(f'<path d="{middle}" stroke="{colour}" stroke-width="1.8" fill="none"/>')
        row = top + 10 + 17 * i
        parts.append(f'<path d="M{left + width + 14} {row}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{left + width + 38}" y="{row + 4}">{escape(name)}</text>')
    _write(path, parts, left + width + 190, max(top + height + 50, top + 20 + 17 * len(series)))


def intervals(path: Path, title: str, rows: Mapping[str, tuple[float, float, float]], *, label: str) -> None:
    """A row for each name: mean, low and high around a line at zero."""
    if not rows:
        return
    low, high = min(0.0, *(row[1] for row in rows.values())), max(0.0, *(row[2] for row in rows.values()))
    reach = max(high - low, 1e-9) * 0.05
    left, top, width, height = 240, 34, 420, 24 * len(rows)
    x = _scale(low - reach, high + reach, left, left + width)
    parts = [
        f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{x(0):.1f} {top}V{top + height}" stroke="#999" stroke-dasharray="4 4"/>',
    ]
    for i, (name, (mean, below, above)) in enumerate(rows.items()):
        row = top + 24 * i + 14
        colour = COLOURS[0] if below > 0 else COLOURS[1] if above < 0 else "#666"
        parts.append(f'<text x="{left - 10}" y="{row + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<path d="M{x(below):.1f} {row}H{x(above):.1f}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x(mean):.1f}" cy="{row}" r="4" fill="{colour}"/>'
        )
    for tick in _ticks(low, high):
        parts.append(
            f'<text x="{x(tick):.1f}" y="{top + height + 18}" text-anchor="middle">{tick:.3g}</text>'
        )
    middle = left + width / 2
    parts.append(_label(middle, top + height + 38, label))
    _write(path, parts, left + width + 30, top + height + 50)


def _frame(
    title: str,
    left: int,
    top: int,
    width: int,
    height: int,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_label: str,
    y_label: str,
) -> list[str]:
    x, y = _scale(*x_range, left, left + width), _scale(*y_range, top + height, top)
    parts = [f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>']
    for tick in _ticks(*y_range):
        parts.append(f'<path d="M{left} {y(tick):.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for tick in _ticks(*x_range):
        parts.append(
            f'<text x="{x(tick):.1f}" y="{top + height + 18}" text-anchor="middle">{tick:.4g}</text>'
        )
    bottom, middle = top + height, top + height / 2
    parts.append(
        f'<text x="{left + width / 2}" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * i / 4 for i in range(5)]


def _path(
    points: Sequence[tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    return "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)


def _write(path: Path, parts: Sequence[str], width: float, height: float) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" style="{STYLE}">'
    path.write_text(head + "\n" + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")
