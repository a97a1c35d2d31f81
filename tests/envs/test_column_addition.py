"""Additions column by column: every stated column and the answer are true, and the splits are apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.answers import BOXED
from threefold.envs.column_addition import LEVELS, columns, problems, solution
from threefold.envs.problems import Problem


def test_by_hand():
    problem = Problem("add33:478+356", "478+356=?", "834", "add33")
    assert columns(problem) == "8+6=14 7+5+1=13 4+3+1=8"
    assert solution(problem) == r"8+6=14 7+5+1=13 4+3+1=8 \boxed{834}"
    assert solution(problem, reasoning=False) == r"\boxed{834}"


@settings(deadline=None)
@given(st.sampled_from(["train", "validation", "test"]), st.integers(0, 10**6))
def test_columns_are_true_and_spell_the_answer(split, seed):
    for problem in problems(split, seed=seed, size=10):
        first, second = map(int, problem.question.removesuffix("=?").split("+"))
        assert problem.answer == str(first + second) == BOXED.find(solution(problem)).text
        digits = ""
        for step in columns(problem).split():
            summands, total = step.split("=")
            assert sum(map(int, summands.split("+"))) == int(total)
            digits = total[-1] + digits
        carry = total[:-1]  # what the last column carries is the answer's first digit
        assert carry + digits == problem.answer


def test_every_level_in_its_share_and_no_problem_in_two_splits():
    test = problems("test", size=200)
    assert {p.difficulty for p in test} == set(LEVELS)
    train = {p.id for p in problems("train", size=5000)}
    assert not train & {p.id for p in test}
    assert not train & {p.id for p in problems("validation", size=200)}


def test_a_level_without_columns_is_refused():
    with pytest.raises(ValueError, match="'mul1' has no column-wise solution: use add1"):
        problems("train", size=1, mix={"mul1": 1.0})
