"""Skill banks of SkillRL (arXiv 2602.08234), read from their JSON.

    {"general_skills": [{"skill_id", "title", "principle", "when_to_apply"}],
     "task_specific_skills": {"<type>": [the same]},
     "common_mistakes": [{"description", "why_it_happens", "how_to_avoid"}]}

Every entry becomes a `general` skill: SkillRL retrieves by task type or embedding, which is no trigger of
ours; the task type is said in the description.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from threefold.skills.bank import kebab
from threefold.skills.skill import DESCRIPTION_LIMIT, NAME_LIMIT, Skill, one_line, printable


def read_skillrl(path: str | Path) -> tuple[list[Skill], list[str]]:
    """Read a SkillRL bank.

    Returns:
        The skills, and a note for every entry that was left out or shortened.

    Raises:
        ValueError: The file is not such a bank.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    known = {"general_skills", "task_specific_skills", "common_mistakes"}
    if not isinstance(data, dict) or not known & data.keys():
        raise ValueError(f"{path} is not a SkillRL bank: none of {', '.join(sorted(known))} is in it")
    skills: dict[str, Skill] = {}
    notes = []
    for place, title, description, body, metadata in _entries(data):
        if not title or not description:
            notes.append(f"{place}: has no title or no text, left out")
            continue
        name = kebab(title)
        if not name:
            notes.append(f"{place}: no name can be made of the title {title!r}, left out")
            continue
        number = 2
        while name in skills:
            suffix = f"-{number}"
            name = kebab(title)[: NAME_LIMIT - len(suffix)].rstrip("-") + suffix
            number += 1
        if len(description) > DESCRIPTION_LIMIT:
            notes.append(f"{place}: the description was cut to {DESCRIPTION_LIMIT} characters")
            description = description[:DESCRIPTION_LIMIT].strip()
        skills[name] = Skill(name, description, body, metadata=metadata)
    return list(skills.values()), notes


def _entries(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, dict[str, str]]]:
    """(place, title, description, body, metadata) of every entry."""
    groups = [("general_skills", "", data.get("general_skills", []))]
    tasks = data.get("task_specific_skills", {})
    if not isinstance(tasks, dict):
        raise ValueError("task_specific_skills must map a task type to a list of skills")
    groups += [(f"task_specific_skills.{kind}", str(kind), entries) for kind, entries in tasks.items()]
    for place, kind, entries in groups:
        for index, entry in enumerate(_objects(place, entries)):
            when = one_line(entry.get("when_to_apply") or entry.get("principle", ""))
            metadata = {"skillrl-id": one_line(entry.get("skill_id", ""))} if entry.get("skill_id") else {}
            if kind:
                when = f"Task type {one_line(kind)}: {when}" if when else ""
                metadata["skillrl-task-type"] = one_line(kind)
            body = printable(str(entry.get("principle", ""))).strip()
            yield f"{place}[{index}]", one_line(entry.get("title", "")), when, body, metadata
    for index, entry in enumerate(_objects("common_mistakes", data.get("common_mistakes", []))):
        mistake = one_line(entry.get("description", ""))
        lines = [
            f"- Why: {one_line(entry.get('why_it_happens', ''))}",
            printable(str(entry.get("how_to_avoid", ""))),
        ]
        body = "\n".join(reversed([line for line in lines if line.strip(" -Why:")]))
        title = "avoid " + " ".join(mistake.split()[:6]) if mistake else ""
        yield f"common_mistakes[{index}]", title, mistake and f"Avoid: {mistake}", body.strip(), {}


def _objects(place: str, entries: Any) -> list[Mapping[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{place} must be a list of objects")
    return entries
