"""Is the policy as often right as it is sure? Confidence against correctness, in plain numpy.

The confidence of a sample is the probability that the policy gives to its whole answer after the sample's own
reasoning: exp of the *summed* log-probability of the answer's tokens, at the sampling temperature (1 where
greedy). Nothing is said of how sure it is of the reasoning: a model that copies the result of a wrong column
is confidently wrong here, and that is what intrinsic rewards are suspected of entrenching. The geometric mean
(exp of the mean log-probability) is not used: it is no probability of an event, so 0.8 of it means nothing.

For N samples with confidence c and correctness r (0 or 1):

    Brier = mean (c - r)²                       0 is best; always saying the mean accuracy a gives a (1 - a)
    ECE   = sum over bins of (n_b / N) |mean c in b - mean r in b|          (Guo et al., arXiv 1706.04599)

ECE depends on its bins, so both kinds are given: "width", `bins` intervals of equal width over [0, 1], and
"mass", `bins` intervals between the quantiles of the confidences. With many samples of confidence near 1,
"mass" says more about these. Equal confidences are never split over two bins. ECE of few samples is biased
upwards: compare methods at equal numbers of samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scheme = Literal["width", "mass"]
"""How bins are laid: of equal "width", or of (nearly) equal "mass", that is numbers of samples."""
BINS = 10


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence lies in (`low`, `high`], the first bin of a table including `low`."""

    low: float
    high: float
    samples: int
    confidence: float
    """Their mean confidence."""
    accuracy: float
    """Their share that is right."""


@dataclass(frozen=True)
class Calibration:
    """How confidence and correctness go together over some samples."""

    samples: int
    """Samples with an answer; those without have no confidence and are in no figure here."""
    no_answer: int
    """Samples without an answer in the asked format."""
    accuracy: float
    """Share that is right, of those with an answer."""
    confidence: float
    """Mean confidence."""
    brier: float
    ece_width: float
    ece_mass: float
    table: tuple[Bin, ...]
    """Reliability in bins of equal width, empty bins left out."""

    def to_json(self, *, table: bool = True) -> dict[str, Any]:
        """Plain JSON values; without the table where many of them are written."""
        values = asdict(self)
        values["table"] = [asdict(row) for row in self.table]
        return values if table else {name: value for name, value in values.items() if name != "table"}


def brier(confidence: ArrayLike, right: ArrayLike) -> float:
    """Mean squared difference of confidence and correctness, (N,) each; 0 is best, 1 worst.

    Raises:
        ValueError: The arrays are empty or differ in length, a confidence lies outside [0, 1], or `right`
            holds other values than 0 and 1.
    """
    confidence_N, right_N = _checked(confidence, right)
    return float(np.mean((confidence_N - right_N) ** 2))


def reliability(
    confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, scheme: Scheme = "width"
) -> tuple[Bin, ...]:
    """Mean confidence and accuracy of the samples of each bin, bins without samples left out.

    Args:
        confidence, right: (N,) each, as for `brier`.
        bins: Number of bins, at least 1. With "mass" there are fewer where many confidences are equal.
        scheme: "width" or "mass".

    Raises:
        ValueError: As for `brier`, or `bins` or `scheme` is not as described.
    """
    confidence_N, right_N = _checked(confidence, right)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if scheme == "width":
        edges = np.linspace(0, 1, bins + 1)
    elif scheme == "mass":
        edges = np.unique(np.quantile(confidence_N, np.linspace(0, 1, bins + 1)))
        edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    else:
        raise ValueError(f"scheme is {scheme!r}: use 'width' or 'mass'")
    place_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, len(edges) - 2)
    rows = []
    for place in np.unique(place_N):
        inside_N = place_N == place
        rows.append(
            Bin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                samples=int(inside_N.sum()),
                confidence=float(confidence_N[inside_N].mean()),
                accuracy=float(right_N[inside_N].mean()),
            )
        )
    return tuple(rows)


def expected_calibration_error(
    confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, scheme: Scheme = "width"
) -> float:
    """ECE, in [0, 1]; arguments and errors as for `reliability`."""
    rows = reliability(confidence, right, bins=bins, scheme=scheme)
    total = sum(row.samples for row in rows)
    return float(sum(row.samples / total * abs(row.confidence - row.accuracy) for row in rows))


def calibrate(
    confidence: Sequence[float | None], right: Sequence[bool], *, bins: int = BINS
) -> Calibration | None:
    """All figures of some samples, or None where none of them has an answer.

    Args:
        confidence: (N,) in [0, 1]; None for a sample without an answer.
        right: (N,) whether each sample is right.
        bins: Bins of the reliability table and of both ECEs.
    """
    pairs = [(c, bool(r)) for c, r in zip(confidence, right, strict=True) if c is not None]
    if not pairs:
        return None
    confidence_N, right_N = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs], dtype=float)
    return Calibration(
        samples=len(pairs),
        no_answer=len(confidence) - len(pairs),
        accuracy=float(right_N.mean()),
        confidence=float(confidence_N.mean()),
        brier=brier(confidence_N, right_N),
        ece_width=expected_calibration_error(confidence_N, right_N, bins=bins),
        ece_mass=expected_calibration_error(confidence_N, right_N, bins=bins, scheme="mass"),
        table=reliability(confidence_N, right_N, bins=bins),
    )


def by_difficulty(
    confidences: Sequence[Sequence[float | None]],
    right: Sequence[Sequence[bool]],
    difficulties: Sequence[str],
) -> Mapping[str, Calibration]:
    """`calibrate` for the problems of each difficulty, problems x samples each; "" is left out."""
    found = {}
    for difficulty in sorted(set(filter(None, difficulties))):
        rows = [i for i, name in enumerate(difficulties) if name == difficulty]
        made = calibrate([c for i in rows for c in confidences[i]], [bool(r) for i in rows for r in right[i]])
        if made is not None:
            found[difficulty] = made
    return found


def _checked(confidence: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    confidence_N = np.asarray(confidence, dtype=np.float64)
    right_N = np.asarray(right, dtype=np.float64)
    if confidence_N.ndim != 1 or confidence_N.size == 0 or confidence_N.shape != right_N.shape:
        raise ValueError(
            "confidence and right must hold one number a sample, (N,) each with N >= 1, got shapes "
            f"{confidence_N.shape} and {right_N.shape}"
        )
    outside_N = ~((confidence_N >= 0) & (confidence_N <= 1))
    if outside_N.any():
        at = int(np.flatnonzero(outside_N)[0])
        raise ValueError(f"confidence[{at}] is {confidence_N[at]}: a probability lies in [0, 1]")
    if not np.isin(right_N, (0, 1)).all():
        raise ValueError("right must hold 0 and 1 (or False and True) alone")
    return confidence_N, right_N
