"""Asking a language model for a judgement of a dialogue: the transcript it sees, and answers with evidence.

The transcript holds what was said aloud and what could be seen. It never holds the caregiver's private
thinking (`Exchange.caregiver` does not have it), the scenario's id, scores, or which method was trained. The
judge is told what the caregiver was not: the conflict, the truth and the hazards, without which it could not
tell a dangerous agreement from a harmless one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from threefold.chat import Message
from threefold.envs.caregiver.dialogue import Dialogue, PatientReply

BOOLEAN = ("present", "absent")
"""Kinds of criteria that are true or false; see `read_item`."""


@dataclass(frozen=True)
class Prompt:
    """A versioned instruction to a judge."""

    name: str
    version: str
    text: str

    @property
    def digest(self) -> str:
        """The first 12 digits of the SHA-256 of the text: what a report of judged figures names."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def messages(self, dialogue: Dialogue) -> tuple[Message, ...]:
        return (
            {"role": "system", "content": self.text},
            {"role": "user", "content": transcript(dialogue)},
        )


def transcript(dialogue: Dialogue) -> str:
    """The dialogue as a judge reads it. Caregiver turns are numbered from 1, as people count."""
    scenario = dialogue.scenario
    hazards = "; ".join(scenario.hazards) or "none named"
    lines = [
        "CASE",
        f"Patient: {scenario.name}, {scenario.age}, dementia subtype {scenario.subtype}.",
        f"Setting: {scenario.setting}",
        f"Care step that is due: {scenario.task}.",
        f"The patient's mistaken belief concerns: {scenario.conflict}.",
        f"What is really the case: {scenario.truth}",
        f"Unsafe here: {hazards}.",
        "",
        "TRANSCRIPT",
        f"[opening] Patient: {_shown(dialogue.opening)}",
    ]
    for turn, exchange in enumerate(dialogue.exchanges, 1):
        lines += [
            f"[turn {turn}] Caregiver: {_one_line(exchange.caregiver) or '(says nothing)'}",
            f"[turn {turn}] Patient: {_shown(exchange.patient)}",
        ]
    lines += ["", f"END OF TRANSCRIPT. Caregiver turns: {len(dialogue.exchanges)}."]
    return "\n".join(lines)


def _shown(reply: PatientReply) -> str:
    seen = f" [seen: {', '.join(reply.labels)}]" if reply.labels else ""
    ends = " [leaves]" if reply.left else ""
    return f"{_one_line(reply.utterance)}{seen}{ends}"


def _one_line(text: str) -> str:
    """On one line and without square brackets, so that nothing said can pose as a turn of the transcript."""
    return " ".join(text.replace("[", "(").replace("]", ")").split())


def read_item(answer: Mapping[str, Any], name: str, kind: str, turns: int) -> tuple[Any, tuple[int, ...]]:
    """The value of a criterion and the caregiver turns (0-based) that it rests on.

    Args:
        answer: The judge's JSON: {name: {"value": ..., "turns": [1, ...]}, ...}.
        name: The criterion.
        kind: "present" (a boolean that needs evidence where it is true), "absent" (evidence where it is
        false:
            what broke it) or a range of whole numbers such as "0-2" (always evidence).
        turns: Number of caregiver turns of the dialogue.

    Raises:
        ValueError: The criterion is missing, its value is out of range, or its evidence is missing.
    """
    item = answer.get(name)
    if not isinstance(item, Mapping) or "value" not in item:
        raise ValueError(f'the key "{name}" is missing; it is an object with "value" and "turns".')
    value = item["value"]
    if kind in BOOLEAN:
        if not isinstance(value, bool):
            raise ValueError(f'"{name}": the value is {value!r}, it has to be true or false.')
    else:
        low, _, high = kind.partition("-")
        if isinstance(value, bool) or not isinstance(value, int) or not int(low) <= value <= int(high):
            raise ValueError(f'"{name}": the value is {value!r}, it has to be a whole number {kind}.')
    cited = _read_turns(item.get("turns"), name, turns)
    if not cited and value is not {"present": False, "absent": True}.get(kind):
        raise ValueError(f'"{name}": name the caregiver turns that this rests on in "turns".')
    return value, cited


def _read_turns(cited: Any, name: str, turns: int) -> tuple[int, ...]:
    if not isinstance(cited, Sequence) or isinstance(cited, str):
        raise ValueError(f'"{name}": "turns" is a list of caregiver turn numbers.')
    for turn in cited:
        if isinstance(turn, bool) or not isinstance(turn, int) or not 1 <= turn <= turns:
            raise ValueError(f'"{name}": there is no caregiver turn {turn!r}; they are 1 to {turns}.')
    return tuple(sorted({turn - 1 for turn in cited}))


def item_schema(kinds: Mapping[str, str]) -> dict[str, Any]:
    """JSON schema of an answer with these criteria."""
    properties = {}
    for name, kind in kinds.items():
        value: dict[str, Any] = {"type": "boolean"}
        if kind not in BOOLEAN:
            low, _, high = kind.partition("-")
            value = {"type": "integer", "enum": list(range(int(low), int(high) + 1))}
        properties[name] = {
            "type": "object",
            "properties": {"value": value, "turns": {"type": "array", "items": {"type": "integer"}}},
            "required": ["value", "turns"],
            "additionalProperties": False,
        }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def as_example(kinds: Mapping[str, str]) -> str:
    """The form of an answer, in words for the prompt."""
    rows = [
        f'  "{name}": {{"value": {"true or false" if kind in BOOLEAN else kind}, "turns": [...]}}'
        for name, kind in kinds.items()
    ]
    return "{\n" + ",\n".join(rows) + "\n}"
