"""Bootstrap intervals: small cases worked out exactly, and the coverage that their name promises."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.evaluation.intervals import Interval, bootstrap, crossed_bootstrap, paired_bootstrap

finite = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


def test_matches_the_exact_bootstrap_distribution():
    """Three problems have 27 resamples; the quantiles of their means are known without any chance."""
    values = np.array([0.0, 1.0, 5.0])
    exact = np.mean(list(product(values, repeat=3)), axis=1)
    # At 80% the ends fall inside steps of the distribution (cumulative 1/27, 4/27 and 23/27, 26/27).
    interval = bootstrap(values, level=0.8)
    assert interval.mean == pytest.approx(2.0)
    assert interval.low == pytest.approx(np.quantile(exact, 0.1, method="inverted_cdf"))
    assert interval.high == pytest.approx(np.quantile(exact, 0.9, method="inverted_cdf"))
    assert (interval.low, interval.high) == pytest.approx((1 / 3, 11 / 3))


def test_approaches_the_normal_interval_of_a_large_sample():
    values = np.random.default_rng(3).normal(size=400)
    interval = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_resampling_in_parts_draws_the_same_problems(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap(values, resamples=999)
    monkeypatch.setattr("threefold.evaluation.intervals._DRAWS_AT_ONCE", 50 * 100)
    assert bootstrap(values, resamples=999) == whole


def test_other_statistics():
    interval = bootstrap([1.0, 2.0, 3.0, 4.0, 100.0], statistic=np.median)
    assert interval.mean == 3.0
    assert interval.low == 1.0
    assert interval.high == 100.0


@settings(deadline=None, max_examples=50)
@given(finite, st.integers(0, 5))
def test_is_ordered_inside_the_values_and_a_function_of_the_seed(values, seed):
    interval = bootstrap(values, resamples=200, seed=seed)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert bootstrap(values, resamples=200, seed=seed) == interval


@settings(deadline=None, max_examples=50)
@given(finite, st.floats(-10, 10), st.floats(0.1, 10))
def test_moves_and_scales_with_the_values(values, shift, scale):
    plain = bootstrap(values, resamples=200)
    moved = bootstrap(scale * np.array(values) + shift, resamples=200)
    assert moved.low == pytest.approx(scale * plain.low + shift, abs=1e-6)
    assert moved.high == pytest.approx(scale * plain.high + shift, abs=1e-6)


def test_seeds_differ_and_wider_levels_contain_narrower_ones():
    values = np.random.default_rng(1).random(20)
    assert bootstrap(values, seed=0) != bootstrap(values, seed=1)
    narrow, wide = bootstrap(values, level=0.5), bootstrap(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_equal_values_are_a_point_where_their_range_is_unknown():
    assert bootstrap([0.25] * 7) == Interval(0.25, 0.25, 0.25)
    assert bootstrap([3.0]) == Interval(3.0, 3.0, 3.0)


def test_equal_values_in_a_known_range_give_the_exact_binomial_interval():
    # Clopper and Pearson: 0 of 30 has the upper end 1 - 0.025^(1/30) = 0.1157.
    none = bootstrap([0.0] * 30, bounds=(0, 1))
    assert (none.mean, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.1157, abs=5e-5)
    every = bootstrap([1.0] * 30, bounds=(0, 1))
    assert (every.mean, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - 0.1157, abs=5e-5)
    # One problem says next to nothing.
    assert bootstrap([0.0], bounds=(0, 1)).high == pytest.approx(0.975)
    # A common value inside the range is open on both sides, in proportion to the room.
    inside = bootstrap([0.25] * 30, bounds=(0, 1))
    assert (inside.low, inside.high) == pytest.approx((0.25 * (1 - 0.1157), 0.25 + 0.75 * 0.1157), abs=5e-5)


def test_pairing_sees_a_gain_that_two_intervals_hide():
    rng = np.random.default_rng(0)
    before = rng.random(100)
    after = before + 0.05 + 0.01 * rng.standard_normal(100)
    apart = bootstrap(before), bootstrap(after)
    assert apart[0].high > apart[1].low
    gain = paired_bootstrap(before, after)
    assert gain.mean == pytest.approx(np.mean(after) - np.mean(before))
    assert gain.low > 0.04
    back = paired_bootstrap(after, before)
    assert (back.mean, back.low, back.high) == pytest.approx((-gain.mean, -gain.high, -gain.low), abs=2e-4)


def test_no_change_on_few_problems_is_no_proof_of_no_gain():
    gain = paired_bootstrap([0.0, 1.0] * 15, [0.0, 1.0] * 15, bounds=(-1, 1))
    assert gain.mean == 0
    assert (gain.low, gain.high) == pytest.approx((-0.1157, 0.1157), abs=5e-5)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"N >= 1, got shape \(0,\)"),
        ([[0.0, 1.0]], {}, r"shape \(1, 2\)"),
        ([0.0, float("nan")], {}, r"values\[1\] is nan"),
        ([0.0, 1.0], {"level": 95}, "level must lie between 0 and 1"),
        ([0.0, 1.0], {"resamples": 0}, "resamples must be at least 1"),
        ([0.0, 2.0], {"bounds": (0, 1)}, r"from 0.0 to 2.0, outside the bounds \(0, 1\)"),
    ],
)
def test_refuses_what_has_no_interval(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(values, **options)


def test_refuses_unpaired_problems():
    with pytest.raises(ValueError, match="2 before and 3 after"):
        paired_bootstrap([0, 1], [0, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "least"), [(30, 0.90), (100, 0.925)])
def test_covers_the_truth_about_as_often_as_it_says(problems, least):
    """Problems of Beta(2, 3) difficulty with four samples each; the true mean is 0.4.

    Resampling single samples in place of problems would cover well below this.
    """
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(800):
        difficulty = rng.beta(2, 3, size=problems)
        values = rng.binomial(4, difficulty) / 4
        interval = bootstrap(values, resamples=1000, seed=trial, bounds=(0, 1))
        covered.append(interval.low <= 0.4 <= interval.high)
    assert least <= np.mean(covered) <= 0.98


def test_crossed_bootstrap_covers_seeds_and_problems():
    # Two seeds that differ and problems that do not: only the choice of seeds is left to chance.
    interval = crossed_bootstrap([[0.0] * 50, [1.0] * 50])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    # Seeds that agree: what is left is the bootstrap over problems.
    values = np.random.default_rng(0).random(80)
    crossed = crossed_bootstrap([values, values, values], seed=1)
    plain = bootstrap(values, seed=2)
    assert crossed.mean == pytest.approx(plain.mean)
    assert crossed.low == pytest.approx(plain.low, abs=0.01)
    assert crossed.high == pytest.approx(plain.high, abs=0.01)
    wider = crossed_bootstrap([values, values, values], seed=1, level=0.999)
    assert wider.low < crossed.low < crossed.high < wider.high


def test_seeds_and_problems_that_never_differ_do_not_show_that_none_would():
    crossed = crossed_bootstrap(np.zeros((2, 40)), bounds=(-1, 1))
    assert crossed == bootstrap(np.zeros(40), bounds=(-1, 1))
    assert crossed.high == pytest.approx(1 - 0.025 ** (1 / 40))
    values_SN = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=(3, 20))
    assert crossed_bootstrap(values_SN, bounds=(-1, 1)) == crossed_bootstrap(values_SN)


@pytest.mark.parametrize("values", [[], [0.1, 0.2], [[0.1, float("nan")]]])
def test_crossed_bootstrap_refuses_what_is_no_table(values):
    with pytest.raises(ValueError, match="shape"):
        crossed_bootstrap(values)
