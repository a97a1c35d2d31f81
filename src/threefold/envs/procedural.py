"""Problems that are made, not stored: graded arithmetic, the default problems that come with Threefold.

Every level is a finite set of sums, differences or products. Which split a problem belongs to is decided by a
hash of the problem itself, so the splits are disjoint for every seed and size, on every machine, for good.
Problems that differ in the order of their operands alone (2 + 3 and 3 + 2) fall into one split.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import math
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from threefold.envs.problems import Problem

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Level:
    """One grade of difficulty: an operator and the range of each operand."""

    sign: str
    operands: tuple[range, ...]
    ordered: bool = False
    """Only operands that do not grow, so that no difference is negative."""

    @property
    def size(self) -> int:
        """Number of combinations of operands, before `ordered` takes some away."""
        return math.prod(map(len, self.operands))


_ONE, _TWO, _THREE, _FOUR, _FIVE = (range(10**digits, 10 ** (digits + 1)) for digits in range(5))
LEVELS: Mapping[str, Level] = {
    "add1": Level("+", (_ONE, _ONE)),
    "mul1": Level("*", (range(2, 10), range(2, 10))),
    "add111": Level("+", (_ONE, _ONE, _ONE)),
    "add21": Level("+", (_TWO, _ONE)),
    "add22": Level("+", (_TWO, _TWO)),
    "sub22": Level("-", (_TWO, _TWO), ordered=True),
    "mul21": Level("*", (_TWO, range(2, 10))),
    "add333": Level("+", (_THREE, _THREE, _THREE)),
    "add33": Level("+", (_THREE, _THREE)),
    "add44": Level("+", (_FOUR, _FOUR)),
    "add55": Level("+", (_FIVE, _FIVE)),
}
"""The levels by name; the digits tell how long the operands are. Names and ranges are part of the public
record."""

DEFAULT_MIX: Mapping[str, float] = {"add1": 0.10, "mul1": 0.10, "add111": 0.20, "add21": 0.25, "add22": 0.35}
"""Share of each level, made for language models of 0.1 to 0.5 billion parameters."""

_TEST_SHARE, _VALIDATION_SHARE = 0.25, 0.10
_ENUMERABLE = 100_000
_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


def arithmetic(
    split: Split, *, seed: int = 0, size: int, mix: Mapping[str, float] | None = None
) -> tuple[Problem, ...]:
    """Arithmetic problems such as "29 + 44 = ?", with the level as `difficulty`.

    Of every level 25 % of the problems belong to the test split, 10 % to validation, the rest to training.

    Test and validation have no repetitions and a fixed composition: each level has its share of `size`
    (largest remainder), and where a level has fewer problems than that, it gives all and the others share the
    rest. For training, level and problem are drawn with replacement; a problem drawn twice keeps its id.

    Args:
        split: "train", "validation" or "test".
        seed: Chooses the problems and their order; the same on every platform and Python version.
        size: Number of problems.
        mix: Weight of each level by its name in `LEVELS`; weights are normalised. Default: `DEFAULT_MIX`.

    Raises:
        ValueError: An unknown split or level, a negative weight, or a test or validation set that is larger
            than the number of different problems.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}: use 'train', 'validation' or 'test'")
    if size < 1:
        raise ValueError(f"size is {size}, but at least one problem is needed")
    shares = _shares(mix)
    if split == "train":
        return tuple(_draw_training(shares, seed, size))
    quotas = _quotas(shares, split, size)
    chosen = [
        problem for level, quota in quotas.items() for problem in _choose(level, split, seed, quota) if quota
    ]
    return tuple(sorted(chosen, key=lambda problem: _hash(f"{seed} {problem.id}")))


def from_reasoning_gym(name: str, *, seed: int, size: int, **config: object) -> tuple[Problem, ...]:
    """Problems of a data set of Reasoning Gym (arXiv 2505.24760), such as "chain_sum".

    Their answers are compared by `threefold.envs.verifier.verify`, so sets in which several answers are
    right, and which therefore come without one, are refused.

    Args:
        name: Name of the data set.
        seed: Seed of the data set.
        size: Number of problems.
        config: The data set's own settings.

    Raises:
        ImportError: Reasoning Gym is not installed.
        ValueError: An unknown data set or setting, or a problem without one right answer in text.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError(
            "problems from Reasoning Gym need its package: pip install reasoning-gym"
        ) from error
    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(map(repr, nearest))}?"
            if nearest
            else f"it has {', '.join(sorted(DATASETS))}"
        )
        raise ValueError(f"Reasoning Gym has no data set {name!r}: {hint}")
    try:
        entries = reasoning_gym.create_dataset(name, seed=seed, size=size, **config)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"Reasoning Gym refuses the settings {config} for {name!r}: {error}") from error
    problems = []
    for index, entry in enumerate(entries):
        answer = entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{name!r}, problem {index + 1}: its answer is {answer!r}, but a text is needed")
        problems.append(Problem(f"{name}-{seed}-{index}", entry["question"], answer, name))
    return tuple(problems)


def _shares(mix: Mapping[str, float] | None) -> dict[str, float]:
    mix = DEFAULT_MIX if mix is None else mix
    for level, weight in mix.items():
        if level not in LEVELS:
            nearest = difflib.get_close_matches(level, LEVELS, n=1, cutoff=0.5)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"unknown level {level!r} in the mix: use {', '.join(LEVELS)}.{hint}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of level {level!r} in the mix is {weight}: use a number from 0 up")
    total = math.fsum(mix.values())
    if total <= 0:
        raise ValueError("the mix has no level with a positive weight")
    return {level: weight / total for level, weight in mix.items() if weight > 0}


def _draw_training(shares: Mapping[str, float], seed: int, size: int) -> Iterator[Problem]:
    # random.random alone is promised to give the same numbers in every version of Python.
    stream = random.Random(f"threefold arithmetic train {seed}")
    levels, bounds = list(shares), list(itertools.accumulate(shares.values()))
    for _ in range(size):
        chance = stream.random()
        name = next(
            (level for level, bound in zip(levels, bounds, strict=True) if chance < bound), levels[-1]
        )
        yield _draw(name, "train", stream)


def _draw(name: str, split: Split, stream: random.Random) -> Problem:
    """One problem of a split of a level, uniformly."""
    level = LEVELS[name]
    if level.size <= _ENUMERABLE:
        pool = _pools(name)[split]
        return pool[int(stream.random() * len(pool))]
    while True:
        operands = tuple(values[int(stream.random() * len(values))] for values in level.operands)
        if _split_at(_position(level, operands)) == split:
            return _problem(name, operands)


def _quotas(shares: Mapping[str, float], split: Split, size: int) -> dict[str, int]:
    available = {name: _available(name, split) for name in shares}
    if size > sum(available.values()):
        raise ValueError(
            f"a {split} set of {size} problems was asked for, but the levels {', '.join(shares)} have "
            f"{sum(available.values())} different ones: give a smaller size or more levels"
        )
    quotas: dict[str, int] = {}
    open_levels = dict(shares)
    while open_levels:
        asked = _largest_remainder(open_levels, size - sum(quotas.values()))
        short = [name for name, count in asked.items() if count > available[name]]
        if not short:
            return quotas | asked
        for name in short:
            quotas[name] = available[name]
            del open_levels[name]
    return quotas


def _largest_remainder(shares: Mapping[str, float], size: int) -> dict[str, int]:
    total = math.fsum(shares.values())
    exact = {name: size * share / total for name, share in shares.items()}
    counts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: size - sum(counts.values())]:
        counts[name] += 1
    return counts


def _available(name: str, split: Split) -> int:
    """Number of different problems of a split; for a level too large to list, far fewer."""
    level = LEVELS[name]
    return len(_pools(name)[split]) if level.size <= _ENUMERABLE else level.size // 100


def _choose(name: str, split: Split, seed: int, count: int) -> list[Problem]:
    """`count` different problems of a split of a level, by seed."""
    if LEVELS[name].size <= _ENUMERABLE:
        return sorted(_pools(name)[split], key=lambda problem: _hash(f"{seed} {problem.id}"))[:count]
    stream = random.Random(f"threefold arithmetic {split} {name} {seed}")
    chosen: dict[str, Problem] = {}
    while len(chosen) < count:
        problem = _draw(name, split, stream)
        chosen[problem.id] = problem
    return list(chosen.values())


@functools.cache
def _pools(name: str) -> dict[Split, tuple[Problem, ...]]:
    """All problems of a level by split.

    They are ranked by hash and cut at the shares, not cut by the hash's value: with only 36 different
    products in "mul1", chance would leave the splits far from their shares.
    """
    level = LEVELS[name]
    allowed = [operands for operands in itertools.product(*level.operands) if _is_allowed(level, operands)]
    allowed.sort(key=lambda operands: (_position(level, operands), operands))
    pools: dict[Split, list[Problem]] = {"train": [], "validation": [], "test": []}
    seen, split = -1.0, _split_at(0.0)
    for index, operands in enumerate(allowed):
        if (position := _position(level, operands)) != seen:  # a commuted twin stays with its twin
            seen, split = position, _split_at(index / len(allowed))
        pools[split].append(_problem(name, operands))
    return {split: tuple(pool) for split, pool in pools.items()}


def _is_allowed(level: Level, operands: tuple[int, ...]) -> bool:
    return not level.ordered or all(a >= b for a, b in itertools.pairwise(operands))


def _position(level: Level, operands: tuple[int, ...]) -> float:
    """A hash of the problem in [0, 1), the same for commuted operands (differences are sorted)."""
    return _hash(f" {level.sign} ".join(map(str, sorted(operands, reverse=True)))) / 2**64


def _split_at(position: float) -> Split:
    if position < _TEST_SHARE:
        return "test"
    return "validation" if position < _TEST_SHARE + _VALIDATION_SHARE else "train"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _problem(name: str, operands: tuple[int, ...]) -> Problem:
    level = LEVELS[name]
    expression = f" {level.sign} ".join(map(str, operands))
    answer = operands[0]
    for operand in operands[1:]:
        answer = _OPERATORS[level.sign](answer, operand)
    return Problem(f"{name}:{expression.replace(' ', '')}", f"{expression} = ?", str(answer), name)
