"""Pr(X > Y) of two independent Beta variables, without sampling.

ReSkill's reference release draws 10,000 samples of each arm (standard error up to 0.005, another answer at
every call). Here the integral over the log-odds t = log(x / (1 - x)) of the narrower arm,

    Pr(X > Y) = int  f_X(t) F_Y(t) dt,

is taken by the trapezoid rule. Both factors are analytic and vanish at the ends, where that rule converges
exponentially in the number of nodes, so a few hundred nodes give rounding error. F is the regularised
incomplete beta function by its continued fraction. Parameters below one, whose tails are long, are lifted by

    Pr(X_{a,b} > Y) = Pr(X_{a+1,b} > Y) - B(a + c, b + d) / (a B(a, b) B(c, d))      Y ~ Beta(c, d)

and its three mirror images.

Error: below 1e-10 for parameters from 1e-6 to 1e4 and 1e-9 up to 1e5; it grows in proportion to the largest
(rounding of log-gamma). tests/skills/test_version_test.py holds it against the closed sum for a whole d.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_NODES_PER_DEVIATION = 5
_TAIL = 42.0
"""exp(-42) = 6e-19: what lies beyond is lost to rounding anyway."""


def log_beta(a: float, b: float) -> float:
    """log B(a, b)."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def probability_greater(a: float, b: float, c: float, d: float) -> float:
    """Pr(X > Y) for independent X ~ Beta(a, b) and Y ~ Beta(c, d); see the module's docstring for the error.

    Raises:
        ValueError: A parameter is not a positive finite number.
    """
    for value in (a, b, c, d):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"parameters of a Beta distribution are positive and finite, got {value!r}")
    if (a, b) == (c, d):
        return 0.5
    lifted = 0.0
    while min(a, b, c, d) < 1:  # each branch raises one parameter and adds what that changes
        step = math.exp(log_beta(a + c, b + d) - log_beta(a, b) - log_beta(c, d))
        if a < 1:
            lifted, a = lifted - step / a, a + 1
        elif b < 1:
            lifted, b = lifted + step / b, b + 1
        elif c < 1:
            lifted, c = lifted + step / c, c + 1
        else:
            lifted, d = lifted - step / d, d + 1
    if 1 / a + 1 / b <= 1 / c + 1 / d:
        value = _integral(a, b, c, d)
    else:
        value = 1 - _integral(c, d, a, b)
    return min(1.0, max(0.0, value + lifted))


def _integral(a: float, b: float, c: float, d: float) -> float:
    """Pr(X > Y) over the density of X, which is the narrower one; all parameters are at least one."""
    centre = math.log(a / b)
    deviation = math.sqrt(1 / a + 1 / b)
    # log density, up to a constant: a t - (a + b) log(1 + e^t); it falls at least like exp(-|t|) far out, and
    # like a Gaussian of this deviation near the centre
    reach = min(deviation * _TAIL, _TAIL + 12 * deviation)
    step = deviation / _NODES_PER_DEVIATION
    t = centre + step * np.arange(-math.ceil(reach / step), math.ceil(reach / step) + 1)
    log_density = a * (t - centre) - (a + b) * (np.logaddexp(0, t) - np.logaddexp(0, centre))
    inside = log_density > np.max(log_density) - _TAIL
    density = np.exp(log_density[inside] - np.max(log_density))
    return float(np.sum(density * _cdf(t[inside], c, d)) / np.sum(density))


def _cdf(t: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Pr(Y <= x) for Y ~ Beta(a, b) at x = 1 / (1 + e^-t)."""
    log_x, log_rest = -np.logaddexp(0, -t), -np.logaddexp(0, t)
    front = np.exp(a * log_x + b * log_rest - log_beta(a, b))
    x, rest = np.exp(log_x), np.exp(log_rest)
    below = x < (a + 1) / (a + b + 2)
    result = np.empty_like(t)
    result[below] = front[below] * _continued_fraction(x[below], a, b) / a
    result[~below] = 1 - front[~below] * _continued_fraction(rest[~below], b, a) / b
    return result


def _continued_fraction(x: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """The continued fraction of I_x(a, b) by Lentz's method (DLMF 8.17.22); fast for x < (a+1) / (a+b+2)."""
    tiny = 1e-300
    c = np.ones_like(x)
    d = 1 - (a + b) * x / (a + 1)
    d = 1 / np.where(np.abs(d) < tiny, tiny, d)
    value = d.copy()
    for m in range(1, 100_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            c = 1 + numerator / c
            d = 1 / np.where(np.abs(d) < tiny, tiny, d)
            c = np.where(np.abs(c) < tiny, tiny, c)
            change = d * c
            value *= change
        if not np.any(np.abs(change - 1) > 1e-15):
            return value
    raise ArithmeticError(f"the incomplete beta function of ({a}, {b}) did not converge")
