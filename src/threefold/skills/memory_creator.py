"""Episodes that succeeded, remembered as they were: the baseline of a retrieval memory.

Nothing is abstracted and nothing is tested: each task's latest success becomes an entry that says which
actions solved it, and with `retrieve` an agent sees the entries of the tasks most like its own (Reflexion's
and ExpeL's memory of experience, MemRL's without learnt values). Together they are the recipe

    skills: {creator: memory, auto_accept: true, retrieve: 1, period: 1, capacity: 64}

What a memory says of one task need not hold for another; a skill that was distilled from many may.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from threefold.skills.bank import Add, Bank, Delete, Modify, Operation, edited, kebab
from threefold.skills.creator import Creation, Evidence
from threefold.skills.reservoir import Experience
from threefold.skills.skill import NAME_LIMIT, Skill, one_line

OPENING = 300
"""Characters of a task's opening that are kept, its first ones."""


@dataclass(frozen=True)
class MemoryCreator:
    """A `Creator`: every task that was solved since, its oldest entries leaving where the bank is full.

    Args:
        operations: Most entries written in a cycle.
    """

    operations: int = 16

    def __call__(self, evidence: Evidence) -> Creation:
        bank = evidence.bank
        latest = {e.task_id: remembered(e) for e in evidence.experiences if e.success}
        changes = [change for skill in reversed(latest.values()) if (change := _change(bank, skill))]
        changes = changes[: min(self.operations, evidence.capacity)]
        added = sum(isinstance(change, Add) for change in changes)
        touched = {change.name for change in changes}
        oldest = sorted(
            (skill for skill in bank.skills if skill.name not in touched),
            key=lambda skill: (skill.created_step or 0, skill.name),
        )
        too_many = max(0, len(bank.skills) + added - evidence.capacity)
        leaving = [Delete(skill.name, "the oldest memory") for skill in oldest[:too_many]]
        return Creation((*changes, *leaving), diagnosis=f"{len(latest)} tasks were solved")


def remembered(experience: Experience) -> Skill:
    """The entry of an episode that succeeded."""
    task = one_line(experience.task)[:OPENING].strip().replace("<", "(").replace(">", ")")
    actions = [action for said in experience.actions if (action := one_line(said))]
    return Skill(
        _name(experience.task_id),
        f"Your task is like this one: {task}".strip(),
        f"These actions solved it.\n- DO: {', '.join(actions)}".strip(),
        created_step=experience.step,
    )


def _name(task_id: str) -> str:
    """A name for each task: where its id cannot be read off a skill's name, a digest tells it from others."""
    whole = f"memory-{task_id}"
    name = kebab(whole)
    if name == whole:
        return name
    digest = hashlib.sha256(task_id.encode()).hexdigest()[:8]
    return f"{name[: NAME_LIMIT - len(digest) - 1].strip('-')}-{digest}"


def _change(bank: Bank, skill: Skill) -> Operation | None:
    if skill.name not in bank:
        return Add(skill, "solved")
    known = bank[skill.name]
    if known.body == skill.body:
        return None
    return Modify(
        edited(known, description=skill.description, body=skill.body, created_step=skill.created_step),
        "solved anew",
    )
