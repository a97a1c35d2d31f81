"""Triggers: when they fire, and that no pattern can hang or blow up a run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.skills.triggers import (
    COMPILED_BYTES,
    PATTERN_LIMIT,
    TEXT_LIMIT,
    Trigger,
    fires,
    found,
    pattern_problem,
    trigger_problem,
)


@pytest.mark.parametrize(
    ("trigger", "turn", "action", "wanted"),
    [
        (Trigger(), 0, "", True),
        (Trigger(), 7, "look", True),
        (Trigger("beginning"), 0, "", True),
        (Trigger("beginning"), 1, "look", False),
        (Trigger("action_pattern", "go to .*"), 1, "Go To drawer 1", True),
        (Trigger("action_pattern", "go to .*"), 1, "open drawer 1", False),
        (Trigger("action_pattern", "drawer"), 1, "go to drawer 1", True),  # a search, not a full match
        (Trigger("action_pattern", ".*"), 0, "", False),  # never before the first action
    ],
)
def test_when_a_trigger_fires(trigger: Trigger, turn: int, action: str, wanted: bool) -> None:
    assert fires(trigger, turn, action) is wanted


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "needs a pattern"),
        ("   ", "needs a pattern"),
        ("x" * (PATTERN_LIMIT + 1), "201 characters"),
        ("a\nb", "one line"),
        ("(?=a)b", "not accepted by RE2"),
        (r"(a)\1", "not accepted by RE2"),
        ("[a", "not accepted by RE2"),
        ("(a{1000}){1000}", "not accepted by RE2"),
    ],
)
def test_bad_patterns_are_refused_in_words(pattern: str, says: str) -> None:
    message = pattern_problem(pattern)
    assert message is not None
    assert says in message
    with pytest.raises(ValueError, match="pattern"):
        Trigger("action_pattern", pattern)


def test_bad_triggers_are_refused() -> None:
    assert "one of general, beginning" in (trigger_problem("sometimes", "") or "")
    assert "takes no pattern" in (trigger_problem("general", "go") or "")
    with pytest.raises(ValueError, match="not accepted by RE2"):
        found("(", "go")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)+$", "(a*)*b$", "(.*a){20}x", "(a+a+)+b"])
def test_catastrophic_patterns_cannot_backtrack(pattern: str) -> None:
    """A backtracking matcher takes more than 2^2000 steps for these: that the call returns is the proof."""
    assert pattern_problem(pattern) is None
    assert not found(
        pattern.removesuffix("$") + "$" if "$" in pattern else pattern, "a" * (TEXT_LIMIT - 1) + "!"
    )


def test_text_beyond_the_bound_is_not_seen() -> None:
    assert found("end", "x" * (TEXT_LIMIT - 3) + "end")
    assert not found("end", "x" * (TEXT_LIMIT - 2) + "end")
    assert COMPILED_BYTES == 2**20


@settings(deadline=None)
@given(st.text(max_size=PATTERN_LIMIT + 5), st.text(max_size=50))
def test_any_text_is_either_refused_or_matched(pattern: str, text: str) -> None:
    if pattern_problem(pattern) is None:
        assert found(pattern, text) in (True, False)
