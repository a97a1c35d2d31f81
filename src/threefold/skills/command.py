"""`threefold skills`: look at banks, compare versions, check files, bring skills in and out.

A bank is a run directory (its `bank/` folder) or a folder of versions itself. Everything is read from plain
files, so a bank that was copied off a crashed machine can be looked at.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator
from pathlib import Path

from threefold.skills.bank import CAPACITY, Add, Bank, difference, operation_to_dict, version_problem
from threefold.skills.skill import Skill, SkillError
from threefold.skills.skill_file import file_problems, from_text, read_skill, to_text
from threefold.skills.skillrl import read_skillrl
from threefold.skills.store import (
    VersionRecord,
    read_bank,
    read_record,
    version_problems,
    versions,
    write_version,
)


def bank_root(path: str | Path) -> Path:
    """The folder of versions in a run directory, or the path itself.

    Raises:
        FileNotFoundError: There are no bank versions.
    """
    path = Path(path)
    for root in (path / "bank", path):
        if versions(root):
            return root
    raise FileNotFoundError(f"{path} holds no bank versions (folders v0, v1, ..., or bank/v0, ...)")


def current_version(root: Path) -> str:
    """The newest version that is in use: not under test and not rejected."""
    for version in reversed(versions(root)):
        if read_record(root, version).decision not in ("testing", "reject"):
            return version
    return versions(root)[0]


def read_bank_or_skills(path: str | Path, version: str | None = None) -> Bank:
    """A bank version (by default the one in use) of a run or a bank; or the skills of a folder or of
    SkillRL's JSON, as version v0.

    Raises:
        FileNotFoundError: There is neither, or no such version.
        SkillError: A skill cannot be read.
    """
    path = Path(path)
    if _of_others(path, version):
        return Bank("v0", tuple(_read_source(path)[0]))
    root = bank_root(path)
    return read_bank(root, version or current_version(root))


def left_out(path: str | Path, version: str | None = None) -> list[str]:
    """What `read_bank_or_skills` leaves out of skills of others, in words; nothing of a bank of ours.

    Raises:
        As `read_bank_or_skills`.
    """
    path = Path(path)
    return _read_source(path)[1] if _of_others(path, version) else []


def _of_others(path: Path, version: str | None) -> bool:
    """Whether a path is a folder of skills or SkillRL's JSON, not a bank."""
    holds_versions = versions(path / "bank") or versions(path)
    return version is None and (path.suffix == ".json" or (path.is_dir() and not holds_versions))


def list_versions(path: str | Path) -> Iterator[str]:
    """One line a version."""
    root = bank_root(path)
    now = current_version(root)
    for version in versions(root):
        record = read_record(root, version)
        count = sum(1 for p in (root / version / "skills").glob("*") if p.is_dir())
        changes = ", ".join(f"{o['op']} {o['name']}" for o in record.operations)
        mark = "*" if version == now else " "
        line = f"{mark} {version:<5} {record.decision:<12} step {record.step:<5} {count} skills  {changes}"
        yield line.rstrip()


def show(path: str | Path, version: str | None = None, name: str | None = None) -> Iterator[str]:
    """The skills of a version (by default the one in use), or one whole SKILL.md."""
    root = bank_root(path)
    bank = read_bank(root, version or current_version(root))
    if name is not None:
        if name not in bank:
            raise FileNotFoundError(
                f"version {bank.version} has no skill {name!r}; it has {', '.join(bank.names) or 'none'}"
            )
        yield to_text(bank[name]).rstrip()
        return
    yield f"{bank.version}: {len(bank.skills)} skills"
    for skill in bank.skills:
        trigger = f"{skill.trigger.kind} {skill.trigger.pattern}".strip()
        yield f"- {skill.name} (revision {skill.revision}; {trigger}; {skill.length} characters)"
        yield f"    {skill.description}"


def diff(path: str | Path, old: str, new: str) -> Iterator[str]:
    """What leads from one version to another, skill by skill, as a unified diff."""
    root = bank_root(path)
    before, after = read_bank(root, old), read_bank(root, new)
    operations = difference(before, after)
    if not operations:
        yield f"{old} and {new} hold the same skills"
    for operation in operations:
        yield f"{type(operation).__name__.lower()} {operation.name}"
        one, two = (
            to_text(bank[operation.name]).splitlines() if operation.name in bank else []
            for bank in (before, after)
        )
        yield from list(difflib.unified_diff(one, two, lineterm="", n=1))[2:]


def history(path: str | Path) -> Iterator[str]:
    """Every version with what it changed, why, the steps of its test, and the decision."""
    root = bank_root(path)
    for version in versions(root):
        record = read_record(root, version)
        parent = f" from {record.parent}" if record.parent else ""
        decided = f" at step {record.decided_step}" if record.decided_step is not None else ""
        yield f"{version}{parent}, proposed at step {record.step}: {record.decision}{decided}"
        for operation in record.operations:
            reason = f" ({operation['reason']})" if operation.get("reason") else ""
            yield f"  {operation['op']} {operation['name']}{reason}"
        if record.evidence.get("diagnosis"):
            yield f"  diagnosis: {record.evidence['diagnosis']}"
        for step in record.test:
            (m, n), (k, j) = step["new"], step["old"]
            new, old = (
                alpha / (alpha + beta) for alpha, beta in (step["posterior_new"], step["posterior_old"])
            )
            yield (
                f"  step {step['step']}: new {m}/{n}, old {k}/{j}; posterior means {new:.3f} and {old:.3f}, "
                f"P(new > old) = {step['probability_new']:.3f}"
            )


def validate(path: str | Path) -> list[str]:
    """Everything that is wrong with a bank, a folder of skills or a SKILL.md, with file and line."""
    path = Path(path)
    try:
        root = bank_root(path)
    except FileNotFoundError:
        files = [path] if path.is_file() else sorted(path.glob("SKILL.md")) or sorted(path.glob("*/SKILL.md"))
        if not files:
            raise FileNotFoundError(f"{path} holds neither bank versions nor a SKILL.md") from None
        return [f"{file}, line {p.line}: {p.message}" for file in files for p in file_problems(file)]
    return [problem for version in versions(root) for problem in version_problems(root, version)]


def import_skills(path: str | Path, source: str | Path) -> Iterator[str]:
    """Make a new version of a bank with the skills of a source added.

    Args:
        path: A folder of versions, made where there is none. Not a run directory: a run numbers its versions
            itself, and drops those that it does not know when it is resumed.
        source: A skill's folder or its SKILL.md, a folder of skills (such as `.claude/skills`), or SkillRL's
            JSON.

    Raises:
        SkillError: A skill of the source cannot be read, or the bank has one of its name.
        FileExistsError: The path is a run directory.
    """
    path, source = Path(path), Path(source)
    run = path.parent if path.name == "bank" else path
    if versions(run / "bank") or (run / "metrics.jsonl").exists():
        raise FileExistsError(
            f"{run} is a run, whose bank is its own; make a bank beside it: threefold skills import my-bank "
            f"{run / 'bank' / 'VERSION' / 'skills'}, then import {source} into it too"
        )
    try:
        root = bank_root(path)
        bank = read_bank(root, current_version(root))
        number = int(versions(root)[-1][1:]) + 1
    except FileNotFoundError:
        root, bank, number = path, Bank("v0"), 0
    skills, notes = _read_source(source)
    yield from notes
    if clash := sorted({skill.name for skill in skills} & set(bank.names)):
        raise SkillError(f"{bank.version} already has {', '.join(clash)}; rename them in {source}")
    parent = bank.version if number else None
    new = Bank(f"v{number}", (*bank.skills, *skills), parent)
    record = VersionRecord(
        new.version,
        parent,
        decision="imported",
        operations=tuple(operation_to_dict(Add(skill, f"imported from {source.name}")) for skill in skills),
    )
    written = write_version(root, new, record)
    yield f"{written}: {len(skills)} skills imported, {len(new.skills)} in all"
    if len(new.skills) > CAPACITY:
        yield f"note: in a run, a bank above its capacity ({CAPACITY} by default) takes no additions"


def _read_source(source: Path) -> tuple[list[Skill], list[str]]:
    if source.suffix == ".json":
        return read_skillrl(source)
    if source.name == "SKILL.md" and source.is_file():
        source = source.resolve().parent
    folders = [source] if (source / "SKILL.md").is_file() else [p.parent for p in source.glob("*/SKILL.md")]
    if not folders:
        what = "holds no SKILL.md and is not a .json bank of SkillRL" if source.exists() else "does not exist"
        raise FileNotFoundError(f"{source} {what}")
    skills, notes = [], []
    for folder in sorted(folders):
        skills.append(read_skill(folder, foreign=True))
        problems = from_text((folder / "SKILL.md").read_text(encoding="utf-8"), foreign=True)[1]
        notes += [f"{folder / 'SKILL.md'}, line {p.line}: {p.message}; left out" for p in problems]
    return skills, notes


def export(path: str | Path, target: str | Path, version: str | None = None) -> Iterator[str]:
    """Copy a version's skills to a folder that coding agents read, such as `.agents/skills`.

    Raises:
        FileExistsError: A skill of that name is there already; nothing is copied.
    """
    root = bank_root(path)
    version = version or current_version(root)
    if message := version_problem(version):
        raise ValueError(message)
    bank, target = read_bank(root, version), Path(target)
    if there := [name for name in bank.names if (target / name).exists()]:
        raise FileExistsError(
            f"{target} already holds {', '.join(there)}; remove them or give another folder"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in bank.names:
        shutil.copytree(root / version / "skills" / name, target / name)
    yield f"{len(bank.skills)} skills of {version} in {target}"
