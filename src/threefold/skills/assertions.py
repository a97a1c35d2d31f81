"""Rules that an episode passes or fails: what the creator measures instead of guessing.

ReSkill (arXiv 2606.01619, section 3.2): a rule-based predicate phi_j on a trajectory, its pass rate over the
reservoir R

    r_j = (1 / |R|) sum_{tau in R} phi_j(tau),        failure profile f = [r_1, ..., r_|A|]

A good rule passes on successes and fails on failures, so both rates are kept apart as well.

    action_exists          pattern              some action matches
    action_not_exists      pattern              no action matches
    action_before          first, second        both occur, and `first` occurs before `second` does
    no_consecutive_repeat  prefix?              no two adjacent actions are equal (of those with the prefix)
    final_action           pattern              the last action matches
    min_steps, max_steps   n                    the episode has at least / at most n turns
    action_count           pattern, min?, max?  the number of matching actions lies in [min, max]
    observation_contains   pattern, after_action?   an observation matches; with after_action, from the answer
                                                    to the first action that matches it on

Deviation: the reference release matches the raw text of a turn and the whole prompt; here a rule sees the
parsed action and the environment's own answer. Patterns run in linear time (`triggers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from threefold.skills.triggers import found, pattern_problem
from threefold.trajectory import Turn

CAPACITY = 10
"""Most assertions at a time (the paper's prompt; its code has 15)."""

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Assertion:
    """One rule; values are checked when it is made."""

    name: str
    check: str
    params: Params = field(default_factory=dict)
    description: str = ""
    created_step: int = 0

    def __post_init__(self) -> None:
        if message := assertion_problem(self.check, self.params):
            raise ValueError(f"assertion {self.name!r}: {message}")

    def passes(self, turns: Sequence[Turn]) -> bool:
        """Whether an episode passes."""
        return CHECKS[self.check](turns, self.params)


@dataclass(frozen=True)
class PassRate:
    """How many episodes passed a rule, by their outcome."""

    passed_success: int
    successes: int
    passed_failure: int
    failures: int

    @property
    def rate(self) -> float:
        """Over all episodes; 0 where there are none."""
        return (self.passed_success + self.passed_failure) / max(1, self.successes + self.failures)

    @property
    def gap(self) -> float:
        """Rate on successes less rate on failures: how well the rule tells them apart."""
        return self.passed_success / max(1, self.successes) - self.passed_failure / max(1, self.failures)


def grade(
    assertions: Sequence[Assertion], episodes: Sequence[tuple[Sequence[Turn], bool]]
) -> dict[str, PassRate]:
    """Pass rates of all rules, by name.

    Args:
        assertions: The rules.
        episodes: Turns and success of each episode.
    """
    rates = {}
    for assertion in assertions:
        passed = [(assertion.passes(turns), success) for turns, success in episodes]
        rates[assertion.name] = PassRate(
            passed_success=sum(ok for ok, success in passed if success),
            successes=sum(success for _, success in passed),
            passed_failure=sum(ok for ok, success in passed if not success),
            failures=sum(not success for _, success in passed),
        )
    return rates


def assertion_problem(check: str, params: Params) -> str | None:
    """What is wrong with a rule, None where nothing is."""
    if check not in PARAMETERS:
        return f"unknown check {check!r}; there are {', '.join(PARAMETERS)}"
    needed, optional = PARAMETERS[check]
    if missing := needed - params.keys():
        return f"{check} needs {', '.join(sorted(missing))}"
    if unknown := params.keys() - needed - optional:
        return f"{check} does not take {', '.join(sorted(unknown))}"
    for name, value in params.items():
        if name in ("n", "min", "max"):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                return f"{name} is {value!r}; it must be a whole number of at least 0"
        elif not isinstance(value, str):
            return f"{name} is {value!r}; it must be a text"
        elif name != "prefix" and (message := pattern_problem(value)):
            return message
    return None


def _actions(turns: Sequence[Turn]) -> list[str]:
    return [turn.action for turn in turns]


def _first(pattern: str, actions: Sequence[str]) -> int | None:
    return next((index for index, action in enumerate(actions) if found(pattern, action)), None)


def _before(turns: Sequence[Turn], params: Params) -> bool:
    actions = _actions(turns)
    first, second = _first(params["first"], actions), _first(params["second"], actions)
    return first is not None and second is not None and first < second


def _no_repeat(turns: Sequence[Turn], params: Params) -> bool:
    prefix = params.get("prefix", "").lower()
    actions = [action.lower() for action in _actions(turns)]
    pairs = pairwise(actions)
    return not any(one == two and one.startswith(prefix) for one, two in pairs)


def _count(turns: Sequence[Turn], params: Params) -> bool:
    count = sum(found(params["pattern"], action) for action in _actions(turns))
    return params.get("min", 0) <= count <= params.get("max", len(turns))


def _observation(turns: Sequence[Turn], params: Params) -> bool:
    start: int | None = 0
    if "after_action" in params:
        start = _first(params["after_action"], _actions(turns))
    if start is None:
        return False
    return any(found(params["pattern"], turn.observation) for turn in turns[start:])


CHECKS: Mapping[str, Callable[[Sequence[Turn], Params], bool]] = {
    "action_exists": lambda turns, p: _first(p["pattern"], _actions(turns)) is not None,
    "action_not_exists": lambda turns, p: _first(p["pattern"], _actions(turns)) is None,
    "action_before": _before,
    "no_consecutive_repeat": _no_repeat,
    "final_action": lambda turns, p: bool(turns) and found(p["pattern"], turns[-1].action),
    "min_steps": lambda turns, p: len(turns) >= p["n"],
    "max_steps": lambda turns, p: len(turns) <= p["n"],
    "action_count": _count,
    "observation_contains": _observation,
}
PARAMETERS: Mapping[str, tuple[set[str], set[str]]] = {
    "action_exists": ({"pattern"}, set()),
    "action_not_exists": ({"pattern"}, set()),
    "action_before": ({"first", "second"}, set()),
    "no_consecutive_repeat": (set(), {"prefix"}),
    "final_action": ({"pattern"}, set()),
    "min_steps": ({"n"}, set()),
    "max_steps": ({"n"}, set()),
    "action_count": ({"pattern"}, {"min", "max"}),
    "observation_contains": ({"pattern"}, {"after_action"}),
}
"""Needed and optional parameters of each check."""
