"""Curves as inline SVG, with the same numbers in a table below: no library, no network, readable without a
script."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

POINT_LIMIT = 150
"""Points of a curve; a longer one is drawn, and listed, as the means of equal stretches of steps."""
SMOOTH_FROM = 40
"""A curve of this many points or more is drawn faintly, with its running mean on top."""

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 26


@dataclass(frozen=True)
class Series:
    """One curve: its name in the legend, its values by step, and its colour by number (0 to 5)."""

    name: str
    values: Mapping[int, float]
    colour: int = 0
    band: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Low and high end of an interval by step, where there is one."""

    @property
    def ends(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """The first and the last point."""
        steps = list(self.values)
        return (steps[0], self.values[steps[0]]), (steps[-1], self.values[steps[-1]])


@dataclass(frozen=True)
class Chart:
    """Curves over the training step, or over another count, that share an axis."""

    title: str
    series: tuple[Series, ...]
    about: str = ""
    """What the reader sees here, in a sentence or two."""
    share: bool = False
    """Values are shares: the axis runs from 0 to 1."""
    stacked: bool = False
    """Areas on top of each other; for parts of a whole that are never negative."""
    axis: str = "step"
    """What the horizontal axis counts."""


def chart_html(chart: Chart) -> str:
    """A figure with legend, SVG and the table of its numbers."""
    steps, columns, width = _thin(chart.series)
    legend = "".join(
        f'<span class="key c{s.colour}"><i></i>{escape(s.name)}</span>'
        for s in chart.series
        if len(chart.series) > 1
    )
    return (
        f'<figure class="chart"><figcaption>{escape(chart.title)}</figcaption>'
        + (f'<p class="about">{escape(chart.about)}</p>' if chart.about else "")
        + (f'<div class="legend">{legend}</div>' if legend else "")
        + _svg(chart, steps, columns)
        + _table(chart, steps, columns, width)
        + "</figure>"
    )


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    span = high - low
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) if abs(step) > 1e-9 else i * step for i in range(first, last + 1)]


def _thin(series: Sequence[Series]) -> tuple[list[float], list[list[float | None]], int]:
    """Common steps, one column of values a series (None where it has none), and how many steps a point is."""
    steps = sorted({step for s in series for step in s.values})
    if not steps:
        return [], [[] for _ in series], 1
    width = max(1, math.ceil((steps[-1] - steps[0] + 1) / POINT_LIMIT)) if len(steps) > POINT_LIMIT else 1
    buckets: dict[int, list[int]] = {}
    for step in steps:
        buckets.setdefault((step - steps[0]) // width, []).append(step)
    columns: list[list[float | None]] = []
    for s in series:
        means: list[float | None] = []
        for bucket in buckets.values():
            values = [s.values[step] for step in bucket if step in s.values]
            means.append(math.fsum(values) / len(values) if values else None)
        columns.append(means)
    return [sum(bucket) / len(bucket) for bucket in buckets.values()], columns, width


def _svg(chart: Chart, steps: Sequence[float], columns: list[list[float | None]]) -> str:
    drawn = _stack(columns) if chart.stacked else columns
    values = [value for column in drawn for value in column if value is not None]
    values += [end for s in chart.series for ends in s.band.values() for end in ends]
    ticks = _value_ticks(values, chart)
    low, high = ticks[0], ticks[-1]
    first, last = steps[0], steps[-1]

    def x(step: float) -> float:
        if first == last:
            return (_LEFT + _WIDTH - _RIGHT) / 2
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(_summary(chart))}" '
        f'data-x="{_LEFT},{_WIDTH - _RIGHT},{first:.10g},{last:.10g}">'
    ]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in _step_ticks(first, last):
        anchor, label = ("end" if x(tick) > _WIDTH - 24 else "middle"), f"{tick:.10g}"
        if tick == first:
            anchor, label = ("start" if first < last else "middle"), escape(f"{chart.axis} {label}")
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    base: list[float | None] = [low] * len(steps)
    for series, column in zip(chart.series, drawn, strict=True):
        points = [(x(s), y(v)) for s, v in zip(steps, column, strict=True) if v is not None]
        parts.append(_band(series, x, y))
        if chart.stacked:
            floor = [(x(s), y(v)) for s, v in zip(steps, base, strict=True) if v is not None]
            parts.append(f'<path class="area c{series.colour}" d="{_path(points + floor[::-1])}Z"/>')
            base = column
        parts.append(_curve(points, series.colour, smooth=not chart.stacked))
    parts.append(f'<path class="cursor" d="M0 {_TOP}V{_HEIGHT - _BOTTOM}" visibility="hidden"/></svg>')
    return "".join(parts)


def _band(series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    if not series.band:
        return ""
    if len(series.band) == 1:
        ((step, (low, high)),) = series.band.items()
        return f'<path class="thin c{series.colour}" d="M{x(step):.1f} {y(low):.1f}V{y(high):.1f}"/>'
    upper = [(x(step), y(high)) for step, (_, high) in series.band.items()]
    lower = [(x(step), y(low)) for step, (low, _) in series.band.items()]
    return f'<path class="band c{series.colour}" d="{_path(upper + lower[::-1])}Z"/>'


def _curve(points: list[tuple[float, float]], colour: int, *, smooth: bool) -> str:
    if len(points) == 1:
        return f'<circle class="dot c{colour}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3.5"/>'
    if smooth and len(points) >= SMOOTH_FROM:
        reach = max(2, len(points) // 24)
        means = []
        for i, (x, _) in enumerate(points):
            window = points[max(0, i - reach) : i + reach + 1]
            means.append((x, sum(y for _, y in window) / len(window)))
        return (
            f'<path class="line faint c{colour}" d="{_path(points)}"/>'
            f'<path class="line c{colour}" d="{_path(means)}"/>'
        )
    return f'<path class="line c{colour}" d="{_path(points)}"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _stack(columns: list[list[float | None]]) -> list[list[float | None]]:
    tops: list[list[float | None]] = []
    below = [0.0] * len(columns[0])
    for column in columns:
        below = [b + (value or 0.0) for b, value in zip(below, column, strict=True)]
        tops.append(list(below))
    return tops


def _value_ticks(values: Sequence[float], chart: Chart) -> list[float]:
    low, high = min(values), max(values)
    if chart.share and low >= 0 and high <= 1 + 1e-9:
        return [0, 0.25, 0.5, 0.75, 1]
    if chart.stacked:
        low = min(0.0, low)
    size = max(abs(low), abs(high))
    if high - low <= 1e-6 * size or size < 1e-200:  # flat: noise of rounding is not a curve
        reach = size / 2 if size > 1e-200 else 0.5
        low, high = low - reach, high + reach
    return nice_ticks(low, high)


def _step_ticks(first: float, last: float) -> list[float]:
    if first == last:
        return [first]
    inside = [tick for tick in nice_ticks(first, last) if first <= tick <= last and float(tick).is_integer()]
    gap = (last - first) / 6
    return [first, *(t for t in inside if t - first > gap and last - t > gap), last]


def _short(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.5g}"


def _summary(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for series in chart.series:
        (first, start), (last, end) = series.ends
        axis = chart.axis
        parts.append(f"{series.name} from {start:.3g} at {axis} {first} to {end:.3g} at {axis} {last}")
    return f"{chart.title}: " + "; ".join(parts)


def _table(chart: Chart, steps: Sequence[float], columns: list[list[float | None]], width: int) -> str:
    head = "".join(f"<th>{escape(series.name)}</th>" for series in chart.series)
    rows = "".join(
        f"<tr><td>{step:.10g}</td>"
        + "".join(_value(s, step, value) for s, value in zip(chart.series, values, strict=True))
        + "</tr>"
        for step, *values in zip(steps, *columns, strict=True)
    )
    thinned = f", each row the mean of up to {width} {chart.axis}s" if width > 1 else ""
    return (
        f"<details><summary>Numbers{escape(thinned)}</summary><div class=scroll><table><thead><tr>"
        f"<th>{escape(chart.axis)}</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _value(series: Series, step: float, value: float | None) -> str:
    ends = series.band.get(int(step)) if step == int(step) else None
    interval = "" if ends is None else f" [{ends[0]:.4g}, {ends[1]:.4g}]"
    return f"<td>{'' if value is None else f'{value:.4g}'}{interval}</td>"
