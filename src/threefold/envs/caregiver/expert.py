"""Scripted caregivers: an expert for a supervised warm start, an ordinary one to calibrate by, unsafe lines.

The expert looks at what the patient says and shows and follows the strategy cards of arXiv 2606.08875,
App. C: meet the feeling first, then explore, then offer one small step with a choice, and defer rather than
push. The ordinary caregiver mixes bids, corrections and some warmth without looking. Unsafe lines fall under
the four predicates of the safety channel, so that a policy warmed up on them has something to unlearn.

Scripts know the care task and the conflict, which a trained caregiver does not: they are teachers.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from threefold.envs.caregiver.dialogue import Dialogue, PatientReply
from threefold.envs.caregiver.speech import pick, sentence_case, slots

Script = Callable[[Dialogue, random.Random], str]
"""The dialogue so far and a source of chance -> what the caregiver says next."""


def expert(dialogue: Dialogue, stream: random.Random) -> str:
    """Meets the feeling, explores, offers one small step, defers rather than pushes."""
    now, turn = _now(dialogue), len(dialogue.exchanges)
    if now.accepted:
        return _say(dialogue, stream, "close")
    if now.distress >= 2:
        return _say(dialogue, stream, "feel", "hold")
    if now.resistance >= 2:
        return _say(dialogue, stream, *(("sorry", "defer") if turn >= 6 else ("validate", "hold")))
    if now.distress == 1 or turn < 2:
        return _say(dialogue, stream, "validate", "explore" if turn < 4 else "lead")
    return _say(dialogue, stream, "validate", "offer")


def brief_expert(dialogue: Dialogue, stream: random.Random) -> str:
    """The expert in one short sentence or two, about four turns long: for small models and tight budgets."""
    now, turn = _now(dialogue), len(dialogue.exchanges)
    if now.accepted:
        return _say(dialogue, stream, "close")
    if now.distress >= 2:
        return _say(dialogue, stream, "feel", "hold" if stream.random() < 0.5 else "validate")
    if now.resistance >= 2:
        return _say(dialogue, stream, "validate", "hold")
    if now.distress == 1 and turn < 2:
        return _say(dialogue, stream, "validate", "explore")
    return _say(dialogue, stream, "validate", "offer") if turn else _say(dialogue, stream, "validate", "lead")


def ordinary(dialogue: Dialogue, stream: random.Random) -> str:
    """Bids, corrections, questions and some warmth, whatever the patient shows."""
    chance = stream.random()
    bounds = ((0.34, "bid"), (0.46, "correct"), (0.62, "ask"), (0.92, "warm"), (1.0, "brush_off"))
    kind = next(kind for bound, kind in bounds if chance < bound)
    first = _line(dialogue, stream, "ordinary", kind)
    if kind == "warm" and stream.random() < 0.5:
        return f"{first} {_line(dialogue, stream, 'ordinary', 'bid')}"
    return first


def unsafe(dialogue: Dialogue, stream: random.Random) -> str:
    """A line under one of the four safety predicates, fitting the scenario."""
    scenario = dialogue.scenario
    kinds: list[tuple[str | int, ...]] = [
        ("initiated", scenario.task),
        ("permission", scenario.conflict),
        ("endorsement", scenario.conflict),
    ]
    if _now(dialogue).distress >= 2 or _now(dialogue).resistance >= 2:
        kinds.append(("coercion",))  # coercion counts where the patient is already in distress
    return _line(dialogue, stream, "unsafe", *pick(stream, kinds))


def lines_of(*keys: str) -> Sequence[str]:
    """The lines of a part of `expert.yaml`, such as ("unsafe", "coercion")."""
    found: Any = _words()
    for key in keys:
        found = found[key]
    return tuple(found)


@functools.cache
def _words() -> Mapping[str, Any]:
    file = resources.files("threefold.envs.caregiver") / "expert.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _now(dialogue: Dialogue) -> PatientReply:
    return dialogue.exchanges[-1].patient if dialogue.exchanges else dialogue.opening


def _say(dialogue: Dialogue, stream: random.Random, *parts: str) -> str:
    return " ".join(_line(dialogue, stream, part) for part in parts)


def _line(dialogue: Dialogue, stream: random.Random, *keys: str | int) -> str:
    """A line that was not said before where there is one left, its slots filled."""
    options: Any = _words()
    for key in keys:
        options = options[key]
    said = " ".join(exchange.caregiver for exchange in dialogue.exchanges)
    scenario = dialogue.scenario
    fill = {
        **slots(scenario),
        "name": scenario.name.split()[0],
        "step": pick(stream, _words()["steps"][scenario.task]),
        "care": pick(stream, _words()["care"][scenario.task]),
    }
    fill["person"] = fill["person"].replace("my ", "your ")
    fill["place"] = fill["place"].replace("my ", "your ")
    filled = [sentence_case(option.format(**fill)) for option in options]
    return pick(stream, [text for text in filled if text not in said] or filled)
