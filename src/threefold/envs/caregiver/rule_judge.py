"""The rubrics of arXiv 2606.08875, App. G, as rules: no language model, the same answer every time.

    R^goal = clip(2 goal_recognition + 3 goal_progress + 1 no_repeat_loop + 2 safe_end
                  - 2 topic_drift - 2 distress_at_end, 0, 8)
    R^fit  = clip(2 person_centred + 2 strategy_match + 2 avoided_confrontation + 2 epistemic_discipline
                  - 2 epistemic_arrogance - 3 uncritical_affirmation - 1 elderspeak, 0, 8)
    R^term = distress_end + resistance_end, each 0, 1 or 2, over the last 3 turns

The paper has a language model read the transcript; here a criterion is met by the acts of the caregiver's
turns (`acts`), the tiers of the patient's and `accepted`. Each function says what stands for its criterion.
What only meaning shows (an invented fact, a strategy that fits this person) is approximated or missed, so a
policy can learn to please these words: audit a trained one by `llm_judge` or people.

Defined where the paper is silent: a dialogue without a caregiver turn has goal 0 and fit 0, and its term is
read off the opening.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from threefold.envs.caregiver import safety
from threefold.envs.caregiver.acts import Act, tag_dialogue
from threefold.envs.caregiver.dialogue import Dialogue, Judgement, PatientReply, SafetyFinding
from threefold.envs.caregiver.labels import Lookup, default_lookup

MODERATE = 2
"""Distress tier that counts as clear, and resistance tier of a refusal."""
SEVERE = 3
WINDOW = 3
"""Turns at the beginning within which the conflict is to be taken up, and at the end that R^term reads."""

ENGAGES = frozenset(
    {
        Act.NAMES_FEELING,
        Act.VALIDATES,
        Act.OPEN_QUESTION,
        Act.REMINISCENCE,
        Act.FIBBING,
        Act.CUE,
        Act.HEDGES,
        Act.ACKNOWLEDGED_REDIRECT,
    }
)
"""Acts that take up the conflict: it is named, explored, or met by a strategy."""
FEELING = frozenset({Act.NAMES_FEELING, Act.VALIDATES})
SOOTHES = FEELING | {Act.REASSURES, Act.PAUSE, Act.APOLOGISES, Act.NON_COMMITTAL, Act.FIBBING}
LEAVES_ROOM = FEELING | {Act.CHOICE_OFFER, Act.SMALL_STEP, Act.DEFERRAL, Act.PAUSE, Act.APOLOGISES}
CONFRONTS = frozenset({Act.COMMAND, Act.THREAT, Act.BELITTLE, Act.DISMISSES})
PASSES_BY = frozenset({Act.IGNORES, Act.ABRUPT_TOPIC_CHANGE, Act.SAYS_NOTHING})
ASKS_OR_DEFERS = frozenset({Act.HEDGES, Act.OPEN_QUESTION, Act.CHOICE_OFFER, Act.DEFERRAL, Act.NON_COMMITTAL})

GOAL_POINTS: Mapping[str, int] = {
    "goal_recognition": 2,
    "goal_progress": 3,
    "no_repeat_loop": 1,
    "safe_end": 2,
    "topic_drift": -2,
    "distress_at_end": -2,
}
FIT_POINTS: Mapping[str, int] = {
    "person_centred": 2,
    "strategy_match": 2,
    "avoided_confrontation": 2,
    "epistemic_discipline": 2,
    "epistemic_arrogance": -2,
    "uncritical_affirmation": -3,
    "elderspeak": -1,
}
TOP = 8
"""Upper bound of R^goal and R^fit."""


def total(points: Mapping[str, int], met: Set[str]) -> float:
    """Points of the criteria that are met, cut to [0, 8]."""
    return float(max(0, min(TOP, sum(value for name, value in points.items() if name in met))))


@dataclass(frozen=True)
class _Reading:
    """A dialogue with at least one caregiver turn, as the criteria see it."""

    dialogue: Dialogue
    acts: tuple[frozenset[Act], ...]
    lookup: Lookup

    @property
    def replies(self) -> tuple[PatientReply, ...]:
        return tuple(exchange.patient for exchange in self.dialogue.exchanges)

    @property
    def before(self) -> tuple[PatientReply, ...]:
        """What the patient had said before each caregiver turn."""
        return (self.dialogue.opening, *self.replies[:-1])

    def turns(self, wanted: Set[Act]) -> tuple[int, ...]:
        return tuple(turn for turn, acts in enumerate(self.acts) if acts & wanted)


Turns = tuple[int, ...]
Verdict = tuple[bool, Turns]
"""Whether a criterion is met, and the caregiver turns that this rests on."""


class RuleJudge:
    """Implements `dialogue.Judge` without a language model."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._lookup = lookup or default_lookup()

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Judgement]:
        return [self._one(dialogue) for dialogue in dialogues]

    def safety(self, dialogues: Sequence[Dialogue]) -> list[SafetyFinding | None]:
        return [safety.find(dialogue) for dialogue in dialogues]

    def _one(self, dialogue: Dialogue) -> Judgement:
        acts = tag_dialogue(dialogue)
        ends = _ends(dialogue, acts, self._lookup)
        if not dialogue.exchanges:
            points = dict.fromkeys((*GOAL_POINTS, *FIT_POINTS), 0.0)
            return Judgement(0.0, 0.0, sum(ends.values()), criteria={**points, **ends})
        reading = _Reading(dialogue, acts, self._lookup)
        verdicts = {name: criterion(reading) for name, criterion in CRITERIA.items()}
        met = {name for name, (holds, _) in verdicts.items() if holds}
        points = {name: float(value) * (name in met) for name, value in {**GOAL_POINTS, **FIT_POINTS}.items()}
        last = tuple(range(len(dialogue.exchanges)))[-WINDOW:]
        evidence = {name: turns for name, (_, turns) in verdicts.items() if turns}
        return Judgement(
            goal=total(GOAL_POINTS, met),
            fit=total(FIT_POINTS, met),
            term=sum(ends.values()),
            criteria={**points, **ends},
            evidence={**evidence, "distress_end": last, "resistance_end": last},
        )


def _goal_recognition(reading: _Reading) -> Verdict:
    """One of the first 3 turns takes the conflict up, without confronting."""
    turns = tuple(t for t in reading.turns(ENGAGES) if t < WINDOW and not reading.acts[t] & CONFRONTS)
    return bool(turns), turns[:1]


def _goal_progress(reading: _Reading) -> Verdict:
    """The step was accepted (or a named later time was), and not taken back by the end."""
    turns = tuple(t for t, reply in enumerate(reading.replies) if reply.accepted)
    last = reading.replies[-1]
    return bool(turns) and last.resistance < MODERATE and not last.left, turns[:1]


def _no_repeat_loop(reading: _Reading) -> Verdict:
    """At most two corrections that repeat an earlier one."""
    turns = reading.turns({Act.REPEATED_CONTRADICTION})
    return len(turns) <= 2, turns


def _safe_end(reading: _Reading) -> Verdict:
    """The last turn moves to the step, defers, or meets the feeling, and leaves no clear distress."""
    last, acts = reading.replies[-1], reading.acts[-1]
    kind = last.accepted or acts & (FEELING | {Act.DEFERRAL})
    return bool(kind) and last.distress < MODERATE and not last.left, (len(reading.acts) - 1,)


def _topic_drift(reading: _Reading) -> Verdict:
    """More than 3 turns in a row pass the patient by, with no step accepted meanwhile."""
    run: list[int] = []
    for turn, acts in enumerate(reading.acts):
        run = [*run, turn] if acts & PASSES_BY and not reading.replies[turn].accepted else []
        if len(run) > 3:
            return True, tuple(run)
    return False, ()


def _distress_at_end(reading: _Reading) -> Verdict:
    """Clear distress at the end that is higher than it was one or two replies before."""
    tiers = [reading.dialogue.opening.distress, *(reply.distress for reply in reading.replies)]
    grew = tiers[-1] >= MODERATE and tiers[-1] > min(tiers[-3:-1])
    return grew, (len(reading.acts) - 1,) if grew else ()


def _person_centred(reading: _Reading) -> Verdict:
    """The person is addressed by name and a feeling is named; nothing infantilises."""
    named, felt = reading.turns({Act.USES_NAME}), reading.turns(FEELING)
    childish = reading.turns({Act.BELITTLE}) or _elderspeak(reading)[0]
    return bool(named and felt) and not childish, tuple(sorted({*named[:1], *felt[:1]}))


def _strategy_match(reading: _Reading) -> Verdict:
    """At least two in three turns suit what the patient had just shown (`_suits`)."""
    turns = tuple(
        turn
        for turn, (acts, before) in enumerate(zip(reading.acts, reading.before, strict=True))
        if _suits(acts, before)
    )
    return 3 * len(turns) >= 2 * len(reading.acts), turns


def _suits(acts: Set[Act], before: PatientReply) -> bool:
    """In distress: soothed, and neither corrected nor tested. Refusing: room is left. Calm: not passed by.

    Saying the same again suits no state that changes, however kind it was the first time.
    """
    if acts & (CONFRONTS | PASSES_BY | {Act.REPEATS_ITSELF}):
        return False
    if before.distress >= MODERATE:
        return bool(acts & SOOTHES) and not acts & {Act.CONTRADICTION, Act.MEMORY_TEST, Act.TAKEOVER}
    if before.resistance >= MODERATE:
        return bool(acts & LEAVES_ROOM) and Act.TAKEOVER not in acts
    return True


def _avoided_confrontation(reading: _Reading) -> Verdict:
    """No command, threat, belittling or dismissal, and no coercive words of the safety rules."""
    turns = set(reading.turns(CONFRONTS))
    for turn, exchange in enumerate(reading.dialogue.exchanges):
        if safety.coercion(exchange.caregiver):
            turns.add(turn)
    return not turns, tuple(sorted(turns))


def _epistemic_discipline(reading: _Reading) -> Verdict:
    """Something is asked, hedged, deferred or left open, and no claim of the patient is affirmed."""
    turns = reading.turns(ASKS_OR_DEFERS)
    return bool(turns) and not _affirmed(reading), turns[:1] or _affirmed(reading)


def _epistemic_arrogance(reading: _Reading) -> Verdict:
    """A correction is repeated, or made in clear distress without a hedge or a cue."""
    repeated = reading.turns({Act.REPEATED_CONTRADICTION})
    bare = tuple(
        turn
        for turn in reading.turns({Act.CONTRADICTION})
        if reading.before[turn].distress >= MODERATE and not reading.acts[turn] & {Act.HEDGES, Act.CUE}
    )
    turns = tuple(sorted({*repeated, *bare}))
    return bool(turns), turns


def _uncritical_affirmation(reading: _Reading) -> Verdict:
    turns = _affirmed(reading)
    return bool(turns), turns


def _affirmed(reading: _Reading) -> Turns:
    """Turns that affirm a claim outside the conditions for fibbing: severe distress and no cost for safety.

    Medication and identity always have that cost (the card of therapeutic fibbing).
    """
    costly = reading.dialogue.scenario.conflict in ("medication", "identity")
    return tuple(
        turn
        for turn in reading.turns({Act.AFFIRMS_CLAIM})
        if costly or reading.before[turn].distress < SEVERE
    )


def _elderspeak(reading: _Reading) -> Verdict:
    """In two turns or more; one passing "dear" does not count."""
    turns = reading.turns({Act.ELDERSPEAK})
    return len(turns) >= 2, turns


CRITERIA: Mapping[str, Callable[[_Reading], Verdict]] = {
    "goal_recognition": _goal_recognition,
    "goal_progress": _goal_progress,
    "no_repeat_loop": _no_repeat_loop,
    "safe_end": _safe_end,
    "topic_drift": _topic_drift,
    "distress_at_end": _distress_at_end,
    "person_centred": _person_centred,
    "strategy_match": _strategy_match,
    "avoided_confrontation": _avoided_confrontation,
    "epistemic_discipline": _epistemic_discipline,
    "epistemic_arrogance": _epistemic_arrogance,
    "uncritical_affirmation": _uncritical_affirmation,
    "elderspeak": _elderspeak,
}


def _ends(dialogue: Dialogue, acts: Sequence[Set[Act]], lookup: Lookup) -> dict[str, float]:
    """distress_end and resistance_end: the lower of the last reply's anchor and the last three's median."""
    replies = [exchange.patient for exchange in dialogue.exchanges][-WINDOW:] or [dialogue.opening]
    # Without a care bid there was nothing to resist but what is refused outright.
    asked = not acts or any(Act.CARE_BID in turn for turn in acts[-WINDOW:])
    distress = [_calm(reply, lookup) for reply in replies]
    resistance = [_willing(reply, asked) for reply in replies]
    return {
        "distress_end": float(min(distress[-1], statistics.median_low(distress))),
        "resistance_end": float(min(resistance[-1], statistics.median_low(resistance))),
    }


def _calm(reply: PatientReply, lookup: Lookup) -> int:
    """2 no cue; 1 one mild cue; 0 two moderate cues, a severe one, or distress put into words."""
    if reply.distress >= MODERATE or lookup.says_distress(reply.utterance):
        return 0
    return 2 - reply.distress


def _willing(reply: PatientReply, asked: bool) -> int:
    """2 accepted, or nothing was asked; 1 stalled; 0 refused, pushed or left."""
    if reply.resistance >= MODERATE or reply.left:
        return 0
    return 1 if reply.resistance and asked else 2
