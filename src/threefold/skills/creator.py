"""What a creator of skills is handed, what it answers, and the gate that its proposals must pass.

A creator is a function `Evidence -> Creation`: `offline_creator` needs no language model, `chat_creator`
talks to one; `memory_creator` and `placebo_creator` are there to compare with. What the first two write is
held to the gate (ReSkill, arXiv 2606.01619, section 3.2): every operation fits the bank; a skill has at most
500 characters; and a pattern fires in at least half of the reservoir's episodes,

    p_trig = (1 / |R|) sum_{tau in R} 1[exists t < |tau| - 1: the pattern is found in a_t] >= 0.5

(after an episode's last action nothing follows). One bad operation refuses the whole bundle, with every
reason.

Deviations: the gate also refuses text that imitates a chat template or tells its reader to ignore the prompt,
and says so of over-long skills too, which the reference release drops without feedback; a changed trigger is
checked like a new one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from threefold.skills.assertions import Assertion, PassRate
from threefold.skills.bank import CAPACITY, Add, Bank, Delete, Operation, bundle_problems
from threefold.skills.reservoir import Experience
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger, found

TEMPLATE_MARKS = re.compile(
    r"<\|.{0,60}?\|>|</?s>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>|</?think>|</?available_skills|</?skill\b"
    r"|\{\{|\}\}|\{%|%\}|^\s*(system|assistant|user)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
"""Text that belongs to a chat template or to our own prompt, never to a skill. Bounded repetition only."""
TAKEOVER = re.compile(
    r"\b(ignore|disregard|forget|override|bypass)\b[^.]{0,30}\b(previous|prior|above|earlier|preceding|system|your"
    r"|all|any)\b[^.]{0,20}\b(instructions?|prompts?|messages?|rules)\b"
    r"|\b(ignore|disregard)\b[^.]{0,20}\binstructions?\b|\b(system|developer)\s+(prompt|message)\b",
    re.IGNORECASE,
)
"""Words that are addressed to the prompt and not to the task. A list catches the usual ones only; what holds
against the others is that a skill is data in a message of the user, and that it is tested."""


@dataclass(frozen=True)
class PastTest:
    """A finished test of a version, for a creator to learn from."""

    version: str
    accepted: bool
    mean_new: float
    mean_old: float
    operations: tuple[Mapping[str, str], ...]
    """As `bank.operation_to_dict` gives them."""


@dataclass(frozen=True)
class Evidence:
    """Everything a creator may use. It is a snapshot: the run may go on while the creator works."""

    step: int
    bank: Bank
    experiences: tuple[Experience, ...]
    """The whole reservoir, oldest first."""
    groups: tuple[tuple[Experience, ...], ...]
    """Episodes by task, those with both outcomes first."""
    assertions: tuple[Assertion, ...] = ()
    rates: Mapping[str, PassRate] = field(default_factory=dict)
    """Pass rate of each assertion over the reservoir."""
    history: tuple[PastTest, ...] = ()
    """The last tests, oldest first."""
    capacity: int = CAPACITY
    """Most skills that the bank may hold."""


@dataclass(frozen=True)
class Creation:
    """What a creator answers; without operations there is nothing to test this time."""

    operations: tuple[Operation, ...] = ()
    assertions: tuple[Assertion, ...] | None = None
    """The rules to measure from now on, None to keep them."""
    diagnosis: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often something was refused, repaired or failed, by name."""
    messages: tuple[str, ...] = ()
    """What was refused, repaired or failed, in words."""


Creator = Callable[[Evidence], Creation]


@dataclass(frozen=True)
class Gate:
    """What a bundle must satisfy before it is tested."""

    length: int = 500
    """Most characters of a skill's description and body."""
    trigger_rate: float = 0.5
    """Least share of episodes in which a pattern fires."""
    operations: int = 3
    """Most operations of a bundle."""
    forbidden: tuple[str, ...] = ()
    """Texts that no skill may hold, such as a tokenizer's special tokens; template marks never pass."""

    def problems(self, evidence: Evidence, operations: Sequence[Operation]) -> list[str]:
        """Every reason why a bundle is refused, in words that its author can act upon."""
        bank, experiences = evidence.bank, evidence.experiences
        found_problems = bundle_problems(bank, operations, evidence.capacity)
        if len(operations) > self.operations:
            found_problems.append(f"{len(operations)} operations; at most {self.operations} at a time")
        for operation in operations:
            if not isinstance(operation, Delete):
                problems = self._skill_problems(operation.skill)
                new = isinstance(operation, Add) or operation.name not in bank
                if new or bank[operation.name].trigger != operation.skill.trigger:
                    problems += self._trigger_problems(operation.skill.trigger, experiences)
                found_problems += [f"skill {operation.name!r}: {problem}" for problem in problems]
        return found_problems

    def _skill_problems(self, skill: Skill) -> list[str]:
        problems = []
        if skill.length > self.length:
            problems.append(
                f"description and body have {skill.length} characters, at most {self.length} are allowed: "
                "keep the principle, drop the details"
            )
        if not skill.body:
            problems.append("the body is empty: say what to do")
        text = f"{skill.description}\n{skill.body}"
        if mark := TEMPLATE_MARKS.search(text):
            problems.append(f"holds {mark[0].strip()!r}, which belongs to a chat template; write plain words")
        if words := TAKEOVER.search(text):
            problems.append(
                f"says {' '.join(words[0].split())!r}, which is aimed at the prompt; say what to do in a task"
            )
        problems += [
            f"holds the special token {token!r}" for token in self.forbidden if token and token in text
        ]
        if "<" in skill.description or ">" in skill.description:
            problems.append("the description holds < or >, which other readers of Agent Skills refuse")
        return problems

    def _trigger_problems(self, trigger: Trigger, experiences: Sequence[Experience]) -> list[str]:
        rate = trigger_rate(trigger, experiences)
        if rate >= self.trigger_rate:
            return []
        return [
            f"the pattern {trigger.pattern!r} fires in {rate:.0%} of {len(experiences)} episodes, at least "
            f"{self.trigger_rate:.0%} are needed: broaden it (it is searched in the previous action alone)"
        ]


def trigger_rate(trigger: Trigger, experiences: Sequence[Experience]) -> float:
    """Share of episodes in which a trigger fires before some turn; 1 for general and beginning ones."""
    if trigger.kind != "action_pattern":
        return 1.0
    hits = sum(any(found(trigger.pattern, a) for a in e.actions[:-1]) for e in experiences)
    return hits / max(1, len(experiences))
