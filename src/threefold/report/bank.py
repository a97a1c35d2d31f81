"""The versions of a run's skill bank as the report shows them, read from `bank/` as far as that can be done.

A broken SKILL.md or version.json becomes a note, and the rest is shown: a run may have crashed, and its bank
may have been edited by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threefold.skills.skill import Skill
from threefold.skills.skill_file import from_text
from threefold.skills.store import VersionRecord, read_record, versions

FOLDER = "bank"
TEXT_LIMIT = 20_000
"""Characters of a SKILL.md that are read."""


@dataclass(frozen=True)
class TestStep:
    """One step of a version's test."""

    step: int
    won_new: tuple[int, int]
    """Successes and episodes under the version."""
    won_old: tuple[int, int]
    new: tuple[float, float]
    """The two parameters of the version's Beta posterior."""
    old: tuple[float, float]
    probability: float
    """That the version is better than its parent."""


@dataclass(frozen=True)
class Version:
    """One version of the bank."""

    name: str
    parent: str | None
    step: int
    decision: str
    decided_step: int | None
    operations: tuple[Mapping[str, Any], ...]
    evidence: Mapping[str, Any]
    test: tuple[TestStep, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    """The SKILL.md of each skill, by name."""
    skills: Mapping[str, Skill] = field(default_factory=dict)
    """Those of them that are valid."""


def read_bank(run_dir: Path, notes: list[str]) -> list[Version]:
    """The versions in the run, oldest first; what cannot be read becomes a sentence in `notes`."""
    root = run_dir / FOLDER
    return [_read(root, name, notes) for name in versions(root)]


def _read(root: Path, name: str, notes: list[str]) -> Version:
    try:
        record = read_record(root, name)
        test = tuple(map(_step, record.test))
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"{FOLDER}/{name}/version.json cannot be read ({type(error).__name__}: {error}).")
        record, test = VersionRecord(name, decision="unknown"), ()
    texts, skills = {}, {}
    for path in sorted((root / name / "skills").glob("*/SKILL.md")):
        skill_name = path.parent.name
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                texts[skill_name] = file.read(TEXT_LIMIT)
        except OSError as error:
            notes.append(f"{FOLDER}/{name}: {skill_name} cannot be read: {error}")
            continue
        skill, problems = from_text(texts[skill_name], folder=skill_name)
        if skill is None:
            said = problems[0].message if problems else "its form is unknown"
            notes.append(f"{FOLDER}/{name}: the skill {skill_name} is not valid ({said}); its text is shown.")
        else:
            skills[skill_name] = skill
    return Version(
        name,
        record.parent,
        record.step,
        record.decision,
        record.decided_step,
        record.operations,
        record.evidence,
        test,
        texts,
        skills,
    )


def _step(entry: Mapping[str, Any]) -> TestStep:
    new, old = entry["posterior_new"], entry["posterior_old"]
    if min(*new, *old) <= 0:
        raise ValueError(f"a posterior's parameters must be above 0, got {new} and {old}")
    return TestStep(
        int(entry["step"]),
        (int(entry["new"][0]), int(entry["new"][1])),
        (int(entry["old"][0]), int(entry["old"][1])),
        (float(new[0]), float(new[1])),
        (float(old[0]), float(old[1])),
        float(entry["probability_new"]),
    )
