"""Additions worked out column by column: graded problems with visible reasoning, for a model of a million
parameters.

    478+356=?   8+6=14 7+5+1=13 4+3+1=8 \\boxed{834}

The reasoning states one column at a time from the right, the carry as a last summand; the answer repeats its
digits. So the answer hangs on the reasoning, a wrong column can be told from a wrong copy, and the number of
digits grades the difficulty. The problems, their levels and their splits are those of `procedural`; only the
spelling is shorter, for on a CPU every token costs time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from threefold.envs import procedural
from threefold.envs.problems import Problem

LEVELS = ("add1", "add22", "add33", "add44", "add55")
"""The levels of `procedural` that are additions of two numbers of as many digits."""
DEFAULT_MIX: Mapping[str, float] = {"add1": 0.25, "add22": 0.25, "add33": 0.05, "add44": 0.05, "add55": 0.4}
"""Share of each level in training and held-out problems: what the tiny model nearly always solves and what it
hardly ever solves, so that most groups are dead at the start."""


def problems(
    split: procedural.Split, *, seed: int = 0, size: int, mix: Mapping[str, float] | None = None
) -> tuple[Problem, ...]:
    """Additions such as "478+356=?", with the level as `difficulty`; see `procedural.arithmetic`.

    Args:
        split: "train", "validation" or "test".
        seed: Chooses the problems and their order.
        size: Number of problems.
        mix: Weight of each of `LEVELS`. Default: `DEFAULT_MIX`.

    Raises:
        ValueError: As `procedural.arithmetic`, or a level that is not one of `LEVELS`.
    """
    mix = DEFAULT_MIX if mix is None else mix
    for level in mix:
        if level not in LEVELS:
            raise ValueError(f"level {level!r} has no column-wise solution: use {', '.join(LEVELS)}")
    made = procedural.arithmetic(split, seed=seed, size=size, mix=mix)
    return tuple(replace(problem, question=problem.question.replace(" ", "")) for problem in made)


def solution(problem: Problem, *, reasoning: bool = True) -> str:
    """The completion of a model that makes no mistake.

    Args:
        problem: One of `problems`.
        reasoning: Whether the columns are stated before the answer.
    """
    answer = f"\\boxed{{{problem.answer}}}"
    return f"{columns(problem)} {answer}" if reasoning else answer


def columns(problem: Problem) -> str:
    """The sum of each column from the right, its carry as the last summand: "8+6=14 7+5+1=13 4+3+1=8"."""
    first, second = problem.question.removesuffix("=?").split("+")
    steps, carry = [], 0
    for one, other in zip(reversed(first), reversed(second), strict=True):
        summands = [int(one), int(other)] + ([carry] if carry else [])
        steps.append(f"{'+'.join(map(str, summands))}={sum(summands)}")
        carry = sum(summands) // 10
    return " ".join(steps)
