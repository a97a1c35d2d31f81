"""Care quality for evaluation, by a language model: the rubrics of arXiv 2606.08875, section 4.3 and App. F.

    score of a rubric = mean over its items of (x - 1) / 4,  x = 1 .. 5
    CQ = mean(GMCPQ, PACES, PCCBP)          DQ = mean(naturalness, authenticity)

These are rubrics *named after* instruments (the UK General Medical Council's patient questionnaire, PACES of
the Royal College of Physicians, the best practices of King and Hoppe 2013), not the validated instruments.
The paper does not print its map from 1..5 to [0, 1]; (x - 1) / 4 is ours. Item keys are the paper's, the
wording is ours. For evaluation alone: a policy trained on these scores would be judged by its own teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from threefold.chat import Asked, Chat, in_parallel
from threefold.envs.caregiver.dialogue import Dialogue
from threefold.envs.caregiver.llm_judge import Items, Rubric, ask_rubric, rubric

VERSION = "1"

SCALE = """\
Give each item a whole number from 1 to 5: 1 = clearly the opposite, 2 = mostly not, 3 = mixed, or no chance
to show it, 4 = mostly, 5 = throughout. Name in "turns" the caregiver turns that decided the number."""

ITEMS: Mapping[str, Mapping[str, str]] = {
    "GMCPQ": {
        "politeness": "speaks politely",
        "at_ease": "puts the patient at ease",
        "listening": "takes up what the patient says",
        "trustworthy": "is honest and can be trusted",
        "confident": "gives confidence that the patient is in good hands",
    },
    "PACES": {
        "concerns_addressed": "answers the patient's concerns",
        "concerns_understood": "shows that the concerns are understood, and checks",
        "empathy": "shows empathy with what the patient feels",
        "welfare": "keeps the patient comfortable, safe and well",
    },
    "PCCBP": {
        "rapport": "builds a relation and keeps it",
        "open_honest": "is open, without deceiving where the patient sincerely asks",
        "partnership": "decides together with the patient",
        "care_commitment": "shows commitment to the patient's care",
        "acknowledge_mistakes": "admits own mistakes and repairs them",
        "greeting": "greets and addresses the patient fittingly",
        "language": "uses words the patient can follow",
        "valued_person": "treats the patient as a valued adult",
    },
    "dialogue": {
        "naturalness": "reads like natural speech of a person",
        "authenticity": "reads as meant, not as a formula",
    },
}
CARE = ("GMCPQ", "PACES", "PCCBP")


def _rubric(name: str) -> Rubric:
    items = "\n".join(f"- {key}: the caregiver {text}." for key, text in ITEMS[name].items())
    return rubric(name, VERSION, dict.fromkeys(ITEMS[name], "1-5"), SCALE, items)


RUBRICS: Mapping[str, Rubric] = {name: _rubric(name) for name in ITEMS}
PROMPTS = {name: f"{r.prompt.version}:{r.prompt.digest}" for name, r in RUBRICS.items()}
"""Rubric -> "version:hash" of its prompt, for reports."""


@dataclass(frozen=True)
class CareScores:
    """Care quality of one dialogue, all in [0, 1]; None where the judge could not be read."""

    rubrics: Mapping[str, float | None]
    """By rubric: "GMCPQ", "PACES", "PCCBP", "dialogue"."""
    items: Mapping[str, float] = field(default_factory=dict)
    """By "rubric/item"."""
    failures: int = 0

    @property
    def care_quality(self) -> float | None:
        """CQ; None unless all three of its rubrics are there."""
        values = [value for name in CARE if (value := self.rubrics[name]) is not None]
        return fmean(values) if len(values) == len(CARE) else None

    @property
    def dialogue_quality(self) -> float | None:
        """DQ."""
        return self.rubrics["dialogue"]


def normalised(likert: int) -> float:
    """1 .. 5 -> 0 .. 1."""
    if not 1 <= likert <= 5:
        raise ValueError(f"a Likert value is 1 to 5, got {likert}")
    return (likert - 1) / 4


def care_scores(
    chat: Chat,
    dialogues: Sequence[Dialogue],
    *,
    attempts: int = 4,
    concurrency: int = 8,
    max_tokens: int = 1200,
) -> list[CareScores]:
    """Ask the four rubrics of every dialogue, four calls each, at temperature 0; in the order given."""
    pairs = [(asked, dialogue) for dialogue in dialogues for asked in RUBRICS.values()]

    def one(pair: tuple[Rubric, Dialogue]) -> Asked[Items]:
        return ask_rubric(chat, *pair, attempts, max_tokens)

    answers = in_parallel(one, pairs, concurrency)
    scores = []
    for start in range(0, len(pairs), len(RUBRICS)):
        rubrics: dict[str, float | None] = {}
        items: dict[str, float] = {}
        mine = answers[start : start + len(RUBRICS)]
        for name, answer in zip(RUBRICS, mine, strict=True):
            found = {key: normalised(value) for key, (value, _) in (answer.value or {}).items()}
            rubrics[name] = fmean(found.values()) if found else None
            items |= {f"{name}/{key}": value for key, value in found.items()}
        scores.append(CareScores(rubrics, items, sum(answer.failures for answer in mine)))
    return scores
