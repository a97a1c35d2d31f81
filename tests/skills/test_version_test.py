"""The test of a bank version: golden values worked out from the formulas, exactness, resume."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.skills.beta import log_beta, probability_greater
from threefold.skills.version_test import (
    MemoryEstimate,
    VersionTest,
    discount,
    estimate_memory,
    log_beta_binomial,
)

STEPS = [(40, 64), (70, 100), (5, 13)]
TEST_1 = {
    "new": [(30, 64), (36, 64), (45, 70), (50, 72), (60, 80)],
    "old": [(31, 64), (33, 64), (35, 58), (36, 56), (32, 48)],
}
TEST_2 = {
    "new": [(20, 40), (30, 50), (28, 40), (44, 60), (52, 66)],
    "old": [(50, 88), (45, 78), (60, 88), (48, 68), (46, 62)],
}


def closed_sum(a: float, b: float, c: float, d: int) -> float:
    """Pr(Beta(a, b) > Beta(c, d)) for a whole d, where it is a finite sum of positive terms:

    sum_{j<d} Gamma(c + j) B(a + c, b + j) / (Gamma(c) j! B(a, b)).
    """
    return math.fsum(
        math.exp(
            math.lgamma(c + j) - math.lgamma(c) - math.lgamma(j + 1) + log_beta(a + c, b + j) - log_beta(a, b)
        )
        for j in range(d)
    )


def exact(a: int, b: int, c: int, d: int) -> Fraction:
    """The same for whole numbers, in exact arithmetic."""

    def beta(x: int, y: int) -> Fraction:
        return Fraction(math.factorial(x - 1) * math.factorial(y - 1), math.factorial(x + y - 1))

    return sum(
        (Fraction(math.comb(c + j - 1, j)) * beta(a + c, b + j) / beta(a, b) for j in range(d)),
        Fraction(0),
    )


@pytest.mark.parametrize(
    ("arms", "wanted"),
    [
        ((3, 2, 2, 3), 0.757142857),
        ((41, 25, 36, 30), 0.813193020),
        ((60, 20, 40, 40), 0.999536603),
        ((7.5, 2.25, 7.5, 2.25), 0.5),
    ],
)
def test_golden_probabilities(arms: tuple[float, float, float, float], wanted: float) -> None:
    assert probability_greater(*arms) == pytest.approx(wanted, abs=1e-9)


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 4))
def test_whole_parameters_agree_with_exact_arithmetic(arms: tuple[int, int, int, int]) -> None:
    assert abs(probability_greater(*arms) - float(exact(*arms))) < 1e-12


sizes = st.floats(-6, 4).map(lambda power: 10.0**power)


@settings(deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 300))
def test_real_parameters_agree_with_the_closed_sum(a: float, b: float, c: float, d: int) -> None:
    assert abs(probability_greater(a, b, c, d) - closed_sum(a, b, c, d)) < 1e-10


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, sizes, sizes)
def test_symmetries(a: float, b: float, c: float, d: float) -> None:
    p = probability_greater(a, b, c, d)
    assert 0 <= p <= 1
    assert p + probability_greater(c, d, a, b) == pytest.approx(1, abs=1e-10)
    assert p == pytest.approx(probability_greater(d, c, b, a), abs=1e-10)  # 1 - X and 1 - Y


def test_large_counts_stay_exact() -> None:
    assert probability_greater(29780.0, 10620.0, 29600.0, 10500) == pytest.approx(
        closed_sum(29780.0, 10620.0, 29600.0, 10500), abs=1e-9
    )


def test_golden_discount() -> None:
    assert [round(discount(n, 76), 6) for _, n in STEPS] == [0.542857, 0.431818, 0.853933]
    assert discount(0, 76) == 1
    assert discount(64, math.inf) == 1
    assert discount(76, 76) == 0.5


@pytest.mark.parametrize(
    ("memory", "arms", "means"),
    [
        (
            76,
            [(40.542857, 24.542857), (87.507143, 40.598052), (79.725201, 42.667999)],
            [0.622915, 0.683088, 0.651386],
        ),
        (math.inf, [(41, 25), (111, 55), (116, 63)], [0.621212, 0.668675, 0.648045]),
    ],
)
def test_golden_posteriors(memory: float, arms: list[tuple[float, float]], means: list[float]) -> None:
    test = VersionTest(memory=memory)
    for step, arm, mean in zip(STEPS, arms, means, strict=True):
        test.record(new=step, old=(0, 0))
        assert (test.new.alpha, test.new.beta) == pytest.approx(arm, abs=5e-7)
        assert test.new.mean == pytest.approx(mean, abs=5e-7)
        assert (test.old.alpha, test.old.beta) == (1, 1)  # an arm without episodes keeps its past


def test_golden_beta_binomial() -> None:
    assert log_beta_binomial(40, 64, 76 / 140, 76 / 140) == pytest.approx(-4.533386151, abs=1e-9)
    assert sum(math.exp(log_beta_binomial(k, 9, 0.3, 2.2)) for k in range(10)) == pytest.approx(1)


def test_golden_memory() -> None:
    estimate = MemoryEstimate()
    estimate.add(TEST_1)
    assert estimate.memory == math.inf  # one test is not enough
    estimate.add(TEST_2)
    assert estimate.memory == estimate_memory([TEST_1, TEST_2]) == 51
    found = {m: estimate.log_likelihood[m - 1] for m in (51, 1, 76, 2000)}
    wanted = {51: -68.08674, 1: -102.84799, 76: -68.47157, 2000: -75.18853}
    assert found == pytest.approx(wanted, abs=5e-6)
    assert estimate_memory([]) == math.inf


def test_probability_is_bare_and_the_clamp_acts_in_the_assignment() -> None:
    test = VersionTest(clamp=0.2)
    test.record(new=(60, 60), old=(0, 60))
    assert test.probability_new() > 1 - 1e-12
    new_B = test.assign(np.random.default_rng(0), 20_000)
    assert new_B.dtype == bool
    assert abs(new_B.mean() - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 20_000)
    assert VersionTest().probability_new() == 0.5
    uniform = VersionTest(clamp=0.5)
    uniform.record(new=(60, 60), old=(0, 60))
    assert abs(uniform.assign(np.random.default_rng(0), 20_000).mean() - 0.5) < 0.015


def test_independent_draws_ignore_groups_and_balanced_ones_share_them() -> None:
    test = VersionTest()
    test.record(new=(12, 20), old=(10, 20))
    p = test.probability_new()
    group_B = np.repeat(np.arange(500), 8)
    new_B = test.assign(np.random.default_rng(1), 4000, group_B)
    counts = np.bincount(group_B[new_B], minlength=500)
    assert set(counts) == {math.floor(8 * p), math.ceil(8 * p)}
    assert abs(counts.mean() - 8 * p) < 0.1  # rounding by chance keeps each episode's probability
    assert set(np.bincount(group_B[test.assign(np.random.default_rng(1), 4000)])) > set(counts)
    first_members = new_B[::8].mean()
    assert abs(first_members - p) < 0.1  # and the place in the group does not matter
    with pytest.raises(ValueError, match="one group for each of 3 episodes"):
        test.assign(np.random.default_rng(0), 3, [0, 1])


def test_groups_of_any_size_and_order_are_balanced() -> None:
    test = VersionTest(clamp=0.5)
    groups = [7, 3, 7, 3, 7, 7, 5]
    new_B = test.assign(np.random.default_rng(3), 7, groups)
    assert sum(new_B[i] for i in range(7) if groups[i] == 7) == 2
    assert sum(new_B[i] for i in range(7) if groups[i] == 3) == 1


def test_a_decision_needs_steps_and_episodes() -> None:
    test = VersionTest(min_steps=2, min_episodes=50)
    test.record(new=(20, 24), old=(10, 25))
    assert test.decide() is None  # one step
    test.record(new=(0, 0), old=(0, 0))
    assert test.decide() is None  # 49 episodes
    test.record(new=(1, 1), old=(0, 0))
    assert test.decide() == "accept"


def test_equal_means_reject_and_options_are_stricter() -> None:
    def run(**options: float) -> str | None:
        test = VersionTest(min_steps=1, **options)  # type: ignore[arg-type]
        test.record(new=(30, 50), old=(27, 50))
        return test.decide()

    assert run() == "accept"
    assert run(margin=0.05) == "accept"
    assert run(margin=0.06) == "reject"  # means are 31/52 and 28/52: 0.0577 apart
    assert run(confidence=0.72) == "accept"
    assert run(confidence=0.73) == "reject"  # Pr(p_new > p_old) = 0.7247
    same = VersionTest(min_steps=1)
    same.record(new=(25, 50), old=(25, 50))
    assert same.decide() == "reject"


def test_a_test_goes_on_from_its_json_to_the_last_bit() -> None:
    whole = VersionTest(memory=51, margin=0.01, confidence=0.6)
    halves = VersionTest(memory=51, margin=0.01, confidence=0.6)
    for index, (new, old) in enumerate(zip(TEST_1["new"], TEST_1["old"], strict=True)):
        whole.record(new=new, old=old)
        halves.record(new=new, old=old)
        if index == 2:
            halves = VersionTest.from_dict(json.loads(json.dumps(halves.to_dict(), allow_nan=False)))
    assert halves.to_dict() == whole.to_dict()
    assert halves.probability_new() == whole.probability_new()
    assert halves.decide() == whole.decide()
    seeds = (np.random.default_rng(5), np.random.default_rng(5))
    assert (halves.assign(seeds[0], 64) == whole.assign(seeds[1], 64)).all()
    assert VersionTest.from_dict(VersionTest().to_dict()).memory == math.inf


@pytest.mark.parametrize(
    "options",
    [
        {"memory": 0},
        {"memory": math.nan},
        {"clamp": 0.6},
        {"clamp": -0.1},
        {"min_steps": 0},
        {"min_episodes": -1},
        {"margin": 1},
        {"confidence": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        VersionTest(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("successes", [0, 64])
def test_a_test_without_any_success_or_failure_never_breaks(successes: int) -> None:
    """With a short memory the parameter that is never fed fades by 1/65 a step."""
    test = VersionTest(memory=1, min_steps=300)
    for _ in range(300):
        test.record(new=(successes, 64), old=(successes, 64))
        assert test.probability_new() == 0.5
    assert test.decide() == "reject"
    test.record(new=(32, 64), old=(successes, 64))
    assert abs(test.probability_new() - (0.0 if successes else 1.0)) < 1e-4


def test_impossible_counts_are_refused() -> None:
    test = VersionTest()
    with pytest.raises(ValueError, match="the new arm has 3 successes in 2 episodes"):
        test.record(new=(3, 2), old=(0, 0))
    with pytest.raises(ValueError, match=r"1\.5 successes in 2 episodes: count whole ones"):
        test.record(new=(1, 1), old=(1.5, 2))  # type: ignore[arg-type]
    assert test.steps == []
    assert (test.new.mean, test.old.mean) == (0.5, 0.5)
    with pytest.raises(ValueError, match="the old arm has 3 successes in 2 episodes"):
        estimate_memory([{"new": [(1, 2)], "old": [(1, 2), (3, 2)]}])
    with pytest.raises(ValueError, match="must not be negative"):
        discount(-1, 76)
    with pytest.raises(ValueError, match="positive and finite"):
        probability_greater(0, 1, 1, 1)
