"""A skill on disk: an Agent Skill, `<name>/SKILL.md` (agentskills.io), written and strictly read.

The front matter holds only the keys that the specification allows. What is ours stands as strings under
`metadata`, with a prefix, so that any agent that reads Agent Skills reads our banks:

    ---
    name: open-after-navigation
    description: You have just arrived at something closed.
    metadata:
      threefold-trigger: action_pattern
      threefold-pattern: go to .*
      threefold-revision: '3'
      threefold-created-step: '45'
    ---
    Open it before you search elsewhere.

`description` says when to use the skill, the body what to do. A skill without our fields is `general`.
Deviation: the reference release of ReSkill writes flat files with top-level keys of its own, which the
specification does not allow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from threefold.skills.skill import PREFIX, Skill, SkillError, metadata_key, one_line, printable
from threefold.skills.triggers import Kind, Trigger, trigger_problem

FIELDS = ("name", "description", "license", "compatibility", "metadata", "allowed-tools")
FILE_LIMIT = 256 * 1024
"""Bytes of a SKILL.md that are read at all."""
FRONT_MATTER_LIMIT = 16 * 1024


@dataclass(frozen=True)
class Problem:
    """What is wrong with a SKILL.md, and in which line (counted from 1)."""

    line: int
    message: str


def to_text(skill: Skill) -> str:
    """The SKILL.md of a skill."""
    ours: dict[str, str] = {f"{PREFIX}trigger": skill.trigger.kind}
    if skill.trigger.pattern:
        ours[f"{PREFIX}pattern"] = skill.trigger.pattern
    ours[f"{PREFIX}revision"] = str(skill.revision)
    if skill.created_step is not None:
        ours[f"{PREFIX}created-step"] = str(skill.created_step)
    front = {
        "name": skill.name,
        "description": skill.description,
        "license": skill.license,
        "compatibility": skill.compatibility,
        "metadata": {**skill.metadata, **ours},
        "allowed-tools": skill.allowed_tools,
    }
    front = {key: value for key, value in front.items() if value is not None}
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10**9, default_flow_style=False)
    return f"---\n{text}---\n\n{skill.body}\n" if skill.body else f"---\n{text}---\n"


def from_text(
    text: str, *, folder: str | None = None, foreign: bool = False
) -> tuple[Skill | None, list[Problem]]:
    """Parse a SKILL.md.

    Args:
        text: The file's text.
        folder: Name of its folder, which must be the skill's name; None leaves that out.
        foreign: The file was written by others: what our form has no place for (keys outside the
            specification, values that are no texts, such as lists) is reported and left out instead of
            refused.

    Returns:
        The skill, None where it cannot be read, and everything that is to be said about the file. With
        `foreign` both may be given.
    """
    front, body, problems = _split(text)
    if front is None:
        return None, problems
    values, metadata, lines, fatal, problems = _front_matter(front)
    if fatal and not values:
        return None, fatal
    for key in values.keys() - set(FIELDS):
        problems.append(Problem(lines[key], f"unknown field {key!r}; allowed are {', '.join(FIELDS)}"))
    if foreign:
        for key in [key for key in metadata if not metadata_key(key) and not key.startswith(PREFIX)]:
            problems.append(Problem(lines[f"metadata.{key}"], f"metadata key {key!r} is not a plain word"))
            del metadata[key]
    else:
        fatal += problems
    for key in ("name", "description"):
        if key not in values:
            fatal.append(Problem(lines.get(key, 1), f"the field {key!r} is missing or not a text"))
    if fatal:
        return None, sorted({*problems, *fatal}, key=lambda p: p.line)
    name = values["name"].strip()
    if folder is not None and folder != name:
        fatal.append(Problem(lines["name"], f"the name {name!r} differs from its folder's, {folder!r}"))
    skill, found = _assemble(name, values, metadata, lines, body, foreign)
    fatal += found
    return (None if fatal else skill), sorted({*problems, *fatal}, key=lambda p: p.line)


def _assemble(
    name: str,
    values: Mapping[str, str],
    metadata: Mapping[str, str],
    lines: Mapping[str, int],
    body: str,
    foreign: bool,
) -> tuple[Skill | None, list[Problem]]:
    """The skill of a front matter whose types are right."""
    kind, pattern = metadata.get(f"{PREFIX}trigger", "general"), metadata.get(f"{PREFIX}pattern", "")
    found = []
    if message := trigger_problem(kind, pattern):
        field = f"metadata.{PREFIX}pattern" if pattern else f"metadata.{PREFIX}trigger"
        found.append(Problem(lines.get(field, 1), message))
    numbers: dict[str, int | None] = {"revision": 1, "created-step": None}
    for key in numbers:
        value = metadata.get(PREFIX + key)
        if value is None:
            continue
        if re.fullmatch(r"[0-9]{1,12}", value):
            numbers[key] = int(value)
        else:
            line = lines[f"metadata.{PREFIX}{key}"]
            found.append(Problem(line, f"{PREFIX}{key} is {value!r}, it must be a whole number"))
    others = {key: _unfolded(value) for key, value in metadata.items() if not key.startswith(PREFIX)}
    texts = {key: _unfolded(value) for key, value in values.items()}
    if foreign:  # what is only a matter of form in another's file is put into ours
        texts, others = (
            {key: one_line(value) for key, value in mapping.items()} for mapping in (texts, others)
        )
        body = printable(body)
    if found:
        return None, found
    try:
        skill = Skill(
            name=name,
            description=texts["description"].strip(),
            body=body.strip(),
            trigger=Trigger(cast(Kind, kind), pattern),
            revision=numbers["revision"] or 0,
            created_step=numbers["created-step"],
            license=texts.get("license"),
            compatibility=texts.get("compatibility"),
            allowed_tools=texts.get("allowed-tools"),
            metadata=others,
        )
    except SkillError as error:
        return None, [Problem(lines["name"], str(error))]
    return skill, []


def read_skill(path: str | Path, *, foreign: bool = False) -> Skill:
    """Read a skill's folder or its SKILL.md.

    Raises:
        SkillError: The file is not a valid skill; the message names the file and every bad line.
        FileNotFoundError: There is no SKILL.md.
    """
    file = skill_file(path)
    skill, problems = from_text(_read(file), folder=file.parent.name, foreign=foreign)
    if skill is None:
        raise SkillError("; ".join(f"{file}, line {p.line}: {p.message}" for p in problems))
    return skill


def file_problems(path: str | Path) -> list[Problem]:
    """Everything that the strict reading of a skill's folder or SKILL.md complains of."""
    file = skill_file(path)
    try:
        text = _read(file)
    except SkillError as error:
        return [Problem(1, str(error))]
    return from_text(text, folder=file.parent.name)[1]


def skill_file(path: str | Path) -> Path:
    """The SKILL.md of a folder, or the path itself where it is a file."""
    path = Path(path)
    file = path / "SKILL.md" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a skill is a folder that holds a SKILL.md")
    return file


def _read(file: Path) -> str:
    size = file.stat().st_size
    if size > FILE_LIMIT:
        raise SkillError(f"{file} has {size} bytes, at most {FILE_LIMIT} are read")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SkillError(
            f"{file} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error


def _split(text: str) -> tuple[str | None, str, list[Problem]]:
    """Front matter and body of a SKILL.md."""
    lines = text.removeprefix("\ufeff").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    if lines[0].rstrip() != "---":
        return None, "", [Problem(1, "the file must begin with a line '---' and its front matter")]
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == "---":
            front = "\n".join(lines[1:number]) + "\n"
            if len(front) > FRONT_MATTER_LIMIT:
                return (
                    None,
                    "",
                    [Problem(1, f"the front matter has more than {FRONT_MATTER_LIMIT} characters")],
                )
            return front, "\n".join(lines[number + 1 :]), []
    return None, "", [Problem(1, "the front matter is not closed by a line '---'")]


def _front_matter(
    text: str,
) -> tuple[dict[str, str], dict[str, str], dict[str, int], list[Problem], list[Problem]]:
    """Fields and metadata as texts, the line of each key ("metadata.key" one level down), what makes it
    unreadable, and values that are left out because they are no texts.

    Every scalar is a text, as in the reference reader: `version: 1.0` is "1.0", never a float.
    """
    values: dict[str, str] = {}
    metadata: dict[str, str] = {}
    lines: dict[str, int] = {}
    fatal: list[Problem] = []
    odd: list[Problem] = []
    try:
        for token in yaml.scan(text, Loader=yaml.BaseLoader):
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
                line = token.start_mark.line + 2
                problem = Problem(line, "anchors, aliases and tags are not allowed here")
                return values, metadata, lines, [problem], odd
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except RecursionError:
        problem = Problem(2, "the front matter is nested too deeply")
        return values, metadata, lines, [problem], odd
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        problem = Problem(mark.line + 2 if mark else 1, f"the front matter is not YAML: {reason}")
        return values, metadata, lines, [problem], odd
    if not isinstance(root, yaml.MappingNode):
        problem = Problem(2, "the front matter must be a mapping of keys to values")
        return values, metadata, lines, [problem], odd
    for key, node in _items(root, "", lines, fatal):
        if key == "metadata":
            if not isinstance(node, yaml.MappingNode):
                odd.append(Problem(lines[key], "metadata must be a mapping of texts"))
                continue
            for name, value in _items(node, "metadata.", lines, fatal):
                if isinstance(value, yaml.ScalarNode):
                    metadata[name] = value.value
                else:
                    odd.append(Problem(lines[f"metadata.{name}"], f"metadata {name!r} must be a text"))
        elif isinstance(node, yaml.ScalarNode):
            values[key] = node.value
        else:
            odd.append(Problem(lines[key], f"the field {key!r} must be a text"))
    return values, metadata, lines, fatal, odd


def _unfolded(value: str) -> str:
    """A folded or block scalar (`description: >`) as the line that it is."""
    return " ".join(value.split()) if "\n" in value else value


def _items(
    node: yaml.MappingNode, prefix: str, lines: dict[str, int], problems: list[Problem]
) -> list[tuple[str, yaml.Node]]:
    items = []
    for key, value in node.value:
        line = key.start_mark.line + 2  # marks count from 0, and the file begins with '---'
        if not isinstance(key, yaml.ScalarNode):
            problems.append(Problem(line, "a key must be a plain word"))
        elif prefix + key.value in lines:
            problems.append(Problem(line, f"the field {key.value!r} stands twice"))
        else:
            lines[prefix + key.value] = line
            items.append((key.value, value))
    return items
