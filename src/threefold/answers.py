r"""Where a completion stops thinking and states its answer.

A credit method that weighs reasoning against answer, a verifier and a report all have to cut the same text at
the same place, so the cut is made here once, in characters: everything before `lead_start` is thinking, then
comes the lead-in (such as `\boxed{`), then the answer itself.

The last statement of an answer counts. If that one is empty or was never closed, there is no answer: a model
that takes back an answer and is cut off while it writes a new one has not answered.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

SEARCH_CHARS = 4000
"""Custom patterns and "The final answer is" are looked for in the last so many characters of a text only: an
answer stands at the end, and the bound keeps a pattern that backtracks from stopping a training run."""


@dataclass(frozen=True)
class AnswerSpan:
    """Character offsets of an answer, `lead_start <= start < end`."""

    lead_start: int
    """First character of the lead-in; everything before it is thinking."""
    start: int
    """First character of the answer: [lead_start, start) is the lead-in."""
    end: int
    """One past the last character of the answer."""
    text: str
    """The answer, free of white space at both ends: the characters [start, end)."""


@dataclass(frozen=True)
class AnswerFormat:
    """How a model is asked to state its answer, and how that answer is found again. Picklable."""

    name: str
    instruction: str
    """One sentence for the prompt."""
    finder: Callable[[str], AnswerSpan | None]
    template: str | None = None
    """A sentence that states an answer, with `{answer}` where it goes; None where only a pattern is known,
    which nobody can write from."""

    def find(self, text: str) -> AnswerSpan | None:
        """The last answer that the text states, or None. Takes time linear in the length of the text."""
        return self.finder(text)

    def state(self, answer: str) -> str:
        """The sentence that states `answer` in this format, for worked examples.

        Raises:
            ValueError: The format was made from a pattern without a template.
        """
        if self.template is None:
            raise ValueError(
                f"the answer format {self.name!r} has no template, so no example can be written in it: "
                "give AnswerFormat.from_pattern a template such as '#### {answer}'"
            )
        return self.template.replace("{answer}", answer)

    @staticmethod
    def from_pattern(
        regex: str, *, instruction: str | None = None, template: str | None = None
    ) -> AnswerFormat:
        """A format from a regular expression whose group `answer`, or else group 1, is the answer.

        The pattern is matched with `.` stopping at line ends, in the last `SEARCH_CHARS` characters of a
        text; the last match counts, and what it matched before the group is the lead-in.

        Args:
            regex: The expression. One that could need exponential time (a repetition without bound around
                another one or around alternatives) is refused.
            instruction: Sentence for the prompt. Default: derived from the template, or else the pattern.
            template: A sentence that states an answer, with `{answer}` in it; the pattern has to find the
                answer there.

        Raises:
            ValueError: The expression is invalid, has no group or may not end, or does not fit the template.
        """
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise ValueError(
                f"the answer pattern {regex!r} is not a valid regular expression: {error}"
            ) from error
        if pattern.groups == 0:
            raise ValueError(
                f"the answer pattern {regex!r} has no group: put parentheses around the answer, "
                "such as '#### (.+)'"
            )
        if (column := _runaway_repetition(regex)) is not None:
            raise ValueError(
                f"the answer pattern {regex!r} may take exponential time: the repetition at character "
                f"{column} encloses another repetition or alternatives; write it flat, such as '[0-9,]+' "
                "for '([0-9]+,?)+'"
            )
        made = AnswerFormat(
            name=f"pattern {regex}",
            instruction=instruction
            or f"State the answer as {(template or regex).replace('{answer}', '...')}",
            finder=functools.partial(_find_pattern, pattern),
            template=template,
        )
        if template is not None:
            stated = made.state("12")
            found = made.find(stated)
            if found is None or found.text != "12":
                raise ValueError(
                    f"the template {template!r} and the pattern {regex!r} do not fit: in {stated!r} "
                    f"the pattern finds {found.text if found else 'no answer'!r} instead of '12'"
                )
        return made


def answer_format(name_or_pattern: str) -> AnswerFormat:
    """The built-in format of this name, or a custom one where the text is a regular expression with a group.

    Raises:
        ValueError: Neither a known name nor a usable pattern.
    """
    if name_or_pattern in BUILT_IN:
        return BUILT_IN[name_or_pattern]
    if "(" in name_or_pattern:
        return AnswerFormat.from_pattern(name_or_pattern)
    nearest = difflib.get_close_matches(name_or_pattern.lower(), BUILT_IN, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(
        f"unknown answer format {name_or_pattern!r}: use one of {', '.join(map(repr, BUILT_IN))}, "
        f"or a regular expression with a group around the answer, such as '#### (.+)'.{hint}"
    )


_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]}.]) (?P<minus>[-−]) )?  # after a word or a bracket it is a subtraction or a hyphen
    (?: [$€£] )?
    (?:
        \\[dt]?frac \{ (?P<top>-?\d+) \} \{ (?P<bottom>\d+) \}
      | (?P<number> \d{1,3} (?:,\d{3})+ (?!\d) (?:\.\d+)? | \d+ (?:\.\d+)? | (?<!\d)\.\d+ ) (?P<over> /\d+ )?
    )
    """,
    re.VERBOSE,
)


def last_number(text: str) -> str | None:
    r"""The last number in a text, without thousands separators, or None.

    `1,234.50` gives "1234.50", `x = -5` "-5", `7-5` "5" (a subtraction), `3/4` and `\frac{3}{4}` "3/4", `42.`
    "42". Linear in the length of the text.
    """
    last = _last_match(_NUMBER, text)
    if last is None:
        return None
    minus = "-" if last["minus"] else ""
    if last["top"]:
        value = f"{last['top']}/{last['bottom']}"
        return value[1:] if minus and value.startswith("-") else minus + value
    number = last["number"].replace(",", "")
    return minus + ("0" if number.startswith(".") else "") + number + (last["over"] or "")


def _last_match(pattern: re.Pattern[str], text: str, offset: int = 0) -> re.Match[str] | None:
    matches = deque(pattern.finditer(text, offset), maxlen=1)
    return matches[0] if matches else None


def _span(text: str, lead_start: int, start: int, end: int) -> AnswerSpan | None:
    """The span without white space around the answer, which goes to the lead-in; None where nothing is
    left."""
    answer = text[start:end]
    stripped = answer.strip()
    if not stripped:
        return None
    start += len(answer) - len(answer.lstrip())
    return AnswerSpan(lead_start, start, start + len(stripped), stripped)


_BOXED_OPEN = re.compile(r"\\boxed[ \t]?\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def _find_boxed(text: str) -> AnswerSpan | None:
    lead = _last_match(_BOXED_OPEN, text)
    if lead is None:
        return None
    depth = 1
    # An escaped brace, as in \{1, 2\}, is a character of the answer and opens nothing.
    for token in _BRACE.finditer(text, lead.end()):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return _span(text, lead.start(), lead.end(), token.start())
    return None


def _find_tags(text: str) -> AnswerSpan | None:
    lead_start = text.rfind("<answer>")
    if lead_start < 0:
        return None
    start = lead_start + len("<answer>")
    end = text.find("</answer>", start)
    return _span(text, lead_start, start, end) if end >= 0 else None


_FINAL_LEAD = re.compile(
    r"(?:\bthe[ \t]{1,3})?\bfinal[ \t]{1,3}answer\*{0,2}(?:[ \t]{0,3}is\b:?|[ \t]{0,3}:)[ \t*]*\n?[ \t]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s)")


def _find_final_answer(text: str) -> AnswerSpan | None:
    lead = _last_match(_FINAL_LEAD, text, max(0, len(text) - SEARCH_CHARS))
    if lead is None:
        return None
    stop = _SENTENCE_END.search(text, lead.end())
    end = stop.start() if stop else len(text)
    while end > lead.end() and text[end - 1] in ".!?* \t\r":
        end -= 1
    return _span(text, lead.start(), lead.end(), end)


def _find_pattern(pattern: re.Pattern[str], text: str) -> AnswerSpan | None:
    last = _last_match(pattern, text, max(0, len(text) - SEARCH_CHARS))
    if last is None:
        return None
    start, end = last.span("answer" if "answer" in pattern.groupindex else 1)
    return _span(text, last.start(), start, end) if start >= 0 else None


_REGEX_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()|]|(?:[*+]|\{\d*,\})\+?\??|.", re.DOTALL)


def _runaway_repetition(regex: str) -> int | None:
    """Position of a repetition without bound whose body has another one or alternatives, or None."""
    risky = [False]  # one entry per open group: would it be dangerous to repeat it?
    closed_risky = False  # the same for the group that the token before this one closed
    for token in _REGEX_TOKEN.finditer(regex):
        text = token[0]
        repeats = text[0] in "*+" or (text[0] == "{" and "," in text and len(text) > 1)
        if text == "(":
            risky.append(False)
        elif text == ")":
            inner = risky.pop()
            risky[-1] |= inner
            closed_risky = inner
            continue
        elif text == "|":
            risky[-1] = True
        elif repeats:
            if closed_risky:
                return token.start()
            risky[-1] = True
        closed_risky = False
    return None


BOXED = AnswerFormat("boxed", r"Put the answer in \boxed{}.", _find_boxed, r"The answer is \boxed{{answer}}.")
TAGS = AnswerFormat("tags", "Put the answer in <answer></answer>.", _find_tags, "<answer>{answer}</answer>")
FINAL_ANSWER = AnswerFormat(
    "final-answer",
    'End with "The final answer is" and the answer.',
    _find_final_answer,
    "The final answer is {answer}.",
)
BUILT_IN = {made.name: made for made in (BOXED, TAGS, FINAL_ANSWER)}
"""The formats that have a name."""
