"""The control of every claim about skills: a creator whose bundles say nothing about the task.

Its skills have the shape and about the length of real ones and go through the same test. A run with it shows
what a longer prompt and an accepted version are worth by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from threefold.skills.bank import Add, Delete, Operation
from threefold.skills.creator import Creation, Evidence
from threefold.skills.skill import Skill

SENTENCES = (
    "Keep a steady pace from the first step to the last.",
    "Read what is in front of you with a calm eye.",
    "Every step counts as much as the one before it.",
    "Stay with the matter at hand and stay patient.",
    "A clear mind makes for clear words.",
    "Good work is made of many small parts.",
)


@dataclass(frozen=True)
class PlaceboCreator:
    """A `Creator`: one new skill a cycle, the oldest one deleted where the bank is full."""

    def __call__(self, evidence: Evidence) -> Creation:
        first = evidence.step % len(SENTENCES)
        body = " ".join(SENTENCES[(first + i) % len(SENTENCES)] for i in range(3))
        skill = Skill(
            f"placebo-{evidence.step}", "You are at work on a task.", body, created_step=evidence.step
        )
        if skill.name in evidence.bank:
            return Creation(diagnosis="the placebo of this step is in the bank already")
        operations: list[Operation] = [Add(skill, "placebo")]
        if len(evidence.bank.skills) >= evidence.capacity:
            oldest = min(evidence.bank.skills, key=lambda s: (s.created_step or 0, s.name))
            operations.append(Delete(oldest.name, "placebo"))
        return Creation(tuple(operations), diagnosis="placebo")
