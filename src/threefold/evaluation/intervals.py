"""Bootstrap intervals over problems.

A problem is a cluster: all samples of it are drawn into a resample together or not at all. Give one number a
problem (its avg@k, its pass@k), not one a sample.

The intervals are percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", ch. 13):
they stay inside the values' range, take any statistic, and need no second pass of N leave-one-out statistics
as BCa does. For the mean of accuracies over 30 or 100 problems a 95% interval covers the truth in 95% of
simulated evaluations (four samples a problem; the tests repeat this).

Where all values are equal no resample can differ, and the percentile interval shrinks to a point: "0 of 30
solved" would claim certainty. Where the values' range is known (`bounds`), the interval is instead the exact
binomial one: with probability `level`, at most q = 1 - ((1 - level) / 2) ** (1 / N) of all problems differ
from the common value v, so the mean lies within [v - q (v - lowest), v + q (highest - v)]. For v at a bound
this is Clopper and Pearson's interval. Without `bounds` it is the point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[..., Any]
"""Called as `statistic(values, axis=-1)`: numpy's mean, median, ... reduce the last axis."""

_DRAWS_AT_ONCE = 4_000_000
"""Bounds the memory of the resamples: this many indices and as many values at a time."""


@dataclass(frozen=True)
class Interval:
    """A number and the interval around it."""

    mean: float
    """The statistic of the values themselves; the mean unless another was asked for."""
    low: float
    high: float


def bootstrap(
    values: ArrayLike,
    *,
    statistic: Statistic = np.mean,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Percentile bootstrap interval of a statistic over problems.

    Args:
        values: (N,) one number a problem, finite, N >= 1.
        statistic: Reduces the last axis: called with `axis=-1` on (N,) and on (resamples, N).
        resamples: Number of resamples, at least 1.
        level: Coverage that is aimed at, between 0 and 1 exclusive.
        seed: The same seed gives the same interval, and the same resampled problems for other values of equal
            N.
        bounds: Lowest and highest value a problem can have, where known. It matters only where all N values
            are equal (N = 1 included): see the module's docstring.

    Returns:
        The statistic of `values` and the bounds of its interval.

    Raises:
        ValueError: `values` is not such an array or lies outside `bounds`, or `level` or `resamples` is out
            of range.
    """
    values_N = _checked(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 exclusive, such as 0.95, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if bounds is not None and not (bounds[0] <= values_N.min() and values_N.max() <= bounds[1]):
        raise ValueError(
            f"values range from {values_N.min()} to {values_N.max()}, outside the bounds {bounds}"
        )
    centre = float(statistic(values_N, axis=-1))
    if np.all(values_N == values_N[0]):
        return _of_equal_values(centre, values_N.size, level, bounds)
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // values_N.size)
    statistics = [
        statistic(
            values_N[rng.integers(values_N.size, size=(min(at_once, resamples - done), values_N.size))],
            axis=-1,
        )
        for done in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(statistics), [(1 - level) / 2, (1 + level) / 2])
    return Interval(centre, float(low), float(high))


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Interval of the mean difference `after - before` over problems that both have, in the same order.

    Pairing removes the spread between easy and hard problems, which is usually the larger part: it sees gains
    that two separate intervals would hide.

    Args:
        before: (N,) one number a problem.
        after: (N,) the same problems, in the same order.
        resamples, level, seed: As for `bootstrap`.
        bounds: Lowest and highest *difference*: (-1, 1) for accuracies.

    Returns:
        The mean difference and its interval; a low end above zero is a gain at that level.

    Raises:
        ValueError: The arrays differ in length, or as for `bootstrap`.
    """
    before_N, after_N = _checked(before, "before"), _checked(after, "after")
    if before_N.size != after_N.size:
        raise ValueError(
            f"a paired comparison needs the same problems on both sides, got {before_N.size} before and "
            f"{after_N.size} after"
        )
    return bootstrap(after_N - before_N, resamples=resamples, level=level, seed=seed, bounds=bounds)


def crossed_bootstrap(
    values: ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Interval of a mean over training seeds and problems, both of which are a choice that chance made.

    Seeds and problems are resampled independently, as every seed was measured on every problem. With few
    seeds the interval is too narrow (a bootstrap of 5 values has 126 different resamples): read it beside the
    values of the seeds.

    Args:
        values: (S, N) a number for each seed and problem, such as the difference of two methods; finite.
        resamples, level, seed: As for `bootstrap`.
        bounds: As for `bootstrap`, over the problems: where all values are equal, seeds count as one draw.

    Raises:
        ValueError: `values` is not such an array, or `level` or `resamples` is out of range.
    """
    values_SN = np.asarray(values, dtype=np.float64)
    if values_SN.ndim != 2 or values_SN.size == 0 or not np.all(np.isfinite(values_SN)):
        raise ValueError(f"values must be finite and of shape (seeds, problems), got shape {values_SN.shape}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie in (0, 1) and resamples be 1 or more, got {level} and {resamples}")
    n_seeds, n_problems = values_SN.shape
    if bounds is not None and np.all(values_SN == values_SN.flat[0]):
        return _of_equal_values(float(values_SN.flat[0]), n_problems, level, bounds)
    rng = np.random.default_rng(seed)
    seeds_RS = rng.integers(n_seeds, size=(resamples, n_seeds))
    weights_RS = np.stack([np.bincount(row, minlength=n_seeds) for row in seeds_RS]) / n_seeds
    means = np.empty(resamples)
    for r in range(resamples):
        drawn_N = rng.integers(n_problems, size=n_problems)
        means[r] = weights_RS[r] @ values_SN[:, drawn_N].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values_SN.mean()), float(low), float(high))


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise ValueError(
            f"{name} must hold one number a problem, shape (N,) with N >= 1, got shape {values_N.shape}"
        )
    if not np.all(np.isfinite(values_N)):
        at = int(np.flatnonzero(~np.isfinite(values_N))[0])
        raise ValueError(f"{name}[{at}] is {values_N[at]}: score every problem or leave it out on purpose")
    return values_N


def _of_equal_values(value: float, count: int, level: float, bounds: tuple[float, float] | None) -> Interval:
    if bounds is None:
        return Interval(value, value, value)
    share = 1 - ((1 - level) / 2) ** (1 / count)
    return Interval(value, value - share * (value - bounds[0]), value + share * (bounds[1] - value))
