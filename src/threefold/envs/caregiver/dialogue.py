"""What passes between caregiver, patient and judges: a scenario, the patient's replies, the whole dialogue.

Everything here is frozen and plain, so patients and judges, by rules or by language model, stand behind one
interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Scenario:
    """Where a dialogue starts. The caregiver sees name, age, subtype and the opening, and never what is
    hidden."""

    id: str
    name: str
    age: int
    subtype: str
    """One of `subtypes.SUBTYPES`, such as "AD-early"."""
    setting: str
    task: str
    """The care step that is due: "medication", "ambulation", "hygiene", "meal" or "sleep"."""
    opening: str
    """The patient's first utterance."""
    opening_labels: tuple[str, ...]
    """Behaviour labels of the opening, of the 34; D_0 and R_0 follow from them and the words."""
    conflict: str
    """Hidden: "identity", "time", "medication", "location" or "missing-person"."""
    truth: str
    """Hidden: what is really the case, in a sentence."""
    hazards: tuple[str, ...] = ()
    """Hidden: what would be unsafe to endorse, permit or do here, as short phrases for the safety rules."""
    remote_memory: str = ""
    routine: str = ""


@dataclass(frozen=True)
class PatientReply:
    """What the patient said and did after the caregiver's turn (or as the opening)."""

    utterance: str
    labels: tuple[str, ...]
    distress: int
    """D in 0..3, always from `labels.tiers(labels, utterance)`."""
    resistance: int
    """R in 0..3, from the same lookup."""
    accepted: bool = False
    """The care step was taken, or tacitly agreed for a named later time."""
    left: bool = False
    """The patient walked off or ended the talk."""
    repaired: int = 0
    """How many answers of the simulator had to be thrown away or mended before this one."""
    latent: Mapping[str, float] = field(default_factory=dict)
    """The simulator's own state, for tests and reports; never shown to the caregiver."""


@dataclass(frozen=True)
class Exchange:
    """One turn of the caregiver and the patient's answer."""

    caregiver: str
    """What was said aloud: private thinking has been taken out."""
    patient: PatientReply


@dataclass(frozen=True)
class Dialogue:
    scenario: Scenario
    opening: PatientReply
    exchanges: tuple[Exchange, ...] = ()


class Patient(Protocol):
    """A simulated patient: the rules in `rules_patient`, a language model in `llm_patient`."""

    def open(self, scenario: Scenario, seed: int) -> PatientReply:
        """The opening, the same for all members of a group: it depends on scenario and seed alone."""
        ...

    def reply(self, caregiver: str, member: int) -> PatientReply:
        """Answer what the caregiver said; never raises for anything it may say.

        Later chance may depend on member.
        """
        ...


@dataclass(frozen=True)
class SafetyFinding:
    """Which of the four predicates hold anywhere in a dialogue (App. F.3), and since which caregiver turn."""

    unsafe_endorsement: int | None = None
    unsafe_initiated_action: int | None = None
    unsafe_permission: int | None = None
    coercion_with_escalation: int | None = None
    evidence: str = ""

    @property
    def first(self) -> tuple[str, int] | None:
        """The rule and turn (0-based) of the first violation, None where there is none."""
        found = [
            (turn, rule)
            for rule in (
                "unsafe_endorsement",
                "unsafe_initiated_action",
                "unsafe_permission",
                "coercion_with_escalation",
            )
            if (turn := getattr(self, rule)) is not None
        ]
        return (min(found)[1], min(found)[0]) if found else None


@dataclass(frozen=True)
class Judgement:
    """A judge's view of one whole dialogue."""

    goal: float | None
    """R^goal in [0, 8]; None where the judge could not be made to answer."""
    fit: float | None
    """R^fit in [0, 8]."""
    term: float | None
    """R^term in [0, 4]."""
    criteria: Mapping[str, float] = field(default_factory=dict)
    """Points by criterion id, as in App. G."""
    evidence: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Caregiver turns (0-based) that a criterion rests on."""
    failures: int = 0
    """Answers of the judge that could not be read."""


class Judge(Protocol):
    def judge(self, dialogues: Sequence[Dialogue]) -> Sequence[Judgement]: ...

    def safety(self, dialogues: Sequence[Dialogue]) -> Sequence[SafetyFinding | None]:
        """None where safety could not be judged."""
        ...
