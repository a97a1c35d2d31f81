"""Bank versions on disk, plain files that a person can read and edit:

    bank/<version>/skills/<name>/SKILL.md
    bank/<version>/version.json             parent, operations, evidence, posteriors, decision

A version is written into a hidden folder beside its place, flushed to the disk and renamed, so a crash or a
full disk leaves the whole version or nothing. `version.json` alone is rewritten later, the same way, when the
test of the version moves on.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from threefold.skills.bank import Bank, version_problem
from threefold.skills.skill import SkillError
from threefold.skills.skill_file import file_problems, read_skill, to_text

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class VersionRecord:
    """What is known about a version beside its skills."""

    version: str
    parent: str | None = None
    step: int = 0
    """Training step at whose end it was proposed."""
    decision: str = "initial"
    """"initial", "imported", "testing", "accept", "reject" or "auto-accept"."""
    decided_step: int | None = None
    operations: tuple[Mapping[str, str], ...] = ()
    """As `bank.operation_to_dict` gives them."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What the creator saw: diagnosis, pass rates, trigger rates, messages."""
    test: tuple[Mapping[str, Any], ...] = ()
    """One entry a step of its test: successes, episodes, discount and posterior of both arms."""


def write_version(root: str | Path, bank: Bank, record: VersionRecord, *, replace: bool = False) -> Path:
    """Write a version whole or not at all.

    Args:
        root: The folder of all versions; made with its parents.
        replace: Put it in the place of a version of the same name (a resumed run makes versions again).

    Returns:
        The version's folder.

    Raises:
        FileExistsError: The version is there already and `replace` is not set.
        OSError: The disk did not take it; nothing is left behind.
    """
    if record.version != bank.version:
        raise ValueError(f"the record of version {record.version} cannot stand with bank {bank.version}")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    target = root / bank.version
    if target.exists() and not replace:
        raise FileExistsError(f"{target} already exists; bank versions are never changed")
    part = Path(tempfile.mkdtemp(prefix=f".{bank.version}-", dir=root))
    try:
        part.chmod(0o755)  # mkdtemp gives 0o700
        (part / "skills").mkdir()
        for skill in bank.skills:
            (part / "skills" / skill.name).mkdir()
            _write(part / "skills" / skill.name / "SKILL.md", to_text(skill))
        _write(part / "version.json", _json(record))
        _flush_folder(part)
        if target.exists():
            aside = part.with_name(part.name + "-replaced")
            target.rename(aside)
            try:
                part.rename(target)
            except BaseException:
                aside.rename(target)
                raise
            shutil.rmtree(aside)
        else:
            part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _flush_folder(root)
    return target


def update_record(root: str | Path, record: VersionRecord) -> None:
    """Rewrite a version's `version.json`, the old one staying until the new one is on the disk.

    Raises:
        FileNotFoundError: There is no such version.
    """
    folder = _folder(root, record.version)
    part = folder / ".version.json.part"
    try:
        _write(part, _json(record))
        part.replace(folder / "version.json")
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush_folder(folder)


def read_bank(root: str | Path, version: str) -> Bank:
    """Read a version's skills, edited by hand or not.

    Raises:
        FileNotFoundError: There is no such version; the message lists those that are there.
        SkillError: A SKILL.md is broken; the message names file and line.
    """
    folder = _folder(root, version)
    problems = version_problems(root, version)
    if problems:
        raise SkillError("; ".join(problems))
    skills = tuple(read_skill(path) for path in _skill_folders(folder))
    return Bank(version, skills, parent=read_record(root, version).parent)


def read_record(root: str | Path, version: str) -> VersionRecord:
    """Read a version's `version.json`; a folder without one was made by hand and counts as imported.

    Raises:
        ValueError: The file is not such a record, or it was written by a newer threefold.
    """
    path = _folder(root, version) / "version.json"
    if not path.exists():
        return VersionRecord(version, decision="imported")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") > SCHEMA_VERSION:
            raise ValueError(f"was written by a newer threefold; this one reads schema {SCHEMA_VERSION}")
        data |= {name: tuple(data[name]) for name in ("operations", "test")}
        record = VersionRecord(**data)
        _check_entries(record)
        return record
    except KeyError as error:
        raise ValueError(f"{path} is not the record of a bank version: it has no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the record of a bank version: {error}") from error


def _check_entries(record: VersionRecord) -> None:
    """That operations and steps of the test have the shape that readers count on.

    Raises:
        ValueError: One has not; the message says which.
    """
    if not isinstance(record.evidence, dict):
        raise ValueError("evidence must be an object")
    for number, operation in enumerate(record.operations):
        texts = isinstance(operation, dict) and all(isinstance(text, str) for text in operation.values())
        if not texts or not {"op", "name"} <= operation.keys():
            raise ValueError(f"operations[{number}] must be an object of texts with op and name")
    for number, entry in enumerate(record.test):
        keys = {"step", "new", "old", "posterior_new", "posterior_old", "probability_new"}
        if not isinstance(entry, dict) or not keys <= entry.keys():
            raise ValueError(f"test[{number}] must be an object with {', '.join(sorted(keys))}")
        for key in keys:
            pair = [entry[key]] if key in ("step", "probability_new") else entry[key]
            if not isinstance(pair, list) or not all(isinstance(n, int | float) for n in pair):
                raise ValueError(f"test[{number}].{key} must hold numbers")
            if key not in ("step", "probability_new") and len(pair) != 2:
                raise ValueError(f"test[{number}].{key} must be a pair of numbers")


def version_problems(root: str | Path, version: str) -> list[str]:
    """Everything that is wrong with a version's skills, each with file and line, and with its record."""
    problems = []
    try:
        read_record(root, version)
    except ValueError as error:
        problems.append(str(error))
    for path in _skill_folders(_folder(root, version)):
        if not (path / "SKILL.md").is_file():
            problems.append(f"{path / 'SKILL.md'} does not exist; restore it or delete the folder")
            continue
        problems += [f"{path / 'SKILL.md'}, line {p.line}: {p.message}" for p in file_problems(path)]
    return problems


def versions(root: str | Path) -> list[str]:
    """The versions of a folder, oldest first."""
    found = [path.name for path in Path(root).glob("v*") if path.is_dir()]
    return sorted((name for name in found if version_problem(name) is None), key=lambda name: int(name[1:]))


def drop_versions(root: str | Path, keep: set[str]) -> list[str]:
    """Delete the versions that are not in `keep`, and what an interrupted write left: a resumed run makes
    versions after its checkpoint again. Returns the names of those deleted."""
    dropped = [name for name in versions(root) if name not in keep]
    for path in [Path(root) / name for name in dropped] + sorted(Path(root).glob(".v*-*")):
        shutil.rmtree(path)
    return dropped


class VersionFiles:
    """The versions of a run on disk, kept up with the run even where the disk was full for a while.

    Args:
        root: The folder of all versions.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._written: set[str] = set()
        self._waiting: dict[str, tuple[Bank, VersionRecord]] = {}

    def write(self, bank: Bank, record: VersionRecord) -> list[tuple[str, str]]:
        """Bring a version, or its new record, to the disk, and all that the disk refused before.

        Returns:
            (version, problem) of what it still refuses; that is tried again the next time.
        """
        self._waiting[bank.version] = (bank, record)
        problems = []
        for version, (what, known) in list(self._waiting.items()):
            try:
                if version in self._written:
                    update_record(self.root, known)
                else:
                    write_version(self.root, what, known, replace=True)
            except OSError as error:
                problems.append((version, f"{self.root / version}: {error}"))
                continue
            self._written.add(version)
            del self._waiting[version]
        return problems

    def restore(self, bank: Bank) -> str | None:
        """Put a version back that was edited by hand or lost, with the edited one beside it as
        `<version>.edited`: a run's versions never change, and it goes on with what it knows.

        Returns:
            What was found and done, None where the version is as it was.
        """
        folder = self.root / bank.version
        try:
            found = "its skills are others"
            if read_bank(self.root, bank.version).skills == bank.skills:
                return None
            record = read_record(self.root, bank.version)
        except (ValueError, OSError) as error:
            found = str(error)
            decision = "accept" if bank.parent else "initial"
            record = VersionRecord(bank.version, bank.parent, decision=decision)
            with suppress(ValueError, OSError):
                record = read_record(self.root, bank.version)
        aside = ""
        if folder.exists():
            edited = folder.with_name(f"{bank.version}.edited")
            shutil.rmtree(edited, ignore_errors=True)
            folder.rename(edited)
            aside = f"; what was there is in {edited}"
        said = f"{bank.version} on disk is not what the run knows ({found}); it is put back{aside}"
        return "; ".join([said, *(problem for _, problem in self.write(bank, record))])

    def drop(self, keep: set[str]) -> None:
        """Delete the versions that a resumed run will make again; the others are written afresh."""
        self._written, self._waiting = set(), {}
        drop_versions(self.root, keep)


def _folder(root: str | Path, version: str) -> Path:
    if message := version_problem(version):
        raise ValueError(message)
    folder = Path(root) / version
    if not folder.is_dir():
        there = ", ".join(versions(root)) or "none"
        raise FileNotFoundError(f"{root} has no bank version {version}; it has {there}")
    return folder


def _skill_folders(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "skills").glob("*") if path.is_dir())


def _json(record: VersionRecord) -> str:
    data = {"schema": SCHEMA_VERSION, **asdict(record)}
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make a rename outlive a power failure, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
