"""pass@k and avg@k of problems from their counts of correct samples.

pass@k is the unbiased estimator of Chen et al., "Evaluating Large Language Models Trained on Code"
(arXiv 2107.03374): with n samples of which c are correct, the share of the subsets of k samples that hold at
least one correct one,

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i=0}^{k-1} (n - c - i) / (n - i)

The product form never builds a binomial coefficient, so nothing overflows; every factor lies in [0, 1], and
where n - c < k one of them is exactly zero. Shapes: N problems.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> NDArray[np.float64]:
    """Probability that at least one of k samples is correct, unbiased, for each problem.

    Args:
        n: Samples drawn for each problem: (N,), or one number for all.
        c: How many of them are correct, (N,) or one number.
        k: Samples that may be tried, between 1 and the smallest n.

    Returns:
        (N,) in [0, 1]; a scalar where n and c are scalars. The mean over problems is the benchmark's pass@k.

    Raises:
        ValueError: k < 1, k > n, c < 0 or c > n; the message names the first such problem.
        TypeError: A count is not an integer.
    """
    n_N, c_N = _counts(n, c)
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k counts samples and must be an integer, got {k!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    _refuse(
        n_N < k, lambda at: f"pass@{k} needs at least {k} samples of every problem, {at} has {n_N[at.index]}"
    )
    i_k = np.arange(k)
    wrong_N1, n_N1 = (n_N - c_N)[..., None], n_N[..., None]
    return 1.0 - np.prod(np.maximum(wrong_N1 - i_k, 0) / (n_N1 - i_k), axis=-1)


def avg_at_k(n: ArrayLike, c: ArrayLike) -> NDArray[np.float64]:
    """Mean correctness of a problem's samples, c / n: avg@n, and at n = 1 the plain accuracy.

    Args:
        n: Samples drawn for each problem, at least 1: (N,), or one number for all.
        c: How many of them are correct, (N,) or one number.

    Returns:
        (N,) in [0, 1]; a scalar where n and c are scalars.

    Raises:
        ValueError: n < 1, c < 0 or c > n; the message names the first such problem.
        TypeError: A count is not an integer.
    """
    n_N, c_N = _counts(n, c)
    return c_N / n_N


class _Place:
    """Where in the arrays a value stands, for an error message."""

    def __init__(self, bad: NDArray[np.bool_]) -> None:
        self.index: tuple[int, ...] = tuple(int(i) for i in np.argwhere(bad)[0])

    def __str__(self) -> str:
        return (
            f"problem {self.index[0] if len(self.index) == 1 else self.index}" if self.index else "this one"
        )


def _counts(n: ArrayLike, c: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    given: dict[str, Any] = {"n": np.asarray(n), "c": np.asarray(c)}
    for name, values in given.items():
        if not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"{name} counts samples and must hold integers, got {values.dtype}")
    n_N, c_N = np.broadcast_arrays(given["n"].astype(np.int64), given["c"].astype(np.int64))
    _refuse(n_N < 1, lambda at: f"a problem needs at least one sample, {at} has n = {n_N[at.index]}")
    _refuse(
        c_N < 0, lambda at: f"a count of correct samples cannot be negative, {at} has c = {c_N[at.index]}"
    )
    _refuse(
        c_N > n_N,
        lambda at: f"more correct samples than samples: {at} has c = {c_N[at.index]}, n = {n_N[at.index]}",
    )
    return n_N, c_N


def _refuse(bad: NDArray[np.bool_], message: Any) -> None:
    if np.any(bad):
        raise ValueError(message(_Place(bad)))
