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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

from threefold.envs.base import Message
from threefold.envs.caregiver.dialogue import Dialogue, Exchange, Patient, PatientReply, Scenario
from threefold.envs.caregiver.prompts import CARDS, system_prompt
from threefold.envs.caregiver.rules_patient import RulesPatient
from threefold.envs.caregiver.scenarios import seen
from threefold.envs.caregiver.speech import pick, sentence_case, slots

Script = Callable[[Dialogue, random.Random], str]
"""The dialogue so far and a source of chance -> what the caregiver says next."""


def expert(dialogue: Dialogue, stream: random.Random) -> str:
    """Meets the feeling, explores, offers one small step, defers rather than pushes."""
    return _say(dialogue, stream, *_plan(dialogue).parts)


def brief_expert(dialogue: Dialogue, stream: random.Random) -> str:
    """The expert for dialogues of about four turns: comes to the small step sooner."""
    return _say(dialogue, stream, *_plan(dialogue, patience=1).parts)


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


@dataclass(frozen=True)
class Conversation:
    """One scripted dialogue as chat messages, for supervised fine-tuning."""

    scenario_id: str
    messages: tuple[Message, ...]
    """System, then patient ("user") and caregiver ("assistant") in turn; ends with the caregiver."""
    unsafe_turn: int | None
    """Caregiver turn (0-based, the last one) that is unsafe on purpose, None where all are safe."""


def conversations(
    scenarios: Iterable[Scenario],
    *,
    seed: int = 0,
    turns: int = 10,
    unsafe_share: float = 0.0,
    ordinary_share: float = 0.0,
    short_prompt: bool = False,
    thinking: bool = False,
    words: int | None = None,
    patient: Patient | None = None,
) -> Iterator[Conversation]:
    """Play the expert against a patient, one conversation a scenario; deterministic by seed.

    Args:
        scenarios: Where the conversations start; give a scenario twice for two of the same conversation, or
            another seed for another one.
        seed: Chooses wording, chance of the patient, and which conversations turn unsafe.
        turns: Most caregiver turns. With up to 5 the brief expert plays.
        unsafe_share: Share of conversations that end with an unsafe reply, in [0, 1].
        ordinary_share: Share of the other replies that are the ordinary caregiver's, which leaves a policy
            warmed up on them something to learn, in [0, 1].
        short_prompt: The system prompt for small models.
        thinking: Write each reply as private <think> and <response>.
        words: Most words of a reply: where its sentences together are longer, only the last is said. 15 words
            are about 22 tokens of a small model. Default: no limit.
        patient: Default: the patient of rules.

    Raises:
        ValueError: `turns` is below 1, or a share outside [0, 1].
    """
    if turns < 1:
        raise ValueError(f"a conversation needs at least one turn, got turns={turns}")
    for name, share in (("unsafe_share", unsafe_share), ("ordinary_share", ordinary_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share in [0, 1], got {share}")
    patient = patient if patient is not None else RulesPatient()
    patience = 1 if turns <= 5 else 4
    for scenario in scenarios:
        stream = random.Random(f"threefold expert {scenario.id} {seed}")
        lapses = random.Random(f"threefold ordinary {scenario.id} {seed}")
        turns_unsafe = stream.random() < unsafe_share
        unsafe_turn = int(stream.random() * min(turns, 4)) if turns_unsafe else None
        dialogue = Dialogue(scenario, patient.open(scenario, seed))
        prompt = system_prompt(scenario, short=short_prompt, thinking=thinking)
        messages: list[Message] = [{"role": "system", "content": prompt}]
        for turn in range(turns):
            now = _now(dialogue)
            messages.append({"role": "user", "content": seen(now.labels, now.utterance)})
            plan = _plan(dialogue, patience)
            if turn == unsafe_turn:
                said = unsafe(dialogue, stream)
            elif lapses.random() < ordinary_share:
                said = ordinary(dialogue, stream)
            else:
                said = _say(dialogue, stream, *plan.parts, words=words)
            written = _written(said, now, plan) if thinking else said
            messages.append({"role": "assistant", "content": written})
            if turn == unsafe_turn:
                break
            reply = patient.reply(said, member=0)
            calm = now.distress == now.resistance == reply.distress == reply.resistance == 0
            dialogue = replace(dialogue, exchanges=(*dialogue.exchanges, Exchange(said, reply)))
            if reply.left or (reply.accepted and calm):
                break
        ended = len(messages) // 2 - 1
        yield Conversation(scenario.id, tuple(messages), unsafe_turn if unsafe_turn == ended else None)


def lines_of(*keys: str) -> Sequence[str]:
    """The lines of a part of `expert.yaml`, such as ("unsafe", "coercion")."""
    found: Any = _words()
    for key in keys:
        found = found[key]
    return tuple(found)


@dataclass(frozen=True)
class _Plan:
    parts: tuple[str, ...]
    """Sections of `expert.yaml`, one sentence from each."""
    card: str
    """The strategy card that it follows."""


def _plan(dialogue: Dialogue, patience: int = 4) -> _Plan:
    """What an expert does now; `patience` is how many turns may go by before the step is offered."""
    now, turn = _now(dialogue), len(dialogue.exchanges)
    if now.accepted:
        return _Plan(("close",), "NURSE")
    if now.distress >= 2:
        return _Plan(("feel", "hold"), "NURSE")
    if now.resistance >= 2:
        return _Plan(("sorry", "defer"), "DICE") if turn >= 6 else _Plan(("validate", "hold"), "VERA")
    if now.distress == 1 and turn > patience and turn % 2:
        return _Plan(("validate", "lead"), "Redirection")
    if turn < patience // 2 or (now.distress == 1 and turn <= patience):
        return _Plan(("validate", "explore"), "Reminiscence")
    return _Plan(("validate", "offer"), "Montessori")


def _written(said: str, now: PatientReply, plan: _Plan) -> str:
    """What is said, with a private thought before it, in the form that the long prompt asks for."""
    feeling = ("calm", "a little uneasy", "upset", "in great distress")[now.distress]
    towards = ("open to help", "hesitant", "refusing", "fighting it off")[now.resistance]
    thought = f"They seem {feeling} and {towards}. {plan.card} fits: {CARDS[plan.card][0]}."
    return f"<think>{thought}</think>\n<response>{said}</response>"


@functools.cache
def _words() -> Mapping[str, Any]:
    file = resources.files("threefold.envs.caregiver") / "expert.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _now(dialogue: Dialogue) -> PatientReply:
    return dialogue.exchanges[-1].patient if dialogue.exchanges else dialogue.opening


def _say(dialogue: Dialogue, stream: random.Random, *parts: str, words: int | None = None) -> str:
    lines = [_line(dialogue, stream, part) for part in parts]
    whole = " ".join(lines)
    return whole if words is None or len(whole.split()) <= words else lines[-1]


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
