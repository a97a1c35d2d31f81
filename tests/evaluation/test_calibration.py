"""Brier, ECE and reliability: worked out by hand, and what must hold for any confidences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.evaluation.calibration import (
    brier,
    by_difficulty,
    calibrate,
    expected_calibration_error,
    reliability,
)

CONFIDENCE = [0.95, 0.85, 0.85, 0.2, 0.6]
RIGHT = [1, 1, 0, 0, 1]
samples = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def test_brier_by_hand():
    # 0.05² + 0.15² + 0.85² + 0.2² + 0.4² = 0.0025 + 0.0225 + 0.7225 + 0.04 + 0.16
    assert brier(CONFIDENCE, RIGHT) == pytest.approx(0.9475 / 5)


def test_bins_of_equal_width_by_hand():
    rows = reliability(CONFIDENCE, RIGHT, bins=5)
    assert [(r.low, r.high, r.samples) for r in rows] == [
        (0.0, pytest.approx(0.2), 1),  # 0.2 belongs to the bin that it closes
        (pytest.approx(0.4), pytest.approx(0.6), 1),
        (pytest.approx(0.8), 1.0, 3),
    ]
    assert rows[2].confidence == pytest.approx(2.65 / 3)
    assert rows[2].accuracy == pytest.approx(2 / 3)
    # (0.2 + 0.4 + |2.65 - 2|) / 5
    assert expected_calibration_error(CONFIDENCE, RIGHT, bins=5) == pytest.approx(1.25 / 5)


def test_bins_of_equal_mass_by_hand():
    rows = reliability(CONFIDENCE, RIGHT, bins=2, scheme="mass")
    # The median is 0.85, and the two samples of 0.85 stay together.
    assert [r.samples for r in rows] == [4, 1]
    assert rows[0].confidence == pytest.approx(2.5 / 4)
    assert rows[0].accuracy == 0.5
    assert expected_calibration_error(CONFIDENCE, RIGHT, bins=2, scheme="mass") == pytest.approx(0.55 / 5)


def test_equal_confidences_make_one_bin():
    for scheme in ("width", "mass"):
        assert expected_calibration_error([0.7] * 4, [1, 1, 1, 0], scheme=scheme) == pytest.approx(0.05)
        assert len(reliability([0.7] * 4, [1, 1, 1, 0], scheme=scheme)) == 1


def test_certain_and_right_is_perfect_and_certain_and_wrong_is_worst():
    assert brier([1.0, 0.0], [1, 0]) == expected_calibration_error([1.0, 0.0], [1, 0]) == 0.0
    assert brier([1.0, 0.0], [0, 1]) == expected_calibration_error([1.0, 0.0], [0, 1]) == 1.0


@given(samples, st.integers(1, 20), st.sampled_from(["width", "mass"]))
def test_every_sample_is_in_one_bin_and_ece_is_at_least_the_overall_gap(pairs, bins, scheme):
    confidence, right = [c for c, _ in pairs], [float(r) for _, r in pairs]
    rows = reliability(confidence, right, bins=bins, scheme=scheme)
    assert sum(row.samples for row in rows) == len(pairs)
    assert all(row.low - 1e-12 <= row.confidence <= row.high + 1e-12 for row in rows)
    ece = expected_calibration_error(confidence, right, bins=bins, scheme=scheme)
    assert abs(np.mean(confidence) - np.mean(right)) - 1e-9 <= ece <= 1 + 1e-9


@given(samples)
def test_order_does_not_matter(pairs):
    forward = calibrate([c for c, _ in pairs], [r for _, r in pairs])
    backward = calibrate([c for c, _ in pairs[::-1]], [r for _, r in pairs[::-1]])
    assert forward.brier == pytest.approx(backward.brier)
    assert forward.ece_mass == pytest.approx(backward.ece_mass)


def test_samples_without_an_answer_are_counted_and_left_out():
    made = calibrate([0.5, None, 0.5, None], [True, False, False, False])
    assert (made.samples, made.no_answer, made.accuracy, made.brier) == (2, 2, 0.5, 0.25)
    assert calibrate([None], [False]) is None


def test_difficulties_apart():
    graded = by_difficulty(
        [[1.0, 1.0], [0.5, None], [0.2, 0.2]], [[1, 1], [0, 0], [1, 1]], ["easy", "hard", ""]
    )
    assert sorted(graded) == ["easy", "hard"]
    assert graded["easy"].brier == 0
    assert (graded["hard"].brier, graded["hard"].no_answer) == (0.25, 1)


@pytest.mark.parametrize(
    ("confidence", "right", "message"),
    [
        ([], [], "N >= 1"),
        ([0.5], [1, 0], r"shapes \(1,\) and \(2,\)"),
        ([0.5, 1.2], [1, 0], r"confidence\[1\] is 1.2: a probability"),
        ([0.5, float("nan")], [1, 0], r"confidence\[1\] is nan"),
        ([0.5], [0.5], "0 and 1"),
    ],
)
def test_bad_input_is_refused(confidence, right, message):
    with pytest.raises(ValueError, match=message):
        brier(confidence, right)


def test_bad_bins_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        reliability([0.5], [1], bins=0)
    with pytest.raises(ValueError, match="'width' or 'mass'"):
        reliability([0.5], [1], scheme="equal")
