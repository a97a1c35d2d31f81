"""pass@k against its definition: the share of subsets of k samples that hold a correct one."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.evaluation.pass_at_k import avg_at_k, pass_at_k

counts = st.integers(1, 40).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)),
)


def test_by_hand():
    # Four samples, one correct: of the six pairs three hold it.
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    # Four samples, two correct: only one of the six pairs holds neither.
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    # Three wrong samples cannot fill four places.
    assert pass_at_k(5, 2, 4) == 1.0
    assert pass_at_k(5, 0, 5) == 0.0


def test_counts_the_subsets_themselves():
    for n, c, k in [(6, 2, 3), (7, 1, 4), (5, 4, 1), (6, 6, 6)]:
        right = [i < c for i in range(n)]
        hits = [any(subset) for subset in combinations(right, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(hits) / len(hits))


@given(counts)
def test_equals_the_binomial_form(case):
    n, c, k = case
    assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-12)


@given(counts)
def test_a_single_try_is_the_average_and_more_tries_never_hurt(case):
    n, c, k = case
    assert pass_at_k(n, c, 1) == pytest.approx(avg_at_k(n, c))
    assert pass_at_k(n, c, k) >= pass_at_k(n, c, 1) - 1e-12


def test_is_unbiased_over_the_draw_of_samples():
    """Averaged over binomial counts of correct samples it gives 1 - (1 - p)^k exactly, for every n >= k."""
    p, k = 0.3, 4
    for n in (4, 9, 16):
        c = np.arange(n + 1)
        weight = np.array([comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
        assert np.sum(weight * pass_at_k(n, c, k)) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_vectorises_over_problems_with_their_own_counts():
    values = pass_at_k([4, 4, 5, 8], [0, 1, 2, 8], 2)
    assert values.shape == (4,)
    assert values == pytest.approx([0.0, 0.5, 0.7, 1.0])
    assert avg_at_k([4, 8], [1, 8]) == pytest.approx([0.25, 1.0])


def test_is_stable_where_binomials_overflow():
    value = pass_at_k(100_000, 3, 1_000)
    assert value == pytest.approx(1 - (1 - 0.01) ** 3, rel=1e-3)
    assert 0 <= value <= 1


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        ([4, 2], [1, 1], 3, r"pass@3 needs at least 3 samples of every problem, problem 1 has 2"),
        ([4, 4], [1, 5], 1, r"problem 1 has c = 5, n = 4"),
        (4, -1, 1, r"cannot be negative, this one has c = -1"),
        (0, 0, 1, r"at least one sample"),
        (4, 1, 0, r"k must be at least 1, got 0"),
    ],
)
def test_refuses_impossible_counts(n, c, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


def test_refuses_rates_in_place_of_counts():
    with pytest.raises(TypeError, match="c counts samples"):
        pass_at_k(4, 0.5, 1)
    with pytest.raises(TypeError, match="k counts samples"):
        pass_at_k(4, 1, 1.5)
