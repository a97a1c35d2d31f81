"""A mean with its interval: how it is kept, how it adds up, and how it is written on every page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from threefold.evaluation.intervals import bootstrap


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval; an end that was not recorded is None."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on that side of zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(slots=True)
class Moments:
    """Number, sum and sum of squares: enough for a mean and its interval, and they add up."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    def merge(self, other: Moments) -> None:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> float:
        return self.total / self.count

    def interval(self, bounds: tuple[float, float] | None = None) -> Interval:
        """The mean with a 95 % interval (Student's t), without one below four values.

        With `bounds`, the lowest and highest value possible, values that are all equal get the exact interval
        of a share instead of a point: none of 20 does not mean never."""
        if self.count < 4:
            return Interval(self.mean)
        variance = max(0.0, self.squares - self.total * self.mean) / (self.count - 1)
        if variance <= 1e-12 * max(1.0, self.mean * self.mean):
            if bounds is None:
                return Interval(self.mean, self.mean, self.mean)
            share = 1 - 0.025 ** (1 / self.count)
            low, high = bounds
            return Interval(
                self.mean, self.mean - share * (self.mean - low), self.mean + share * (high - self.mean)
            )
        reach = student(self.count - 1) * math.sqrt(variance / self.count)
        ends = self.mean - reach, self.mean + reach
        if bounds is not None:
            ends = max(bounds[0], ends[0]), min(bounds[1], ends[1])
        return Interval(self.mean, *ends)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by the expansion of Cornish and Fisher; within 1 % from 3 degrees
    of freedom on."""
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


@dataclass(frozen=True)
class Change:
    """A figure of training in the first and in the last fifth of its steps."""

    first: Interval
    last: Interval
    difference: Interval
    """Last minus first; the interval treats steps as independent, which they are not quite."""
    steps: int
    """Steps in each fifth."""


def change(values: Sequence[float], *, least: int = 10) -> Change | None:
    """How a figure moved over the steps, None with fewer than `least` of them."""
    if len(values) < least:
        return None
    fifth = max(3, len(values) // 5)
    first, last = np.asarray(values[:fifth]), np.asarray(values[-fifth:])
    rng = np.random.default_rng(0)
    drawn = [side[rng.integers(fifth, size=(4_000, fifth))].mean(axis=1) for side in (last, first)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    difference = Interval(float(last.mean() - first.mean()), float(low), float(high))
    return Change(_bootstrapped(first), _bootstrapped(last), difference, fifth)


def _bootstrapped(values: np.ndarray) -> Interval:
    found = bootstrap(values, resamples=4_000)
    return Interval(found.mean, found.low, found.high)


def is_number(value: Any) -> bool:
    """Whether it is a number that can be drawn: the bound keeps differences of two of them finite."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) < 1e300
    )


def in_words(value: Interval, *, percent: bool = False, signed: bool = False, points: bool = False) -> str:
    """Such as "12.0 % [8.3, 15.7]": percent, or points of it, with one decimal, else three significant
    digits."""

    def said(number: float) -> str:
        form = ("+" if signed else "") + (".1f" if percent else ".3g")
        text = format(100 * number if percent else number, form)
        return text.replace("-0.0", "0.0") if float(text) == 0 else text

    unit = (" points" if points else " %") if percent else ""
    if value.low is None or value.high is None:
        return said(value.mean) + unit
    return f"{said(value.mean)}{unit} [{said(value.low)}, {said(value.high)}]"


MISSING = '<span class="muted">not measured</span>'


def interval_html(value: Interval | None, *, signed: bool = False, percent: bool = True) -> str:
    """Percent with one decimal, or three decimals; a gain that the interval separates from zero is set in
    bold."""
    if value is None:
        return MISSING
    scale, form = (100, ".1f") if percent else (1, ".3f")
    form = f"+{form}" if signed else form
    mean = escape(f"{scale * value.mean:{form}}")
    if value.low is None or value.high is None:
        return mean
    if signed and value.sign:
        mean = f"<strong>{mean}</strong>"
    return f'{mean} <span class="muted">[{scale * value.low:{form}}, {scale * value.high:{form}}]</span>'
