"""A skill: when to use it, what to do, when it enters the prompt (ReSkill, arXiv 2606.01619, section 3.2).

The paper's content has three fields (`when_to_use`, `action`, `examples`); here the first is the
`description` and the others are the `body`, which is what Agent Skills have. See `skill_file` for the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from threefold.skills.triggers import Trigger

PREFIX = "threefold-"
"""Of our keys under `metadata`."""
NAME_LIMIT = 64
DESCRIPTION_LIMIT = 1024
COMPATIBILITY_LIMIT = 500
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


ALWAYS = Trigger()


class SkillError(ValueError):
    """A skill or its file is not valid; the message says where and what to do."""


@dataclass(frozen=True)
class Skill:
    """One skill. Values are checked when it is made, so a skill that exists can be written and read back."""

    name: str
    description: str
    """When to use it, one line."""
    body: str
    """What to do, Markdown."""
    trigger: Trigger = ALWAYS
    revision: int = 1
    """Grows by one with every edit."""
    created_step: int | None = None
    """Training step at which it was written, None where it was not written in training."""
    license: str | None = None
    compatibility: str | None = None
    allowed_tools: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The keys of others, without ours."""

    def __post_init__(self) -> None:
        if problems := skill_problems(self):
            raise SkillError(f"skill {self.name!r}: " + "; ".join(problems))

    @property
    def length(self) -> int:
        """Characters that the skill costs in a prompt, its name aside."""
        return len(self.description) + len(self.body)


def name_problem(name: str) -> str | None:
    """What is wrong with a skill's name, None where nothing is. A valid name is safe as a folder's name."""
    if len(name) > NAME_LIMIT:
        return f"the name has {len(name)} characters, at most {NAME_LIMIT} are allowed"
    if not _NAME.fullmatch(name):
        return (
            f"the name {name!r} is not valid: lowercase letters a-z, digits and single hyphens between them, "
            "such as 'open-after-navigation'"
        )
    return None


def skill_problems(skill: Skill) -> list[str]:
    """Everything that is wrong with the values of a skill."""
    found = [message for message in (name_problem(skill.name),) if message]
    if not skill.description.strip():
        found.append("the description is empty; say when to use the skill")
    if len(skill.description) > DESCRIPTION_LIMIT:
        found.append(
            f"the description has {len(skill.description)} characters, the limit is {DESCRIPTION_LIMIT}"
        )
    if skill.compatibility is not None and len(skill.compatibility) > COMPATIBILITY_LIMIT:
        found.append(f"compatibility has more than {COMPATIBILITY_LIMIT} characters")
    lines = {
        "description": skill.description,
        "license": skill.license,
        "compatibility": skill.compatibility,
        "allowed-tools": skill.allowed_tools,
        **{f"metadata.{key}": value for key, value in skill.metadata.items()},
    }
    for name, value in lines.items():
        if value is not None and (message := _line_problem(value)):
            found.append(f"{name} {message}")
    for key in skill.metadata:
        if key.startswith(PREFIX) or not metadata_key(key):
            found.append(f"metadata key {key!r} is ours or is not a plain word; rename it")
    if skill.body != skill.body.strip():
        found.append("the body begins or ends with white space; strip it")
    if odd := next((c for c in skill.body if not c.isprintable() and c not in "\n\t"), None):
        found.append(f"the body holds characters that cannot be printed, such as {odd!r}; remove them")
    if skill.revision < 1 or (skill.created_step is not None and skill.created_step < 0):
        found.append(f"revision {skill.revision} or step {skill.created_step} is negative")
    if "---" in skill.trigger.pattern:
        found.append("the pattern holds '---', which ends the front matter for other readers; write '-{3}'")
    return found


def metadata_key(key: str) -> bool:
    """Whether a key can stand under `metadata` in a file of ours."""
    return re.fullmatch(r"[A-Za-z0-9_.-]+", key) is not None and "---" not in key


def printable(text: str) -> str:
    """A text of others as one that a skill may hold: odd spaces become plain ones, what cannot be printed
    goes."""
    kept = (c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "" for c in text)
    return "".join(kept)


def one_line(text: Any) -> str:
    """A text of others as a line that a skill may hold. Three dashes or more become one: they would end the
    front matter for other readers."""
    return re.sub("-{3,}", "-", " ".join(printable(str(text)).split()))


def _line_problem(value: str) -> str | None:
    if not value.isprintable():
        return "holds a line break or a character that cannot be printed; write it on one line"
    if value != value.strip():
        return "begins or ends with a space; strip it"
    if "---" in value:
        return "holds '---', which ends the front matter for other readers; write a single dash"
    return None
