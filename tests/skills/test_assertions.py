"""The nine rules, on parsed actions and the environment's own answers."""

from __future__ import annotations

from typing import Any

import pytest

from threefold.skills.assertions import CHECKS, PARAMETERS, Assertion, assertion_problem, grade
from threefold.trajectory import Turn

EPISODE = [
    Turn("I would rather open it. <action>look</action>", "look", "A locked box."),
    Turn("...", "Take Key", "You have the key."),
    Turn("...", "open box", "A ring."),
    Turn("...", "open box", "It is open already."),
]


@pytest.mark.parametrize(
    ("check", "params", "wanted"),
    [
        ("action_exists", {"pattern": "take .*"}, True),
        ("action_exists", {"pattern": "rather"}, False),  # said, not done
        ("action_not_exists", {"pattern": "ask"}, True),
        ("action_not_exists", {"pattern": "look"}, False),
        ("action_before", {"first": "key", "second": "open"}, True),
        ("action_before", {"first": "open", "second": "key"}, False),
        ("action_before", {"first": "ask", "second": "open"}, False),  # both must occur
        ("no_consecutive_repeat", {}, False),
        ("no_consecutive_repeat", {"prefix": "look"}, True),
        ("no_consecutive_repeat", {"prefix": "OPEN"}, False),
        ("final_action", {"pattern": "open"}, True),
        ("final_action", {"pattern": "look"}, False),
        ("min_steps", {"n": 4}, True),
        ("min_steps", {"n": 5}, False),
        ("max_steps", {"n": 4}, True),
        ("max_steps", {"n": 3}, False),
        ("action_count", {"pattern": "open", "min": 2, "max": 2}, True),
        ("action_count", {"pattern": "open", "max": 1}, False),
        ("observation_contains", {"pattern": "locked"}, True),
        ("observation_contains", {"pattern": "locked", "after_action": "key"}, False),
        ("observation_contains", {"pattern": "have the key", "after_action": "key"}, True),
        ("observation_contains", {"pattern": "ring", "after_action": "ask"}, False),
    ],
)
def test_each_rule(check: str, params: dict[str, Any], wanted: bool) -> None:
    assert Assertion("a", check, params).passes(EPISODE) is wanted


def test_there_are_nine_rules() -> None:
    assert len(CHECKS) == 9
    assert CHECKS.keys() == PARAMETERS.keys()


def test_an_empty_episode_fails_what_asks_for_something() -> None:
    passed = {
        check
        for check, params in {
            "action_exists": {"pattern": "x"},
            "final_action": {"pattern": "x"},
            "observation_contains": {"pattern": "x"},
            "action_before": {"first": "x", "second": "y"},
            "min_steps": {"n": 1},
        }.items()
        if Assertion("a", check, params).passes([])
    }
    assert not passed


def test_pass_rates_are_kept_by_outcome() -> None:
    other = [Turn("", "open box", "The lock breaks.")]
    rates = grade([Assertion("key", "action_exists", {"pattern": "key"})], [(EPISODE, True), (other, False)])
    assert (rates["key"].rate, rates["key"].gap) == (0.5, 1.0)
    assert grade([Assertion("key", "min_steps", {"n": 0})], [])["key"].rate == 0


@pytest.mark.parametrize(
    ("check", "params", "says"),
    [
        ("action_maybe", {}, "unknown check 'action_maybe'; there are action_exists"),
        ("action_before", {"first": "a"}, "needs second"),
        ("max_steps", {"n": 1, "m": 2}, "does not take m"),
        ("max_steps", {"n": -1}, "whole number"),
        ("max_steps", {"n": True}, "whole number"),
        ("action_exists", {"pattern": 3}, "must be a text"),
        ("action_exists", {"pattern": "(?=x)"}, "not accepted by RE2"),
    ],
)
def test_rules_that_are_none_are_refused(check: str, params: dict[str, Any], says: str) -> None:
    assert says in (assertion_problem(check, params) or "")
    with pytest.raises(ValueError, match="assertion 'a'"):
        Assertion("a", check, params)
