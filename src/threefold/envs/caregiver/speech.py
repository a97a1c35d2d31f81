"""How the patient of rules puts things: lines by conflict, care task and tier, in the manner of the subtype.

The lines are `speech.yaml`. The manners imitate, coarsely, the speech that the DemMA generator describes for
each subtype (section "speech" of `subtypes`): they change the wording, never the labels.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

import yaml

from threefold.envs.caregiver.dialogue import Scenario

Item = TypeVar("Item")

_PERSON = re.compile(
    r"\bmy (?:husband|wife|mother|father|brother|sister|daughter|son|mum|mom|dad|parents|friend|dog|cat)\b",
    re.I,
)
_PLACE = re.compile(
    r"\b(?:my own house|the farm|the house on [A-Z]\w+ Street|my flat by the \w+|my mother's house|home)\b"
)
_ERRAND = re.compile(
    r"\bthe (?:bank|school|bakery|workshop|post office|hospital ward|office|factory|church)\b"
)


def pick(stream: random.Random, items: Sequence[Item]) -> Item:
    """One item, uniformly. Uses `random()` alone, which gives the same numbers in every version of Python."""
    return items[int(stream.random() * len(items))]


@functools.cache
def lines() -> Mapping[str, Any]:
    """The lines of `speech.yaml`."""
    file = resources.files("threefold.envs.caregiver") / "speech.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def line(stream: random.Random, scenario: Scenario, section: str, *keys: str | int) -> str:
    """A line of a section, its slots filled from the scenario's opening."""
    options: Any = lines()[section]
    for key in keys:
        options = options[key]
    return sentence_case(pick(stream, options).format(**slots(scenario)))


def slots(scenario: Scenario) -> dict[str, str]:
    """Person, place and errand that the opening speaks of, with neutral words where it names none."""
    person = _PERSON.search(scenario.opening)
    place = _PLACE.search(scenario.opening)
    errand = _ERRAND.search(scenario.opening)
    return {
        "person": person.group().lower() if person else "my family",
        "place": place.group() if place else "home",
        "errand": errand.group() if errand else "work",
    }


def sentence_case(text: str) -> str:
    """The first letter of every sentence in upper case."""
    return re.sub(r"(^|(?<!\.)[.?!] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def in_manner(stream: random.Random, text: str, style: str, strength: float) -> str:
    """The text as a person with this manner of speech would say it; `strength` 0 .. 1 is how often."""
    if not text or stream.random() >= strength:
        return text
    return sentence_case(_MANNERS[style](stream, text).strip())


def _fragments(stream: random.Random, text: str) -> str:
    words = text.split()
    start = " ".join(words[: 2 if len(words) > 3 else 1]).rstrip(",.?!")
    return f"{start}... {text[0].lower() + text[1:] if not text.startswith('I') else text}"


def _echo(stream: random.Random, text: str) -> str:
    last = _sentences(text)[-1].rstrip(".?!").split()
    tail = " ".join(last[-3:])
    return f"{tail}... {tail}." if stream.random() < 0.5 else f"{' '.join(last[-4:])}."


def _stalls(stream: random.Random, text: str) -> str:
    words = text.split()
    at = 1 + int(stream.random() * max(len(words) - 2, 1))
    if len(words) < 5:
        return f"Well... {text}"
    return " ".join([*words[:at], "the... what is the word...", *words[at:]])


def _alternating(stream: random.Random, text: str) -> str:
    drifts = ("What was I saying?", "Is somebody standing there?", "It comes and goes.")
    return f"{text} {pick(stream, drifts)}"


def _quiet(stream: random.Random, text: str) -> str:
    return _sentences(text)[0]


def _blunt(stream: random.Random, text: str) -> str:
    remarks = ("Get on with it.", "You talk too much.", "What are you looking at?", "Funny shoes.")
    return f"{text} {pick(stream, remarks)}"


def _effortful(stream: random.Random, text: str) -> str:
    short = re.sub(r"\b(?:the|a|an|is|are|am|to|of|was|were|been|have|has|I)\b ?", "", text)
    words = short.split()
    at = len(words) // 2
    return " ".join([*words[:at], "...", *words[at:]]) if len(words) > 2 else short


def _vague(stream: random.Random, text: str) -> str:
    things = (
        r"\b(?:pills?|water|soup|plate|towel|walker|bed|pillow|chair|house|school|bank|bakery|coat|train)\b"
    )
    return re.sub(things, "thing", text) if re.search(things, text) else f"{text} You know, that thing."


def _pauses(stream: random.Random, text: str) -> str:
    words = text.split()
    at = max(len(words) // 2, 1)
    return " ".join([*words[:at], "...", "wait...", *words[at:]])


def _sentences(text: str) -> list[str]:
    return re.findall(r"[^.?!]+[.?!]*", text.strip()) or [text]


_MANNERS: Mapping[str, Callable[[random.Random, str], str]] = {
    "fragments": _fragments,
    "echo": _echo,
    "stalls": _stalls,
    "alternating": _alternating,
    "quiet": _quiet,
    "blunt": _blunt,
    "effortful": _effortful,
    "vague": _vague,
    "pauses": _pauses,
}
