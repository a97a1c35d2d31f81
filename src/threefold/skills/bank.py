"""A skill bank and its versions: immutable, changed by bundles that are applied whole or not at all.

The unit of ReSkill's test is a version of the whole bank, made from its parent by one to three operations
(arXiv 2606.01619, section 3.3). Restoring is exact because a version never changes: a rejected bundle leaves
its parent untouched.

Deviation: the reference release applies operations one after another and silently drops what does not fit,
so the bank that is tested may not be the one that was proposed. Here a bundle is refused with every reason,
its deletions count before its additions, and its order does not matter.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from threefold.skills.skill import Skill, name_problem
from threefold.skills.skill_file import from_text, to_text

CAPACITY = 8
"""Most skills that a bank holds (K_max)."""


class BundleError(ValueError):
    """A bundle does not fit its bank; `problems` holds every reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the bundle is refused whole: " + "; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Add:
    skill: Skill
    reason: str = ""

    @property
    def name(self) -> str:
        return self.skill.name


@dataclass(frozen=True)
class Modify:
    """Put `skill` in the place of the one with its name; anything about it may change, the trigger too."""

    skill: Skill
    reason: str = ""

    @property
    def name(self) -> str:
        return self.skill.name


@dataclass(frozen=True)
class Delete:
    name: str
    reason: str = ""


Operation = Add | Modify | Delete


@dataclass(frozen=True)
class Bank:
    """One version: its skills by name, in alphabetical order, so that prompts and files never depend on how
    it came to be."""

    version: str = "v0"
    skills: tuple[Skill, ...] = ()
    parent: str | None = None

    def __post_init__(self) -> None:
        if message := version_problem(self.version):
            raise ValueError(message)
        names = [skill.name for skill in self.skills]
        if len(set(names)) < len(names):
            raise ValueError(f"bank {self.version} holds a skill twice: {sorted(names)}")
        object.__setattr__(self, "skills", tuple(sorted(self.skills, key=lambda skill: skill.name)))

    def __contains__(self, name: str) -> bool:
        return any(skill.name == name for skill in self.skills)

    def __getitem__(self, name: str) -> Skill:
        for skill in self.skills:
            if skill.name == name:
                return skill
        raise KeyError(f"bank {self.version} has no skill {name!r}; it has {self.names or 'none'}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(skill.name for skill in self.skills)


def version_problem(version: str) -> str | None:
    """What is wrong with a version's name, None where nothing is. A valid name is safe as a folder's name."""
    if re.fullmatch(r"v(0|[1-9][0-9]{0,8})", version):
        return None
    return f"a bank version is called 'v' and a number, such as 'v3'; got {version!r}"


def edited(skill: Skill, **changes: Any) -> Skill:
    """A skill with fields changed and its revision one higher."""
    return replace(skill, revision=skill.revision + 1, **changes)


def bundle_problems(bank: Bank, operations: Sequence[Operation], capacity: int = CAPACITY) -> list[str]:
    """Every reason why a bundle cannot be applied."""
    if not operations:
        return ["it holds no operation"]
    problems: list[str] = []
    counts = Counter(operation.name for operation in operations)
    for name in sorted(name for name, count in counts.items() if count > 1):
        problems.append(f"{counts[name]} operations on the skill {name!r}; one is allowed")
    known = f"it has {', '.join(bank.names) or 'none'}"
    for operation in operations:
        if isinstance(operation, Add):
            if operation.name in bank:
                problems.append(f"add {operation.name!r}: the bank already has it; modify it")
        elif operation.name not in bank:
            verb = type(operation).__name__.lower()
            problems.append(f"{verb} {operation.name!r}: the bank {bank.version} has no such skill; {known}")
        elif isinstance(operation, Modify):
            before = bank[operation.name]
            if replace(operation.skill, revision=before.revision) == before:
                problems.append(f"modify {operation.name!r}: nothing changes")
    size = len(bank.skills) + sum({Add: 1, Modify: 0, Delete: -1}[type(o)] for o in operations)
    if size > capacity and any(isinstance(o, Add) for o in operations):
        problems.append(f"the bank would hold {size} skills of {capacity}; delete one in the same bundle")
    return problems


def apply(bank: Bank, operations: Sequence[Operation], version: str, capacity: int = CAPACITY) -> Bank:
    """The bank that a bundle makes, as a new version.

    Raises:
        BundleError: The bundle does not fit; nothing was changed.
    """
    if problems := bundle_problems(bank, operations, capacity):
        raise BundleError(problems)
    skills = {skill.name: skill for skill in bank.skills}
    for operation in operations:
        if isinstance(operation, Delete):
            del skills[operation.name]
        else:
            skills[operation.name] = operation.skill
    return Bank(version, tuple(skills.values()), parent=bank.version)


def inverse(bank: Bank, operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The bundle that undoes `operations`, which fit `bank`: applied to the result it gives these skills."""
    undo: list[Operation] = []
    for operation in operations:
        reason = f"undoes: {operation.reason}" if operation.reason else ""
        if isinstance(operation, Add):
            undo.append(Delete(operation.name, reason))
        elif isinstance(operation, Modify):
            undo.append(Modify(bank[operation.name], reason))
        else:
            undo.append(Add(bank[operation.name], reason))
    return tuple(undo)


def difference(old: Bank, new: Bank) -> tuple[Operation, ...]:
    """The operations that lead from one bank's skills to another's."""
    operations: list[Operation] = [Delete(name) for name in old.names if name not in new]
    for skill in new.skills:
        if skill.name not in old:
            operations.append(Add(skill))
        elif skill != old[skill.name]:
            operations.append(Modify(skill))
    return tuple(operations)


def operation_to_dict(operation: Operation) -> dict[str, str]:
    """Plain JSON; the skill as the text of its SKILL.md, which loses nothing."""
    data = {"op": type(operation).__name__.lower(), "name": operation.name, "reason": operation.reason}
    if not isinstance(operation, Delete):
        data["skill"] = to_text(operation.skill)
    return data


def operation_from_dict(data: Mapping[str, str]) -> Operation:
    """Read what `operation_to_dict` wrote."""
    if data["op"] == "delete":
        return Delete(data["name"], data["reason"])
    skill = skill_from_text(data["skill"])
    return Add(skill, data["reason"]) if data["op"] == "add" else Modify(skill, data["reason"])


def bank_to_dict(bank: Bank) -> dict[str, Any]:
    """Plain JSON of a bank, for checkpoints."""
    return {**dataclasses.asdict(bank), "skills": [to_text(skill) for skill in bank.skills]}


def bank_from_dict(data: Mapping[str, Any]) -> Bank:
    """Read what `bank_to_dict` wrote: the result equals the original."""
    return Bank(data["version"], tuple(skill_from_text(text) for text in data["skills"]), data["parent"])


def skill_from_text(text: str) -> Skill:
    """A skill from the text of its SKILL.md.

    Raises:
        ValueError: The text is not one that we wrote.
    """
    skill, problems = from_text(text)
    if skill is None:
        raise ValueError("; ".join(f"line {p.line}: {p.message}" for p in problems))
    return skill


def kebab(title: str) -> str:
    """A valid skill name out of a title, "" where nothing is left of it."""
    words = re.findall(r"[a-z0-9]+", title.lower())
    name = "-".join(words)[:64].strip("-")
    return name if name and name_problem(name) is None else ""
