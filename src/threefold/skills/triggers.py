"""When a skill enters the prompt: always, at the beginning, or after an action that matches a pattern.

ReSkill (arXiv 2606.01619, section 3.2): with a_{t-1} the *parsed* previous action,

    fires(general, t)        = 1
    fires(beginning, t)      = 1[t = 0]
    fires(action_pattern, t) = 1[pattern is found in a_{t-1}], case ignored, never at t = 0

A pattern is searched, not matched as a whole. Patterns are written by a language model and evaluated at every
turn of every episode, so they run on RE2: time linear in the text and memory bounded for every pattern it
accepts. `(a+)+$` is harmless; look-around and back-references do not exist and are refused with a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import re2

Kind = Literal["general", "beginning", "action_pattern"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PATTERN_LIMIT = 200
"""Characters of a pattern."""
TEXT_LIMIT = 2_000
"""Characters of an action or an observation that a pattern sees; the rest is ignored."""
COMPILED_BYTES = 1 << 20
"""Memory that RE2 may use for one compiled pattern."""


@dataclass(frozen=True)
class Trigger:
    """When a skill is shown. `pattern` counts for "action_pattern" alone and is empty otherwise."""

    kind: Kind = "general"
    pattern: str = ""

    def __post_init__(self) -> None:
        if message := trigger_problem(self.kind, self.pattern):
            raise ValueError(message)


def trigger_problem(kind: str, pattern: str) -> str | None:
    """What is wrong with a trigger, None where nothing is."""
    if kind not in KINDS:
        return f"unknown trigger {kind!r}; a skill is triggered by one of {', '.join(KINDS)}"
    if kind == "action_pattern":
        return pattern_problem(pattern)
    if pattern:
        return f"a {kind} trigger takes no pattern, got {pattern!r}; use action_pattern or leave it out"
    return None


def pattern_problem(pattern: str) -> str | None:
    """What is wrong with a pattern, None where nothing is."""
    if not pattern.strip():
        return "an action_pattern trigger needs a pattern, such as 'go to .*'"
    if len(pattern) > PATTERN_LIMIT:
        return f"the pattern has {len(pattern)} characters, at most {PATTERN_LIMIT} are allowed"
    if not pattern.isprintable():
        return f"the pattern {pattern!r} holds characters that cannot be printed; write it on one line"
    try:
        _compiled(pattern)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        return (
            f"the pattern {pattern!r} is not accepted by RE2: {reason}; look-around and back-references do "
            "not exist there, and repetitions are bounded by 1000"
        )
    return None


def found(pattern: str, text: str) -> bool:
    """Whether the pattern occurs in the text, case ignored; linear in the text for every pattern.

    Raises:
        ValueError: The pattern is not valid (see `pattern_problem`).
    """
    try:
        return _compiled(pattern).search(text[:TEXT_LIMIT]) is not None
    except re2.error:
        raise ValueError(pattern_problem(pattern)) from None


def fires(trigger: Trigger, turn: int, previous_action: str) -> bool:
    """Whether a skill with this trigger is shown before the agent's turn `turn` (0 is the first)."""
    if trigger.kind == "general":
        return True
    if trigger.kind == "beginning" or turn == 0:
        return trigger.kind == "beginning" and turn == 0
    return found(trigger.pattern, previous_action)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = COMPILED_BYTES
    return re2.compile(pattern, options)
